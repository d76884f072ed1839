"""What a key that is no setting may have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LISTING = "`python launch.py --cfg job` lists the settings"


def hint(key: str, valid: Sequence[str], listing: str = LISTING) -> str:
    """The setting that ``key`` was meant to be, where there is a likely one; else where to find it.

    One of the same last name is likely where it lies within the same part, or where ``key`` names none; then a sibling
    whose last name is alike, or has it in it; then a key elsewhere that is alike as a whole. Otherwise the names of the
    part are listed, if there is such a part: the same name elsewhere is another thing.
    """
    valid = [name for name in valid if not key.startswith(f"{name}.")]  # a group is no setting
    parent, _, leaf = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in valid if name.rpartition(".")[0] == parent]
    beside = [f"{parent}.{name}" if parent else name for name in siblings]
    inside = [name for name in valid if name.endswith(f".{leaf}") and name.startswith(f"{parent}." if parent else "")]
    below = [name for name in valid if name.endswith(f".{key}")]
    sibling = [beside[siblings.index(name)] for name in _alike(leaf, siblings, 0.6)]
    longer = [name for name, last in zip(beside, siblings, strict=True) if _is_of(leaf, last)]
    elsewhere = [name for name in valid if name not in beside] if parent else valid
    namesakes = sorted((name for name in elsewhere if name.rpartition(".")[2] == leaf), key=len)[:3]
    apart = [] if parent and siblings else namesakes
    far = [] if parent and siblings else _alike(key, elsewhere, 0.75)
    for close in (sorted(inside, key=len)[:3], below, sibling, longer[:3], _alike(key, elsewhere, 0.9), apart, far):
        if close:
            return f"did you mean {_named(close)}?"
    if not (parent and siblings):
        return listing
    other = f"; elsewhere there is {_named(namesakes)}" if namesakes else ""
    return f"valid names: {', '.join(sorted(siblings))}{other}"


def _is_of(part: str, name: str) -> bool:
    """Whether ``name`` begins with ``part``, or has it as one of its words."""
    return len(part) > 2 and (name.startswith(part) or part in name.split("_"))


def _named(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _alike(name: str, valid: Sequence[str], likeness: float) -> list[str]:
    """The name that is most like ``name``, if it is enough so; 1 is the same."""
    return difflib.get_close_matches(name, valid, n=1, cutoff=likeness)
