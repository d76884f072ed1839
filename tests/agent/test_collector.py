from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.collector import settle, without_collector


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("on", [True, False])
def test_it_is_off_meanwhile_and_then_as_before(on: bool) -> None:
    (gc.enable if on else gc.disable)()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() is on


def test_an_import_that_fails_leaves_it_on() -> None:
    gc.enable()
    with pytest.raises(ImportError), without_collector():
        import no_such_module  # noqa: F401
    assert gc.isenabled()


def test_what_is_imported_is_not_looked_at_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brings_a_list.py").write_text("kept = [[] for _ in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    with without_collector():
        import brings_a_list  # type: ignore[import-not-found]
    assert gc.get_freeze_count() >= before + 1000
    assert len(brings_a_list.kept) == 1000


def test_where_nothing_was_imported_all_is_looked_at_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[None] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(None))
    with without_collector():
        import gc as known  # noqa: F401
    assert frozen == []


def test_what_there_is_when_a_process_has_started_is_not_looked_at_later() -> None:
    kept = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    before = gc.get_freeze_count()
    settle()
    assert gc.get_freeze_count() >= before + len(kept)
