"""What a run can do without fails once, says so, and is left out from then on."""

from __future__ import annotations

import errno

import pytest

from tracking.dispensable import Dispensable


def test_the_first_failure_is_told_and_the_thing_is_off() -> None:
    told: list[str] = []
    calls: list[str] = []
    extras = Dispensable(told.append)

    def fails() -> None:
        calls.append("tracker")
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    assert extras.attempt("the tracker", lambda: 7) == 7
    for _ in range(3):
        assert extras.attempt("the tracker", fails) is None
    assert extras.attempt("the tracker", lambda: 7) is None
    assert calls == ["tracker"]
    assert told == ["the tracker failed and is off for the rest of this run, which goes on: Connection reset by peer"]
    assert extras.attempt("a picture", lambda: 8) == 8


def test_whatever_a_library_raises_is_said_in_one_line() -> None:
    told: list[str] = []

    def fails() -> None:
        raise RuntimeError("several\n  lines")

    Dispensable(told.append).attempt("Ray's gauges", fails)
    (line,) = told
    assert line.endswith("which goes on: RuntimeError: several lines")


def test_who_stops_the_run_is_heard() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Dispensable(pytest.fail).attempt("the tracker", stop)
