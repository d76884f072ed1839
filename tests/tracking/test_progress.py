"""What a person sees of a phase: a line that moves in a terminal, and in a log a line after each long silence."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from tracking.progress import LOG_EVERY_S, Phase, Phases, Progress


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Phases:
    return Phases(RichConsole(file=io.StringIO(), force_terminal=False), clock=clock)


def test_a_log_gets_a_line_after_a_silence_and_not_before(log: Phases, clock: Clock) -> None:
    with log.phase("starting Ray"):
        clock.now += LOG_EVERY_S - 1
        assert log.line_due() is None
        clock.now += 1
        assert log.line_due() == "… starting Ray, 20 s"
        assert log.line_due() is None
        clock.now += LOG_EVERY_S - 1
        log.heard()
        clock.now += LOG_EVERY_S - 1
        assert log.line_due() is None
    clock.now += 10 * LOG_EVERY_S
    assert log.line_due() is None, "nothing is under way"


def test_phases_of_several_threads_share_the_line(log: Phases, clock: Clock) -> None:
    with log.phase("starting Ray"):
        clock.now += 12
        with log.phase("reading the data"):
            clock.now += 10
            assert log.line_due() == "… starting Ray, 22 s; reading the data, 10 s"
        clock.now += LOG_EVERY_S
        assert log.line_due() == "… starting Ray, 42 s"


def test_counts_and_the_time_left() -> None:
    phase = Phase("warm start", 0.0)
    phase.update(Progress(what="reading the expert trajectories"), now=4.0)
    assert phase.line(6.0) == "warm start: reading the expert trajectories, 6 s"
    phase.update(Progress(done=0, total=200, unit="steps"), now=10.0)
    assert phase.line(10.0) == "warm start 0/200 steps, 10 s"
    phase.update(Progress(done=50, total=200, unit="steps"), now=40.0)
    assert phase.left_s(40.0) == pytest.approx(90.0)  # 30 s for 50 of them
    assert phase.line(40.0) == "warm start 50/200 steps, 40 s, 1.7 steps/s, 90 s left"
    phase.update(Progress(done=200, total=200, unit="steps"), now=4000.0)
    assert phase.line(7000.0) == "warm start 200/200 steps, 1 h 56 min, 1.7 steps/min, 0 s left"


def test_another_part_of_a_phase_counts_from_its_own_beginning() -> None:
    phase = Phase("step 3", 0.0)
    phase.update(Progress(what="rollouts", done=20, total=24, unit="groups"), now=10.0)
    phase.update(Progress(what="rollouts", done=22, total=24, unit="groups"), now=14.0)
    assert phase.line(14.0) == "step 3: rollouts 22/24 groups, 14 s, 0.5 groups/s, 4 s left"
    phase.update(Progress(what="update"), now=20.0)
    assert phase.line(20.0) == "step 3: update, 20 s"


class Screen(io.StringIO):
    """What a terminal is sent."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_phase_and_takes_it_away(clock: Clock) -> None:
    screen = Screen()
    console = RichConsole(file=screen, force_terminal=True, width=100, legacy_windows=False)
    phases = Phases(console, clock=clock)
    with phases.phase("evaluation") as phase:
        phase.update(Progress(done=64, total=450, unit="questions"), clock.now)
        assert phases._live is not None
        phases._live._bars.refresh()
        console.print("a line above it")
        with phases.phase("starting [1] engine"):
            pass
        clock.now += 10
        phase.update(Progress(done=192, total=450, unit="questions"), clock.now)
        phases._live._bars.refresh()
    assert "evaluation 64/450 questions" in screen.getvalue()
    assert "10 s, 13 questions/s, 20 s left" in screen.getvalue()
    assert "starting [1] engine" in screen.getvalue()
    assert "a line above it" in screen.getvalue()
    assert phases._live is None


@pytest.mark.parametrize(
    ("file", "environment"),
    [(Screen, {"TERM": "dumb"}), (Screen, {"FORCE_COLOR": ""}), (io.StringIO, {"FORCE_COLOR": "1", "TERM": "xterm"})],
)
def test_where_nothing_can_move_there_are_lines(clock: Clock, file: type, environment: dict[str, str]) -> None:
    written = file()
    phases = Phases(RichConsole(file=written, _environ=environment), clock=clock)
    with phases.phase("starting Ray"):
        assert phases._live is None
        clock.now += LOG_EVERY_S
        assert "starting Ray" in (phases.line_due() or "") + written.getvalue(), "the ticker may have been first"
    assert "\x1b" not in written.getvalue()


def test_a_phase_gives_no_orders_to_a_terminal() -> None:
    phase = Phase("reading a\x1b[2J.jsonl", 0.0)
    phase.update(Progress(what="part \x07"), now=0.0)
    assert phase.line(1.0) == "reading a\\x1b[2J.jsonl: part \\x07, 1 s"


@pytest.mark.parametrize(("done", "speed"), [(996, "100 steps/s"), (126, "13 steps/s"), (99, "9.9 steps/s")])
def test_a_speed_has_two_digits_or_is_whole(done: int, speed: str) -> None:
    phase = Phase("warm start", 0.0)
    phase.update(Progress(total=2000, unit="steps"), now=0.0)
    phase.update(Progress(done=done, total=2000, unit="steps"))
    assert f", {speed}, " in phase.line(10.0)


def test_a_phase_ends_with_its_error(log: Phases, clock: Clock) -> None:
    with pytest.raises(KeyError), log.phase("reading the data"):
        raise KeyError("x")
    clock.now += 2 * LOG_EVERY_S
    assert log.line_due() is None
