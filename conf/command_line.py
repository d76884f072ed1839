"""What a command line asks for: composed and checked before Hydra runs anything, and the jobs of a sweep.

A sweep is asked for with ``-m``, or by an experiment's file (``hydra.mode: MULTIRUN`` and ``hydra.sweeper.params``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from agent.errors import UserError
from conf.arguments import Arguments, as_typed, read
from conf.composing import Composer, checked, opened, without_hydra
from conf.idle import check_idle
from conf.implied import implied, sweep_lines
from conf.mistakes import check_model, check_peers, one_line, strange_flag
from conf.named_data import sets_together
from conf.needs import PREPARING
from conf.schema import RunConfig
from tracking.experiments import sweep
from tracking.experiments.sweep import Job, Plan

FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "hydra.sweep.subdir": ((), "a job's folder is named by what the sweep varies"),
    "hydra.job.chdir": ((False, None), "paths are relative to the folder that you start in"),
    "hydra.output_subdir": ((".hydra",), "a run's settings are kept in .hydra, where resuming it looks for them"),
}
"""Settings of Hydra's that this program relies on: what they may be set to, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The runs of one command, in one folder."""

    folder: Path
    plan: Plan
    mode: str
    """Of its jobs: ``train`` and ``simulate`` leave something to report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A command line that is right."""

    sweep: Sweep | None = None
    folder: Path | None = None
    """The run's or the sweep's; None if nothing is to be run."""
    setting: str = "output_dir"
    """The setting that chooses that folder."""
    new: bool = False
    """Whether the user left it to the time: then it is a new one."""
    configs: tuple[RunConfig, ...] = field(default=(), repr=False)
    """The run's; of a sweep those of as many jobs as it takes to have each value in one of them."""
    arguments: tuple[str, ...] = ()
    """Of a sweep, or of what is only shown: all that Hydra has to be told."""
    composed: DictConfig | None = field(default=None, repr=False)
    """Of a run: its settings and, as ``hydra``, Hydra's own."""


def check_overrides(arguments: list[str]) -> Request:
    """Composes what ``arguments`` ask for, each value of a sweep by itself, before Hydra runs anything.

    Raises ``UserError`` naming the override and the nearest valid key or option, or the job of an earlier
    sweep into the same folder that was made with other settings.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the folder that you are in doesn't exist any more; cd to one that does") from None
    given = read(arguments)
    if given.strange is not None:
        with opened(None, None, ()) as composer:
            known = [name for action in get_args_parser()._actions for name in action.option_strings]
            raise UserError(strange_flag(composer, *given.strange, known))
    if given.flags.hydra_help or given.flags.shell_completion:
        return Request(arguments=(*given.for_hydra, *given.settings))
    given = replace(given, settings=sets_together(given.settings))
    with opened(given.flags.config_name, given.flags.config_dir, _searched(given.settings)) as composer:
        lines = as_typed(given.settings, several=given.flags.multirun)
        asked = _asked(composer, lines)
        if asked.composed.hydra.mode is RunMode.MULTIRUN and not given.flags.multirun:
            # An experiment's file makes a sweep of it: a comma separates values after all.
            asked = _asked(composer, as_typed(given.settings, several=True))
        return _request(composer, asked, given)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """Overrides and what they make, of a sweep with the first value of each."""

    lines: tuple[str, ...]
    """All of them, in Hydra's grammar."""
    ours: tuple[Override, ...]
    """Those that are not Hydra's own."""
    first: tuple[str, ...]
    composed: DictConfig
    given: tuple[Override, ...] = ()
    """Those of ``ours`` that the user gave; the others went without saying."""


def _asked(composer: Composer, lines: Sequence[str]) -> _Asked:
    check_peers(lines)
    check_model(lines)
    overrides = [composer.parse(line) for line in lines]
    lines = [str(o.input_line) for o in overrides]  # globs are written out
    for override in overrides:
        allowed, why = FIXED.get(str(override.key_or_group), ((), ""))
        if why and (override.is_sweep_override() or override.value() not in allowed):
            raise UserError(f"{override.input_line}: {why}; leave it out")
    asked = _composed(composer, lines, overrides)
    more = implied(composer, overrides, asked.composed)
    _check_same_for_all(composer, overrides, more)
    if more:
        asked = _composed(composer, [*more, *lines], [*map(composer.parse, more), *overrides])
    return replace(asked, given=tuple(o for o in overrides if not o.is_hydra_override()))


def _check_same_for_all(composer: Composer, overrides: Sequence[Override], more: list[str]) -> None:
    """Raises ``UserError`` if other questions or passages of a sweep than the first imply other settings than ``more``.

    What goes without saying is said to all jobs.
    """
    for at, override in enumerate(overrides):
        if override.key_or_group not in ("data", "retrieval") or not override.is_sweep_override():
            continue
        first, *others = sweep_lines(override)
        for line in others:
            one = [*overrides[:at], composer.parse(line), *overrides[at + 1 :]]
            own = implied(composer, one, _composed(composer, [str(o.input_line) for o in one], one).composed)
            if own != more:
                raise UserError(
                    f"{override.input_line}: {line} implies {' '.join(own) or 'nothing else'}, {first} implies "
                    f"{' '.join(more) or 'nothing else'}; a sweep has one of them for all its jobs: say which, or run "
                    "them apart"
                )


def _composed(composer: Composer, lines: Sequence[str], overrides: Sequence[Override]) -> _Asked:
    ours = tuple(o for o in overrides if not o.is_hydra_override())
    hydras = [str(o.input_line) for o in overrides if o.is_hydra_override()]
    first = tuple(sweep_lines(o)[0] for o in ours)
    with one_line(composer, first, hydras):
        composed = composer.compose(first, hydras)
    return _Asked(lines=tuple(lines), ours=ours, first=first, composed=composed)


def _searched(settings: Sequence[str]) -> tuple[str, ...]:
    """The folders of ``hydra.searchpath``."""
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "hydra.searchpath" and value.startswith("["):
            return tuple(place.strip(" '\"") for place in value.strip("[]").split(",") if place)
    return ()


def _request(composer: Composer, asked: _Asked, given: Arguments) -> Request:
    """What is to be run, checked."""
    composed = asked.composed
    mode = RunMode.MULTIRUN if given.flags.multirun else composed.hydra.mode
    if composed.mode == "report":
        if given.flags.multirun:
            raise UserError("mode=report reads one sweep: run it without -m")
        mode = RunMode.RUN
    arguments = (*given.for_hydra, *asked.lines)
    if mode is RunMode.MULTIRUN:
        request = _sweep(composer, asked, arguments)
        return Request(arguments=arguments) if given.only_looks else request
    for several in (o for o in asked.ours if o.is_sweep_override()):
        raise UserError(f"{several.input_line}: several values are a job each and need -m; a list is written [a,b]")
    check_idle(asked.given, lambda _: composed)
    with one_line(composer, asked.first):
        config = checked(composed)
    if config.mode not in ("report", *PREPARING):
        for line in (o for o in asked.ours if str(o.key_or_group).startswith("report.") and o.value() is not None):
            raise UserError(f"{line.input_line}: it is of a sweep's report; run several jobs, with -m, or leave it out")
    if given.only_looks:
        part = given.flags.package
        if part not in (None, "_global_") and OmegaConf.select(composed, part) is None:
            raise UserError(f"--package={part}: there is no such part of the settings; --cfg job shows all")
        return Request(configs=(config,), arguments=arguments)
    keys = [line.partition("=")[0].lstrip("+") for line in asked.lines]
    setting = next((key for key in ("output_dir", "hydra.run.dir") if key in keys), None)
    folder = Path(config.output_dir if setting == "output_dir" else composed.hydra.run.dir)
    return Request(
        folder=folder,
        setting=setting or "output_dir",
        new=setting is None,
        configs=(config,),
        composed=composed,
    )


def _sweep(composer: Composer, asked: _Asked, arguments: tuple[str, ...]) -> Request:
    """The sweep that is asked for, each value of it checked, and what its folder already holds."""
    composed = asked.composed
    if composed.resume is not None:
        raise UserError(f"resume={composed.resume}: is for one run; a sweep that is started again resumes its jobs")
    for line in (line for line in asked.first if line.lstrip("+").startswith("output_dir=")):
        raise UserError(f"{line}: each job of a sweep has a folder of its own; report.sweep=FOLDER is where they go")
    params = composer.varied(composed)
    # As the sweeper does it: the command line replaces a parameter of the same key.
    merged = {o.get_key_element(): o for o in (*params, *asked.ours)}
    values = [sweep_lines(o) for o in merged.values()]
    first = [lines[0] for lines in values]
    check_idle(asked.given, lambda lines: _job(composer, lines), tuple(merged.values()))
    configs = [_check(composer, first)]
    for at, lines in enumerate(values):
        for line in lines[1:]:  # each is checked beside the others' first values: that is one of the jobs
            configs.append(_check(composer, [*first[:at], line, *first[at + 1 :]]))
    _check_experiments(composer, asked)
    folder, jobs = Path(composed.hydra.sweep.dir), []
    aside = composed.mode in PREPARING and any(folder.glob("*/.hydra"))
    if aside:  # the jobs that are there are the sweep's that is prepared
        folder = Path(composer.compose([*asked.first, "report.sweep=null"]).hydra.sweep.dir)
    before = sweep.planned(folder).jobs
    # What the experiment varies, or an earlier sweep into this folder, names a job with one value of it, too.
    own = {o.get_key_element() for o in (*params, *merged.values()) if o.is_sweep_override()}
    own |= {key for job in before for key in job.overrides}
    for lines in BasicSweeper.split_arguments(list(merged.values()), None)[0]:
        varied = {key: value for key, _, value in (line.partition("=") for line in lines) if key in own}
        job = Job(overrides=varied, seed=int(varied.get("seed", configs[0].seed)))
        _check_kept(composer, folder / job.name, lines)
        jobs.append(job)
    sweep.check_names(jobs)
    others = sweep.others(folder, before, jobs)
    alike = [line for lines, key in zip(values, merged, strict=True) if key not in own for line in lines]
    for job in others:  # they are compared with these
        was = [*alike, *(f"{key}={value}" for key, value in job.overrides.items())]
        _check_kept(composer, folder / job.name, was, beside=True)
    baseline, conditions = configs[0].report.baseline, {job.condition for job in (*jobs, *others)}
    if baseline not in conditions and any(line.startswith("report.baseline=") for line in asked.lines):
        raise UserError(f"report.baseline={baseline} is no condition of this sweep: {', '.join(sorted(conditions))}")
    shared = sorted({o.key_or_group for key, o in merged.items() if key not in own})
    by_hydra = any(line.startswith("hydra.sweep.dir=") for line in asked.lines)
    return Request(
        sweep=Sweep(folder=folder, plan=Plan(jobs=tuple(jobs), report=configs[0].report), mode=configs[0].mode),
        folder=folder,
        setting="hydra.sweep.dir" if by_hydra else "report.sweep",
        new=aside or (not by_hydra and not configs[0].report.sweep),
        configs=tuple(configs),
        arguments=(*arguments, f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"),
    )


def _check_experiments(composer: Composer, asked: _Asked) -> None:
    """Raises ``UserError`` for a sweep over experiments that are sweeps: each has jobs, a folder and a baseline of its
    own."""
    for at, override in enumerate(asked.ours):
        if override.key_or_group != "experiment" or not override.is_sweep_override():
            continue
        for line in sweep_lines(override):
            lines = [*asked.first[:at], line, *asked.first[at + 1 :]]
            with one_line(composer, lines):
                found = composer.compose(lines)
            if found.hydra.sweeper.params:
                raise UserError(f"{override.input_line}: {line} is a sweep by itself; run such experiments one by one")


def _check_kept(composer: Composer, folder: Path, lines: list[str], *, beside: bool = False) -> None:
    """Raises ``UserError`` if ``folder`` holds a job to build on that isn't the one of ``lines``.

    Of a job ``beside`` those that are asked for, ``lines`` may hold what only theirs have, such as a setting of another
    pool rule: then there is nothing to compare.
    """
    if not sweep.worth_keeping(folder):
        return
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        raise UserError(f"{file} is missing, so its run can't be told from others; delete {folder}")
    try:
        with one_line(composer, lines):
            new = without_hydra(composer.compose(lines))
    except UserError:
        if beside:
            return
        raise
    sweep.check_same(folder, _plain(OmegaConf.load(file)), _plain(new))


def _plain(config: Any) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _job(composer: Composer, lines: Sequence[str]) -> DictConfig:
    with one_line(composer, lines):
        return composer.compose(lines)


def _check(composer: Composer, lines: list[str]) -> RunConfig:
    """The valid run that ``lines`` make."""
    with one_line(composer, lines):
        return checked(composer.compose(lines))
