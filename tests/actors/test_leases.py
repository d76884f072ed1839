"""The worker's side of its leases: what counts as progress of a group, and whose claims are renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.leases import Leases, Paced
from agent.tickets import Ticket


class Engine:
    """Takes requests in, counts its steps, and answers when it is told to."""

    def __init__(self) -> None:
        self.steps = 0
        self.asked: list[asyncio.Future[Any]] = []

    async def generate(self, prompt_ids: Sequence[int], **how: Any) -> Any:
        assert set(how) == {"max_new_tokens", "stop", "temperature", "seed"}
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        raise NotImplementedError


async def play(leases: Leases, ticket: Ticket, paced: Paced) -> None:
    """A group of one turn."""
    with leases.playing(ticket, f"q{ticket.query}", paced):
        await generate(paced)


def generate(paced: Paced) -> asyncio.Future[Any]:
    return asyncio.ensure_future(paced.generate([1], max_new_tokens=1, stop=(), temperature=1.0, seed=0))


def test_a_group_moves_with_its_turns_and_with_the_engine_while_it_is_asked() -> None:
    async def scenario() -> None:
        engine = Engine()
        paced = Paced(engine, lambda: engine.steps)
        assert paced.moved(), "it has just begun"
        assert not paced.moved()
        engine.steps += 1
        assert not paced.moved(), "those steps were somebody else's"
        turn = generate(paced)
        await asyncio.sleep(0)
        assert paced.moved()
        assert not paced.moved(), "the engine stands still"
        engine.steps += 1
        assert paced.moved()
        engine.asked[0].set_result("done")
        assert await turn == "done"
        assert paced.moved()
        engine.steps += 1
        assert not paced.moved()

    asyncio.run(scenario())


def test_what_waits_or_moves_is_renewed_and_what_stands_still_is_not() -> None:
    async def scenario() -> None:
        renewed: asyncio.Queue[list[int]] = asyncio.Queue()

        out_of_reach = [True]

        async def renew(worker: str, claims: list[int]) -> None:
            assert worker == "w"
            if out_of_reach and out_of_reach.pop():
                raise ray.exceptions.ActorUnavailableError("the pool's node can't be reached", None)
            renewed.put_nowait(claims)

        leases = Leases(SimpleNamespace(renew=SimpleNamespace(remote=renew)), "w", lease_s=0.04)
        waits, moves, stands = (Ticket(claim_id=i, query=i, batch=0, order=i, seed=i) for i in range(3))
        engine = Engine()
        moving, standing = Paced(engine, lambda: engine.steps), Paced(engine, lambda: 0)
        for ticket in (waits, moves, stands):
            leases.claimed(ticket)
        keeping = asyncio.ensure_future(leases.keep())
        assert await renewed.get() == [0, 1, 2], "a lease begins when its group does"
        groups = [
            asyncio.ensure_future(play(leases, ticket, paced))
            for ticket, paced in ((moves, moving), (stands, standing))
        ]
        while await renewed.get() != [0]:  # both have begun a turn, and then nothing moves
            pass
        engine.steps += 1
        while await renewed.get() != [0, 1]:
            pass
        for group in groups:
            group.cancel()
        keeping.cancel()

    asyncio.run(scenario())


def test_a_group_that_stands_still_for_a_lease_is_cancelled_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    """As one whose tool never answers: its question has gone to somebody else by then."""

    async def scenario() -> None:
        renewed: list[list[int]] = []

        async def renew(worker: str, claims: list[int]) -> None:
            renewed.append(claims)
            engine.steps += 1

        leases = Leases(SimpleNamespace(renew=SimpleNamespace(remote=renew)), "w", lease_s=0.04)
        moves, stands = (Ticket(claim_id=i, query=i, batch=0, order=i, seed=i) for i in range(2))
        engine = Engine()
        going = asyncio.ensure_future(play(leases, moves, Paced(engine, lambda: engine.steps)))
        stuck = asyncio.ensure_future(play(leases, stands, Paced(engine, lambda: 0)))
        keeping = asyncio.ensure_future(leases.keep())
        with pytest.raises(asyncio.CancelledError):
            await stuck
        assert len(renewed) >= 4, "a whole lease"
        assert all(0 in claims for claims in renewed)
        assert not going.done()
        going.cancel()
        keeping.cancel()

    asyncio.run(scenario())
    wanted = "the group of question q1 has stood still for 0 s (pool.lease_s), and is given up: a tool or a reward that"
    assert capsys.readouterr().out.startswith(wanted)


def test_groups_that_no_pool_will_take_are_cancelled() -> None:
    async def scenario() -> None:
        async def renew(worker: str, claims: list[int]) -> None:
            raise ray.exceptions.RayActorError

        leases = Leases(SimpleNamespace(renew=SimpleNamespace(remote=renew)), "w", lease_s=0.04)
        engine = Engine()
        ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)
        group = asyncio.ensure_future(play(leases, ticket, Paced(engine, lambda: engine.steps)))
        await leases.keep()
        with pytest.raises(asyncio.CancelledError):
            await group

    asyncio.run(scenario())
