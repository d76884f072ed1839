from __future__ import annotations

import sys
from pathlib import Path

import pytest

from actors.dashboard import entrance


def test_a_protected_dashboard_says_where_its_token_is() -> None:
    line = entrance("127.0.0.1:8265", {"RAY_AUTH_MODE": "token"})
    assert line.startswith("Ray's dashboard: http://127.0.0.1:8265 (it asks once for a token")
    assert f"{Path(sys.executable).parent}/ray get-auth-token" in line


@pytest.mark.parametrize("environment", [{}, {"RAY_AUTH_MODE": "disabled"}])
def test_an_open_dashboard_asks_for_nothing(environment: dict[str, str]) -> None:
    assert entrance("127.0.0.1:8265", environment) == "Ray's dashboard: http://127.0.0.1:8265"
