"""Two evaluations of the same questions compared: paired differences, with bootstrap intervals over the questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.inference import estimates
from agent.inference.evaluation import EvalRow, unplayed
from agent.records import Question
from agent.visible import json_text
from agent.writing import write_text
from tracking.console import Console
from tracking.differences import differences, listed
from tracking.evals import table
from tracking.evals.result import read_result
from tracking.evals.rows import EvalRows

COMPARISON = "comparison"
"""Name of the files, without its ending."""
_UNSAID = ("checkpoint", "weights", "code")
"""What may differ without a word: checkpoints are what is compared."""
_NOT_SETTINGS = ("episodes", "faults", "refused", "bootstrap", "slices")


def compare(folder: Path, other: Path, out: Path, console: Console, *, seed: int, given: str = "run") -> None:
    """Writes ``comparison.json`` with its tables into ``out`` and shows them: ``folder`` less ``other``.

    ``given`` is the setting that names ``folder``. Raises ``UserError`` if one of them holds no evaluation, or they
    have no question in common.
    """
    one, two = read_result(folder, f"{given}={folder}"), read_result(other, f"compare={other}")
    all_rows = [_rows(path, result) for path, result in ((folder, one), (other, two))]
    strangers = _other_questions(*all_rows)
    rows = [[row for row in own if row.question_id not in strangers] for own in all_rows]
    lines = paired(rows[0], rows[1], seed)
    if not lines:
        raise UserError(_nothing_common(f"{given}={folder} and compare={other} have", rows[0], rows[1], strangers))
    notices = notices_of(one, two, lines[0]["questions"])
    notices += [f"{_other(strangers)}, and left out"] if strangers else []
    names = {"this": _named(one, folder), "other": _named(two, other)}
    told = {**names, "notices": notices, "bootstrap": {"seed": seed, "resamples": estimates.RESAMPLES}, "slices": lines}
    write_text(out / f"{COMPARISON}.json", json_text(told))
    about = f"{names['this']} less {names['other']}; paired by question, 95 % intervals"
    table.write(out, COMPARISON, lines, "\n".join([about, *notices]), signed=True)
    for notice in notices:
        console.say(notice, "yellow")
    console.table(about, table.header(lines), table.cells(lines, signed=True))
    em = lines[0]["em"]
    console.say(f"EM: better on {em['better']}, worse on {em['worse']}, alike on {em['alike']} questions")
    console.say(f"comparison: {out / COMPARISON}.json, .md, .csv, .tex")


def check_comparable(other: Path, questions: Sequence[Question] | None = None) -> None:
    """For before an evaluation is played: raises ``UserError`` where it couldn't be compared with the one in ``other``,
    as far as its ``questions`` are known."""
    rows = _rows(other, read_result(other, f"compare={other}"))
    if questions is None:
        return
    asked = [row for question in questions for row in unplayed(question, 1, "")]
    strangers = _other_questions(asked, rows)
    asked = [row for row in asked if row.question_id not in strangers]
    if not {row.question_id for row in asked} & estimates.by_question(rows).keys():
        raise UserError(_nothing_common(f"compare={other} and the questions to be played have", asked, rows, strangers))


def _nothing_common(what: str, rows: Sequence[EvalRow], others: Sequence[EvalRow], strangers: set[str]) -> str:
    why = f": {_other(strangers)}" if strangers else _of_sets(rows, others) or _of_sets(others, rows)
    return f"{what} no question in common of which both have a score{why}"


def _rows(folder: Path, result: Mapping[str, Any]) -> list[EvalRow]:
    """Raises ``UserError`` for a folder without them, or with those of another version."""
    samples, rows = int(result.get("played", {}).get("samples", 1)), EvalRows(folder)
    found = [row for own in rows.read(samples).values() for row in own]
    if not found and not rows.path.is_file():
        raise UserError(f"{rows.path} is missing: the episodes are compared one by one; copy the whole folder")
    if not found and result["slices"] and rows.path.stat().st_size:
        raise UserError(f"{rows.path}: none of its rows is of this version; evaluate again")
    return found


def _other_questions(rows: Sequence[EvalRow], others: Sequence[EvalRow]) -> set[str]:
    """Ids that two evaluations give to different questions: numbers, as in ``dev_17``, are of no file alone."""
    texts = {row.question_id: row.text for row in others}
    return {row.question_id for row in rows if row.text and texts.get(row.question_id, "") not in ("", row.text)}


def _other(ids: set[str]) -> str:
    shown = ", ".join(sorted(ids)[:3]) + (", …" if len(ids) > 3 else "")
    return f"{len(ids):,} ids ({shown}) are of other questions in the one than in the other"


def _of_sets(rows: Sequence[EvalRow], others: Sequence[EvalRow]) -> str:
    """Where the one's ids are the other's behind the name of a set: why they aren't the same."""
    ids = {row.question_id for row in others}
    behind = next((row.question_id for row in rows if row.question_id.partition("/")[2] in ids), None)
    if behind is None:
        return ""
    name, _, own = behind.partition("/")
    return (
        f": the one was of several sets ({behind!r} is of {name}) and the other of one ({own!r}); evaluate both with "
        "the same data.eval_questions"
    )


def _named(result: Mapping[str, Any], folder: Path) -> str:
    return f"{result.get('checkpoint', folder)} ({folder.name})"


def notices_of(one: Mapping[str, Any], two: Mapping[str, Any], common: int) -> list[str]:
    """What a reader of the differences has to know."""
    settings = [{k: v for k, v in each.items() if k not in (*_UNSAID, *_NOT_SETTINGS)} for each in (two, one)]
    found = []
    if differing := listed(differences(*settings)):
        found.append(f"the two were not evaluated alike: {differing}")
    most = max(int(each["slices"][0]["questions"]) for each in (one, two) if each["slices"])
    if common < most:
        found.append(f"{common:,} of up to {most:,} questions have a score in both, and are compared")
    found += [f"refused as a result: {each['refused']}" for each in (one, two) if each.get("refused")]
    return found


def paired(rows: Sequence[EvalRow], others: Sequence[EvalRow], seed: int) -> list[dict[str, Any]]:
    """For all questions, and each type, the differences of each measure; none without a common question."""
    lines = []
    for by, name, own in estimates.slices(rows):
        common = estimates.by_question(own).keys() & estimates.by_question(others).keys()
        if not common:
            continue
        line: dict[str, Any] = {"by": by, "name": name, "questions": len(common)}
        for measure in estimates.MEASURES:
            here, there = estimates.values(own, measure), estimates.values(others, measure)
            each = [here[q] - there[q] for q in here if q in there]
            line[measure] = estimates.interval(each, seed) | {
                "better": sum(d > 0 for d in each),
                "worse": sum(d < 0 for d in each),
                "alike": sum(d == 0 for d in each),
            }
        lines.append(line)
    return lines
