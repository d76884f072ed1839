"""Which tools ``agent.tools`` names, checked before anything starts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeGuard

from agent import tools as shipped
from agent.errors import UserError, one_of, shortened
from agent.own import check_methods, is_path, resolve
from agent.shipped import module_names, module_of, own_class
from agent.tools.base import Tool

_NAME = re.compile(r"[a-z][a-z0-9_]*")
KINDS: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
"""JSON schema's types of an argument, and ours."""


def fits(value: Any, kind: str) -> bool:
    """Whether an argument's ``value`` is of the type ``kind``; true and false are no numbers."""
    return isinstance(value, KINDS[kind]) and isinstance(value, bool) == (kind == "boolean")


def tool_names() -> list[str]:
    """The shipped tools: the files of ``agent/tools/``."""
    return module_names(shipped.__path__, "base", "catalogue")


def tool_classes(names: Sequence[str]) -> tuple[type[Tool], ...]:
    """The tools of ``agent.tools``, in its order: names of shipped ones, and import paths ``module:Class``.

    Raises ``UserError`` for one that isn't there, can't be imported or is no tool, and for two of one name.
    """
    if not names:
        raise UserError(f"agent.tools is empty; name at least one of: {', '.join(tool_names())}")
    found = tuple(_tool_class(name) for name in names)
    for tool in found:
        if sum(other.name == tool.name for other in found) > 1:
            raise UserError(f"agent.tools={list(names)}: two tools are called '{tool.name}'")
    return found


@lru_cache(maxsize=64)
def _tool_class(name: str) -> type[Tool]:
    where = f"agent.tools={name}"
    found: Any
    if is_path(name):
        found = resolve(name, "agent.tools")
    else:
        one_of(name, tool_names(), "agent.tools")
        found = own_class(module_of(shipped.__name__, name, "agent.tools"), Tool, where)
    if not _is_tool(found):
        raise UserError(f"{where} is no tool; it has to be one subclass of agent.tools.base.Tool with a method 'call'")
    _check(found, where)
    return found


def _is_tool(value: Any) -> TypeGuard[type[Tool]]:
    return isinstance(value, type) and issubclass(value, Tool) and not value.__abstractmethods__


def _check(tool: type[Tool], where: str) -> None:
    for attribute in ("name", "description", "parameters"):
        if getattr(tool, attribute, None) in (None, ""):  # no parameters at all are some
            raise UserError(f"{where}: the tool has no '{attribute}'")
    if not isinstance(tool.description, str) or not tool.description.strip():
        raise UserError(f"{where}: the tool's 'description', which the policy reads, must be a text")
    if not isinstance(tool.name, str) or not _NAME.fullmatch(tool.name):
        raise UserError(f"{where}: the tool's name '{tool.name}' must be small letters, digits and underscores")
    if not inspect.iscoroutinefunction(tool.call):
        raise UserError(f"{where}: its method 'call' must be async: other episodes go on meanwhile")
    check_methods(tool, Tool, where)
    if not isinstance(tool.parameters, Mapping):
        raise UserError(f"{where}: its 'parameters' must be JSON schemas by the arguments' names")
    for name, schema in tool.parameters.items():
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if not isinstance(name, str) or not isinstance(kind, str) or kind not in KINDS:
            raise UserError(f"{where}: the type of its parameter '{name}' must be one of {', '.join(KINDS)}")
        if not isinstance(told := schema.get("description"), str) or not told.strip():
            raise UserError(f"{where}: its parameter '{name}' needs a 'description', which the policy reads")
        if "enum" in schema:
            _check_choices(schema["enum"], kind, f"{where}: the 'enum' of its parameter '{name}'")
        try:
            json.dumps(schema)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: the schema of its parameter '{name}' is no JSON ({shortened(error)}); chat templates and "
                "prompts write it down as that"
            ) from error


def _check_choices(choices: Any, kind: str, what: str) -> None:
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise UserError(f"{what} must be a list of the values it takes")
    for choice in choices:
        if not fits(choice, kind):
            raise UserError(f"{what} has {choice!r}, which is no {kind}: no call could be right with it")
