"""The command line as Hydra reads it: its flags, and settings whose paths and sentences are quoted for its grammar.

A setting that is a path, a name or a sentence (``agent/settings.py`` marks them) is taken as it is typed: ``~`` is the
home, and spaces, commas, brackets, letters of any alphabet are parts of it. What is already in quotes of Hydra's
grammar (``key="'value'"``) stays, ``null`` is nothing, and ``${…}`` is filled in, except in a sentence. In a sweep
(``-m``) a comma outside brackets separates values there too; a value with one in it needs quotes of its own:
``-m "data.questions='a,b.jsonl',c.jsonl"``.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from agent.errors import UserError
from agent.paths import LONGEST_NAME, LONGEST_PATH
from conf.schema import taken_as

OF_HYDRA = {"hydra.run.dir": "path", "hydra.sweep.dir": "path", "hydra.job.name": "text"}
"""Hydra's own settings that are taken as they are typed."""
NEVER_NULL = (*OF_HYDRA, "output_dir", "cache_dir", "agent.prompt")
"""Paths that every run has."""
_SWEEP_FUNCTION = re.compile(r"\s*(choice|range|interval|glob|shuffle|sort|tag)\s*\(.*\)\s*", re.DOTALL)
_WHOLE_OR_COMMA = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\[[^\[\]]*\]|(,)""")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """A command line, taken apart."""

    flags: Namespace
    """Hydra's flags, as its own parser gives them."""
    settings: tuple[str, ...]
    """``key=value``, as typed."""
    for_hydra: tuple[str, ...]
    """The flags again, for Hydra to read them anew."""
    strange: tuple[str, str] | None = None
    """The first flag that Hydra doesn't have, and the argument after it if that may be its value."""

    @property
    def only_looks(self) -> bool:
        """Whether something is to be shown and nothing to be run."""
        f = self.flags
        return bool(f.cfg or f.info or f.hydra_help or f.shell_completion)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the page of help is wanted, whatever else is."""
    return any(argument in ("-h", "--help", "help") for argument in arguments)


def read(arguments: Sequence[str]) -> Arguments:
    """Takes a command line apart. Raises ``UserError`` for a flag without its value, or two that clash."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UserError(f"{argument!a}: is not UTF-8; rename the file, or make a link to it with another name")
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    known = {name for action in parser._actions for name in action.option_strings}
    for at, argument in enumerate(arguments):
        if argument.startswith("-") and argument.partition("=")[0] not in known:
            after = arguments[at + 1] if at + 1 < len(arguments) else ""
            value = "" if "=" in argument or "=" in after or after.startswith("-") else after
            return Arguments(flags=Namespace(), settings=(), for_hydra=(), strange=(argument, value))
    flags, others = parser.parse_known_args(list(arguments))
    _check(flags)
    settings = tuple(a for a in (*flags.overrides, *others) if a != "--")
    if flags.resolve and not any(setting.startswith("output_dir=") for setting in settings):
        settings = (*settings, "output_dir=outputs")  # Hydra makes its own only for a job
    return Arguments(flags=flags, settings=settings, for_hydra=tuple(_written(parser, flags)))


def _refuse(message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))


def _check(flags: Namespace) -> None:
    chosen = [name for name in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(flags, name)]
    if len(chosen) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in chosen[:2])
        raise UserError(f"{first} and {second} don't go together; leave one of them out")
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve goes with --cfg: --cfg job --resolve")
    if flags.package and not flags.cfg:
        raise UserError("--package goes with --cfg: --cfg job --package algorithm.optimizer")
    if flags.config_path:
        raise UserError(
            f"--config-path={flags.config_path}: the files of conf/ are always needed; --config-dir=FOLDER adds yours"
        )
    if flags.experimental_rerun:
        raise UserError("--experimental-rerun: is not supported; resume=FOLDER goes on with a run")
    if flags.config_dir is not None:
        flags.config_dir = os.path.abspath(os.path.expanduser(flags.config_dir))
        if not os.path.isdir(flags.config_dir):
            raise UserError(f"--config-dir={flags.config_dir}: no such folder")


def _written(parser: ArgumentParser, flags: Namespace) -> list[str]:
    """Hydra's parser takes settings on one side of a flag only, so all flags go before them."""
    written: list[str] = []
    for action in parser._actions:
        value = getattr(flags, action.dest, None) if action.option_strings else None
        if value:
            written += [action.option_strings[0]] if value is True else [action.option_strings[0], value]
    return written


# --- paths and sentences ---------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A string of any characters in Hydra's grammar."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def as_typed(settings: Sequence[str], *, several: bool) -> list[str]:
    """``settings`` in Hydra's grammar; ``several`` is whether a comma separates the values of a sweep."""
    kinds = taken_as() | OF_HYDRA
    return [_setting(setting, kinds.get(setting.partition("=")[0].lstrip("+")), several) for setting in settings]


def _setting(setting: str, kind: str | None, several: bool) -> str:
    key, equals, value = setting.partition("=")
    if not equals or kind is None:
        return setting
    if several and not key.startswith("hydra."):
        if _SWEEP_FUNCTION.fullmatch(value):
            return setting
        return f"{key}={','.join(_one(setting, part, kind) for part in _parts(value))}"
    return f"{key}={_one(setting, value, kind)}"


def _parts(value: str) -> list[str]:
    """``value`` at its commas that are in neither quotes nor brackets, without the spaces around them."""
    cuts = [match.start() for match in _WHOLE_OR_COMMA.finditer(value) if match[1]]
    if not cuts:
        return [value]
    ends = zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(value)], strict=True)
    return [value[start:end].strip() for start, end in ends]


def _one(setting: str, value: str, kind: str) -> str:
    """One value of ``setting``, quoted unless Hydra reads it as it is typed."""
    if value.lower() == "null":
        return value
    parsed = _parsed(value)
    in_quotes = isinstance(parsed, QuotedString)
    text = parsed.text if in_quotes else value
    if kind == "path":
        if not text:
            null = "" if setting.partition("=")[0] in NEVER_NULL else ", or write null"
            raise UserError(f"{setting}: has no value; leave it out{null} (is a shell's variable unset?)")
        text = _at_home(setting, text)
        _check_length(setting.partition("=")[0], text)
    if kind == "sentence" and not in_quotes:
        text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", text)
    if in_quotes:
        return value if text == parsed.text else quoted(text)
    return text if _parsed(text) == text else quoted(text)


def _at_home(setting: str, path: str) -> str:
    """``path`` with the home that ``~`` or ``~user`` stands for; without such a user it is an ordinary name."""
    home = os.path.expanduser(path)
    if home == path and (path == "~" or path.startswith("~/")):
        raise UserError(f"{setting}: the home folder is unknown here; set HOME, or write the path without ~")
    return home


def _check_length(key: str, path: str) -> None:
    """Raises ``UserError`` for a path, or one of a list, that no file can have: the system says it without the key."""
    for one in path.strip("[]").split(",") if path.startswith("[") else (path,):
        longest = max(map(len, os.fsencode(one).split(b"/")))
        if longest > LONGEST_NAME or len(os.fsencode(one)) > LONGEST_PATH:
            raise UserError(
                f"{key}={one[:40]}…: is too long for a path: a name in it has {longest} bytes, of {LONGEST_NAME} that "
                f"file systems take, and all of it {len(os.fsencode(one))}, of {LONGEST_PATH}; write a shorter one"
            )


def _parsed(value: str) -> Any:
    """The element that Hydra reads ``value`` as; None if it can't, or reads a sweep."""
    try:
        override: Override = OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, RecursionError):
        return None
    return None if override.is_sweep_override() else override._value
