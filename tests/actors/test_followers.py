"""Learners of several ranks as Ray actors over gloo: the same steps as one learner's, and a rank that dies or hangs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray_fakes import result
from test_seeding_phase import Pool, config, learner_settings

from actors import followers as followers_module
from actors.calls import get
from actors.followers import FollowerActor, Followers, name
from actors.learner import LearnerActor
from actors.prepare import Prepared, prepare
from actors.process import QUIET
from actors.weights import unpack
from agent.errors import ActorLost, Fault
from learner.checkpoint import load_state
from learner.ranks import Parted

RANKS = 3


@ray.remote
class PoolOfItsOwn:
    """The seeding's pool, as an actor."""

    def __init__(self, prepared: Prepared) -> None:
        self._pool = Pool(prepared, {})

    def take(self, version: int) -> Any:
        batch = self._pool._take(version)
        return batch.unpacked(ray.put)  # as a worker puts what the real pool passes on


class Room:
    """A run's learners, one or several."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = config(folder)
        self.run.algorithm.optimizer.shard = True
        self.prepared = prepare(self.run, folder)
        self.actors: list[Any] = []

    def learner(self, world: int) -> Any:
        """One that has started."""
        settings = learner_settings(self.run, self.prepared, self.folder)
        options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": {**QUIET, "OMP_NUM_THREADS": "1"}}}
        followers = [
            FollowerActor.options(**options).remote(settings, rank, world, self.folder)  # type: ignore[attr-defined]
            for rank in range(1, world)
        ]
        learner = LearnerActor.options(**options).remote(settings, self.folder, followers)  # type: ignore[attr-defined]
        self.actors += [learner, *followers]
        result(learner.start.remote())
        return learner

    def steps(self, learner: Any, count: int) -> list[Any]:
        """Steps of the seeding."""
        result(learner.begin_seeding.remote(self.prepared.experts))
        pool = PoolOfItsOwn.options(num_cpus=0).remote(self.prepared)  # type: ignore[attr-defined]
        self.actors.append(pool)
        return [result(learner.seed.remote(pool)) for _ in range(count)]


@pytest.fixture
def room(local_ray: None, tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    for actor in made.actors:
        ray.kill(actor)


def weights(published: Any) -> np.ndarray:
    references, specs = published.handle
    return torch.cat([t.flatten() for t in unpack(ray.get(references[0]), specs).values()]).numpy()


@pytest.mark.slow
def test_several_learners_learn_publish_and_save_what_one_does(room: Room, tmp_path: Path) -> None:
    published, saved = {}, {}
    for world in (1, RANKS):
        learner = room.learner(world)
        reports = room.steps(learner, 3)
        assert [r.version for r in reports] == [1, 2, 3]
        begun = result(learner.begin.remote(None))
        published[world] = weights(begun)
        pool = PoolOfItsOwn.options(num_cpus=0).remote(room.prepared)  # type: ignore[attr-defined]
        room.actors.append(pool)
        result(learner.step.remote(pool))
        folder = tmp_path / f"of {world}"
        folder.mkdir()
        (folder / "training").mkdir()
        result(learner.copy_for_saving.remote(folder))
        result(learner.save.remote(folder))
        saved[world] = load_state(folder / "training" / "learner.pt")
    assert np.abs(published[1] - published[RANKS]).max() < 1e-5
    one, several = (saved[world]["updater"]["optimizer"]["optimizers"][0]["state"] for world in (1, RANKS))
    assert one.keys() == several.keys(), "the checkpoint has the states of all ranks"


@pytest.mark.slow
def test_a_learner_that_died_is_named(room: Room) -> None:
    learner = room.learner(RANKS)
    assert len(room.steps(learner, 1)) == 1
    ray.kill(room.actors[2])
    with pytest.raises(ray.exceptions.RayTaskError) as error:
        room.steps(learner, 1)
    cause = error.value.cause
    assert isinstance(cause, Fault)
    assert f"{name(2)} died" in str(cause)
    assert name(1) not in str(cause)


def raised(error: Exception) -> Exception:
    """As Ray gives what a call has raised, or an actor that has asked one that did."""
    return ray.exceptions.RayTaskError("mirror", "its traceback", error)


@pytest.mark.parametrize("late", [1, 2, None])
def test_a_learner_that_does_not_come_is_lost_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, late: int | None
) -> None:
    """Its pings are answered: nobody else would say so. Where all have waited in vain none is to blame, and they are
    lost all the same."""
    calls = {name(rank): raised(Parted("learner", "nobody came")) for rank in (1, 2) if rank != late}

    def wait(refs: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref in calls], [ref for ref in refs if ref not in calls]

    def ended(ref: str) -> None:
        raise calls[ref]

    monkeypatch.setattr(followers_module, "ray", SimpleNamespace(wait=wait, get=ended, exceptions=ray.exceptions))
    whose = {rank: SimpleNamespace(remote=lambda *_, rank=rank: name(rank)) for rank in (1, 2)}
    actors = [SimpleNamespace(mirror=whose[rank]) for rank in (1, 2)]
    own = Parted("learner", "rank 0 waited in vain")
    with (
        pytest.raises(ActorLost, match=rf"^learner-{late} did not come" if late else "^rank 0 waited") as error,
        Followers(actors, tmp_path).mirroring("update"),
    ):
        raise own
    assert error.value.actor == name(late or 0)


@pytest.mark.parametrize("lost", [ActorLost("learner-1", "it did not come"), Parted("learner", "rank 1 waited")])
def test_that_it_is_lost_reaches_the_supervisor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: ActorLost
) -> None:
    """Through rank 0, who says it."""

    def ended(ref: Any) -> None:
        raise raised(lost)

    monkeypatch.setattr(ray, "get", ended)
    with pytest.raises(ActorLost) as found:
        get(None, "learner", tmp_path)
    assert (found.value.actor, str(found.value)) == (lost.actor, str(lost))


def test_learners_that_cannot_meet_are_no_loss(tmp_path: Path) -> None:
    """The run ends there: a network that lets none through will let none through again."""
    with pytest.raises(Fault, match=r"^nobody came$") as error, Followers([], tmp_path).joining():
        raise Parted("learner", "nobody came")
    assert not isinstance(error.value, ActorLost)
