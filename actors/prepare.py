"""What has to exist before any actor starts: the task's files, and a whole model folder to start engines from."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from actors.evidence import check_evidence
from actors.plan.layouts import chosen
from actors.prompts import playable
from agent.aside import aside
from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.formats.tags import tags_of
from agent.hub import Fetched
from agent.paths import at_home
from agent.prompts import prompt_text
from agent.records import Question
from agent.rewards.scorer import Scorer
from agent.tokens import Tokenizer
from agent.tools.catalogue import tool_classes
from conf.schema import RunConfig
from learner.context import check_context, configuration
from learner.digests import file_digest
from learner.hub import local_folder
from learner.lacking import check_learnable
from learner.model_folder import check_folder
from learner.skeleton import write_skeleton
from retrieval_service.names import Digests, digests
from tasks.demonstrations import Demonstration, Encoded, Expert, as_trajectory, control_tokens, end_ids
from tasks.experts import check_fits, cut_blocks
from tasks.load import Task, load
from tasks.making.config import AUTO
from tasks.notices import write_notices
from tasks.tokenizer import train
from tasks.trained import trained_texts

WARM_START_FORMAT = 5
"""Raise it when the same settings would warm-start another policy than before."""


_OF_THE_MODEL = frozenset({".safetensors", ".json", ".jinja"})
"""Endings of the files in a model's folder that say what the policy is and how its prompts are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run's inputs, checked."""

    task: Task
    model_path: str
    """A folder (or hub name) with a configuration and a tokenizer, and weights unless this run wrote it."""
    warm_start_key: str
    """Names everything that determines the warm-started policy."""
    experts: tuple[Expert, ...] = ()
    """Expert trajectories of the seeding, one per question; none without a seeding."""
    trained_on: Digests = field(default_factory=lambda: digests(()))
    """Of the questions that this run, and what it began from, train on (``tasks/trained.py``)."""
    imitated: Encoded | None = None
    """What the supervised warm start imitates; None without one, or where its result lies in the cache."""


def warm_started(cache: Path, key: str) -> Path:
    """Where the weights of a warm start are kept."""
    return cache / "warm_start" / key


def look(
    config: RunConfig,
    say: Callable[[str], None] = lambda text: None,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> Task:
    """The data of a training run, checked as far as no tokenizer is needed: before anything is built or started.

    ``say`` is told of what takes long, ``count`` how many of a folder's documents are read. Raises ``UserError`` for
    bad data, an unknown protocol or reward, or wrong expert trajectories.
    """
    Scorer(config.reward, tags_of(config.agent))  # the workers make theirs when it is late to complain
    task = load(config.data, config.seed, config.cache, say=say, count=count)
    experts: list[Question] = []
    notices = list(task.notices)
    if config.data.experts not in (None, AUTO):  # a run's own are made when its tokenizer is known
        _expert_demonstrations(config, task)
        written, unread = task.file_of_experts(tags_of(config.agent))
        experts = [expert.question for expert in written]
        notices += [*unread, *cut_blocks(written, config.agent.max_passage_chars)]
    task, said = check_evidence(config, task, experts, say)
    return replace(task, notices=(*notices, *said))


def prepare(config: RunConfig, run_dir: Path, task: Task | None = None) -> Prepared:
    """Makes the folder of a model that is built from scratch, and checks ``task`` (of ``look``) against the limits.

    What there is to say of the data is in the task's notices, and listed in ``run_dir``. Raises ``UserError`` for a
    missing tokenizer, for a model that can't take the longest episode or whose attention doesn't see all of it, for
    prompts most of which are too long, or for expert trajectories that don't fit the agent's limits.
    """
    task = task or look(config)
    model_path = config.model.path
    if model_path is None:
        model_path = str(_skeleton(config, task, run_dir))
    given = f"model.path={model_path}"
    model = configuration(model_path, given)
    check_context(model, given, config.agent)
    check_learnable(model, given, config.agent)
    tokenizer = Tokenizer(model_path)
    dialogue = Dialogue.of(tokenizer, config.agent)
    task = playable(task, dialogue, tokenizer, config.agent.max_prompt_tokens)
    experts, imitated = _expert_demonstrations(config, task)
    written = functools.partial(as_trajectory, dialogue=dialogue, end_ids=end_ids(dialogue, tokenizer))
    seeds = tuple(Expert(question=e.question, trajectory=written(e)) for e in experts)
    shown = [written(episode) for episode in imitated]
    control = control_tokens(dialogue, tokenizer)
    for trajectory in (*(e.trajectory for e in seeds), *shown):
        check_fits(trajectory, config.agent, control)
    write_notices(run_dir, task.notices)
    key = _warm_start_key(config, model_path) if config.algorithm.warm_start.steps else ""
    cached = config.algorithm.warm_start.cache and warm_started(config.cache, key).is_dir()
    wanted = config.algorithm.warm_start.steps > 0 and config.resume is None and not cached
    if wanted and not shown:
        shown = [written(episode) for episode in task.demonstrations(dialogue.protocol, config.agent.top_k)]
    return Prepared(
        task=task,
        model_path=model_path,
        warm_start_key=key,
        experts=seeds,
        trained_on=trained_texts([*task.train, *(e.question for e in (*experts, *imitated))], at_home(model_path)),
        imitated=Encoded.of(shown) if wanted and shown else None,
    )


def check_model(
    path: str, given: str, agent: AgentConfig, *, learns: bool, hub: bool = True, fetched: Fetched | None = None
) -> Path:
    """The folder of the model ``path``, when all that a run of ``agent`` needs of it is there. Takes a second.

    That is its weights, by their headers; a tokenizer of this model, with a chat template if the agent wants one;
    a context for the longest episode; and if it ``learns``, an attention that the learner has. ``fetched`` is told how
    much of it has come from the hub. Raises ``UserError`` that starts with ``given`` (``checkpoint=…``).
    """
    folder = local_folder(path, given, hub=hub, fetched=fetched)
    rows = check_folder(folder, given)
    tokenizer = Tokenizer(folder, given)
    tokenizer.check(rows)
    Dialogue.of(tokenizer, agent).prompt_ids("?")
    model = configuration(str(folder), given)
    check_context(model, given, agent)
    if learns:
        check_learnable(model, given, agent)
    return folder


def _skeleton(config: RunConfig, task: Task, run_dir: Path) -> Path:
    """Writes the folder of a model that is built from scratch, whole or not at all.

    One that an earlier run left here may be half of it, or of other settings.
    """
    folder = run_dir / "model"
    protocol = tags_of(config.agent)
    with aside(folder) as there:
        made = train(
            task.tokenizer_text(protocol, config.agent.top_k),
            tags=protocol.tags,
            folder=there / "model",
            vocab_size=config.model.vocab_size,
        )
        # Positions cost a Qwen2 nothing; room to spare lets the same model be used on longer texts.
        longest = config.agent.longest_episode
        write_skeleton(made, config.model, context=max(longest, 4096))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def _expert_demonstrations(
    config: RunConfig, task: Task
) -> tuple[tuple[Demonstration, ...], tuple[Demonstration, ...]]:
    """The seeding's experts, and those of a file that the supervised warm start will read."""
    protocol, top_k = tags_of(config.agent), config.agent.top_k
    seeding = config.algorithm.seeding
    experts = task.experts(protocol, top_k, seeding.experts, config.seed) if seeding.steps else ()
    imitated = task.demonstrations(protocol, top_k) if config.data.experts and config.algorithm.warm_start.steps else ()
    return experts, imitated


def _warm_start_key(config: RunConfig, model_path: str) -> str:
    """A digest of the settings, the model's files, the experts' file, what is told of the tools, and the seed.

    How exactly the optimizer counts is as the plan chooses it for the card: the weights depend on it.
    """
    optimizer = chosen(config).optimizer
    settings = {
        "format": WARM_START_FORMAT,
        "seed": config.seed,
        "model": asdict(config.model),
        "warm_start": asdict(config.algorithm.warm_start),
        "optimizer": [optimizer.kind, optimizer.exact_master, optimizer.float32_gradients],
        "data": asdict(replace(config.data, experts=None)),  # what the file says counts, and not where it lies
        "agent": asdict(config.agent),
    }
    settings["prompt"] = prompt_text(config.agent)
    tools = tool_classes(config.agent.tools)
    settings["tools"] = [f"{tool.name} {tool.description} {dict(tool.parameters)}" for tool in tools]
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=12)
    model = local_folder(model_path, f"model.path={model_path}")  # on a cluster the path is the hub's name
    files = [path for path in sorted(model.iterdir()) if path.suffix in _OF_THE_MODEL and path.is_file()]
    if config.data.experts is not None:
        files.append(at_home(config.data.experts))
    for file in files:
        digest.update(file_digest(file).encode())
    return digest.hexdigest()
