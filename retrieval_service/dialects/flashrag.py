"""FlashRAG's (and ReSearch's, ReCall's) for several queries: POST ``/batch_search``, ``{query, top_n, return_score}``.

Without scores the reply is a list of lists of documents, with them a pair: that list and one of lists of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from retrieval_service.dialects import base
from retrieval_service.dialects.base import Asked, Hits, TopK, document, items, paired


class Request(base.Request):
    query: list[str]
    top_n: TopK = Field(default=10)
    return_score: bool = False


class Dialect(base.Dialect):
    about = "FlashRAG, ReSearch, ReCall"
    path = "/batch_search"
    request: ClassVar[type[base.Request]] = Request
    example: ClassVar[Mapping[str, Any]] = {"query": ["who wrote Emma?"], "top_n": 3, "return_score": True}

    def speaks(self, body: Mapping[str, Any]) -> bool:
        return "query" in body

    def asked(self, request: Any) -> Asked:
        return Asked(queries=tuple(request.query), k=request.top_n, scores=request.return_score)

    def reply(self, asked: Asked, found: Sequence[Hits]) -> Any:
        documents = [[document(p) for p in hits] for hits in found]
        return [documents, [[p.score for p in hits] for hits in found]] if asked.scores else documents

    def body(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        return {"query": list(queries), "top_n": k, "return_score": True}

    def hits(self, reply: Any) -> list[Hits]:
        documents, scores = pair(reply)
        if len(documents) != len(scores):
            raise ValueError(f"{len(documents)} lists of documents have {len(scores)} lists of scores")
        return list(map(paired, documents, scores))


def pair(reply: Any) -> tuple[list[Any], list[Any]]:
    """The two lists that a reply with scores is."""
    if len(items(reply, "it")) != 2:
        raise ValueError(f"it is a list of {len(reply)}, not a pair of documents and scores")
    return items(reply[0], "the first half"), items(reply[1], "the second half")
