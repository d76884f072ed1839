"""A policy's weights in a cache of folders: each is whole or not there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from learner.policy import Policy


def load_cached(policy: Policy, folder: Path) -> bool:
    """Loads what ``keep`` has written to ``folder``; False where nothing is."""
    if not folder.is_dir():
        return False
    policy.load_weights(folder)
    return True


def keep(policy: Policy, folder: Path) -> None:
    """Writes the weights to ``folder``. If another run was first, its result is the same and stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        policy.save(aside / "model")
        try:
            (aside / "model").rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
