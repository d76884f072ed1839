"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from agent.aside import aside


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
    with aside(path) as folder:
        made = folder / path.name
        with open(made, "wb") as file:
            yield file
        settle(made)
        os.replace(made, path)
