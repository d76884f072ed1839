"""The retrieval actor, and the searcher that rollout workers use to reach it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import ray

from actors.process import log_to
from agent.errors import RetrievalError
from agent.records import Passage
from retrieval_service.backend import Backend, Identity, open_for
from retrieval_service.config import RetrievalConfig
from retrieval_service.service import RetrievalService, Stats


@ray.remote
class RetrievalActor:
    """Serves passages from one index; builds the index of ``corpus`` first if there is none."""

    def __init__(self, corpus: Path | None, config: RetrievalConfig, cache_dir: Path, log_dir: Path, name: str) -> None:
        log_to(log_dir, name)
        self._identity: Identity | None = None

        def opened() -> Backend:
            backend = open_for(corpus, config, cache_dir)
            self._identity = backend.identity()
            return backend

        self._service = RetrievalService(opened, config)
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> bool:
        """Opens the index, building it first where there is none; the first search does so otherwise.

        Ray may have replaced this process, so nothing relies on a call made before.
        """
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._service.start())
        await self._starting
        return True

    async def search_many(self, queries: list[str], k: int) -> list[tuple[Passage, ...] | str]:
        """For each query its top ``k`` passages, or the reason for which it failed, as text."""
        await self.start()
        return await self._all([self._service.search(query, k) for query in queries])

    async def following_many(self, document_ids: list[str], k: int) -> list[tuple[Passage, ...] | str]:
        """The same for the ``k`` passages after each of ``document_ids``."""
        await self.start()
        return await self._all([self._service.following(d, k) for d in document_ids])

    async def _all(self, asked: list[Coroutine[Any, Any, tuple[Passage, ...]]]) -> list[tuple[Passage, ...] | str]:
        results = await asyncio.gather(*asked, return_exceptions=True)
        answers: list[tuple[Passage, ...] | str] = []
        for result in results:
            if isinstance(result, RetrievalError):
                answers.append(str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                answers.append(result)
        return answers

    async def identity(self) -> Identity:
        """What is searched, once the index is open."""
        await self.start()
        assert self._identity is not None
        return self._identity

    async def stats(self) -> Stats:
        return self._service.stats()


class RemoteSearcher:
    """The ``Searcher`` port over retrieval actors, taken in turn.

    What waits while a call is under way goes out together in the next one: the fixed cost of an
    actor call is shared without delaying anyone on purpose.
    """

    def __init__(self, actors: list[Any], *, timeout_s: float) -> None:
        self._actors = actors
        self._next = 0
        self._timeout_s = timeout_s
        self._waiting: dict[tuple[str, int], list[tuple[str, asyncio.Future[tuple[Passage, ...]]]]] = {}
        """By the actor's method and k."""
        self._calls: set[asyncio.Task[None]] = set()

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        """See ``agent.tools.base.Searcher``."""
        return await self._ask("search_many", query, k)

    async def following(self, document_id: str, k: int) -> tuple[Passage, ...]:
        """See ``agent.tools.base.Searcher``."""
        return await self._ask("following_many", document_id, k)

    async def _ask(self, method: str, text: str, k: int) -> tuple[Passage, ...]:
        future: asyncio.Future[tuple[Passage, ...]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((method, k), []).append((text, future))
        if not self._calls:
            self._send()
        return await future

    def _send(self) -> None:
        for (method, k), requests in self._waiting.items():
            actor = self._actors[self._next % len(self._actors)]
            self._next += 1
            call = asyncio.get_running_loop().create_task(self._call(getattr(actor, method), k, requests))
            self._calls.add(call)
            call.add_done_callback(self._done)
        self._waiting = {}

    def _done(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if self._waiting:
            self._send()

    async def _call(self, method: Any, k: int, requests: list[tuple[str, asyncio.Future[Any]]]) -> None:
        try:
            # The service has its own time-out; this one is for an actor that no longer answers at all.
            answers = await asyncio.wait_for(method.remote([text for text, _ in requests], k), self._timeout_s + 10)
        except (ray.exceptions.RayError, TimeoutError) as error:
            answers = [f"the retrieval actor failed: {type(error).__name__}"] * len(requests)
        for (_, future), answer in zip(requests, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, str):
                future.set_exception(RetrievalError(answer))
            else:
                future.set_result(answer)
