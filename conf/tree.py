"""A composed configuration before it is typed: its keys, and checks for unknown ones and for numbers that no machine
word holds."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from agent.errors import UserError
from conf.hints import hint


def keys(config: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration, for messages that name the nearest valid one."""
    found = []
    for name, value in config.items_ex(resolve=False):
        found.append(f"{prefix}{name}")
        if isinstance(value, DictConfig) and not value._is_none():
            found += keys(value, f"{prefix}{name}.")
    return found


def check_tree(config: DictConfig, prefix: str = "") -> None:
    """Raises ``UserError`` for a key that a ``+key=value`` added beside the fields, or a number that is no number."""
    kind = OmegaConf.get_type(config)
    if not is_dataclass(kind):
        return
    valid = [f.name for f in fields(kind)]
    for key, value in config.items_ex(resolve=False):
        name = str(key)
        if name not in valid:
            names = [f"{prefix}{other}" for other in valid]
            raise UserError(f"{prefix}{name} is not a setting; {hint(prefix + name, names)}")
        if isinstance(value, DictConfig):
            check_tree(value, f"{prefix}{name}.")
        else:
            _check_number(value, f"{prefix}{name}")


def _check_number(value: Any, name: str) -> None:
    """Raises ``UserError`` for a number that isn't finite, or that no machine word holds."""
    if isinstance(value, ListConfig):
        found = value._maybe_dereference_node()  # of ``${…}``, which may lead to a list
        if not isinstance(found, ListConfig):
            raise UserError(f"{name}={value._content} must be a list")
        for element in found._iter_ex(resolve=False) if isinstance(found._content, list) else ():
            _check_number(element, name)
    elif isinstance(value, int | float) and not abs(value) < 2**63:
        raise UserError(f"{name}={value} must be a finite number, and below 2^63")
