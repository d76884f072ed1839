"""Between a command line that is right and its run: what is read is there, and the folder is this process's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from agent.errors import UserError
from conf.arguments import quoted
from conf.command_line import Request
from conf.inputs import check_inputs
from conf.schema import IF_ANY, PLAYS_ON
from tracking import run_folder
from tracking.evals.result import SETTING

READS = ("view", "report")
"""Modes that write into the folder that they are given, and leave nothing anywhere else."""
FORESEES = ("plan", "fetch")
"""Modes that write nothing into a run's folder: put before the command of a run that is there, they leave it alone."""


@contextmanager
def ready(request: Request) -> Iterator[Request]:
    """``request`` with the folder that it got, for as long as it is held.

    Raises ``UserError`` if something that is read isn't there, or the folder can't be written to, is written to by
    another process, or holds another run.
    """
    if request.folder is None:
        yield request
        return
    for config in request.configs:
        check_inputs(config)
        if config.mode in ("train", *PLAYS_ON) and config.resume == IF_ANY and request.new:
            raise UserError(f"resume={IF_ANY}: the same command has to find the run again: set output_dir=FOLDER")
    mode = request.configs[0].mode
    foreseen = mode in FORESEES and not request.new and run_folder.trace(request.folder) is not None
    if request.sweep is None and (foreseen or (request.new and mode in READS)):
        with TemporaryDirectory(prefix="slingshot-") as passing:
            if foreseen and request.composed is not None:
                request.composed.output_dir = str(request.folder)  # of which it speaks
            yield _in(request, Path(passing))
        return
    folder = run_folder.make_new(request.folder, request.setting) if request.new else request.folder
    with run_folder.claimed(folder, request.setting):
        if not request.new and (left := run_folder.trace(folder)):
            _check_reuse(request, folder, left)
        yield _in(request, folder)


def _in(request: Request, folder: Path) -> Request:
    """The request in ``folder``: Hydra's own setting has a time in it that would have gone on."""
    if request.sweep is None:
        return replace(request, folder=folder)
    told = (*request.arguments, f"hydra.sweep.dir={quoted(str(folder))}")
    return replace(request, folder=folder, sweep=replace(request.sweep, folder=folder), arguments=told)


def _check_reuse(request: Request, folder: Path, left: str) -> None:
    """Raises ``UserError`` unless what is asked for goes on with what ``folder`` holds: ``left`` is a part of that."""
    config, where = request.configs[0], f"{request.setting}={folder}"
    if request.sweep is not None:
        if left != "plan.json":
            raise UserError(f"{where}: holds a run ({left}), not a sweep; name another folder")
        return
    if config.mode in PLAYS_ON and config.resume == IF_ANY and (folder / SETTING).is_file():
        return
    if config.mode != "train":
        raise UserError(f"{where}: holds a run ({left}); leave {request.setting} out, or name another folder")
    goes_on = f"resume={folder} goes on with it, " if (folder / "checkpoints").is_dir() else ""
    if config.resume:
        from actors import provenance, resume  # they bring torch

        if config.resume == IF_ANY and left != "plan.json":
            return
        if config.resume == "auto" and goes_on:
            return  # which run is the same experiment is known once the model's own settings are: ``resumed``
        # Which of its checkpoints is whole is looked at when the run starts.
        found = resume.find(config.resume, Path("outputs"), folder, provenance.asked(config), check=lambda path: None)
        if found.path is not None and found.path.parent.parent.resolve() == folder.resolve():
            return
    raise UserError(f"{where}: holds a run ({left}); {goes_on}another folder starts a new one")
