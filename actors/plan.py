"""``mode=plan`` and the check before a start: what a configuration needs, and what this machine has.

A first form: placement, and the memory that is known before anything is loaded. Needs neither Ray nor
torch nor a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from agent.errors import UserError
from conf.schema import RunConfig

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One actor, where it runs, and what is known of its memory."""

    actor: str
    device: str
    gib: float
    """Weights, gradients and optimizer states, or an engine's share; activations are not in it."""
    parts: str


def placements(config: RunConfig) -> list[Placement]:
    """All actors of the configuration, the learner first."""
    cluster, model = config.cluster, config.model
    count = model.parameters * 1e9
    size = BYTES[model.dtype]
    # AdamW keeps two float32 moments, and a float32 master copy beside bfloat16 weights.
    states = count * (8 + (4 if model.dtype == "bfloat16" else 0))
    anchored = config.algorithm.kl != "none" or (
        config.algorithm.seeding.steps and config.algorithm.seeding.kl != "none"
    )
    reference = count * size if anchored else 0.0
    on = "GPU" if cluster.device == "cuda" else "CPU"
    plan = [
        Placement(
            actor="learner",
            device=f"{on} 0" if on == "GPU" else on,
            gib=(2 * count * size + states + reference) / GIB,
            parts=f"weights {count * size / GIB:.2f}, gradients {count * size / GIB:.2f}, AdamW {states / GIB:.2f}"
            + (f", KL reference {reference / GIB:.2f}" if reference else ""),
        )
    ]
    for i in range(cluster.rollout_workers):
        if on == "GPU":
            share = cluster.engine.gpu_memory_utilization * cluster.gpu_memory_gib
            parts = f"weights {count * size / GIB:.2f}, KV cache and activations {share - count * size / GIB:.2f}"
        else:
            share = count * size / GIB + cluster.engine.kv_cache_gib
            parts = f"weights {count * size / GIB:.2f}, KV cache {cluster.engine.kv_cache_gib}"
        plan.append(
            Placement(actor=f"rollout-{i}", device=f"{on} {i + 1}" if on == "GPU" else on, gib=share, parts=parts)
        )
    plan.append(
        Placement(actor="retrieval", device="CPU", gib=_heap_gib(config.retrieval.heap), parts="the JVM's heap")
    )
    plan.append(Placement(actor="pool", device="CPU", gib=0.1, parts="queries, books, groups in flight"))
    return plan


def table(config: RunConfig) -> str:
    """The plan as text, with what would not fit."""
    rows = placements(config)
    width = max(len(r.parts) for r in rows)
    lines = [f"cluster={config.cluster.name} model={config.model.name} ({config.model.parameters:g} G parameters)"]
    lines += [f"  {r.actor:<12}{r.device:<7}{r.gib:>7.2f} GiB   {r.parts:<{width}}" for r in rows]
    pool = config.pool
    lines.append(
        f"  a batch: {pool.candidates} queries x {pool.group_size} trajectories, at most {pool.batch_questions} groups "
        f"trained; staleness at most {pool.max_staleness}"
    )
    lines += [f"  does not fit: {problem}" for problem in problems(config)]
    return "\n".join(lines)


def problems(config: RunConfig) -> list[str]:
    """What in the plan exceeds the cards that the cluster's configuration names."""
    if config.cluster.device != "cuda":
        return []
    limit = config.cluster.gpu_memory_gib
    return [
        f"{r.actor} needs {r.gib:.1f} GiB before activations, cluster.gpu_memory_gib is {limit:g}"
        for r in placements(config)
        if r.device.startswith("GPU") and r.gib > limit
    ]


def check_machine(config: RunConfig) -> None:
    """Raises ``UserError`` when this machine lacks the GPUs that the cluster asks for; takes well under a second."""
    cluster = config.cluster
    if cluster.device != "cuda" or cluster.address is not None:
        return
    found = gpus()
    fitting = [gib for gib in found if gib >= 0.95 * cluster.gpu_memory_gib]
    if len(fitting) < cluster.gpus:
        have = f"{len(found)} of {', '.join(f'{g:.0f}' for g in found)} GiB" if found else "none"
        raise UserError(
            f"cluster={cluster.name} needs {cluster.gpus} CUDA GPUs of {cluster.gpu_memory_gib:g} GiB and this machine "
            f"has {have}; add mode=plan to see the plan without them, or use cluster=local"
        )


def gpus() -> list[float]:
    """GiB of each NVIDIA GPU, as the driver reports it; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=8, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    return [float(line) / 1024 for line in answer.split() if line.strip().isdigit()]


def _heap_gib(heap: str) -> float:
    units = {"k": 2**10, "m": 2**20, "g": 2**30}
    unit = units.get(heap[-1].lower())  # none: bytes
    return (int(heap[:-1]) * unit if unit else int(heap)) / GIB
