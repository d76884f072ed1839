"""Writes ``report.html``: of one run, or of two that are compared. Reads the run's folder and changes nothing in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from agent.errors import UserError
from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES
from tracking.view.episodes import Evaluations, Training, find_evaluations, find_training
from tracking.view.filling import Filler
from tracking.view.groups import MOST, Played, Questions, draws, newest, say_where, table
from tracking.view.lines import MAX_CELL, Notices, shortened
from tracking.view.page import Page, encoded, fitted, page
from tracking.view.run import MOST_EVENTS, facts, spans, timeline

REPORT = "report.html"
COMPARISON = "compare.html"
LIMIT = 20_000_000
"""Bytes of a report."""
RESERVE = 100_000
"""Bytes kept for what is said of the report itself, which is known last."""
FOR_FACTS, FOR_SPANS, FOR_HELD_OUT, FOR_GROUPS = 0.2, 0.06, 0.1, 0.5
"""Shares of a report that its tables have, at most; those of groups and of held-out questions with their questions."""
FOR_EVALUATIONS = 0.3
"""Share of the room for episodes that those of evaluations get before those of training."""
MOST_HELD_OUT = 10_000


def write(
    folder: Path, *, compare: Path | None = None, show: Collection[str] = (), limit: int = LIMIT
) -> tuple[Path, list[str]]:
    """The report of the run in ``folder``, and what there is to say of it.

    ``show`` are ids of questions whose episodes are all wanted, before any other. With ``compare``, another run's
    folder, it is ``compare.html``, and what is said names the run. Raises ``UserError`` for a folder that holds no run
    or can't be written to.
    """
    folders = [folder] if compare is None else [folder, compare]
    for each, key in zip(folders, ("run", "compare"), strict=False):
        check(each, key)
    path = folder / (REPORT if compare is None else COMPARISON)
    names = _names(folders)
    said: list[dict[str, Any]] = []
    with page(path, f"Slingshot: {' and '.join(names)}") as written:
        for number, (each, label) in enumerate(zip(folders, names, strict=True)):
            end = written.size + (limit - RESERVE - written.size) // (len(folders) - number)
            said.append({"label": label} | _add_run(written, each, f"r{number}", show, end))
        about = {"written": time.strftime("%Y-%m-%d %H:%M:%S"), "runs": said, "limit": limit}
        written.add("about", encoded(about))
    return path, [f"{run['label']}: {text}" if compare else text for run in said for text in run["notices"]]


def _names(folders: Sequence[Path]) -> list[str]:
    """What the runs are called: by their folders' names, or by the whole paths where these are alike."""
    names = [each.absolute().name for each in folders]
    return names if len(set(names)) == len(names) else [str(each.absolute()) for each in folders]


def check(folder: Path, key: str) -> None:
    """Raises ``UserError`` if ``folder``, the value of ``key``, holds no run."""
    if not any((folder / name).is_file() for name in ("metrics.jsonl", TRAJECTORIES, GROUPS, EVALUATIONS)):
        raise UserError(
            f"{key}={folder}: is not the folder of a run: it has no metrics.jsonl; name outputs/DATE/TIME, or a "
            "sweep's job"
        )


def _add_run(written: Page, folder: Path, name: str, show: Collection[str], limit: int) -> dict[str, Any]:
    """Adds one run; what is said of it."""
    notices = Notices()
    has_groups = (folder / GROUPS).is_file()
    evaluations = find_evaluations(folder, notices)
    run = facts(folder, notices, evaluations)
    of_training = Notices() if run["evaluation"] else notices  # what only a training run writes isn't missing there
    training = find_training(folder, of_training, groups=not has_groups)
    questions = Questions(training.questions)
    played = draws(folder, of_training, instead=list(training.groups.values()), asked=show)
    say_where(folder, run["events"], played.first, notices)
    if unknown := [repr(q) for q in show if q not in training.questions and q not in evaluations.questions]:
        notices.add(f"show: no episode of a question {shortened(' or '.join(unknown), MAX_CELL)} is logged")
    room = max(0, limit - written.size - written.rest)
    written.add(f"{name}-run", encoded(_with_events(run, room * FOR_FACTS, notices)))
    groups = _groups(played, questions, room * FOR_GROUPS, notices, show)
    held_out = _held_out(evaluations, questions, room * FOR_HELD_OUT, notices, show)
    written.add(f"{name}-groups", encoded(groups))
    written.add(f"{name}-evals", encoded(held_out))
    written.add(f"{name}-spans", encoded(_spans(folder, room * FOR_SPANS, notices)))
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
        unlisted = _unlisted(training, evaluations, questions)
        why = [f"{unlisted:,} are of questions that its tables don't have"] if unlisted else []
        if filler.episodes + unlisted < logged:
            why.append(f"it has at most {limit / 1e6:.0f} MB, and the best and the worst of each group come first")
        notices.add(
            f"{filler.episodes:,} of {logged:,} logged episodes are in this report: {'; '.join(why)}; "
            "show=[ID] asks for a question's"
        )
    if training.episodes and not tokens:
        notices.add("tokens and log-probabilities are in the episodes of questions asked for with show=[ID] alone")
    return {"name": name, "notices": notices.texts, "episodes": [filler.episodes, logged], "tokens": tokens}


def _unlisted(training: Training, evaluations: Evaluations, questions: Questions) -> int:
    """How many episodes are of no question of the report's tables."""
    played = [((name, False), len(own)) for groups in training.places.values() for name, own in groups.items()]
    played += [((name, True), len(own)) for asked in evaluations.places.values() for name, own in asked.items()]
    return sum(count for question, count in played if question not in questions.numbers)


def _with_events(run: dict[str, Any], room: float, notices: Notices) -> dict[str, Any]:
    events = run["events"]
    shown, count = fitted(lambda n: run | {"events": events[len(events) - n :]}, min(len(events), MOST_EVENTS), room)
    if count < len(events):
        notices.add(f"the newest {count:,} of {len(events):,} events are shown")
    return shown


def _groups(
    played: Played, questions: Questions, room: float, notices: Notices, asked: Collection[str]
) -> dict[str, Any]:
    """The table of groups; their questions go into ``questions``."""

    def of(count: int, questions: Questions) -> dict[str, Any]:
        return table(newest(played.rows, count, asked), questions)

    shown, count = _with_questions(of, min(len(played.rows), MOST), room, questions)
    if count < played.count:
        notices.add(f"the table of groups has the newest {count:,} of {played.count:,}")
    return shown


def _spans(folder: Path, room: float, notices: Notices) -> dict[str, Any]:
    rows, found = spans(folder, notices)
    shown, count = fitted(lambda n: timeline(rows[len(rows) - n :]), len(rows), room)
    if count < found:
        notices.add(f"the timeline has the newest {count:,} of {found:,} spans")
    return shown


def _held_out(
    found: Evaluations, questions: Questions, room: float, notices: Notices, asked: Collection[str]
) -> dict[str, Any]:
    """What each evaluation says of each question: ``em`` has a text per step with ``0``, ``1`` or, where it isn't
    known, ``-`` for each of ``questions``, those that are ``asked`` for first."""
    if (samples := max(map(found.samples, found.places), default=0)) > 1:
        notices.add(f"held-out questions have {samples} samples: right is one where at least half of its samples are")
    names = sorted(found.questions, key=lambda name: name not in asked)
    em = {step: found.em(step) for step in sorted(found.places)}
    marks = {step: "".join(_mark(scores.get(name)) for name in names) for step, scores in em.items()}

    def of(count: int, questions: Questions) -> dict[str, Any]:
        numbers = [questions.number(found.questions[name], held_out=True) for name in names[:count]]
        return {"questions": numbers, "em": {step: text[:count] for step, text in marks.items()}}

    shown, count = _with_questions(of, min(len(names), MOST_HELD_OUT), room, questions)
    if count < len(names):
        notices.add(f"{count:,} of {len(names):,} held-out questions are in the comparison of evaluations")
    return shown


def _with_questions(
    make: Callable[[int, Questions], dict[str, Any]], most: int, room: float, questions: Questions
) -> tuple[dict[str, Any], int]:
    """``make(n, questions)`` for ``most``, or for fewer if that and the questions that it adds are more than ``room``
    bytes; and ``n``."""

    def measured(count: int) -> tuple[dict[str, Any], list[list[Any]]]:
        more = questions.copy()
        return make(count, more), more.rows[len(questions.rows) :]

    _, count = fitted(measured, most, room)
    return make(count, questions), count


def _mark(em: float | None) -> str:
    return "-" if em is None else str(int(em >= 0.5))
