"""Where a run's actors go in a Ray cluster of any number of nodes: a GPU bundle each, reserved together.

    bundle 0: learner      then one bundle for each other learner      then one for each engine
    one bundle for a learner and an engine where they are colocated

A run gets all of its GPUs or says at once what is missing. Retrieval needs no GPU: a replica runs on each node that
has an engine, so that no search crosses the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from agent.errors import UserError
from conf.topology import ClusterConfig

Bundle = Mapping[str, float]

ANYWHERE = ""
"""Stands for the node of an actor that Ray may put on any."""


def bundles(cluster: ClusterConfig) -> list[Bundle]:
    """What to reserve, the learner's first; nothing without GPUs."""
    return [{"GPU": 1.0}] * cluster.gpus


def lacking(wanted: Sequence[Bundle], nodes: Sequence[Bundle]) -> str | None:
    """What of ``wanted`` doesn't fit on ``nodes`` (the resources of each), as text; None if all do.

    Each bundle has to be on one node.
    """
    free = [dict(node) for node in nodes]
    placed = 0
    for bundle in wanted:
        for node in free:
            if all(node.get(name, 0.0) >= amount for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    node[name] -= amount
                placed += 1
                break
    if placed == len(wanted):
        return None
    names = sorted({name for bundle in wanted for name in bundle})
    needed = ", ".join(f"{sum(b.get(n, 0) for b in wanted):g} {n}" for n in names)
    there = "; ".join(", ".join(f"{node.get(n, 0):g} {n}" for n in names) for node in nodes) or "no nodes"
    return f"needs {needed}, and the nodes of the Ray cluster have {there}"


def engine_bundles(count: int, learners: int = 1) -> range:
    """Of so many bundles those with an engine each: those after the learners', or all where they are colocated."""
    return range(learners, count) or range(count)


def engine_nodes(nodes: Sequence[str], learners: int = 1) -> tuple[str, ...]:
    """The nodes with engines, each once, from the node of each bundle."""
    return tuple(dict.fromkeys(nodes[bundle] for bundle in engine_bundles(len(nodes), learners)))


def nearest(replicas: Mapping[str, Any], node: str) -> tuple[list[Any], list[Any]]:
    """The replica on ``node``, or all of them where there is none; and the others, for when it doesn't answer."""
    near = [replica for at, replica in replicas.items() if at == node or node not in replicas]
    return near, [replica for replica in replicas.values() if replica not in near]


@dataclass(frozen=True, kw_only=True)
class Places:
    """A reservation that has been granted."""

    group: PlacementGroup
    nodes: tuple[str, ...]
    """Id of each bundle's node."""

    def bundle(self, index: int) -> dict[str, Any]:
        """Options of an actor in that bundle; the learner of rank r is in bundle r.

        In a bundle of Ray's choice, an engine may get the half of another card that a learner has just left.
        """
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)}

    def release(self) -> None:
        remove_placement_group(self.group)


def reserve(wanted: Sequence[Bundle], name: str, timeout_s: float) -> Places:
    """Reserves all of ``wanted``, as close together as they can be.

    Raises ``UserError`` if the cluster ``name`` could never have them, or if they are still taken after ``timeout_s``.
    """
    if lack := lacking(wanted, [node["Resources"] for node in ray.nodes() if node["Alive"]]):
        raise UserError(f"cluster={name} {lack}; start Ray on more nodes, or use fewer cluster.rollout_workers")
    group = placement_group([dict(bundle) for bundle in wanted], strategy="PACK")
    if not group.wait(timeout_s):
        remove_placement_group(group)
        raise UserError(
            f"cluster={name}: its GPUs were not free within cluster.start_timeout_s={timeout_s:g}; `ray status` shows "
            "who has them"
        )
    where = placement_group_table(group)["bundles_to_node_id"]
    return Places(group=group, nodes=tuple(where[index] for index in range(len(wanted))))


def alive_nodes() -> list[str]:
    """The ids of the cluster's nodes."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def is_there(name: str) -> bool:
    """Whether an actor of this run has the name: nobody does any more once it has died."""
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


def on_node(node: str) -> dict[str, Any]:
    """Options of an actor on ``node``; if that has died, on another.

    By the node's label: a soft affinity is a hint, by which Ray 2.60 puts every third actor elsewhere.
    """
    if node == ANYWHERE:
        return {}
    return {"label_selector": {"ray.io/node-id": node}, "fallback_strategy": [{"label_selector": {}}]}
