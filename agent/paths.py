"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def at_home(path: str | Path) -> Path:
    """``path``, with the home folder that a ``~`` at its beginning stands for.

    Where there is no such user it is an ordinary name, as it is for a shell. ``Path.expanduser`` raises there.
    """
    return Path(os.path.expanduser(path))
