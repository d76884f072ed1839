"""Calls of actors, as the supervisor's side waits for them and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from actors.process import last_crash, last_lines
from agent.errors import Fault, UserError

POLL_S = 1.0
"""How long one wait lasts at most, so that a Ctrl-C is seen."""


class Died(Fault):
    """An actor's process has ended, by itself or from outside: what it was asked raised nothing."""

    def __init__(self, message: str, crash: str = "") -> None:
        super().__init__(message)
        self.crash = crash
        """What Python's fault handler said of it (a segmentation fault, an abort); nothing if it was killed."""


def get(ref: Any, actor: str, log_dir: Path) -> Any:
    """The result of a finished call of ``actor``, its errors as ours.

    A ``UserError`` stays one; anything else that the call raised becomes a ``Fault`` that names the actor, and the end
    of its process a ``Died`` with the last lines of its log.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        text = str(cause) if isinstance(cause, Fault) else f"{type(cause).__name__}: {cause}"
        raise Fault(f"{actor}: {text}") from error
    except ray.exceptions.RayError as error:
        crash, lines = last_crash(log_dir, actor), last_lines(log_dir, actor)
        cause = type(error).__name__ + (f": {crash}" if crash else "")
        message = f"{actor} died ({cause})" + (f"; its last lines:\n{lines}" if lines else "")
        raise Died(message, crash) from error
