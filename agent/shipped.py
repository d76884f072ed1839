"""What is found by its file's name: the rules, losses, rewards, tools, formats and rankers of this project."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from types import ModuleType


def module_names(folder: Iterable[str], *helpers: str) -> list[str]:
    """The modules of a package's ``__path__``, sorted, without those that only help the others."""
    return sorted(module.name for module in pkgutil.iter_modules(folder) if module.name not in helpers)


def own_classes(module: ModuleType, base: type) -> list[type]:
    """The classes made from ``base`` that ``module`` itself defines."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
