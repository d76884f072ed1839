"""What files of code bring to a group's settings: ``NAME_rule`` of a pool rule, ``NAME_settings`` of a ranker.

A file of settings names it in its ``defaults``. One file that is wrong is no matter of the other choices: it brings
nothing, and whoever chooses it is told why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_store import ConfigStore

from agent.errors import UserError, shortened
from agent.pool.rules.base import PoolRule, rule_names
from agent.shipped import file_of
from conf.own_rules import check_types, rule_of_file
from retrieval_service.backends import KEY, backend_names
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import settings_of

_PLACE = re.compile(r"In '([^']+)'")
_STRANGE = re.compile(r"Key '([^']+)' not in '(\w+)'")
"""Hydra's words for a key that a file of settings has too many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """What the files of one package bring to one group."""

    package: str
    suffix: str
    names: Callable[[], list[str]]
    node: Callable[[str], Any]
    """What the file of that name brings. Raises ``UserError`` for one that is wrong, or brings nothing."""
    base: type
    """What is filled in where ``defaults`` name none of them."""

    @property
    def line(self) -> str:
        """The line that names one."""
        return f"`defaults: [NAME{self.suffix}]`, which stands for {file_of(self.package, 'NAME')}"


def _settings(name: str) -> type[RetrievalConfig]:
    settings = settings_of(name)
    if settings is RetrievalConfig:
        raise UserError(
            f"{KEY}={name}: {file_of('retrieval_service.backends', name)} has no class `Settings`, which "
            f"{name}_settings in `defaults` stands for"
        )
    try:
        check_types(settings)
    except Exception as error:
        raise UserError(
            f"{KEY}={name}: its Settings can't be made ({type(error).__name__}: {shortened(error)})"
        ) from error
    return settings


BROUGHT = {
    "pool": Brought(package="agent.pool.rules", suffix="_rule", names=rule_names, node=rule_of_file, base=PoolRule),
    "retrieval": Brought(
        package="retrieval_service.backends",
        suffix="_settings",
        names=backend_names,
        node=_settings,
        base=RetrievalConfig,
    ),
}
"""By group."""
NO_RULE = f"pool: its file in conf/pool/ lacks {BROUGHT['pool'].line}"


def store() -> None:
    """Puts what they bring where Hydra finds it."""
    for group, brought in BROUGHT.items():
        for name in brought.names():
            with suppress(UserError):
                ConfigStore.instance().store(group=group, name=f"{name}{brought.suffix}", node=brought.node(name))


def inner(group: str) -> set[str]:
    """Choices of ``group`` that only files of settings name."""
    brought = BROUGHT.get(group)
    return set() if brought is None else {f"{name}{brought.suffix}" for name in brought.names()}


def with_setting(key: str) -> list[str]:
    """The choices of a group, ``pool=adaptive``, that have the setting ``key`` where the one that was chosen hasn't."""
    group, _, name = key.partition(".")
    brought, found = BROUGHT.get(group), []
    for choice in () if brought is None else brought.names():
        with suppress(UserError):
            if brought is not None and name in {f.name for f in fields(brought.node(choice))}:
                found.append(f"{group}={choice}")
    return found


def problem(error: Exception) -> str | None:
    """What is wrong, where Hydra's ``error`` is about what such a file brings; None for any other."""
    place, strange = _PLACE.match(str(error)), _STRANGE.search(str(error))
    where = place[1] if place else ""
    brought = BROUGHT.get(where.partition("/")[0])
    if brought is None:
        return None
    missing = str(getattr(error, "missing_cfg_file", None) or "").rpartition("/")[2]
    if missing.endswith(brought.suffix):
        return _problem_of(missing.removesuffix(brought.suffix), where, brought)
    if strange and strange[2] == brought.base.__name__:
        return f"{where}.yaml: {strange[1]} isn't a setting that all choices have; those of one need {brought.line}"
    return None


def _problem_of(name: str, where: str, brought: Brought) -> str | None:
    file = file_of(brought.package, name)
    if name not in brought.names():
        return f"{where}.yaml: {name}{brought.suffix} in its `defaults` stands for {file}, which isn't there"
    try:
        brought.node(name)
    except UserError as wrong:
        return str(wrong)
    return None
