"""Cover exact match, as it is measured: 0 or 1."""

from __future__ import annotations

from agent.answers import cover_match
from agent.records import Question, Trajectory


def outcome(question: Question, trajectory: Trajectory) -> float:
    """1 if the answer holds a golden answer, within a word too."""
    return 0.0 if trajectory.answer is None else cover_match(trajectory.answer, question.golden_answers)
