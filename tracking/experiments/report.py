"""The report of a sweep: ``sweep.json``, and from it and the jobs' metrics the tables and the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.readable import content_of
from agent.visible import json_text
from agent.writing import write_text
from tasks.rows import named
from tracking.config import ReportConfig
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.draws import read_draws, summarise_draws
from tracking.evals.table import COLUMNS, markdown_row, markdown_text
from tracking.experiments.gains import MEASURES, Ends, ends_of, gains
from tracking.experiments.measures import ends, measures, paired, pooled, seeds
from tracking.experiments.sweep import Job, Plan, Status, read_plan, rows_of, settings, status
from tracking.metrics import damaged_lines, same_series
from tracking.shapes import is_number, whole

SHOWN = {
    "em_before": ("held-out EM before", 3),
    "em_after": ("held-out EM after", 3),
    "em_after/*": ("  {}", 3),
    "em_over_budget": ("mean EM over the budget", 3),
    "rollouts_to_target": ("rollouts to EM {target}", 0),
    "tokens_to_target": ("generated tokens to EM {target}", 0),
    "rollouts": ("rollouts", 0),
    "generated_tokens": ("generated tokens", 0),
    "rollouts_per_signal_group": ("rollouts per signal-bearing group", 2),
    "zero_variance_share": ("zero-variance share of groups", 3),
    "zero_variance_share/*": ("  {}", 3),
    "recycled_share_last_quarter": ("recycled share of trained groups, last quarter", 3),
    "trained_queries": ("different questions trained on", 0),
    "flipped_share": ("flipped share of questions, end", 3),
    "flipped_from_too_hard": ("  of these from too hard", 3),
    "flipped_from_too_easy": ("  of these from too easy", 3),
    "recovered_too_hard_share": ("recovered from too hard, share of trained groups", 3),
    "recovered_too_easy_share": ("recovered from too easy, share of trained groups", 3),
    "searches": ("searches per question, last evaluation", 2),
    "question_tokens": ("generated tokens per question, last evaluation", 1),
    "evidence_recall": ("evidence recall, last evaluation", 3),
}
"""The table's rows: a measure's label and its decimals; ``x/*`` stands for every measure of that beginning."""
COMPARED = {
    "em_after": "held-out EM after, difference",
    "em_after/*": "  {}",
    "em_over_budget": "mean EM over the budget, difference",
    "rollouts_per_signal_group": "rollouts per signal-bearing group, ratio",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Text in columns, the first of which names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write(folder: Path, asked: ReportConfig, console: Console) -> None:
    """Writes ``sweep.json``, ``table.md`` and the pictures into a sweep's ``folder``, and prints the tables.

    Raises ``UserError`` when ``folder`` holds no sweep.
    """
    plan = read_plan(folder)
    config = settings(asked, plan.report)
    rows = {job.name: rows_of(folder / job.name) for job in plan.jobs}
    report = summary(folder, plan, config, rows)
    write_text(folder / "sweep.json", json_text(report))
    made = (conditions_table(report), gains_table(report), comparisons_table(report), jobs_table(report))
    tables = [t for t in made if t.rows]
    pictures: dict[str, str] = {}
    if any(condition["n"] for condition in report["conditions"]):
        from tracking.experiments.pictures import draw

        extras = Dispensable(lambda why: console.say(why, "yellow"), then="is left out of the report")
        pictures = extras.attempt("the pictures of the report", lambda: draw(folder, report, rows, extras)) or {}
    write_text(folder / "table.md", markdown(report, tables, pictures))
    for table in tables:
        console.table(table.title, table.header, table.rows)
    if note := missing_baseline(report):
        console.say(note, "yellow")
    console.say(f"report: {folder / 'table.md'}")


def _damaged(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return damaged_lines(file) if file.is_file() else 0


def _drawn(folder: Path) -> dict[str, float | None]:
    """The measures that need each draw of a run: as of its last checkpoint, where the draws are saved."""
    file = folder / "draws.parquet"
    if not file.is_file():
        return {}
    drawn = summarise_draws(read_draws(file))
    flips = {"flipped_from_too_hard": drawn.flipped_from_hard, "flipped_from_too_easy": drawn.flipped_from_easy}
    return {
        "trained_queries": drawn.trained_queries,
        **{name: None if math.isnan(share) else share for name, share in flips.items()},
    }


# --- sweep.json ------------------------------------------------------------------------------------


def summary(
    folder: Path, plan: Plan, config: ReportConfig, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The content of ``sweep.json``: jobs, conditions, comparisons. ``rows`` are the jobs' by their names.

    Conditions and comparisons are of finished jobs only.
    """
    jobs = [_told(folder / job.name, job, rows[job.name], config.target_em) for job in plan.jobs]
    names = list(dict.fromkeys(job["condition"] for job in jobs))
    by_seed = {name: _by_seed([j for j in jobs if j["condition"] == name]) for name in names}
    played = {name: _played(folder, [j for j in jobs if j["condition"] == name], rows) for name in names}
    compared = [name for name in names if config.baseline in names and name != config.baseline]
    conditions = [
        {
            "name": name,
            "jobs": [j["name"] for j in jobs if j["condition"] == name],
            "n": len(by_seed[name]),
            "measures": pooled(list(by_seed[name].values())),
            "over_questions": gains(played[name], played.get(str(config.baseline)) if name in compared else None),
        }
        for name in names
    ]
    return {
        "title": config.title or folder.absolute().name,
        "target_em": config.target_em,
        "baseline": config.baseline,
        "jobs": jobs,
        "conditions": conditions,
        "comparisons": [
            {"condition": name, **paired(by_seed[name], by_seed[str(config.baseline)])} for name in compared
        ],
    }


def _told(folder: Path, job: Job, rows: Sequence[Mapping[str, Any]], target_em: float | None) -> dict[str, Any]:
    """What is said of one job; of one whose files can't be understood, why."""
    state, message = status(folder)
    told: dict[str, Any] = {"rollouts": 0, "generated_tokens": 0, "first_eval": None, "last_eval": None}
    found: dict[str, float | None] = {}
    try:
        with content_of("its files"):
            found = measures(rows, target_em) | _drawn(folder)
            told["first_eval"], told["last_eval"] = ends(rows)
            _check(found, ends(rows))
            told |= {name: found.pop(name) for name in ("rollouts", "generated_tokens")}
    except UserError as error:
        state, message, found = Status.UNREADABLE, str(error), {}
        told |= {"first_eval": None, "last_eval": None}
    refused = [r for r in rows if r.get("kind") == "eval" and r.get("refused")]
    if refused and not message:
        message = "; ".join(f"the evaluation of step {r.get('step')} was refused: {r['refused']}" for r in refused)
    evals = [r for r in rows if r.get("kind") == "eval"]
    if not message and (began := [r for before, r in pairwise(evals) if not same_series(before, r)]):
        message = (
            f"other held-out questions, or played otherwise, from step {began[-1].get('step')} on: the evaluations "
            "before it are left out"
        )
    if not message and (damaged := _damaged(folder)):
        message = f"metrics.jsonl: {damaged} {'line is' if damaged == 1 else 'lines are'} damaged and left out"
    about = {"name": job.name, "condition": job.condition, "overrides": job.overrides, "seed": job.seed}
    return {**about, "status": str(state), "message": message, **told, "measures": found}


def _check(found: Mapping[str, Any], evals: Sequence[Mapping[str, Any] | None]) -> None:
    """Raises ``ValueError`` for a measure, or an evaluation, of rows that no run has written: what isn't known is null
    there."""
    for name, value in found.items():
        if value is not None and not is_number(value):
            raise ValueError(f"'{name}' comes to {named(value)}")
    for row in evals:
        if row is not None and not whole(row["step"]):
            raise ValueError(f"an evaluation is of step {named(row['step'])}")
        for name, value in (row or {}).items():
            if isinstance(value, float) and not is_number(value):
                raise ValueError(f"'{name}' of an evaluation is {named(value)}")


def _by_seed(jobs: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float | None]]:
    """The measures of the finished jobs of a condition, its cost included. A seed is there once at most."""
    cost = ("rollouts", "generated_tokens")
    finished = [j for j in jobs if j["status"] == Status.FINISHED]
    by_seed = {j["seed"]: {**{key: j[key] for key in cost}, **j["measures"]} for j in finished}
    if len(by_seed) < len(finished):
        names = ", ".join(str(job["name"]) for job in finished)
        raise UserError(f"{finished[0]['condition']}: of {names} two have one seed; delete the folder of one of them")
    return by_seed


def _played(
    folder: Path, jobs: Sequence[Mapping[str, Any]], rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[int, Ends]:
    """What the finished ones of a condition's jobs say of each question, by their seeds."""
    finished = {j["seed"]: j["name"] for j in jobs if j["status"] == Status.FINISHED}
    return {seed: found for seed, name in finished.items() if (found := ends_of(folder / name, rows[name]))}


def missing_baseline(report: Mapping[str, Any]) -> str:
    """What to say when the baseline is none of the conditions; empty when it is, or when there is none."""
    names = [c["name"] for c in report["conditions"]]
    if report["baseline"] is None or report["baseline"] in names:
        return ""
    return f"nothing is compared: report.baseline={report['baseline']} is no condition here ({', '.join(names)})"


# --- tables ----------------------------------------------------------------------------------------


def conditions_table(report: Mapping[str, Any]) -> Table:
    """A row per measure, a column per condition: mean ± half the 95 % interval over its finished jobs."""
    conditions = report["conditions"]
    rows = [("finished jobs", *(f"{c['n']} of {len(c['jobs'])}" for c in conditions))]
    present = list(dict.fromkeys(name for c in conditions for name in c["measures"]))
    for pattern, (label, digits) in SHOWN.items():
        for name in _matching(pattern, present):
            text = label.format(_kind(pattern, name), target=report["target_em"])
            rows.append((text, *(_mean_text(c["measures"].get(name), c["n"], digits) for c in conditions)))
    return Table(
        title=f"{report['title']}: mean ± half the 95 % interval over seeds",
        header=("", *(c["name"] for c in conditions)),
        rows=tuple(rows),
    )


def gains_table(report: Mapping[str, Any]) -> Table:
    """Lines for each condition whose episodes are known: before, after, their difference, that to the baseline."""
    rows = []
    for condition in report["conditions"]:
        found = condition["over_questions"]
        lines = {
            "before": f"{condition['name']} ({seeds(found['seeds'])}), before",
            "after": "  after",
            "gain": "  after less before",
            "against": f"  after, less that of {report['baseline']}",
        }
        for line, label in lines.items():
            each = {name: found.get(name, {}).get(line) for name in MEASURES}
            if any(interval and interval["n"] for interval in each.values()):
                sign = "+" if line in ("gain", "against") else ""
                rows.append((label, *(_over_questions(interval, name, sign) for name, interval in each.items())))
    return Table(
        title="Over held-out questions, each with the mean of its seeds: mean and 95 % interval",
        header=("", *(COLUMNS[name] for name in MEASURES)),
        rows=tuple(rows),
    )


def comparisons_table(report: Mapping[str, Any]) -> Table:
    """A column per condition that is compared with the baseline."""
    comparisons = report["comparisons"]
    present = list(dict.fromkeys(name for c in comparisons for name in c))
    rows = []
    for pattern, label in COMPARED.items():
        for name in _matching(pattern, present):
            cells = (_interval_text(c[name]) if name in c else "–" for c in comparisons)
            rows.append((label.format(_kind(pattern, name)), *cells))
    return Table(
        title=f"Against {report['baseline']}, paired by seed: mean and 95 % interval",
        header=("", *(c["condition"] for c in comparisons)),
        rows=tuple(rows),
    )


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    begin, each, _ = pattern.partition("*")
    return [n for n in names if n.startswith(begin)] if each else [n for n in names if n == pattern]


def _kind(pattern: str, name: str) -> str:
    """What ``name`` has in the place of the star of ``pattern``."""
    return name[len(pattern.partition("*")[0]) :].replace("_", " ")


def jobs_table(report: Mapping[str, Any]) -> Table:
    """A row per job, with what it failed with."""
    rows = []
    for job in report["jobs"]:
        em = ("–" if each is None else f"{each['em']:.3f}" for each in (job["first_eval"], job["last_eval"]))
        state = f"{job['status']}: {job['message']}" if job["message"] else job["status"]
        rows.append((job["name"], *em, f"{job['rollouts']:,}", f"{job['generated_tokens']:,}", state))
    header = ("job", "EM before", "EM after", "rollouts", "tokens", "status")
    return Table(title="Jobs", header=header, rows=tuple(rows))


def _mean_text(found: Mapping[str, Any] | None, finished: int, digits: int) -> str:
    if found is None or found["mean"] is None:
        return "–"
    half = "" if found["high"] is None else f" ± {found['high'] - found['mean']:,.{digits}f}"
    few = f" ({found['n']} of {finished})" if found["n"] < finished else ""
    return f"{found['mean']:,.{digits}f}{half}{few}"


def _interval_text(found: Mapping[str, Any]) -> str:
    return "–" if found["mean"] is None else f"{_with_ends(found, '.3f')}, {seeds(found['n'])}"


def _over_questions(found: Mapping[str, Any] | None, measure: str, sign: str) -> str:
    if not found or found["mean"] is None:
        return "–"
    return _with_ends(found, f"{sign}.{2 if measure == 'searches' else 3}f")


def _with_ends(found: Mapping[str, Any], spec: str) -> str:
    ends = "" if found["low"] is None else f" [{found['low']:{spec}}, {found['high']:{spec}}]"
    return f"{found['mean']:{spec}}{ends}"


def markdown(report: Mapping[str, Any], tables: Sequence[Table], pictures: Mapping[str, str]) -> str:
    """``table.md``: the tables, and the pictures (file name to caption) below them."""
    parts = [f"# {markdown_text(report['title'])}"]
    for table in tables:
        lines = [table.header, ("---", *["---:"] * (len(table.header) - 1)), *table.rows]
        parts += [f"## {markdown_text(table.title)}", "".join(map(markdown_row, lines)).rstrip()]
    if note := missing_baseline(report):
        parts.append(markdown_text(note))
    parts += [f"![{markdown_text(caption)}]({file})" for file, caption in pictures.items()]
    return "\n\n".join(parts) + "\n"
