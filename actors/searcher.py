"""The searcher of a rollout worker: hands its episodes' searches to the retrieval actors.

    search ──► line ──call──► replica ──► answer            a call has up to CALL searches, a replica up to ROOM
                 ▲               │ fails
                 └──── once ─────┘ on another one, if there is one; after a death as soon as one is there

More searches than the replicas have room for wait in line: episodes go slower, and none is dropped. A replica that
fails, or that answers nothing any more, is left out until it answers again: its index is asked to be open, after a wait
that doubles. When all of them are out for as long as a search may take, searches fail until one is back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import ray

from agent.errors import RetrievalError, shortened
from agent.records import Passage
from retrieval_service.service import LONG, OVERTAKE_S, asked

CALL = 64
"""Most searches of one call: what a backend takes at once."""
ROOM = 256
"""Most searches of this worker at one replica."""
CALLS = 8
"""Most calls of this worker at one replica."""
MOST = 1000
"""Passages of a search. A tool of the user's own may ask for as many as the policy names."""
LOSSES = 3
"""Replicas that may die, or fall silent, on one search; it may be what kills them."""
ERRORS = 3
"""Calls in a row that a replica may raise from before it is left out."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0

Hits = tuple[Passage, ...]


@dataclass(kw_only=True, slots=True, eq=False)
class _Request:
    """One search, from its episode to its answer."""

    number: int
    method: str
    text: str
    k: int
    future: asyncio.Future[Hits]
    failed_at: _Replica | None = None
    """Where it was tried in vain the last time."""
    lost: int = 0
    """How often a replica that had it didn't answer any more."""
    alone: bool = False
    """The call that it was in raised: it may be this one's fault."""

    @property
    def alike(self) -> tuple[Any, ...]:
        """What the requests of one call have in common. Long ones would hold up the others."""
        failed_at, alone = self.failed_at and id(self.failed_at), self.alone and self.number
        return self.method, self.k, len(self.text) >= LONG, failed_at, alone


@dataclass(kw_only=True, slots=True, eq=False)
class _Replica:
    """A retrieval actor, and what is known of it here."""

    actor: Any
    near: bool
    """Searches go to others only when none of these answers."""
    taken: int = 0
    """When it was chosen last: the number of that call."""
    under_way: int = 0
    """Searches that it has and hasn't answered."""
    calls: int = 0
    called: float = 0.0
    """When the newest of these calls was made."""
    errors: int = 0
    """Calls in a row that have raised."""
    out: asyncio.Task[None] | None = None
    """Set while it is left out: what waits for it to come back."""

    def ready_at(self) -> float | None:
        """When it takes another call; None for when one of its calls has ended.

        It is made at once, or once the one before has shown that it takes long: what comes meanwhile shares the next.
        """
        if self.under_way >= ROOM or self.calls >= CALLS:
            return None
        return self.called + OVERTAKE_S if self.calls else 0.0


class RemoteSearcher:
    """The ``Searcher`` port over retrieval ``actors``, taken in turn; ``spare`` ones serve when none of them does.

    ``timeout_s`` is what a search may take at a replica, by its own clock. A replica of which a call is out for
    ``ping_s``, and that then doesn't answer a ping for as long, has failed. For one event loop.
    """

    def __init__(
        self, actors: Sequence[Any], spare: Sequence[Any] = (), *, timeout_s: float, ping_s: float = 5.0
    ) -> None:
        self._replicas = [_Replica(actor=actor, near=True) for actor in actors]
        self._replicas += [_Replica(actor=actor, near=False) for actor in spare]
        self._timeout_s = timeout_s
        self._ping_s = ping_s
        self._line: list[_Request] = []
        self._numbers = count(1)
        self._calls: set[asyncio.Task[None]] = set()
        self._soon: asyncio.TimerHandle | None = None
        self._soon_at = math.inf
        self._dark_since: float | None = None
        """Since when all replicas are left out."""
        self._problem = ""

    async def search(self, query: str, k: int) -> Hits:
        """See ``agent.tools.base.Searcher``."""
        return await self._ask("search_many", *asked(query, k))

    async def following(self, document_id: str, k: int) -> Hits:
        """See ``agent.tools.base.Searcher``."""
        return await self._ask("following_many", *asked(document_id, k))

    async def _ask(self, method: str, text: str, k: int) -> Hits:
        if k > MOST:
            raise ValueError(f"k={k}: must be at most {MOST}")
        loop = asyncio.get_running_loop()
        if self._given_up:
            raise self._none_answers()
        future: asyncio.Future[Hits] = loop.create_future()
        self._line.append(_Request(number=next(self._numbers), method=method, text=text, k=k, future=future))
        self._send_at(0.0)
        return await future

    @property
    def _given_up(self) -> bool:
        """No replica has been there for ``timeout_s``: nothing waits for them any more."""
        now = asyncio.get_running_loop().time()
        return self._dark_since is not None and now - self._dark_since >= self._timeout_s

    def _none_answers(self) -> RetrievalError:
        return RetrievalError(f"no retrieval actor answers: {self._problem}")

    # --- from the line to the replicas ------------------------------------------------------------

    def _send_at(self, when: float) -> None:
        """Has ``_send`` called then, or before; at once, but after this turn of the loop, for a time that is over."""
        if when < self._soon_at:
            if self._soon is not None:
                self._soon.cancel()
            self._soon, self._soon_at = asyncio.get_running_loop().call_at(when, self._send), when

    def _send(self) -> None:
        """Gives the line to the replicas, the oldest first, as far as they have room."""
        self._soon, self._soon_at = None, math.inf
        groups: dict[tuple[Any, ...], list[_Request]] = {}
        for request in sorted(self._line, key=lambda request: request.number):  # what has failed is the oldest
            if not request.future.done():  # else its episode has gone
                groups.setdefault(request.alike, []).append(request)
        self._line = []
        now = asyncio.get_running_loop().time()
        for group in groups.values():
            while group and (replica := self._choose(group[0], now)) is not None:
                share = min(CALL, ROOM - replica.under_way)
                self._call(replica, group[:share], now)
                del group[:share]
            self._line += group
        times = [at for replica in self._replicas if not replica.out and (at := replica.ready_at()) is not None]
        if self._line and times:
            self._send_at(min(times))

    def _choose(self, request: _Request, now: float) -> _Replica | None:
        """Who gets ``request`` now: of those that answer the near ones, and none that has failed it, if possible."""
        answering = [r for r in self._replicas if not r.out]
        answering = [r for r in answering if r is not request.failed_at] or answering
        answering = [r for r in answering if r.near] or answering
        ready = [r for r in answering if (at := r.ready_at()) is not None and at <= now]
        return min(ready, key=lambda r: (r.under_way, r.taken), default=None)

    # --- a call -----------------------------------------------------------------------------------

    def _call(self, replica: _Replica, requests: list[_Request], now: float) -> None:
        replica.taken, replica.called = next(self._numbers), now
        replica.calls += 1
        replica.under_way += len(requests)
        call = asyncio.get_running_loop().create_task(self._called(replica, requests))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _called(self, replica: _Replica, requests: list[_Request]) -> None:
        try:
            answers = await self._answers(replica, requests)
        except (ray.exceptions.RayTaskError, _Strange) as error:
            self._raised(replica, requests, shortened(getattr(error, "cause", None) or error))
        except (ray.exceptions.RayError, TimeoutError) as error:
            self._failed(replica, requests, type(error).__name__)
        else:
            replica.errors = 0
            for request, answer in zip(requests, answers, strict=True):
                self._answered(replica, request, answer)
        finally:
            replica.calls -= 1
            replica.under_way -= len(requests)
            self._send_at(0.0)

    async def _answers(self, replica: _Replica, requests: list[_Request]) -> list[Any]:
        """What the replica says to each, once it is there. Raises ``TimeoutError`` if it answers no ping meanwhile."""
        method = getattr(replica.actor, requests[0].method)
        call = asyncio.ensure_future(method.remote([r.text for r in requests], requests[0].k))
        try:
            while not (await asyncio.wait((call,), timeout=self._ping_s))[0]:
                async with asyncio.timeout(self._ping_s):
                    await replica.actor.ping.remote()
        finally:
            call.cancel()
        answers = call.result()
        if not isinstance(answers, list) or len(answers) != len(requests):
            given = f"{len(answers)} answers" if isinstance(answers, list) else type(answers).__name__
            raise _Strange(f"it gave {given} for {len(requests)} searches")
        return answers

    def _answered(self, replica: _Replica, request: _Request, answer: Any) -> None:
        if isinstance(answer, tuple) and all(isinstance(hit, Passage) for hit in answer):
            if not request.future.done():
                request.future.set_result(answer)
            return
        what = answer if isinstance(answer, str) else f"it answered with {type(answer).__name__}, not with passages"
        # The same replica would say the same.
        others = any(r is not replica and not r.out for r in self._replicas)
        self._again(replica, request, what, more=request.failed_at is None and others)

    def _raised(self, replica: _Replica, requests: list[_Request], why: str) -> None:
        """The replica lives and raised: for one of the requests, or for any."""
        replica.errors += 1
        if replica.errors >= ERRORS:
            self._leave_out(replica, why)
        for request in requests:
            more = request.failed_at is None
            self._again(replica, request, f"the retrieval actor failed: {why}", more=more, alone=True)

    def _failed(self, replica: _Replica, requests: list[_Request], why: str) -> None:
        """The replica doesn't answer."""
        self._leave_out(replica, why)
        for request in requests:
            request.lost += 1
            self._again(replica, request, f"the retrieval actor failed: {why}", more=request.lost < LOSSES)

    def _again(self, replica: _Replica, request: _Request, why: str, *, more: bool, alone: bool = False) -> None:
        """Puts a request that has failed back into the line, before the others, or gives it up."""
        if request.future.done():
            return
        if not more:
            request.future.set_exception(RetrievalError(why))
            return
        if self._given_up:
            request.future.set_exception(self._none_answers())
            return
        request.failed_at, request.alone = replica, alone
        self._line.append(request)

    # --- replicas that are left out -----------------------------------------------------------------

    def _leave_out(self, replica: _Replica, why: str) -> None:
        if replica.out is not None:
            return
        self._problem = why
        replica.out = asyncio.get_running_loop().create_task(self._until_back(replica))
        if self._dark_since is None and all(r.out for r in self._replicas):
            loop = asyncio.get_running_loop()
            self._dark_since = loop.time()
            loop.call_later(self._timeout_s, self._give_up, self._dark_since)

    async def _until_back(self, replica: _Replica) -> None:
        """Asks it whether its index is open, until it says so."""
        wait = FIRST_WAIT_S
        while True:
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)
            with suppress(ray.exceptions.RayError, TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    if await replica.actor.start.remote():
                        break
        replica.out, replica.errors, self._dark_since = None, 0, None
        self._send_at(0.0)

    def _give_up(self, dark_since: float) -> None:
        """Fails what waits, if no replica has been back since."""
        if self._dark_since == dark_since:
            line, self._line = self._line, []
            for request in line:
                if not request.future.done():
                    request.future.set_exception(self._none_answers())


class _Strange(Exception):
    """An answer that isn't one."""
