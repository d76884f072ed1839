"""SkyRL's with one query by itself: ``{query, topk, return_scores}``; the reply is Search-R1's, a list of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import field_validator

from retrieval_service.dialects import base, david_grpo, rllm, search_r1
from retrieval_service.dialects.base import Asked


class Request(base.Request):
    query: str
    topk: base.TopK | None = None
    return_scores: bool = True

    @field_validator("query", mode="before")
    @classmethod
    def _check_one(cls, query: Any) -> Any:
        if isinstance(query, list):
            raise ValueError('one query is read beside "topk"; write "queries" for a list')
        return query


class Dialect(search_r1.Dialect):
    about = "SkyRL, one query by itself"
    request = Request
    example: ClassVar[Mapping[str, Any]] = {"query": "who wrote Emma?", "topk": 3, "return_scores": True}
    key = "query"
    batched = False

    def speaks(self, body: Mapping[str, Any]) -> bool:
        return "query" in body and rllm.MARK not in body and not david_grpo.is_meant(body)

    def asked(self, request: Any) -> Asked:
        k = request.topk or search_r1.TOP_K
        return Asked(queries=(request.query,), k=k, scores=request.return_scores, single=True)

    def body(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        (query,) = queries
        return {"query": query, "topk": k, "return_scores": True}
