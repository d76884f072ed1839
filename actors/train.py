"""``mode=train``: a training run, from its data to its last checkpoint.

What is heavy is imported when it is needed: what is wrong is to be refused before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from actors.launcher import tell
from actors.stopping import at_once
from agent.collector import without_collector
from agent.errors import Fault, Stopped, UserError, refused
from agent.paths import at_home
from conf.schema import RunConfig
from tasks.making.config import AUTO
from tracking.console import Console
from tracking.dispensable import Dispensable

if TYPE_CHECKING:
    from actors.provenance import Provenance
    from tasks.load import Task


def train(config: RunConfig, run_dir: Path, console: Console, in_short: str, namespace: str) -> None:
    """The run of ``config`` in ``run_dir``. ``in_short`` says what it is, and ``namespace`` is that of its actors.

    Raises ``UserError``, ``Fault``, or ``Stopped`` for a signal that has ended it.
    """
    tell(checkpoint=None)  # it isn't the job before in a sweep
    with at_once():
        _train(config, run_dir, console, in_short, namespace)


def _train(config: RunConfig, run_dir: Path, console: Console, in_short: str, namespace: str) -> None:
    from actors.fetching import fetch

    config = _fitted(config, console, f"run {run_dir}: {in_short}")
    fetch(config, console)
    begun = _begun(config, run_dir, console)
    summary, leaving = _played(config, run_dir, console, namespace, begun)
    first, last = summary["first_eval"], summary["last_eval"]
    if first and last and last["step"] == summary["step"] and None not in (first["em"], last["em"]):
        before = f"after {first['step']}" if first["step"] else "before"  # other questions since a step
        console.say(f"held-out EM {first['em']:.3f} {before}, {last['em']:.3f} after {summary['step']} steps", "bold")
    console.say(f"checkpoint {summary['checkpoint']}, metrics {run_dir / 'metrics.jsonl'}")
    if leaving is not None:
        raise Stopped(leaving, f" after step {summary['step']}; resume with resume={summary['checkpoint']}")


def _fitted(config: RunConfig, console: Console, what: str) -> RunConfig:
    """``config`` with what the plan chose for this machine, checked as far as nothing need be fetched. ``what`` says
    which run it is."""
    from actors.plan.downloads import downloads
    from actors.plan.fit import refusal
    from actors.plan.installation import slow_bfloat16
    from actors.plan.layouts import settled_and_said
    from actors.plan.machine import check_machine

    with console.phase("checking the machine"):
        config, layout = settled_and_said(config)
        if unfit := refusal(config):
            raise UserError(f"{unfit} (mode=plan shows the whole plan)")
        check_machine(config)
    console.say(what)
    if layout:
        console.say(layout)
    if warning := slow_bfloat16(config):
        console.say(warning, "yellow")
    if (own := config.model.path) and at_home(own).exists() and downloads(config):
        with console.phase("checking the model"):  # before gigabytes are fetched for one that is broken
            from actors.prepare import check_model

            check_model(own, f"model.path={own}", config.agent, learns=True)
    return config


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    """What a run begins with."""

    task: Task
    made_with: Provenance
    resume: Path | None
    """The checkpoint that it goes on from."""


def _begun(config: RunConfig, run_dir: Path, console: Console) -> _Begun:
    """The data, and the checkpoint that the run goes on from, if it does. ``config`` gets its model and its experts."""
    with console.phase("reading the data") as phase:
        with without_collector():
            from actors.prepare import look

        task = look(config, console.say, phase.counting("documents"))  # wrong data is refused before anything is built
    with console.phase("loading PyTorch"), without_collector():
        from actors.provenance import Provenance  # what is refused above shall be refused at once
        from actors.resume import resumed
    with console.phase("comparing with the checkpoint" if config.resume else "taking digests of the data"):
        made_with = Provenance.of(config, task, console.say)
        resume = resumed(config, run_dir, Path("outputs"), made_with, console.say)
    model = _model(config, resume, console)
    if resume is not None:
        tell(checkpoint=str(resume))
        console.say(f"resuming {resume}")
    if config.data.experts == AUTO:
        from actors.experts import own_experts

        with console.phase("making expert trajectories") as phase:
            counting = phase.counting("questions")
            file, said = own_experts(config, task, run_dir, model, resume, made_with.data, counting)
        config.data.experts = str(file)
        for line in said:
            console.say(line)
    return _Begun(task=task, made_with=made_with, resume=resume)


def _model(config: RunConfig, resume: Path | None, console: Console) -> Path | None:
    """The folder of the model that the run begins with, checked, and named in ``config``; None of one that is made."""
    if resume is not None:
        config.model.path = str(resume)
    else:
        config.resume = None  # if_any found none
    if config.model.path is None:
        return None
    from actors.prepare import check_model

    given = f"resume={config.resume}" if resume is not None else f"model.path={config.model.path}"
    with console.phase("checking the model") as phase:
        folder = check_model(config.model.path, given, config.agent, learns=True, fetched=phase.counting("MB"))
    if config.cluster.address is None or at_home(config.model.path).is_dir():
        config.model.path = str(folder)  # else the name: nodes of a cluster have snapshots of their own
    return folder


def _played(
    config: RunConfig, run_dir: Path, console: Console, namespace: str, begun: _Begun
) -> tuple[dict[str, Any], Signals | None]:
    """The summary of the run under Ray, and the signal that has ended it, if one did."""
    with console.phase("loading Ray"):
        import ray  # noqa: F401 - the others need it

        from actors import run_state
        from actors.dashboard import entrance
        from actors.noting import note, reported
        from actors.prepare import prepare
        from actors.ray_start import start_ray
        from actors.threads import in_thread

    def prepared_here() -> Any:
        with console.phase("checking the prompts"):
            return prepare(config, run_dir, begun.task)

    extras = Dispensable(lambda why: console.say(why, "yellow"))
    went_on = run_state.load(begun.resume) if begun.resume is not None else None
    before_s = went_on.time_s if went_on is not None else 0.0
    with reported(run_dir, console, before_s), ExitStack() as ending:
        # In threads that a signal needn't wait for: a tracker may hang as it opens.
        prepared_later = in_thread(prepared_here)
        trackers_later = in_thread(lambda: _trackers(config, run_dir, begun.made_with.settings, went_on, extras))
        with _closing(trackers_later, console):  # before Ray, which takes a while to end
            with console.phase("starting Ray"):
                dashboard = start_ray(config, namespace)
            ending.callback(_stopped, console)
            if dashboard:
                console.say(entrance(dashboard))
            prepared = prepared_later.result()
            console.notices(prepared.task.notices, run_dir)
            from actors.supervisor import Supervisor
            from actors.totals import Totals

            with console.phase("the trackers open"):
                note(config, run_dir, prepared.task)
                trackers = trackers_later.result()
            supervisor = Supervisor(
                config,
                prepared,
                run_dir,
                console,
                resume=begun.resume,
                trackers=trackers,
                made_with=begun.made_with,
                extras=extras,
            )
            try:
                with supervisor.watch.whole(Totals.steps(config.algorithm)):
                    summary = supervisor.train()
            except (Fault, OSError) as fault:
                why, saved = refused(fault), supervisor.saving.newest()
                raise Fault(why + (f"; resume with resume={saved}" if saved else "")) from fault
    return summary, supervisor.stopping.leaving


def _stopped(console: Console) -> None:
    from actors.ray_start import stop_ray

    with console.phase("Ray shuts down"):
        stop_ray()


@contextmanager
def _closing(trackers: Future[Any], console: Console) -> Iterator[None]:
    """Closes the trackers, however the body ends, and if it never came to use them.

    Those that are still being opened are waited for (``tracker.timeout_s``), though not by a signal.
    """
    waits = True
    try:
        yield
    except KeyboardInterrupt:  # or ``Stopped``
        waits = False
        raise
    finally:
        if (waits or trackers.done()) and trackers.exception() is None:
            with console.phase("the trackers close"):
                trackers.result().close()


def _trackers(config: RunConfig, run_dir: Path, settings: dict[str, Any], went_on: Any, extras: Dispensable) -> Any:
    """The trackers of a run; ``went_on`` is the state (``RunState``) of the checkpoint that it goes on from."""
    from tracking.trackers.base import Asked
    from tracking.trackers.several import Trackers

    asked = Asked(
        config=config.tracker,
        folder=run_dir,
        settings=settings,
        first_step=went_on.step + 1 if went_on else 0,
    )
    return Trackers.open(asked, went_on.trackers if went_on else {}, extras)
