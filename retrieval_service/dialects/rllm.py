"""rLLM's with one query by itself: ``{query, top_k}``; the reply is ``{query, results, num_results}``.

``examples/search/local_retrieval_tool.py`` and ``retrieval/server.py`` of rllm-org/rllm. Its server reads Search-R1's
``queries``, too, and answers them as Search-R1's does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from retrieval_service.dialects import base, search_r1
from retrieval_service.dialects.base import Asked, Hits, TopK, document, items, scored_alike

MARK = "top_k"
"""A key that nobody else has; its tool always sends it."""


class Request(base.Request):
    query: str
    top_k: TopK
    return_scores: bool = True


class Dialect(base.Dialect):
    about = "rLLM, one query by itself"
    path = "/retrieve"
    request: ClassVar[type[base.Request]] = Request
    example: ClassVar[Mapping[str, Any]] = {"query": "who wrote Emma?", "top_k": 3}
    batched = False

    def speaks(self, body: Mapping[str, Any]) -> bool:
        return "query" in body and MARK in body

    def asked(self, request: Any) -> Asked:
        return Asked(queries=(request.query,), k=request.top_k, scores=request.return_scores, single=True)

    def reply(self, asked: Asked, found: Sequence[Hits]) -> Any:
        (hits,) = found
        results = [search_r1.scored(p) if asked.scores else {"document": document(p)} for p in hits]
        return {"query": asked.queries[0], "results": results, "num_results": len(results)}

    def body(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        (query,) = queries
        return {"query": query, "top_k": k}

    def hits(self, reply: Any) -> list[Hits]:
        if not isinstance(reply, dict) or "results" not in reply:
            raise ValueError('it has no "results"')
        return [scored_alike(tuple(map(search_r1.passage, items(reply["results"], '"results"'))))]
