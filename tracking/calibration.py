"""What ``mode=calibrate`` leaves: calibration.json, which ``exit.calibration`` reads, and its curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agent.config import AgentConfig, ExitConfig, SelectivityConfig
from agent.errors import UserError
from agent.inference.calibration import Calibration
from agent.inference.evaluation import EvalRow
from agent.inference.scaling import Scale
from agent.prompts import PROMPTS, prompt_text
from agent.readable import json_of
from agent.records import Question
from agent.visible import json_text
from agent.writing import write_text
from retrieval_service.names import Digests
from tasks.trained import digests_of
from tracking.console import Console
from tracking.dispensable import Dispensable

FORMAT = 2
_ON_DISK = np.dtype(">u8")


def write(
    folder: Path,
    found: Calibration,
    rows: Sequence[EvalRow],
    about: Mapping[str, Any],
    ending: ExitConfig,
    selectivity: SelectivityConfig,
    agent: AgentConfig,
    console: Console,
) -> None:
    """Writes ``calibration.json`` and ``curve.png`` into ``folder``, and says what was found.

    ``about`` names the checkpoint, the checksum of its weights, the data, and the questions by ``texts_of``.
    """
    from tracking.exit_curve import draw

    content = {
        "format": FORMAT,
        **about,
        "settings": settings(ending, selectivity, agent),
        "risk": ending.risk,
        "delta": ending.delta,
        "scale": None if found.scale is None else found.scale.plain(),
        "threshold": found.chosen.threshold if found.chosen else None,
        "risk_bound": found.chosen.risk_bound if found.chosen else None,
        "questions": found.questions,
        "faults": sum(row.fault for row in rows),
        "full": {"em": found.em, "searches": found.searches, "tokens": found.tokens},
        "points": [asdict(point) for point in found.points],
    }
    file = folder / "calibration.json"
    write_text(file, json_text(content))
    extras = Dispensable(lambda why: console.say(why, "yellow"))
    extras.attempt("the picture of the curve", lambda: draw(folder / "curve.png", found))
    console.say(
        f"full episodes on {found.questions} development questions: EM {found.em:.3f}  searches {found.searches:.2f}  "
        f"generated tokens {found.tokens:.1f}"
    )
    if faults := content["faults"]:
        console.say(f"faults, which count in nothing: {faults} of {len(rows)} questions", "yellow")
    if found.chosen is None:
        console.say(f"no threshold has a risk of at most exit.risk={ending.risk}", "yellow")
    else:
        at = found.chosen
        console.say(
            f"threshold {at.threshold:.6g}: EM {at.em:.3f}  searches {at.searches:.2f}  "
            f"generated tokens {at.tokens:.1f}  share of early exits {at.exited:.3f}  questions lost {at.lost}: "
            f"a risk of at most {at.risk_bound:.4f} with probability {1 - ending.delta:g}",
            "bold",
        )
        if at.searches >= found.searches and at.tokens >= found.tokens:
            console.say("nothing is saved at this threshold: leave early exit off, or accept more risk", "yellow")
    console.say(f"{file}; the curve: {folder / 'curve.png'}")


def texts_of(questions: Sequence[Question]) -> str:
    """Digests of the questions' texts, 8 bytes each, so that an evaluation knows those that a threshold was made on."""
    return digests_of(questions).astype(_ON_DISK).tobytes().hex()


def read_threshold(
    path: Path, ending: ExitConfig, selectivity: SelectivityConfig, agent: AgentConfig, weights: str
) -> tuple[float, Scale | None, Digests | None]:
    """The threshold in the file ``path``, its scale, and the texts that it was made on (None where an earlier version
    has written it); it has to be made with these settings and weights.

    Raises ``UserError`` for a file that is missing or broken, was made with others, or holds no threshold.
    """
    where = f"exit.calibration={path}"
    try:
        content = json_of(path.read_text(encoding="utf-8"))
        fits = content["format"] == FORMAT
        known, threshold, made_for = content["settings"], content["threshold"], content["weights"]
        scale = _scale(content["scale"]) if fits else None
        texts = _texts(content["texts"]) if "texts" in content else None
        if fits and not isinstance(known, dict):
            raise TypeError("its settings are no JSON object")
        threshold = None if threshold is None else float(threshold)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: can't be read ({error}); mode=calibrate writes such a file") from error
    if not fits:
        raise UserError(f"{where}: written by another version; calibrate again")
    if made_for != weights:
        raise UserError(f"{where}: was made for {content.get('checkpoint')}, whose weights are others; calibrate again")
    for key, value in settings(ending, selectivity, agent).items():
        if known.get(key) != value:
            raise UserError(
                f"{where}: was made with {key}={known.get(key)}, not {value}; set it back or calibrate again"
            )
    if threshold is None:
        raise UserError(f"{where}: no threshold kept the risk; calibrate with a larger exit.risk or more questions")
    return threshold, scale, texts


def _texts(told: str) -> Digests:
    """Raises ``TypeError`` or ``ValueError`` for anything else than ``texts_of`` gives."""
    return np.sort(np.frombuffer(bytes.fromhex(told), _ON_DISK).astype(np.uint64))


def _scale(lines: Mapping[str, Sequence[float]] | None) -> Scale | None:
    """Raises ``TypeError`` or ``ValueError`` for anything else than ``write`` writes."""
    if lines is None:
        return None
    found = {int(depth): (float(slope), float(offset)) for depth, (slope, offset) in lines.items()}
    return Scale(lines=found)


def settings(ending: ExitConfig, selectivity: SelectivityConfig, agent: AgentConfig) -> dict[str, Any]:
    """Everything that decides what an episode and its probes are like, by key. Sampling plays no part in it."""
    found: dict[str, Any] = {f"exit.{name}": value for name, value in ending.probing.items()}
    found |= {f"selectivity.{name}": value for name, value in asdict(selectivity).items()}
    found |= {f"agent.{name}": value for name, value in asdict(agent).items() if name != "temperature"}
    return found if agent.prompt in PROMPTS else found | {"agent.prompt": prompt_text(agent)}
