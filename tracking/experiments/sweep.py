"""A sweep's folder: its jobs, how far each of them is, and what is kept when it is started again.

FOLDER/plan.json                        the jobs so far, and the settings of the report
FOLDER/pool=recycle,seed=3/             one job: a run's folder, named by what the sweep varies
FOLDER/sweep.json, table.md, *.png      the report (``tracking/experiments/report.py``)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.readable import WRONG, json_of
from agent.visible import json_text
from agent.writing import write_text
from tracking.config import ReportConfig
from tracking.differences import of_both
from tracking.evals.result import RESULT, written_result
from tracking.metrics import MetricsLog, keep_lines, read
from tracking.run_folder import LOCK

PLAN = "plan.json"
IRRELEVANT = (
    *("output_dir", "debug", "cache_dir", "tracker", "report", "checkpoints", "resume_allow_changes"),
    *("run", "compare", "show"),
)
"""Keys whose value changes nothing in what a run learns: a job may go on, or count, with others."""
_LONGEST_NAME = 240
"""File systems take 255 bytes."""


class Status(StrEnum):
    """How far a job is, by its own metrics."""

    FINISHED = "finished"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    """Interrupted, killed, or running."""
    WAITING = "waiting"
    """Not started yet."""
    UNREADABLE = "unreadable"
    """Finished or not, a report can't understand its files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of a sweep."""

    overrides: dict[str, str]
    """What the sweep varies, as this job has it: ``{"pool": "recycle", "seed": "3"}``."""
    seed: int

    @property
    def name(self) -> str:
        """The job's folder: its overrides as Hydra's ``override_dirname`` writes them, made fit for a folder."""
        return folder_name(",".join(sorted(f"{key}={value}" for key, value in self.overrides.items())))

    @property
    def condition(self) -> str:
        """What jobs that differ in the seed alone have in common; a file of ``conf/condition`` is its own name."""
        varied = sorted((key, value) for key, value in self.overrides.items() if key != "seed")
        told = ",".join(value if key == "condition" else f"{key}={value}" for key, value in varied) or "all"
        return _unescaped(told)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a sweep's folder is going to hold."""

    jobs: tuple[Job, ...]
    report: ReportConfig


def folder_name(overrides: str) -> str:
    """One folder's name for a job's overrides: a value that is a path makes no folders of its own, and what Hydra's
    grammar escapes in it stands as it was given."""
    return _unescaped(overrides).replace("/", "_") or "all"


def _unescaped(overrides: str) -> str:
    """Without the backslashes of Hydra's grammar."""
    return re.sub(r"\\([\\()\[\]{}:=, \t])", r"\1", overrides)


def check_names(jobs: Sequence[Job]) -> None:
    """Raises ``UserError`` for two jobs of one name, or a name too long for a folder."""
    seen: dict[str, Job] = {}
    for job in jobs:
        if len(job.name.encode()) > _LONGEST_NAME:
            raise UserError(
                f"{job.name[:60]}…: too long for a folder's name; put the settings into files of conf/condition and "
                "sweep over condition=…"
            )
        if job.name in seen:
            raise UserError(f"{job.name}: two jobs of the sweep have this name; write each value once")
        seen[job.name] = job


def others(folder: Path, before: Sequence[Job], jobs: Sequence[Job]) -> list[Job]:
    """Those of earlier sweeps into ``folder`` that are none of ``jobs``.

    Raises ``UserError`` for a job that is one of them under another name and has left something to build on.
    """
    names, runs = {job.name for job in jobs}, {(job.condition, job.seed): job.name for job in jobs}
    found = [job for job in before if job.name not in names]
    for old in found:
        name = runs.get((old.condition, old.seed))
        if name is not None and worth_keeping(folder / old.name):
            raise UserError(
                f"{folder / old.name} holds the run of seed {old.seed} that is now named {name}; name the seeds as it "
                "was done there, delete that folder, or put the sweep elsewhere with report.sweep=FOLDER"
            )
    return found


# --- plan.json -------------------------------------------------------------------------------------


def save_plan(folder: Path, plan: Plan) -> None:
    """Writes ``plan.json``, keeping the jobs and the report's settings that earlier sweeps into the same folder had."""
    before = planned(folder)
    jobs = [*plan.jobs, *others(folder, before.jobs, plan.jobs)]
    report = settings(plan.report, before.report)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{PLAN}"
    content = {"report": asdict(report), "jobs": [{"overrides": j.overrides, "seed": j.seed} for j in jobs]}
    write_text(aside, json_text(content))
    aside.rename(folder / PLAN)


def planned(folder: Path) -> Plan:
    """What earlier sweeps into ``folder`` planned; nothing if there were none. Raises as ``read_plan``."""
    return read_plan(folder) if (folder / PLAN).is_file() else Plan(jobs=(), report=ReportConfig())


def read_plan(folder: Path) -> Plan:
    """Reads ``plan.json``. Raises ``UserError`` when the folder has none, or a damaged one."""
    try:
        content = json_of((folder / PLAN).read_text(encoding="utf-8"))
        jobs = tuple(Job(overrides=dict(j["overrides"]), seed=int(j["seed"])) for j in content["jobs"])
        report = ReportConfig(**content["report"])
        texts = [text for text in (report.sweep, report.title, report.baseline) if text is not None]
        if not all(isinstance(text, str) for text in (*texts, *(v for job in jobs for v in job.overrides.values()))):
            raise TypeError("a setting in it is no text")
        return Plan(jobs=jobs, report=report)
    except FileNotFoundError as error:
        if any(folder.glob(f"*/{RESULT}")):
            raise UserError(
                f"report.sweep={folder}: a folder of evaluations, and mode=report is of training and simulation; the "
                "tables of evaluations are made by the command that played them: it plays none again that has ended"
            ) from error
        raise UserError(f"report.sweep={folder}: no {PLAN} there; name a sweep's folder (multirun/…)") from error
    except WRONG as error:
        raise UserError(
            f"{folder / PLAN} is damaged ({error}); delete it, and start the sweep again to write it anew"
        ) from error


def settings(asked: ReportConfig, planned: ReportConfig) -> ReportConfig:
    """The report's settings: as asked for now where that says something, else as the sweep was started with."""
    given = {f.name: getattr(asked, f.name) for f in fields(asked)}
    return ReportConfig(**{k: getattr(planned, k) if v is None else v for k, v in given.items()})


# --- the jobs --------------------------------------------------------------------------------------


def status(folder: Path) -> tuple[Status, str]:
    """How far the job in ``folder`` is, and what it failed with."""
    rows = rows_of(folder)
    failed = bool(rows) and rows[-1].get("event") == "failed"
    if not failed and _evaluated(folder):  # its files may have changed since
        return Status.FINISHED, ""
    summaries = [r for r in rows if r.get("kind") == "summary"]
    if summaries and not summaries[-1].get("stopped_early", True):
        return Status.FINISHED, ""
    if failed:  # an earlier failure has been gone on from
        return Status.FAILED, str(rows[-1].get("message"))
    return (Status.UNFINISHED if rows else Status.WAITING), ""


def _evaluated(folder: Path) -> bool:
    """Whether the job is an evaluation that has ended; one whose result is damaged is made anew of what was played."""
    try:
        written_result(folder, folder.name)
    except UserError:
        return False
    return True


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a job's metrics; none before it has started."""
    file = folder / "metrics.jsonl"
    return read(file) if file.is_file() else []


def interrupted(folder: Path) -> bool:
    """Whether the job's run was ended by its user."""
    summaries = [r for r in rows_of(folder) if r.get("kind") == "summary"]
    return bool(summaries) and bool(summaries[-1].get("interrupted"))


def has_checkpoint(folder: Path) -> bool:
    """Whether a job can be resumed."""
    return any((folder / "checkpoints").glob("step-*/manifest.json"))


def worth_keeping(folder: Path) -> bool:
    """Whether a sweep that is started again builds on what the job left."""
    return status(folder)[0] is Status.FINISHED or has_checkpoint(folder)


def clear(folder: Path) -> None:
    """Discards what a job left that starts over; Hydra has already written its ``.hydra``, and we hold its lock."""
    for path in folder.iterdir():
        if path.name not in (".hydra", LOCK):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def record_failure(folder: Path, message: str) -> None:
    """Notes in a job's metrics why it ended."""
    MetricsLog(folder / "metrics.jsonl").write("event", {"event": "failed", "message": message})


def forget_failure(folder: Path) -> None:
    """Takes it back, as the job starts again: one that writes no rows would count as failed however it ends."""
    keep_lines(folder / "metrics.jsonl", lambda row: row.get("event") != "failed")


def check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises ``UserError`` if a job's configuration isn't the one with which ``folder`` was written.

    ``old`` and ``new`` are nested; the first key of both that differs is named, and how many others do.
    """
    relevant = [d for d in of_both(old, new) if d.key.partition(".")[0] not in IRRELEVANT]
    if relevant:
        first, others = relevant[0], len(relevant) - 1
        more = f" (and {others} more keys differ)" if others else ""
        raise UserError(
            f"{folder} holds a run with {first.key}={first.before}, not {first.now}{more}; "
            "set it back, delete that folder, or put the sweep elsewhere with report.sweep=FOLDER"
        )
