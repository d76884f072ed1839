"""With what a checkpoint was made: its run's settings and digests of its data, and what a resumed run has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.paths import at_home
from agent.prompts import OwnPrompt, prompt_digest
from agent.readable import json_of
from agent.visible import json_text
from conf.as_trained import MADE_WITH, OF_THE_MACHINE
from conf.as_trained import PROMPT as PROMPT_FILE
from conf.schema import RunConfig
from learner.manifest import Files, one
from retrieval_service.corpus import corpus_stamp
from retrieval_service.index import read_manifest
from retrieval_service.wikipedia import PREBUILT
from tasks.digest import digest_of
from tasks.load import Task
from tracking.differences import Difference, differences, of_both

UNSAID = ("mode", "debug", "resume", "resume_allow_changes", "output_dir", "cache_dir")
"""Settings of no interest here: they differ by nature, or say only where something lies."""
MODEL = ("model.name", "model.path")
"""Which model it began with."""
HARMLESS = (
    *("checkpoint", "question", "tracker", "report", "checkpoints", "simulation", "serve"),
    *("run", "compare", "show", "view"),
    *("evaluation", "exit", "selectivity"),  # nothing that is evaluated is trained on; see ``EvalSeries``
    *("algorithm.rollout_budget", "algorithm.token_budget", "algorithm.mismatch_limit", "algorithm.dry_run"),
    *("algorithm.microbatch_tokens", "algorithm.logits_chunk", "algorithm.gradient_checkpointing"),  # memory alone
    *("algorithm.whole_layers", "algorithm.compile"),
    *(
        "algorithm.optimizer.shard",
        "algorithm.reference",
        "algorithm.warm_start",
        "algorithm.seeding",
    ),  # over before the first checkpoint
    *MODEL,  # the weights are the checkpoint's
    *("pool.lease_s", "pool.max_empty_batches", "pool.quarantine_after"),
    *(f"retrieval.{name}" for name in OF_THE_MACHINE),
    *("data.experts", "experts", "data.demonstrations", "data.novice", "data.strict"),
    *("data.eval_questions", "data.eval_questions_per_hop", "data.dev_questions", "data.dev_questions_per_hop"),
    "cluster",
)
"""Settings, and groups of them, that change nothing in what a run learns from its checkpoint on."""
HARMFUL = ("cluster.in_flight_updates",)
"""Exceptions from them."""
DIGESTED = ("data.questions", "data.corpus", "retrieval.index")
"""Paths: what they lead to is compared by its digest."""
TEXTS = TRAINING_QUESTIONS, HELD_OUT, CORPUS, PROMPT = "training questions", "held-out questions", "corpus", "prompt"
"""What is compared by digests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What a run that is resumed does differently."""

    harmless: tuple[Difference, ...] = ()
    """Logging, evaluation, budgets, machine: taken as they are."""
    others: tuple[Difference, ...] = ()
    """What decides what is learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What a run is made with."""

    settings: dict[str, Any]
    """The whole configuration, as it was asked for."""
    data: dict[str, str]
    """Digests of the texts that the run reads, by what they are."""
    prompt: str = ""
    """The text of a prompt of the user's own."""

    @classmethod
    def of(cls, config: RunConfig, task: Task, say: Callable[[str], None] = lambda text: None) -> Provenance:
        """Of a run that is about to start. ``say`` is told if the corpus has to be read for its checksum."""
        data = {
            TRAINING_QUESTIONS: digest_of(task.train),
            HELD_OUT: digest_of(task.eval),
            CORPUS: _searched(config, task, say),
            PROMPT: prompt_digest(config.agent),
        }
        own = config.agent.prompt
        return cls(settings=asked(config), data=data, prompt=own.text if isinstance(own, OwnPrompt) else "")

    def save(self, checkpoint: Path) -> Files:
        """Writes ``MADE_WITH``, and ``PROMPT`` where it is the user's own, and lists them."""
        (checkpoint / MADE_WITH).parent.mkdir(exist_ok=True)
        told = {"settings": self.settings, "data": self.data}
        (checkpoint / MADE_WITH).write_text(json_text(told), encoding="utf-8")
        files = one(checkpoint, MADE_WITH.as_posix())
        if self.prompt:
            (checkpoint / PROMPT_FILE).write_text(self.prompt, encoding="utf-8")
            files |= one(checkpoint, PROMPT_FILE.as_posix())
        return files

    @classmethod
    def load(cls, checkpoint: Path) -> Provenance | None:
        """What ``save`` wrote; None in a checkpoint of an earlier version, or a damaged one."""
        try:
            found = cls(**json_of((checkpoint / MADE_WITH).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if isinstance(found.settings, dict) and isinstance(found.data, dict) else None

    def changes(self, now: Provenance) -> Changes:
        """What differs in a run that goes on from this one's checkpoint."""
        found = [d for d in _differing(self.settings, now.settings) if d.key not in DIGESTED]
        found += differences(self.data, now.data)
        harmless = {d.key for d in found if d.key == HELD_OUT or _harmless(d.key, now.settings)}
        return Changes(
            harmless=tuple(d for d in found if d.key in harmless),
            others=tuple(d for d in found if d.key not in harmless),
        )

    def same_experiment(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run with ``settings`` would do what this one's did, as far as that is known without its data."""
        differing = _differing(self.settings, settings)
        paths = [at_home(str(path)).resolve() for d in differing if d.key == "model.path" for path in (d.before, d.now)]
        if paths and paths[0] == paths[1]:  # named otherwise
            differing = [d for d in differing if d.key not in MODEL]
        return all(d.key not in MODEL and _harmless(d.key, settings) for d in differing)


def _searched(config: RunConfig, task: Task, say: Callable[[str], None]) -> str:
    """What tells the searched passages from others."""
    if config.retrieval.prebuilt is not None:
        return PREBUILT[config.retrieval.prebuilt].md5
    if config.retrieval.index is None:
        return corpus_stamp(task.corpus, config.cache, say).checksum if task.corpus is not None else ""
    index = at_home(config.retrieval.index)
    manifest = read_manifest(index)
    if manifest is not None:
        return manifest.corpus_checksum
    return " ".join(sorted(file.name for file in index.glob("segments_*")))


def asked(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON has it."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return settings


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    return [d for d in of_both(before, now) if d.key not in UNSAID]


def _harmless(key: str, settings: Mapping[str, Any]) -> bool:
    if key == "algorithm.steps":  # a budget, unless the learning rate decays over them
        return bool(settings["algorithm"]["optimizer"]["schedule"] == "constant")
    if key in HARMFUL:
        return False
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)
