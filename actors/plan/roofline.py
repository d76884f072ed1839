"""How long a step takes if each part runs at a stated share of what its card can do.

A projection: no part of it was measured on a GPU. It leaves out what only a run shows (the longest episode of a
batch, searches, the loop's own time), so it is a floor for the seconds and a ceiling for the rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.plan.cards import Card, card, usable_bytes
from actors.plan.engine import EngineMemory, engine_memory
from actors.plan.learner import LearnerMemory, learner_memory
from conf.schema import RunConfig
from learner.packing import SHORTEST_SHARED, seen_again


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """The assumptions behind the numbers; the table prints all of them."""

    response_share: float = 0.25
    """Mean length of a response, as a share of ``agent.max_response_tokens``."""
    action_share: float = 0.4
    """Of a response's tokens, those that the policy wrote; the rest is passages."""
    learner_use: float = 0.40
    """Of the card's peak matrix rate, recomputation counted as work: large matrix products, some small kernels."""
    prefill_use: float = 0.45
    """The same for an engine that reads tokens."""
    decode_bandwidth: float = 0.65
    """Of the card's memory bandwidth, for an engine that writes tokens."""
    engine_step_s: float = 0.003
    """Seconds of each engine step that aren't the GPU's: scheduling, sampling, the loop."""
    host_bandwidth: float = 10.0
    """Of a copy within CPU memory, in 1e9 bytes per second."""


ASSUMED = Assumptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """Playing one batch, all workers together."""

    seconds: float
    trajectories: int
    together: int
    """Sequences that each engine decodes at once."""
    tokens_per_s: float
    """Sampled tokens, of all workers together."""
    limit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """Training on one batch, and getting the weights to the engines."""

    seconds: float
    tokens: float
    tokens_per_s: float
    model_use: float
    """Model-flops utilisation: 6 flops a weight and token, without the recomputation."""
    adding_s: float
    """Of that, summing the gradients of several learners."""
    publish_s: float
    limit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the run."""

    rollouts: Rollouts
    learning: Learning
    turns_s: float
    """Seconds of moving the engine's weights off the card and back, where learner and engine are colocated."""
    seconds: float
    overlapped: bool
    limit: str


def step(config: RunConfig, assumed: Assumptions = ASSUMED) -> Step:
    """A step of ``config``, which must be on CUDA."""
    gpu = card(config.cluster.card)
    engine = engine_memory(config, usable_bytes(config.cluster))
    rollouts = _rollouts(config, engine, gpu, assumed)
    learning = _learning(config, learner_memory(config), gpu, assumed)
    turns = 2 * engine.weights / (gpu.pcie * 1e9) if config.cluster.colocated else 0.0
    learnt = learning.seconds + learning.publish_s
    overlapped = config.pool.max_staleness > 0
    longer = "rollouts" if rollouts.seconds >= learnt else "learner"
    reason = rollouts.limit if longer == "rollouts" else learning.limit
    return Step(
        rollouts=rollouts,
        learning=learning,
        turns_s=turns,
        seconds=max(rollouts.seconds, learnt) if overlapped else rollouts.seconds + learnt + turns,
        overlapped=overlapped,
        limit=f"{longer}: {reason}",
    )


def _rollouts(config: RunConfig, engine: EngineMemory, gpu: Card, assumed: Assumptions) -> Rollouts:
    pool, agent = config.pool, config.agent
    trajectories = pool.bound() * pool.group_size
    mine = math.ceil(trajectories / config.cluster.rollout_workers)
    response = assumed.response_share * agent.max_response_tokens
    actions = assumed.action_share * response
    fitting = max(1, int(engine.kv_tokens / (agent.max_prompt_tokens + response)))
    bounds = {"KV cache": fitting, "cluster.engine.max_num_seqs": engine.sequences, "the batch": mine}
    together = min(bounds.values())
    context = agent.max_prompt_tokens + response / 2
    bandwidth = assumed.decode_bandwidth * gpu.bandwidth * 1e9
    rate = assumed.prefill_use * gpu.tflops * 1e12
    per_token = 2 * (engine.model.layer_parameters + engine.model.head_parameters)
    parts = {
        "reading weights": engine.weights / bandwidth,
        "reading the KV cache": together * context * engine.kv_per_token / bandwidth,
        "computing": together * per_token / rate,
        "the engine's own time": assumed.engine_step_s,
    }
    # Reading and computing go on at the same time; the engine's own time comes on top.
    moving = parts["reading weights"] + parts["reading the KV cache"]
    each = max(moving, parts["computing"]) + parts["the engine's own time"]
    # The K episodes of a group share their prompt in the prefix cache.
    read = mine * (response - actions) + mine / pool.group_size * agent.max_prompt_tokens
    parts = {name: seconds * mine * actions / together for name, seconds in parts.items()}
    parts["reading passages"] = read * 2 * engine.model.layer_parameters / rate
    seconds = each * mine * actions / together + parts["reading passages"]
    few = min(bounds, key=lambda name: bounds[name])
    return Rollouts(
        seconds=seconds,
        trajectories=trajectories,
        together=together,
        tokens_per_s=trajectories * actions / seconds,
        limit=f"{max(parts, key=lambda name: parts[name])} with {together} sequences at once ({few})",
    )


def _learning(config: RunConfig, memory: LearnerMemory, gpu: Card, assumed: Assumptions) -> Learning:
    pool, agent, model = config.pool, config.agent, memory.model
    sequences = pool.batch_questions * pool.group_size
    response = assumed.response_share * agent.max_response_tokens
    length = agent.max_prompt_tokens + response
    tokens, actions = sequences * length, sequences * response * assumed.action_share
    computed, pairs = _shared(pool.batch_questions, pool.group_size, agent.max_prompt_tokens, length, memory)
    head_passes = 3 if memory.lora_rank else 4
    forward = 2 * computed * model.layer_parameters + 4 * model.layers * model.query * pairs
    head = 2 * actions * model.head_parameters
    epochs = config.algorithm.epochs
    per_update = config.algorithm.minibatch_questions or pool.batch_questions
    updates = epochs * math.ceil(pool.batch_questions / per_update)
    scored = (config.algorithm.kl != "none") + (config.algorithm.old_logprobs == "learner" and updates > 1)
    flops = epochs * (work(memory, computed, pairs) + head_passes * head) + scored * (forward + head)
    learners = config.cluster.learners
    computing = flops / learners / (assumed.learner_use * gpu.tflops * 1e12)
    if memory.offload:
        updating = 2 * memory.own_states / (assumed.host_bandwidth * 1e9) + 2 * memory.gradients / (gpu.pcie * 1e9)
    else:
        updating = (2 * memory.own_states + 2 * memory.weights + memory.gradients) / (gpu.bandwidth * 1e9)
    # A ring: each learner passes on two times (L - 1) / L of the gradients; without peer-to-peer copies, through the
    # CPU's memory. Sharded states send each updated weight to all others.
    ring = (learners - 1) / learners * (2 * memory.gradients + (memory.weights if memory.shard else 0))
    adding = ring / (min(gpu.pcie, assumed.host_bandwidth) * 1e9)
    updating, adding = updating * updates, adding * updates
    seconds = computing + updating + adding
    weights = model.parameters * memory.size
    if config.cluster.channel[0] == "nccl":
        # Passed on from card to card as they come, through the CPU's memory without peer-to-peer copies; digests.
        publish = weights / (min(gpu.pcie, assumed.host_bandwidth) * 1e9) + 2 * weights / (gpu.bandwidth * 1e9)
    else:  # down to the CPU; packed, hashed and read there; up to each engine, all at once
        publish = 2 * weights / (gpu.pcie * 1e9) + 3 * weights / (assumed.host_bandwidth * 1e9)
    parts = {"computing": computing, "the optimizer": updating, "adding gradients up": adding, "publishing": publish}
    useful = epochs * 3 * (2 * tokens * model.layer_parameters + head)
    return Learning(
        seconds=seconds,
        tokens=tokens,
        tokens_per_s=tokens / seconds,
        model_use=useful / learners / seconds / (gpu.tflops * 1e12),
        adding_s=adding,
        publish_s=publish,
        limit=max(parts, key=lambda name: parts[name]),
    )


def _shared(questions: int, group: int, prompt: int, length: float, memory: LearnerMemory) -> tuple[float, float]:
    """Tokens that are computed where a prompt is in a row once for all of its group, and (query, key) pairs.

    ``learner/packing.py`` puts the prompt but for its last token into each row that has some of the group; a row's end
    parts one group. What is shared takes some room for each that sees it.
    """
    shared = prompt - 1 if group > 1 and prompt > SHORTEST_SHARED else 0
    own = length - shared
    again = seen_again(memory.model.hidden, memory.model.query, memory.model.key)
    room = questions * (shared + group * (own + again * shared))
    rows = max(1, math.ceil((room - shared) / max(1, memory.row - shared)))
    copies = questions + rows - 1
    computed = questions * group * own + copies * shared
    pairs = questions * group * own * (shared + own / 2) + copies * shared * shared / 2
    return computed, pairs


def work(memory: LearnerMemory, tokens: float, pairs: float) -> float:
    """Flops of forward and backward through the layers, of so many tokens and (query, key) pairs that attend.

    A matrix product's backward is twice its forward (with adapters too: they are merged, so each matrix has a
    gradient). FlashAttention's is 2.5 times: it makes the scores again. What backward makes again stops at the last
    product whose input it needs: a feed-forward part's last projection is never made again.
    """
    m = memory.model
    wide, linear = 2 * m.hidden * m.intermediate, 2 * m.layer_parameters / m.layers
    attention = 4 * m.query * pairs
    again = {
        "layers": m.layers * (tokens * (linear - wide) + attention),
        "mlp": max(0, m.layers - memory.whole) * tokens * 2 * wide,
        "none": 0.0,
    }[memory.checkpointing]
    return m.layers * (3 * linear * tokens + 3.5 * attention) + again
