"""Expert seeding (DAVID-GRPO's few-shot warm start): where no rollout succeeds, an expert takes the worst one's place.

    K rollouts of a question with an expert ── best below the maximum ──► worst replaced, then ordinary GRPO
                                            └─ otherwise ───────────────► as they are

Pure: the learner's actor calls ``inject`` between taking a batch and updating.
"""

from __future__ import annotations

from dataclasses import replace

from agent.groups import Group
from agent.records import MAX_REWARD, Question, Score, ScoredTrajectory, Trajectory
from agent.rewards.evidence import evidence_recall


def expert_score(expert: Trajectory, question: Question) -> Score:
    """An expert's reward is exactly the maximum, whatever the run's reward would make of it."""
    evidence = evidence_recall(expert, question)
    return Score(reward=MAX_REWARD, outcome=1.0, evidence=evidence)


def inject(group: Group, expert: Trajectory) -> Group:
    """``group`` with ``expert`` in the place of its lowest-reward rollout (the first on ties), which is discarded.

    The same group, unchanged, when a rollout has earned the maximum. So a group that only its expert solves
    has advantages of about 1.79 and -0.45 with K = 5. Raises ``ValueError`` if ``expert`` is none.
    """
    if not expert.expert:
        raise ValueError(f"question {expert.question_id}: an engine's trajectory was given as an expert's")
    if any(m.score.perfect for m in group.members):
        return group
    worst = group.rewards.index(min(group.rewards))
    scored = ScoredTrajectory(trajectory=expert, score=expert_score(expert, group.question))
    return replace(
        group,
        members=(*group.members[:worst], scored, *group.members[worst + 1 :]),
        discarded=(*group.discarded, group.members[worst].trajectory),
    )
