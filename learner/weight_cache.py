"""A policy's weights in a cache of folders: each is whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from agent.aside import aside
from agent.errors import UserError
from learner import manifest
from learner.policy import Policy


def load_cached(policy: Policy, folder: Path) -> bool:
    """Loads what ``keep`` has written to ``folder``; False where nothing is.

    What is damaged is said in the actor's log and removed: it is made again.
    """
    if not folder.is_dir():
        return False
    try:
        manifest.check(folder)
    except UserError as error:
        print(
            f"[slingshot] the cached weights can't be used, and are made again: {str(error).partition(';')[0]}",
            flush=True,
        )
        shutil.rmtree(folder)
        return False
    policy.load_weights(folder)
    return True


def keep(policy: Policy, folder: Path) -> None:
    """Writes the weights to ``folder``, on the disk. If another run was first, its result is the same and stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with aside(folder) as there:
        made = there / "model"
        policy.save(made)
        manifest.write(made, manifest.Manifest(step=0, number=0, files=manifest.listed(made)))
        for path in made.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
