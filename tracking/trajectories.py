"""trajectories.jsonl: episodes as a person reads them, with the numbers that decided their fate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.groups import Group
from agent.pool.batches import TakenBatch
from agent.records import ScoredTrajectory, Turn
from tracking.metrics import append


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryLog:
    """Appends up to ``per_step`` trajectories of each batch to ``path``, whole groups first; -1: all."""

    path: Path
    per_step: int

    def write(self, batch: TakenBatch[Group], version: int) -> None:
        """One line per trajectory; accepted groups come before returned ones."""
        accepted = {a.outcome.ticket.claim_id for a in batch.accepted}
        groups = sorted(batch.payloads, key=lambda g: (g.ticket.claim_id not in accepted, g.ticket.order))
        rows = [
            row(group, member, batch.index, version, group.ticket.claim_id in accepted)
            for group in groups
            for member in group.members
        ]
        if self.per_step >= 0:
            rows = rows[: self.per_step]
        append(self.path, rows)


def row(group: Group, member: ScoredTrajectory, batch: int, version: int, accepted: bool) -> dict[str, Any]:
    """The JSON object of one trajectory."""
    trajectory, score = member.trajectory, member.score
    return {
        "batch": batch,
        "version": version,
        "question_id": group.question.id,
        "question": group.question.text,
        "golden_answers": list(group.question.golden_answers),
        "state": str(group.state),
        "accepted": accepted,
        "reward": score.reward,
        "outcome": score.outcome,
        "evidence": score.evidence,
        "gate": score.gate,
        "stop_reason": str(trajectory.stop_reason),
        "answer": trajectory.answer,
        "searches": trajectory.searches,
        "action_tokens": trajectory.action_tokens,
        "turns": [_turn(turn) for turn in trajectory.turns],
        "worker": group.worker,
    }


def _turn(turn: Turn) -> dict[str, Any]:
    calls = [{"tool": c.tool, "argument": c.argument, "titles": list(c.titles)} for c in turn.calls]
    return {"text": turn.text, "query": turn.query, "titles": list(turn.titles), "calls": calls}
