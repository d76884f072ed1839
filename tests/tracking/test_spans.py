"""Who did what when, as the timeline is drawn from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tracking import spans
from tracking.spans import Spans, Stretches


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``now`` is the calendar clock's time."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(spans, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


def rows(path: Path) -> list[tuple[str, float, float]]:
    if not path.exists():
        return []
    return [(row["what"], row["start"], row["end"]) for row in map(json.loads, path.read_text().splitlines())]


def test_a_span_is_the_time_of_its_body_unless_that_is_too_short(tmp_path: Path, clock: SimpleNamespace) -> None:
    own = Spans(path=tmp_path / "spans.jsonl", actor="a")
    for seconds in (0.5, 2.0):
        with own.span("work", least_s=1.0):
            clock.now += seconds
    assert rows(own.path) == [("work", 100.5, 102.5)]


def test_things_at_once_are_one_stretch_until_the_last_has_ended(tmp_path: Path, clock: SimpleNamespace) -> None:
    own = Spans(path=tmp_path / "spans.jsonl", actor="a")
    searching = Stretches(own, "search", 1.0)
    first, second, third = searching.one(), searching.one(), searching.one()
    first.__enter__()
    clock.now += 1
    second.__enter__()
    clock.now += 1
    first.__exit__(None, None, None)
    assert rows(own.path) == []
    clock.now += 1
    assert not second.__exit__(ValueError, ValueError("it broke"), None), "it is raised on"
    assert rows(own.path) == [("search", 100.0, 103.0)]
    third.__enter__()
    clock.now += 0.5
    third.__exit__(None, None, None)
    assert rows(own.path) == [("search", 100.0, 103.0)], "too short to be shown"
