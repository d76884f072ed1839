"""The order of a run, over fake parts that refuse to be used out of order.

    step ─► deliver ─► [evaluate] ─► release ─► [checkpoint]      the pool is closed before the last release

No Ray: what ``.remote`` returns is the result itself, and the fake workers hands it on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors import parts, record, run_state, saving, supervisor
from actors.calls import Died
from actors.prepare import Prepared
from actors.provenance import Provenance
from actors.reports import Released, StepReport, Unsound
from actors.saving import _in_thread as in_thread
from actors.supervisor import Supervisor
from actors.totals import Totals
from agent.config import GroupConfig
from agent.errors import Fault, Stopped
from agent.inference.evaluation import EvalRow
from agent.pool import saved
from agent.pool.history import DRAW
from agent.pool.rules.epoch import Rule as Epoch
from agent.records import Question
from conf.schema import CheckpointConfig, EvalConfig, RunConfig
from conf.topology import ClusterConfig
from learner.checkpoint import checkpoints, latest
from learner.config import AlgorithmConfig, SeedingConfig, WarmStartConfig
from learner.manifest import Files, listed, one
from retrieval_service.backend import Identity
from retrieval_service.stats import Stats
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.draws import read_draws, write_draws
from tracking.metrics import read
from tracking.progress import Phase
from tracking.trackers.several import Trackers

QUESTION = Question(id="q", text="who?", golden_answers=("she",))
ROW = EvalRow(
    question_id="q",
    kind="",
    answer=None,
    em=0.0,
    f1=0.0,
    evidence=None,
    searches=0,
    action_tokens=1,
    stop_reason="answered",
    fault=False,
)


class Remote:
    """An actor's handle whose calls happen at once: ``actor.method.remote(...)`` returns the result."""

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return SimpleNamespace(remote=value) if callable(value) and not name.startswith("_") else value


class World:
    """What has happened so far, in order, and what the fakes know of each other."""

    def __init__(
        self,
        *,
        barren: tuple[int, ...] = (),
        unsound: Mapping[int, Unsound] | None = None,
        faults: tuple[int, ...] = (),
        interrupt: tuple[str, ...] = (),
        deaf: int = 0,
        searches: float = 1.0,
        signal_number: signal.Signals = signal.SIGINT,
        full: tuple[int, ...] = (),
        ems: Mapping[int, float] | None = None,
        shaky: tuple[int, ...] = (),
        deaths: Mapping[str, str] | None = None,
    ) -> None:
        self.events: list[str] = []
        self.searches = searches
        """Of an episode, in every step."""
        self.deaf = deaf
        """Searches that the retrieval fails."""
        self.barren = barren
        """Batches that nothing can be learnt from."""
        self.unsound = unsound or {}
        """Batches (of the seeding's pool, where there is one) in which every episode ends in a fault, and which."""
        self.faults = faults
        """Versions with which every episode of an evaluation ends in a fault."""
        self.interrupt = list(interrupt)
        """Events during which Ctrl-C is pressed, or another signal comes."""
        self.signal_number = signal_number
        self.full = full
        """Steps at which the disk is full."""
        self.ems = ems or {}
        """By version, the share of right answers in an evaluation; else none is right."""
        self.shaky = shaky
        """Versions with which the first episode of an evaluation ends in a fault, whenever it is played."""
        self.published = 0
        self.delivered: int | None = None
        self.released = 0
        self.closed = False
        self.asleep = False
        self.turns = False
        """Learner and engines share a card."""
        self.serving: Any = None
        """The pool that the workers play for."""
        self.parts: dict[str, Any] = {}
        self.deaths = dict(deaths or {})
        """Events during which one of learner and pool dies, and which."""
        self.dead: str | None = None
        self.model_of: list[str | None] = []
        """The checkpoints whose model the learners were started with."""

    def ended(self, name: str) -> None:
        """A part is no more, and others may come. What a pool and a learner have counted ends with them."""
        del self.parts[name.replace("-", " ")]
        self.dead, self.closed, self.released, self.published = None, False, 0, 0

    def happens(self, event: str) -> None:
        self.events.append(event)
        if event in self.deaths:
            self.dead = self.deaths.pop(event)
            raise Died(f"{self.dead} died")
        if event in self.interrupt:
            self.interrupt.remove(event)
            os.kill(os.getpid(), self.signal_number)


WRITTEN = ("model.safetensors", "config.json", "training/learner.pt")


class FakeLearner(Remote):
    def __init__(self, world: World) -> None:
        self._world = world
        self._copied: tuple[int, str] | None = None
        self._step = self._batch = 0

    def start(self) -> int:
        return 1000

    def warm_start(self, cached: Path, imitated: Any) -> dict[str, Any]:
        assert cached.parts[-2:] == ("warm_start", "the key")
        assert imitated == "episodes"
        assert self._world.asleep == self._world.turns
        self._world.happens("warm start")
        return {"steps": 5, "cached": False, "seconds": 1.0, "loss": 0.5}

    def begin_seeding(self, experts: tuple[Any, ...]) -> Any:
        assert [e.question for e in experts] == [QUESTION]
        self._world.happens("begin seeding")
        return SimpleNamespace(version=self._world.published)

    def seed(self, pool: Any) -> StepReport:
        world = self._world
        assert pool is world.parts["seeding pool"]
        assert world.serving is pool, "a batch that nobody plays"
        assert world.delivered == world.published, "a step while workers hold old weights"
        assert world.asleep == world.turns
        pool.taken += 1
        if why := world.unsound.get(pool.taken - 1):
            world.happens(f"unsound seed {pool.taken}")
            return unsound(pool.taken - 1, world.published, why)
        world.happens(f"seed {pool.taken}")
        world.published += 1
        metrics = {"learner/expert_sequences": 1}
        published = SimpleNamespace(version=world.published)
        return StepReport(
            batch=pool.taken - 1,
            version=world.published,
            published=published,
            rollouts=8,
            generated_tokens=100,
            metrics=metrics,
        )

    def begin(self, checkpoint: Path | None) -> Any:
        if checkpoint is not None:
            self._step = self._batch = self._world.published = run_state.load(checkpoint).step
        self._world.happens(f"begin {self._step}")
        return SimpleNamespace(version=self._world.published)

    def take(self, pool: Any) -> int:
        assert self._world.serving is pool, "a batch that nobody plays"
        assert not self._world.asleep, "a batch that nobody plays"
        self._world.happens("take")
        return self._step

    def step(self, pool: Any) -> StepReport:
        world = self._world
        assert world.asleep == world.turns
        assert pool is world.parts["pool"]
        assert world.serving is pool, "a batch that nobody plays"
        assert not world.closed, "a batch of a closed pool"
        assert world.delivered == world.published, "a step while workers hold old weights"
        assert world.released == self._batch, "a step before the last batch was released"
        batch, self._batch = self._batch, self._batch + 1
        if why := world.unsound.get(batch):
            world.happens(f"unsound batch {batch}")
            return unsound(batch, world.published, why)
        self._step += 1
        world.happens(f"step {self._step}")
        published = None
        if batch not in world.barren:
            world.published += 1
            published = SimpleNamespace(version=world.published)
        metrics = {
            "groups/signal": 1,
            "groups/too_easy": 0,
            "groups/too_hard": 0,
            "reward/mean": 0.5,
            "search/mean": world.searches,
            "rollout/tokens_per_s": 10.0,
            "rollout/mismatch": 0.0,
            "weights/put_s": 0.25,
        }
        return StepReport(
            batch=batch,
            version=world.published,
            published=published,
            rollouts=8,
            generated_tokens=100,
            metrics=metrics,
        )

    def copy_for_saving(self, folder: Path) -> None:
        assert self._world.released == self._batch, "a checkpoint before the release"
        assert self._copied is None, "the one before hasn't been written"
        self._copied = self._step, f"weights {self._world.published}"
        self._world.happens(f"save {self._step}")

    def save(self, folder: Path) -> Files:
        """In a thread of its own, while the next step is under way."""
        assert self._copied is not None
        (step, weights), self._copied = self._copied, None
        if step in self._world.full:
            raise Fault(f"learner: OSError: {folder}/model.safetensors: No space left on device")
        (folder / "model.safetensors").write_text(weights)
        (folder / "config.json").write_text("{}")
        (folder / "training" / "learner.pt").write_text("")
        return {k: v for name in WRITTEN for k, v in one(folder, name).items()}


def unsound(batch: int, version: int, why: Unsound) -> StepReport:
    return StepReport(
        batch=batch, version=version, published=None, rollouts=8, generated_tokens=0, metrics={}, unsound=why
    )


class FakePool(Remote):
    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self._world.released = saved.load(checkpoint / "training")["released"]

    def release(self, batch: int, *, checkpoint: Path | None = None, draws: Path | None = None) -> Released:
        world = self._world
        assert batch == world.released
        assert world.delivered == world.published, "released before the workers hold the weights"
        assert (checkpoint is None) == (draws is None)
        world.released += 1
        world.happens(f"release {world.released}{' with state' if checkpoint else ''}")
        if checkpoint is not None:
            (checkpoint / "training").mkdir()
            saved.save(checkpoint / "training", {"released": world.released, "weight": np.full(3, world.released)})
            write_draws(draws, np.zeros(world.released, DRAW), ["q"])
            return Released(files=listed(checkpoint))
        return Released(files={})

    def report(self) -> dict[str, Any]:
        account = {"received": 1, "accepted": 1, "returned": {"zero_variance": 2}, "in_flight": 0}
        return {
            "places": {"available": 3, "resting": 2, "consumed": 4, "quarantined": 1},
            "seen": {"too_hard": 5},
            "flipped_share": 0.25,
            "late_groups": 6,
            "accounts": {"groups": account},
        }

    def worker_lost(self, worker: str) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self._world.closed = True
        self._world.happens("close")


class FakeSeedingPool(Remote):
    def __init__(self, world: World) -> None:
        self._world = world
        self.taken = self.released = 0
        self.closed = False

    def start(self) -> None: ...

    def release(self, batch: int) -> None:
        world = self._world
        assert batch == self.released == self.taken - 1
        assert world.delivered == world.published, "released before the workers hold the weights"
        self.released += 1
        world.happens(f"release seed {self.released}")

    def close(self) -> None:
        self.closed = True
        self._world.happens("close seeding")


INDEX = Identity(name="corpus.jsonl", backend="bm25", documents=3, checksum="c", analyser="porter")


class FakeRetrieval(Remote):
    def __init__(self, world: World) -> None:
        self._world = world

    def start(self) -> bool:
        return True

    def identity(self) -> Identity:
        return INDEX

    def search_many(self, queries: list[str], k: int) -> list[Any]:
        world = self._world
        assert (len(queries), k) == (1, 1)
        failed, world.deaf = world.deaf > 0, max(0, world.deaf - 1)
        world.happens("search fails" if failed else "search is answered")
        return ["timeout"] if failed else [()]

    def stats(self) -> Stats:
        return Stats(
            queries=1, cache_hits=0, shared=0, batches=1, failures=0, timeouts=0, qps=7.0, p50_s=0.1, p99_s=0.5
        )


class FakeTopology:
    def __init__(self, world: World, run_dir: Path) -> None:
        self.world = world
        self.log_dir = run_dir / "logs"
        self.followers: dict[str, Any] = {}

    def _part(self, name: str, part: Any) -> Any:
        assert name not in self.world.parts, "there is one already"
        self.world.parts[name] = part
        return part

    def retrieval(self) -> Any:
        return {"": self._part("retrieval", FakeRetrieval(self.world))}

    def learner(self, checkpoint: Path | None) -> Any:
        self.world.model_of.append(checkpoint and checkpoint.name)
        return self._part("learner", FakeLearner(self.world))

    def pool(self, questions: tuple[Question, ...]) -> Any:
        assert questions == (QUESTION,)
        return self._part("pool", FakePool(self.world))

    def seeding_pool(self, questions: tuple[Question, ...]) -> Any:
        assert questions == (QUESTION,)
        return self._part("seeding pool", FakeSeedingPool(self.world))


class FakeHealth:
    """Who is watched, and who dies by ``World.deaths``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._watched: set[str] = set()

    def watch(self, name: str, actor: Any, lost: Any, *, restarts: bool = False) -> None:
        assert name not in self._watched, "the one before was not forgotten"
        self._watched.add(name)

    def forget(self, name: str) -> None:
        self._watched.discard(name)

    def look(self) -> None: ...

    def answer(self, value: Any, name: str) -> Any:
        return value

    def gone(self, *names: str) -> dict[str, Died]:
        gone = [name for name in names if name in self._watched and name == self._world.dead]
        return {name: Died(f"{name} died (ActorDiedError); its last lines:\nlearner's log") for name in gone}

    def end(self, name: str) -> None:
        if name in self._watched:
            self._watched.discard(name)
            self._world.ended(name)


class FakeWorkerPool:
    restarts = 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.idle = lambda: None

    def forget(self) -> None:
        self.world.serving = self.world.delivered = None
        self.world.happens("forget")

    def wait(self, value: Any, actor: str) -> Any:
        assert actor in ("learner", "pool", "seeding-pool", "retrieval")
        return value

    def sleep(self) -> None:
        assert self.world.turns
        if self.world.asleep:  # a learner was lost in its turn
            assert self.world.delivered is None
            return
        self.world.asleep = True
        self.world.happens("sleep")

    def wake(self) -> None:
        assert self.world.asleep
        self.world.asleep = False
        self.world.happens("wake")

    def deliver(self, published: Any) -> float:
        assert not self.world.asleep, "weights for engines that sleep"
        assert published.version == self.world.published, "not the newest version"
        self.world.delivered = published.version
        self.world.happens(f"deliver {published.version}")
        return 0.5

    def serve(self, pool: Any, group: GroupConfig) -> None:
        world = self.world
        assert world.delivered is not None
        assert world.serving is None, "the workers still play for another pool"
        seeding = pool is not world.parts["pool"]
        assert group.strategy == ("plain" if seeding else "continuation")
        world.serving = pool
        world.happens("serve the seeding" if seeding else "serve")

    def rest(self) -> None:
        assert self.world.serving.closed, "workers that wait for a claim never rest"
        self.world.serving = None
        self.world.happens("rest")

    def evaluate(
        self,
        questions: tuple[Question, ...],
        played: Callable[[int, int], None] | None = None,
        *,
        step: int,
        chunk: int,
        keep: Callable[[list[EvalRow]], None],
    ) -> list[EvalRow]:
        assert self.world.delivered == self.world.published
        self.world.happens(f"evaluate version {self.world.delivered}")
        self.idle()
        if played is not None:
            played(len(questions), len(questions))
        broken = replace(ROW, stop_reason="generation_failed", fault=True, error="head size 16")
        row = replace(ROW, em=self.world.ems.get(self.world.delivered or 0, 0.0))
        if self.world.delivered in self.world.shaky:
            return [broken, *[row] * (len(questions) - 1)]
        return [broken if self.world.delivered in self.world.faults else row] * len(questions)

    def dismiss(self) -> None:
        assert self.world.closed or not self.world.serving, "workers that wait for a claim never end"
        self.world.happens("dismiss")


Play = Callable[..., tuple[Supervisor, dict[str, Any]]]


def ended(work: Callable[[], Path]) -> Future[Path]:
    future = in_thread(work)
    wait([future])
    return future


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays a run of ``steps`` in a world; its supervisor and its summary."""

    def run(
        world: World,
        steps: int,
        *,
        evaluate_every: int = 0,
        save_every: int = 0,
        keep: int = 0,
        budget: int = 0,
        token_budget: int = 0,
        warm_start: int = 0,
        seeding: int = 0,
        resume: Path | None = None,
        folder: str = "run",
        turns: bool = False,
        best: bool = False,
    ) -> tuple[Supervisor, dict[str, Any]]:
        run_dir = tmp_path / folder
        world.turns = turns
        monkeypatch.setattr(parts, "Topology", lambda *_: FakeTopology(world, run_dir))
        monkeypatch.setattr(parts, "WorkerPool", lambda *_, **__: FakeWorkerPool(world))
        monkeypatch.setattr(parts, "Health", lambda *_: FakeHealth(world))
        monkeypatch.setattr(supervisor, "get", lambda value, actor, log_dir: value)
        monkeypatch.setattr(saving, "_in_thread", ended)  # a checkpoint is written before the next step is done
        monkeypatch.setattr(record, "RayMetrics", lambda: SimpleNamespace(set=lambda row: None))
        config = RunConfig(
            pool=Epoch(),
            group=GroupConfig(strategy="continuation"),
            cluster=ClusterConfig(device="cuda" if turns else "cpu", colocated=turns),
            algorithm=AlgorithmConfig(
                steps=steps,
                rollout_budget=budget,
                token_budget=token_budget,
                warm_start=WarmStartConfig(steps=warm_start),
                seeding=SeedingConfig(steps=seeding),
            ),
            evaluation=EvalConfig(every=evaluate_every),
            checkpoints=CheckpointConfig(every=save_every, keep=keep, every_minutes=0, best=best),
        )
        task: Any = SimpleNamespace(name="fake", train=(QUESTION,), eval=(QUESTION, QUESTION), corpus=tmp_path)
        experts: Any = (SimpleNamespace(question=QUESTION),)
        prepared = Prepared(
            task=task, model_path="nowhere", warm_start_key="the key", experts=experts, imitated="episodes"
        )
        driver = Supervisor(
            config,
            prepared,
            run_dir,
            Console(quiet=True),
            resume=resume,
            trackers=Trackers({}, Dispensable(pytest.fail)),
            made_with=Provenance(settings={}, data={}),
            extras=Dispensable(pytest.fail),
        )
        with driver.watch.whole(Totals.steps(config.algorithm)):
            return driver, driver.train()

    return run


def without_kind(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "kind"}


BEGINNING = ["begin 0", "deliver 0", "evaluate version 0", "serve"]


def test_each_step_publishes_before_it_releases(play: Play) -> None:
    world = World()
    play(world, 3)
    assert world.events == [
        *BEGINNING,
        *("step 1", "deliver 1", "release 1"),
        *("step 2", "deliver 2", "release 2"),
        *("step 3", "deliver 3", "evaluate version 3", "close", "release 3 with state", "save 3"),
        "dismiss",
    ]


def test_evaluation_comes_before_the_release_and_the_checkpoint_after_it(play: Play) -> None:
    world = World()
    play(world, 4, evaluate_every=2, save_every=3)
    assert world.events[len(BEGINNING) :] == [
        *("step 1", "deliver 1", "release 1"),
        *("step 2", "deliver 2", "evaluate version 2", "release 2"),
        *("step 3", "deliver 3", "release 3 with state", "save 3"),
        *("step 4", "deliver 4", "evaluate version 4", "close", "release 4 with state", "save 4"),
        "dismiss",
    ]


def test_a_warm_start_comes_before_the_first_version(play: Play) -> None:
    world = World()
    play(world, 1, warm_start=5)
    assert world.events[:3] == ["warm start", "begin 0", "deliver 0"]


def test_expert_seeding_comes_between_the_warm_start_and_the_first_step(play: Play) -> None:
    world = World()
    driver, summary = play(world, 1, warm_start=5, seeding=2)
    assert world.events == [
        *("warm start", "begin seeding", "deliver 0", "serve the seeding"),
        *("seed 1", "deliver 1", "release seed 1"),
        *("seed 2", "deliver 2", "close seeding", "release seed 2", "rest"),
        *("begin 0", "deliver 2", "evaluate version 2", "serve"),
        *("step 1", "deliver 3", "evaluate version 3", "close", "release 1 with state", "save 1", "dismiss"),
    ]
    events = [e for e in read(driver.record.metrics.path, "event") if e["event"] == "seeding"]
    assert [(e["step"], e["version"], e["learner/expert_sequences"]) for e in events] == [(1, 1, 1), (2, 2, 1)]
    assert (summary["rollouts"], summary["generated_tokens"]) == (3 * 8, 3 * 100), "what the seeding cost counts"
    assert summary["first_eval"]["rollouts"] == 16


def test_a_resumed_run_is_not_seeded_again(play: Play) -> None:
    driver, _ = play(World(), 1, seeding=1)
    world = World()
    play(world, 2, seeding=1, resume=latest(driver.run_dir / "checkpoints"), folder="again")
    assert not [event for event in world.events if "seed" in event]


def test_a_step_that_learnt_nothing_delivers_nothing_and_releases_its_batch(play: Play) -> None:
    world = World(barren=(1,))
    driver, _ = play(world, 3)
    assert world.events[len(BEGINNING) :][:8] == [
        *("step 1", "deliver 1", "release 1"),
        *("step 2", "release 2"),
        *("step 3", "deliver 2", "evaluate version 2"),
    ]
    rows = read(driver.record.metrics.path, "step")
    assert [row["version"] for row in rows] == [1, 1, 2]
    assert [row["weights/publish_s"] for row in rows] == [0.75, 0.25, 0.75]


# --- where everything fails ------------------------------------------------------------------------

BY_ENGINES = Unsound(why="generation_failed: head size 16", lasting=True)
NO_SEARCH = Unsound(why="retrieval_failed: the retrieval actor failed", lasting=False)
STRUCK = Unsound(why="retrieval_failed: timeout", lasting=False, struck=True)


def test_a_batch_without_a_sound_trajectory_is_no_step(play: Play) -> None:
    world = World(unsound={1: NO_SEARCH, 2: NO_SEARCH, 3: BY_ENGINES})
    driver, summary = play(world, 2)
    assert world.events[len(BEGINNING) :] == [
        *("step 1", "deliver 1", "release 1"),
        *("unsound batch 1", "release 2", "unsound batch 2", "release 3", "unsound batch 3", "release 4"),
        *("step 2", "deliver 2", "evaluate version 2", "close", "release 5 with state", "save 2"),
        "dismiss",
    ]
    assert [row["step"] for row in read(driver.record.metrics.path, "step")] == [1, 2]
    events = [e for e in read(driver.record.metrics.path, "event") if e["event"] == "unsound_batch"]
    assert [(e["batch"], e["why"]) for e in events] == [(1, NO_SEARCH.why), (2, NO_SEARCH.why), (3, BY_ENGINES.why)]
    assert summary["step"] == 2
    assert summary["rollouts"] == 5 * 8, "what was played has cost something"


def test_after_failed_searches_nothing_is_played_until_they_are_answered(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release, with which the next batch opens, waits for it."""
    monkeypatch.setattr("actors.searching.ASK_EVERY_S", 0.0)
    world = World(unsound={1: STRUCK}, deaf=2)
    play(world, 2)
    assert world.events[len(BEGINNING) :][3:8] == [
        *("unsound batch 1", "search fails", "search fails", "search is answered", "release 2"),
    ]


@pytest.mark.parametrize(("searches", "times"), [(0.0, 1), (0.01, 0), (float("nan"), 0)])
def test_a_policy_that_never_searches_is_told_of_after_the_first_step(
    play: Play, monkeypatch: pytest.MonkeyPatch, searches: float, times: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(record.Record, "say", lambda self, text, style="": said.append(text))
    play(World(searches=searches), 2)
    assert sum("called no tool in the first batch" in text for text in said) == times


def test_engines_that_finish_nothing_end_the_run_with_the_second_batch(play: Play) -> None:
    world = World(unsound={0: BY_ENGINES, 1: BY_ENGINES})
    with pytest.raises(Fault, match=r"^no episode of 2 batches in a row was finished and scored: .*: head size 16$"):
        play(world, 2)
    assert world.events[len(BEGINNING) :] == ["unsound batch 0", "release 1", "unsound batch 1"]


def test_an_unsound_batch_of_the_seeding_is_none_of_its_steps(play: Play) -> None:
    world = World(unsound={0: NO_SEARCH})
    play(world, 0 + 1, seeding=1)
    seeding = world.events[world.events.index("serve the seeding") + 1 : world.events.index("rest")]
    assert seeding == [
        *("unsound seed 1", "release seed 1"),
        *("seed 2", "deliver 1", "close seeding", "release seed 2"),
    ]


def test_a_run_that_is_stopped_where_everything_fails_says_so(play: Play) -> None:
    world = World(unsound={1: NO_SEARCH}, interrupt=("unsound batch 1",))
    with pytest.raises(Fault, match=r"^stopped while no episode of batch 1 was sound: retrieval_failed"):
        play(world, 3)


@pytest.mark.parametrize("version", [0, 1])
def test_an_evaluation_without_a_score_ends_the_run_and_leaves_no_row(play: Play, tmp_path: Path, version: int) -> None:
    world = World(faults=(version,))
    wanted = r"^none of 2 questions could be evaluated: generation_failed: head size 16$"
    with pytest.raises(Fault, match=wanted):
        play(world, 1)
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl", "eval")] == [*range(version)]
    assert not [event for event in world.events if "save" in event]


# --- a shared card ---------------------------------------------------------------------------------


def test_on_a_shared_card_the_engines_sleep_while_the_learner_works(play: Play) -> None:
    world = World(barren=(1,))
    play(world, 2, warm_start=5, seeding=1, turns=True)
    assert world.events == [
        *("sleep", "warm start", "wake", "begin seeding", "deliver 0", "serve the seeding"),
        *("take", "sleep", "seed 1", "wake", "deliver 1", "close seeding", "release seed 1", "rest"),
        *("begin 0", "deliver 1", "evaluate version 1", "serve"),
        *("take", "sleep", "step 1", "wake", "deliver 2", "release 1"),
        *(
            "take",
            "sleep",
            "step 2",
            "wake",
            "evaluate version 2",
            "close",
            "release 2 with state",
            "save 2",
            "dismiss",
        ),
    ]


def test_the_checkpoint_holds_the_state_that_the_release_gave(play: Play) -> None:
    driver, summary = play(World(), 4, save_every=2)
    found = checkpoints(driver.run_dir / "checkpoints")
    assert [path.name for path in found] == ["step-000002", "step-000004"]
    for step, path in zip((2, 4), found, strict=True):
        state = run_state.load(path)
        pool = saved.load(path / "training")
        assert (state.step, pool["released"], pool["weight"].tolist()) == (step, step, [step] * 3)
        assert (path / "model.safetensors").read_text() == f"weights {step}"
    assert summary["checkpoint"] == str(found[-1])


def test_a_resumed_run_goes_on_where_the_checkpoint_ends(play: Play) -> None:
    driver, _ = play(World(), 2)
    world = World()
    again, summary = play(
        world, 4, resume=latest(driver.run_dir / "checkpoints"), folder="again", warm_start=5, evaluate_every=3
    )
    assert world.events == [
        *("begin 2", "deliver 2", "serve"),
        *("step 3", "deliver 3", "evaluate version 3", "release 3"),
        *("step 4", "deliver 4", "evaluate version 4", "close", "release 4 with state", "save 4"),
        "dismiss",
    ]
    assert [row["step"] for row in read(again.record.metrics.path, "step")] == [3, 4]
    evals = read(driver.record.metrics.path, "eval")
    assert without_kind(evals[0]) == summary["first_eval"]
    assert summary["last_eval"]["step"] == 4
    assert [row["rollouts"] for row in read(again.record.metrics.path, "eval")] == [24, 32]
    assert (summary["rollouts"], summary["generated_tokens"]) == (32, 400)


def test_a_finished_run_that_is_resumed_plays_nothing_more(play: Play) -> None:
    driver, _ = play(World(), 2)
    checkpoint = latest(driver.run_dir / "checkpoints")
    world = World()
    _, summary = play(world, 2, resume=checkpoint, folder="again")
    assert world.events == ["begin 2", "deliver 2", "dismiss"]
    assert (summary["step"], summary["stopped_early"], summary["checkpoint"]) == (2, False, str(checkpoint))
    (before,) = read(driver.record.metrics.path, "summary")
    same = ("first_eval", "last_eval", "rollouts", "generated_tokens")
    assert {key: summary[key] for key in same} == {key: before[key] for key in same}


# --- the budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "budget", "last_step"),
    [(9, 0, 9), (9, 16, 2), (9, 17, 3), (9, 1, 1), (2, 17, 2)],
    ids=["no budget", "reached exactly", "passed", "within the first step", "too few steps for it"],
)
def test_a_run_ends_with_the_step_that_reaches_its_budget(play: Play, steps: int, budget: int, last_step: int) -> None:
    world = World()  # where a step plays 8 trajectories
    driver, summary = play(world, steps, budget=budget)
    assert world.events[-4:] == ["close", f"release {last_step} with state", f"save {last_step}", "dismiss"]
    assert (summary["step"], summary["rollouts"], summary["stopped_early"]) == (last_step, 8 * last_step, False)
    assert [row["step"] for row in read(driver.record.metrics.path, "eval")] == [0, last_step]


def test_tokens_are_a_budget_too_and_the_seeding_has_a_share_in_it(play: Play) -> None:
    _, summary = play(World(), 9, token_budget=301)  # a step generates 100
    assert (summary["step"], summary["generated_tokens"]) == (4, 400)
    _, summary = play(World(), 9, token_budget=301, seeding=2, folder="seeded")
    assert (summary["step"], summary["generated_tokens"]) == (2, 400)


def test_a_resumed_run_has_used_up_the_budget_of_its_first_part(play: Play) -> None:
    driver, first = play(World(interrupt=("step 1",)), 9, budget=24)
    assert (first["rollouts"], first["stopped_early"], first["interrupted"]) == (8, True, True)
    checkpoint = latest(driver.run_dir / "checkpoints")
    _, summary = play(World(), 9, budget=24, resume=checkpoint, folder="again")
    assert (summary["step"], summary["rollouts"], summary["stopped_early"]) == (3, 24, False)
    checkpoint = latest(driver.run_dir.parent / "again" / "checkpoints")
    world = World()
    play(world, 9, budget=24, resume=checkpoint, folder="once more")
    assert "serve" not in world.events


def test_what_a_run_was_resumed_from_stays_for_workers_that_start_later(play: Play) -> None:
    driver, _ = play(World(), 2)
    play(World(), 6, resume=latest(driver.run_dir / "checkpoints"), save_every=1, keep=1)
    assert [path.name for path in checkpoints(driver.run_dir / "checkpoints")] == ["step-000002", "step-000006"]


# --- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pressed", "last_step"),
    [
        ("step 2", 2),
        ("deliver 2", 2),
        ("evaluate version 2", 2),
        ("close", 4),
        ("release 2", 3),  # too late for step 2, whose checkpoint would need the pool's state at the release
        ("save 3", 4),
    ],
)
def test_ctrl_c_ends_the_run_after_a_whole_step_and_its_checkpoint(play: Play, pressed: str, last_step: int) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    world = World(interrupt=(pressed,))
    driver, summary = play(world, 4, evaluate_every=2, save_every=3)
    assert world.interrupt == []
    n = last_step
    ending = ["close", f"release {n} with state", f"save {n}", "dismiss"]
    assert world.events[-4:] == ending
    assert world.events.count("close") == 1
    assert f"step {n + 1}" not in world.events
    written = latest(driver.run_dir / "checkpoints")
    assert (run_state.load(written).step, saved.load(written / "training")["released"]) == (n, n)
    assert len(read_draws(driver.run_dir / "draws.parquet")) == n
    assert (summary["step"], summary["stopped_early"]) == (n, n < 4)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_that_is_stopped_is_evaluated_where_it_stopped(play: Play) -> None:
    world = World(interrupt=("step 2",))
    _, summary = play(world, 9)
    assert world.events[-6:-4] == ["deliver 2", "evaluate version 2"]
    assert summary["last_eval"]["step"] == 2


def test_ctrl_c_twice_stops_at_once(play: Play) -> None:
    before = signal.getsignal(signal.SIGINT)
    world = World(interrupt=("step 2", "deliver 2"))
    with pytest.raises(KeyboardInterrupt):
        play(world, 9)
    assert world.events[-2:] == ["step 2", "deliver 2"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_stops_at_once(play: Play) -> None:
    with pytest.raises(KeyboardInterrupt):
        play(World(interrupt=("evaluate version 0",)), 9)


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("pressed", ["step 2", "deliver 2", "evaluate version 2"])
def test_a_machine_that_is_taken_away_gets_a_checkpoint_and_no_evaluation(
    play: Play, number: signal.Signals, pressed: str
) -> None:
    before = signal.getsignal(number)
    world = World(interrupt=(pressed,), signal_number=number)
    driver, summary = play(world, 9, evaluate_every=2)
    assert world.interrupt == []
    assert world.events[-3:] == ["close", "release 2 with state", "save 2"]
    assert (summary["step"], summary["interrupted"], summary["last_eval"]["step"]) == (2, True, 0)
    assert [row["step"] for row in read(driver.record.metrics.path, "eval")] == [0]
    assert driver.stopping.leaving is number
    assert signal.getsignal(number) is before


def test_a_signal_that_comes_twice_stops_at_once(play: Play) -> None:
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped:
        play(World(interrupt=("step 2", "deliver 2"), signal_number=signal.SIGTERM), 9)
    assert stopped.value.code == 143


# --- saving ----------------------------------------------------------------------------------------


def test_one_save_that_fails_is_tried_again_after_the_next_step(play: Play, tmp_path: Path) -> None:
    world = World(full=(2,))
    driver, summary = play(world, 5, save_every=2)
    assert [path.name for path in checkpoints(driver.run_dir / "checkpoints")] == [
        "step-000003",
        "step-000004",
        "step-000005",
    ]
    assert not [*(driver.run_dir / "checkpoints").glob(".tmp*")]
    assert world.released == 5  # the batch of the failed save, too
    assert summary["step"] == 5


def test_three_saves_in_a_row_that_fail_end_the_run(play: Play) -> None:
    world = World(full=(2, 3, 4))
    with pytest.raises(Fault, match=r"^the checkpoint of step 4 can't be written: .*model\.safetensors: No space left"):
        play(world, 9, save_every=2)
    assert "step 5" not in world.events


def test_the_last_save_has_no_step_to_be_tried_again_after(play: Play) -> None:
    with pytest.raises(Fault, match=r"^the checkpoint of step 2 can't be written"):
        play(World(full=(2,)), 2)


def test_the_best_evaluation_is_saved_and_stays(play: Play) -> None:
    world = World(ems={0: 0.9, 1: 0.1, 2: 0.5, 3: 0.5, 4: 0.2, 5: 0.2})
    driver, _ = play(world, 5, evaluate_every=1, keep=1, best=True)
    root = driver.run_dir / "checkpoints"
    assert [path.name for path in checkpoints(root)] == ["step-000002", "step-000005"]
    assert (root / "best").resolve() == (root / "step-000002").resolve()
    again = World(ems={6: 0.4, 7: 0.6})
    play(again, 7, evaluate_every=1, keep=1, best=True, resume=latest(root))
    assert (root / "best").resolve() == (root / "step-000007").resolve()
    assert run_state.load(root / "best").best == {"step": 7, "em": 0.6}
    assert "release 6 with state" not in again.events


def test_an_evaluation_with_too_many_faults_is_no_result_and_the_run_goes_on(play: Play) -> None:
    world = World(shaky=(1,), ems={0: 0.5, 1: 0.9, 2: 0.6})
    driver, summary = play(world, 2, evaluate_every=1, keep=1, best=True)
    _, refused, last = read(driver.run_dir / "metrics.jsonl", "eval")
    assert (refused["em"], refused["f1"], refused["faults"]) == (None, None, 1)
    assert refused["refused"].startswith("1 of 2 episodes ended in a fault, more than evaluation.max_fault_share=0.01")
    assert world.events.count("evaluate version 1") == 2, "what broke was played again"
    assert (summary["last_eval"]["em"], last["em"]) == (0.6, 0.6)
    assert run_state.load(driver.run_dir / "checkpoints" / "best").best == {"step": 2, "em": 0.6}


# --- what it writes --------------------------------------------------------------------------------


# --- learner or pool is lost -----------------------------------------------------------------------

AGAIN = ("forget", "begin 2", "deliver 2", "serve")


@pytest.mark.parametrize("who", ["learner", "pool"])
@pytest.mark.parametrize("when", ["step 4", "deliver 4", "evaluate version 4", "release 4 with state", "save 4"])
def test_learner_and_pool_go_on_together_from_the_last_checkpoint(play: Play, who: str, when: str) -> None:
    """Steps 3 and 4 are played again, in the rows and in the totals once; the run ends as if nothing had been."""
    world = World(deaths={when: who})
    driver, summary = play(world, 6, evaluate_every=4, save_every=2)
    at = world.events.index("forget")
    assert world.events[at - 1] == when
    assert world.events[at : at + 5] == [*AGAIN, "step 3"]
    assert world.model_of == [None, "step-000002"]
    assert world.events.count("step 2") == 1, "no group is trained twice on top of itself"
    rows = read(driver.record.metrics.path)
    assert [r["step"] for r in rows if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [0, 4, 6]
    assert (summary["step"], summary["rollouts"], summary["first_eval"]["step"]) == (6, 48, 0)
    (recovered,) = [r for r in rows if r.get("event") == "recovered"]
    lost = 1 if when == "step 4" else 2
    assert (recovered["lost"], recovered["step"], recovered["steps_lost"]) == (who, 2, lost)
    assert {p.name for p in (driver.run_dir / "checkpoints").iterdir()} == {f"step-00000{n}" for n in (2, 4, 6)}


def test_without_a_checkpoint_the_run_begins_again(play: Play) -> None:
    world = World(deaths={"step 2": "learner"})
    driver, summary = play(world, 3, warm_start=5)
    at = world.events.index("forget")
    assert world.events[at : at + 6] == ["forget", "warm start", "begin 0", "deliver 0", "evaluate version 0", "serve"]
    assert world.model_of == [None, None]
    rows = read(driver.record.metrics.path)
    assert [(r["kind"], r["step"]) for r in rows if r["kind"] in ("step", "eval")] == [
        ("eval", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("eval", 3),
    ]
    assert summary["rollouts"] == 24


@pytest.mark.parametrize("turns", [False, True])
def test_a_pool_that_is_lost_in_the_seeding_takes_it_back_to_its_beginning(play: Play, turns: bool) -> None:
    world = World(deaths={"seed 2": "seeding-pool"})
    play(world, 1, seeding=2, turns=turns)
    assert world.events.count("begin seeding") == 2
    assert world.events.count("seed 1") == 2
    assert world.events[-1] == "dismiss"


def test_a_fault_of_a_learner_that_lives_ends_the_run(play: Play) -> None:
    world = World(faults=(1,))
    with pytest.raises(Fault, match="head size 16"):
        play(world, 3, evaluate_every=1)
    assert "forget" not in world.events


def test_losses_end_the_run_when_there_are_too_many_within_an_hour(play: Play) -> None:
    world = World(deaths={f"step {n}": "learner" for n in range(1, 20)})
    with pytest.raises(
        Fault, match=r"^learner or pool failed 13 times within an hour \(cluster.restarts_per_hour=12\)"
    ):
        play(world, 20, save_every=1)


def test_a_run_that_is_to_end_does_not_begin_again(play: Play) -> None:
    world = World(deaths={"deliver 3": "learner"}, interrupt=("step 3",))
    with pytest.raises(Fault, match=r"^learner died$"):
        play(world, 9, save_every=2)


def test_a_steps_row_joins_the_learners_the_pools_and_the_searches_numbers(play: Play) -> None:
    driver, summary = play(World(), 2)
    first, second = read(driver.record.metrics.path, "step")
    expected = {
        "step": 1,
        "version": 1,
        "reward/mean": 0.5,
        "weights/publish_s": 0.75,  # put and delivered
        "pool/available": 3,
        "pool/resting": 2,
        "pool/consumed": 4,
        "pool/flipped_share": 0.25,
        "pool/late_groups": 6,
        "pool/seen_too_hard": 5,
        "books/groups/received": 1,
        "books/groups/returned/zero_variance": 2,
        "retrieval/qps": 7.0,
        "retrieval/p99_s": 0.5,
    }
    assert {key: first[key] for key in expected} == expected
    assert second["time_s"] >= first["time_s"] > 0
    evals = read(driver.record.metrics.path, "eval")
    assert [(e["step"], e["data"], e["n"], e["em"], e["rollouts"]) for e in evals] == [
        (0, "fake", 2, 0.0, 0),
        (2, "fake", 2, 0.0, 16),
    ]
    (written,) = read(driver.record.metrics.path, "summary")
    assert written["rollouts"] == summary["rollouts"] == 16
    assert written["generated_tokens"] == 200
    assert written["first_eval"]["step"] == 0
    assert written["last_eval"]["step"] == 2
    assert [e["event"] for e in read(driver.record.metrics.path, "event")] == [
        "weight_channel",
        "serving",
        "checkpoint",
    ]
    (serving,) = (e for e in read(driver.record.metrics.path, "event") if e["event"] == "serving")
    assert serving["index"] == asdict(INDEX), "what is searched is known of each run"


def test_searches_that_cannot_be_counted_cost_no_step(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> Stats:
        raise Fault("retrieval died")

    monkeypatch.setattr(FakeRetrieval, "stats", broken)
    driver, _ = play(World(), 1)
    (row,) = read(driver.record.metrics.path, "step")
    assert (row["retrieval/qps"], row["retrieval/p99_s"]) == (0.0, None)


def test_whatever_a_run_waits_for_is_on_the_screen(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being shown, and for how long, whenever one of the actors does anything; see ``tracking/progress.py``."""
    shown: list[Phase] = []

    @contextmanager
    def phase(self: Console, title: str) -> Iterator[Phase]:
        shown.append(Phase(title, 0.0))
        try:
            yield shown[-1]
        finally:
            shown.pop()

    monkeypatch.setattr(Console, "phase", phase)
    world, seen = World(), []
    happens = world.happens
    monkeypatch.setattr(world, "happens", lambda event: (seen.append((event, *map(str, shown))), happens(event)))
    play(world, 3, seeding=2, warm_start=3, evaluate_every=2, save_every=2)
    assert all(where for _, *where in seen), seen
    assert {"step 1", "step 3", "evaluation", "expert seeding", "warm start"} <= {
        w for _, *where in seen for w in where
    }
    assert seen[-1][1].startswith("the run")
    assert any(where[0] == "the run 2/3 steps" for _, *where in seen)
