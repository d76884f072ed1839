"""A checkpoint in one call; a run writes its own in two (``actors/saving.py``)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from learner.checkpoint import Writing
from learner.manifest import Files


def write_checkpoint(
    root: Path, step: int, write: Callable[[Path], Files], *, keep: int = 0, spare: Collection[Path] = ()
) -> Path:
    """Writes ``root/step-000100`` (for step 100) with what ``write`` puts into a folder and lists; see ``Writing``."""
    writing = Writing(root, step)
    try:
        return writing.finish(write(writing.folder), keep=keep, spare=spare)
    except BaseException:
        writing.discard()
        raise
