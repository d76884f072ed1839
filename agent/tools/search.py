"""The search tool: passages for a query, up to the episode's limit of searches."""

from __future__ import annotations

from typing import ClassVar

from agent.answers import normalise_query
from agent.records import SEARCH, Repeat, StopReason
from agent.tools.base import Request, Result, Situation, Tool

LIMIT_NOTICE = "The search limit is reached. Give the answer now."
REPEAT_NOTICES = {
    Repeat.QUERY: "This query was searched before. Its passages are above.",
    Repeat.EVIDENCE: "Nothing new was found. These passages are above.",
}


class Search(Tool):
    """Finds the ``agent.top_k`` best passages.

    The first turn that asks for more searches than there are left gets a notice; a search in a later turn ends the
    episode. A search that query selectivity skips uses up one all the same.
    """

    name = SEARCH
    description = "Searches a document collection and returns the passages that match the query best."
    parameters: ClassVar = {"query": {"type": "string", "description": "A short query for one missing fact."}}

    async def call(self, request: Request, situation: Situation) -> Result:
        """See ``Tool``. Raises ``RetrievalError``."""
        earlier = situation.calls(SEARCH)
        if any(call.refused for call in earlier):
            return Result(refused=True, stop=StopReason.SEARCH_LIMIT)
        if len(earlier) + len(situation.before) >= situation.max_searches:
            return Result(refused=True, notice=LIMIT_NOTICE)
        selective = situation.selectivity
        asked = [*(call.argument for call in earlier), *(other.text for other in situation.before)]
        if selective.queries and normalise_query(request.text) in map(normalise_query, asked):
            return Result(repeat=Repeat.QUERY, notice=REPEAT_NOTICES[Repeat.QUERY])
        passages = await self.searcher.search(request.text, self.config.top_k)
        shown = {d for turn in situation.turns for d in turn.document_ids}
        if selective.evidence and passages and shown.issuperset(p.id for p in passages):
            return Result(passages=passages, repeat=Repeat.EVIDENCE, notice=REPEAT_NOTICES[Repeat.EVIDENCE])
        return Result(passages=passages)
