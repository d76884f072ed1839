"""A checkpoint is evaluated and asked as it was trained: its run's agent comes with it, and its data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from agent.config import AgentConfig
from agent.errors import UserError
from agent.paths import at_home
from agent.readable import json_of
from retrieval_service.rankers import settings_of

MADE_WITH = Path("training") / "made_with.json"
"""In a run's checkpoint: with which settings it was made (``actors/provenance.py``)."""
PROMPT = MADE_WITH.with_name("prompt.txt")
"""Beside it: the text of the run's prompt, where that was a file of the user's."""

_QUESTIONS = (
    *("questions", "revision", "shares", "eval_questions", "dev_questions", "corpus", "evidence_match"),
    *("require_evidence", "eval_share", "dev_share", "passage_words", "overlap_words"),
)
PLACES = ("index", "prebuilt", "url")
"""Settings of the retrieval that say where the passages are, in place of ``data.corpus``."""
WORLD = "data=world"
_WORLD = ("world_seed", "eval_questions_per_hop", "dev_questions_per_hop", "evidence_match")
"""What the built-in world depends on, and the questions in it that aren't trained on."""
OF_THE_MACHINE = (
    *("threads", "device", "heap", "max_batch", "cache_size", "cache_mib", "timeout_s", "outage_s", "retries"),
    "token_file",
)
"""Settings of the retrieval that change nothing in what is found."""


def agent_of(checkpoints: Sequence[str]) -> list[str]:
    """The overrides that set the agent, and the model's numbers, of the run that wrote ``checkpoints``.

    None of a folder that no run wrote. Raises ``UserError`` when they are of runs with different agents.
    """
    copies = [copy for path in checkpoints if (copy := at_home(path) / PROMPT).is_file()]
    own = {"agent.prompt": f"agent.prompt={literal(str(copies[0]))}"} if copies else {}
    return [own.get(line.partition("=")[0], line) for line in _alike(checkpoints, _agent, "agent=…")]


def prompt_name(prompt: str) -> str:
    """What a prompt is called: a file by its name, a checkpoint's copy by that of the file that its run was given."""
    file = Path(prompt)
    if file.name == PROMPT.name:
        with suppress(OSError, ValueError, LookupError, TypeError):  # no run's, then
            beside = json_of(at_home(prompt).with_name(MADE_WITH.name).read_text(encoding="utf-8"))
            return Path(beside["settings"]["agent"]["prompt"]).name
    return file.name


def data_of(checkpoints: Sequence[str], mode: str) -> list[str] | None:
    """The overrides that name the questions and the passages of the run that wrote ``checkpoints``, for ``mode``.

    None of a folder that no run wrote. Raises ``UserError`` when they are of runs with different ones.
    """
    return _alike(checkpoints, partial(_data, mode=mode), "data=…") or None if checkpoints else None


def _alike(checkpoints: Sequence[str], lines_of: Callable[[Mapping[str, Any]], list[str]], say: str) -> list[str]:
    found = [(path, _settings(at_home(path) / MADE_WITH, lines_of)) for path in checkpoints]
    for path, lines in found[1:]:
        if lines != found[0][1]:
            differing = min({*lines} ^ {*found[0][1]}).partition("=")[0]
            raise UserError(
                f"checkpoint={path}: was trained with another {differing} than {found[0][0]}; evaluate them one by "
                f"one, or say {say} for both"
            )
    return found[0][1] if found else []


def _settings(file: Path, lines_of: Callable[[Mapping[str, Any]], list[str]]) -> list[str]:
    try:
        settings = json_of(file.read_text(encoding="utf-8"))["settings"]
        if (copy := file.with_name(PROMPT.name)).is_file():
            settings["agent"]["prompt"] = copy.read_text(encoding="utf-8")  # compared by what it says
        return lines_of(settings)
    except UserError as error:  # its ranker, say, isn't here; it is no folder that no run wrote
        raise UserError(f"checkpoint={file.parents[1]}: {error}") from error
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _agent(settings: Mapping[str, Any]) -> list[str]:
    agent, dtype = settings["agent"], settings["model"]["dtype"]
    known = {f.name for f in fields(AgentConfig)}
    lines = [f"agent.{name}={literal(value)}" for name, value in sorted(agent.items()) if name in known]
    return [*lines, f"model.dtype={literal(dtype)}"]


def _data(settings: Mapping[str, Any], mode: str) -> list[str]:
    data, retrieval = settings["data"], settings["retrieval"]
    if data["source"] == "world":
        return [WORLD, *(f"data.{name}={literal(data[name])}" for name in _WORLD if name in data)]
    lines = [f"data.{name}={literal(data[name])}" for name in _QUESTIONS if name in data]
    if _split_matters(data, mode):
        seed = data.get("split_seed")
        lines.append(f"data.split_seed={settings['seed'] if seed is None else seed}")
    backend = str(retrieval["backend"])
    known = {f.name for f in fields(settings_of(backend))} - {"backend", *OF_THE_MACHINE}
    lines += [f"retrieval={backend}", *(f"retrieval.{n}={literal(v)}" for n, v in retrieval.items() if n in known)]
    return ["data=jsonl", *lines]


def _split_matters(data: Mapping[str, Any], mode: str) -> bool:
    """Whether ``mode`` divides the questions as the run did; else runs of several seeds play the same ones."""
    if mode == "calibrate":
        return bool(data.get("dev_share"))
    return mode == "eval" and not data.get("eval_questions") and bool(data.get("dev_share") or data.get("shares"))


def literal(value: Any) -> str:
    """``value`` in the grammar of Hydra's overrides.

    >>> literal(["it's", None, True, 0.5])
    "['it\\\\'s',null,true,0.5]"
    """
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)
