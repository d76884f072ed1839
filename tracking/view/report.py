"""Writes ``report.html``: of one run, or of two that are compared. Reads the run's folder and changes nothing in it."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from agent.errors import UserError
from tracking.trajectories import GROUPS, TRAJECTORIES
from tracking.view.episodes import Evaluations, find_evaluations, find_training
from tracking.view.filling import Filler
from tracking.view.groups import Questions, draws
from tracking.view.lines import Notices
from tracking.view.page import Page, encoded, page
from tracking.view.run import facts, spans

REPORT = "report.html"
COMPARISON = "compare.html"
LIMIT = 20_000_000
"""Bytes of a report."""
RESERVE = 100_000
"""Bytes kept for what is said of the report itself, which is known last."""
FOR_EVALUATIONS = 0.3
"""Share of the room for episodes that those of evaluations get before those of training."""
MOST_HELD_OUT = 10_000


def write(
    folder: Path, *, compare: Path | None = None, show: Collection[str] = (), limit: int = LIMIT
) -> tuple[Path, list[str]]:
    """The report of the run in ``folder``, and what there is to say of it.

    ``show`` are ids of questions whose episodes are all wanted, before any other. With ``compare``, another run's
    folder, it is ``compare.html``. Raises ``UserError`` for a folder that holds no run.
    """
    folders = [folder] if compare is None else [folder, compare]
    for each, key in zip(folders, ("run", "compare"), strict=False):
        check(each, key)
    path = folder / (REPORT if compare is None else COMPARISON)
    names = " and ".join(each.absolute().name for each in folders)
    said: list[dict[str, Any]] = []
    with page(path, f"Slingshot: {names}") as written:
        for number, each in enumerate(folders):
            end = written.size + (limit - RESERVE - written.size) // (len(folders) - number)
            said.append(_add_run(written, each, f"r{number}", show, end))
        about = {"written": time.strftime("%Y-%m-%d %H:%M:%S"), "runs": said, "limit": limit}
        written.add("about", encoded(about))
    return path, [text for run in said for text in run["notices"]]


def check(folder: Path, key: str) -> None:
    """Raises ``UserError`` if ``folder``, the value of ``key``, holds no run."""
    if not any((folder / name).is_file() for name in ("metrics.jsonl", TRAJECTORIES, GROUPS)):
        raise UserError(f"{key}={folder}: is not the folder of a run: it has no metrics.jsonl; name outputs/DATE/TIME")


def _add_run(written: Page, folder: Path, name: str, show: Collection[str], limit: int) -> dict[str, Any]:
    """Adds one run; what is said of it."""
    notices, questions = Notices(), Questions()
    has_groups = (folder / GROUPS).is_file()
    evaluations = find_evaluations(folder, notices)
    run = facts(folder, notices, evaluations)
    of_training = Notices() if run["evaluation"] else notices  # what only a training run writes isn't missing there
    training = find_training(folder, of_training, groups=not has_groups)
    table = draws(folder, questions, of_training, instead=list(training.groups.values()))
    for question in show:
        if question not in training.questions and question not in evaluations.questions:
            notices.add(f"show: no episode of a question {question!r} is logged")
    held_out = _held_out(evaluations, questions, notices, show)
    written.add(f"{name}-run", encoded(run))
    written.add(f"{name}-groups", encoded(table))
    written.add(f"{name}-evals", encoded(held_out))
    written.add(f"{name}-spans", encoded(spans(folder, notices)))
    written.add(f"{name}-questions", encoded(questions.rows))
    log = folder / TRAJECTORIES
    room = limit - written.size - written.rest
    tokens = not log.is_file() or log.stat().st_size <= room
    filler = Filler(written, limit, name, questions, tokens=tokens)
    filler.asked(folder, training, evaluations, show)
    filler.evaluations(folder, evaluations, int(max(room, 0) * FOR_EVALUATIONS))
    filler.training(folder, training)
    logged = training.episodes + evaluations.episodes
    if filler.episodes < logged:
        notices.add(
            f"{filler.episodes:,} of {logged:,} logged episodes are in this report of at most "
            f"{limit / 1e6:.0f} MB: the best and the worst of each group come first; show=[ID] asks for a question's"
        )
    if training.episodes and not tokens:
        notices.add("tokens and log-probabilities are in the episodes of questions asked for with show=[ID] alone")
    return {"name": name, "notices": notices.texts, "episodes": [filler.episodes, logged], "tokens": tokens}


def _held_out(found: Evaluations, questions: Questions, notices: Notices, asked: Collection[str]) -> dict[str, Any]:
    """What each evaluation says of each question: ``em`` has a text per step with ``0``, ``1`` or, where it isn't
    known, ``-`` for each of ``questions``, those that are ``asked`` for first."""
    if (samples := max(map(found.samples, found.places), default=0)) > 1:
        notices.add(f"held-out questions have {samples} samples: right is one where at least half of its samples are")
    names = sorted(found.questions, key=lambda name: name not in asked)
    if len(names) > MOST_HELD_OUT:
        notices.add(f"{MOST_HELD_OUT:,} of {len(names):,} held-out questions are in the comparison of evaluations")
        names = names[:MOST_HELD_OUT]
    numbers = [questions.number(found.questions[name]) for name in names]
    em = {}
    for step in sorted(found.places):
        scores = found.em(step)
        em[step] = "".join(_mark(scores.get(name)) for name in names)
    return {"questions": numbers, "em": em}


def _mark(em: float | None) -> str:
    return "-" if em is None else str(int(em >= 0.5))
