"""What a run is doing right now: phases that a person sees while they last.

In a terminal a phase is a line that moves. In a log, where nothing can move, a plain line says what is under way
whenever nothing else was written for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from agent.visible import visible

LOG_EVERY_S = 20.0
"""Seconds without a line in a log after which the phase under way is named again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a phase is. A ``total`` of 0 is unknown."""

    what: str = ""
    """The part of the phase that is under way."""
    done: int = 0
    total: int = 0
    unit: str = ""

    def __str__(self) -> str:
        count = (
            f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.done} {self.unit}" if self.done else ""
        )
        return f"{self.what} {count}".strip()


class Phase:
    """One phase. ``update`` may be called from any thread."""

    def __init__(self, title: str, now: float) -> None:
        self.began = now
        self.progress = Progress()
        self._title = title
        self._counted_from = (now, 0)

    def __str__(self) -> str:
        said = str(self.progress)
        told = f"{self._title}{': ' if self.progress.what else ' '}{said}" if said else self._title
        return visible(told)  # a title may name a file

    def update(self, progress: Progress, now: float | None = None) -> None:
        """From now on the phase is as far as ``progress`` says; another ``what`` begins a count of its own."""
        if progress.what != self.progress.what or progress.total != self.progress.total:
            self._counted_from = (time.monotonic() if now is None else now, progress.done)
        self.progress = progress

    def counting(self, unit: str) -> Callable[[int, int], None]:
        """``update`` for who counts: called with how many of how many ``unit`` are done."""
        return lambda done, total: self.update(Progress(done=done, total=total, unit=unit))

    def left_s(self, now: float) -> float | None:
        """Seconds that are left at the speed so far; None while that is unknown."""
        began, first = self._counted_from
        done = self.progress.done - first
        if not self.progress.total or done <= 0:
            return None
        return (now - began) / done * (self.progress.total - self.progress.done)

    def times(self, now: float) -> str:
        """How long it has lasted, its speed, and how long it will last, as far as that is known."""
        left = self.left_s(now)
        if left is None:
            return duration(now - self.began)
        began, first = self._counted_from
        speed = _speed((self.progress.done - first) / max(now - began, 1e-9), self.progress.unit)
        return f"{duration(now - self.began)}, {speed}, {duration(left)} left"

    def line(self, now: float) -> str:
        """The phase as a log has it: ``warm start 80/200 steps, 24 s, 3.3 steps/s, 36 s left``."""
        return f"{self}, {self.times(now)}"


class Phases:
    """The phases under way, shown on ``console``. Thread-safe: several threads may each be in one."""

    def __init__(self, console: RichConsole, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._lock = threading.Lock()
        self._active: list[Phase] = []
        self._heard = clock()
        """When the log last got a line."""
        self._ticker: threading.Thread | None = None
        self._live: _Live | None = None

    @contextmanager
    def phase(self, title: str) -> Iterator[Phase]:
        """Shows ``title`` while the body runs."""
        phase = Phase(title, self._clock())
        self._enter(phase)
        try:
            yield phase
        finally:
            self._leave(phase)

    def heard(self) -> None:
        """To be called when something else was written: the time without a line begins anew."""
        self._heard = self._clock()

    def line_due(self) -> str | None:
        """The line that is due after ``LOG_EVERY_S`` without one, which then counts as written; else None."""
        with self._lock:
            now = self._clock()
            if not self._active or now - self._heard < LOG_EVERY_S:
                return None
            self._heard = now
            return "… " + "; ".join(phase.line(now) for phase in self._active)

    def _enter(self, phase: Phase) -> None:
        if self._console.quiet:
            return
        with self._lock:
            self._active.append(phase)
            if _moves(self._console):
                self._live = self._live or _Live(self._console, self._clock)
                self._live.add(phase)
            elif self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
                self._ticker.start()

    def _leave(self, phase: Phase) -> None:
        if self._console.quiet:
            return
        with self._lock:
            self._active.remove(phase)
            if self._live is not None:
                self._live.remove(phase)
                if not self._active:
                    self._live.stop()
                    self._live = None

    def _tick(self) -> None:
        """The log's watch; it lives as long as the process."""
        while True:
            time.sleep(1.0)
            if (line := self.line_due()) is not None:
                self._console.print(line, markup=False)


def _moves(console: RichConsole) -> bool:
    """Whether a line can move where ``console`` writes: not in a file that FORCE_COLOR lets rich take for a terminal,
    nor in a terminal without a cursor that obeys."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


class _Live:
    """The moving lines of a terminal."""

    def __init__(self, console: RichConsole, clock: Callable[[], float]) -> None:
        self._bars = _Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Times(clock),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self._tasks: dict[int, TaskID] = {}
        self._bars.start()

    def add(self, phase: Phase) -> None:
        self._tasks[id(phase)] = self._bars.add_task(str(phase), total=None, phase=phase)

    def remove(self, phase: Phase) -> None:
        self._bars.remove_task(self._tasks.pop(id(phase)))

    def stop(self) -> None:
        self._bars.stop()


class _Bars(RichProgress):
    """Asks each phase how far it is whenever it is drawn."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            phase: Phase = task.fields["phase"]
            progress = phase.progress
            task.description, task.completed, task.total = str(phase), progress.done, progress.total or None
        return super().get_renderables()


class _Times(ProgressColumn):
    """How long a phase has lasted and will last, and how fast it is."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        return Text(task.fields["phase"].times(self._clock()))


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(90), duration(720), duration(9000)
    ('90 s', '12 min 00 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"


def _speed(per_s: float, unit: str) -> str:
    """
    >>> _speed(2.5, "steps"), _speed(0.05, "groups")
    ('2.5 steps/s', '3 groups/min')
    """
    return f"{_short(per_s)} {unit}/s" if per_s >= 0.1 else f"{_short(60 * per_s)} {unit}/min"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
