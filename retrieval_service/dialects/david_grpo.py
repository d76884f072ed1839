"""David-GRPO's: ``{query, tok_k, return_score}``, the ``tok`` as it is spelt there.

``hotpotqa_retriever/fast_retrieval_server.py`` of AsadalJung/David-GRPO. One query is answered by an object, a list of
them by a list of objects; without scores such an object has ``documents`` alone, which its client insists on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from retrieval_service.dialects import base
from retrieval_service.dialects.base import Asked, Hits, TopK, document, items, paired

MARKS = frozenset({"tok_k", "return_score"})
"""Keys that nobody else has."""


def is_meant(body: Mapping[str, Any]) -> bool:
    """Whether a body with a ``query`` is of this dialect. Both keys have defaults; SkyRL's ``query`` is no list."""
    return bool(MARKS & body.keys()) or (isinstance(body["query"], list) and "topk" not in body)


class Request(base.Request):
    query: str | list[str]
    tok_k: TopK = Field(default=3)
    return_score: bool = True

    @field_validator("query", mode="before")
    @classmethod
    def _check_queries(cls, query: Any) -> Any:
        # Of two types pydantic says what the first one lacks, also where the second one is meant.
        if not all(isinstance(each, str) for each in (query if isinstance(query, list) else [query])):
            raise ValueError("Input should be a valid string, or a list of them")
        return query


class Dialect(base.Dialect):
    about = "David-GRPO"
    path = "/retrieve"
    request: ClassVar[type[base.Request]] = Request
    example: ClassVar[Mapping[str, Any]] = {"query": "who wrote Emma?", "tok_k": 3, "return_score": True}

    def speaks(self, body: Mapping[str, Any]) -> bool:
        return "query" in body and is_meant(body)

    def asked(self, request: Any) -> Asked:
        single = isinstance(request.query, str)
        queries = (request.query,) if single else tuple(request.query)
        return Asked(queries=queries, k=request.tok_k, scores=request.return_score, single=single)

    def reply(self, asked: Asked, found: Sequence[Hits]) -> Any:
        replies = [_one(hits, asked.scores) for hits in found]
        return replies[0] if asked.single else replies

    def body(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        return {"query": list(queries), "tok_k": k, "return_score": True}

    def hits(self, reply: Any) -> list[Hits]:
        return [_passages(one) for one in items(reply, "it")]


def _one(hits: Hits, scores: bool) -> dict[str, Any]:
    documents = {"documents": [{k: d[k] for k in ("id", "contents")} for d in map(document, hits)]}
    return {**documents, "scores": [p.score for p in hits]} if scores else documents


def _passages(one: Any) -> Hits:
    if not isinstance(one, dict) or not {"documents", "scores"} <= one.keys():
        raise ValueError('an entry lacks "documents" or "scores"')
    return paired(one["documents"], one["scores"])
