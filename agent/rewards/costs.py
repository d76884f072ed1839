"""What an episode spends in vain."""

from __future__ import annotations

from agent.answers import normalise
from agent.records import Trajectory


def redundant_searches(trajectory: Trajectory) -> int:
    """Answered searches whose normalised query repeats an earlier one's, or that retrieved no document for the first
    time."""
    queries: set[str] = set()
    documents: set[str] = set()
    count = 0
    for turn in trajectory.turns:
        if turn.query is None or not turn.searched:
            continue
        query = normalise(turn.query)
        count += query in queries or documents.issuperset(turn.document_ids)
        queries.add(query)
        documents.update(turn.document_ids)
    return count
