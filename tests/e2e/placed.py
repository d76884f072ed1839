"""Where a run's actors go on a Ray cluster of two nodes with two cards each: ``placed.py ADDRESS FOLDER``.

Prints what was found, waits for a line of input, by which the second node has gone, and then asks again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray

from actors.placement import engine_nodes, on_node
from actors.topology import Topology
from agent.errors import UserError
from agent.pool.rules.epoch import Rule
from conf.schema import RunConfig
from conf.topology import ClusterConfig


@ray.remote(num_cpus=0, num_gpus=1)
class Tenant:
    """Takes a card and needs none."""

    def node(self) -> str:
        node: str = ray.get_runtime_context().get_node_id()
        return node


def pinned(node: str) -> set[str]:
    """Where actors that are to be on ``node`` are."""
    actors: list[Any] = [Tenant.options(num_gpus=0, **on_node(node)).remote() for _ in range(4)]  # type: ignore[attr-defined]
    return set(ray.get([actor.node.remote() for actor in actors]))


def main(address: str, folder: str) -> None:
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    cluster = ClusterConfig(name="ray", device="cuda", rollout_workers=3, address=address)
    config = RunConfig(pool=Rule(), cluster=cluster, cache_dir=folder)
    topology = Topology(config, Path(folder), "tiny", None)
    topology.check_nodes()
    places: Any = topology.places
    tenants: list[Any] = [Tenant.options(**places.bundle(0)).remote()]  # type: ignore[attr-defined]
    tenants += [Tenant.options(**places.bundle(bundle)).remote() for bundle in range(1, 4)]  # type: ignore[attr-defined]
    learner, *engines = ray.get([tenant.node.remote() for tenant in tenants])
    found = {
        "cards": [places.nodes.count(node) for node in dict.fromkeys(places.nodes)],
        "home": learner == topology.home == places.nodes[0],
        "engines": sorted(engines) == sorted(places.nodes[1:]),
        "retrieval": sorted(engine_nodes(places.nodes)) == sorted(set(engines)),
        "pinned": all(pinned(node) == {node} for node in set(places.nodes)),
    }
    print(json.dumps(found), flush=True)
    sys.stdin.readline()
    while sum(node["Alive"] for node in ray.nodes()) > 1:  # the head has yet to miss it
        time.sleep(0.1)
    (left,) = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    print("elsewhere:", all(pinned(node) == {left} for node in set(places.nodes)))
    places.release()
    try:
        print(Topology(config, Path(folder), "tiny", None).places)
    except UserError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
