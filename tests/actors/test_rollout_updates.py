"""New weights and the groups in flight: in mid-episode, or between groups where that is asked for.

The worker's actor is used as the plain class that it is, its engine is scripted.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors import rollout as rollout_module
from actors.leases import Paced
from actors.payloads import DIGEST, is_whole
from actors.rollout import RolloutWorker
from actors.weights import Published
from agent.config import AgentConfig, GroupConfig
from agent.errors import Fault, Final, Unusable
from agent.group import Player
from agent.records import Question
from agent.tickets import Ticket

PATIENCE_S = 600.0


class FakeEngine:
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.dead: str | None = None
        self.events: list[str] = []

    async def load_weights(self, tensors: Any, version: int) -> None:
        assert tensors == {"w": version}
        self.version = version
        self.events.append(f"load {version}")

    async def hold(self) -> None:
        self.events.append("hold")

    async def transfer(self, published: Published) -> None:
        self.version = published.version
        self.events.append(f"transfer {published.version}")

    async def sleep(self) -> None:
        self.events.append("sleep")

    async def generate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class PlayedGroup:
    versions: tuple[int, int | None, int | None]
    """Its ticket, and what the engine held when it began and ended."""
    excluded: tuple[str, ...] = ()

    def outcome(self) -> int:
        return self.versions[0]


class Scene:
    """A worker whose groups end when the test opens their gates; a group is (version at its begin, at its end)."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, *, in_flight: bool, lease_s: float = 600.0
    ) -> None:
        monkeypatch.setattr(rollout_module, "log_to", lambda *_: None)
        self.channel = SimpleNamespace(receive=self._received)
        monkeypatch.setitem(rollout_module.CHANNELS, "object_store", lambda: self.channel)
        settings = SimpleNamespace(
            in_flight_updates=in_flight, groups_in_flight=2, group_size=4, run_dir=folder, lease_s=lease_s
        )
        self.worker: Any = RolloutWorker.__ray_metadata__.modified_class("w", settings, Path(), {})  # type: ignore[attr-defined]
        self.engine = self.worker._engine = FakeEngine()
        self.worker._player = Player(
            dialogue=None, config=AgentConfig(), generator=self.engine, environment=None, scorer=None
        )
        self.gates = [asyncio.Event() for _ in range(4)]
        self.question: Any = Question(id="q", text="who?", golden_answers=("she",))
        self.tickets = [Ticket(claim_id=i, query=i, batch=0, order=i, seed=i) for i in range(4)]
        self.submitted: list[tuple[int, int | None, int | None]] = []
        self.begun: list[int] = []
        monkeypatch.setitem(rollout_module.STRATEGIES, "plain", self._play)
        calls = {"begin": self._begin, "claim": self._claim, "renew": self._renew, "submit": self._submit}
        self.pool = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})
        self.gone: list[int] = []
        self.ended: list[int] = []
        """Groups that were cancelled."""
        self.stubborn = False
        """Whether a group catches its cancellation, and goes on."""
        self.pool_is_lost = False

    async def _received(self, published: Published) -> dict[str, int]:
        return {"w": published.version}

    async def _begin(self, name: str) -> None:
        assert name == "w"

    async def _renew(self, name: str, held: list[int], moved: list[int]) -> list[int]:
        if self.pool_is_lost:
            raise ray.exceptions.RayActorError
        return [claim for claim in held if claim in self.gone]

    async def _claim(self, name: str, limit: int) -> list[tuple[Ticket, Question]]:
        if self.pool_is_lost:
            raise ray.exceptions.RayActorError
        given, self.tickets = self.tickets[:limit], self.tickets[limit:]
        return [(ticket, self.question) for ticket in given]

    async def _play(self, player: Any, question: Any, ticket: Ticket, **_: Any) -> PlayedGroup:
        assert isinstance(player.generator, Paced), "nobody would know whether the group gets on"
        before, number = self.engine.version, ticket.claim_id
        self.begun.append(number)
        while not self.gates[number].is_set():
            try:
                await self.gates[number].wait()
            except asyncio.CancelledError:
                self.ended.append(number)
                if not self.stubborn:
                    raise
        return PlayedGroup((number, before, self.engine.version))

    async def _submit(self, outcome: int, group: bytes) -> None:
        assert is_whole(group)
        played = pickle.loads(group[DIGEST:])
        assert played.outcome() == outcome
        self.submitted.append(played.versions)

    def run(self) -> asyncio.Task[int]:
        return asyncio.ensure_future(self.worker.run(self.pool, GroupConfig()))

    async def receive(self, version: int) -> None:
        published = Published(channel="object_store", version=version, checksum="", handle=None)
        assert await self.worker.receive(published) == version


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


def play(scenario: Coroutine[Any, Any, None]) -> None:
    async def patient() -> None:
        await asyncio.wait_for(scenario, PATIENCE_S)

    asyncio.run(patient())


def test_new_weights_come_in_mid_episode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True)
        await scene.receive(0)
        running = scene.run()
        await settle()
        await scene.receive(1)
        for gate in scene.gates:
            gate.set()
        assert await running == 4
        assert sorted(scene.submitted) == [(0, 0, 1), (1, 0, 1), (2, 1, 1), (3, 1, 1)]

    play(scenario())


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_groups_that_hang_keep_no_place_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: bool, stubborn: bool
) -> None:
    """With a tool that never answers in both places: the next two are played all the same, and a lost pool is seen."""

    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True, lease_s=0.04)
        await scene.receive(0)
        for gate in scene.gates[2:]:
            gate.set()
        running = scene.run()
        await settle()
        assert scene.begun == [0, 1]
        scene.pool_is_lost, scene.gone, scene.stubborn = lost, [0, 1], stubborn
        assert await running == (None if lost else 4)
        await settle()
        assert scene.ended == [0, 1]
        assert sorted(scene.submitted) == ([] if lost else [(2, 0, 0), (3, 0, 0)])
        assert scene.worker._at_play == 0
        scene.stubborn = False  # or the loop's own end would wait for them

    play(scenario())
    assert capsys.readouterr().out.count("the group of question q has stood still") == (0 if lost else 2)


def test_weights_dont_wait_for_a_group_that_has_lost_its_claim_and_never_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=False)
        scene.stubborn, scene.gone = True, [0]
        await scene.receive(0)
        running = scene.run()
        await settle()
        scene.gates[1].set()
        await scene.receive(1)
        for gate in scene.gates[2:]:
            gate.set()
        assert await running == 4
        assert sorted(scene.submitted) == [(1, 0, 0), (2, 1, 1), (3, 1, 1)]
        scene.stubborn = False  # or the loop's own end would wait for it

    play(scenario())


def test_a_group_that_cancels_itself_is_a_fault_that_names_its_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else it would hold its claim for a lease, be drawn again, and end so again."""

    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True)
        await scene.receive(0)

        async def cancels(*_: Any, **__: Any) -> None:
            raise asyncio.CancelledError

        monkeypatch.setitem(rollout_module.STRATEGIES, "plain", cancels)
        with pytest.raises(Fault, match=r"^the group of question q was cancelled by its own code"):
            await scene.run()

    play(scenario())


def test_what_a_dead_engine_leaves_of_a_group_is_not_submitted_and_a_whole_group_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The episodes that had ended before are the short ones; and the claim has to be there when the worker is lost."""

    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True)
        await scene.receive(0)

        async def broken(player: Any, question: Any, ticket: Ticket, **how: Any) -> PlayedGroup:
            group = await scene._play(player, question, ticket, **how)
            return replace(group, excluded=("generation_failed",)) if ticket.claim_id else group

        monkeypatch.setitem(rollout_module.STRATEGIES, "plain", broken)
        running = scene.run()
        await settle()
        scene.engine.dead = "RuntimeError: CUDA error"
        scene.gates[0].set()
        await settle()
        scene.gates[1].set()
        with pytest.raises(Fault, match=r"^the engine is dead: RuntimeError: CUDA error$"):
            await running
        assert scene.submitted == [(0, 0, 0)]

    play(scenario())


def test_a_claim_of_no_question_is_the_pools_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True)
        await scene.receive(0)
        scene.question = None
        with pytest.raises(Unusable, match=r"^what the pool gave can't be used: a claim is of Ticket and NoneType$"):
            await scene.run()
        assert scene.begun == []

    play(scenario())


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Fault("pool=mine: wanted() raised KeyError: 'x'"), r"pool=mine: wanted\(\) raised KeyError: 'x'"),
        (IndexError("list index\nout of range"), "IndexError: list index out of range"),
    ],
)
def test_a_pool_that_cannot_draw_is_told_as_that_and_not_as_an_end_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, why: str
) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True)
        await scene.receive(0)

        async def claim(name: str, limit: int) -> None:
            raise ray.exceptions.RayTaskError("claim", "its traceback", error).as_instanceof_cause()

        scene.pool.claim = SimpleNamespace(remote=claim)
        with pytest.raises(Final, match=rf"^the pool can't draw a question: {why}$"):
            await scene.run()

    play(scenario())


def test_new_weights_wait_for_the_groups_that_play_and_no_other_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=False)
        await scene.receive(0)
        running = scene.run()
        await settle()
        receiving = asyncio.ensure_future(scene.receive(1))
        scene.gates[0].set()
        await settle()
        assert scene.begun == [0, 1], "a group was begun that would see both versions"
        assert scene.engine.events == ["load 0"]
        scene.gates[1].set()
        await receiving
        scene.gates[2].set()
        scene.gates[3].set()
        assert await running == 4
        assert sorted(scene.submitted) == [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 1)]

    play(scenario())


@pytest.mark.parametrize("by", ["transfer", "receive"])
def test_a_broadcast_waits_for_them_too_and_no_other_begins_before_its_weights_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    """It would wait for an engine that is held; and one to which the weights come by another way, for it."""

    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=False)
        await scene.receive(0)
        running = scene.run()
        await settle()
        holding = asyncio.ensure_future(scene.worker.hold())
        await settle()
        assert scene.engine.events == ["load 0"]
        for gate in scene.gates:
            gate.set()
        await holding
        await settle()
        assert scene.engine.events == ["load 0", "hold"]
        assert scene.begun == [0, 1]
        if by == "transfer":
            assert await scene.worker.transfer(Published(channel="nccl", version=1, checksum="", handle=None)) == 1
        else:
            await scene.receive(1)
        assert await running == 4
        assert sorted(scene.submitted) == [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 1)]

    play(scenario())


def test_one_worker_alone_gets_a_copy_and_says_which_version_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True)

        async def copy() -> Published:
            assert not scene.worker._beats.under_way("publish"), "a learner that updates for long has its own deadline"
            return Published(channel="object_store", version=7, checksum="", handle=None)

        learner = SimpleNamespace(copy=SimpleNamespace(remote=copy))
        announced = Published(channel="nccl", version=6, checksum="", handle=SimpleNamespace(learner=learner))
        assert await scene.worker.receive(announced) == 7
        assert scene.engine.events == ["load 7"]

    play(scenario())


def test_a_worker_whose_pool_is_gone_plays_no_more_and_waits_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=False)
        await scene.receive(0)
        running = scene.run()
        await settle()
        assert scene.begun == [0, 1]
        scene.pool_is_lost = True
        scene.gates[0].set()  # it asks for another one
        assert await running is None
        await settle()
        assert scene.worker._at_play == 0
        await scene.receive(1)  # which would wait for groups in flight

    play(scenario())


@pytest.mark.parametrize("call", ["sleep", "receive"])
def test_groups_that_hang_end_before_the_engine_sleeps_or_weights_wait_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=False)  # the next renewal is minutes off
        await scene.receive(0)
        running = scene.run()
        await settle()
        scene.gone = [0]
        scene.gates[1].set()
        await settle()
        assert scene.ended == []
        if call == "sleep":
            await scene.worker.sleep()
        else:
            scene.gates[2].set()  # which has come into the second place
            await scene.receive(1)
        await settle()
        assert scene.ended == [0]
        for gate in scene.gates[2:]:
            gate.set()
        assert await running == 4

    play(scenario())


def test_weights_whose_publisher_is_gone_cost_no_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        scene = Scene(monkeypatch, tmp_path, in_flight=True)
        await scene.receive(0)

        async def lost(published: Published) -> None:
            raise ray.exceptions.OwnerDiedError("00", b"", "")

        scene.channel.receive = lost
        published = Published(channel="object_store", version=1, checksum="", handle=None)
        assert await scene.worker.receive(published) is None
        assert scene.engine.events == ["load 0"]

    play(scenario())
