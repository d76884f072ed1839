"""What lets a run do with the CPU memory that a machine has: the fewest settings, the cheapest of those."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from actors.plan.cards import usable_bytes
from actors.plan.engine import engine_memory
from actors.plan.fit import KV_CACHE, changed, least_cache
from actors.plan.host import heap_bytes, memory_bytes
from conf.schema import RunConfig

HEAP = "512m"
"""Of a JVM that has to do with little."""
Change = tuple[tuple[str, object], ...]
"""Settings and their values, which are made together."""


def advice(config: RunConfig, available: int) -> str:
    """What to set so that ``available`` bytes are enough for ``config``, to end a message with."""
    possible = [*_changes(config)]
    for count in range(1, len(possible) + 1):
        for chosen in combinations(possible, count):
            settings = [setting for change in chosen for setting in change]
            if _with(config, settings) <= available:
                return f"set {' '.join(f'{key}={str(value).lower()}' for key, value in settings)}"
    return "take a smaller model: no other setting makes that enough (mode=plan shows what takes it)"


def _changes(config: RunConfig) -> Iterator[Change]:
    """What may be changed, in the order of its price: nothing, a little time, precision, another method."""
    cluster, optimizer = config.cluster, config.algorithm.optimizer
    if heap_bytes(config.retrieval.heap) > heap_bytes(HEAP):
        yield (("retrieval.heap", HEAP),)
    if cluster.device == "cpu":
        least = least_cache(engine_memory(config, usable_bytes(cluster)))
        if least < cluster.engine.kv_cache_gib:
            yield ((KV_CACHE, least),)
    if cluster.rollout_workers > 1 and not cluster.colocated:
        yield (("cluster.rollout_workers", 1),)
    if cluster.learners and optimizer.kind == "adamw":
        offloaded = (("algorithm.optimizer.offload", False),) if optimizer.offload else ()
        yield (*offloaded, ("algorithm.optimizer.kind", "adamw8bit"))
    if cluster.learners and not config.model.lora_rank:
        yield (("model.lora_rank", 16),)


def _with(config: RunConfig, settings: list[tuple[str, object]]) -> int:
    """What ``config`` needs with ``settings``."""
    for key, value in settings:
        config = changed(config, key, value)
    return memory_bytes(config)
