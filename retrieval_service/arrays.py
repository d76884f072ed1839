"""Arrays in files, mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def mapped(file: Path, kind: type[np.generic], dimensions: int = 1) -> Any:
    """The array of ``kind`` that is in ``file``. It keeps the file open.

    Raises ``OSError``, and ``ValueError`` that begins with the file's name if there is no such array in it.
    """
    try:
        found = np.lib.format.open_memmap(file, mode="r")  # np.load takes an archive and a pickle for an array, too
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    if found.dtype != kind or found.ndim != dimensions:
        raise ValueError(f"{file.name} has numbers of {found.dtype} in {found.ndim} dimensions")
    return found
