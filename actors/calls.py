"""Calls of actors, as the supervisor's side waits for them and reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ray

from actors.process import last_crash, last_lines
from agent.errors import ActorLost, Fault, Final, UserError, last_line

POLL_S = 1.0
"""How long one wait lasts at most, so that a Ctrl-C is seen."""


LAST_LINES = "; its last lines:\n"
"""What follows it in a message is an actor's log."""
STORE_FULL = (
    "Ray's object store is full ({}): make room on the disk of Ray's folder (/tmp/ray, or RAY_TMPDIR), which takes "
    "what the store has no room for, or raise cluster.object_store_mib"
)


class Died(Fault):
    """An actor's process has ended, by itself or from outside: what it was asked raised nothing."""

    def __init__(self, message: str, crash: str = "", *, actor: str = "") -> None:
        super().__init__(message)
        self.actor = actor
        self.crash = crash
        """What Python's fault handler said of it (a segmentation fault, an abort); nothing if it was killed."""


class Hangs(Died):
    """An actor made no progress within a deadline, and was killed."""

    def __init__(self, actor: str, why: str) -> None:
        super().__init__(f"{actor} hangs: {why}", actor=actor)


def get(ref: Any, actor: str, log_dir: Path, *, mistakes: bool = True) -> Any:
    """The result of a finished call of ``actor``, its errors as ours.

    A ``UserError`` stays one where a call may show ``mistakes`` of the user's; ``Final`` does, and ``ActorLost``, of
    another actor. Anything else that the call raised becomes a ``Fault`` that names the actor, and the end of its
    process a ``Died`` with the last lines of its log.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        while isinstance(cause, ray.exceptions.RayTaskError):  # raised by an actor that this one has asked
            cause = cause.cause
        if isinstance(cause, UserError) and mistakes:
            raise UserError(str(cause)) from error
        if isinstance(cause, ActorLost | Final):
            raise type(cause)(*cause.args) from error
        text = str(cause) if isinstance(cause, Fault | UserError) else f"{type(cause).__name__}: {cause}"
        if isinstance(cause, ray.exceptions.ObjectStoreFullError | ray.exceptions.OutOfDiskError):
            text = STORE_FULL.format(type(cause).__name__)
        elif isinstance(cause, ray.exceptions.RayError):  # of an actor that this one has asked: pages
            text = f"{type(cause).__name__} of another actor"
        raise Fault(f"{actor}: {text}") from error
    except ray.exceptions.RayError as error:
        raise died(error, actor, log_dir) from error


def died(error: ray.exceptions.RayError, actor: str, log_dir: Path) -> Died:
    """What is known of the end of an actor's process, from Ray's ``error`` and the last lines of its log."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Died(f"{actor} died: Ray killed it, as the machine's memory was full{_memory(str(error))}", actor=actor)
    crash, lines = last_crash(log_dir, actor), last_lines(log_dir, actor)
    cause = type(error).__name__ + (f": {crash}" if crash else "")
    if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
        cause = f"it can't be made: {last_line(str(error))}"
    return Died(f"{actor} died ({cause})" + (f"{LAST_LINES}{lines}" if lines else ""), crash, actor=actor)


def _memory(said: str) -> str:
    """How full it was, and whose it was, from Ray's page on that."""
    full = re.search(r"[\d.]+GB used / [\d.]+GB limit", said)
    users = re.findall(r"^\d+\t([\d.]+)\t(.{1,60})", said, re.MULTILINE)[:3]
    largest = "; the largest: " + ", ".join(f"{gb} GB {command}" for gb, command in users) if users else ""
    return (f" ({full[0]})" if full else "") + largest
