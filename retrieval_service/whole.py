"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which becomes ``path`` when the body ends, and is gone when that raises."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
        os.chmod(name, 0o644)  # mkstemp's are the owner's alone; these are read by whoever may read their folder
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
