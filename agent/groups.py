"""K trajectories of one question, played on one ticket: what the learner trains on, and what the pool is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.records import NO_VERSION, Question, ScoredTrajectory, Trajectory
from agent.tickets import Outcome, QueryState, Spent, Ticket


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """The K trajectories of one question for one update, less those that a fault excluded."""

    question: Question
    ticket: Ticket
    members: tuple[ScoredTrajectory, ...]
    excluded: tuple[Trajectory, ...] = ()
    """Trajectories that a fault took out; counted and reported, never trained."""
    worker: str = ""
    started_s: float = 0.0
    """The worker's monotonic clock when it began to play the group, and when it was done."""
    finished_s: float = 0.0
    discarded: tuple[Trajectory, ...] = ()
    """Viable trajectories that the strategy or the seeding left out: they cost as much, and are never trained."""
    before_continuation: QueryState | None = None
    """What the first K rollouts said of the query, when a continuation was attempted; ``state`` is what is trained."""
    cut_short: bool = False
    """The pilot decided the outcome, and the other rollouts were never started."""
    pilot: tuple[int, int] | None = None
    """See ``Outcome``."""
    extra: dict[str, float] = field(default_factory=dict)
    """Counters of the group strategy; ``agent/continuation.py`` lists those of the continuation."""

    def __post_init__(self) -> None:
        for trajectory in (*(m.trajectory for m in self.members), *self.excluded, *self.discarded):
            if trajectory.question_id != self.question.id:
                raise ValueError(f"group of {self.question.id} holds a trajectory of {trajectory.question_id}")
        if any(not t.stop_reason.is_fault for t in self.excluded):
            raise ValueError(f"group of {self.question.id}: only faulted trajectories are excluded")
        if any(t.stop_reason.is_fault for t in self.discarded):
            raise ValueError(f"group of {self.question.id}: a faulted trajectory is excluded, not discarded")

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(m.score.reward for m in self.members)

    @property
    def signal_bearing(self) -> bool:
        """Whether the rewards differ: equality of the rewards themselves, never of a float std."""
        return len(set(self.rewards)) > 1

    @property
    def state(self) -> QueryState:
        """Signal-bearing, or too easy (mean outcome at least one half, that of a gated member 0), or too hard."""
        if self.signal_bearing:
            return QueryState.SIGNAL
        outcomes = [_earned(m) for m in self.members]
        easy = bool(outcomes) and sum(outcomes) >= len(outcomes) / 2
        return QueryState.TOO_EASY if easy else QueryState.TOO_HARD

    @property
    def oldest_version(self) -> int:
        """Oldest policy version among the members' action tokens; ``NO_VERSION`` without any."""
        versions = [v for m in self.members if (v := m.trajectory.oldest_version) != NO_VERSION]
        return min(versions, default=NO_VERSION)

    def outcome(self) -> Outcome:
        """What the pool is told of it."""
        return Outcome(
            ticket=self.ticket,
            state=self.state,
            rolled_out=self.before_continuation or self.state,
            size=len(self.members),
            successes=self.successes,
            tokens=sum(m.trajectory.generated_tokens for m in self.members),
            solved_searches=tuple(m.trajectory.searches for m in self.members if _earned(m) >= 0.5),
            oldest_version=self.oldest_version,
            pilot=self.pilot,
            set_aside=self._set_aside(),
        )

    @property
    def successes(self) -> int:
        """Members nearer to the best reward than to the worst if the group bears signal, else all (too easy) or none.

        With rewards of 0 and 1 these are the members that earned 1; with graded rewards the count still
        lies strictly between 0 and the group's size exactly when there is signal.
        """
        if self.signal_bearing:
            worst, best = min(self.rewards), max(self.rewards)
            return sum(best - r < r - worst for r in self.rewards)
        return len(self.members) if self.state is QueryState.TOO_EASY else 0

    def _set_aside(self) -> dict[str, Spent]:
        spent: dict[str, Spent] = {}
        reasons = [(str(t.stop_reason), t) for t in self.excluded] + [("discarded", t) for t in self.discarded]
        for reason, trajectory in reasons:
            trajectories, tokens = spent.get(reason, Spent(0, 0))
            spent[reason] = Spent(trajectories + 1, tokens + trajectory.generated_tokens)
        return spent


def _earned(member: ScoredTrajectory) -> float:
    """The outcome, or 0 where a gate takes the reward: what earns nothing hasn't succeeded."""
    return 0.0 if member.score.gate else member.score.outcome
