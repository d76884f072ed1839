"""What a trajectory is worth: r = w * evidence + (1 - w) * outcome less its costs, or 0 if a gate closes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.config import RewardConfig
from agent.errors import RewardError, one_of
from agent.protocol import TagProtocol
from agent.records import Question, Score, ScoredTrajectory, StopReason, Trajectory
from agent.rewards.costs import redundant_searches
from agent.rewards.evidence import evidence_recall
from agent.rewards.gates import GATES
from agent.rewards.outcome import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Trajectories of one question, scored or set apart, each in the order in which they were given."""

    members: tuple[ScoredTrajectory, ...] = ()
    excluded: tuple[Trajectory, ...] = ()
    """Those that a fault ended, and those whose outcome can't be told (``StopReason.REWARD_FAILED``)."""

    def __add__(self, other: Scored) -> Scored:
        return Scored(members=self.members + other.members, excluded=self.excluded + other.excluded)


class Scorer:
    """Scores trajectories by one ``RewardConfig``. Raises ``UserError`` for an unknown outcome or gate."""

    def __init__(self, config: RewardConfig, protocol: TagProtocol) -> None:
        for gate in config.gates:
            one_of(gate, GATES, "reward.gates")
        self._outcome = Outcome(config.outcome)
        self._config = config
        self._protocol = protocol

    @property
    def groupwise(self) -> bool:
        """Whether a trajectory's score depends on those that it is scored with."""
        return self._outcome.groupwise

    async def score(self, question: Question, trajectories: Sequence[Trajectory]) -> Scored:
        """The trajectories' scores. A fault of the reward is no 0: it excludes the trajectory, as any fault does."""
        viable = [t for t in trajectories if not t.stop_reason.is_fault]
        outcomes = iter(await self._outcome.judge(question, viable))
        members, excluded = [], []
        for trajectory in trajectories:
            if trajectory.stop_reason.is_fault:
                excluded.append(trajectory)
                continue
            outcome = next(outcomes)
            if isinstance(outcome, RewardError):
                excluded.append(replace(trajectory, stop_reason=StopReason.REWARD_FAILED, fault=str(outcome)))
            else:
                score = self._score(question, trajectory, outcome)
                members.append(ScoredTrajectory(trajectory=trajectory, score=score))
        return Scored(members=tuple(members), excluded=tuple(excluded))

    def _score(self, question: Question, trajectory: Trajectory, outcome: float) -> Score:
        """r = w r_g + (1 - w) r_o less the costs, or 0 if a gate closes. Without supporting documents w = 0."""
        evidence = evidence_recall(trajectory, question)
        gate = next((g for g in self._config.gates if GATES[g](trajectory, self._protocol)), None)
        weight = 0.0 if evidence is None else self._config.evidence_weight
        earned = 0.0 if gate else weight * (evidence or 0.0) + (1 - weight) * outcome
        cost = min(self._cost(trajectory), earned)
        return Score(reward=earned - cost, outcome=outcome, evidence=evidence, gate=gate, cost=cost)

    def _cost(self, trajectory: Trajectory) -> float:
        """What the cost terms would take off, were it earned."""
        c = self._config
        return (
            c.search_cost * trajectory.searches
            + c.token_cost * trajectory.action_tokens
            + c.redundant_cost * redundant_searches(trajectory)
        )
