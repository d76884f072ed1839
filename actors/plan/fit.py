"""What of a configuration doesn't fit on its cards, and the smallest change that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

from actors.plan.cards import GIB, usable_bytes
from actors.plan.engine import CONTEXT, EngineMemory, engine_memory
from actors.plan.learner import RESERVE, LearnerMemory, learner_memory
from conf.schema import RunConfig
from conf.topology import CPU_BLOCK
from learner.config import OptimizerConfig

ROUND = 256
"""A microbatch is proposed in multiples of this many tokens."""
ALONE = 0.92
"""vLLM's share of a card of its own, at most."""
KV_CACHE = "cluster.engine.kv_cache_gib"
MOST_CHANGES = 4
"""Largest combination of changes that is looked for."""


def needs(learner: LearnerMemory, engine: EngineMemory, *, colocated: bool) -> tuple[int, int]:
    """Bytes that a card needs at the learner's peak, beside a sleeping engine if they are ``colocated``; and while the
    engine plays, beside an idle learner."""
    if not colocated:
        return learner.peak, engine.playing
    return learner.peak + engine.asleep, engine.playing + learner.at_rest + RESERVE


def problems(config: RunConfig) -> list[str]:
    """One line for each thing that is too large for its card; on a CPU for a KV cache that is too small."""
    limit = usable_bytes(config.cluster)
    engine = engine_memory(config, limit)
    if not limit:
        return [*_cache_problems(engine)]
    found = [*_learner_problems(config, engine, limit)] if config.cluster.learners else []
    if engine.broadcast and engine.playing + engine.broadcast > limit:
        found.append(
            f"the engine's share of {_gib(engine.share)}, its CUDA context ({_gib(engine.context)}) and two buckets of "
            f"new weights ({_gib(engine.broadcast)}) are "
            f"more than the card's {_gib(limit)}"
        )
    if engine.full_episodes < 1:
        found.append(
            f"an engine's KV cache of {_gib(max(0, engine.kv_cache))} holds {engine.kv_tokens} tokens, less than one "
            f"episode of {engine.episode}"
        )
    return found


def _least_tokens(engine: EngineMemory) -> int:
    """The smallest KV cache on a CPU: one episode in whole blocks, and the block that vLLM keeps back."""
    return (-(-engine.episode // CPU_BLOCK) + 1) * CPU_BLOCK


def least_cache(engine: EngineMemory) -> int:
    """The smallest ``cluster.engine.kv_cache_gib``, on a CPU."""
    return -(-_least_tokens(engine) * engine.kv_per_token // GIB)


def _cache_problems(engine: EngineMemory) -> Iterator[str]:
    least = _least_tokens(engine)
    if engine.kv_cache < least * engine.kv_per_token:
        yield (
            f"an engine's KV cache of {_gib(engine.kv_cache)} holds {engine.kv_tokens} tokens, and an episode of "
            f"{engine.episode} takes {least}, with the block that vLLM keeps back"
        )


def _learner_problems(config: RunConfig, engine: EngineMemory, limit: int) -> Iterator[str]:
    learner = learner_memory(config)
    peak, playing = needs(learner, engine, colocated=config.cluster.colocated)
    if peak > limit:
        beside = " beside a sleeping engine" if config.cluster.colocated else ""
        yield (
            f"the learner needs {_gib(peak)} at its peak ({learner.peak_phase}, rows of {learner.row} tokens){beside}, "
            f"and a card has {_gib(limit)}"
        )
    if config.cluster.colocated and playing > limit:
        yield (
            f"the engine's share of {_gib(engine.share)}, its CUDA context ({_gib(engine.context)}) and the idle "
            f"learner ({_gib(learner.at_rest)}, and {_gib(RESERVE)} in reserve) are more than the card's {_gib(limit)}"
        )


def longest_row(memory: LearnerMemory, limit: int) -> int:
    """The most tokens in one packed row with which the peak is at most ``limit`` bytes; 0: none."""
    low, high = 0, 1 << 22
    while low < high:
        middle = (low + high + 1) // 2
        if replace(memory, row=middle).peak <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def refusal(config: RunConfig) -> str | None:
    """Why ``config`` can't run on its cards and what would make it, in one line; None if it can."""
    found = problems(config)
    return f"cluster={config.cluster.name} model={config.model.name}: {found[0]}; {advice(config)}" if found else None


def advice(config: RunConfig) -> str:
    """The smallest change that makes a configuration with ``problems`` fit, as one would type it."""
    if not usable_bytes(config.cluster):
        return f"{KV_CACHE}={least_cache(engine_memory(config, 0))} makes it fit"
    change = smallest_change(config)
    if change is None:
        return "no change of the learner's or the engine's settings makes it fit: take a smaller model or a larger card"
    return f"{' '.join(change)} makes it fit"


@dataclass(frozen=True, slots=True)
class _Knob:
    """One setting that saves memory. ``value`` gives what to set it to, None where that would save nothing."""

    key: str
    value: Callable[[RunConfig], Any]


def _when(wanted: bool, value: Any) -> Any:
    return value if wanted else None


def _chunk(config: RunConfig) -> int | None:
    return _when(config.algorithm.logits_chunk > 256, 256)


def _microbatch(config: RunConfig) -> int | None:
    """The longest row that fits, if it is shorter than now and an episode fits into it."""
    limit = usable_bytes(config.cluster)
    if config.cluster.colocated:
        limit -= engine_memory(config, limit).asleep
    most = longest_row(learner_memory(config), limit)
    most -= most % ROUND if most - most % ROUND >= config.agent.longest_episode else 0
    return _when(config.agent.longest_episode <= most < config.algorithm.microbatch_tokens, most)


def _share(config: RunConfig) -> float | None:
    """vLLM's share: as much as an idle learner leaves, or as much as it can take of a card of its own."""
    limit, now = usable_bytes(config.cluster), config.cluster.engine.gpu_memory_utilization
    if config.cluster.colocated:
        best = int((limit - CONTEXT - learner_memory(config).at_rest - RESERVE) / limit * 100) / 100
    else:
        best = most_alone(config, limit)
    return _when(0 < best != now, best)


def most_alone(config: RunConfig, limit: int) -> float:
    """The largest share of a card of ``limit`` bytes that an engine alone on it can have, beside its context and the
    buckets of new weights."""
    engine = engine_memory(config, limit)
    return min(ALONE, int((limit - engine.context - engine.broadcast) / limit * 100) / 100)


def _bucket(config: RunConfig) -> int | None:
    return _when(config.cluster.channel[0] == "nccl" and config.cluster.weight_bucket_mib > 64, 64)


def _sequences(config: RunConfig) -> int | None:
    return _when(config.cluster.engine.max_num_seqs > 64, 64)


def _offload(config: RunConfig) -> OptimizerConfig | None:
    """Float32 states in CPU memory; what has no float32 states can't have them there."""
    optimizer = config.algorithm.optimizer
    return _when(not optimizer.offload, replace(optimizer, kind="adamw", offload=True))


def _response(tokens: int) -> Callable[[RunConfig], int | None]:
    return lambda config: _when(config.agent.max_response_tokens > tokens, tokens)


# In the order of their price: nothing, a little time, more time, precision, much time, another method, shorter answers.
# Those whose value depends on the others come after all of them when they are applied together.
KNOBS = (
    _Knob("algorithm.microbatch_tokens", _microbatch),
    _Knob("algorithm.logits_chunk", _chunk),
    _Knob("cluster.weight_bucket_mib", _bucket),
    _Knob("cluster.engine.gpu_memory_utilization", _share),
    _Knob("cluster.engine.max_num_seqs", _sequences),
    _Knob(
        "algorithm.gradient_checkpointing",
        lambda c: _when(c.algorithm.gradient_checkpointing not in ("auto", "layers"), "auto"),
    ),
    _Knob(
        "algorithm.optimizer.float32_gradients",
        lambda c: False if c.algorithm.optimizer.float32_gradients else None,
    ),
    _Knob("algorithm.optimizer.exact_master", lambda c: False if c.algorithm.optimizer.exact_master else None),
    _Knob(
        "algorithm.reference", lambda c: _when(c.algorithm.needs_reference and c.algorithm.reference == "device", "cpu")
    ),
    _Knob(
        "algorithm.optimizer.shard",
        lambda c: _when(c.cluster.learners > 1 and not c.algorithm.optimizer.shard, True),
    ),
    _Knob(
        "algorithm.optimizer.kind",
        lambda c: _when(c.algorithm.optimizer.kind == "adamw" and not c.algorithm.optimizer.offload, "adamw8bit"),
    ),
    _Knob("algorithm.optimizer", _offload),
    _Knob("model.lora_rank", lambda c: _when(c.model.lora_rank == 0, 16)),
    _Knob("agent.max_response_tokens", _response(4096)),
    _Knob("agent.max_response_tokens", _response(2048)),
    _Knob("agent.max_response_tokens", _response(1024)),
)
DEPENDENT = ("cluster.engine.gpu_memory_utilization", "algorithm.microbatch_tokens")


def smallest_change(config: RunConfig) -> tuple[str, ...] | None:
    """The fewest settings that make ``config`` fit, the cheapest of those, as ``key=value``; None if none do."""
    best = fitted(config)
    return None if best is None or not best[1] else best[1]


def fitted(config: RunConfig, fixed: Collection[str] = ()) -> tuple[RunConfig, tuple[str, ...]] | None:
    """``config`` with the fewest changes that make it fit, the cheapest of those, and these as ``key=value``; the
    settings ``fixed`` aren't touched."""
    if not problems(config):
        return config, ()
    free = [knob for knob in KNOBS if not any(f"{key}.".startswith(f"{knob.key}.") for key in fixed)]
    usable = [knob for knob in free if knob.key in DEPENDENT or knob.value(config) is not None]
    if problems(_with_all(config, usable)):
        return None  # what all of them don't make fit, no few of them do: thousands of combinations are spared
    for count in range(1, MOST_CHANGES + 1):
        for chosen in combinations(usable, count):
            if (change := _change(config, chosen)) is not None:
                return change
    return None


def _change(config: RunConfig, knobs: tuple[_Knob, ...]) -> tuple[RunConfig, tuple[str, ...]] | None:
    """These settings together as ``key=value``, or None if one of them is no use or it still doesn't fit."""
    keys = [knob.key for knob in knobs]
    if any(a == b or b.startswith(f"{a}.") for a, b in permutations(keys, 2)):
        return None  # one would undo the other
    written = {}
    for knob in _in_order(knobs):
        value = knob.value(config)
        if value is None:
            return None
        config = changed(config, knob.key, value)
        written[knob.key] = _written(knob.key, value)
    return None if problems(config) else (config, tuple(written[knob.key] for knob in knobs))


def _with_all(config: RunConfig, knobs: Sequence[_Knob]) -> RunConfig:
    """``config`` with all that these save, those that come later in the place of those that they undo."""
    for knob in _in_order(knobs):
        if (value := knob.value(config)) is not None:
            config = changed(config, knob.key, value)
    return config


def _in_order(knobs: Sequence[_Knob]) -> list[_Knob]:
    """Those last whose value depends on the others."""
    return sorted(knobs, key=lambda knob: DEPENDENT.index(knob.key) if knob.key in DEPENDENT else -1)


def changed(config: Any, key: str, value: Any) -> Any:
    """A copy of a dataclass with the setting at the dotted ``key`` set to ``value``."""
    name, _, rest = key.partition(".")
    return replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def changes(config: RunConfig) -> Iterator[tuple[str, int]]:
    """Each single setting that saves the learner memory, as ``key=value``, and the bytes of its peak that it saves."""
    now = learner_memory(config).peak
    for knob in KNOBS:
        value = knob.value(config)
        if value is None or knob.key.startswith(("cluster.", "agent.")):
            continue
        saved = now - learner_memory(changed(config, knob.key, value)).peak
        if saved > 0:
            yield _written(knob.key, value), saved


def _written(key: str, value: Any) -> str:
    """As one would type it."""
    if isinstance(value, OptimizerConfig):
        return f"{key}.kind={value.kind} {key}.offload=true"
    return f"{key}={str(value).lower()}"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
