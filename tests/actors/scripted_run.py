"""A supervisor's run in which every actor is scripted, and notes what it is asked in the order of the asking."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors import parts, record, run_state, saving, supervisor
from actors.calls import Died
from actors.prepare import Prepared
from actors.provenance import Provenance
from actors.reports import Released, StepReport, Untrainable
from actors.restarts import Restarts
from actors.supervisor import Supervisor
from actors.threads import in_thread
from actors.totals import Totals
from agent.config import GroupConfig, SelectivityConfig
from agent.errors import ActorLost, Fault, Final, Unusable, UserError
from agent.inference.evaluation import EvalRow
from agent.inference.infer import Inference
from agent.pool import saved
from agent.pool.history import DRAW
from agent.pool.rules.epoch import Rule as Epoch
from agent.records import Question
from conf.evaluation import EvalConfig
from conf.schema import CheckpointConfig, RunConfig
from conf.topology import ClusterConfig
from learner.config import AlgorithmConfig, SeedingConfig, WarmStartConfig
from learner.manifest import Files, listed, one
from retrieval_service.backend import Identity
from retrieval_service.stats import Stats
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.draws import write_draws
from tracking.trackers.several import Trackers

PATIENCE_S = 600.0
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
        untrainable: Mapping[int, Untrainable] | None = None,
        faults: tuple[int, ...] = (),
        interrupt: tuple[str, ...] = (),
        deaf: int = 0,
        searches: float = 1.0,
        signal_number: signal.Signals = signal.SIGINT,
        full: tuple[int, ...] = (),
        ems: Mapping[int, float] | None = None,
        shaky: tuple[int, ...] = (),
        shaken_by: str = "generation_failed",
        deaths: Mapping[str, str] | None = None,
        garbage: Mapping[str, str] | None = None,
        hangs: Mapping[str, str] | None = None,
        pinged_first: bool = False,
        slow_disk: bool = False,
        restarts: int = 0,
        final: tuple[str, ...] = (),
        mistakes: tuple[str, ...] = (),
    ) -> None:
        self.events: list[str] = []
        self.pinged_first = pinged_first
        """A ping has seen each of ``deaths`` before the call did, so that health has forgotten the actor."""
        self.forget: Callable[[str], None] = lambda name: None
        self.searches = searches
        """Of an episode, in every step."""
        self.deaf = deaf
        """Searches that the retrieval fails."""
        self.barren = barren
        """Batches that nothing can be learnt from."""
        self.untrainable = untrainable or {}
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
        self.shaky, self.shaken_by = shaky, shaken_by
        """Versions with which the first episode of an evaluation ends in a fault, whenever it is played, and which."""
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
        self.garbage = dict(garbage or {})
        """Events during which one of them gives what can't be used, and which."""
        self.hangs = dict(hangs or {})
        """Events during which a follower of the learner doesn't come to where they meet, and which."""
        self.final = list(final)
        """Events during which a part other than these fails once too often; ``wait 3``: for the report of step 3."""
        self.mistakes = mistakes
        """Events during which a mistake of the user's shows."""
        self.dead: str | None = None
        self.restarts = restarts
        """Workers that were replaced."""
        self.disk: threading.Event | None = threading.Event() if slow_disk else None
        """Set where somebody waits for a checkpoint: none is written before. None: each is at once."""
        self.model_of: list[str | None] = []
        """The checkpoints whose model the learners were started with."""

    def waits(self, saves: list[Future[Path]], timeout: float) -> None:
        """As ``concurrent.futures.wait``, for checkpoints on a slow disk."""
        assert self.disk is not None
        self.disk.set()
        wait(saves)

    def ended(self, name: str) -> None:
        """A part is no more, and others may come. What a pool and a learner have counted ends with them."""
        del self.parts[name.replace("-", " ")]
        if name == "seeding-pool" and self.dead is None:  # it has served its time
            return
        self.dead, self.closed, self.released, self.published = None, False, 0, 0

    def happens(self, event: str) -> None:
        self.events.append(event)
        if event in self.deaths:
            self.dead = self.deaths.pop(event)
            if self.pinged_first:
                self.forget(self.dead)
            raise Died(f"{self.dead} died", actor=self.dead)
        if event in self.final:
            self.final.remove(event)
            raise Final("rollout workers failed too often")
        if event in self.mistakes:
            raise UserError("no such tool")
        if event in self.garbage:
            raise Unusable(self.garbage.pop(event), "it is damaged")
        if event in self.hangs:
            raise ActorLost(who := self.hangs.pop(event), f"{who} did not come")
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
        if why := world.untrainable.get(pool.taken - 1):
            world.happens(f"untrainable seed {pool.taken}")
            return untrainable(pool.taken - 1, world.published, why)
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
            self._step = self._world.published = run_state.load(checkpoint).step
            self._batch = self._world.released
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
        if why := world.untrainable.get(batch):
            world.happens(f"untrainable batch {batch}")
            return untrainable(batch, world.published, why)
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
            "tools/mean": world.searches,
            "search/mean": 0.0,
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
        if self._world.disk is not None:
            assert self._world.disk.wait(PATIENCE_S)
            if self._world.parts.get("learner") is not self:
                raise Died("learner died", actor="learner")
        if step in self._world.full:
            raise Fault(f"learner: OSError: {folder}/model.safetensors: No space left on device")
        (folder / "model.safetensors").write_text(weights)
        (folder / "config.json").write_text("{}")
        (folder / "training" / "learner.pt").write_text("")
        return {k: v for name in WRITTEN for k, v in one(folder, name).items()}


def untrainable(batch: int, version: int, why: Untrainable) -> StepReport:
    return StepReport(
        batch=batch, version=version, published=None, rollouts=8, generated_tokens=0, metrics={}, untrainable=why
    )


class FakePool(Remote):
    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self._world.released = saved.load(checkpoint / "training")["released"]

    def release(self, batch: int | None, *, checkpoint: Path | None = None, draws: Path | None = None) -> Released:
        world = self._world
        assert world.closed or world.delivered == world.published, "released before the workers hold the weights"
        if batch is None:
            assert world.closed, "a release of nothing"
        else:
            assert batch == world.released
            world.released += 1
        assert (checkpoint is None) == (draws is None)
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
            "places": {"available": 3, "resting": 2, "consumed": 4, "quarantined": 1, "claimed": 3, "accepted": 2},
            "seen": {"too_hard": 5},
            "flipped_share": 0.25,
            "late_groups": 6,
            "accounts": {"groups": account},
        }

    def worker_lost(self, worker: str, suspect: bool) -> int:
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
        self.inference = Inference()
        self.followers: dict[str, Any] = {name: Remote() for name in world.hangs.values()}

    def _part(self, name: str, part: Any) -> Any:
        assert name not in self.world.parts, "there is one already"
        self.world.parts[name] = part
        return part

    def check_nodes(self) -> None:
        assert not self.world.parts, "before anything starts"

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
        world.forget = self.forget

    def watch(self, name: str, actor: Any, lost: Any, *, restarts: bool = False) -> None:
        assert name not in self._watched, "the one before was not forgotten"
        self._watched.add(name)

    def forget(self, name: str) -> None:
        self._watched.discard(name)

    def look(self) -> None: ...

    def only(self, *names: str) -> None:
        self._watched &= {*names}

    def answer(self, value: Any, name: str) -> Any:
        return value

    def gone(self, *names: str) -> dict[str, Died]:
        gone = [name for name in names if name in self._watched and name == self._world.dead]
        return {name: Died(f"{name} died (ActorDiedError); its last lines:\nlearner's log") for name in gone}

    def end(self, *names: str) -> None:
        dead = self._world.dead
        for name in names:
            if name in self._watched or name == dead:
                self._watched.discard(name)
                if not name.startswith("learner-"):
                    self._world.ended(name)


class FakeWorkerPool:
    def __init__(self, world: World, restarts: Restarts) -> None:
        self.world = world
        self.restarts = restarts.total + world.restarts
        self.idle = lambda: None

    def forget(self) -> None:
        self.world.serving = self.world.delivered = None
        self.world.happens("forget")

    def wait(self, value: Any, actor: str, given_up: Any = None) -> Any:
        assert actor in ("learner", "pool", "seeding-pool", "retrieval")
        if (step := getattr(value, "version", None)) and f"wait {step}" in self.world.final:
            self.world.happens(f"wait {step}")
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

    def until_idle(self) -> None:
        if self.world.serving is not None:  # else it is gone, which ends their claims, too
            assert self.world.serving.closed, "workers that wait for a claim are never idle"
        self.world.serving = None
        self.world.happens("idle")

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
            return [replace(broken, stop_reason=self.world.shaken_by), *[row] * (len(questions) - 1)]
        return [broken if self.world.delivered in self.world.faults else row] * len(questions)

    def dismiss(self) -> None:
        assert self.world.closed or not self.world.serving, "workers that wait for a claim never end"
        self.world.happens("dismiss")


Play = Callable[..., tuple[Supervisor, dict[str, Any]]]


def ended(work: Callable[[], Path]) -> Future[Path]:
    future = in_thread(work)
    wait([future])
    return future


def scripted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
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
        held_out: tuple[Question, ...] = (QUESTION, QUESTION),
        selective: bool = False,
    ) -> tuple[Supervisor, dict[str, Any]]:
        run_dir = tmp_path / folder
        world.turns = turns
        monkeypatch.setattr(parts, "Topology", lambda *_: FakeTopology(world, run_dir))
        monkeypatch.setattr(parts, "WorkerPool", lambda *_, restarts, **__: FakeWorkerPool(world, restarts))
        monkeypatch.setattr(parts, "Health", lambda *_: FakeHealth(world))
        monkeypatch.setattr(supervisor, "get", lambda value, actor, log_dir: value)
        if world.disk is None:
            monkeypatch.setattr(saving, "in_thread", ended)  # a checkpoint is written before the next step is done
        else:
            monkeypatch.setattr(saving, "wait", world.waits)
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
            evaluation=EvalConfig(every=evaluate_every, saving=selective),
            selectivity=SelectivityConfig(queries=selective),
            checkpoints=CheckpointConfig(every=save_every, keep=keep, every_minutes=0, best=best),
        )
        task: Any = SimpleNamespace(name="fake", train=(QUESTION,), eval=held_out, held_out_name="", corpus=tmp_path)
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
