"""Certificates and proxies that the environment names."""

from __future__ import annotations

import pytest

from agent.errors import UserError
from retrieval_service.environment import PROXIES, reached

HERE = ("http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:7891"),  # as desktops set it; httpx knows socks5 alone
        ("https_proxy", "http://proxy:port"),
        ("NO_PROXY", "localhost,fe80::/10"),
    ],
)
def test_a_proxy_that_cant_be_used_is_told_in_a_line_that_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^the environment's proxies \({name}\) can't be used: .+; correct or unset"):
        reached("https://api.example.org/v1")


@pytest.mark.parametrize("url", HERE)
def test_what_is_on_this_machine_is_asked_without_a_proxy(monkeypatch, url):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7891")
    assert reached(url)["trust_env"] is False


def test_another_machine_is_asked_through_the_proxy_and_over_http_without_certificates(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    assert reached("http://192.168.1.7:8000/v1") == {"verify": False, "trust_env": True}
    with pytest.raises(UserError, match=r"^SSL_CERT_FILE=/nowhere\.pem: can't be read as certificates"):
        reached("https://api.example.org/v1")
