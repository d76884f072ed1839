"""From an episode to the retrieval actor and back: what shares a call, and whom a failure reaches."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import time
import types
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from lasting import Lent, lasting
from patience import until
from ray_fakes import PATIENCE_S, FakeRetrieval, ScriptedRetrieval, hits, result

from actors.calls import get
from actors.process import QUIET
from actors.pulse import Beats
from actors.retrieval import RetrievalActor, noted
from actors.searcher import RemoteSearcher
from agent.errors import Fault, RetrievalError, UserError
from agent.records import Passage
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import join_contents
from retrieval_service.rankers import index_for, open_backend

Fake = Callable[..., Any]


@pytest.fixture(scope="module")
def fakes(local_ray: None) -> Iterator[Lent]:
    fakes = Lent(lasting(FakeRetrieval))
    yield fakes
    fakes.end()


@pytest.fixture
def fake(fakes: Lent) -> Iterator[Fake]:
    """Makes fake retrieval actors. One that is ``harmed``, or starts again, has a process of its own."""
    actors = []

    def make(*, harmed: bool = False, restarts: int = 0, **settings: Any) -> Any:
        if harmed or restarts:
            options = {"num_cpus": 0, "max_concurrency": 100, "max_restarts": restarts}
            actors.append(ray.remote(FakeRetrieval).options(**options).remote(**settings))  # type: ignore[attr-defined]
            actor = actors[-1]
        else:
            actor = fakes.take(**settings)
        result(actor.ping.remote())  # it is up
        return actor

    yield make
    fakes.give_back()
    for actor in actors:
        ray.kill(actor)


def play(scenario: Coroutine[Any, Any, Any]) -> Any:
    async def patient() -> Any:
        return await asyncio.wait_for(scenario, PATIENCE_S)

    return asyncio.run(patient())


def later(searcher: RemoteSearcher, query: str, k: int = 2) -> asyncio.Task[Any]:
    return asyncio.ensure_future(searcher.search(query, k))


async def outcomes(*tasks: asyncio.Task[Any]) -> list[str]:
    """``found``, or the text of the ``RetrievalError``, of each."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, tuple | RetrievalError) for r in results), results
    return ["found" if isinstance(r, tuple) else str(r) for r in results]


async def outcomes_of(asked: Coroutine[Any, Any, Any]) -> list[str]:
    return await outcomes(asyncio.ensure_future(asked))


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is made while another is out, however long that is."""
    monkeypatch.setattr("actors.searcher.OVERTAKE_S", math.inf)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is left out is asked again at once."""
    monkeypatch.setattr("actors.searcher.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("actors.searcher.LONGEST_WAIT_S", 0.1)


async def turn() -> None:
    """Until all that was begun has been sent."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.slow
def test_what_waits_during_a_call_goes_out_together_in_the_next(fake: Fake, in_turn: None) -> None:
    actor = fake()

    async def scenario() -> None:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        first = later(searcher, "a")
        await turn()
        others = [later(searcher, q, k) for q, k in (("b", 2), ("c", 2), ("other k", 3), ("d", 2))]
        await turn()
        assert not first.done()
        await actor.go.remote()
        assert await first == hits("a", 2)
        await actor.go.remote()
        assert await asyncio.gather(*others[:2], others[3]) == [hits("b", 2), hits("c", 2), hits("d", 2)]
        assert not others[2].done()
        await actor.go.remote()
        assert await others[2] == hits("other k", 3)
        assert await actor.calls.remote() == [(["a"], 2), (["b", "c", "d"], 2), (["other k"], 3)]

    play(scenario())


@pytest.mark.slow
def test_a_quick_search_gets_past_a_slow_one(fake: Fake) -> None:
    actor = fake(held=False)

    async def scenario() -> None:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        slow = later(searcher, "wait")
        await turn()
        assert await searcher.search("quick", 2) == hits("quick", 2)
        assert not slow.done()
        await actor.go.remote()
        assert await slow == hits("wait", 2)

    play(scenario())


@pytest.mark.slow
def test_a_long_search_shares_no_call_with_short_ones(fake: Fake, in_turn: None) -> None:
    actor = fake(held=False)

    async def scenario() -> None:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        await asyncio.gather(*(searcher.search(q, 2) for q in ("a", "b" * 300, "c")))
        assert await actor.calls.remote() == [(["a", "c"], 2), (["b" * 300], 2)]

    play(scenario())


@pytest.mark.slow
def test_an_idle_searcher_sends_at_once_and_takes_its_actors_in_turn(fake: Fake) -> None:
    actors = [fake(held=False), fake(held=False)]

    async def scenario() -> None:
        searcher = RemoteSearcher(actors, timeout_s=PATIENCE_S)
        for query in "abcd":
            assert await searcher.search(query, 1) == hits(query, 1)

    play(scenario())
    assert result(actors[0].calls.remote()) == [(["a"], 1), (["c"], 1)]
    assert result(actors[1].calls.remote()) == [(["b"], 1), (["d"], 1)]


class Named(str):
    """A text that brings more along, as those of parsers do."""


@pytest.mark.parametrize(
    ("text", "k", "error"),
    [
        (None, 3, TypeError),
        (5, 3, TypeError),
        (["a"], 3, TypeError),
        ("a", [3], TypeError),
        ("a", 3.0, TypeError),
        ("a", True, TypeError),
        ("a", 0, ValueError),
        ("a", 10**10, ValueError),
    ],
)
def test_what_a_tool_of_ones_own_asks_wrongly_is_its_own_fault_and_holds_up_no_other(
    text: Any, k: Any, error: type[Exception]
) -> None:
    """It stood in the line for ever, and with it all that came later."""
    calls: list[Any] = []

    async def answer(queries: list[str], k: int) -> list[tuple[Any, ...]]:
        calls.append((queries, k))
        return [hits(query, k) for query in queries]

    method = types.SimpleNamespace(remote=answer)
    actor = types.SimpleNamespace(search_many=method, following_many=method)

    async def scenario() -> None:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        for ask in (searcher.search, searcher.following):
            with pytest.raises(error):
                await ask(text, k)
        assert await searcher.search(Named("b"), np.int64(2)) == hits("b", 2)  # type: ignore[arg-type]
        ((query,), number) = calls[0]
        assert (type(query), type(number)) == (str, int)

    play(scenario())


@pytest.mark.slow
def test_what_a_replica_has_no_room_for_waits_and_is_answered(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.searcher.ROOM", 5)
    monkeypatch.setattr("actors.searcher.CALL", 2)
    monkeypatch.setattr("actors.searcher.OVERTAKE_S", 0.0)
    actor = fake()

    async def scenario() -> None:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        tasks = [later(searcher, f"q{n}") for n in range(20)]
        while sum(len(queries) for queries, _ in await actor.calls.remote()) < 5:
            await asyncio.sleep(0.01)
        for _ in range(10):  # a round trip each: more would have come by now
            assert sum(len(queries) for queries, _ in await actor.calls.remote()) == 5
        await actor.go.remote(20)
        assert await asyncio.gather(*tasks) == [hits(f"q{n}", 2) for n in range(20)]

    play(scenario())


@pytest.mark.slow
def test_a_search_that_fails_fails_alone_once_another_replica_has_tried(fake: Fake) -> None:
    one, other = fake(held=False), fake(held=False)

    async def scenario(*actors: Any) -> list[str]:
        searcher = RemoteSearcher(actors, timeout_s=PATIENCE_S)
        return await outcomes(*(later(searcher, q) for q in ("b", "bad c", "d", "none e")))

    bad = ["found", "no luck with bad c", "found", "it answered with NoneType, not with passages"]
    assert play(scenario(one)) == bad
    assert result(one.calls.remote()) == [(["b", "bad c", "d", "none e"], 2)], "it would say the same again"
    assert play(scenario(one, other)) == bad
    assert result(other.calls.remote()) == [(["bad c", "none e"], 2)]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("query", "why"), [("raise c", "cannot search for that"), ("short c", "it gave 0 answers for 1 searches")]
)
def test_a_search_that_breaks_its_call_fails_alone(fake: Fake, query: str, why: str) -> None:
    actor = fake(held=False)

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        return await outcomes(*(later(searcher, q) for q in ("a", query, "b")))

    assert play(scenario()) == ["found", f"the retrieval actor failed: {why}", "found"]


def test_the_searches_of_a_replica_that_dies_are_answered_by_another(fake: Fake) -> None:
    actor, alive = fake(harmed=True), fake(held=False)

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], [alive], timeout_s=PATIENCE_S)
        dying = [later(searcher, "a"), later(searcher, "b")]
        while not await actor.calls.remote():
            await asyncio.sleep(0.01)
        assert await alive.calls.remote() == [], "it is only for when the near one fails"
        ray.kill(actor)
        return [*await outcomes(*dying), *await outcomes(later(searcher, "c"))]

    assert play(scenario()) == ["found"] * 3
    assert [q for queries, _ in result(alive.calls.remote()) for q in queries] == ["a", "b", "c"]


@pytest.mark.slow
def test_a_search_outlasts_the_restart_of_the_only_replica(fake: Fake, impatient: None) -> None:
    actor = fake(held=False, restarts=1)

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        waiting = later(searcher, "wait")
        while not await actor.calls.remote():
            await asyncio.sleep(0.01)
        os.kill(await actor.pid.remote(), signal.SIGKILL)
        more = later(searcher, "a")
        while not await calls_after_restart(actor):
            await asyncio.sleep(0.05)
        await actor.go.remote()
        return await outcomes(waiting, more)

    async def calls_after_restart(actor: Any) -> bool:
        try:
            return any("wait" in queries for queries, _ in await actor.calls.remote())
        except ray.exceptions.RayError:
            return False

    assert play(scenario()) == ["found", "found"]


@pytest.mark.slow
def test_a_replica_that_stands_still_is_left_out_until_it_goes_on(fake: Fake, impatient: None) -> None:
    still, other = fake(harmed=True, held=False), fake(held=False)
    pid = result(still.pid.remote())

    async def scenario() -> None:
        searcher = RemoteSearcher([still], [other], timeout_s=PATIENCE_S, ping_s=0.5)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await searcher.search("a", 2) == hits("a", 2)
            assert [queries for queries, _ in await other.calls.remote()] == [["a"]]
        finally:
            os.kill(pid, signal.SIGCONT)
        number = 0
        while not any(q.startswith("later") for queries, _ in await still.calls.remote() for q in queries):
            number += 1
            assert await searcher.search(f"later {number}", 2)

    play(scenario())


def test_without_any_replica_searches_fail_after_a_while_and_then_at_once(local_ray: None) -> None:
    actor = ray.remote(FakeRetrieval).remote()  # type: ignore[attr-defined]
    ray.kill(actor)

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=0.5)
        first = await outcomes(*(later(searcher, q) for q in "ab"))
        began = asyncio.get_running_loop().time()
        first += await outcomes(later(searcher, "c"))
        assert asyncio.get_running_loop().time() - began < 0.5, "it didn't wait"
        return first

    assert play(scenario()) == ["no retrieval actor answers: ActorDiedError"] * 3


def test_a_cancelled_search_hurts_no_other(fake: Fake, in_turn: None) -> None:
    actor = fake()

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        tasks = [later(searcher, "a")]
        await turn()
        tasks += [later(searcher, q) for q in ("b", "bad c", "d")]
        await turn()
        for task in tasks[:3]:
            task.cancel()
        await actor.go.remote(2)
        said = await outcomes(tasks[3])
        assert all(task.cancelled() for task in tasks[:3])
        assert (await actor.calls.remote())[1:] == [(["d"], 2)], "the others' episodes had gone"
        await actor.go.remote(1)
        return [*said, *(await outcomes(later(searcher, "e")))]

    assert play(scenario()) == ["found", "found"]


# --- the real thing --------------------------------------------------------------------------------


CORPUS = (
    ("d1", "Emma (novel)", "Emma is a novel by Jane Austen."),
    ("d2", "Heroes (album)", "David Bowie recorded it in Berlin."),
    ("d3", "Berlin", "Berlin is the capital of Germany."),
)


def _line(id: str, title: str, text: str) -> str:
    import json

    return json.dumps({"id": id, "contents": join_contents(title, text)}) + "\n"


def _actor(corpus: Path, lines: str, folder: Path) -> Any:
    """A retrieval actor over a corpus, as ``actors.topology`` makes it."""
    corpus.write_text(lines)
    config = RetrievalConfig(heap="128m", threads=1)
    return RetrievalActor.options(num_cpus=0, max_concurrency=100, runtime_env={"env_vars": QUIET}).remote(
        corpus, config, folder / "cache", folder / "logs", "retrieval"
    )


@dataclass(frozen=True)
class Library:
    """A retrieval actor, and what it said of its corpus at first, when that was a bad one."""

    actor: Any
    refusal: UserError
    folder: Path


@pytest.fixture(scope="module")
def library(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    folder = tmp_path_factory.mktemp("library")
    actor = _actor(folder / "corpus.jsonl", _line(*CORPUS[0]) + '{"id": "d2"}\n', folder)
    with pytest.raises(UserError) as refusal:
        get(actor.start.remote(), "retrieval", folder / "logs")
    (folder / "corpus.jsonl").write_text("".join(_line(*d) for d in CORPUS))
    yield Library(actor, refusal.value, folder)
    ray.kill(actor)


@pytest.mark.slow
@pytest.mark.jvm
def test_the_retrieval_actor_finds_passages_and_counts(library: Library) -> None:
    actor = library.actor
    found = result(actor.search_many.remote(["Jane Austen novel", "berlin", "xyzzy"], 2))  # starts by itself
    assert [[p.id for p in passages] for passages in found][0::2] == [["d1"], []]
    assert {p.id for p in found[1]} == {"d2", "d3"}
    assert (found[0][0].title, found[0][0].text) == CORPUS[0][1:]
    assert found[0][0].score > 0
    assert result(actor.start.remote()) is True

    async def scenario() -> list[Any]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        return await asyncio.gather(*(searcher.search(q, 1) for q in ("germany", "bowie", "berlin")))

    answers = play(scenario())
    assert [passages[0].id for passages in answers[:2]] == ["d3", "d2"]
    assert len(answers[2]) == 1
    stats = result(actor.stats.remote())
    assert stats.queries == 6
    after = play(RemoteSearcher([actor], timeout_s=PATIENCE_S).following("d1", 2))
    assert after == (), "the next passage has another title"
    (unknown,) = play(outcomes_of(RemoteSearcher([actor], timeout_s=PATIENCE_S).following("d9", 2)))
    assert unknown.endswith("the index holds no passage 'd9'")
    assert (library.folder / "cache" / "indexes").is_dir()


def test_each_search_that_is_answered_is_work_of_the_actor() -> None:
    """A slow ranker may need minutes for a call of many: it gets on all the same (``cluster.deadlines.search``)."""

    async def scenario() -> list[int]:
        go, work = asyncio.Event(), list[int]()

        async def search(query: str, k: int) -> tuple[Passage, ...]:
            if query != "quick":
                await go.wait()
            if query == "wrong":
                raise RetrievalError("it can't be read")
            return hits(query, k)

        kind: Any = RetrievalActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
        actor = kind.__new__(kind)
        actor._beats, actor._service = Beats(), SimpleNamespace(search=search)
        call = asyncio.ensure_future(actor.search_many(["quick", "slow", "wrong"], 1))
        for _ in range(10):
            await asyncio.sleep(0)
        work.append(actor._beats._work["search"])
        go.set()
        assert await call == [hits("quick", 1), hits("slow", 1), "it can't be read"]
        return [*work, actor._beats._work["search"]]

    assert asyncio.run(scenario()) == [2, 5], "its begin and a search, two more, and its end"


@pytest.fixture
def scripted(local_ray: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes real retrieval actors over scripted backends."""
    actors = []

    def make(timeout_s: float, seconds: float = 0.0) -> Any:
        options = {"num_cpus": 0, "max_concurrency": 1000, "max_restarts": -1}
        actors.append(ScriptedRetrieval.options(**options).remote(tmp_path, timeout_s, seconds))
        result(actors[-1].ping.remote())
        return actors[-1]

    yield make
    for actor in actors:
        ray.kill(actor)


@pytest.mark.slow
def test_a_thread_that_hangs_ends_its_process_and_ray_starts_another(
    scripted: Callable[..., Any], impatient: None, tmp_path: Path
) -> None:
    actor = scripted(timeout_s=1.0)

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        hung = await outcomes(later(searcher, "hang"))
        log = tmp_path / "retrieval.log"
        async with asyncio.timeout(PATIENCE_S):
            while log.read_text().count("] retrieval, niceness") < 2:
                await asyncio.sleep(0.05)
        while (after := await outcomes(later(searcher, "b"))) == ["the search took longer than 1 s: 'b'"]:
            pass  # a slow machine
        return hung + after

    hung, after = play(scenario())
    assert hung == "the search took longer than 1 s: 'hang'"
    assert after == "found"
    log = (tmp_path / "retrieval.log").read_text()
    assert "[slingshot] retrieval: a search has not come back for 2 s; this process ends, so that Ray starts" in log
    assert "in search_batch" in log, "where it hung"


@pytest.mark.slow
def test_a_process_in_place_of_another_searches_the_same_or_refuses(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    actor = scripted(timeout_s=PATIENCE_S)
    result(actor.start.remote())
    note, log = noted(tmp_path, "retrieval"), tmp_path / "retrieval.log"
    note.write_text(note.read_text().replace("scripted", "another", 1))  # as if that had been searched
    ray.kill(actor, no_restart=False)
    until(lambda: log.read_text().count("] retrieval, niceness") > 1)

    def reached() -> bool:
        """Ray refuses calls until it has told this process, too, that the actor is up again."""
        try:
            result(actor.ping.remote())
        except ray.exceptions.RayActorError:
            return False
        return True

    until(reached)
    with pytest.raises(Fault, match="has changed since the start: name 'scripted' in place of 'another'; put it back"):
        get(actor.start.remote(), "retrieval", tmp_path)


@pytest.mark.slow
def test_what_could_not_be_opened_is_tried_again(local_ray: None, tmp_path: Path) -> None:
    actor = _actor(tmp_path / "corpus.jsonl", "", tmp_path)  # an empty corpus
    with pytest.raises(UserError):
        get(actor.start.remote(), "retrieval", tmp_path / "logs")
    (tmp_path / "corpus.jsonl").write_text("".join(_line(*d) for d in CORPUS))
    assert result(actor.start.remote()) is True
    ray.kill(actor)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_thousand_searches_where_three_hundred_fit_are_all_answered(
    scripted: Callable[..., Any], replicas: int
) -> None:
    """A search takes 10 ms, and may take 3 s: 300 would be answered in time if all were asked at once."""
    actors = [scripted(timeout_s=3.0, seconds=0.01) for _ in range(replicas)]
    for actor in actors:
        result(actor.start.remote())

    async def timed(searcher: RemoteSearcher, query: str) -> float:
        began = time.monotonic()
        assert await searcher.search(query, 2) == hits(query, 2)
        return time.monotonic() - began

    async def scenario() -> list[float]:
        workers = [RemoteSearcher(actors, timeout_s=3.0) for _ in range(2)]
        return await asyncio.gather(*(timed(workers[n % 2], f"q{n}") for n in range(1000)))

    seconds = sorted(play(scenario()))
    stats = [result(actor.stats.remote()) for actor in actors]
    print(f"{replicas} replica(s): median {seconds[499]:.2f} s, 99th percentile {seconds[989]:.2f} s")
    assert len(seconds) == 1000
    assert sum(s.timeouts + s.failures for s in stats) == 0
    assert seconds[-1] > 3.0, "more than fits"


@pytest.mark.slow
@pytest.mark.jvm
def test_200_000_searches_under_ray_give_what_lucene_gives(local_ray: None, tmp_path: Path) -> None:
    """Of 64 clients at once; none is answered from a cache, and the actor is the same process to the end."""
    rng = random.Random(0)
    words = [f"w{n}" for n in range(3000)]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(_line(f"d{n}", f"Title {n}", " ".join(rng.choices(words, k=30))) for n in range(5000))
    )
    queries = [" ".join(rng.choices(words, k=4)) for _ in range(4000)]
    config = RetrievalConfig(cache_size=0)
    index = index_for(tmp_path / "corpus.jsonl", config, tmp_path / "cache")
    direct = open_backend(config, index)
    expected = dict(zip(queries, direct.search_batch(queries, 3), strict=True))
    direct.close()
    actor = RetrievalActor.options(num_cpus=0, max_concurrency=1000, runtime_env={"env_vars": QUIET}).remote(
        tmp_path / "corpus.jsonl", config, tmp_path / "cache", tmp_path / "logs", "retrieval"
    )
    searches, clients = 200_000, 64

    async def scenario() -> int:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        numbers = iter(range(searches))

        async def client() -> int:
            wrong = 0
            for number in numbers:
                query = queries[number % len(queries)]
                wrong += await searcher.search(query, 3) != expected[query]
            return wrong

        return sum(await asyncio.gather(*(client() for _ in range(clients))))

    assert play(scenario()) == 0
    stats = result(actor.stats.remote())
    assert (stats.queries, stats.failures, stats.timeouts, stats.cache_hits) == (searches, 0, 0, 0)
    ray.kill(actor)


@pytest.mark.slow
@pytest.mark.jvm
def test_a_bad_corpus_is_the_users_mistake_with_file_and_line(library: Library) -> None:
    said = str(library.refusal)
    assert "corpus.jsonl" in said
    assert "line 2" in said
    assert '"contents"' in said
    assert "\n" not in said
