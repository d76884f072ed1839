"""Search-R1's: ``{queries, topk, return_scores}``.

``search_r1/search/retrieval_server.py`` and ``retrieval_request.py`` of PeterGriffinJin/Search-R1. verl's search tool,
SkyRL's and slime's send the same. Its own server breaks where no scores are asked for; here that is answered
as it was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar

from pydantic import Field

from agent.records import Passage
from retrieval_service.dialects import base
from retrieval_service.dialects.base import Asked, Hits, document, items, passage_of, scored_alike

TOP_K = 3
"""Of its launch script."""


class Request(base.Request):
    queries: list[str]
    topk: Annotated[int, Field(ge=0)] | None = None
    """0 is none, as its server reads it."""
    return_scores: bool = False


class Dialect(base.Dialect):
    about = "Search-R1, and verl's and SkyRL's search tools"
    path = "/retrieve"
    request: ClassVar[type[base.Request]] = Request
    example: ClassVar[Mapping[str, Any]] = {"queries": ["who wrote Emma?"], "topk": 3, "return_scores": True}
    key = "queries"
    """Where the queries are."""

    def speaks(self, body: Mapping[str, Any]) -> bool:
        return self.key in body

    def asked(self, request: Any) -> Asked:
        queries = tuple(getattr(request, self.key))
        return Asked(queries=queries, k=request.topk or TOP_K, scores=request.return_scores)

    def reply(self, asked: Asked, found: Sequence[Hits]) -> Any:
        if not asked.scores:
            return {"result": [[document(p) for p in hits] for hits in found]}
        return {"result": [list(map(scored, hits)) for hits in found]}

    def body(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        return {self.key: list(queries), "topk": k, "return_scores": True}

    def hits(self, reply: Any) -> list[Hits]:
        """See ``base.Dialect``. Servers of others that ignore ``return_scores`` rank without telling scores."""
        if not isinstance(reply, dict) or "result" not in reply:
            raise ValueError('it has no "result"')
        results = [tuple(map(passage, items(hits, "a result"))) for hits in items(reply["result"], '"result"')]
        scored_alike(tuple(chain(*results)))
        return results


def scored(passage: Passage) -> dict[str, Any]:
    """A passage as an entry of a reply with scores; one that has none is told without."""
    entry = {"document": document(passage)}
    return entry if passage.score is None else {**entry, "score": passage.score}


def passage(entry: Any) -> Passage:
    """The passage of such an entry, or of a bare document. Raises ``ValueError`` if it is neither."""
    if isinstance(entry, dict) and "document" in entry:
        if entry.get("score", 0) is None:  # as of one that is NaN: where there is none, there is no key
            raise ValueError("a score is null, not a number")
        return passage_of(entry["document"], entry.get("score"))
    return passage_of(entry)
