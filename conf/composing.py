"""Composes settings before Hydra does, from the same files, to say what is wrong with them in one line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.utils import configure_log, run_job
from hydra.errors import HydraException, MissingConfigException
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from agent.errors import UserError
from conf import of_files, own_rules
from conf.schema import MODES, RunConfig, typed
from conf.tree import keys

FAILURES = (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError, OverflowError)
"""What composing raises for a mistake of its user's."""
_EMPTY = re.compile(r"=\s*,|,\s*(,|\Z)")
SEVERAL = ("tracker", "experiment", "condition")
"""Groups of which several choices may stand together."""
OF_THE_JOB = {"output_dir": "${hydra:runtime.output_dir}"}
"""Its default, which Hydra fills in as a job begins."""


def one_choice(group: str) -> str:
    """What to say where a list, or nothing, is given for a group that needs one choice."""
    return f"one choice is needed, such as {group}=NAME; several values are a sweep, -m {group}=A,B"


@dataclass(frozen=True, kw_only=True, slots=True)
class Composer:
    """Hydra, set up on the folders that hold the files of settings."""

    primary: str = "config"
    """The file that composing starts from."""

    def compose(self, lines: Sequence[str], hydra_lines: Sequence[str] = ()) -> DictConfig:
        """What ``lines`` make, with Hydra's own settings beside it under ``hydra``.

        Raises one of ``FAILURES``; ``UserError`` that names it for a file that isn't UTF-8.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="provider=.*is not available", category=UserWarning)
            try:
                return compose(self.primary, overrides=[*lines, *hydra_lines], return_hydra_config=True)
            except MissingConfigException as error:  # wherever it is chosen: in a line, or in a file of the user's
                if not own_rules.stored(error.missing_cfg_file):
                    raise
                return self.compose(lines, hydra_lines)
            except UserWarning as warning:
                raise HydraException(str(warning)) from warning
            except (LookupError, AssertionError, AttributeError) as error:  # Hydra's own, of a file of settings
                what = f"{type(error).__name__}: {error}".removesuffix(": ")
                raise HydraException(
                    f"Hydra can't read one of them ({what}); look at its '# @package' line and its defaults"
                ) from error
            except RecursionError as error:
                raise UserError(f"{_too_deep() or 'a file of settings'}: is nested too deeply to be read") from error
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{_place_of(error) or 'a file of settings'}: is not UTF-8; save it as UTF-8"
                ) from error

    def varied(self, composed: DictConfig) -> list[Override]:
        """What a file varies in a sweep, as overrides."""
        return [self.parse(f"{key}={value}") for key, value in (composed.hydra.sweeper.params or {}).items()]

    def composes(self, lines: Sequence[str]) -> bool:
        """Whether ``lines`` make anything."""
        try:
            self.compose(lines)
        except FAILURES:
            return False
        return True

    def options(self, group: str) -> list[str]:
        """The files of a configuration group, without those that only its own files name; none if it is no group."""
        loader = GlobalHydra.instance().config_loader()
        inner = of_files.inner(group)
        return [name for name in loader.get_group_options(group) if name not in inner] if group else []

    def said_by(self, lines: Sequence[str], groups: Collection[str]) -> set[str]:
        """The settings, by dotted key, that files of ``groups`` give: those that ``lines`` choose, and those that these
        name in their turn. What a file varies in a sweep is given, too."""
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        found: set[str] = set()
        for file in loader.compute_defaults_list(self.primary, [*lines], RunMode.RUN).defaults:
            path = file.config_path or ""
            if path.partition("/")[0] in groups and (read := loader.repository.load_config(path)) is not None:
                prefix = f"{file.package}." if file.package else ""
                found |= {f"{prefix}{key}".removeprefix("hydra.sweeper.params.") for key in keys(read.config)}
        return {key for key in found if not any(other.startswith(f"{key}.") for other in found)}

    def parse(self, argument: str) -> Override:
        """One override, ``group=glob(…)`` as its choices by name. Raises ``UserError`` for what is none."""
        try:
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            (override,) = parser.parse_overrides([argument])  # parse_override forgets the loader, which a glob needs
        except HydraException as error:
            if "=" not in argument:
                raise UserError(f"{argument}: not key=value{self._meant(argument)}") from error
            if _EMPTY.search(argument):
                raise UserError(f"{argument}: a comma has no value beside it; leave it out") from error
            raise UserError(
                f"{argument}: can't be read; a value with any of ,=:;#&!~'()[]{{}} or a letter like é in it needs "
                "quotes inside the shell's: key=\"'value'\""
            ) from error
        if not override.key_or_group:
            raise UserError(f"{argument}: not key=value; the key is missing")
        if not override.is_delete() and "=" not in argument:
            raise UserError(f"{argument}: not key=value{self._meant(argument)}")
        return self._written_out(override) if override.value_type is ValueType.GLOB_CHOICE_SWEEP else override

    def _written_out(self, override: Override) -> Override:
        """Hydra counts files among a group's choices that only its own files name."""
        options = self.options(str(override.key_or_group))
        chosen = [name for name in override.sweep_string_iterator() if name in options]
        if not chosen:
            all_of_them = ", ".join(options) or "it is no group"
            raise UserError(f"{override.input_line}: matches no choice of {override.key_or_group}: {all_of_them}")
        return self.parse(f"{str(override.input_line).partition('=')[0]}={','.join(chosen)}")

    def _meant(self, word: str) -> str:
        """The group that has ``word`` among its choices."""
        groups = GlobalHydra.instance().config_loader().list_groups("")
        found = ["mode"] if word in MODES else []
        found += [group for group in groups if group != "hydra" and word in self.options(group)]
        return f"; did you mean {' or '.join(f'{group}={word}' for group in found[:3])}?" if found else ""


@contextmanager
def opened(primary: str | None, folder: str | None, search: Sequence[str]) -> Iterator[Composer]:
    """A composer for a command line's ``--config-name``, ``--config-dir`` and ``hydra.searchpath``."""
    for place in search:
        if (path := place.removeprefix("file://")) and "://" not in path and not Path(path).is_dir():
            raise UserError(f"hydra.searchpath: {path}: no such folder")
    with initialize_config_module("conf", job_name="launch", version_base=None):
        if folder is not None or search:
            # As Hydra orders them: the user's folders after ours, and before the schema.
            places = create_config_search_path("pkg://conf")
            for place in (*search, *([f"file://{folder}"] if folder else [])):
                places.prepend(provider="hydra.searchpath", path=place, anchor=SearchPathQuery(provider="schema"))
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            hydra.config_loader = ConfigLoaderImpl(config_search_path=places)
        composer = Composer(primary=primary or "config")
        if primary is not None:
            _check_primary(composer)
        yield composer


def _place_of(error: UnicodeDecodeError) -> str | None:
    """The file of settings, and its line, that isn't UTF-8: Hydra doesn't say which one it was reading."""
    for file in _files():
        data = file.read_bytes()
        if (at := data.find(error.object)) >= 0:  # all of it, or the block that was being read
            line = data.count(b"\n", 0, at + error.start) + 1
            return f"{file}, line {line}"
    return None


def _too_deep() -> Path | None:
    """The file of settings that YAML's reader can't follow."""
    for file in _files():
        try:
            yaml.compose(file.read_text("utf-8", "replace"))
        except RecursionError:
            return file
        except YAMLError:
            continue
    return None


def _files() -> Iterator[Path]:
    """The files that settings may be read from."""
    for place in GlobalHydra.instance().config_loader().get_search_path().get_path():
        provider, _, path = str(place.path).rpartition("://")
        folder = Path(__file__).parent if provider == "pkg" else Path(path)
        yield from sorted(folder.rglob("*.yaml")) if provider in ("", "file") or path == "conf" else ()


def _check_primary(composer: Composer) -> None:
    try:
        composer.compose([])
    except HydraException as error:
        if "primary config" in str(error):
            raise UserError(
                f"--config-name={composer.primary}: no file of this name in conf/ or --config-dir=FOLDER"
            ) from error


def run(composed: DictConfig, folder: Path, task: TaskFunction) -> None:
    """Has Hydra run ``task`` as a job of its own in ``folder``, with settings that a ``Composer`` has made.

    ``hydra.main`` would compose all of them once more, which is a sixth of a command's start.
    """
    own = composed.hydra
    own.mode, own.run.dir = RunMode.RUN, str(folder)
    configure_log(own.hydra_logging, own.verbose)
    callbacks, name = Callbacks(composed), own.job.config_name
    callbacks.on_run_start(config=composed, config_name=name)
    done = run_job(
        task_function=task,
        config=composed,
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
        hydra_context=HydraContext(
            config_loader=ConfigLoaderImpl(create_config_search_path(None)), callbacks=callbacks
        ),
    )
    callbacks.on_run_end(config=composed, config_name=name, job_return=done)
    _ = done.return_value  # raises what the task has raised


def without_hydra(composed: DictConfig) -> DictConfig:
    """A copy without Hydra's own settings, and without the folder that it makes for a job."""
    bare = composed.copy()
    with open_dict(bare):
        bare.pop("hydra", None)
    if OmegaConf.to_container(OmegaConf.masked_copy(bare, "output_dir"), resolve=False) == OF_THE_JOB:
        bare.output_dir = "."
    return bare


def checked(composed: DictConfig) -> RunConfig:
    """The valid run that was composed. Raises ``UserError``, or one of ``FAILURES``."""
    return typed(without_hydra(composed))
