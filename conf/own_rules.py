"""Pool rules as Hydra takes them: those in ``agent/pool/rules/``, and the user's own, ``pool=package.module:Rule``."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from agent.errors import UserError, shortened
from agent.own import is_path, resolve
from agent.pool.rules.base import PoolRule, checked_rule, rule_class


def register_own_rules(settings: Sequence[str]) -> None:
    """Puts the rules that ``settings`` (``key=value``) choose by import path where Hydra finds a group's choices.

    Raises ``UserError`` for a path that is no rule.
    """
    for setting in settings:
        if setting.partition("=")[0] == "pool":
            for path in filter(is_path, _named(setting)):
                ConfigStore.instance().store(group="pool", name=path, node=own_rule(path))


def _named(setting: str) -> list[str]:
    """The choices that ``setting`` names, several of a sweep; none where Hydra can't read it, which is said later."""
    try:
        override = OverridesParser.create().parse_override(setting)
        values = [*override.sweep_iterator()] if override.is_sweep_override() else [override.value()]
    except HydraException:
        return []
    texts = (value.text if isinstance(value, QuotedString) else value for value in values)
    return [text for text in texts if isinstance(text, str)]


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
        OmegaConf.structured(made)
    except UserError as error:
        raise UserError(f"{where}: with its own defaults, {error}") from error
    except Exception as error:  # whatever its own __post_init__ raises, and OmegaConf says of a type that it can't hold
        raise UserError(
            f"{where}: its settings can't be made ({type(error).__name__}: {shortened(error)}); a field is a "
            "number, true or false, a text, or a list or dict of these"
        ) from error
    return made
