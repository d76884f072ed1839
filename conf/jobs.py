"""The jobs of a sweep, one after the other."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from agent.errors import Fault, Stopped, UserError, refused
from agent.paths import at_home
from conf.command_line import Sweep
from conf.inputs import stamps
from conf.schema import IF_ANY, RunConfig, typed
from tracking import run_folder
from tracking.console import Console
from tracking.dispensable import Dispensable
from tracking.evals.compare import compare
from tracking.evals.result import made_of
from tracking.experiments import sweep

REPORTED = ("train", "simulate")
"""Modes whose jobs leave runs to report."""


def job(composed: DictConfig, folder: Path, mode: Callable[[RunConfig, Path, Console], None]) -> None:
    """One job of a sweep: skipped, gone on with, or started. A failure is recorded and doesn't stop the others.

    Raises ``KeyboardInterrupt`` if its user ended the run: that ends the sweep. And ``UserError`` if another process
    writes to ``folder``.
    """
    with run_folder.claimed(folder, "report.sweep"):
        console = Console()
        try:
            config = typed(composed)
            evaluated = config.mode == "eval"
            finished = sweep.status(folder)[0] is sweep.Status.FINISHED
            if finished and (not evaluated or made_of(folder, stamps(config))):
                console.say(f"{folder.name}: finished before")
                if evaluated and config.compare:  # with another one, perhaps, than when it was played
                    compare(folder, at_home(config.compare), folder, console, seed=config.seed, given="output_dir")
                return
            if evaluated:
                config.resume = IF_ANY  # what is played there already stays
            elif sweep.has_checkpoint(folder):
                config.resume = str(folder)
            elif config.mode in REPORTED:  # others only look, and a failed job's logs stay
                sweep.clear(folder)
            else:
                sweep.forget_failure(folder)
            mode(config, folder, console)
        except Exception as error:
            foreseen = isinstance(error, (UserError, Fault, OSError))
            if composed.get("debug") or not foreseen:
                traceback.print_exc()
            message = refused(error) if foreseen else f"{type(error).__name__}: {error}"
            sweep.record_failure(folder, message)
            console.say(f"{folder.name} failed: {message}", "red")
            return
        if sweep.interrupted(folder):
            raise KeyboardInterrupt


def _tables(asked: Sweep, console: Console) -> None:
    """Of the evaluations of a sweep that have ended."""
    from tracking.evals import papers

    folders = [asked.folder / job.name for job in asked.plan.jobs]
    ended = [folder for folder in folders if sweep.status(folder)[0] is sweep.Status.FINISHED]
    results = papers.of_jobs(ended, lambda why: console.say(why, "yellow"))
    for title, (head, *body) in papers.write(asked.folder, results):
        console.table(title, head, body)


def goes_on(asked: Sweep) -> str:
    """How its user goes on with a sweep that was ended."""
    again = "the same command" if asked.plan.report.sweep else f"the same command with report.sweep={asked.folder}"
    return f"{again} goes on"


def run_sweep(asked: Sweep, run: Callable[[], None]) -> tuple[int, str] | None:
    """``run`` plays all jobs of a sweep; then its report is made.

    Returns the code to exit with and why, if a job failed (1) or something stopped it (130 for Ctrl-C, 143 and 129 for
    SIGTERM and SIGHUP).
    """
    reported = asked.mode in REPORTED
    if reported:
        sweep.save_plan(asked.folder, asked.plan)
    stopped: KeyboardInterrupt | None = None
    try:
        run()
    except KeyboardInterrupt as error:
        stopped = error
    except OSError as error:  # what a job failed with could not be noted: a full disk, say
        return 1, f"fault: {refused(error)}; {goes_on(asked)}"
    console = Console()
    extras = Dispensable(lambda why: console.say(why, "yellow"), then="is left out")
    if reported:
        from tracking.experiments.report import write

        extras.attempt("the report", lambda: write(asked.folder, asked.plan.report, console))
    if asked.mode == "eval":
        extras.attempt("the tables of the evaluations", lambda: _tables(asked, console))
    if stopped is not None:
        code, why = (stopped.code, stopped.by) if isinstance(stopped, Stopped) else (130, "stopped")
        return code, f"{why}; {goes_on(asked)}"
    states = {job.name: sweep.status(asked.folder / job.name) for job in asked.plan.jobs}
    if failed := {name: message for name, (state, message) in states.items() if state is sweep.Status.FAILED}:
        listed = "; ".join(f"{name}: {message}" for name, message in failed.items())
        return 1, f"{len(failed)} of {len(states)} jobs failed: {listed}"
    return None
