"""``mode=eval``: a checkpoint's episodes on the held-out questions, and what they say of it.

The rows are written as they end. Started again in its folder (``resume=if_any``), an evaluation that broke off plays
the questions that are missing, and those that ended in a fault.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.inference import Served, inference
from actors.noting import note, reported
from actors.provenance import asked as asked_settings
from actors.replay import Players, play
from agent.errors import Fault
from agent.inference.evaluation import EvalRow, check_any_scored, judged
from agent.paths import at_home
from agent.records import Question
from agent.visible import json_text
from agent.writing import naming
from conf.as_trained import prompt_name
from conf.inputs import stamps
from conf.schema import RunConfig
from retrieval_service.whole import written
from tasks.digest import digest_of
from tracking import about
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.evals import papers, table
from tracking.evals.compare import check_comparable, compare
from tracking.evals.result import RESULT, agent_settings, begin, note_sources, result, versions
from tracking.evals.rows import EvalRows, forget_others
from tracking.metrics import MetricsLog
from tracking.trackers.base import Asked as Tracked
from tracking.trackers.several import Trackers


def evaluate(config: RunConfig, run_dir: Path, console: Console, namespace: str) -> None:
    """Plays, writes ``eval.json`` and its tables, and compares with the evaluation in ``config.compare``.

    Raises ``Fault`` if more episodes than ``evaluation.max_fault_share`` ended in one: then there is no ``eval.json``.
    The folder's report is written however it ends.
    """
    how, other = config.evaluation, at_home(config.compare) if config.compare else None
    sources = stamps(config)  # what changes from now on is noticed
    if other is not None:
        check_comparable(other)  # before hours of playing
    with ExitStack() as after:
        with _opened(config, run_dir, namespace, console) as served:
            setting = setting_of(config, served)
            if other is not None:
                check_comparable(other, served.asked.questions)
            begin(run_dir, setting)
            for name in (RESULT, "metrics.jsonl"):  # of a start before this one
                (run_dir / name).unlink(missing_ok=True)
            note(config, run_dir, served.task, checkpoint=setting["checkpoint"])
            after.enter_context(reported(run_dir, console))
            rows = played(run_dir, console, served, "evaluation", step=0, samples=how.samples)
            check_any_scored(rows)
            summary = judged(rows, how.max_fault_share)
        row = {"step": 0, "data": served.task.name, "checkpoint": setting["checkpoint"], **summary}
        MetricsLog(run_dir / "metrics.jsonl").write("eval", row)
        console.evaluation(row)
        if why := summary.get("refused"):
            raise Fault(f"{why}; resume=if_any output_dir={run_dir} plays these questions again")
        found = result(
            rows,
            setting | {"code": about.code()},
            samples=how.samples,
            seed=config.seed,
            max_fault_share=how.max_fault_share,
        )
        note_sources(run_dir, sources)
        write(run_dir, found, console)
        _track(config, run_dir, row, console)
        if other is not None:
            compare(run_dir, other, run_dir, console, seed=config.seed, given="output_dir")


def _track(config: RunConfig, run_dir: Path, row: dict[str, Any], console: Console) -> None:
    """Tells the trackers what a training run tells them of an evaluation: its numbers and the table of its episodes."""
    asked = Tracked(config=config.tracker, folder=run_dir, settings=asked_settings(config), whole=True)
    extras = Dispensable(lambda why: console.say(why, "yellow"), then="isn't told of this evaluation")
    with console.phase("the trackers are told"):
        trackers = Trackers.open(asked, {}, extras)
        trackers.evaluation(row)
        trackers.close()


def _opened(
    config: RunConfig, run_dir: Path, namespace: str, console: Console
) -> AbstractContextManager[Served[Players]]:
    """Who plays: engines with the checkpoint, or a model behind an endpoint."""
    if config.evaluation.endpoint.url is None:
        return inference(config, run_dir, namespace, console)
    from actors.endpoint import behind_endpoint

    return behind_endpoint(config, run_dir, console)


def write(run_dir: Path, found: dict[str, Any], console: Console) -> None:
    """Writes ``eval.json`` with its tables, and shows the table."""
    name = RESULT.removesuffix(".json")
    lines, played = found["slices"], found["played"]
    mode = "greedy" if not played["temperature"] else f"{played['samples']} at temperature {played['temperature']:g}"
    title = f"{found['checkpoint']} on {found['data']['name']}, {mode}; in brackets 95 % intervals"
    table.write(run_dir, name, lines, title)
    whole = run_dir / RESULT  # that it is there says that the evaluation has ended
    with naming(whole), written(whole) as file:
        file.write(json_text(found).encode())
    console.table(title, table.header(lines), table.cells(lines))
    for about_table, (head, *body) in papers.write(run_dir, [found]):
        console.table(about_table, head, body)
    console.say(f"result: {run_dir / name}.json, .md, .csv, .tex")


def setting_of(config: RunConfig, served: Served[Players]) -> dict[str, Any]:
    """All that the rows depend on."""
    how, chosen, endpoint = config.evaluation, served.asked.questions, config.evaluation.endpoint
    setting = {
        "checkpoint": config.checkpoint or f"{endpoint.model} at {endpoint.url}",
        "weights": served.weights,
        "data": {"name": served.task.name, "questions": len(chosen), "digest": digest_of(chosen)},
        "index": asdict(served.index()),
        "played": {
            "samples": how.samples,
            "temperature": how.temperature,
            "seed": config.seed if how.temperature else 0,
        },
        "agent": agent_settings(config.agent),
        # Not the name of a file, whose content may change.
        "exit": {"calibrating": config.exit.probing} if config.mode == "calibrate" else served.ending,
        "selectivity": asdict(config.selectivity),
        "engine": "endpoint" if endpoint.url else {"dtype": config.model.dtype, "device": config.cluster.device},
        "versions": versions(config.agent, prompt_name(config.agent.prompt)),
    }
    plain: dict[str, Any] = json.loads(json.dumps(setting))
    return plain


def played(
    run_dir: Path, console: Console, served: Served[Players], what: str, *, step: int | None, samples: int = 1
) -> list[EvalRow]:
    """The rows of all questions: those that the folder has, and those of what is played now.

    ``what`` names the phase; with a ``step`` the episodes are in the folder's logs, too.
    """
    log = EvalRows(run_dir)
    asked: Sequence[Question] = served.asked.questions
    done = log.viable(samples)
    forget_others(run_dir, done.keys())
    todo = [question for question in asked if question.id not in done]
    if done:
        console.say(
            f"{len(asked) - len(todo):,} of {len(asked):,} questions were played before; going on with the others"
        )
    with console.phase(what) as phase:
        rows = play(
            served.workers,
            todo,
            phase.counting("questions"),
            step=step,
            samples=samples,
            keep=log.write,
            searchable=served.searchable,
        )
    for at, question in enumerate(todo):
        done[question.id] = rows[at * samples : (at + 1) * samples]
    return [row for question in asked for row in done[question.id]]
