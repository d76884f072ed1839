"""Shows on the console what the supervisor waits for: see ``tracking/progress.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.learner import PLAYING
from tracking.console import Console
from tracking.progress import Phase, Progress


class Watch:
    """Asks the actors of one run how far they are, without ever waiting for an answer.

    ``look`` is called about once a second while the supervisor waits.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase: Phase | None = None
        self._whole: Phase | None = None
        self._steps = 0
        self._learner: Any = None
        self._pool: Any = None
        self._asked: list[Any] = []
        """References to answers that are on their way: the learner's, or the pool's."""

    @contextmanager
    def whole(self, steps: int) -> Iterator[None]:
        """Shows the run itself, whatever it does: ``steps`` in all, 0 where another budget ends it."""
        with self._console.phase("the run") as self._whole:
            self._steps = steps
            yield

    def reached(self, step: int) -> None:
        """The run has done ``step`` steps."""
        if self._whole is not None and self._steps:
            self._whole.update(Progress(done=step, total=self._steps, unit="steps"))

    @contextmanager
    def phase(self, title: str, *, learner: Any = None, pool: Any = None) -> Iterator[Phase]:
        """Shows ``title`` and what ``learner`` does; while it waits for rollouts, how many groups ``pool`` has."""
        with self._console.phase(title) as phase:
            before = self._phase, self._learner, self._pool, self._asked
            self._phase, self._learner, self._pool, self._asked = phase, learner, pool, []
            try:
                yield phase
            finally:
                self._phase, self._learner, self._pool, self._asked = before

    def look(self) -> None:
        """Reads the answers that have come and asks again. A dead actor is left to the caller to notice."""
        if self._phase is None or self._learner is None:
            return
        if self._asked:
            answered, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
            if len(answered) < len(self._asked):
                return
            try:
                self._take_in(ray.get(answered))
            except ray.exceptions.RayError:
                return
        self._asked = [actor.progress.remote() for actor in (self._learner, self._pool) if actor is not None]

    def _take_in(self, answers: list[Any]) -> None:
        doing, *groups = answers
        if doing.what == PLAYING and groups:
            done, wanted = groups[0]
            doing = Progress(what=PLAYING, done=done, total=wanted, unit="groups")
        assert self._phase is not None
        self._phase.update(doing)
