"""What a learner step did: the only thing that leaves the learner besides weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.weights import Published
from agent.errors import commonest
from agent.groups import Group
from agent.pool.batches import TakenBatch
from learner.manifest import Files


@dataclass(frozen=True, kw_only=True, slots=True)
class Untrainable:
    """Why nothing of a batch can be trained on."""

    why: str
    """The commonest fault, or that nothing was played."""
    lasting: bool
    """All that failed were engines or the reward: that doesn't end by itself."""
    tools_failed: bool = False
    """Searches or tools failed: the next batch is to wait until they are answered."""

    @classmethod
    def of(cls, batch: TakenBatch[Group]) -> Untrainable | None:
        """None for a batch with a viable trajectory, of which not too many were lost to failed searches or rewards."""
        if not batch.too_many_tool_failures and any(p.outcome.size for p in batch.played):
            return None
        broken = [t for group in batch.payloads for t in group.excluded]
        if not broken:
            return cls(why="nothing was played", lasting=False)
        return cls(
            why=commonest([f"{t.stop_reason}: {t.fault}" for t in broken]),
            lasting=not any(t.stop_reason.is_tool_failure for t in broken),
            tools_failed=any(t.stop_reason.is_tool_failure for t in broken),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One learner step."""

    batch: int
    """The batch to release once its weights are everywhere."""
    version: int
    published: Published | None
    """The new version, or None when the batch had nothing to train on."""
    rollouts: int
    """Trajectories played for the batch, whatever became of them, and the tokens generated for them."""
    generated_tokens: int
    metrics: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What the learner has had to give up: see ``tracking/dispensable.py``."""
    untrainable: Untrainable | None = None
    """Why nothing of the batch could be trained on, if so. Such a batch is no step of a training run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """What came of a release. The batch is released in any case."""

    files: Files
    """What the pool has written into the checkpoint."""
    failed: str = ""
    """Why it could not."""
    notes: tuple[str, ...] = ()
    """What it has had to give up beside it."""
