"""A checkpoint is evaluated and asked as it was trained: its run's agent comes with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from agent.config import AgentConfig
from agent.errors import UserError

MADE_WITH = Path("training") / "made_with.json"
"""In a run's checkpoint: with which settings it was made (``actors/provenance.py``)."""


def agent_of(checkpoints: Sequence[str]) -> list[str]:
    """The overrides that set the agent, and the model's numbers, of the run that wrote ``checkpoints``.

    None of a folder that no run wrote. Raises ``UserError`` when they are of runs with different agents.
    """
    found = [(path, _lines(Path(path).expanduser() / MADE_WITH)) for path in checkpoints]
    for path, lines in found[1:]:
        if lines != found[0][1]:
            differing = next(iter({*lines} ^ {*found[0][1]})).partition("=")[0]
            raise UserError(
                f"checkpoint={path}: was trained with another {differing} than {found[0][0]}; evaluate them one by "
                "one, or say agent=… for both"
            )
    return found[0][1] if found else []


def _lines(file: Path) -> list[str]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))["settings"]
        agent, dtype = settings["agent"], settings["model"]["dtype"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    known = {f.name for f in fields(AgentConfig)}
    lines = [f"agent.{name}={literal(value)}" for name, value in sorted(agent.items()) if name in known]
    return [*lines, f"model.dtype={literal(dtype)}"]


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
