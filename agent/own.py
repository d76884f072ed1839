"""The user's own code by import path, ``package.module:name``: found and checked before anything is built."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any

from agent.errors import UserError, nearest, shortened


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
    try:
        module = importlib.import_module(module_name)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{key}={path}: there is no module {error.name}; set PYTHONPATH to the folder that holds it"
            ) from error
        raise UserError(f"{key}={path}: {module_name} imports {error.name}, which isn't installed") from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{key}={path}: importing {module_name} raised {type(error).__name__}: {shortened(error)}"
        ) from error
    if not hasattr(module, name):
        public = [other for other in vars(module) if not other.startswith("_")]
        raise UserError(f"{key}={path}: {module_name} has no {name}; {nearest(name, public)}")
    return getattr(module, name)


def resolve_function(path: str, key: str, signatures: Sequence[tuple[str, ...]]) -> tuple[Callable[..., Any], int]:
    """The function that ``path`` names, and which of ``signatures`` it has: the names of its parameters, in order.

    It may have further parameters with defaults. Raises ``UserError`` as ``resolve`` does, and for what can't be
    called or takes other parameters.
    """
    found = resolve(path, key)
    if not callable(found):
        raise UserError(f"{key}={path} is no function; it is of type {type(found).__name__}")
    wanted = " or ".join(f"({', '.join(names)})" for names in signatures)
    if isinstance(found, type):
        raise UserError(f"{key}={path} is a class; name a function {wanted}, or an instance that can be called so")
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}={path}: its parameters can't be told; they must be {wanted}") from error
    for which, names in enumerate(signatures):
        if _takes(parameters, names):
            return found, which
    given = ", ".join(str(p.name) for p in parameters)
    raise UserError(f"{key}={path} takes ({given}); its parameters must be {wanted}")


def _takes(parameters: Sequence[inspect.Parameter], names: Sequence[str]) -> bool:
    """Whether a call with one positional argument for each of ``names``, the parameters' own names, is right."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = [p for p in parameters if p.kind not in variable]
    positional = [p for p in plain if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    others = [p for p in plain if p not in positional[: len(names)]]
    return [p.name for p in positional[: len(names)]] == list(names) and all(
        p.default is not inspect.Parameter.empty for p in others
    )


def check_methods(found: type, base: type, where: str) -> None:
    """Raises ``UserError``, which ``where`` begins, for a method of ``found`` that can't be called as ``base``'s is.

    Properties and plain attributes are read, so they must not be methods. A dataclass makes its own ``__init__``.
    """
    for name, theirs in vars(base).items():
        ours = inspect.getattr_static(found, name)
        if ours is theirs or (name.startswith("_") and (name != "__init__" or is_dataclass(base))):
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
