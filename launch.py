"""Slingshot's command line: composes the configuration with Hydra and runs one mode of it.

    python launch.py [mode=…] [cluster=…] [model=…] [group=…] [key=value …]

``--help`` lists the modes and the groups. A sweep (``-m``, or an experiment that is one) runs its jobs one after the
other; the same command again goes on with it. A user's mistake exits 2 with one line that names the key or file and
the fix; a fault exits 1 with the actor, the cause and the checkpoint to resume from; what Ctrl-C stopped at once exits
130, a run that SIGTERM or SIGHUP ended 143 or 129. Where Ray is started, a launcher stays above the driver
(``actors/launcher.py``) and says it for a driver that can't any more. ``debug=true`` shows tracebacks.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The command `slingshot` would find an `agent` or a `conf` of the user's own on PYTHONPATH before ours.
sys.path.insert(0, str(Path(__file__).resolve().parent))
if __name__ == "__main__":
    gc.disable()  # of what is made up to the mode next to nothing is garbage, and looking for it takes a twentieth
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are read, seconds on a cold disk: no traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from actors.launcher import launch, tell
from actors.start import ready
from actors.streams import stand_in
from agent.config import LONGEST_RESPONSE
from agent.errors import Fault, Stopped, UserError, refused
from agent.visible import visible
from conf.command_line import check_overrides
from conf.composing import run
from conf.help import described
from conf.schema import RunConfig, register, typed

if TYPE_CHECKING:
    from tracking.console import Console

register()


# --- modes -----------------------------------------------------------------------------------------


def train(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=train``: the whole training run, from data to the last checkpoint."""
    from actors.train import train

    _settle(config, console)
    train(config, run_dir, console, _in_short(config), _namespace(run_dir))


def evaluate(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=eval``: a checkpoint on the held-out questions, as tables (checkpoint=)."""
    from actors.evaluating import evaluate

    evaluate(config, run_dir, console, _namespace(run_dir))


def calibrate(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=calibrate``: find the early-exit threshold of a chosen risk (checkpoint=).

    From full episodes on development questions.
    """
    from actors.calibrating import calibrate

    calibrate(config, run_dir, console, _namespace(run_dir))


def ask(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=ask``: one question, turn by turn (checkpoint=, question=)."""
    from actors.inference import inference
    from agent.records import Question

    question = Question(id="asked", text=config.question or "", golden_answers=("unknown",))
    with inference(config, run_dir, _namespace(run_dir), console) as served, console.phase("the episode"):
        inferred, observations = served.workers.ask(question)
    for turn, observation in zip(inferred.trajectory.turns, observations, strict=True):
        console.say(turn.text.strip(), "bold")
        if observation.strip():
            console.say(observation.strip(), "dim")
    if inferred.exited:
        console.say(f"early exit, confidence {inferred.probes[-1].confidence:.4f}", "dim")
    answer, reason = inferred.answer, inferred.trajectory.stop_reason
    if reason.is_fault:
        raise Fault(f"the episode ended in a fault: {reason}: {inferred.trajectory.fault}")
    console.say(f"answer: {answer}" if answer is not None else f"no answer ({reason})")


def experts(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=experts``: expert trajectories of the training questions, for data.experts.

    They are played against the real index, from the supporting documents or by a teacher.
    """
    from actors.experts import Order, made_here, write
    from actors.fetching import fetch as fetch_all
    from actors.plan.machine import check_cache
    from actors.stopping import at_once
    from learner.hub import local_folder
    from tasks.load import load
    from tasks.making.made import REPORT, Kept
    from tasks.notices import write_notices

    check_cache(config)
    started = time.perf_counter()
    _settle(config, console)
    fetch_all(config, console)
    with console.phase("reading the data") as phase:
        count = phase.counting("documents")
        task = load(config.data, config.seed, config.cache, say=console.say, count=count)
        given = config.model.path
        model = None if given is None else local_folder(given, f"model.path={given}")
        write_notices(run_dir, task.notices)
    console.notices(task.notices, run_dir)
    if model is None:
        console.say("no model.path: nothing is measured against agent.max_response_tokens", "yellow")
    with at_once():
        with console.phase("making expert trajectories") as phase:
            made = made_here(Order.of(config, task, model), phase.counting("questions"), keep=Kept(run_dir))
        for line in made.lines():
            console.say(line)
        file = write(made, run_dir)
    console.say(
        f"use them with data.experts={file}; report: {file.with_name(REPORT)}; {time.perf_counter() - started:.1f} s"
    )


def index(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=index``: the retrieval index of a corpus, built beforehand (data.corpus=)."""
    from actors.fetching import fetch as fetch_all
    from actors.plan.machine import check_cache
    from retrieval_service.index import read_manifest
    from retrieval_service.rankers import index_for
    from retrieval_service.watch import Watch
    from tasks.load import load

    check_cache(config)
    started = time.perf_counter()
    fetch_all(config, console)
    with console.phase("reading the data") as phase:
        count = phase.counting("documents")
        corpus = load(config.data, config.seed, config.cache, mode="index", say=console.say, count=count).corpus
    with console.phase("building the index") as phase:
        watch = Watch(say=console.say, count=phase.counting("passages"))
        folder = index_for(corpus, config.retrieval, config.cache, watch)
    manifest = read_manifest(folder)
    documents = f"{manifest.documents:,} passages" if manifest else "ready"
    console.say(
        f"{folder}: {documents}, {time.perf_counter() - started:.1f} s; retrieval.index={folder} needs no corpus"
    )


def serve(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=serve``: the retrieval service over HTTP, for other programs and machines."""
    from actors.serving import serve

    serve(config, console)


def fetch(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=fetch``: download everything that a command line needs."""
    from actors.fetching import fetch
    from actors.plan.machine import check_cache

    check_cache(config)
    if not fetch(config, console):
        console.say("everything is here")


def compare(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=compare``: two evaluations of the same questions, paired (run=, compare=)."""
    from tracking.evals.compare import compare

    with console.phase("comparing"):
        compare(Path(config.run or ""), Path(config.compare or ""), run_dir, console, seed=config.seed)


def plan(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=plan``: placement and memory, without Ray or a GPU."""
    from actors.plan.layouts import comparison, left_open, settled
    from actors.plan.table import table

    _settle(config, console)
    with console.phase("planning"):
        planned = comparison(config) if left_open(config) else table(settled(config))
    console.say(planned)


def doctor(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=doctor``: measure what this machine does with the model; takes minutes."""
    from actors.doctor import examine
    from actors.plan.layouts import settled

    _settle(config, console)
    examine(settled(config), run_dir, console)


def simulate(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=simulate``: the query pool alone, on a simulated policy, in seconds."""
    from tracking.experiments.simulation import write

    write(config.simulation, config.pool, config.seed, run_dir, console)


def report(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=report``: tables and pictures of a sweep's finished jobs (report.sweep=)."""
    from tracking.experiments.report import write

    with console.phase("writing the report of the sweep"):
        write(Path(config.report.sweep or ""), config.report, console)


def view(config: RunConfig, run_dir: Path, console: Console) -> None:
    """``mode=view``: a run as a page or in the terminal, also while it goes on (run=)."""
    from actors.stopping import at_once
    from tracking.view.mode import view_in_terminal, view_run

    if config.view == "terminal":
        with at_once():  # a signal that just ends the process leaves the terminal without its keys and its screen
            view_in_terminal(Path(config.run or ""), config.show, console)
        return
    view_run(Path(config.run or ""), Path(config.compare) if config.compare else None, config.show, console)


MODES: dict[str, Callable[[RunConfig, Path, Any], None]] = {
    "train": train,
    "eval": evaluate,
    "calibrate": calibrate,
    "ask": ask,
    "experts": experts,
    "index": index,
    "fetch": fetch,
    "serve": serve,
    "compare": compare,
    "plan": plan,
    "doctor": doctor,
    "simulate": simulate,
    "report": report,
    "view": view,
}
WITH_RAY = ("train", "eval", "calibrate", "ask")
"""They start processes that have to end with them."""


def _settle(config: RunConfig, console: Console) -> None:
    """Fills in what only the model in ``model.path`` says, before anything is planned with it."""
    from actors.settled import settle

    if path := config.model.path:
        config.model.path = settle(config, path, f"model.path={path}", console.phase)
    elif not config.agent.max_response_tokens:
        config.agent.max_response_tokens = LONGEST_RESPONSE  # a model from scratch has what context it needs


def _in_short(config: RunConfig) -> str:
    """The choices that say what a run is."""
    return (
        f"model {config.model.name}, data {config.data.source}, pool {HydraConfig.get().runtime.choices.get('pool')}, "
        f"cluster {config.cluster.name}, seed {config.seed}"
    )


def _namespace(run_dir: Path) -> str:
    return f"slingshot-{run_dir.parent.name}-{run_dir.name}-{os.getpid()}"


# --- from the command line to a mode ---------------------------------------------------------------


def _job(composed: DictConfig) -> None:
    """One job: a run, or one of a sweep's."""
    from tracking.console import Console

    debug = bool(composed.get("debug"))
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        from conf.jobs import job

        job(composed, Path(HydraConfig.get().runtime.output_dir), MODES[composed.mode])
        return
    try:
        config = typed(composed)
        run_dir = Path(config.output_dir).absolute()
        run_dir.mkdir(parents=True, exist_ok=True)
        MODES[config.mode](config, run_dir, Console())
    except UserError as error:
        _leave(2, str(error), debug)
    except Fault as error:
        _leave(1, f"fault: {error}", debug)
    except OSError as error:
        _leave(1, f"fault: {refused(error)}", debug)
    except KeyboardInterrupt as error:
        _leave(*_stopped(error), debug)


_by_hydra = hydra.main(config_path="conf", config_name="config", version_base=None)(_job)
"""Hydra's own way to the jobs of a sweep, and to what is only shown."""


def _stopped(error: KeyboardInterrupt) -> tuple[int, str]:
    """The exit code for a run that was stopped, and what to say."""
    return (error.code, str(error)) if isinstance(error, Stopped) else (130, "stopped")


def _leave(code: int, message: str, debug: bool) -> None:
    if debug and sys.exc_info()[0]:
        traceback.print_exc()
    with suppress(OSError):  # the terminal may be gone
        print(visible(f"slingshot: {message}"), file=sys.stderr, flush=True)
    tell(said=True)
    sys.exit(code)


def main(launched: bool = False) -> None:
    """Entry point: checks the overrides, then hands over to Hydra; ``launched``, in a process below a launcher."""
    try:
        _main(launched)
    except SystemExit:
        raise  # ``_leave`` has said why; if somebody else ends the process, such as Ray, the launcher says so
    except BaseException:
        tell(said=True)  # Python's traceback
        raise
    tell(said=True)


def command() -> None:
    """``python launch.py``, and the installed command ``slingshot``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main(launched=True)


def _main(launched: bool) -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    stand_in()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a letter of a path
    arguments = sys.argv[1:]
    debug = any(argument.lower() == "debug=true" for argument in arguments)
    try:
        if told := described(arguments, {name: mode.__doc__ for name, mode in MODES.items()}):
            print(told, end="", flush=True)
            return
        _start(arguments, debug, launched)
    except UserError as error:
        _leave(2, str(error), debug)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        _leave(2, str(error).strip().splitlines()[0], debug)
    except BrokenPipeError:  # whoever read the output has gone: nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        tell(said=True)
        sys.exit(1)
    except OSError as error:
        _leave(2, refused(error), debug)
    except KeyboardInterrupt as error:
        _leave(*_stopped(error), debug)


def _start(arguments: list[str], debug: bool, launched: bool) -> None:
    """Runs what is asked for, once it is right and has a folder."""
    request = check_overrides(arguments)
    gc.enable()
    runs = request.folder is not None  # --cfg and --info only show what would be run
    if launched and runs and any(config.mode in WITH_RAY for config in request.configs):
        launch()
    with ready(request) as asked:
        if asked.composed is not None and asked.folder is not None:
            run(asked.composed, asked.folder, _job)
            return
        sys.argv[1:] = asked.arguments  # where Hydra's own way finds them
        if asked.sweep is None:
            _by_hydra()
        else:
            from conf.jobs import goes_on, run_sweep

            tell(goes_on=goes_on(asked.sweep))  # resume= is for one run
            if end := run_sweep(asked.sweep, _by_hydra):
                _leave(*end, debug)


if __name__ == "__main__":
    command()
