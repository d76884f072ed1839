"""Evidence: which of a question's supporting documents an episode has found, by its retrieval records."""

from __future__ import annotations

from collections.abc import Sequence

from agent.answers import normalise_title
from agent.records import Question, Trajectory, Turn


def evidence_wanted(question: Question) -> frozenset[str]:
    """D*, the question's distinct supporting documents, by id or by normalised title (``question.evidence_match``)."""
    names = question.supporting if question.evidence_match == "id" else map(normalise_title, question.supporting)
    return frozenset(name for name in names if name)  # no title is the title of no document


def evidence_found(turns: Sequence[Turn], question: Question) -> frozenset[str]:
    """D* & union of D_t over ``turns``. Only what the environment returned counts: a result block that the policy
    wrote is text."""
    if question.evidence_match == "id":
        found = {d for turn in turns for d in turn.document_ids}
    else:
        found = {normalise_title(t) for turn in turns for t in turn.titles}
    return evidence_wanted(question) & found


def evidence_recall(trajectory: Trajectory, question: Question) -> float | None:
    """r_g = |D* & union of D_t| / |D*| over the retrieval records; None without supporting documents."""
    wanted = evidence_wanted(question)
    return len(evidence_found(trajectory.turns, question)) / len(wanted) if wanted else None
