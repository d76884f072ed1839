"""Which tests share one Ray: they are run together, and by one process, since a Ray costs as much as many of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FIXTURE = "local_ray"
"""That of ``tests/actors/conftest.py``."""


@cache
def shares_ray(file: Path) -> bool:
    """Whether a file has tests that are on it."""
    return file.parent.name == "actors" and FIXTURE in file.read_text(encoding="utf-8")
