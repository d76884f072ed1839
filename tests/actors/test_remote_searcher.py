"""From an episode to the retrieval actor and back: what shares a call, and whom a failure reaches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray_fakes import PATIENCE_S, FakeRetrieval, hits, result

from actors.calls import get
from actors.process import QUIET
from actors.retrieval import RemoteSearcher, RetrievalActor
from agent.errors import RetrievalError, UserError
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import join_contents

Fake = Callable[..., Any]


@pytest.fixture
def fake(local_ray: None) -> Iterator[Fake]:
    """Makes fake retrieval actors."""
    actors = []

    def make(**settings: Any) -> Any:
        actors.append(FakeRetrieval.options(num_cpus=0, max_concurrency=100).remote(**settings))
        return actors[-1]

    yield make
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


def test_what_waits_during_a_call_goes_out_together_in_the_next(fake: Fake) -> None:
    actor = fake()

    async def scenario() -> None:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        first = later(searcher, "a")
        await asyncio.sleep(0)
        others = [later(searcher, q, k) for q, k in (("b", 2), ("c", 2), ("other k", 3), ("d", 2))]
        await asyncio.sleep(0)
        assert not first.done()
        await actor.go.remote()
        assert await first == hits("a", 2)
        assert not any(task.done() for task in others)
        await actor.go.remote(2)
        assert await asyncio.gather(*others) == [hits("b", 2), hits("c", 2), hits("other k", 3), hits("d", 2)]
        calls = await actor.calls.remote()
        assert calls[0] == (["a"], 2)
        assert sorted(calls[1:]) == [(["b", "c", "d"], 2), (["other k"], 3)]

    play(scenario())


def test_an_idle_searcher_sends_at_once_and_takes_its_actors_in_turn(fake: Fake) -> None:
    actors = [fake(held=False), fake(held=False)]

    async def scenario() -> None:
        searcher = RemoteSearcher(actors, timeout_s=PATIENCE_S)
        for query in "abcd":
            assert await searcher.search(query, 1) == hits(query, 1)

    play(scenario())
    assert result(actors[0].calls.remote()) == [(["a"], 1), (["c"], 1)]
    assert result(actors[1].calls.remote()) == [(["b"], 1), (["d"], 1)]


def test_a_search_that_fails_fails_alone(fake: Fake) -> None:
    actor = fake()

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        tasks = [later(searcher, "a")]
        await asyncio.sleep(0)
        tasks += [later(searcher, q) for q in ("b", "bad c", "d")]
        await actor.go.remote(2)
        return await outcomes(*tasks)

    assert play(scenario()) == ["found", "found", "no luck with bad c", "found"]


def test_an_error_out_of_the_actor_fails_the_searches_of_that_call(fake: Fake) -> None:
    actor = fake()

    async def scenario() -> tuple[list[str], Any]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        tasks = [later(searcher, "a")]
        await asyncio.sleep(0)
        tasks += [later(searcher, q) for q in ("b", "raise c")]
        await actor.go.remote(3)
        failed = await outcomes(*tasks)
        return failed, await searcher.search("d", 2)

    (a, b, c), d = play(scenario())
    assert a == "found"
    assert b == c
    assert b.startswith("the retrieval actor failed: RayTaskError")
    assert d == hits("d", 2)


def test_an_actors_death_fails_its_searches_and_those_that_come_later(fake: Fake) -> None:
    actor, alive = fake(), fake(held=False)

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor, alive], timeout_s=PATIENCE_S)
        dying = later(searcher, "die")
        await asyncio.sleep(0)
        waiting = [later(searcher, "b"), later(searcher, "c")]
        actor.go.remote()  # which may not live to answer
        said = await outcomes(dying, *waiting)
        return [*said, *(await outcomes(later(searcher, "d"))), *(await outcomes(later(searcher, "e")))]

    said = play(scenario())
    assert said[0].startswith("the retrieval actor failed: ")
    assert said[1:3] == ["found", "found"]  # by the other one
    assert said[3].startswith("the retrieval actor failed: ")
    assert said[4] == "found"


def test_an_actor_that_never_answers_is_given_up(fake: Fake) -> None:
    actor = fake()

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=-9.9)  # 10 s are added to the service's own time-out
        return await outcomes(later(searcher, "a"))

    assert play(scenario()) == ["the retrieval actor failed: TimeoutError"]


def test_a_cancelled_search_hurts_no_other(fake: Fake) -> None:
    actor = fake()

    async def scenario() -> list[str]:
        searcher = RemoteSearcher([actor], timeout_s=PATIENCE_S)
        tasks = [later(searcher, "a")]
        await asyncio.sleep(0)
        tasks += [later(searcher, q) for q in ("b", "bad c", "d")]
        await asyncio.sleep(0)
        for task in tasks[:3]:
            task.cancel()
        await actor.go.remote(2)
        said = await outcomes(tasks[3])
        assert all(task.cancelled() for task in tasks[:3])
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


@pytest.fixture
def retrieval(local_ray: None, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Makes a retrieval actor over a corpus, as ``actors.topology`` does."""
    actors = []

    def make(lines: str) -> Any:
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text(lines)
        env = {**QUIET, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}
        config = RetrievalConfig(heap="128m", threads=1)
        actors.append(
            RetrievalActor.options(num_cpus=0, max_concurrency=100, runtime_env={"env_vars": env}).remote(
                corpus, config, tmp_path / "cache", tmp_path / "logs", "retrieval"
            )
        )
        return actors[-1]

    yield make
    for actor in actors:
        ray.kill(actor)


@pytest.mark.jvm
def test_the_retrieval_actor_finds_passages_and_counts(retrieval: Callable[[str], Any], tmp_path: Path) -> None:
    actor = retrieval("".join(_line(*d) for d in CORPUS))
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
    assert (tmp_path / "cache" / "indexes").is_dir()


@pytest.mark.jvm
def test_a_bad_corpus_is_the_users_mistake_with_file_and_line(retrieval: Callable[[str], Any], tmp_path: Path) -> None:
    actor = retrieval(_line(*CORPUS[0]) + '{"id": "d2"}\n')
    with pytest.raises(UserError) as error:
        get(actor.start.remote(), "retrieval", tmp_path / "logs")
    assert "corpus.jsonl" in str(error.value)
    assert "line 2" in str(error.value)
    assert '"contents"' in str(error.value)
    assert "\n" not in str(error.value)
