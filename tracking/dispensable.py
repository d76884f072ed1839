"""What a run can do without: a tracker, a log of episodes, gauges, pictures. None of them may end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from agent.errors import refused, shortened

T = TypeVar("T")


class Dispensable:
    """Does things that may fail. The first failure of each is told to ``warn``, and it is left out from then on."""

    def __init__(
        self, warn: Callable[[str], None], *, then: str = "is off for the rest of this run, which goes on"
    ) -> None:
        """``then`` says what becomes of a thing that has failed."""
        self._warn, self._then = warn, then
        self._off: set[str] = set()

    def is_off(self, what: str) -> bool:
        """Whether ``what`` has failed."""
        return what in self._off

    def attempt(self, what: str, do: Callable[[], T]) -> T | None:
        """What ``do`` returns; None if it fails, or has failed before. ``what`` names it for the user."""
        if what in self._off:
            return None
        try:
            return do()
        except Exception as error:  # whatever a tracker's library raises
            self._off.add(what)
            why = refused(error) if isinstance(error, OSError) else f"{type(error).__name__}: {shortened(error)}"
            self._warn(f"{what} failed and {self._then}: {why}")
            return None
