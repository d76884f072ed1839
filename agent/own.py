"""The user's own code by import path, ``package.module:name``: found and checked before anything is built."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from agent.errors import UserError, nearest, shortened

BREAKS = (Exception, SystemExit)
"""What code of the user's own raises where it breaks: a library's ``sys.exit()`` is to end no process of ours."""
AWAITED_BREAKS = (*BREAKS, asyncio.CancelledError)
"""The same of what is awaited: a client whose connection is gone may raise a cancellation that nobody has asked for."""


def is_cancelled(error: BaseException) -> bool:
    """Whether ``error`` is the cancellation of the task that runs, which has to go on."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


@contextmanager
def told(where: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what the user's own code raises into a ``UserError`` of one line, which ``where`` begins.

    A ``UserError`` of its own, and what ``but`` lists, stay as they are.
    """
    try:
        yield
    except UserError:
        raise
    except but:
        raise
    except BREAKS as error:
        raise UserError(f"{where} raised {type(error).__name__}: {shortened(error)}") from error


def is_path(name: str) -> bool:
    """Whether ``name`` is an import path and not one of a table's names.

    >>> is_path("my_package.rewards:judge"), is_path("em")
    (True, False)
    """
    return ":" in name


def resolve(path: str, key: str) -> Any:
    """What ``path`` names. Python looks for the module where it looks for all: beside ``launch.py``, and in PYTHONPATH.

    Raises ``UserError``, naming ``key``, the setting, for a path that isn't one, a module that isn't there or can't
    be imported, and a name that isn't in it.
    """
    module_name, _, name = path.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"{key}={path} is no import path; write package.module:name")
    if module_name.endswith(".py"):
        raise UserError(f"{key}={path}: a module is named without .py; write {module_name.removesuffix('.py')}:{name}")
    module = imported(module_name, f"{key}={path}", module_name)
    if not hasattr(module, name):
        public = [other for other in vars(module) if not other.startswith("_")]
        raise UserError(f"{key}={path}: {module_name} has no {name}; {nearest(name, public)}")
    return getattr(module, name)


def imported(module_name: str, where: str, called: str) -> ModuleType:
    """The module, which messages call ``called``.

    Raises ``UserError``, which ``where`` begins, for one that isn't there, or for whatever importing it raises.
    """
    try:
        return importlib.import_module(module_name)
    except BREAKS as error:
        raise UserError(f"{where}: {_import_problem(module_name, called, error)}") from error


def _import_problem(module_name: str, called: str, error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        if f"{module_name}.".startswith(f"{error.name}."):
            fix = _instead(module_name, "set PYTHONPATH to the folder that holds it")
            return f"there is no module {error.name}; {fix}"
        return f"{called} imports {error.name}, which isn't installed"
    return f"importing {called} raised {type(error).__name__}: {shortened(error)}"


def _instead(module_name: str, else_: str) -> str:
    """What to do where a package of ours has the name that ``module_name`` begins with; ``else_`` where none has."""
    top, root = module_name.partition(".")[0], Path(__file__).parents[1]
    if not ((root / top / "__init__.py").is_file() or (root / f"{top}.py").is_file()):
        return else_
    elsewhere = [place for place in sys.path if Path(place).resolve() != root]
    if PathFinder.find_spec(top, elsewhere) is not None:
        return f"`{top}` is a package of Slingshot's own and hides yours; rename it"
    return f"`{top}` is a package of Slingshot's own, in which there is none"


def check_function(found: Any, where: str, signatures: Sequence[tuple[str, ...]]) -> tuple[Callable[..., Any], int]:
    """``found``, and which of ``signatures`` it has: the names of its parameters, in order.

    It may have further parameters with defaults. Raises ``UserError``, which ``where`` begins, for what can't be called
    or takes other parameters.
    """
    if not callable(found):
        raise UserError(f"{where} is no function; it is of type {type(found).__name__}")
    wanted = " or ".join(f"({', '.join(names)})" for names in signatures)
    if isinstance(found, type):
        raise UserError(f"{where} is a class; name a function {wanted}, or an instance that can be called so")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: its parameters can't be told; they must be {wanted}") from error
    for which, names in enumerate(signatures):
        if _takes([*signature.parameters.values()], names):
            return found, which
    raise UserError(f"{where} takes {_bare(signature)}; it must take {wanted} by position")


def _takes(parameters: Sequence[inspect.Parameter], names: Sequence[str]) -> bool:
    """Whether a call with one positional argument for each of ``names``, the parameters' own names, is right."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = [p for p in parameters if p.kind not in variable]
    positional = [p for p in plain if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    others = [p for p in plain if p not in positional[: len(names)]]
    return [p.name for p in positional[: len(names)]] == list(names) and all(
        p.default is not inspect.Parameter.empty for p in others
    )


def check_class(found: Any, base: type[Any], where: str) -> None:
    """Raises ``UserError``, which ``where`` begins, unless ``found`` is a whole class made from ``base``."""
    home = base.__module__
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{where} must be a class made from {home}.{base.__name__}")
    variables = [name for name, kind in vars(base).get("__annotations__", {}).items() if "ClassVar" in str(kind)]
    missing = {*getattr(found, "__abstractmethods__", ()), *(name for name in variables if not hasattr(found, name))}
    if missing:
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}; see {home.replace('.', '/')}.py")
    check_methods(found, base, where)  # type: ignore[arg-type]  # mypy holds that a type has no hash


@cache
def check_methods(found: type, base: type, where: str) -> None:
    """Raises ``UserError``, which ``where`` begins, for a method of ``found`` that can't be called as ``base``'s is.

    Properties and plain attributes are read, so they must not be methods. A dataclass makes its own ``__init__``.
    """
    for name, theirs in vars(base).items():
        if name.startswith("_") and (name != "__init__" or is_dataclass(base)):
            continue
        ours = inspect.getattr_static(found, name)
        if ours is theirs:
            continue
        if inspect.isfunction(theirs):
            shape = inspect.signature(theirs)
            if not _fits(found, name, shape):
                raise UserError(f"{where}: {name} must take {_bare(shape)}, as {base.__name__}'s does")
        elif isinstance(theirs, classmethod):
            if not isinstance(ours, classmethod | staticmethod):
                raise UserError(f"{where}: {name} must be a class method, as {base.__name__}'s is")
        elif inspect.isroutine(ours):
            raise UserError(f"{where}: {name} must be a property or a value, as {base.__name__}'s is, and not a method")


def _fits(found: type, name: str, shape: inspect.Signature) -> bool:
    """Whether ``name`` of an instance of ``found`` takes what ``shape``, which begins with self, takes."""
    parameters = shape.parameters.values()
    plain = [None for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if getattr(found, name) is object.__init__:  # which says that it takes anything
        return len(plain) == 1
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    if not inspect.isfunction(inspect.getattr_static(found, name)):
        plain = plain[1:]  # a class or static method isn't given self
    try:
        inspect.signature(getattr(found, name)).bind(*plain, **named)
    except (TypeError, ValueError):
        return False
    return True


def _bare(shape: inspect.Signature) -> str:
    """Its parameters without their types: ``(self, *, room, drawn)``."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in shape.parameters.values()]
    return str(shape.replace(parameters=bare, return_annotation=inspect.Signature.empty))
