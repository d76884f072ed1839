"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def settle(path: Path) -> None:
    """Waits until the file ``path``, or each below the folder, is on the disk: a name that it is given then is never
    that of half a file, even if the power fails."""
    files = [path] if path.is_file() else [Path(here, name) for here, _, names in os.walk(path) for name in names]
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which becomes ``path`` when the body ends, and is gone when that raises."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
        settle(Path(name))
        os.chmod(name, 0o644)  # mkstemp's are the owner's alone; these are read by whoever may read their folder
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
