"""What goes without saying on a command line: a model by its path, a checkpoint as it was trained, where questions
come from, what ``cluster=auto`` may choose.

Whatever is said on the command line counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from agent.errors import UserError
from agent.paths import at_home
from conf.as_trained import PLACES, WORLD, agent_of, data_of
from conf.composing import SEVERAL, Composer, one_choice
from conf.schema import INFERENCE, OF_A_CHECKPOINT
from conf.topology import AUTO
from learner.checkpoint import put_back
from tasks.paths import is_named

ANY_MODEL = "model=folder"
"""The choice for a model that is given by its path."""
QUESTIONS, PASSAGES = "data=hotpotqa", "retrieval=wikipedia"
"""What any model but ``tiny`` is trained on and evaluated on."""
DENSE = "wikipedia-dense"
"""The choice of retrieval that builds its index of wiki-18."""
ASKING = ("train", "experts", "plan", "fetch", *INFERENCE)
"""Modes that need questions, or passages, and a model."""
_WORLDS = ("world_seed", "train_questions", "hop_shares", "eval_questions_per_hop", "dev_questions_per_hop")
OF_WORLD = tuple(f"data.{key}" for key in (*_WORLDS, "demonstrations", "novice"))
"""Settings of the built-in world alone: who gives one means it."""
_PLANNED = ("agent", "algorithm", "cluster", "model", "pool")
"""Groups with settings that the plan may choose."""
_FOR_LINES = ("experiment", "condition")
"""Groups whose files say what one could say on the command line."""
_NEEDED = ("model", "data", "retrieval", "cluster")
_OWN = ("data.questions", "data.eval_questions")
"""Files of the user's, of which the built-in world has none."""
_ELSEWHERE = {"retrieval", "retrieval.index", "retrieval.url", "retrieval.prebuilt", "retrieval.backend"}


def implied(composer: Composer, overrides: Sequence[Override], composed: DictConfig) -> list[str]:
    """The overrides that go without saying, to be put before those of the command line.

    ``composed`` is what these make, of a sweep with the first value of each.
    """
    _check_choices(overrides, composed)
    given = {str(o.key_or_group): o for o in overrides}
    model = _model_and_agent(given, composed.mode)
    chosen = "folder" if ANY_MODEL in model else composed.hydra.runtime.choices["model"]
    return [*model, *_questions_and_passages(given, composed, chosen), *_kept(composer, given, composed)]


def _check_choices(overrides: Sequence[Override], composed: DictConfig) -> None:
    """Raises ``UserError`` where a list is to stand for one choice, or nothing for one that every run needs."""
    listed = [str(o.key_or_group) for o in overrides if not o.is_sweep_override() and isinstance(o.value(), list)]
    groups = [key for key in listed if key not in SEVERAL and isinstance(composed.get(key), DictConfig)]
    choices = composed.hydra.runtime.choices
    for group in (*groups, *(name for name in _NEEDED if not isinstance(choices.get(name), str))):
        line = next((str(o.input_line) for o in overrides if str(o.key_or_group) == group), group)
        raise UserError(f"{line}: {one_choice(group)}")


def _kept(composer: Composer, given: Mapping[str, Override], composed: DictConfig) -> list[str]:
    """What ``cluster=auto`` isn't to choose: each setting that the command line gives, or a file of an experiment or a
    condition, in any job of a sweep. It may have its default's value: somebody has asked for that."""
    clusters = [composed.hydra.runtime.choices["cluster"], *values(given.get("cluster"))]
    if AUTO not in clusters:
        return []
    params = composer.varied(composed)
    said = {*given, *(str(param.key_or_group) for param in params)}
    for override in (o for o in (*params, *given.values()) if str(o.key_or_group) in _FOR_LINES):
        for line in sweep_lines(override):
            said |= composer.said_by([line], _FOR_LINES)
    kept = sorted(key for key in said if key.partition(".")[0] in _PLANNED and "." in key)
    return [f"cluster.auto_keeps=[{','.join(kept)}]"] if kept else []


def _model_and_agent(given: Mapping[str, Override], mode: str) -> list[str]:
    """The default model's settings aren't meant for a model that is given by its path; a checkpoint brings its own."""
    found: list[str] = []
    checkpoints = values(given.get("checkpoint")) if mode in OF_A_CHECKPOINT else []
    for path in (*checkpoints, *(values(given.get("resume")) if mode == "train" else [])):
        put_back(at_home(path).parent)  # before anything is looked for in it
    if checkpoints and "agent" not in given:
        found += agent_of(checkpoints)
    if "model" in given:
        return found
    played = checkpoints or (values(given.get("evaluation.endpoint.model")) if mode == "eval" else [])
    named = played or values(given.get("model.path"))  # what is played says itself what it is (conf/schema.py)
    return [ANY_MODEL, *found] if named else found


def _questions_and_passages(given: Mapping[str, Override], composed: DictConfig, model: str) -> list[str]:
    """HotpotQA and Wikipedia for any ``model`` but ``tiny``; Wikipedia for named questions that come without passages;
    of a checkpoint what its run was trained on."""
    choices, mode = composed.hydra.runtime.choices, composed.mode
    found: list[str] = []
    if choices["retrieval"] == DENSE and not given.keys() & {"data.corpus", "retrieval.index"}:
        found.append("data.corpus=wiki-18")
        if mode in ("index", "serve") and "data" not in given:
            return ["data=jsonl", *found]
    if mode in ("index", "serve") and "data.corpus" in given and "data" not in given and not found:
        return ["data=jsonl"]
    if mode not in ASKING:
        return found
    if choices["data"] == "world" and "data" not in given:
        checkpoints = values(given.get("checkpoint"))
        divided = mode == "calibrate" or (mode == "eval" and "data.eval_questions" not in given)
        before = data_of(checkpoints, mode if divided else "") if mode in OF_A_CHECKPOINT else None
        of_the_world = _of_the_world(given)
        own = given.keys() & ({*_OWN, "data.corpus"} if mode in INFERENCE else {*_OWN})
        if before is not None and (WORLD in before if of_the_world else not (own and WORLD in before)):
            return [*_fitting(before, given, composed), *found]
        if of_the_world:
            return found
        if own:
            return ["data=jsonl", *found]
        if "tiny" in (model, *values(given.get("model"))):
            return []
        found.append(QUESTIONS)
    named = QUESTIONS in found or any(
        is_named(str(composed.data[key] or "").lstrip("['\"")) for key in ("questions", "eval_questions")
    )
    if named and choices["retrieval"] == "bm25" and not given.keys() & _ELSEWHERE and not composed.data.corpus:
        found.append(PASSAGES)
    return found


def _fitting(before: Sequence[str], given: Mapping[str, Override], composed: DictConfig) -> list[str]:
    """What goes with the settings that are ``given``, of those of a checkpoint's run.

    Another ranker ranks the same corpus. Another corpus is ranked as the run's was, another place has its own ranking.
    """
    moved, other = "data.corpus" in given, bool(given.keys() & _ELSEWHERE)
    places = [f"retrieval.{name}" for name in PLACES]
    server = any(line.startswith("retrieval.url=") and not line.endswith("=null") for line in before)
    kept = []
    for line in before:
        key = line.partition("=")[0]
        of_passages = key.partition(".")[0] == "retrieval"
        if not (of_passages and (other or (moved and server))) and not (moved and key in places):
            kept.append(line)
    placed = any(OmegaConf.select(composed, key) for key in places) or any(
        line.partition("=")[0] in places and not line.endswith("=null") for line in kept
    )
    return [line for line in kept if not (placed and line.startswith("data.corpus="))]


def _of_the_world(given: Mapping[str, Override]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in given for name in OF_WORLD)


def values(override: Override | None) -> list[str]:
    """The paths or names that an override gives, several of a sweep; none where one is null."""
    if override is None:
        return []
    if not override.is_sweep_override():
        value = override.value()
        return [] if value is None else [str(value)]
    found = [line.partition("=")[2].strip("'\"") for line in sweep_lines(override)]
    return [] if any(value.lower() == "null" for value in found) else found


def sweep_lines(override: Override) -> list[str]:
    """The override for each value of a sweep, itself if it is none."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep():
        raise UserError(f"{line}: has no list of values to run; write them out, or as range(start,stop,step)")
    values = override.value()
    if isinstance(values, ChoiceSweep | RangeSweep) and values.shuffle:  # by a generator that nothing seeds
        raise UserError(f"{line}: shuffle() draws another order at each start; write the values in the order you want")
    found = [f"{line.partition('=')[0]}={value}" for value in override.sweep_string_iterator()]
    if not found:
        raise UserError(f"{line}: has no value to run; range(start,stop,step) leaves stop out")
    return found
