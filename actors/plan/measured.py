"""What ``mode=doctor`` has measured with this card and model, in the place of the plan's assumptions.

A ratio is the seconds that the plan projects for what was measured, by what that took: the plan with the assumptions
divided so says of the measured situation what was measured, and of any other what follows from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.plan.architecture import architecture
from actors.plan.cards import card
from actors.plan.host import weight_bytes
from actors.plan.roofline import ASSUMED, Assumptions, Step, step
from agent.errors import UserError
from agent.pool.rules.epoch import Rule as Epoch
from agent.readable import json_of
from conf.schema import RunConfig
from learner.config import AlgorithmConfig

FORMAT = 3
"""Raise it when ``doctor.json`` changes its meaning."""

LEARNERS = ("learner", "learner_otherwise")
"""In ``doctor.json``: as it is set, and with ``algorithm.compile`` the other way."""


def place(config: RunConfig) -> Path:
    """Where the last measurement with ``config``'s card and model is kept. Models of one name may be of two sizes."""
    cluster, model = config.cluster, config.model
    kind = cluster.card if cluster.device == "cuda" else "cpu"
    adapters = f"-lora{model.lora_rank}" if model.lora_rank else ""
    size = architecture(model).parameters
    return config.cache / "doctor" / f"{kind}-{model.name}-{size}-{model.dtype}{adapters}.json"


def measured(config: RunConfig) -> Mapping[str, Any] | None:
    """What the doctor found; None if it hasn't looked, or another version of it has.

    Raises ``UserError`` for a file that can't be read.
    """
    file = place(config)
    try:
        if not file.is_file():
            return None
        found = json_of(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        if found.get("format") != FORMAT:
            return None
        _check(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file}: can't be read ({why}); delete it, or run mode=doctor again") from error
    return found


def _check(found: Mapping[str, Any]) -> None:
    """Raises what reading ``found`` would raise later, and ``ValueError`` for a ratio that is no number above 0."""
    for name, ratio in found.get("ratios", {}).items():
        if not (isinstance(ratio, int | float) and 0 < ratio < math.inf):
            raise ValueError(f"ratios.{name} is {ratio!r}, and not a number above 0")
    list(lines(found))


def assumptions(config: RunConfig) -> Assumptions:
    """The plan's assumptions, with what was measured in their place."""
    found = measured(config)
    return ASSUMED if found is None or config.cluster.device == "cpu" else adjusted(found.get("ratios", {}))


def basis(config: RunConfig) -> str:
    """Where the plan's seconds for ``config`` come from."""
    never = assumptions(config) == ASSUMED
    return "a projection that was never run" if never else "with what was measured here"


def adjusted(ratios: Mapping[str, float]) -> Assumptions:
    """``ASSUMED`` with the ``ratios`` that were measured; what wasn't stays."""
    decode = ratios.get("decode", 1.0)
    return replace(
        ASSUMED,
        learner_use=ASSUMED.learner_use * ratios.get("learner", 1.0),
        prefill_use=ASSUMED.prefill_use * ratios.get("prefill", 1.0),
        decode_bandwidth=ASSUMED.decode_bandwidth * decode,
        engine_step_s=ASSUMED.engine_step_s / decode,
        host_bandwidth=ASSUMED.host_bandwidth * ratios.get("publication", 1.0),
    )


def alone(config: RunConfig, algorithm: AlgorithmConfig) -> RunConfig:
    """The learner of ``config`` as it is measured: one, in one update of the main part, with all states its own.

    ``algorithm`` is what the plan has chosen for it beside all else (``layouts.chosen``), and stays.
    """
    return replace(
        config,
        algorithm=replace(
            algorithm,
            epochs=1,
            minibatch_questions=0,
            optimizer=replace(algorithm.optimizer, shard=False),
            seeding=replace(algorithm.seeding, steps=0),
        ),
        cluster=replace(config.cluster, learners=1, rollout_workers=1),
    )


def learner_ratio(config: RunConfig, row: int, sequence: int, seconds: float) -> float:
    """Of an update on two rows of ``row`` tokens, every token trained, that took ``seconds``.

    The rows are sequences of ``sequence`` tokens, and ``config`` is that of ``alone``. The optimizer's part is not
    an assumption, and is taken off on both sides.
    """
    count = 2 * row // sequence

    def projected(use: float) -> float:
        assumed = replace(ASSUMED, learner_use=use)
        return _situation(config, assumed, count=count, prompt=1, response=sequence - 1, sampled=1.0).learning.seconds

    rest = projected(1e12)
    return (projected(ASSUMED.learner_use) - rest) / max(seconds - rest, 0.05 * seconds)


def publication_ratio(config: RunConfig, seconds: float) -> float:
    """Of packing, hashing and reading one version's weights on the CPU, and bringing them up to the card."""
    weights = weight_bytes(config) / 1e9
    up = weights / card(config.cluster.card).pcie
    return 3 * weights / max(seconds - up, 0.05 * seconds) / ASSUMED.host_bandwidth


def prefill_seconds(config: RunConfig, count: int, tokens: int, assumed: Assumptions = ASSUMED) -> float:
    """Projected seconds of reading ``count`` prompts that share nothing."""
    return _situation(config, assumed, count=count, prompt=1, response=tokens, sampled=0.0).rollouts.seconds


def decode_seconds(config: RunConfig, count: int, prompt: int, tokens: int, assumed: Assumptions = ASSUMED) -> float:
    """Projected seconds of ``count`` sequences that write ``tokens`` each, together."""
    return _situation(config, assumed, count=count, prompt=prompt, response=tokens, sampled=1.0).rollouts.seconds


def _situation(
    config: RunConfig, assumed: Assumptions, *, count: int, prompt: int, response: int, sampled: float
) -> Step:
    """A step of one learner and one engine on ``count`` trajectories of the same lengths."""
    alike = replace(
        config,
        pool=Epoch(batch_questions=max(1, count // 2), group_size=2),
        agent=replace(config.agent, max_prompt_tokens=prompt, max_response_tokens=response),
        cluster=replace(config.cluster, learners=1, rollout_workers=1),
        algorithm=replace(config.algorithm, epochs=1, minibatch_questions=0),
    )
    return step(alike, replace(assumed, response_share=1.0, action_share=sampled))


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, as the plan's table and the doctor show it."""
    yield f"measured by mode=doctor on {found['host']}, {found['made']} ({found['about']}):"
    for device in found.get("devices", []):
        copies = f", {device['from_cpu_gb_per_s']:.1f} GB/s from the CPU" if "from_cpu_gb_per_s" in device else ""
        yield (
            f"  device {device['index']}, {device['name']}: {device['tflops']:.3g} TFLOP/s in matrix products, "
            f"{device['gb_per_s']:.0f} GB/s in its memory{copies}"
        )
    for pair in found.get("peers", []):
        how = "peer to peer" if pair["peer_to_peer"] else "through the CPU"
        yield f"  GPU {pair['pair'][0]} to {pair['pair'][1]}: {pair['gb_per_s']:.1f} GB/s, {how}"
    if "broadcast_gb_per_s" in found:
        yield f"  broadcast: {found['broadcast_gb_per_s']:.2f} GB/s"
    if engine := found.get("engine"):
        yield (
            f"  engine: {engine['start_s']:.1f} s to start; reads {engine['prefill_tokens_per_s']:,.0f} tokens/s, "
            f"writes {engine['decode_tokens_per_s']:,.0f} tokens/s with {engine['decode_together']} sequences at once; "
            f"new weights in {engine['publication_s']:.2f} s"
        )
        if "sleep_s" in engine:
            yield f"  the engine falls asleep in {engine['sleep_s']:.2f} s and wakes in {engine['wake_s']:.2f} s"
    for name in LEARNERS:
        learner = "learner, compiled" if found.get(name, {}).get("compiled") else "learner"
        for row in found.get(name, {}).get("rows", []):
            peak = f", peak {row['peak_gib']:.2f} of {row['planned_gib']:.2f} GiB planned" if row["peak_gib"] else ""
            yield f"  {learner}: {row['tokens_per_s']:,.0f} tokens/s in rows of {row['row']:,}{peak}"
    if gap := found.get("learner", {}).get("gap"):
        yield (
            f"  engine against learner, {gap['tokens']} tokens: mean {gap['mean']:.2g} nats, median "
            f"{gap['median']:.2g}, 90 % below {gap['p90']:.2g}, 99 % below {gap['p99']:.2g}, largest {gap['max']:.2g}"
        )
    if ratios := found.get("ratios"):
        text = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        yield f"  against the plan's assumptions (1 is as assumed, less is slower): {text}"
