"""What has to exist before any actor starts: the task's files, and a model folder to start engines from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import UserError, one_of
from agent.protocol import PROTOCOLS, Dialogue
from agent.rewards import Scorer
from agent.tokens import Tokenizer
from conf.schema import RunConfig
from learner.skeleton import write_skeleton
from tasks.demonstrations import Demonstration, as_trajectory, end_ids
from tasks.experts import check_fits
from tasks.load import Task, load
from tasks.tokenizer import train

WARM_START_FORMAT = 2
"""Raise it when the same settings would warm-start another policy than before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run's inputs, checked."""

    task: Task
    model_path: str
    """A folder (or hub name) with a configuration and a tokenizer; it may have no weights yet."""
    warm_start_key: str
    """Names everything that determines the warm-started policy."""
    experts: tuple[Demonstration, ...] = ()
    """Expert trajectories of the seeding, one per question; none without a seeding."""


def prepare(config: RunConfig, run_dir: Path) -> Prepared:
    """Loads and checks the data, and makes the folder of a model that is built from scratch.

    Raises ``UserError`` for bad data, an unknown protocol or reward, a missing tokenizer, a question whose
    prompt is too long, or expert trajectories that are wrong or don't fit the agent's limits.
    """
    one_of(config.agent.protocol, PROTOCOLS, "agent.protocol")
    Scorer(config.reward, PROTOCOLS[config.agent.protocol])  # the workers make theirs when it is late to complain
    task = load(config.data, config.seed, config.cache, evidence_match=config.reward.evidence_match)
    if config.group.strategy == "continuation" and not any(q.supporting for q in task.train):
        raise UserError(
            "group=continuation cuts where a question's supporting documents were found, and no training question "
            "names any; add metadata.supporting_titles to data.questions, or use group=plain"
        )
    model_path = config.model.path
    if model_path is None:
        folder = run_dir / "model"
        if not folder.exists():
            protocol = PROTOCOLS[config.agent.protocol]
            train(
                task.tokenizer_text(protocol, config.agent.top_k),
                tags=protocol.tags,
                folder=folder,
                vocab_size=config.model.vocab_size,
            )
            # Positions cost a Qwen2 nothing; room to spare lets the same model be used on longer texts.
            write_skeleton(folder, config.model, context=max(_longest(config), 4096))
        model_path = str(folder)
    _check_context(config, model_path)
    tokenizer = Tokenizer(model_path)
    dialogue = Dialogue.of(tokenizer, config.agent)
    _check_prompts(dialogue, task, config.agent.max_prompt_tokens)
    return Prepared(
        task=task,
        model_path=model_path,
        warm_start_key=_warm_start_key(config, model_path),
        experts=_experts(config, task, dialogue, tokenizer),
    )


def _longest(config: RunConfig) -> int:
    """Tokens of the longest episode."""
    return config.agent.max_prompt_tokens + config.agent.max_response_tokens


def _check_context(config: RunConfig, model_path: str) -> None:
    from transformers import AutoConfig

    try:
        context = getattr(AutoConfig.from_pretrained(model_path), "max_position_embeddings", None)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model.path={model_path}: no model's configuration can be loaded from it ({first})") from error
    if context is not None and _longest(config) > context:
        raise UserError(
            f"agent.max_prompt_tokens + agent.max_response_tokens = {_longest(config)}, but the model's context is "
            f"{context} tokens; lower one of them"
        )


def _check_prompts(dialogue: Dialogue, task: Task, limit: int) -> None:
    for question in (*task.train, *task.eval):
        if (length := len(dialogue.prompt_ids(question.text))) > limit:
            raise UserError(
                f"question {question.id}: its prompt has {length} tokens, more than agent.max_prompt_tokens={limit}; "
                "shorten the question or raise the limit"
            )


def _experts(config: RunConfig, task: Task, dialogue: Dialogue, tokenizer: Tokenizer) -> tuple[Demonstration, ...]:
    """The seeding's experts. Those of a file that only the supervised warm start will read are checked here too."""
    protocol, top_k = dialogue.protocol, config.agent.top_k
    seeding = config.algorithm.seeding
    experts = task.experts(protocol, top_k, seeding.experts, config.seed) if seeding.steps else ()
    imitated = task.demonstrations(protocol, top_k) if config.data.experts and config.algorithm.warm_start.steps else ()
    for expert in (*experts, *imitated):
        check_fits(as_trajectory(expert, dialogue, end_ids=end_ids(dialogue, tokenizer)), config.agent)
    return experts


def _warm_start_key(config: RunConfig, model_path: str) -> str:
    """A digest of the settings, the tokenizer, the experts' file and the seed."""
    settings = {
        "format": WARM_START_FORMAT,
        "seed": config.seed,
        "model": asdict(config.model),
        "warm_start": asdict(config.algorithm.warm_start),
        "optimizer": config.algorithm.optimizer.kind,
        "data": asdict(config.data),
        "agent": asdict(config.agent),
    }
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=12)
    files = [Path(model_path) / name for name in ("tokenizer.json", "config.json")]
    if config.data.experts is not None:
        files.append(Path(config.data.experts).expanduser())
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()
