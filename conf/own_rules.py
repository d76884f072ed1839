"""Pool rules of the user's own: ``pool=package.module:Rule`` chooses a class by its path, as if it had a file."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from agent.errors import UserError, shortened
from agent.own import check_methods, is_path, resolve
from agent.pool.rules.base import PoolRule


def register_own_rules(settings: Sequence[str]) -> None:
    """Puts the rules that ``settings`` (``key=value``) choose by import path where Hydra finds a group's choices.

    Raises ``UserError`` for a path that is no rule.
    """
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "pool":
            for path in filter(is_path, (part.strip(" '\"") for part in value.split(","))):
                ConfigStore.instance().store(group="pool", name=path, node=own_rule(path))


def own_rule(path: str) -> PoolRule:
    """The rule with its own defaults, whose fields become settings under ``pool``."""
    found = resolve(path, "pool")
    if not (isinstance(found, type) and issubclass(found, PoolRule)):
        raise UserError(f"pool={path} must be a class made from agent.pool.rules.base.PoolRule")
    if inspect.isabstract(found):
        raise UserError(
            f"pool={path} lacks {', '.join(sorted(found.__abstractmethods__))}; see agent/pool/rules/base.py"
        )
    if "__dataclass_params__" not in vars(found):
        raise UserError(f"pool={path} is no dataclass; write @dataclass above it")
    if without := [f.name for f in dataclasses.fields(found) if _has_no_default(f)]:
        raise UserError(f"pool={path}: {', '.join(without)} needs a default, as each setting does")
    check_methods(found, PoolRule, f"pool={path}")
    try:
        rule = found(name=path)
        OmegaConf.structured(rule)
    except UserError as error:
        raise UserError(f"pool={path}: with its own defaults, {error}") from error
    except Exception as error:  # whatever its own __post_init__ raises, and OmegaConf says of a type that it can't hold
        raise UserError(
            f"pool={path}: its settings can't be made ({type(error).__name__}: {shortened(error)}); a field is a "
            "number, true or false, a text, or a list or dict of these"
        ) from error
    return rule


def _has_no_default(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
