"""DAVID-GRPO's soft exact match: 0, 0.5 or 1."""

from __future__ import annotations

from agent.answers import soft_match
from agent.records import Question, Trajectory


def outcome(question: Question, trajectory: Trajectory) -> float:
    """1 for at least 70 % of the golden words, 0.5 for a part of the golden answer; 0 for one that is too long.

    Where all of several answers are needed, at most 0.5 for an answer that doesn't name each of them.
    """
    answer = trajectory.answer
    return 0.0 if answer is None else soft_match(answer, question.golden_answers, question.needed)
