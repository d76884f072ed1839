"""What a command line asks for: composed and checked before Hydra runs anything, and the jobs of a sweep.

A sweep is asked for with ``-m``, or by an experiment's file (``hydra.mode: MULTIRUN`` and ``hydra.sweeper.params``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from agent.errors import UserError, nearest
from conf.schema import RunConfig, keys, typed
from tracking import sweep
from tracking.sweep import Job, Plan


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

    sweep: Sweep | None
    arguments: tuple[str, ...] = ()
    """What Hydra has to be told besides."""


def check_overrides(arguments: list[str]) -> Request:
    """Composes what ``arguments`` ask for, each value of a sweep by itself, before Hydra runs anything.

    Raises ``UserError`` naming the override and the nearest valid key or option, or the job of an earlier
    sweep into the same folder that was made with other settings.
    """
    flags, others = get_args_parser().parse_known_args(arguments)
    for unknown in (o for o in others if o.startswith("-")):
        raise UserError(f"{unknown}: no such flag; a setting has no dashes: {unknown.lstrip('-')}")
    with initialize_config_module("conf", version_base=None):
        overrides = [_parse(a) for a in (*flags.overrides, *others)]
        for named in (o for o in overrides if o.key_or_group == "hydra.sweep.subdir"):
            raise UserError(f"{named.input_line}: a job's folder is named by what the sweep varies; leave it out")
        ours = [o for o in overrides if not o.key_or_group.startswith("hydra")]
        first = [_lines(o)[0] for o in ours]
        composed = _compose(first, _about_sweeps(overrides))
        mode = RunMode.MULTIRUN if flags.multirun else composed.hydra.mode
        if composed.mode == "report":
            if flags.multirun:
                raise UserError("mode=report reads one sweep: run it without -m")
            mode = RunMode.RUN
        if mode is not RunMode.MULTIRUN:
            for several in (o for o in ours if o.is_sweep_override()):
                raise UserError(
                    f"{several.input_line}: several values are a job each and need -m; a list is written [a,b]"
                )
        if mode is RunMode.MULTIRUN:
            request = _sweep(composed, ours)
            only_looks = flags.cfg or flags.info or flags.help or flags.hydra_help or flags.shell_completion
            return Request(sweep=None) if only_looks else request
        _check(first, composed)
        # An experiment's file may make a sweep of what is asked for; its report is none.
        return Request(sweep=None, arguments=("hydra.mode=RUN",) if composed.hydra.mode is RunMode.MULTIRUN else ())


def _about_sweeps(overrides: Sequence[Override]) -> list[str]:
    """The overrides of Hydra's own settings that say whether, where and over what a sweep runs."""
    keys_of_sweeps = ("hydra.mode", "hydra.sweep.dir", "hydra.sweeper.params")
    return [str(o.input_line) for o in overrides if o.key_or_group.startswith(keys_of_sweeps)]


def _sweep(composed: DictConfig, ours: Sequence[Override]) -> Request:
    """The sweep of ``composed``, each value of it checked, and what its folder already holds."""
    if composed.resume is not None:
        raise UserError(f"resume={composed.resume}: is for one run; a sweep that is started again resumes its jobs")
    params = [_parse(f"{key}={value}") for key, value in (composed.hydra.sweeper.params or {}).items()]
    # As the sweeper does it: the command line replaces a parameter of the same key.
    merged = {o.get_key_element(): o for o in (*params, *ours)}
    values = [_lines(o) for o in merged.values()]
    first = [lines[0] for lines in values]
    one_job = _check(first)
    for at, lines in enumerate(values):
        for line in lines[1:]:  # each is checked beside the others' first values: that is one of the jobs
            _check([*first[:at], line, *first[at + 1 :]])
    own = {o.get_key_element() for o in params} | {k for k, o in merged.items() if o.is_sweep_override()}
    folder, jobs = Path(composed.hydra.sweep.dir), []
    for lines in BasicSweeper.split_arguments(list(merged.values()), None)[0]:
        varied = {key: value for key, _, value in (line.partition("=") for line in lines) if key in own}
        job = Job(overrides=varied, seed=int(varied.get("seed", one_job.seed)))
        _check_kept(folder / job.name, lines)
        jobs.append(job)
    sweep.check_names(jobs)
    shared = sorted({o.key_or_group for key, o in merged.items() if key not in own})
    return Request(
        sweep=Sweep(folder=folder, plan=Plan(jobs=tuple(jobs), report=one_job.report), mode=one_job.mode),
        arguments=(
            f"hydra.sweep.dir={_quoted(str(folder))}",  # with a time in it, that would have gone on
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]",
        ),
    )


def _check_kept(folder: Path, lines: list[str]) -> None:
    """Raises ``UserError`` if ``folder`` holds a job to build on that isn't the one of ``lines``."""
    if not sweep.worth_keeping(folder):
        return
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        raise UserError(f"{file} is missing, so its run can't be told from others; delete {folder}")
    old, new = OmegaConf.load(file), _without_hydra(_compose(lines))
    sweep.check_same(folder, _plain(old), _plain(new))


def _plain(config: Any) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _quoted(text: str) -> str:
    """Hydra's grammar for a string of any characters."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _parse(argument: str) -> Override:
    try:
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (override,) = parser.parse_overrides([argument])  # parse_override forgets the loader, which a glob needs
    except HydraException as error:
        if "=" not in argument:
            raise UserError(f"{argument}: not key=value") from error
        raise UserError(
            f"{argument}: can't be read; a value with any of ,=:'()[]{{}} in it needs quotes inside the shell's: "
            "key=\"'value'\""
        ) from error
    if not override.key_or_group:
        raise UserError(f"{argument}: not key=value; the key is missing")
    return override


def _lines(override: Override) -> list[str]:
    """The override for each value of a sweep, itself if it is none."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep():
        raise UserError(f"{line}: has no list of values to run; write them out, or as range(start,stop,step)")
    return [f"{line.partition('=')[0]}={value}" for value in override.sweep_string_iterator()]


def _compose(lines: list[str], hydra_lines: Sequence[str] = ()) -> DictConfig:
    """What ``lines`` make, with Hydra's own settings beside it under ``hydra``."""
    with _one_line(lines):
        return compose("config", overrides=[*lines, "output_dir=.", *hydra_lines], return_hydra_config=True)


def _check(lines: list[str], composed: DictConfig | None = None) -> RunConfig:
    """The valid run that ``lines`` make; ``composed`` is what ``_compose`` made of them, if it is at hand."""
    composed = composed if composed is not None else _compose(lines)
    with _one_line(lines):
        return typed(_without_hydra(composed))


@contextmanager
def _one_line(lines: list[str]) -> Iterator[None]:
    """Turns what Hydra says of ``lines`` into a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_mistake(lines, error)) from error


def _without_hydra(composed: DictConfig) -> DictConfig:
    bare = composed.copy()
    with open_dict(bare):
        bare.pop("hydra")
    return bare


def _mistake(lines: list[str], error: Exception) -> str:
    """The override at which composing ``lines`` failed, and the fix."""
    choices = []
    for line in lines:
        key, _, value = line.partition("=")
        if (options := _options(key)) is not None:
            if value not in options:
                return f"{line}: no such {key.lstrip('+~')}; {nearest(value, options)}"
            if key.startswith("+"):
                return f"{line}: there is a {key.lstrip('+')} already; write {line.lstrip('+')} to choose another"
            choices.append(line)
    try:
        valid = keys(compose("config", overrides=[*choices, "output_dir=."]))
    except HydraException as broken:
        message = " ".join(str(broken).strip().splitlines()[:2])
        guilty = next((c for c in choices[::-1] if _composes([other for other in choices if other is not c])), None)
        # Without one to blame, a file of conf is wrong in itself.
        return f"{guilty}: does not go with the other choices: {message}" if guilty else message
    for line in lines:
        key = line.partition("=")[0].lstrip("+~")
        if key not in valid and _options(key) is None:
            return f"{key} is not a setting; {_hint(key, valid)}"
    cause = error.__cause__ or error
    culprit = getattr(cause, "full_key", None)
    line = next((line for line in lines if line.startswith(f"{culprit}=")), " ".join(lines))
    return f"{line}: {str(cause).strip().splitlines()[0]}"


def _composes(lines: list[str]) -> bool:
    try:
        compose("config", overrides=[*lines, "output_dir=."])
    except HydraException:
        return False
    return True


def _options(group: str) -> list[str] | None:
    """The files of a configuration group, or None if there is no such group."""
    folder = Path(__file__).parent / group.lstrip("+~")
    return [path.stem for path in folder.glob("*.yaml")] if group and folder.is_dir() else None


def _hint(key: str, valid: list[str]) -> str:
    """The nearest setting beside ``key``, or anywhere if its parent doesn't exist."""
    parent, _, leaf = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in valid if k.rpartition(".")[0] == parent]
    return nearest(leaf, siblings) if siblings else nearest(key, valid)
