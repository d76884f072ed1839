"""The worker's side of its leases: what counts as progress of a group, and whose claims are renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.leases import Leases, Paced, PacedSearcher
from agent.pool.claims import Claims
from agent.records import Passage
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


def play(leases: Leases, ticket: Ticket, paced: Paced) -> asyncio.Task[None]:
    """A group of one turn."""

    async def group() -> None:
        with leases.playing(ticket, paced):
            await generate(paced)

    task = asyncio.ensure_future(group())
    leases.claimed(ticket, f"q{ticket.query}", task)
    return task


def generate(paced: Paced) -> asyncio.Future[Any]:
    return asyncio.ensure_future(paced.generate([1], max_new_tokens=1, stop=(), temperature=1.0, seed=0))


def test_a_group_moves_with_its_turns_and_with_the_engine_while_it_is_asked() -> None:
    async def scenario() -> None:
        engine = Engine()
        paced = Paced(engine, lambda: engine.steps, int)
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


def test_a_group_in_line_for_a_search_moves_with_the_searches_that_are_answered() -> None:
    """Where more is searched than there is time for, none is dropped: a lease must not end what waits its turn."""

    class Line:
        def __init__(self) -> None:
            self.asked: dict[str, asyncio.Future[tuple[Passage, ...]]] = {}

        async def search(self, query: str, k: int) -> tuple[Passage, ...]:
            self.asked[query] = asyncio.get_running_loop().create_future()
            return await self.asked[query]

        following = search

    async def scenario() -> None:
        line = Line()
        did: list[str] = []
        searcher, leases = PacedSearcher(line, lambda: did.append("evaluate")), Leases(None, "w", lease_s=600.0)
        groups = [Paced(Engine(), int, lambda: searcher.answered) for _ in range(2)]

        async def group(number: int) -> None:
            with leases.playing(tickets[number], groups[number]):
                await asyncio.gather(searcher.search(f"first {number}", 3), searcher.following(f"second {number}", 3))
                await asyncio.Event().wait()  # its reward, say

        tickets = [Ticket(claim_id=i, query=i, batch=0, order=i, seed=i) for i in range(2)]
        tasks = [asyncio.ensure_future(group(number)) for number in range(2)]
        for ticket, task in zip(tickets, tasks, strict=True):
            leases.claimed(ticket, "q", task)
        alone = asyncio.ensure_future(searcher.search("an evaluation's", 3))

        async def moved(*ended: str) -> list[bool]:
            while len(line.asked) < 5:
                await asyncio.sleep(0)
            for query in ended:
                line.asked[query].set_result(())
            for _ in range(10):
                await asyncio.sleep(0)
            return [each.moved() for each in groups]

        assert await moved() == [True, True], "they have begun"
        assert await moved() == [False, False], "no search is answered"
        assert await moved("an evaluation's") == [True, True]
        assert await moved("first 0", "second 0") == [True, True]
        assert await moved("first 1") == [False, True], "the one is in no line any more"
        assert await moved() == [False, False]
        assert len(did) == 4, "evaluations get on by these, too"
        for task in tasks:
            task.cancel()
        await alone

    asyncio.run(scenario())


def test_what_waits_or_moves_is_renewed_and_what_stands_still_is_not() -> None:
    async def scenario() -> None:
        renewed: asyncio.Queue[list[int]] = asyncio.Queue()

        out_of_reach = [True]

        async def renew(worker: str, held: list[int], moved: list[int]) -> list[int]:
            assert (worker, held) == ("w", [0, 1, 2])
            if out_of_reach and out_of_reach.pop():
                raise ray.exceptions.ActorUnavailableError("the pool's node can't be reached", None)
            renewed.put_nowait(moved)
            return []

        leases = Leases(SimpleNamespace(renew=SimpleNamespace(remote=renew)), "w", lease_s=0.04)
        waits, moves, stands = (Ticket(claim_id=i, query=i, batch=0, order=i, seed=i) for i in range(3))
        engine = Engine()
        moving, standing = Paced(engine, lambda: engine.steps, int), Paced(engine, int, int)
        group = asyncio.ensure_future(asyncio.Event().wait())
        for ticket in (waits, moves, stands):
            leases.claimed(ticket, "q", group)
        keeping = asyncio.ensure_future(leases.keep())
        assert await renewed.get() == [0, 1, 2], "a lease begins when its group does"
        with leases.playing(moves, moving), leases.playing(stands, standing):
            turns = [generate(moving), generate(standing)]
            while await renewed.get() != [0]:  # both have begun a turn, and then nothing moves
                pass
            engine.steps += 1
            while await renewed.get() != [0, 1]:
                pass
        for turn in (*turns, group):
            turn.cancel()
        keeping.cancel()

    asyncio.run(scenario())


def test_a_group_that_stands_still_for_a_lease_is_cancelled_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    """As one whose tool never answers: its question has gone to somebody else by then."""

    async def scenario() -> None:
        claims, now = Claims(lease_s=1.0, quarantine_after=0), 0.0

        async def renew(worker: str, held: list[int], moved: list[int]) -> list[int]:
            nonlocal now
            now += 0.25
            engine.steps += 1
            gone = claims.renew(worker, held, moved, now=now)
            claims.ends(lambda claim: claim.deadline <= now)
            return gone

        leases = Leases(SimpleNamespace(renew=SimpleNamespace(remote=renew)), "w", lease_s=0.04)
        moves, stands = (Ticket(claim_id=i, query=i, batch=0, order=i, seed=i) for i in range(2))
        engine = Engine()
        for ticket in (moves, stands):
            claims.add(ticket, "w", now=now)
        going, stuck = (
            play(leases, moves, Paced(engine, lambda: engine.steps, int)),
            play(leases, stands, Paced(engine, int, int)),
        )
        keeping = asyncio.ensure_future(leases.keep())
        with pytest.raises(asyncio.CancelledError):
            await stuck
        assert now > 1.0, "a whole lease"
        assert not going.done()
        assert claims.ticket(0) == moves
        going.cancel()
        keeping.cancel()

    asyncio.run(scenario())
    out = capsys.readouterr().out
    assert out.startswith("w: the group of question q1 has stood still for 0.04 s (pool.lease_s), ")
    assert out.count("\n") == 1, "once"


def test_groups_that_no_pool_will_take_are_cancelled() -> None:
    async def scenario() -> None:
        async def renew(worker: str, held: list[int], moved: list[int]) -> list[int]:
            raise ray.exceptions.RayActorError

        leases = Leases(SimpleNamespace(renew=SimpleNamespace(remote=renew)), "w", lease_s=0.04)
        engine = Engine()
        ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)
        group = play(leases, ticket, Paced(engine, lambda: engine.steps, int))
        with pytest.raises(ray.exceptions.RayActorError):
            await leases.keep()
        leases.end()
        with pytest.raises(asyncio.CancelledError):
            await group

    asyncio.run(scenario())


def test_a_group_whose_claim_is_gone_is_cancelled_until_it_ends_and_asks_the_engine_for_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        async def renew(worker: str, held: list[int], moved: list[int]) -> list[int]:
            return [claim for claim in (7, 8) if claim in held or claim == 7]  # 7 was submitted while this was asked

        leases = Leases(SimpleNamespace(renew=SimpleNamespace(remote=renew)), "w", lease_s=600.0)
        ticket = Ticket(claim_id=8, query=0, batch=0, order=0, seed=0)
        engine = Engine()
        paced = Paced(engine, int, int)
        cancelled = 0

        async def stubborn() -> None:
            nonlocal cancelled
            with leases.playing(ticket, paced):
                while cancelled < 2:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        cancelled += 1
                await generate(paced)

        group = asyncio.ensure_future(stubborn())
        leases.claimed(ticket, "q8", group)
        for _ in range(2):
            await asyncio.sleep(0)
            await leases.renew()
        assert not leases.gave_up(asyncio.ensure_future(asyncio.sleep(0)))
        await asyncio.wait({group})
        assert (cancelled, group.cancelled(), engine.asked) == (2, True, [])
        assert leases.gave_up(group)
        assert not leases.gave_up(group), "once"
        await leases.renew()

    asyncio.run(scenario())
    assert capsys.readouterr().out.count("w: the group of question q8 has stood still for 600 s") == 1
