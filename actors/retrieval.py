"""The retrieval actor: the service over one index, in a process that ends when its backend hangs.

What it searches is noted beside its log. The process that Ray starts in its place searches the same, or refuses: a
corpus, a folder or a server may have changed since. Where it starts on a machine that doesn't see that folder, it can't
know.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from actors.process import log_to, processor_seconds
from actors.pulse import HEALTH, Beats, Pulse, during
from agent.collector import settle
from agent.errors import RetrievalError
from agent.readable import json_of
from retrieval_service.backend import Identity
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import opener
from retrieval_service.service import Hits, RetrievalService
from retrieval_service.stats import Meter, Stats
from retrieval_service.whole import written


def noted(log_dir: Path, name: str) -> Path:
    """Where it is noted what the actor searches. Who makes the first of a run deletes an earlier run's."""
    return log_dir / f"{name}.identity.json"


@ray.remote(concurrency_groups={HEALTH: 4})  # type: ignore[call-overload]  # its stubs don't know it
class RetrievalActor:
    """Serves passages from one index; builds the index of ``corpus`` first if there is none."""

    def __init__(
        self,
        corpus: Path | None,
        config: RetrievalConfig,
        cache_dir: Path,
        log_dir: Path,
        name: str,
        top_k: int = 1,
    ) -> None:
        log_to(log_dir, name)
        self._name = name
        self._config = config
        self._opener = lambda: opener(corpus, config, cache_dir, top_k=top_k)
        self._beats = Beats()
        self._noted = noted(log_dir, name)
        self._service: RetrievalService | None = None
        self._starting: asyncio.Task[RetrievalService] | None = None

    @ray.method(concurrency_group=HEALTH)
    async def ping(self) -> Pulse:
        """See ``actors/health.py``. Nothing counts how far an index is that is built or opened: its work does."""
        return self._beats.pulse({"start": int(processor_seconds())} if self._beats.under_way("start") else {})

    async def start(self) -> bool:
        """Opens the index, building it first where there is none; the first search does so otherwise.

        Ray may have replaced this process, so nothing relies on a call made before. What couldn't be opened is tried
        again with the next call.
        """
        await self._started()
        return True

    async def _started(self) -> RetrievalService:
        if self._service is None:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.ensure_future(self._start())
            return await asyncio.shield(self._starting)
        return self._service

    @during("start")
    async def _start(self) -> RetrievalService:
        known = Identity(**json_of(self._noted.read_bytes())) if self._noted.exists() else None
        service = RetrievalService(self._opener(), self._config, self._stuck, known)
        await service.start()
        if known is None:
            with written(self._noted) as file:  # this process may be killed at any moment
                file.write(json.dumps(asdict(service.identity)).encode() + b"\n")
        settle()
        self._service = service
        return service

    def _stuck(self, seconds: float) -> None:
        """A thread in the JVM can't be ended, but its process can."""
        faulthandler.dump_traceback(file=2)
        print(
            f"[slingshot] {self._name}: a search has not come back for {seconds:g} s; this process ends, so that Ray "
            "starts another",
            flush=True,
        )
        os._exit(1)

    async def search_many(self, queries: list[str], k: int) -> list[Hits | str]:
        """For each query its top ``k`` passages, or the reason for which it failed, as text."""
        service = await self._started()
        with self._beats.phase("search"):
            return await _all([service.search(query, k) for query in queries], self._beats)

    async def following_many(self, document_ids: list[str], k: int) -> list[Hits | str]:
        """The same for the ``k`` passages after each of ``document_ids``."""
        service = await self._started()
        with self._beats.phase("search"):
            return await _all([service.following(d, k) for d in document_ids], self._beats)

    async def identity(self) -> Identity:
        """What is searched, once the index is open."""
        return (await self._started()).identity

    async def stats(self) -> Stats:
        return self._service.stats() if self._service is not None else Meter().snapshot()


async def _all(asked: list[Coroutine[Any, Any, Hits]], beats: Beats) -> list[Hits | str]:
    async def counted(search: Coroutine[Any, Any, Hits]) -> Hits:
        try:
            return await search
        finally:
            beats.did("search")  # those of one call may wait for one another

    answers: list[Hits | str] = []
    for result in await asyncio.gather(*map(counted, asked), return_exceptions=True):
        if isinstance(result, RetrievalError):
            answers.append(str(result))
        elif isinstance(result, BaseException):
            raise result
        else:
            answers.append(result)
    return answers
