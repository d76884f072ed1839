"""The names of a pool's queries."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from agent.errors import UserError


def check_ids(ids: Sequence[str]) -> None:
    """Raises ``UserError`` for an empty list of ids, or one that occurs twice."""
    if not ids:
        raise UserError("the query pool is empty: the data has no training question")
    if len(set(ids)) < len(ids):
        duplicate = next(i for i, c in Counter(ids).items() if c > 1)
        raise UserError(f"question id {duplicate} occurs more than once in the training data")


def digest(ids: Sequence[str]) -> str:
    """Tells pools of other questions, or of the same in another order, apart."""
    made = hashlib.blake2b(digest_size=16)
    for name in ids:
        made.update(name.encode() + b"\0")
    return made.hexdigest()
