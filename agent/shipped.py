"""What is found by its file's name: the rules, losses, rewards, tools, formats and rankers of this project."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from agent.errors import UserError


def module_names(folder: Iterable[str], *helpers: str) -> list[str]:
    """The modules of a package's ``__path__``, sorted, without those that only help the others."""
    return sorted(module.name for module in pkgutil.iter_modules(folder) if module.name not in helpers)


def own_class(module: ModuleType, base: type[Any], where: str) -> type[Any]:
    """The one class made from ``base`` that ``module`` itself defines.

    Raises ``UserError``, which ``where`` begins, if it defines none or several.
    """
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(each.__name__ for each in found) or "none"
        raise UserError(f"{where}: {module.__file__} has to have one subclass of {base.__name__}, and has {names}")
    return found[0]
