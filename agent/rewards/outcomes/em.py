"""Exact match: 0 or 1."""

from __future__ import annotations

from agent.answers import exact_match
from agent.records import Question, Trajectory


def outcome(question: Question, trajectory: Trajectory) -> float:
    """1 if the answer is a golden one, both normalised."""
    return 0.0 if trajectory.answer is None else exact_match(trajectory.answer, question.golden_answers)
