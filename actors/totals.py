"""How much a run has played, and when that is enough."""

from __future__ import annotations

from dataclasses import dataclass

from actors.reports import StepReport
from learner.config import AlgorithmConfig


@dataclass
class Totals:
    """Counts over all steps, the expert seeding's too; a resumed run goes on from its checkpoint's."""

    rollouts: int = 0
    generated_tokens: int = 0

    def count(self, report: StepReport) -> None:
        """Adds what one batch has played."""
        self.rollouts += report.rollouts
        self.generated_tokens += report.generated_tokens

    def end(self, step: int, algorithm: AlgorithmConfig) -> bool:
        """Whether ``step`` is the last one, by the steps, trajectories or tokens that the run was given."""
        return (
            step >= algorithm.steps
            or 0 < algorithm.rollout_budget <= self.rollouts
            or 0 < algorithm.token_budget <= self.generated_tokens
        )

    @staticmethod
    def steps(algorithm: AlgorithmConfig) -> int:
        """The steps of the whole run; 0 where its trajectories or tokens end it."""
        return 0 if algorithm.rollout_budget or algorithm.token_budget else algorithm.steps

    def so_far(self, step: int, algorithm: AlgorithmConfig) -> str:
        """How far the run is: in trajectories or tokens if those are its limit, else in steps."""
        if algorithm.rollout_budget:
            return f"step {step:>4}  rollouts {self.rollouts:>6}/{algorithm.rollout_budget}"
        if algorithm.token_budget:
            return f"step {step:>4}  tokens {self.generated_tokens:>8}/{algorithm.token_budget}"
        return f"step {step:>4}/{algorithm.steps}"
