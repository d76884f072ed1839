"""A run's folder: made for one run, and written to by one process at a time.

``claimed`` is held for as long as a process writes into a folder. A folder that already holds a run is used again
only to go on with that run.
"""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import UserError
from agent.lock import lock

LOCK = ".lock"
"""Locked while its folder is written to. The system frees it when the process ends, however that happens."""
_TRACES = ("metrics.jsonl", "trajectories.jsonl", "checkpoints", "logs", "plan.json", "experts.jsonl")
"""What a run or a sweep leaves; one of them is enough."""


def trace(folder: Path) -> str | None:
    """The name of something that a run or a sweep left in ``folder``; None where none has been."""
    return next((name for name in _TRACES if (folder / name).exists()), None)


def make_new(folder: Path, setting: str) -> Path:
    """Makes ``folder``, or ``folder-2``, ``folder-3``, … if that is taken, for the caller alone, and returns it.

    ``setting`` is the one that chooses another place. Raises ``UserError`` if nothing can be made there.
    """
    if problem := unwritable(folder):
        raise _refused(folder, setting, problem)
    mine = folder
    for number in itertools.count(2):
        try:
            mine.mkdir(parents=True)
            break
        except FileExistsError:
            mine = folder.with_name(f"{folder.name}-{number}")
        except OSError as error:
            raise _refused(folder, setting, str(error.strerror)) from error
    return mine


@contextmanager
def claimed(folder: Path, setting: str) -> Iterator[None]:
    """Makes ``folder`` if need be and keeps it to this process.

    ``setting`` is the one that chooses another. Raises ``UserError`` if another process holds the folder, or nothing
    can be written there.
    """
    if problem := unwritable(folder):
        raise _refused(folder, setting, problem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise _refused(folder, setting, str(error.strerror)) from error
    with file:
        try:
            lock(file.fileno())
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise _refused(folder, setting, f"{holder} is writing there; wait until it has ended") from None
        except OSError as error:
            raise _refused(folder, setting, str(error.strerror)) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written to ``folder``, which need not exist yet; None if it can.

    Writes a small file to the nearest folder above that exists, and takes it away: rights alone don't say whether a
    disk is full or read-only.
    """
    try:
        there = folder.absolute()
        while not there.exists():
            if there.is_symlink():
                return f"{there} is a link to {os.readlink(there)}, which doesn't exist"
            there = there.parent
        if not there.is_dir():
            return f"{there} is a file, not a folder"
        with tempfile.TemporaryDirectory(prefix=".slingshot-", dir=there) as probe:
            _write_through(Path(probe) / "probe")
    except OSError as error:
        return f"nothing can be written to it ({error.strerror or error})"
    return None


def _write_through(file: Path) -> None:
    with file.open("wb") as opened:
        opened.write(bytes(4096))
        opened.flush()
        os.fsync(opened.fileno())


def _refused(folder: Path, setting: str, why: str) -> UserError:
    return UserError(f"{setting}={folder}: {why}; another folder is named by {setting}=FOLDER")
