"""A temporary folder beside a path. What is made in it and renamed to the path is whole, or not there at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.lock import lock

_SUFFIX = ".aside"


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, on the same disk, which is gone at the end of the body.

    Such folders of makers of ``path`` that were killed are deleted first. A maker that lives holds a lock on its own;
    where the file system has no locks, none is deleted.
    """
    _clear(path)
    folder, held = _made(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _made(path: Path) -> tuple[Path, int]:
    """A new folder, and its lock. Another maker may take it for a dead one's before it is locked, and delete it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent))
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(BlockingIOError):
                lock(descriptor)
                if folder.is_dir():
                    return folder, descriptor
            os.close(descriptor)


def _clear(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}"):
        try:
            descriptor = os.open(left, os.O_RDONLY)
        except OSError:  # it has just gone, or is another user's
            continue
        try:
            if lock(descriptor):
                shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
