"""``mode=doctor``: the first ten minutes on a new box. Checks, measurements with random weights, and what is off.

    checks ─► each device ─► between devices ─► engine ─► learner (and what the engine sampled) ─► doctor.json

Each part runs in a process of its own (``actors/measuring.py``); one that fails is a line, and the others go on.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from actors import measuring
from actors.apart import Apart, together
from actors.engine_arguments import engine_environment
from actors.plan import measured
from actors.plan.cards import GIB, card
from actors.plan.fit import refusal
from actors.plan.layouts import chosen
from actors.plan.learner import RESERVE, learner_memory
from actors.plan.machine import Gpu, cards_of, check_cache, gpus, missing, snapshot
from actors.process import QUIET
from actors.training import learner_environment
from agent.errors import Fault, UserError, refused
from conf.schema import RunConfig
from learner.skeleton import MARKER
from retrieval_service.whole import written
from tracking.console import Console

PART_S = 420.0
"""Longest that one measurement may take; a large model's engine compiles for a few minutes when it first starts."""
GAP = {"float32": 1e-4, "bfloat16": 0.02}
"""Mean gap between engine and learner, in nats, above which something other than rounding is at work."""
SLOW = 0.7
"""Share of what is expected below which a device or a part is named."""
WORTH = 1.03
"""Times as fast that a setting has to make the learner to be named."""
FAMILIES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


def examine(config: RunConfig, run_dir: Path, console: Console) -> dict[str, Any]:
    """All of it; what was found, as it is in ``run_dir/doctor.json`` and where the plan looks for it.

    Raises ``UserError`` if nothing can be measured here at all, or nothing be kept of it.
    """
    lacking = [*missing(config, snapshot(config)), *filter(None, [refusal(config)])]
    for line in lacking:
        console.say(line, "yellow")
    cards = _cards(config)
    if config.cluster.device == "cuda" and not cards:
        raise UserError(f"cluster={config.cluster.name} runs on GPUs and this machine shows none: nothing to measure")
    check_cache(config)
    found: dict[str, Any] = {
        "format": measured.FORMAT,
        "made": datetime.now().isoformat(timespec="minutes"),
        "host": socket.gethostname(),
        "about": f"cluster={config.cluster.name} model={config.model.name} {config.model.dtype}",
        "lacking": lacking,
        "failed": [],
    }
    started = time.monotonic()
    doctor = _Doctor(config, run_dir, console, found, cards)
    doctor.devices()
    doctor.ways()
    doctor.engine_and_learner()
    found["seconds"] = time.monotonic() - started
    found["findings"] = findings(config, found)
    for line in measured.lines(found):  # said before it is written: the disk may be full
        console.say(line)
    for line in found["findings"]:
        console.say(line, "yellow")
    for path in (run_dir / "doctor.json", measured.place(config)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as file:
            file.write(json.dumps(found, indent=1).encode())
    end = "nothing is off" if not found["findings"] and not lacking else "see above"
    console.say(f"{end}; {run_dir / 'doctor.json'}, which mode=plan uses from now on; {found['seconds']:.0f} s", "bold")
    return found


class _Doctor:
    """The measurements; each puts what it found into ``found``."""

    def __init__(
        self, config: RunConfig, run_dir: Path, console: Console, found: dict[str, Any], cards: list[Gpu]
    ) -> None:
        self._config, self._console, self._found, self._cards = config, console, found, cards
        self._run_dir = run_dir
        self._gpu = config.cluster.device == "cuda"
        self._count = len(cards) if self._gpu else 1

    def devices(self) -> None:
        threads = self._config.cluster.learner_threads
        self._found["devices"] = []
        for number in range(self._count):
            index = self._index(number)
            with self._part(f"device {index}"):
                run = self._apart(f"device-{index}", number, measuring.device_speed, *self._where(), threads)
                self._found["devices"].append({"index": index, **run.result(PART_S)})

    def ways(self) -> None:
        """Between GPUs; on a CPU between two processes."""
        if self._gpu and self._count > 1:
            with self._part("copies between GPUs"):
                run = self._apart("peers", None, measuring.peer_copies, self._count)
                found = run.result(PART_S)  # its numbers are those of the cards that it was shown
                self._found["peers"] = [row | {"pair": [*map(self._index, row["pair"])]} for row in found]
        world = self._count if self._gpu else 2
        if world > 1:
            with self._part("a broadcast"):
                meeting = self._run_dir / f"meeting-{os.getpid()}"
                env, speed = self._config.cluster.nccl_environment, measuring.broadcast_speed
                ranks = [
                    self._apart(f"broadcast-{rank}", None, speed, rank, world, meeting, *self._where(), env=env)
                    for rank in range(world)
                ]
                try:
                    self._found["broadcast_gb_per_s"] = min(together(ranks, PART_S))
                finally:
                    meeting.unlink(missing_ok=True)

    def engine_and_learner(self) -> None:
        config = self._config
        folder: Path | None = None
        sampled: list[dict[str, Any]] = []
        with self._part("a model of random weights", doing="making"):
            folder = random_model(config, self._run_dir / "model")
        if folder is None:
            return
        with self._part("the engine"):
            env = engine_environment(config.cluster.engine, config.cluster.device)
            last = None if not self._gpu else self._count - 1
            run = self._apart("engine", last, measuring.engine_speed, config, folder, env=env)
            engine = run.result(PART_S)
            sampled = engine.pop("sampled")
            self._found["engine"] = engine
        if not sampled:
            return
        alone = measured.alone(config, chosen(config))
        for name, learner in zip(measured.LEARNERS, (alone, otherwise(alone)), strict=True):
            if self._gpu or learner is alone:  # on a CPU the second would take as long as all else
                self._learner(name, learner, folder, sampled)
        for name in measured.LEARNERS:
            for row in self._found.get(name, {}).get("rows", []):
                row["planned_gib"] = planned_gib(alone, row["row"])
        if self._gpu:
            self._found["ratios"] = ratios(config, self._found)

    def _learner(self, name: str, alone: RunConfig, folder: Path, sampled: list[dict[str, Any]]) -> None:
        with self._part("the learner" + (", compiled" if alone.algorithm.compile else "")):
            card = 0 if self._gpu else None
            env = learner_environment(alone)
            run = self._apart(name, card, measuring.learner_speed, alone, folder, sampled, env=env)
            self._found[name] = run.result(PART_S)

    def _index(self, number: int) -> int:
        """What a person knows the layout's card ``number`` by: there may be others between them, and before."""
        return self._cards[number].index if self._gpu else number

    def _where(self) -> tuple[str]:
        return (self._config.cluster.device,)

    def _apart(
        self,
        name: str,
        gpu: int | None,
        function: Callable[..., Any],
        *arguments: Any,
        env: Mapping[str, str] | None = None,
    ) -> Apart:
        """``gpu`` of the layout's is shown to it alone; None shows all of them."""
        own = {**QUIET, "GLOO_SOCKET_IFNAME": "lo", **(env or {})}
        if self._gpu:
            # As Ray gives them out (ray_start.py): in the order of the bus, without a card that is too small.
            shown = self._cards if gpu is None else [self._cards[gpu]]
            own["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            own["CUDA_VISIBLE_DEVICES"] = ",".join(str(card.index) for card in shown)
        return Apart(name, function, *arguments, env=own, folder=self._run_dir / "logs")

    @contextmanager
    def _part(self, what: str, doing: str = "measuring") -> Iterator[None]:
        """A phase on the console; if it fails, a line, and the next one."""
        with self._console.phase(f"{doing} {what}"):
            try:
                yield
            except (Fault, UserError) as error:
                self._found["failed"].append(str(error))
            except OSError as error:
                self._found["failed"].append(f"{doing} {what}: {refused(error)}")


def _cards(config: RunConfig) -> list[Gpu]:
    """The GPUs of the layout that are there; none for a CPU."""
    return cards_of(config.cluster, gpus()[0]) if config.cluster.device == "cuda" else []


def random_model(config: RunConfig, folder: Path) -> Path:
    """A folder from which engine and learner make the model of ``config`` with random weights, the same in both.

    Raises ``UserError`` when ``model.path`` says of none how it is built.
    """
    from transformers import AutoConfig

    from learner.context import as_transformers_reads
    from learner.hub import config_file
    from tasks.tokenizer import train

    folder.mkdir(parents=True, exist_ok=True)
    model, longest = config.model, config.agent.longest_episode
    train(("a few words for a tokenizer that nobody asks anything",), tags=(), folder=folder, vocab_size=300)
    if model.architecture is not None:
        sizes = {"vocab_size": model.vocab_size, "tie_word_embeddings": True, **model.architecture}
        made = AutoConfig.for_model(model.family, **sizes, bos_token_id=None, eos_token_id=None)
        made.architectures = [FAMILIES[model.family]]
    else:
        given = f"model.path={model.path}"
        made = as_transformers_reads(config_file(str(model.path), given).parent, given)
    made.dtype = model.dtype
    made.max_position_embeddings = max(longest, getattr(made, "max_position_embeddings", None) or 0)
    made.save_pretrained(folder)
    (folder / MARKER).write_text("Random weights, for mode=doctor.\n")
    return folder


def otherwise(config: RunConfig) -> RunConfig:
    """With the learner compiled where it isn't, and not where it is."""
    return replace(config, algorithm=replace(config.algorithm, compile=not config.algorithm.compile))


def planned_gib(config: RunConfig, row: int) -> float:
    """What the plan counts of what torch allocates for rows of ``row`` tokens: no CUDA context, no reserve."""
    memory = replace(learner_memory(config), row=row)
    return (memory.peak - memory.context - memory.reserve) / GIB


def ratios(config: RunConfig, found: Mapping[str, Any]) -> dict[str, float]:
    """See ``actors/plan/measured.py``."""
    engine, longest = found["engine"], max(config.agent.max_prompt_tokens, 1)
    made: dict[str, float] = {}
    count, tokens = engine["decode_together"], measuring.GENERATED
    projected = measured.decode_seconds(config, count, measuring.PROMPT, tokens)
    made["decode"] = projected * engine["decode_tokens_per_s"] / (count * tokens)
    projected = measured.prefill_seconds(config, 2, longest)
    made["prefill"] = projected * engine["prefill_tokens_per_s"] / (2 * longest)
    made["publication"] = measured.publication_ratio(config, engine["publication_s"])
    if rows := found.get("learner", {}).get("rows"):
        row = rows[-1]
        seconds = 2 * row["row"] / row["tokens_per_s"]
        alone = measured.alone(config, chosen(config))
        made["learner"] = measured.learner_ratio(alone, row["row"], row["sequence"], seconds)
    return made


def findings(config: RunConfig, found: Mapping[str, Any]) -> list[str]:
    """What is off, and what to set or to look at."""
    return [
        *_devices_off(config, found),
        *_ways_off(found),
        *_engine_off(found),
        *_learner_off(config, found),
        *found["failed"],
    ]


def _devices_off(config: RunConfig, found: Mapping[str, Any]) -> Iterator[str]:
    if config.cluster.device == "cpu":
        return
    gpu = card(config.cluster.card)
    named = f"cluster.card={config.cluster.card}"
    for device in found["devices"]:
        for what, value, expected, cause in (
            ("multiplies at", device["tflops"], gpu.tflops, "its power limit, its heat, or another program on it"),
            ("moves", device["gb_per_s"] / 1e3, gpu.bandwidth / 1e3, "another program on it, or its memory's clock"),
            ("gets from the CPU", device["from_cpu_gb_per_s"] / 1e3, gpu.pcie / 1e3, "its slot's lanes and generation"),
        ):
            unit = "TFLOP/s" if what == "multiplies at" else "TB/s"
            if value < SLOW * expected:
                yield (
                    f"GPU {device['index']} ({device['name']}) {what} {value:.3g} {unit}, and {named} stands for "
                    f"{expected:.3g}; look at {cause} (nvidia-smi -q), or name its card with cluster.card"
                )


def _ways_off(found: Mapping[str, Any]) -> Iterator[str]:
    through = [pair["pair"] for pair in found.get("peers", []) if not pair["peer_to_peer"]]
    if through:
        pairs = ", ".join(f"{a}-{b}" for a, b in through)
        yield (
            f"GPUs {pairs} copy through the CPU's memory: broadcasts and gradients do, too; if NCCL hangs, set "
            "cluster.nccl_p2p=false"
        )


def _engine_off(found: Mapping[str, Any]) -> Iterator[str]:
    parts = {"prefill": "the engine reads", "decode": "the engine writes", "learner": "the learner trains"}
    for name, what in parts.items():
        ratio = found.get("ratios", {}).get(name, 1.0)
        if ratio < SLOW:
            yield (
                f"{what} at {ratio:.0%} of what the plan assumes: mode=plan now counts with that; if the card's own "
                "speed is right, the logs of this run's folder may say why"
            )


def _learner_off(config: RunConfig, found: Mapping[str, Any]) -> Iterator[str]:
    for row in found.get("learner", {}).get("rows", []):
        if row["peak_gib"] and row["peak_gib"] > row["planned_gib"] + RESERVE / GIB:
            yield (
                f"the learner took {row['peak_gib']:.2f} GiB in rows of {row['row']} and the plan says "
                f"{row['planned_gib']:.2f} and {RESERVE / GIB:.2f} in reserve: lower algorithm.microbatch_tokens "
                "if its card is nearly full"
            )
    largest = [found.get(name, {}).get("rows", [])[-1:] for name in measured.LEARNERS]
    if all(largest):
        speed, other = (rows[0]["tokens_per_s"] for rows in largest)
        if other > WORTH * speed:
            yield (
                f"the learner trains {other:,.0f} tokens/s with algorithm.compile="
                f"{str(not config.algorithm.compile).lower()}, and {speed:,.0f} as it is set: set that"
            )
    gap, limit = found.get("learner", {}).get("gap"), GAP[config.model.dtype]
    if gap and gap["mean"] > limit:
        yield (
            f"engine and learner differ by {gap['mean']:.2g} nats on average ({limit:g} is what {config.model.dtype} "
            "explains): don't train with this; cluster.engine.enforce_eager=true says whether it is the CUDA graphs"
        )
