"""The learner's end of a publication: who gets a copy and when, and how a broadcast ends that nobody hears."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray_fakes import PATIENCE_S, pending, result
from test_seeding_phase import config, learner_settings

from actors import learner as learner_module
from actors import publisher as publisher_module
from actors.learner import LearnerActor
from actors.prepare import prepare
from actors.process import QUIET
from actors.publisher import Publisher
from actors.weights import NcclChannel, Published, unpack
from agent.errors import Fault


@dataclass
class Report:
    """Of an update, as far as the learner looks at it."""

    updates: int = 1
    tokens: int = 10
    seconds: float = 1.0
    mismatch: float = 0.0
    mismatch_max: float = 0.0
    mismatch_shifted: float = 0.0


class Room:
    """A learner without its actor, whose pool and update wait for the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        monkeypatch.setattr(learner_module, "log_to", lambda *_: None)
        monkeypatch.setattr(learner_module.ray, "get", lambda call: call())
        monkeypatch.setattr(learner_module, "batch_metrics", lambda *_: {})
        self.stored: list[int] = []
        channel = SimpleNamespace(publish=self._publish)
        monkeypatch.setitem(publisher_module.CHANNELS, "object_store", lambda: channel)
        monkeypatch.setattr(learner_module, "fetched", lambda batch: batch)
        settings = SimpleNamespace(colocated=False, log=None, run_dir=folder)
        self.learner: Any = LearnerActor.__ray_metadata__.modified_class(settings, folder)  # type: ignore[attr-defined]
        self.weights = {"w": torch.zeros(3)}
        policy: Any = SimpleNamespace(current=lambda: self.weights, published=lambda: self.weights)
        self.learner._publisher = Publisher(policy, "object_store", bucket=1, timeout_s=1.0)
        self.learner._tokenizer = SimpleNamespace(decode=str)
        self.learner._training = SimpleNamespace(update=self._update, leave_card=lambda: None)
        self.batch_there, self.updating, self.updated = (threading.Event() for _ in range(3))
        batch = SimpleNamespace(index=0, accepted=(), payloads=(), rollouts=0, generated_tokens=0)

        def take() -> Any:
            assert self.batch_there.wait(PATIENCE_S)
            return batch

        self.pool = SimpleNamespace(take=SimpleNamespace(remote=lambda version: take))

    def _publish(self, tensors: Any, version: int) -> Published:
        self.stored.append(version)
        value = float(tensors["w"][0])
        assert value == version, "these are another version's weights"
        return Published(channel="object_store", version=version, checksum="", handle=None)

    def _update(self, groups: Any, step: int, version: int) -> Report:
        self.weights["w"] += 0.5
        self.updating.set()
        assert self.updated.wait(PATIENCE_S)
        self.weights["w"] += 0.5
        return Report()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Room:
    return Room(monkeypatch, tmp_path)


def beside(call: Callable[[], Any]) -> Future[Any]:
    """``call`` in a thread of its own, as the learner's calls in ``beside``."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_a_copy_is_to_be_had_while_the_learner_waits_for_a_batch(room: Room) -> None:
    stepping = beside(lambda: room.learner.step(room.pool))
    assert beside(room.learner.copy).result(PATIENCE_S).version == 0
    assert beside(room.learner.copy).result(PATIENCE_S).version == 0
    assert room.stored == [0], "one copy is enough for all who ask"
    room.batch_there.set()
    room.updated.set()
    assert stepping.result(PATIENCE_S).version == 1
    assert beside(room.learner.copy).result(PATIENCE_S).version == 1


def test_a_log_of_episodes_that_hangs_is_seen_as_an_update_that_does(room: Room) -> None:
    learner, seen = room.learner, []
    learner._texts = None
    learner._settings.log = SimpleNamespace(write=lambda *_: seen.append(learner._beats.under_way("update")))
    room.batch_there.set()
    room.updated.set()
    learner.step(room.pool)
    assert seen == [True]


def test_a_copy_is_never_of_weights_in_mid_update(room: Room) -> None:
    room.batch_there.set()
    stepping = beside(lambda: room.learner.step(room.pool))
    assert room.updating.wait(PATIENCE_S)
    copying = beside(room.learner.copy)
    assert not copying.done()
    room.updated.set()
    assert copying.result(PATIENCE_S).version == 1
    assert stepping.result(PATIENCE_S).version == 1


def test_a_broadcast_that_is_abandoned_is_a_fault(room: Room) -> None:
    sent: list[Any] = []

    class Sender:
        def send(self, tensors: Any) -> None:
            sent.append(tensors)
            beside(room.learner.abandon).result(PATIENCE_S)

        def abandon(self) -> None:
            sent.append("abandoned")

    room.learner._publisher._sender = Sender()
    with pytest.raises(Fault, match="the broadcast of version 0 was abandoned"):
        room.learner.send(0)
    assert sent == [room.weights, "abandoned"]


def test_a_broadcast_of_another_version_is_refused(room: Room) -> None:
    room.learner._publisher._sender = SimpleNamespace(send=lambda tensors: pytest.fail("sent"))
    with pytest.raises(AssertionError, match="have changed since"):
        room.learner.send(1)


# --- as the actor that it is -----------------------------------------------------------------------


@pytest.fixture
def actor(local_ray: None, tmp_path: Path) -> Iterator[Any]:
    run = config(tmp_path)
    settings = learner_settings(run, prepare(run, tmp_path), tmp_path, channel="nccl")
    actor = LearnerActor.options(num_cpus=0, runtime_env={"env_vars": QUIET}).remote(settings, tmp_path)  # type: ignore[attr-defined]
    yield actor
    ray.kill(actor)


@pytest.mark.slow
def test_what_is_announced_is_what_a_copy_brings_and_what_comes_after_nccl(actor: Any) -> None:
    result(actor.start.remote())
    announced = result(actor.begin.remote(None))
    assert (announced.channel, announced.version) == ("nccl", 0)
    copied = result(announced.handle.learner.copy.remote())
    references, specs = copied.handle
    tensors = unpack(ray.get(references[0]), specs)
    assert (copied.channel, copied.version) == ("object_store", 0)
    assert tuple(tensors) == announced.handle.names
    assert NcclChannel().publish(tensors.items(), 0, None).checksum == announced.checksum
    with pytest.raises(ray.exceptions.RayTaskError):  # there is no NCCL here
        result(actor.offer.remote())
    result(actor.fall_back.remote())
    after = result(actor.begin.remote(None))
    assert after.channel == "object_store"


@pytest.mark.slow
def test_copies_that_wait_for_a_broadcast_to_end_keep_nobody_from_abandoning_it(actor: Any) -> None:
    result(actor.start.remote())
    result(actor.begin.remote(None))
    result(actor.__ray_call__.remote(lambda learner: learner._publisher.steady.acquire()))
    copies = [actor.copy.remote() for _ in range(3)]
    result(actor.abandon.remote())
    result(actor.progress.remote())
    assert all(pending(copy) for copy in copies)
    result(actor.__ray_call__.remote(lambda learner: learner._publisher.steady.release()))
    assert [result(copy).version for copy in copies] == [0, 0, 0]


@pytest.mark.slow
def test_an_abandoned_sender_sends_no_further_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's abort wakes a sender before it is done with the group: nothing may be asked of it any more."""
    from actors import nccl

    given: list[str] = []

    def producer(*, iterator: Any, post_iter_func: Any, **_: Any) -> None:
        for item in iterator:
            given.append(item[0])
            post_iter_func(item)
            sender.abandon()  # another thread's, meanwhile

    group = SimpleNamespace(disabled=False, destroy=lambda: given.append("destroyed"))
    monkeypatch.setattr(nccl, "uid_init_process_group", lambda *_: group)
    monkeypatch.setattr(nccl.packed_tensor, "packed_nccl_broadcast_producer", producer)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    stream = SimpleNamespace(record_event=lambda: None, wait_event=lambda event: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    sender = nccl.Sender(b"group", 2, bucket=1, timeout_s=PATIENCE_S)
    with pytest.raises(Fault, match="the broadcast was abandoned"):
        sender.send((name, torch.ones(1)) for name in "abc")
    assert given == ["a", "destroyed"]


def test_a_card_that_is_shared_gets_back_what_a_copy_for_saving_took(tmp_path: Path) -> None:
    """The engine is awake then, and merging adapters leaves as much in the learner's allocator as it has taken."""
    done: list[str] = []

    def weights() -> dict[str, Any]:
        done.append("merged")
        return {}

    algorithm = SimpleNamespace(optimizer=SimpleNamespace(shard=False))
    settings = SimpleNamespace(run_dir=tmp_path, algorithm=algorithm)
    actor = LearnerActor.__ray_metadata__.modified_class(settings, tmp_path)  # type: ignore[attr-defined]
    actor._tokenizer = SimpleNamespace(save=lambda folder: None)
    actor._publisher = SimpleNamespace(version=3)
    actor._training = SimpleNamespace(
        policy=SimpleNamespace(weights=weights, adapters=dict),
        updater=SimpleNamespace(state=lambda: {"optimizer": {}}),
        reference=None,
        leave_card=lambda: done.append("given back"),
    )
    actor.copy_for_saving(tmp_path)
    assert done == ["merged", "given back"]


@pytest.mark.parametrize("changed", [False, True])
def test_weights_are_saved_after_a_step_that_broke_if_it_had_not_touched_them(tmp_path: Path, changed: bool) -> None:
    def breaks(*_: Any) -> None:
        raise Fault("the GPU's memory is full")

    settings = SimpleNamespace(run_dir=tmp_path, log=None)
    actor = LearnerActor.__ray_metadata__.modified_class(settings, tmp_path)  # type: ignore[attr-defined]
    actor._training = SimpleNamespace(update=breaks, changed=changed)
    actor._publisher = SimpleNamespace(steady=nullcontext(), version=3)
    actor._tokenizer = SimpleNamespace(save=lambda folder: (folder / "tokenizer.json").write_text(""))
    actor._taken = SimpleNamespace(accepted=()), 0.0
    with pytest.raises(Fault, match="memory is full"):
        actor.step(None)
    wanted = r"^its last step broke off in the middle$" if changed else "has no attribute 'updater'"
    with pytest.raises(Fault if changed else AttributeError, match=wanted):
        actor.copy_for_saving(tmp_path)
    assert (tmp_path / "tokenizer.json").exists() == (not changed), "it has begun to copy"
