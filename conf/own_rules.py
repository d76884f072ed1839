"""Pool rules as Hydra takes them: those in ``agent/pool/rules/``, and the user's own, ``pool=package.module:Rule``."""

from __future__ import annotations

import json
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from agent.errors import UserError, shortened
from agent.own import is_path, resolve
from agent.pool.rules.base import PoolRule, checked_rule, rule_class


def stored(missing: str | None) -> bool:
    """Puts a rule of the user's where Hydra, which misses the file of settings ``missing``, finds a group's choices.

    Returns False if that is no import path of a rule. Raises ``UserError`` for a path that is no rule.
    """
    group, _, name = (missing or "").partition("/")
    if group != "pool" or not is_path(name):
        return False
    ConfigStore.instance().store(group=group, name=name, node=own_rule(name))
    return True


def own_rule(path: str) -> PoolRule:
    """The rule of that import path, with its own defaults. Its fields become settings under ``pool``."""
    rule = checked_rule(resolve(path, "pool"), f"pool={path}")
    return _with_defaults(rule, path, f"pool={path}")


def rule_of_file(name: str) -> PoolRule:
    """The same for the rule in ``agent/pool/rules/NAME.py``."""
    return _with_defaults(rule_class(name), name, f"pool={name}")


def _with_defaults(rule: type[PoolRule], name: str, where: str) -> PoolRule:
    try:
        made = rule(name=name)
        check_types(made)
    except UserError as error:
        raise UserError(f"{where}: with its own defaults, {error}") from error
    except Exception as error:  # whatever its own __post_init__ raises
        raise UserError(
            f"{where}: its settings can't be made ({type(error).__name__}: {shortened(error)}); a field is a "
            "number, true or false, a text, or a list or dict of these"
        ) from error
    return made


def check_types(settings: Any) -> None:
    """Raises what OmegaConf says of a field that it can't hold, and JSON of one that no checkpoint could tell."""
    json.dumps(OmegaConf.to_container(OmegaConf.structured(settings)))
