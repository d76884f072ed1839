"""The plan as text: each card with what is on it, what would not fit, and how long a step may take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from actors.plan.cards import GIB, card, usable_bytes
from actors.plan.downloads import downloads, room
from actors.plan.engine import EngineMemory, engine_memory
from actors.plan.fit import advice, changes, longest_row, problems
from actors.plan.host import DISK_MARGIN, checkpoint_bytes, memory_bytes, memory_parts, output_bytes
from actors.plan.learner import LearnerMemory, learner_memory
from actors.plan.measured import assumptions, basis, measured, place
from actors.plan.measured import lines as as_measured
from actors.plan.roofline import Assumptions, step
from conf.schema import RunConfig
from retrieval_service.download import size_text
from retrieval_service.wikipedia import PREBUILT
from tasks.config import DataConfig

Row = tuple[str, int, str]
"""A part, its bytes, and a remark."""


def table(config: RunConfig) -> str:
    """The whole plan of ``config``."""
    cluster, model = config.cluster, config.model
    limit = usable_bytes(cluster)
    learner, engine = learner_memory(config), engine_memory(config, limit)
    kind = f"{cluster.gpus} x {cluster.card} with {limit / GIB:.2f} GiB each" if limit else "no GPU"
    lines = [
        f"cluster={cluster.name} model={model.name}: {learner.model.parameters:,} parameters in {model.dtype}, {kind}",
        *_section(_learners(config), learner_rows(learner)),
        f"  peak {learner.peak / GIB:.2f} GiB in phase {learner.peak_phase!r}"
        + (f"; the longest packed row that fits has {_longest(learner, engine, config):,} tokens" if limit else ""),
    ]
    if learner.host:
        lines.append(f"  in CPU memory: {learner.host / GIB:.2f} GiB")
    lines += _section(_engines(config), engine_rows(engine))
    lines.append(
        f"  {engine.kv_per_token:,} bytes of KV cache a token: {engine.kv_tokens:,} tokens, "
        f"{engine.full_episodes} episodes of {engine.episode:,} tokens at once"
    )
    if cluster.colocated:
        resting = f"{learner.at_rest / GIB:.2f} GiB of the learner stay while the engine plays"
        lines.append(f"  colocated: {resting}, {engine.asleep / GIB:.2f} of the engine while it sleeps")
    lines += _section(
        "CPU: all actors",
        [
            *((part, count, _remark(part, config)) for part, count in memory_parts(config).items()),
            ("together", memory_bytes(config), ""),
        ],
    )
    lines += _data(config)
    pool = config.pool
    lines.append(
        f"a batch: {pool.bound()} questions x {pool.group_size} trajectories, at most {pool.batch_questions} groups "
        f"trained; staleness at most {pool.max_staleness}"
    )
    if (doctors := measured(config)) is not None:
        lines += as_measured(doctors)
    elif place(config).is_file():
        lines.append(f"not counted with: {place(config)}, of another version of mode=doctor; run it again")
    found = problems(config)
    lines += [f"does not fit: {problem}" for problem in found]
    if found:
        lines.append(f"smallest change: {advice(config)}")
    elif limit:
        lines += _times(config)
        lines += [f"would save {saved / GIB:.2f} GiB of the learner's peak: {text}" for text, saved in changes(config)]
    return "\n".join(lines)


def _remark(part: str, config: RunConfig) -> str:
    """What there is to say of a part of the CPU memory."""
    if part == "retrieval's JVM heap" and config.cluster.address:
        return "on each node with an engine"
    return {"a checkpoint": "while it is written", "other processes": "the driver, the pool, the retrieval"}.get(
        part, ""
    )


def _data(config: RunConfig) -> Iterator[str]:
    """The questions, the passages, what has to be fetched for them, and the disk that it all takes."""
    yield "data and index"
    data, retrieval = config.data, config.retrieval
    yield f"  questions: {_questions(data)}"
    if (name := retrieval.prebuilt) is not None:
        known = PREBUILT[name]
        yield f"  index: {name}, {known.documents:,} passages: {known.about}"
        yield (
            f"  of it Lucene maps {size_text(known.unpacked)} or less into memory: what is free beside the actors' "
            f"{memory_bytes(config) / GIB:.1f} GiB makes searches fast, and isn't needed"
        )
    else:
        built = f"of {data.corpus or 'its passages'}, built where it isn't there"
        yield f"  index: {retrieval.place or built}"
    wanted = downloads(config)
    if wanted:
        yield "  not here yet; fetched at the start, or before by mode=fetch:"
        yield from (f"    {each}" for each in wanted)
    else:
        yield "  everything is here"
    run, cache = output_bytes(config) / GIB, (DISK_MARGIN + room(config)) / GIB
    yield f"  disk: {run:.1f} GiB in {config.output_dir}, {cache:.1f} GiB in {config.cache}"
    checkpoints = config.checkpoints
    if not checkpoints.keep and (checkpoints.every_minutes or checkpoints.best):  # how many is known afterwards
        yield (
            f"  more of it, {checkpoint_bytes(config) / GIB:.1f} GiB each, for checkpoints between those of "
            "checkpoints.every (checkpoints.every_minutes, best): checkpoints.keep=0 keeps all"
        )


def _questions(data: DataConfig) -> str:
    if data.source == "world":
        return "the built-in world's"
    held_out = data.eval_questions or f"{data.eval_share:.0%} of them"
    return f"{data.questions} to train on, {held_out} held out" if data.questions else f"{held_out}, to evaluate on"


def learner_rows(m: LearnerMemory) -> list[Row]:
    """What is on the learner's device at its peak and around it."""
    where = (" in CPU memory" if m.offload else "") + (f", a share of {m.states:,} bytes" if m.shard else "")
    trained = f"of {sum(m.trained):,} adapter values" if m.lora_rank else ""
    recomputed = {
        "layers": "one layer's is made again",
        "mlp": f"feed-forward parts are made again, {m.whole} of {m.model.layers} but for their projections",
        "none": "all layers' are kept",
    }[m.checkpointing]
    master = ", exact masters" if m.exact else ""
    reference = {"none": "none", "device": "", "cpu": "in CPU memory, here to score"}[m.reference]
    rows = [
        ("weights", m.weights, ""),
        (
            "gradients",
            m.gradients,
            f"{trained}{' ' * bool(trained)}float32" if m.wide or m.trained_size == 4 else trained,
        ),
        ("optimizer states", m.states_here, f"{m.optimizer}{master}{where}"),
        ("KL reference", m.reference_here, reference),
        ("kept activations", m.kept, f"rows of {m.row:,} tokens; {recomputed}"),
        ("last norm", m.last_norm, "phase head"),
        ("one layer, backward", m.layer_backward, "phase layers"),
        ("logits, forward", m.logits_forward, f"phase head; {min(m.chunk, m.row):,} tokens x {m.model.vocabulary:,}"),
        ("logits, backward", m.logits_backward, "phase head, after those"),
        ("optimizer step", m.update, "phase update; no activations then"),
    ]
    if m.on_gpu:
        rows += [("CUDA context", m.context, "stated"), ("reserve", m.reserve, "stated: fragmentation, the forgotten")]
    return rows


def engine_rows(m: EngineMemory) -> list[Row]:
    """What an engine takes."""
    rows = [("weights", m.weights, "")]
    if m.share:
        rows.append(("activations", m.activations, "of vLLM's profile run"))
        rows.append(("CUDA graphs", m.overhead, "stated"))
    rows.append(("KV cache", m.kv_cache, "the rest of its share" if m.share else ""))
    rows.append(("together", m.total, ""))
    if m.context:
        rows.append(("CUDA context", m.context, "beside that, stated"))
    if m.broadcast:
        rows.append(("buckets of new weights", m.broadcast, "beside that, while they are broadcast"))
    return rows


def _section(title: str, rows: list[Row]) -> Iterator[str]:
    yield title
    for part, count, remark in rows:
        yield f"  {part:<24}{count / GIB:>9.3f} GiB {count:>16,} bytes  {remark}".rstrip()


def _learners(config: RunConfig) -> str:
    learners = config.cluster.learners
    names = f"learner, learner-1 to learner-{learners - 1}, each" if learners > 2 else "learner and learner-1, each"
    return f"{_place(config, 0, learners)}: {names if learners > 1 else 'learner'}"


def _engines(config: RunConfig) -> str:
    workers, colocated = config.cluster.rollout_workers, config.cluster.colocated
    names = f"rollout-0 to rollout-{workers - 1}, each" if workers > 1 else "rollout-0"
    place = _place(config, 0 if colocated else config.cluster.learners, workers)
    return f"{place}{', too' if colocated else ''}: {names}"


def _place(config: RunConfig, first: int, count: int) -> str:
    """The cards that ``count`` actors have one each of."""
    if config.cluster.device == "cpu":
        return "CPU"
    return f"GPU {first} to {first + count - 1}" if count > 1 else f"GPU {first}"


def _longest(learner: LearnerMemory, engine: EngineMemory, config: RunConfig) -> int:
    asleep = engine.asleep if config.cluster.colocated else 0
    return longest_row(learner, usable_bytes(config.cluster) - asleep)


def _times(config: RunConfig) -> Iterator[str]:
    gpu, assumed = card(config.cluster.card), assumptions(config)
    yield f"a step by the roofline, {basis(config)}:"
    for share, name in ((assumed.response_share, "expected"), (1.0, "all responses at their longest")):
        s = step(config, replace(assumed, response_share=share))
        how = "overlapped" if s.overlapped else "one after the other"
        turns = f", {s.turns_s:.1f} s to move the engine off the card and back" if s.turns_s else ""
        adding = f", {s.learning.adding_s:.1f} s of it to add gradients up" if s.learning.adding_s else ""
        yield (
            f"  {name}: {s.seconds:.1f} s a step ({how}); {s.rollouts.trajectories} rollouts in "
            f"{s.rollouts.seconds:.1f} s at {s.rollouts.tokens_per_s:,.0f} sampled tokens/s; learner "
            f"{s.learning.seconds:.1f} s at {s.learning.tokens_per_s:,.0f} tokens/s, model-flops utilisation "
            f"{s.learning.model_use:.0%}{adding}; publishing {s.learning.publish_s:.1f} s{turns}"
        )
        yield f"    limited by {s.limit}"
    if config.group.strategy == "continuation":
        yield (
            f"  not in these times: continuations, up to {config.pool.group_size} shorter rollouts for each question "
            "none of whose was perfect"
        )
    yield from _assumptions(assumed)
    yield f"  of the card: {gpu.tflops:g} TFLOP/s in bfloat16, {gpu.bandwidth:g} GB/s, {gpu.pcie:g} GB/s of PCIe"


def _assumptions(a: Assumptions) -> Iterator[str]:
    yield (
        f"  assumed: responses take {a.response_share:.0%} of their limit, {a.action_share:.0%} of that sampled; "
        f"learner at {a.learner_use:.0%} of the matrix peak, prefill {a.prefill_use:.0%}"
    )
    yield (
        f"    decoding {a.decode_bandwidth:.0%} of the memory bandwidth and {1000 * a.engine_step_s:g} ms a step; "
        f"{a.host_bandwidth:g} GB/s in CPU memory"
    )
