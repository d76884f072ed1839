"""What a run needs of the machine around its cards: CPU memory, shared memory, disk."""

from __future__ import annotations

from actors.plan.architecture import BYTES, architecture
from actors.plan.cards import GIB, usable_bytes
from actors.plan.engine import engine_memory
from actors.plan.learner import LearnerMemory, learner_memory
from conf.schema import RunConfig

MIB = 2**20
SMALLEST_STORE = 512 * MIB
PROCESS = int(0.5 * GIB)
"""Of a Python process with torch, whatever it holds."""
CUDA_PROCESS = int(2.5 * GIB)
"""The same with CUDA's libraries and pinned buffers."""
TRAINS = ("train", "plan")
"""Modes that write checkpoints; a plan is of a training run."""
DISK_MARGIN = GIB // 4
"""Logs, metrics, trajectories, Ray's session files."""


def weight_bytes(config: RunConfig) -> int:
    """One version of the policy, as it is published."""
    return architecture(config.model).parameters * BYTES[config.model.dtype]


def object_store_bytes(config: RunConfig) -> int:
    """Size of Ray's object store: as configured, or 2.5 times the weights, for two versions and for groups, and the
    states of other ranks on their way into a checkpoint.

    Without a learner no weights are in it.
    """
    if config.cluster.object_store_mib:
        return config.cluster.object_store_mib * MIB
    if not config.cluster.learners:
        return SMALLEST_STORE
    return max(SMALLEST_STORE, weight_bytes(config) * 5 // 2) + _sent_to_save(config)


def memory_bytes(config: RunConfig) -> int:
    """CPU memory of all actors on this machine, the object store included."""
    return sum(memory_parts(config).values())


def memory_parts(config: RunConfig) -> dict[str, int]:
    """The same by what takes it."""
    cluster = config.cluster
    engine = engine_memory(config, usable_bytes(cluster))
    cuda = cluster.device == "cuda"
    asleep = engine.weights if cluster.colocated else 0
    parts = {
        "retrieval's JVM heap": heap_bytes(config.retrieval.heap),
        "Ray's object store": object_store_bytes(config),
        "rollout workers": cluster.rollout_workers * (CUDA_PROCESS + asleep if cuda else engine.total + PROCESS),
        "other processes": 3 * PROCESS,
    }
    if cluster.learners:
        learner = learner_memory(config)
        parts["learners" if cluster.learners > 1 else "learner"] = cluster.learners * (
            learner.host + CUDA_PROCESS if cuda else learner.static + PROCESS
        )
        parts["weights to publish"] = 2 * weight_bytes(config)  # a copy, and the buffer that they are packed into
        if config.mode in TRAINS:  # of other ranks' states their own copies, and those of rank 0
            parts["a checkpoint"] = _saved(learner) + 2 * _sent_to_save(config)
    return parts


def _sent_to_save(config: RunConfig) -> int:
    """Optimizer states of other ranks, which go through the object store to rank 0, which writes the checkpoint."""
    if config.mode not in TRAINS or not config.algorithm.optimizer.shard or config.cluster.learners < 2:
        return 0
    learner = learner_memory(config)
    return learner.states - learner.own_states


def checkpoint_bytes(config: RunConfig) -> int:
    """One checkpoint: what the learner saves, and the KL reference."""
    learner = learner_memory(config)
    return _saved(learner) + learner.reference_weights


def _saved(learner: LearnerMemory) -> int:
    """Weights and optimizer states; with adapters also the layers without them, so that a run that goes on begins with
    the same sums."""
    under = learner.model.layer_parameters * learner.size if learner.lora_rank else 0
    return learner.weights + learner.states + under


def output_bytes(config: RunConfig) -> int:
    """The run's folder: the checkpoints that are kept, the best one, one that is being written, and the small files."""
    if config.mode not in TRAINS:
        return DISK_MARGIN
    checkpoints, steps = config.checkpoints, config.algorithm.steps
    kept = checkpoints.keep
    if not kept and checkpoints.every:
        kept = steps // checkpoints.every
    kept = min(kept, steps)  # a run saves once in a step at most
    best = bool(checkpoints.best and checkpoints.keep)  # where all are kept, it is one of them
    return (max(1, kept) + best + 1) * checkpoint_bytes(config) + DISK_MARGIN


def heap_bytes(heap: str) -> int:
    """The JVM's -Xmx in bytes."""
    units = {"k": 2**10, "m": 2**20, "g": 2**30}
    unit = units.get(heap[-1].lower())  # none: bytes
    return int(heap[:-1]) * unit if unit else int(heap)
