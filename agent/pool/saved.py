"""A pool's state as two files of a folder, and back."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agent.errors import shortened
from agent.readable import content_of, json_of


class Loads(Protocol):
    """A pool, as far as this is concerned."""

    def load_state(self, state: dict[str, Any]) -> None: ...


ARRAYS = "pool.npz"
VALUES = "pool.json"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``QueryPool.state()`` into ``folder``: ``pool.npz`` has its arrays, ``pool.json`` the rest."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    (folder / VALUES).write_text(json.dumps({name: value for name, value in state.items() if name not in arrays}))


def load(folder: Path) -> dict[str, Any]:
    """Reads what ``save`` wrote. Raises ``OSError`` or ``ValueError`` for files that are missing or damaged."""
    state = json_of((folder / VALUES).read_text())
    if not isinstance(state, dict):
        raise ValueError(f"{VALUES} holds no JSON object")
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            return state | {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, MemoryError, SyntaxError) as error:
        # All of these come out of numpy and zipfile for a file that was cut short or changed.
        raise ValueError(f"{ARRAYS} is damaged ({shortened(error)})") from error


def restore(pool: Loads, checkpoint: Path, training: str) -> None:
    """Gives ``pool``, a new one, the state that was saved into the folder ``training`` of a checkpoint.

    Raises ``UserError`` that names the checkpoint for a state of other questions, or one that can't be read.
    """
    with content_of(f"checkpoint {checkpoint}: the pool"):
        pool.load_state(load(checkpoint / training))
