"""Groups on their way from a worker to the learner, past the pool.

    worker ── bytes ──► pool: into the object store, once ── reference ──► learner

The pool never looks inside. The object is the pool actor's own, so that it outlives the worker that made it.
"""

from __future__ import annotations

import pickle

import ray

from agent.groups import Group
from agent.pool.batches import TakenBatch


def packed(group: Group) -> bytes:
    """``group`` as the pool is given it."""
    return pickle.dumps(group, protocol=5)


def fetched(batch: TakenBatch[ray.ObjectRef]) -> TakenBatch[Group]:
    """``batch`` with its groups, from the object store."""
    return batch.unpacked(lambda reference: pickle.loads(ray.get(reference)))
