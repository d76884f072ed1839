"""Calls of actors, as the supervisor's side waits for them and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from actors.process import last_lines
from agent.errors import Fault, UserError

POLL_S = 1.0
"""How long one wait lasts at most, so that a Ctrl-C is seen."""


def get(ref: Any, actor: str, log_dir: Path) -> Any:
    """The result of a finished call of ``actor``, its errors as ours.

    A ``UserError`` stays one; anything else becomes a ``Fault`` that names the actor and ends with the
    last lines of its log.
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
        lines = last_lines(log_dir, actor)
        raise Fault(
            f"{actor} died ({type(error).__name__})" + (f"; its last lines:\n{lines}" if lines else "")
        ) from error
