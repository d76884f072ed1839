"""What a key that is no setting may have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LISTING = "`python launch.py --cfg job` lists the settings"


def hint(key: str, valid: Sequence[str], listing: str = LISTING) -> str:
    """The setting that ``key`` was meant to be, where there is a likely one; else where to find it.

    A sibling is likely if its last name is alike; a key elsewhere, if it is alike as a whole or ends as ``key`` does.
    """
    valid = [name for name in valid if not key.startswith(f"{name}.")]  # a group is no setting
    parent, _, leaf = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in valid if name.rpartition(".")[0] == parent]
    sibling = [f"{parent}.{name}" if parent else name for name in _alike(leaf, siblings, 0.6)]
    below = [name for name in valid if name.endswith(f".{key}")]
    namesakes = sorted(below or [name for name in valid if name.rpartition(".")[2] == leaf], key=len)
    for close in (sibling, _alike(key, valid, 0.9), namesakes[:3], _alike(key, valid, 0.75)):
        if close:
            return f"did you mean {' or '.join(repr(name) for name in close)}?"
    return f"valid names: {', '.join(sorted(siblings))}" if parent and siblings else listing


def _alike(name: str, valid: Sequence[str], likeness: float) -> list[str]:
    """The name that is most like ``name``, if it is enough so; 1 is the same."""
    return difflib.get_close_matches(name, valid, n=1, cutoff=likeness)
