"""spans.jsonl: who did what, from when to when. The timeline of ``mode=view`` is drawn from it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tracking.dispensable import Dispensable
from tracking.metrics import line_end

SPANS = "spans.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Appends one actor's spans to ``path``, which all actors of a run share: short lines, some
    dozens a step.

    Times are those of the machine's calendar clock, in seconds: actors on several machines are as far apart as these.
    """

    path: Path
    actor: str
    extras: Dispensable = field(default_factory=lambda: Dispensable(print))
    """A failure is told to the actor's log."""

    @contextmanager
    def span(self, what: str, least_s: float = 0.0) -> Iterator[None]:
        """The time that the body takes, if that is ``least_s`` or more."""
        start = time.time()
        try:
            yield
        finally:
            self.add(what, start, least_s)

    def add(self, what: str, start: float, least_s: float = 0.0) -> None:
        """A span from ``start`` (seconds of the calendar clock) until now, if that is ``least_s`` or more."""
        end = time.time()
        if end - start >= least_s:
            line = {"actor": self.actor, "what": what, "start": round(start, 4), "end": round(end, 4)}
            self.extras.attempt(self.path.name, lambda: self._append(json.dumps(line) + "\n"))

    def _append(self, line: str) -> None:
        with self.path.open("ab+") as file:
            file.write(line_end(file) + line.encode())  # one write of the system: lines don't mix on a local disk


class Stretches:
    """Of many things at once one span for each stretch in which there is any, if that is ``least_s`` or more.

    For one event loop.
    """

    def __init__(self, spans: Spans, what: str, least_s: float) -> None:
        self._spans, self._what, self._least_s = spans, what, least_s
        self._under_way = 0
        self._since = 0.0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One of these things, while the body runs."""
        if not self._under_way:
            self._since = time.time()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._spans.add(self._what, self._since, self._least_s)
