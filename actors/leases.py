"""The worker's side of its leases: a group that gets on keeps its claim, and one that stands still loses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from agent.episode import Generator
from agent.records import Completion
from agent.tickets import Ticket

RENEWALS = 4
"""In the time of a lease."""


class Paced:
    """A ``Generator`` that is one group's way to the engine, and knows whether the group gets on.

    ``steps`` counts what the engine does: while a request of the group is in it, that counts for the group.
    """

    def __init__(self, engine: Generator, steps: Callable[[], int]) -> None:
        self._engine = engine
        self._steps = steps
        self._turns = 0
        """Requests that were begun or ended."""
        self._inside = 0
        self._seen: tuple[int, int] | None = None

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
        now = self._turns, self._steps() if self._inside else 0
        before, self._seen = self._seen, now
        return now != before

    @contextmanager
    def _asked(self) -> Iterator[None]:
        self._turns += 1
        self._inside += 1
        try:
            yield
        finally:
            self._turns += 1
            self._inside -= 1


@dataclass(slots=True)
class _Group:
    """One that is played, and in which task."""

    question: str
    paced: Paced
    task: asyncio.Task[Any] | None
    still: int = 0
    """Renewals in a row that it stood still for."""


class Leases:
    """The claims that one worker holds of ``pool``. They are renewed while ``keep`` runs.

    A group that stands still for a whole lease has lost its claim, and its question goes to somebody else: it is
    cancelled, or a tool or a reward that never answers would keep the group's place for ever.
    """

    def __init__(self, pool: Any, worker: str, lease_s: float) -> None:
        self._pool = pool
        self._worker = worker
        self._lease_s = lease_s
        self._waiting: set[int] = set()
        """Claims whose groups have not begun: what they wait for is known, and their leases begin when they do."""
        self._playing: dict[int, _Group] = {}

    def claimed(self, ticket: Ticket) -> None:
        """A ticket is here, and its group waits."""
        self._waiting.add(ticket.claim_id)

    @contextmanager
    def playing(self, ticket: Ticket, question: str, paced: Paced) -> Iterator[None]:
        """The group of ``ticket``, for the ``question`` of that id, is played in the body by the task that runs."""
        self._waiting.discard(ticket.claim_id)
        self._playing[ticket.claim_id] = _Group(question, paced, asyncio.current_task())
        try:
            yield
        finally:
            del self._playing[ticket.claim_id]

    async def keep(self) -> None:
        """Renews what gets on, and cancels what has stood still for a lease; all of it when the pool is gone."""
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            alive = [*self._waiting, *(claim for claim, group in self._playing.items() if self._moves(group))]
            try:
                await self._pool.renew.remote(self._worker, alive)
            except ray.exceptions.ActorUnavailableError:
                continue  # its node was out of reach for a moment
            except ray.exceptions.RayError:
                for group in self._playing.values():
                    _cancel(group)
                return  # whoever claims or submits says so

    def _moves(self, group: _Group) -> bool:
        """Whether it has got on since this was asked last. Cancels it once it has stood still for a lease."""
        if group.paced.moved():
            group.still = 0
            return True
        group.still += 1
        if group.still >= RENEWALS:
            if group.still == RENEWALS:
                print(
                    f"the group of question {group.question} has stood still for {self._lease_s:.0f} s "
                    "(pool.lease_s), and is given up: a tool or a reward that doesn't answer?",
                    flush=True,
                )
            _cancel(group)
        return False


def _cancel(group: _Group) -> None:
    if group.task is not None:
        group.task.cancel()
