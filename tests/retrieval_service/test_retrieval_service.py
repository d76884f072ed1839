"""The asynchronous service over a scripted backend. Nothing here waits for time to pass, but for events."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from agent.errors import Fault, RetrievalError, UserError
from agent.records import Passage
from retrieval_service import worker
from retrieval_service.backend import Backend, Identity, Unavailable
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import open_backend
from retrieval_service.service import RetrievalService

PATIENCE_S = 600.0
"""How long a test waits for an event that is certain to come."""


class ScriptedBackend:
    """Answers a query with k passages made from it; can be held up, and fails on queries that say so.

    A query ``wait …`` holds up the thread that it is in, whatever ``go_on`` says, until ``freed``.
    """

    def __init__(self) -> None:
        self.freed = threading.Event()
        self.batches: list[tuple[tuple[str, ...], int]] = []
        self.threads = {threading.get_ident()}
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        self.closed = False
        self.short_answers = False
        self.passages = 3

    def identity(self) -> Identity:
        return Identity(name="scripted", backend="scripted", documents=self.passages)

    def search_batch(self, queries: Sequence[str], k: int) -> list[Any]:
        assert not self.closed
        assert queries
        assert k >= 1
        assert all(isinstance(query, str) for query in queries)
        assert len(set(queries)) == len(queries), "the service shares identical searches"
        self.threads.add(threading.get_ident())
        self.batches.append((tuple(queries), k))
        self.entered.release()
        held = self.freed if any(query.startswith("wait") for query in queries) else self.go_on
        assert held.wait(PATIENCE_S)
        if "unavailable" in queries:
            raise Unavailable("no server is there")
        if any(query == "poison" for query in queries):
            raise OSError("the index is gone")
        if any(query == "exhausted" for query in queries):
            raise StopIteration
        answers = [None if query == "none" else hits(query, k) for query in queries]
        return answers[1:] if self.short_answers else answers

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        self.batches.append((("after", *document_ids), k))
        return [hits(f"after {d}", k) for d in document_ids]

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed = True


def hits(query: str, k: int) -> tuple[Passage, ...]:
    return tuple(Passage(id=f"{query}-{n}", title="", text="x", score=1.0 / (n + 1)) for n in range(k))


def opened_twice(made: list[ScriptedBackend]) -> Callable[[], Backend]:
    """Opens a backend for each lane of a service, of which it may have two, and puts it into ``made``."""

    def make_backend() -> Backend:
        backend = ScriptedBackend()
        backend.lanes = 2  # type: ignore[attr-defined]
        made.append(backend)
        return backend

    return make_backend


class House:
    """A started service, its backend, and ways to bring both to a known point."""

    def __init__(self, service: RetrievalService, backend: ScriptedBackend) -> None:
        self.service = service
        self.backend = backend

    def search(self, query: str, k: int = 3) -> asyncio.Task[tuple[Passage, ...]]:
        return asyncio.create_task(self.service.search(query, k))

    async def entered(self) -> None:
        """Until the backend is at its next batch."""
        assert await asyncio.to_thread(self.backend.entered.acquire, timeout=PATIENCE_S)

    async def hold(self, query: str = "held") -> asyncio.Task[tuple[Passage, ...]]:
        """Keeps the backend at a batch of one search, until ``backend.go_on`` is set."""
        self.backend.go_on.clear()
        task = self.search(query)
        await self.entered()
        return task

    async def submitted(self) -> None:
        """Until all tasks created so far have got to wait for their hits."""
        await asyncio.sleep(0)


def play(scene: Callable[[House], Coroutine[Any, Any, None]], **settings: Any) -> ScriptedBackend:
    """Runs ``scene`` with a started service, closes it, and checks that one other thread did all the work."""
    made: list[ScriptedBackend] = []

    def make_backend() -> Backend:
        made.append(ScriptedBackend())
        return made[0]

    async def run() -> None:
        service = RetrievalService(make_backend, RetrievalConfig(**settings))
        await service.start()
        try:
            await scene(House(service, made[0]))
        finally:
            made[0].go_on.set()
            await service.close()

    asyncio.run(run())
    (backend,) = made
    assert backend.closed
    assert len(backend.threads) == 1
    assert threading.get_ident() not in backend.threads
    assert not any(thread.ident in backend.threads for thread in threading.enumerate()), "the thread was not joined"
    return backend


def test_a_search_is_answered() -> None:
    async def scene(house: House) -> None:
        assert await house.service.search("emma", 2) == hits("emma", 2)

    assert play(scene).batches == [(("emma",), 2)]


def test_searches_of_one_turn_of_the_loop_share_a_batch() -> None:
    async def scene(house: House) -> None:
        answers = await asyncio.gather(*(house.service.search(query, 3) for query in "abc"))
        assert answers == [hits(query, 3) for query in "abc"]

    assert play(scene).batches == [(("a", "b", "c"), 3)]


def test_searches_that_wait_for_the_backend_are_coalesced_up_to_max_batch() -> None:
    async def scene(house: House) -> None:
        held = await house.hold()
        tasks = [house.search(query) for query in "abcde"]
        await house.submitted()
        house.backend.go_on.set()
        assert [await task for task in tasks] == [hits(query, 3) for query in "abcde"]
        assert await held == hits("held", 3)
        assert house.service.stats().batches == 4

    assert [batch for batch, _ in play(scene, max_batch=2).batches] == [("held",), ("a", "b"), ("c", "d"), ("e",)]


def test_a_batch_has_one_k_and_the_oldest_goes_first() -> None:
    async def scene(house: House) -> None:
        await house.hold()
        tasks = [house.search(query, k) for query, k in (("a", 5), ("b", 1), ("c", 5), ("a", 1))]
        await house.submitted()
        house.backend.go_on.set()
        assert [len(await task) for task in tasks] == [5, 1, 5, 1]

    assert play(scene).batches[1:] == [(("a", "c"), 5), (("b", "a"), 1)]


def test_a_repeated_search_comes_from_the_cache() -> None:
    async def scene(house: House) -> None:
        first = await house.service.search("emma", 3)
        assert await house.service.search("emma", 3) is first
        assert len(await house.service.search("emma", 2)) == 2
        stats = house.service.stats()
        assert (stats.queries, stats.cache_hits, stats.batches) == (3, 1, 2)

    play(scene)


def test_the_cache_can_be_bounded_or_turned_off() -> None:
    async def scene(house: House) -> None:
        for query in ("a", "b", "a"):
            await house.service.search(query, 1)
        assert house.service.stats().cache_hits == 0

    assert len(play(scene, cache_size=1).batches) == 3
    assert len(play(scene, cache_size=0).batches) == 3
    assert len(play(scene, cache_mib=0).batches) == 3


def test_identical_searches_in_flight_are_one() -> None:
    async def scene(house: House) -> None:
        await house.hold("emma")
        same = house.search("emma")
        waiting = [house.search("persuasion") for _ in range(3)]
        await house.submitted()
        house.backend.go_on.set()
        assert await same == hits("emma", 3)
        assert [await task for task in waiting] == [hits("persuasion", 3)] * 3
        stats = house.service.stats()
        assert (stats.queries, stats.shared, stats.cache_hits) == (5, 3, 0)

    assert play(scene).batches == [(("emma",), 3), (("persuasion",), 3)]


def test_a_stuck_backend_surfaces_as_time_outs() -> None:
    async def scene(house: House) -> None:
        stuck, waiting = await house.hold("stuck"), house.search("waiting")
        for task in (stuck, waiting):
            with pytest.raises(RetrievalError, match=r"took longer than 0\.5 s"):
                await task
        assert not house.backend.go_on.is_set(), "the callers heard of it while the backend was stuck"
        stats = house.service.stats()
        assert (stats.timeouts, stats.failures) == (2, 0)
        assert stats.p50_s >= 0.5
        # It comes back: what nobody waits for any more is not searched, and the late answer is kept.
        house.backend.go_on.set()
        late = house.search("stuck")
        assert await late == hits("stuck", 3)
        assert await house.service.search("next", 3) == hits("next", 3)

    assert [batch for batch, _ in play(scene, timeout_s=0.5).batches] == [("stuck",), ("next",)]


def test_a_query_that_cannot_be_answered_fails_alone() -> None:
    async def scene(house: House) -> None:
        await house.hold()
        good, bad = ["a", "b", "c", "d", "e"], ["poison", "none"]
        tasks = {query: house.search(query) for query in (*good[:3], *bad, *good[3:])}
        again = house.search("poison")
        await house.submitted()
        house.backend.go_on.set()
        assert [await tasks[query] for query in good] == [hits(query, 3) for query in good]
        for task in (tasks["poison"], again):
            with pytest.raises(RetrievalError, match="search failed: OSError: the index is gone") as caught:
                await task
            assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(RetrievalError, match="the backend answered with NoneType, not with passages"):
            await tasks["none"]
        stats = house.service.stats()
        assert (stats.failures, stats.timeouts) == (3, 0)
        assert len(house.backend.batches) <= 1 + 1 + 2 * 3, "in halves, not one by one"
        with pytest.raises(RetrievalError):
            await house.service.search("none", 3)  # a failure is not cached

    play(scene)


def test_a_backend_that_has_nothing_to_offer_is_asked_once() -> None:
    async def scene(house: House) -> None:
        await house.hold()
        tasks = [house.search(query) for query in ("a", "unavailable", "b")]
        await house.submitted()
        house.backend.go_on.set()
        for task in tasks:
            with pytest.raises(RetrievalError, match="no server is there"):
                await task

    assert [batch for batch, _ in play(scene).batches] == [("held",), ("a", "unavailable", "b")]


def test_of_a_batch_that_fails_no_half_is_asked_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: float(len(asked))))

    def fails(queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        asked.append(tuple(queries))
        raise OSError("the index is gone")

    found = worker.answers(fails, ["a", "b", "c", "d"], 1, 2.0)
    assert asked == [("a", "b", "c", "d"), ("a", "b")]
    assert [str(each) for each in found] == ["search failed: OSError: the index is gone"] * 4


def test_a_backend_is_told_when_nobody_waits_any_more() -> None:
    ends: list[float] = []

    async def scene(house: House) -> None:
        house.backend.until = ends.append  # type: ignore[attr-defined]
        await house.service.search("a", 1)

    play(scene, timeout_s=PATIENCE_S)
    (end,) = ends
    assert time.monotonic() < end <= time.monotonic() + PATIENCE_S


def test_who_waits_in_line_is_not_timed_as_long_as_the_line_moves() -> None:
    """300 searches would fit into the time-out; all 1,000 are answered."""

    async def scene(house: House) -> None:
        slow = house.backend.search_batch

        def one_by_one(queries: Sequence[str], k: int) -> list[Any]:
            time.sleep(0.01 * len(queries))
            return slow(queries, k)

        house.backend.search_batch = one_by_one  # type: ignore[method-assign]
        began = time.monotonic()
        answers = await asyncio.gather(*(house.service.search(f"q{n}", 2) for n in range(100)))
        assert answers == [hits(f"q{n}", 2) for n in range(100)]
        assert time.monotonic() - began > 2 * 0.3, "it was more than fits"
        assert house.service.stats().timeouts == 0

    play(scene, timeout_s=0.3, max_batch=4)


def test_a_batch_has_no_more_searches_than_fit_into_the_time_of_one() -> None:
    """Each takes as long as all of its batch: of 64 at once at a second each none would be answered in 30."""
    now, each_s = 0.0, 1.0

    async def scene(house: House) -> None:
        nonlocal each_s
        house.service._meter.clock = lambda: now
        given = house.backend.search_batch

        def one_by_one(queries: Sequence[str], k: int) -> list[Any]:
            nonlocal now
            now += each_s * len(queries)
            return given(queries, k)

        house.backend.search_batch = one_by_one  # type: ignore[method-assign]
        await asyncio.gather(*(house.service.search(f"q{n}", 1) for n in range(64)))
        await asyncio.gather(*(house.service.search(f"{n} {'long' * 100}", 1) for n in range(8)))
        each_s = 2.5
        await asyncio.gather(*(house.service.search(f"slow {n}", 1) for n in range(56)))

    sizes = [len(batch) for batch, _ in play(scene, timeout_s=30.0).batches]
    assert sizes == [*(4, 8, 16, 16, 16, 4), *(1, 2, 4, 1), *(16, 8, 8, 8, 8, 8)]


def test_a_quick_search_gets_past_a_slow_one_where_the_backend_can_be_opened_twice() -> None:
    made: list[ScriptedBackend] = []

    async def run() -> None:
        service = RetrievalService(opened_twice(made), RetrievalConfig())
        await service.start()
        assert await service.search("at ease", 2) == hits("at ease", 2)
        assert len(made) == 1, "a second is opened when it is needed"
        slow = asyncio.create_task(service.search("wait", 2))
        for _ in range(2):
            assert await asyncio.to_thread(made[0].entered.acquire, timeout=PATIENCE_S)
        long = "long " * 100
        behind = asyncio.create_task(service.search(long, 2))
        assert await service.search("quick", 2) == hits("quick", 2)
        assert await service.search("also quick", 2) == hits("also quick", 2)
        assert not slow.done()
        made[0].freed.set()
        assert await slow == hits("wait", 2)
        assert await behind == hits(long, 2)
        await service.close()

    asyncio.run(run())
    first, second = made
    assert [batch[0].split()[0] for batch, _ in first.batches] == ["at", "wait", "long"]
    assert [batch for batch, _ in second.batches] == [("quick",), ("also quick",)]
    assert first.closed
    assert second.closed


class PartedBackend(ScriptedBackend):
    """Reads what it has found in another thread; a query ``unread …`` holds that up until ``read_on``, and what is
    found of ``unreadable …`` can't be read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_on = threading.Event()
        self.reading: list[tuple[str, ...]] = []
        self.readers: set[int] = set()
        self.ended = 0

    def begin_batch(self, queries: Sequence[str], k: int) -> Callable[[], list[Any]]:
        found = super().search_batch(queries, k)

        def read() -> list[Any]:
            self.readers.add(threading.get_ident())
            self.reading.append(tuple(queries))
            if any(query.startswith("unread ") for query in queries):
                assert self.read_on.wait(PATIENCE_S)
            if any(query.startswith("unreadable") for query in queries):
                raise OSError("half a passage")
            return found

        return read

    def search_batch(self, queries: Sequence[str], k: int) -> list[Any]:
        return self.begin_batch(queries, k)()

    def end_reading(self) -> None:
        self.ended += 1
        self.readers.add(threading.get_ident())


@pytest.mark.parametrize("kind", [ScriptedBackend, PartedBackend])
@pytest.mark.parametrize("query", ["a", "poison"])
def test_who_asks_again_at_once_finds_the_backend_free(kind: type[ScriptedBackend], query: str) -> None:
    order: list[str] = []

    async def run() -> None:
        thread = worker.BackendThread(kind)
        await thread.start()
        done = asyncio.Event()
        job = worker.Job(
            method="search_batch",
            texts=[query],
            k=1,
            timeout_s=PATIENCE_S,
            begun=lambda: order.append("begun"),
            following=lambda: order.append("following"),
            free=lambda following: order.append("free"),
            answered=lambda answers: (order.append("answers"), done.set())[1],
        )
        thread.ask(job)
        await done.wait()
        await thread.stop(PATIENCE_S)

    asyncio.run(run())
    assert order == ["following", "free", "answers"]


@pytest.mark.parametrize("kind", [ScriptedBackend, PartedBackend])
def test_the_backend_goes_on_while_the_event_loop_is_busy(kind: type[ScriptedBackend]) -> None:
    async def run() -> None:
        backend = kind()
        service = RetrievalService(lambda: backend, RetrievalConfig(max_batch=2))
        await service.start()
        house = House(service, backend)
        held = await house.hold()
        tasks = [house.search(query) for query in "abcde"]
        left = house.search("left")
        await house.submitted()
        left.cancel()
        await house.submitted()
        backend.go_on.set()
        for _ in range(3):
            assert backend.entered.acquire(timeout=PATIENCE_S), "it waits for the loop"
        assert not held.done()
        assert [await task for task in (held, *tasks)] == [hits(query, 3) for query in ("held", *"abcde")]
        assert await service.search("f", 3) == hits("f", 3)
        assert service.stats().batches == 5
        await service.close()
        assert [batch for batch, _ in backend.batches] == [("held",), ("a", "b"), ("c", "d"), ("e",), ("f",)]

    asyncio.run(run())


def parted(scene: Callable[[RetrievalService, PartedBackend], Coroutine[Any, Any, None]]) -> PartedBackend:
    made: list[PartedBackend] = []

    def make_backend() -> Backend:
        made.append(PartedBackend())
        return made[-1]

    async def run() -> None:
        service = RetrievalService(make_backend, RetrievalConfig())
        await service.start()
        await scene(service, made[0])
        await service.close()

    asyncio.run(run())
    (backend,) = made
    assert backend.closed
    return backend


def test_the_next_batch_is_searched_while_one_is_read() -> None:
    async def scene(service: RetrievalService, backend: PartedBackend) -> None:
        slow = asyncio.create_task(service.search("unread 1", 2))
        assert await asyncio.to_thread(backend.entered.acquire, timeout=PATIENCE_S)
        second = asyncio.create_task(service.search("2", 2))
        assert await asyncio.to_thread(backend.entered.acquire, timeout=PATIENCE_S)
        assert not slow.done()
        assert not second.done()
        backend.read_on.set()
        assert (await slow, await second) == (hits("unread 1", 2), hits("2", 2))
        assert await service.following("x", 1) == hits("after x", 1)

    backend = parted(scene)
    assert backend.reading == [("unread 1",), ("2",)]
    assert backend.ended == len(backend.readers) == 1
    assert not backend.readers & backend.threads, "the thread that searches doesn't read"


def test_what_cannot_be_read_fails_alone() -> None:
    async def scene(service: RetrievalService, backend: PartedBackend) -> None:
        found = await asyncio.gather(
            *(service.search(query, 1) for query in ("a", "unreadable", "b")), return_exceptions=True
        )
        assert found[::2] == [hits("a", 1), hits("b", 1)]
        assert str(found[1]) == "search failed: OSError: half a passage"
        with pytest.raises(RetrievalError, match="the index is gone"):
            await service.search("poison", 1)

    backend = parted(scene)
    asked = [batch for batch, _ in backend.batches]
    assert len(asked) == len(set(asked)), "nothing is asked twice in the same way"


def test_a_parted_backend_that_is_closed_in_mid_read_fails_who_waits() -> None:
    async def scene(service: RetrievalService, backend: PartedBackend) -> None:
        waiting = asyncio.create_task(service.search("unread 1", 1))
        assert await asyncio.to_thread(backend.entered.acquire, timeout=PATIENCE_S)
        asyncio.get_running_loop().call_soon(backend.read_on.set)
        await service.close()
        with pytest.raises(RetrievalError, match="closed"):
            await waiting

    assert parted(scene).ended == 1


def test_where_every_batch_takes_long_none_is_overtaken() -> None:
    made: list[ScriptedBackend] = []
    now = 0.0

    async def run() -> None:
        nonlocal now
        service = RetrievalService(opened_twice(made), RetrievalConfig(timeout_s=PATIENCE_S))
        service._meter.clock = lambda: now
        await service.start()

        async def asked(name: str, seconds: float) -> asyncio.Task[Any]:
            """A search of ``name`` that has been out for so long when another one comes."""
            nonlocal now
            made[0].freed.clear()
            slow = asyncio.create_task(service.search(f"wait {name}", 1))
            assert await asyncio.to_thread(made[0].entered.acquire, timeout=PATIENCE_S)
            now += seconds
            return slow

        for turn in range(9):
            slow = await asked(str(turn), 1.0)
            made[0].freed.set()
            await slow
            await service.following(f"what follows it comes at once {turn}", 1)
        slow = await asked("as long as usual", 1.9)
        behind = asyncio.create_task(service.search("behind", 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert service._second is None
        now += 0.2
        assert await service.search("past it", 1) == hits("past it", 1)
        assert await behind == hits("behind", 1)
        assert not slow.done()
        made[0].freed.set()
        await slow
        await service.close()

    asyncio.run(run())
    assert [batch for batch, _ in made[1].batches] == [("behind", "past it")]


def test_a_second_backend_that_searches_something_else_is_not_used() -> None:
    made: list[ScriptedBackend] = []
    settled = threading.Semaphore(0)

    class Changing(ScriptedBackend):
        lanes = 2

        def search_batch(self, queries: Sequence[str], k: int) -> list[Any]:
            if self is not made[0]:
                settled.release()
            return super().search_batch(queries, k)

        def close(self) -> None:
            super().close()
            settled.release()

    def make_backend() -> Backend:
        made.append(Changing())
        made[-1].passages += len(made) - 1
        return made[-1]

    async def run() -> None:
        service = RetrievalService(make_backend, RetrievalConfig())
        await service.start()
        slow = asyncio.create_task(service.search("wait", 2))
        assert await asyncio.to_thread(made[0].entered.acquire, timeout=PATIENCE_S)
        quick = asyncio.create_task(service.search("quick", 2))
        assert await asyncio.to_thread(settled.acquire, timeout=PATIENCE_S)
        made[0].freed.set()
        assert (await slow, await quick) == (hits("wait", 2), hits("quick", 2))
        assert service.identity.documents == 3
        await service.close()

    asyncio.run(run())
    first, second = made
    assert (len(first.batches), second.batches) == (2, [])


def test_a_second_backend_that_cannot_be_opened_is_tried_again_later() -> None:
    made: list[ScriptedBackend] = []
    tried = threading.Semaphore(0)

    def make_backend() -> Backend:
        tried.release()
        if made and not may_open.is_set():
            raise OSError("no more files")
        backend = ScriptedBackend()
        backend.lanes = 2  # type: ignore[attr-defined]
        made.append(backend)
        return backend

    async def run() -> None:
        service = RetrievalService(make_backend, RetrievalConfig(timeout_s=PATIENCE_S))
        await service.start()
        assert tried.acquire(blocking=False)
        slow = asyncio.create_task(service.search("wait", 2))
        assert await asyncio.to_thread(made[0].entered.acquire, timeout=PATIENCE_S)
        first = asyncio.create_task(service.search("quick", 2))
        assert await asyncio.to_thread(tried.acquire, timeout=PATIENCE_S)
        while service._second is not None:
            await asyncio.sleep(0)
        may_open.set()
        second = asyncio.create_task(service.search("as quick", 2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert service._second is None, "not at once"
        service._second_from = 0.0
        assert await service.search("quicker", 2) == hits("quicker", 2)
        assert (await first, await second) == (hits("quick", 2), hits("as quick", 2))
        made[0].freed.set()
        assert await slow == hits("wait", 2)
        await service.close()

    may_open = threading.Event()
    asyncio.run(run())
    assert [len(backend.batches) for backend in made] == [1, 1]


def test_a_backend_in_place_of_an_earlier_one_searches_the_same_or_is_refused() -> None:
    async def run(known: Identity) -> None:
        service = RetrievalService(ScriptedBackend, RetrievalConfig(), known=known)
        await service.start()
        await service.close()

    asyncio.run(run(ScriptedBackend().identity()))
    with pytest.raises(Fault, match=r"^what is searched has changed since the start: documents 3 in place of 4; put"):
        asyncio.run(run(Identity(name="scripted", backend="scripted", documents=4)))


def test_who_keeps_the_process_is_told_of_a_thread_that_does_not_come_back() -> None:
    backend, told = ScriptedBackend(), []

    async def run() -> None:
        service = RetrievalService(lambda: backend, RetrievalConfig(timeout_s=0.1), told.append)
        await service.start()
        assert await service.search("a", 1) == hits("a", 1)
        with pytest.raises(RetrievalError, match="took longer"):
            await service.search("wait", 1)
        while not told:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(backend.entered.acquire, timeout=PATIENCE_S)
        backend.freed.set()
        await service.close()

    asyncio.run(run())
    assert told == [0.2]


def test_even_an_exception_that_no_future_takes_is_told() -> None:
    async def scene(house: House) -> None:
        with pytest.raises(RetrievalError, match="StopIteration"):
            await house.service.search("exhausted", 3)

    play(scene)


def test_a_backend_that_answers_too_few_is_a_failure() -> None:
    async def scene(house: House) -> None:
        house.backend.short_answers = True
        with pytest.raises(RetrievalError, match="answered 0 of 1 queries"):
            await house.service.search("a", 3)

    play(scene)


def test_a_cancelled_caller_disturbs_nobody() -> None:
    async def scene(house: House) -> None:
        first = await house.hold("emma")
        second = house.search("emma")
        alone, paired, pair = house.search("alone"), house.search("paired"), house.search("paired")
        await house.submitted()
        for task in (first, alone, paired):
            task.cancel()
        await asyncio.wait((first, alone, paired))
        assert first.cancelled()
        assert alone.cancelled()
        assert paired.cancelled()
        house.backend.go_on.set()
        assert await second == hits("emma", 3)
        assert await pair == hits("paired", 3)
        assert await house.service.search("alone", 3) == hits("alone", 3)

    assert [batch for batch, _ in play(scene).batches] == [("emma",), ("paired",), ("alone",)]


def test_a_service_goes_on_after_its_only_search_is_cancelled_before_it_is_sent() -> None:
    async def scene(house: House) -> None:
        task = house.search("a")
        await house.submitted()
        task.cancel()
        await asyncio.wait((task,))
        assert await house.service.search("b", 3) == hits("b", 3)

    play(scene)


def test_close_fails_what_is_pending_and_what_comes_later() -> None:
    async def scene(house: House) -> None:
        sent, waiting = await house.hold("sent"), house.search("waiting")
        await house.submitted()
        closing = asyncio.create_task(house.service.close())
        for task in (sent, waiting):
            with pytest.raises(RetrievalError, match="was closed"):
                await task
        assert not closing.done(), "the backend is still at its batch"
        house.backend.go_on.set()
        await closing
        with pytest.raises(RetrievalError, match="is closed"):
            await house.service.search("late", 3)
        await house.service.close()

    assert [batch for batch, _ in play(scene).batches] == [("sent",)]


def test_close_leaves_a_backend_that_does_not_return_to_itself() -> None:
    """What ends, a run that has its results or a server, ends as it would have without it."""
    backend = ScriptedBackend()

    async def run() -> None:
        service = RetrievalService(lambda: backend, RetrievalConfig(timeout_s=0.05))
        await service.start()
        backend.go_on.clear()
        with pytest.raises(RetrievalError, match="took longer"):
            await service.search("stuck", 3)
        await service.close(0.05)

    asyncio.run(run())
    backend.go_on.set()


def test_start_raises_what_making_the_backend_raised() -> None:
    def make_backend() -> Backend:
        raise UserError("index: no such folder")

    async def run() -> None:
        service = RetrievalService(make_backend, RetrievalConfig())
        with pytest.raises(UserError, match="no such folder"):
            await service.start()
        with pytest.raises(RuntimeError, match="has not been started"):
            await service.search("a", 3)
        await service.close()

    asyncio.run(run())


def test_misuse_is_told() -> None:
    async def scene(house: House) -> None:
        for k, error, why in ((0, ValueError, "k=0: must be at least 1"), ("3", TypeError, "k='3': must be a whole")):
            with pytest.raises(error, match=why):
                await house.service.search("a", k)  # type: ignore[arg-type]
        for text in (None, 3, ["a"]):
            with pytest.raises(TypeError, match="the text of a search is of type"):
                await house.service.following(text, 3)  # type: ignore[arg-type]
        assert await house.service.search("a", 3) == hits("a", 3)
        with pytest.raises(RuntimeError, match="started already"):
            await house.service.start()

    play(scene)


def test_books_add_up_under_load() -> None:
    async def scene(house: House) -> None:
        queries = [f"q{n % 40}" for n in range(400)]
        for _ in range(3):
            answers = await asyncio.gather(*(house.service.search(query, 2) for query in queries))
            assert answers == [hits(query, 2) for query in queries]
        stats = house.service.stats()
        assert stats.queries == 1200
        assert stats.cache_hits + stats.shared == 1200 - 40
        assert stats.batches == 6, "of 4, and then of 8"
        assert stats.qps > 0
        assert 0 <= stats.p50_s <= stats.p99_s

    assert sum(len(batch) for batch, _ in play(scene, max_batch=8).batches) == 40


def test_reading_on_shares_no_batch_and_no_cache_with_searching() -> None:
    async def scene(house: House) -> None:
        for _ in range(2):
            held = await house.hold() if not house.backend.batches else None
            found = [house.search("d1", 2), asyncio.create_task(house.service.following("d1", 2))]
            await house.submitted()
            house.backend.go_on.set()
            assert await asyncio.gather(*found) == [hits("d1", 2), hits("after d1", 2)]
            assert held is None or await held

    assert play(scene).batches[1:] == [(("d1",), 2), (("after", "d1"), 2)]


def test_a_backend_is_found_by_its_files_name(tmp_path, monkeypatch):
    """One file and no table: what a name in ``retrieval.backend`` opens is the class in the file of that name."""
    import retrieval_service.backends

    (tmp_path / "shelf.py").write_text(
        "from retrieval_service.backends.bm25 import Bm25, ensure\n"
        "class Backend(Bm25):\n    def __init__(self, index, config):\n        self.given = index, config.backend\n"
    )
    monkeypatch.setattr(retrieval_service.backends, "__path__", [*retrieval_service.backends.__path__, str(tmp_path)])
    config = RetrievalConfig(backend="shelf")
    assert open_backend(config, tmp_path).given == (tmp_path, "shelf")
    with pytest.raises(UserError, match=r"retrieval\.backend=shlef is not known; did you mean 'shelf'\?"):
        RetrievalConfig(backend="shlef")
