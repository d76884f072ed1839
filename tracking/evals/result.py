"""eval.json: what an evaluation found, how sure that is, and all that the numbers depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent import answers, protocol
from agent.config import AgentConfig
from agent.errors import UserError
from agent.inference import estimates
from agent.inference.evaluation import EvalRow, refusal
from agent.paths import at_home
from agent.prompts import prompt_digest
from agent.readable import json_of
from agent.visible import json_text
from agent.writing import write_text
from tasks.rows import named
from tracking.differences import differences, listed
from tracking.evals.rows import EvalRows

RESULT = "eval.json"
SOURCES = "eval_sources.json"
"""Which files the result was made of: a sweep asks, before it passes over an evaluation that has ended."""
SETTING = "eval_setting.json"
"""What the rows of a folder depend on, written before the first is played."""


def versions(agent: AgentConfig, prompt: str) -> dict[str, Any]:
    """Of what turns texts into numbers: normaliser and scores, extractor of the answer, and the prompt, which is called
    ``prompt``."""
    return {
        "normaliser": answers.VERSION,
        "extractor": {"version": protocol.VERSION, "format": agent.format, "protocol": agent.protocol},
        "prompt": {"name": prompt, "digest": prompt_digest(agent)},
    }


def result(
    rows: Sequence[EvalRow], setting: Mapping[str, Any], *, samples: int, seed: int, max_fault_share: float
) -> dict[str, Any]:
    """The content of ``eval.json``."""
    return {
        **setting,
        "episodes": len(rows),
        "faults": sum(row.fault for row in rows),
        "refused": refusal(rows, max_fault_share),
        "bootstrap": {"resamples": estimates.RESAMPLES, "level": estimates.LEVEL, "seed": seed},
        "slices": [{"by": by, "name": name, **_slice(own, samples, seed)} for by, name, own in estimates.slices(rows)],
    }


def _slice(rows: Sequence[EvalRow], samples: int, seed: int) -> dict[str, Any]:
    measured = {name: [*estimates.values(rows, name).values()] for name in estimates.MEASURES}
    measured |= {f"pass@{k}": [*estimates.passes(rows, k, samples).values()] for k in estimates.tried(samples)}
    return {
        "questions": len({row.question_id for row in rows}),
        "faults": sum(row.fault for row in rows),
        **{name: estimates.interval(each, seed) for name, each in measured.items()},
    }


def begin(folder: Path, setting: Mapping[str, Any]) -> None:
    """Notes what the folder's rows depend on, or compares it with what is noted there; without a row that ended without
    a fault nothing depends on that.

    Raises ``UserError`` with the differences where rows of another setting are there.
    """
    path = folder / SETTING
    now = json.loads(json.dumps(setting))
    if path.is_file() and any(not row.fault for row in EvalRows(folder).last()):
        try:
            said = json_of(path.read_text(encoding="utf-8"))
        except ValueError:
            said = None
        before = said if isinstance(said, dict) else {}
        if differing := listed(differences(before, _as_spelt(now, before))):
            raise UserError(f"output_dir={folder}: holds another evaluation, name another folder; differs: {differing}")
        return
    aside = path.with_name(f".{SETTING}")
    write_text(aside, json_text(now))
    aside.replace(path)


def _as_spelt(now: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """``now`` with its checkpoint as ``before`` calls it, if both mean one folder: what it holds, ``weights`` tell."""
    one, other = before.get("checkpoint"), now.get("checkpoint")
    if isinstance(one, str) and isinstance(other, str) and at_home(one).resolve() == at_home(other).resolve():
        return now | {"checkpoint": one}
    return now


def note_sources(folder: Path, stamps: Mapping[str, str]) -> None:
    """Notes what the result in ``folder`` was made of: a stamp of each file that was read (``conf/inputs.py``)."""
    write_text(folder / SOURCES, json_text(dict(stamps)))


def made_of(folder: Path, stamps: Mapping[str, str]) -> bool:
    """Whether the result in ``folder`` was made of files with these stamps, as far as is known."""
    if not (folder / SOURCES).is_file():
        return True  # an earlier version's: nobody knows
    try:
        return bool(json_of((folder / SOURCES).read_text(encoding="utf-8")) == dict(stamps))
    except (OSError, ValueError):
        return False


def read_result(folder: Path, given: str) -> dict[str, Any]:
    """``eval.json`` of a folder. Raises ``UserError`` as ``written_result``, and for a value that ``mode=eval`` doesn't
    write, with its key."""
    found = written_result(folder, given)
    if not found["slices"]:
        raise UserError(f"{given}: {RESULT} is none that mode=eval has written")
    for key, value, kind in _read_of(found):
        if not _KINDS[kind](value):
            raise UserError(f"{given}: {RESULT}: {key} must be {kind}, not {named(value)}; evaluate again")
    return found


def written_result(folder: Path, given: str) -> dict[str, Any]:
    """The same, not looked into. Raises ``UserError`` that starts with ``given`` (``compare=…``) if there is none."""
    path = folder / RESULT
    try:
        found = json_of(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{given}: holds no {RESULT}; mode=eval writes it when it has ended") from None
    except ValueError as error:
        raise UserError(f"{given}: {path.name} can't be read ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("slices"), list):
        raise UserError(f"{given}: {path.name} is none that mode=eval has written")
    return found


_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "an object": lambda value: isinstance(value, dict),
    "a whole number": lambda value: type(value) is int and value >= 0,
    "a number or null": lambda value: value is None or (type(value) in (int, float) and math.isfinite(value)),
}


def _read_of(found: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Key, value and kind of all in eval.json that is read again; each is asked for once what it stands in is right."""
    yield "checkpoint", found.get("checkpoint"), "a text"
    yield "data", found.get("data"), "an object"
    yield "data.name", found["data"].get("name"), "a text"
    yield "played", found.get("played", {}), "an object"
    yield "played.samples", found.get("played", {}).get("samples", 1), "a whole number"
    for at, line in enumerate(found["slices"]):
        yield f"slices[{at}]", line, "an object"
        yield f"slices[{at}].by", line.get("by"), "a text"
        yield f"slices[{at}].name", line.get("name"), "a text"
        yield f"slices[{at}].questions", line.get("questions"), "a whole number"
        for measure in ("em", "f1"):
            yield f"slices[{at}].{measure}", line.get(measure), "an object"
            yield f"slices[{at}].{measure}.mean", line[measure].get("mean"), "a number or null"


def agent_settings(agent: AgentConfig) -> dict[str, Any]:
    """The agent's settings as JSON has them; its prompt is named by ``versions``."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(agent)))
    settings.pop("prompt", None)
    return settings
