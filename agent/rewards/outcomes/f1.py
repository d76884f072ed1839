"""Token F1: anything in [0, 1]."""

from __future__ import annotations

from agent import answers
from agent.records import Question, Trajectory


def outcome(question: Question, trajectory: Trajectory) -> float:
    """The best F1 against a golden answer."""
    return 0.0 if trajectory.answer is None else answers.f1(trajectory.answer, question.golden_answers)
