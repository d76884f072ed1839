"""What an episode spends in vain."""

from __future__ import annotations

from agent.answers import normalise_query
from agent.records import SEARCH, Trajectory


def redundant_searches(trajectory: Trajectory) -> int:
    """Answered searches whose normalised query repeats an earlier one's, or that retrieved no document for the first
    time."""
    queries: set[str] = set()
    documents: set[str] = set()
    count = 0
    for call in (call for turn in trajectory.turns for call in turn.answered):
        if call.tool == SEARCH:
            query = normalise_query(call.argument)
            count += query in queries or documents.issuperset(call.document_ids)
            queries.add(query)
        documents.update(call.document_ids)
    return count
