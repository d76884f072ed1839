"""The worker's side of its leases: a group that gets on keeps its claim; one that stands still loses it, and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import ray

from agent.episode import Generator
from agent.records import Completion, Passage
from agent.tickets import Ticket
from agent.tools.base import Searcher

RENEWALS = 4
"""In the time of a lease."""
Played = TypeVar("Played")
_AT_PLAY: ContextVar[Paced] = ContextVar("the group whose code runs")


class Paced:
    """A ``Generator`` that is one group's way to the engine, and knows whether the group gets on.

    ``steps`` counts what the engine does: while a request of the group is in it, that counts for the group. So do
    searches that are ``answered``, anybody's, while one of the group is in line (``PacedSearcher``).
    """

    def __init__(self, engine: Generator, steps: Callable[[], int], answered: Callable[[], int]) -> None:
        self._engine = engine
        self._steps = steps
        self._answered = answered
        self._turns = 0
        """Requests and searches that were begun or ended."""
        self._inside = 0
        self._in_line = 0
        self._seen: tuple[int, int, int] | None = None
        self._ended = False

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        """See ``agent.episode.Generator``."""
        with self._asked():
            return await self._engine.generate(
                prompt_ids, max_new_tokens=max_new_tokens, stop=stop, temperature=temperature, seed=seed
            )

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """See ``agent.episode.Generator``."""
        with self._asked():
            return await self._engine.score(prompt_ids, token_ids)

    def moved(self) -> bool:
        """Whether anything has happened since this was asked last."""
        now = self._turns, self._steps() if self._inside else 0, self._answered() if self._in_line else 0
        before, self._seen = self._seen, now
        return now != before

    @contextmanager
    def searching(self) -> Iterator[None]:
        """A search of the group is under way."""
        self._turns += 1
        self._in_line += 1
        try:
            yield
        finally:
            self._turns += 1
            self._in_line -= 1

    def end(self) -> None:
        """Nothing of the group gets on to the engine any more, which may be about to sleep."""
        self._ended = True

    @contextmanager
    def _asked(self) -> Iterator[None]:
        if self._ended:
            raise asyncio.CancelledError("the group is given up")
        self._turns += 1
        self._inside += 1
        try:
            yield
        finally:
            self._turns += 1
            self._inside -= 1


class PacedSearcher:
    """The worker's ``Searcher``, which knows for which group it is asked: where more is searched than there is time
    for, a group may stand in line for longer than a lease. ``did`` is called after each answered search."""

    def __init__(self, searcher: Searcher, did: Callable[[], None]) -> None:
        self._searcher, self._did = searcher, did
        self.answered = 0
        """Searches that have ended well."""

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        """See ``agent.tools.base.Searcher``."""
        return await self._paced(self._searcher.search(query, k))

    async def following(self, document_id: str, k: int) -> tuple[Passage, ...]:
        """See ``agent.tools.base.Searcher``."""
        return await self._paced(self._searcher.following(document_id, k))

    async def _paced(self, search: Awaitable[tuple[Passage, ...]]) -> tuple[Passage, ...]:
        group = _AT_PLAY.get(None)  # none in an evaluation
        with nullcontext() if group is None else group.searching():
            hits = await search
        self.answered += 1
        self._did()
        return hits


async def left_behind(group: Coroutine[Any, Any, Played]) -> Played:
    """What ``group`` gives. If this is cancelled, so is ``group``, whose end isn't waited for: code of the user's own
    may catch the cancellation and go on for ever."""
    task = asyncio.ensure_future(group)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # or asyncio would log it
        task.cancel()
        raise
    return task.result()


@dataclass(slots=True)
class _Held:
    """A claim of this worker, and the task that plays its group."""

    question_id: str
    group: asyncio.Task[None]
    claimed: float
    paced: Paced | None = None
    """None before the group has begun: what it waits for is known, and its lease begins when it does."""

    def end(self) -> None:
        """Cancels the group, and lets nothing of it get to the engine: code of the user's own may catch that."""
        if self.paced is not None:
            self.paced.end()
        self.group.cancel()


class Leases:
    """The claims that one worker holds of ``pool``. They are renewed, and seen to be gone, while ``keep`` runs."""

    def __init__(self, pool: Any, worker: str, lease_s: float) -> None:
        self._pool = pool
        self._worker = worker
        self._lease_s = lease_s
        self._held: dict[int, _Held] = {}
        self._given_up: set[asyncio.Task[None]] = set()

    def claimed(self, ticket: Ticket, question_id: str, group: asyncio.Task[None]) -> None:
        """A ticket is here, and ``group``, which plays it, waits."""
        self._held[ticket.claim_id] = _Held(question_id, group, time.monotonic())
        group.add_done_callback(lambda _: self._held.pop(ticket.claim_id, None))

    @contextmanager
    def playing(self, ticket: Ticket, paced: Paced) -> Iterator[None]:
        """The group of ``ticket`` is played in the body."""
        self._held[ticket.claim_id].paced = paced
        before = _AT_PLAY.set(paced)
        try:
            yield
        finally:
            _AT_PLAY.reset(before)
            del self._held[ticket.claim_id]

    def gave_up(self, group: asyncio.Task[None]) -> bool:
        """Whether ``group``, which has ended, was cancelled since its claim was gone. Asked once."""
        found = group in self._given_up
        self._given_up.discard(group)
        return found

    async def keep(self) -> NoReturn:
        """Renews again and again. Raises ``RayActorError`` once the pool is gone."""
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            await self.renew()

    async def renew(self) -> None:
        """Renews what gets on, and gives up the groups whose claims are gone: others play their questions again."""
        held = [*self._held]
        moved = [claim for claim, h in self._held.items() if h.paced is None or h.paced.moved()]
        try:
            gone = await self._pool.renew.remote(self._worker, held, moved)
        except ray.exceptions.ActorUnavailableError:
            return  # its node was out of reach for a moment
        for lost in [self._held[claim] for claim in gone if claim in self._held]:  # others were submitted meanwhile
            if lost.group not in self._given_up:
                self._given_up.add(lost.group)
                print(
                    f"{self._worker}: the group of question {lost.question_id} has stood still for {self._lease_s:g} s "
                    f"(pool.lease_s), {time.monotonic() - lost.claimed:.0f} s after its claim, and is given up: a tool "
                    "or a reward that doesn't answer?",
                    flush=True,
                )
            lost.end()

    def end(self) -> None:
        """Nobody wants the groups any more: cancels them."""
        for held in self._held.values():
            held.end()
