"""One process after the other, where several fetch or build the same."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.lock import lock


@contextmanager
def in_turn(path: Path, say: Callable[[str], None], what: str) -> Iterator[None]:
    """Holds the lock file ``path``, which the system frees when its holder dies. ``say`` is told ``what`` another
    process does where that holds it, and is waited for.

    A file system without locks keeps nobody apart. Raises ``OSError`` for a file that can't be opened.
    """
    file = _opened(path)
    try:
        try:
            lock(file)
        except BlockingIOError:
            say(f"waiting for another process, which {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _opened(path: Path) -> int:
    """Who shares a cache shares its locks: another user's file is only read, which is enough to hold it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    except PermissionError:
        return os.open(path, os.O_RDONLY)
