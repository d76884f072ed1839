"""A pool's state as two files of a folder, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

ARRAYS = "pool.npz"
VALUES = "pool.json"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``QueryPool.state()`` into ``folder``: ``pool.npz`` has its arrays, ``pool.json`` the rest."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    (folder / VALUES).write_text(json.dumps({name: value for name, value in state.items() if name not in arrays}))


def load(folder: Path) -> dict[str, Any]:
    """Reads what ``save`` wrote. Raises ``OSError`` or ``ValueError`` for files that are missing or damaged."""
    state: dict[str, Any] = json.loads((folder / VALUES).read_text())
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        return state | {name: arrays[name] for name in arrays.files}
