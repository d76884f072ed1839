"""Cover exact match of whole words: 0 or 1."""

from __future__ import annotations

from agent.answers import has_words
from agent.records import Question, Trajectory


def outcome(question: Question, trajectory: Trajectory) -> float:
    """1 if a golden answer's words stand in the answer, one after the other."""
    return 0.0 if trajectory.answer is None else has_words(trajectory.answer, question.golden_answers)
