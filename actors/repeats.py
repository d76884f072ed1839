"""What would happen again if it were tried again, and what may not."""

from __future__ import annotations

import re
from pathlib import Path

from actors.calls import Died
from actors.process import last_lines
from agent.errors import Fault

_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
"""A worker's number, a port, an address: they differ each time."""


class Repeats:
    """Looks at what successive workers of a run raise.

    An engine that has never started, or never taken weights, with any worker, won't for the next one either. What two
    workers in a row raise in the same call and in the same words is no accident. A process that was killed from
    outside has raised nothing.
    """

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._never = {"start", "receive"}

    def went_well(self, call: str) -> None:
        """A worker has done ``call``."""
        self._last.pop(call, None)
        self._never.discard(call)

    @property
    def has_started(self) -> bool:
        """Whether any worker of the run has: what was asked for is right, then."""
        return "start" not in self._never

    def would(self, call: str, error: Fault) -> bool:
        """Whether a new worker's ``call`` would end in ``error`` again, as this one's has."""
        died = isinstance(error, Died)
        words = error.crash if isinstance(error, Died) else str(error)
        if not words:
            return False
        words = _NUMBER.sub("#", words)
        before, self._last[call] = self._last.get(call), words
        return before == words or (call in self._never and not died)


def hopeless(worker: str, error: Fault, log_dir: Path) -> Fault:
    """What to end the run with where a new worker would end in ``error`` as this ``worker`` has."""
    lines = "" if isinstance(error, Died) else last_lines(log_dir, worker)
    return Fault(
        f"every new worker would fail in the same way: {error}" + (f"; its last lines:\n{lines}" if lines else "")
    )
