"""What a run tells while it goes on: to its files, to the person who watches, to whatever else shows its numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.ray_metrics import RayMetrics
from tracking.alarms import Alarm
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.metrics import MetricsLog, read, series_number
from tracking.trackers.several import Trackers

GAUGES = "Ray's gauges"
"""What the run goes on without."""


class Record:
    """The rows, events and lines of one run. Only ``metrics.jsonl`` has to be written; ``extras`` tries the rest."""

    def __init__(self, run_dir: Path, console: Console, trackers: Trackers, extras: Dispensable) -> None:
        self.metrics = MetricsLog(run_dir / "metrics.jsonl")
        self.tracked = trackers.ids
        """What the trackers call the run."""
        self._console = console
        self._trackers = trackers
        self._extras = extras
        self._gauges = extras.attempt(GAUGES, RayMetrics)
        self._began = time.perf_counter()

    def went_on(self, time_s: float) -> None:
        """Counts the seconds of earlier starts of the run, too."""
        self._began -= time_s

    @property
    def time_s(self) -> float:
        """Seconds since the run began, those between two of its starts left out."""
        return time.perf_counter() - self._began

    def step(self, row: Mapping[str, Any], progress: str) -> None:
        """One step; ``progress`` says which."""
        self.metrics.write("step", row)
        self._console.step(row, progress)
        if gauges := self._gauges:
            self._extras.attempt(GAUGES, lambda: gauges.set(row))
        self._trackers.log(row)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One evaluation."""
        self.metrics.write("eval", row)
        self._console.evaluation(row)
        self._trackers.evaluation(row, series_number(read(self.metrics.path, "eval")))

    def event(self, event: str, details: Mapping[str, Any]) -> None:
        """Something that happens now and then."""
        self.metrics.write("event", {"event": event, "time_s": self.time_s, **details})

    def saved(self, checkpoint: Mapping[str, Any]) -> None:
        """A checkpoint that is written, as ``Saving`` tells it."""
        self.event("checkpoint", checkpoint)

    def say(self, text: str, style: str = "") -> None:
        """A line for the person who watches."""
        self._console.say(f"[{self.time_s:6.1f} s] {text}", style)

    def alarms(self, alarms: Sequence[Alarm], *, in_row: bool) -> None:
        """What ``tracking/alarms.py`` has found. With ``in_row`` trackers know it from the row of its step: a number
        that they are told twice is one of a run that went back."""
        for alarm in alarms:
            self.event("alarm", {"step": alarm.step, "name": alarm.name, "what": alarm.what})
            if not in_row:  # one of the last evaluation is in no row
                self._trackers.log({"step": alarm.step, f"alarms/{alarm.name}": 1})
            self.say(f"alarm: {alarm}", "yellow")

    def given_up(self, notes: Sequence[str]) -> None:
        """What actors have had to give up: see ``tracking/dispensable.py``."""
        for note in notes:
            self.event("given_up", {"why": note})
            self.say(note, "yellow")
