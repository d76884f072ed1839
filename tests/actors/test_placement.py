"""Where actors go: what is reserved, on which nodes, and what a cluster that lacks it is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray_fakes import result, until
from settings import composed

from actors import topology
from actors.placement import ANYWHERE, Places, bundles, engine_nodes, lacking, nearest, on_node, reserve
from actors.process import QUIET
from actors.topology import Topology, seeding_rule
from agent.errors import Fault, UserError
from agent.pool.rules.epoch import Rule as Epoch
from conf.schema import RunConfig
from conf.topology import ClusterConfig


def test_each_engine_has_a_bundle_beside_the_learners() -> None:
    assert bundles(ClusterConfig(device="cuda", rollout_workers=3)) == [{"GPU": 1.0}] * 4
    assert bundles(ClusterConfig(device="cuda", rollout_workers=2, learners=2)) == [{"GPU": 1.0}] * 4
    assert bundles(ClusterConfig(device="cuda", rollout_workers=1, colocated=True)) == [{"GPU": 1.0}]
    assert bundles(ClusterConfig(device="cuda", rollout_workers=4, learners=4, colocated=True)) == [{"GPU": 1.0}] * 4
    assert bundles(ClusterConfig(rollout_workers=3)) == []


@pytest.mark.parametrize(
    ("wanted", "nodes", "lack"),
    [
        (4, [4], None),
        (4, [2, 0, 2], None),
        (4, [2, 1], "needs 4 GPU, and the nodes of the Ray cluster have 2 GPU; 1 GPU"),
        (1, [], "needs 1 GPU, and the nodes of the Ray cluster have no nodes"),
    ],
)
def test_what_a_cluster_lacks_is_said_node_by_node(wanted: int, nodes: list[int], lack: str | None) -> None:
    assert lacking([{"GPU": 1.0}] * wanted, [{"GPU": float(n), "CPU": 8.0} for n in nodes]) == lack


def test_a_bundle_is_not_spread_over_nodes() -> None:
    assert lacking([{"GPU": 2.0}], [{"GPU": 1.0}, {"GPU": 1.0}]) is not None


def test_retrieval_is_on_each_node_with_engines() -> None:
    assert engine_nodes(["a", "a", "a", "b", "b"]) == ("a", "b")
    assert engine_nodes(["a", "b", "b"]) == ("b",), "the learner searches nothing"
    assert engine_nodes(["a", "a", "b", "b"], learners=2) == ("b",)
    assert engine_nodes(["a"]) == ("a",)
    assert engine_nodes(["a", "b"], learners=2) == ("a", "b"), "colocated"


def test_a_worker_asks_its_own_nodes_replica() -> None:
    replicas = {"a": "on a", "b": "on b"}
    assert nearest(replicas, "b") == (["on b"], ["on a"])
    assert nearest(replicas, "c") == (["on a", "on b"], [])
    assert nearest({ANYWHERE: "somewhere"}, "a") == (["somewhere"], [])


@pytest.mark.parametrize(
    ("cluster", "share"),
    [({}, 0), ({"device": "cuda"}, 1), ({"device": "cuda", "colocated": True}, 0.5)],
)
def test_learner_and_engine_have_a_gpu_each_or_half_of_one(
    cluster: dict[str, Any], share: float, tmp_path: Path
) -> None:
    config = RunConfig(pool=Epoch(), cluster=ClusterConfig(**cluster))
    assert Topology(config, tmp_path, "model", tmp_path)._gpus == share


@pytest.mark.parametrize(("cluster", "groups"), [({}, 8), ({"rollout_workers": 3}, 3), ({"groups_per_worker": 5}, 5)])
def test_a_worker_plays_its_share_of_one_batch_however_many_are_open(
    cluster: dict[str, Any], groups: int, tmp_path: Path
) -> None:
    config = RunConfig(pool=Epoch(batch_questions=8, max_staleness=2), cluster=ClusterConfig(**cluster))
    assert Topology(config, tmp_path, "model", tmp_path).groups_in_flight == groups


def test_a_rule_that_can_not_say_how_much_it_draws_is_named_before_a_worker_is_made(tmp_path: Path) -> None:
    class Failing(Epoch):
        @property
        def candidates(self) -> int:
            raise KeyError("share")

    made = Topology(RunConfig(pool=Failing(), cluster=ClusterConfig()), tmp_path, "model", tmp_path)
    with pytest.raises(Fault, match=r"^pool=epoch: candidates raised KeyError: 'share'$"):
        _ = made.groups_in_flight


def test_the_seedings_pool_bears_as_many_skipped_batches_as_the_runs() -> None:
    """Its experts bring the signal, so all of its batches may lack one; batches whose searches fail come on top."""
    run = Epoch(batch_questions=8, group_size=4, max_tool_failures=0.6, max_empty_batches=2)
    rule = seeding_rule(run, steps=3, questions=2)
    assert (rule.batch_questions, rule.group_size, rule.max_tool_failures) == (2, 4, 0.6)
    assert rule.max_empty_batches == 5


# --- on a real Ray, with CPUs in the GPUs' place ----------------------------------------------------


@ray.remote
class Tenant:
    def where(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def sees(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture
def places(local_ray: None) -> Iterator[Places]:
    granted = reserve([{"CPU": 1.0}] * 2, "box", 30.0)
    yield granted
    granted.release()


@pytest.mark.slow
def test_learner_and_engine_get_what_was_reserved_and_a_replaced_worker_its_place(places: Places) -> None:
    (node,) = set(places.nodes)
    assert len(places.nodes) == 2
    learner = Tenant.options(num_cpus=1, **places.bundle(0)).remote()
    engine = Tenant.options(num_cpus=1, **places.bundle(1)).remote()
    first, second = result(learner.where.remote()), result(engine.where.remote())
    assert first[0] == second[0] == node
    ray.kill(engine)
    replaced = Tenant.options(num_cpus=1, **places.bundle(1)).remote()
    assert result(replaced.where.remote())[1] not in (first[1], second[1])
    for actor in (learner, replaced):
        ray.kill(actor)


@pytest.mark.slow
def test_two_actors_share_a_bundle_by_halves(places: Places) -> None:
    halves = [Tenant.options(num_cpus=0.5, **places.bundle(0)).remote() for _ in range(2)]
    assert len({result(half.where.remote())[1] for half in halves}) == 2
    for half in halves:
        ray.kill(half)


@pytest.fixture(scope="module")
def tenant(local_ray: None) -> Iterator[Any]:
    """Put on this node, without a GPU: of a machine's two, which this process stands for."""
    env = {**QUIET, "CUDA_VISIBLE_DEVICES": "0,1"}
    here = on_node(ray.get_runtime_context().get_node_id())
    tenant = Tenant.options(num_cpus=0, runtime_env={"env_vars": env}, **here).remote()
    yield tenant
    ray.kill(tenant)


@pytest.mark.slow
def test_an_actor_can_be_put_on_a_node(tenant: Any, places: Places) -> None:
    assert result(tenant.where.remote())[0] == places.nodes[0]
    assert on_node(ANYWHERE) == {}


@pytest.mark.parametrize(("device", "wanted"), [("cpu", None), ("cuda", "expandable_segments:True")])
def test_the_learners_memory_grows_by_pages_on_a_gpu(
    device: str, wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Recorded:
        @staticmethod
        def options(**how: Any) -> Any:
            asked.update(how)
            return SimpleNamespace(remote=lambda *_: None)

    monkeypatch.setattr(topology, "LearnerActor", Recorded)
    config = RunConfig(pool=Epoch(), cluster=ClusterConfig(device=device, colocated=device == "cuda"))
    made = Topology(config, tmp_path, "model", tmp_path)
    made.__dict__["places"] = None
    made.learner()
    assert asked["runtime_env"]["env_vars"].get("PYTORCH_ALLOC_CONF") == wanted


def test_what_a_run_cannot_lose_is_on_the_learners_node(tmp_path: Path) -> None:
    """On a CPU of this machine's own Ray there is but one."""
    here = Topology(RunConfig(pool=Epoch(), cluster=ClusterConfig()), tmp_path, "model", tmp_path)
    assert here.home == ANYWHERE
    cluster = ClusterConfig(device="cuda", address="head:6379")
    spread = Topology(RunConfig(pool=Epoch(), cluster=cluster), tmp_path, "model", tmp_path)
    group: Any = None
    spread.__dict__["places"] = Places(group=group, nodes=("learner's", "engine's"))
    assert spread.home == "learner's"


@pytest.mark.slow
def test_an_actor_that_was_given_no_gpu_sees_none(tenant: Any) -> None:
    """Ray shows an actor all of them unless it is told not to."""
    assert result(tenant.sees.remote()) == ""


def test_what_could_never_be_reserved_is_refused_at_once(local_ray: None) -> None:
    with pytest.raises(UserError, match=r"cluster=box needs 4 GPU, and the nodes of the Ray cluster have 0 GPU; start"):
        reserve([{"GPU": 1.0}] * 4, "box", 600.0)


def test_what_others_have_is_waited_for_and_then_refused(places: Places) -> None:
    with pytest.raises(UserError, match=r"not free within cluster.start_timeout_s=0.1; `ray status` shows"):
        reserve([{"CPU": 1.0}], "box", 0.1)
    places.release()
    until(lambda: ray.available_resources().get("CPU", 0) >= 1)
    reserve([{"CPU": 1.0}], "box", 30.0).release()


@pytest.mark.parametrize(("colocated", "first"), [(True, 0), (False, 2)])
def test_an_engine_that_is_replaced_gets_the_card_that_the_lost_one_had(
    colocated: bool, first: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also when learners have left halves of other cards free meanwhile: Ray would take the first of them."""
    there = {"rollout-0", "rollout-1"}
    monkeypatch.setattr(topology, "is_there", lambda name: name in there)
    cluster = ClusterConfig(device="cuda", learners=2, rollout_workers=2, colocated=colocated)
    made = Topology(RunConfig(pool=Epoch(), cluster=cluster), tmp_path, "model", tmp_path)
    group: Any = None
    made.__dict__["places"] = Places(group=group, nodes=("a",) * cluster.gpus)

    def bundle(name: str) -> int:
        return int(made._place(name)["scheduling_strategy"].placement_group_bundle_index)

    assert [bundle(f"rollout-{i}") for i in range(2)] == [first, first + 1]
    there.remove("rollout-1")
    assert bundle("rollout-2") == first + 1


def test_each_engine_without_a_gpu_goes_to_the_node_with_the_fewest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there, nodes = {"rollout-0", "rollout-1", "rollout-2"}, ["a", "b"]
    monkeypatch.setattr(topology, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(topology, "is_there", lambda name: name in there)
    made = Topology(composed("cluster.address=head:6379"), tmp_path, "model", None)

    def node(name: str) -> str:
        return str(made._place(name)["label_selector"]["ray.io/node-id"])

    assert [node(f"rollout-{i}") for i in range(3)] == ["a", "b", "a"]
    there.remove("rollout-1")
    assert node("rollout-3") == "b", "where one has died"
    nodes.remove("b")
    assert node("rollout-4") == "a"
    alone = Topology(composed(), tmp_path, "model", None)
    assert alone._place("rollout-0") == {}
