"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""
LONGEST_PATH = 4095
"""Bytes of a path that the system takes."""


def at_home(path: str | Path) -> Path:
    """``path``, with the home folder that a ``~`` at its beginning stands for.

    Where there is no such user it is an ordinary name, as it is for a shell. ``Path.expanduser`` raises there.
    """
    return Path(os.path.expanduser(path))
