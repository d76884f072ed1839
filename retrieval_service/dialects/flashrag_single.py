"""FlashRAG's for one query: POST ``/search``, the reply of ``/batch_search`` with a level less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from retrieval_service.dialects import base, flashrag
from retrieval_service.dialects.base import Asked, Hits, TopK, paired


class Request(base.Request):
    query: str
    top_n: TopK = Field(default=10)
    return_score: bool = False


class Dialect(flashrag.Dialect):
    about = "FlashRAG, one query by itself"
    path = "/search"
    request = Request
    example: ClassVar[Mapping[str, Any]] = {"query": "who wrote Emma?", "top_n": 3, "return_score": True}
    batched = False

    def asked(self, request: Any) -> Asked:
        return Asked(queries=(request.query,), k=request.top_n, scores=request.return_score, single=True)

    def reply(self, asked: Asked, found: Sequence[Hits]) -> Any:
        several = super().reply(asked, found)
        return [half[0] for half in several] if asked.scores else several[0]

    def body(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        (query,) = queries
        return {"query": query, "top_n": k, "return_score": True}

    def hits(self, reply: Any) -> list[Hits]:
        return [paired(*flashrag.pair(reply))]
