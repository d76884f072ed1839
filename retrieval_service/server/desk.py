"""Where requests are admitted or refused: the limits, and the line of those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager, contextmanager

from agent.errors import RetrievalError
from agent.records import Passage
from retrieval_service.dialects.base import Asked, Hits
from retrieval_service.server.config import ServeConfig
from retrieval_service.service import RetrievalService, TooSlow

RETRY_AFTER_S = 1
"""What a client that came when all was full is told to wait."""


class Refused(Exception):
    """A request that gets no answer: the HTTP status, and the reason in words."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Desk:
    """Searches for whoever asks, as far as the limits of ``config`` allow. For one event loop.

    All methods raise ``Refused``: 422 for what is over a limit, 429 when the line is full, 503 if the search failed,
    504 if it took too long.
    """

    def __init__(self, service: RetrievalService, config: ServeConfig) -> None:
        self.service = service
        self._config = config
        self.waiting = 0
        """Searches that have been admitted and not answered."""

    def admit(self, asked: Asked) -> AbstractContextManager[None]:
        """A place in the line for what is asked, until the context ends: that is when its reply is made, too."""
        limit = self._config
        if len(asked.queries) > limit.max_queries:
            raise Refused(422, f"{len(asked.queries)} queries, and at most {limit.max_queries} may be asked at once")
        longest = max(map(len, asked.queries), default=0)
        if longest > limit.max_query_chars:
            raise Refused(422, f"a query of {longest} characters, and at most {limit.max_query_chars} may be searched")
        self._check_k(asked.k)
        passages = len(asked.queries) * asked.k
        if passages > limit.max_passages:
            asks = f"{len(asked.queries)} queries for {asked.k} passages each are {passages}"
            raise Refused(422, f"{asks}, and at most {limit.max_passages} may be asked for at once")
        return self._in_line(len(asked.queries))

    async def search(self, asked: Asked) -> list[Hits]:
        """The passages of each query of what was admitted."""
        if len(asked.queries) == 1:  # the commonest, and no task is needed for it
            return [await self._one(self.service.search(asked.queries[0], asked.k))]
        found = await asyncio.gather(
            *(self.service.search(query, asked.k) for query in asked.queries), return_exceptions=True
        )
        for hits in found:
            if isinstance(hits, BaseException):
                raise _refusal(hits) from hits
        return [hits for hits in found if not isinstance(hits, BaseException)]

    async def document(self, document_id: str, following: int = 0) -> tuple[Passage, Hits]:
        """A passage, and the at most ``following`` after it in the same document. 404 where there is none."""
        if not 0 <= following <= self._config.max_top_k:
            raise Refused(422, f"following={following} must lie in 0 to {self._config.max_top_k}")
        with self._in_line(1):
            found = await self._one(self.service.document(document_id, 1 + following))
        if not found:
            raise Refused(404, "the index holds no passage with this id")
        return found[0], found[1:]

    async def _one(self, search: Awaitable[Hits]) -> Hits:
        try:
            return await search
        except RetrievalError as error:
            raise _refusal(error) from error

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self._config.max_top_k:
            raise Refused(422, f"{k} passages a query; from 1 to {self._config.max_top_k} may be asked for")

    @contextmanager
    def _in_line(self, searches: int) -> Iterator[None]:
        if self.waiting + searches > self._config.max_waiting:
            raise Refused(429, f"{self.waiting} searches wait already; ask again in {RETRY_AFTER_S} s")
        self.waiting += searches
        try:
            yield
        finally:
            self.waiting -= searches


def _refusal(error: BaseException) -> BaseException:
    if isinstance(error, TooSlow):
        return Refused(504, "the search took too long")
    return Refused(503, str(error)) if isinstance(error, RetrievalError) else error
