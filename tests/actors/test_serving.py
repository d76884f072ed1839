"""``mode=serve`` up to the server: how its backends are opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import serving
from agent.errors import UserError
from retrieval_service.config import RetrievalConfig
from retrieval_service.server.config import ServeConfig
from tracking.console import Console


def test_a_second_lane_reads_no_data_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have changed: what is served is what was opened first."""
    loaded: list[str] = []
    opened: list[Any] = []

    def load(*given: Any, mode: str, **told: Any) -> Any:
        loaded.append(mode)
        return SimpleNamespace(corpus=tmp_path / f"corpus-{len(loaded)}.jsonl")

    def run(open_backend: Callable[[], Any], *given: Any) -> None:
        opened.extend((open_backend(), open_backend()))

    monkeypatch.setattr(serving, "check_cache", lambda config: None)
    monkeypatch.setattr(serving, "fetch", lambda config, console: None)
    monkeypatch.setattr(serving, "load", load)
    monkeypatch.setattr(serving, "opener", lambda corpus, *given: lambda: corpus)
    monkeypatch.setattr(serving.run, "serve", run)
    config: Any = SimpleNamespace(
        serve=ServeConfig(), retrieval=RetrievalConfig(), data=None, seed=0, cache=tmp_path / "cache"
    )
    serving.serve(config, Console(quiet=True))
    assert opened == [tmp_path / "corpus-1.jsonl"] * 2
    assert loaded == ["serve"]


@pytest.mark.parametrize("given", [None, "serve", "retrieval"])
def test_one_token_is_not_both_that_of_the_server_and_that_of_the_one_it_asks(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own secret would go to the other server."""
    (tmp_path / "token").write_text("of-the-file")
    monkeypatch.setenv("SLINGSHOT_RETRIEVAL_TOKEN", "of-the-variable")
    monkeypatch.setattr(serving, "check_cache", lambda config: None)
    monkeypatch.setattr(serving, "fetch", lambda config, console: None)
    asked: list[Any] = []
    monkeypatch.setattr(serving.run, "serve", lambda *settings: asked.append(settings[3]))
    file = {given: str(tmp_path / "token")}
    config: Any = SimpleNamespace(
        serve=ServeConfig(token_file=file.get("serve")),
        retrieval=RetrievalConfig(backend="http", url="http://x:1", token_file=file.get("retrieval")),
    )
    if given is None:
        with pytest.raises(
            UserError, match=r"^SLINGSHOT_RETRIEVAL_TOKEN would be both .* retrieval\.url=http://x:1; na"
        ):
            serving.serve(config, Console(quiet=True))
        assert asked == []
        config.retrieval = RetrievalConfig()
    serving.serve(config, Console(quiet=True))
    assert asked == ["of-the-file" if given == "serve" else "of-the-variable"]
