"""Groups on their way from a worker to the learner, past the pool.

    worker ── bytes ──► pool: into the object store, once ── reference ──► learner

The pool never looks inside. The object is the pool actor's own, so that it outlives the worker that made it. What has
changed on the way is no group: its bytes begin with their digest.
"""

from __future__ import annotations

import pickle

import ray
import xxhash

from agent.errors import Unusable
from agent.groups import Group
from agent.pool.batches import TakenBatch

DIGEST = 8
"""Bytes of an xxh3-64, with which a group begins."""


def packed(group: Group) -> bytes:
    """``group`` as the pool is given it."""
    content = pickle.dumps(group, protocol=5)
    return xxhash.xxh3_64_digest(content) + content


def is_whole(group: object) -> bool:
    """Whether these are the bytes that a worker has packed."""
    return isinstance(group, bytes) and xxhash.xxh3_64_digest(memoryview(group)[DIGEST:]) == group[:DIGEST]


def fetched(batch: TakenBatch[ray.ObjectRef]) -> TakenBatch[Group]:
    """``batch`` with its groups, from the object store. Raises ``Unusable`` if it, or one of them, is damaged."""
    if not isinstance(batch, TakenBatch):
        raise Unusable("pool", f"instead of a batch it is of type {type(batch).__name__}")
    return batch.unpacked(lambda reference: _unpacked(ray.get(reference), batch.index))


def _unpacked(group: bytes, batch: int) -> Group:
    if not is_whole(group):
        raise Unusable("pool", f"a group of batch {batch} is damaged")
    unpacked: Group = pickle.loads(memoryview(group)[DIGEST:])
    return unpacked
