"""Settings of evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.errors import UserError
from agent.settings import bounded, check_bounds
from tasks.making.config import EndpointConfig

TRAINING_SAMPLE = 500
"""Held-out questions of a training run's evaluations: 95 % intervals of at most ±4.4 points; it takes minutes."""


@dataclass
class EvalConfig:
    """When, on what and how the policy is evaluated."""

    every: int = bounded(10, "at least 0")
    """Steps between evaluations; 0 evaluates only before the first step and after the last."""
    questions: int | None = bounded(None, "at least 0")
    """Most questions that are played, the same ones every time: held-out ones, and development ones in
    ``mode=calibrate``. 0: all. None: 500 in training, elsewhere all."""
    samples: int = bounded(1, "in [1, 1024]")
    """Episodes of each question, in ``mode=eval``."""
    temperature: float = bounded(0.0, "in [0, 10]")
    """Of the policy's turns, in ``mode=eval``; 0 is greedy."""
    max_fault_share: float = bounded(0.01, "in [0, 1]")
    """Share of episodes that may end in a fault, played again once, before an evaluation is refused as a result, and a
    calibration."""
    saving: bool = False
    """Saves searches, not files: evaluations in training use ``exit`` and ``selectivity``, as ``mode=eval`` does."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    def __post_init__(self) -> None:
        check_bounds(self, "evaluation")
        if self.samples > 1 and not self.temperature:
            raise UserError(
                f"evaluation.samples={self.samples} needs evaluation.temperature above 0: greedy episodes are all alike"
            )
        if 0 < self.temperature < 0.01:  # vLLM would sample at 0.01
            raise UserError(f"evaluation.temperature={self.temperature:g}: set 0 (greedy), or at least 0.01")

    def limit(self, mode: str) -> int:
        """Most questions in ``mode``; 0: all."""
        if self.questions is not None:
            return self.questions
        return TRAINING_SAMPLE if mode == "train" else 0
