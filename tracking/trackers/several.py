"""The trackers of a run. One that fails or hangs is off from then on, and the run and the others go on."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from agent.errors import UserError
from agent.shipped import member_of
from tracking.config import TrackerConfig
from tracking.dispensable import Dispensable
from tracking.trackers.base import Asked, Tracker
from tracking.trackers.episodes import EpisodesLog
from tracking.trackers.in_time import InTime

TABLE = "the trackers' table of episodes"
ANYTHING = (Exception, SystemExit)
"""What a library raises. A ``KeyboardInterrupt`` in the main thread is the user's."""


def check_installed(config: TrackerConfig) -> None:
    """Raises ``UserError`` for the first tracker that is asked for and whose package isn't here."""
    for name in config.names:
        try:
            version(name)
        except PackageNotFoundError:
            raise UserError(
                f"tracker={name}: the package {name} isn't installed: {sys.executable} -m pip install {name}"
            ) from None


class Trackers:
    """The open ones by name."""

    def __init__(
        self,
        runs: Mapping[str, tuple[Tracker, InTime]],
        extras: Dispensable,
        log: EpisodesLog | None = None,
        unopened: Sequence[type[Tracker]] = (),
    ) -> None:
        self._runs = dict(runs)
        self._unopened = unopened
        self._extras = extras
        self._log = log

    @classmethod
    def open(cls, asked: Asked, ids: Mapping[str, str], extras: Dispensable) -> Trackers:
        """Those of ``asked.config``; ``ids`` are what they call the run that this one goes on with."""
        opened, unopened = {}, []
        for name in asked.config.names:
            made: type[Tracker] = member_of(
                "tracking.trackers", name, "Tracker", "tracker", "a class `Tracker`", base=Tracker
            )
            told, in_time = replace(asked, id=ids.get(name)), InTime(asked.config.timeout_s)
            if (run := extras.attempt(_called(name), partial(in_time, partial(made, told)))) is not None:
                opened[name] = run, in_time
            else:
                unopened.append(made)
        return cls(
            opened, extras, extras.attempt(TABLE, lambda: EpisodesLog(asked.folder, whole=asked.whole)), unopened
        )

    @property
    def ids(self) -> dict[str, str]:
        """What those call the run that a later process can go on with."""
        return {name: run.id for name, (run, _) in self._runs.items() if run.id}

    def log(self, row: Mapping[str, Any], *, prefix: str = "") -> None:
        """The finite numbers of a row, at its step."""
        finite = {k: v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        numbers = {f"{prefix}{k}": v for k, v in finite.items() if k != "step"}
        self._each(lambda run: run.log(numbers, int(row["step"])))

    def evaluation(self, row: Mapping[str, Any], series: int = 1) -> None:
        """An evaluation: its numbers, and its episodes. Those of the second ``series`` of a run are no curve with those
        of the first, and are called ``eval_2/…``."""
        prefix = "eval/" if series == 1 else f"eval_{series}/"
        self.log(row, prefix=prefix)
        log, step = self._log, int(row["step"])
        if not self._runs or log is None:
            return
        episodes = self._extras.attempt(TABLE, lambda: log.of(step))
        if episodes is not None and episodes.rows:
            named = replace(episodes, name=f"{prefix}episodes")
            self._each(lambda run: run.episodes(named, step))

    def close(self) -> None:
        """Closes each: one that is off, too, since what it was told before may not be written yet."""
        self._each(lambda run: run.close())
        for name, (run, in_time) in self._runs.items():
            if self._extras.is_off(_called(name)):
                _leave(run, in_time)
            in_time.end()
        for made in self._unopened:  # now, since one that was too slow may have been opened since
            with suppress(*ANYTHING):
                made.abandon()

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, (run, in_time) in self._runs.items():
            self._extras.attempt(_called(name), partial(in_time, partial(do, run)))


def _leave(run: Tracker, in_time: InTime) -> None:
    """Ends one that is off, and no more is said of it."""
    with suppress(Exception):
        if not in_time.hangs:
            in_time(run.close)
            return
    with suppress(*ANYTHING):
        run.abandon()


def _called(name: str) -> str:
    return f"the tracker {name}"
