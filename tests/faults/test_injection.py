"""What the tests of faults change in the actors is there. It is looked at every day: those tests take hours."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SPEC = importlib.util.spec_from_file_location("injection", Path(__file__).parent / "inject" / "sitecustomize.py")
assert SPEC is not None
assert SPEC.loader is not None
INJECTION = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(INJECTION)


def apart(module: ModuleType) -> SimpleNamespace:
    """The same names, whose classes can be changed without changing the module's."""

    def own(value: Any) -> Any:
        is_own = isinstance(value, type) and value.__module__ == module.__name__ and not issubclass(value, Enum)
        return type(value.__name__, (value,), {}) if is_own else value

    return SimpleNamespace(**{name: own(value) for name, value in vars(module).items()})


@pytest.mark.parametrize("name", INJECTION.CHANGED)
def test_what_is_changed_is_there(name: str) -> None:
    module = importlib.import_module(name)
    before, changed = apart(module), apart(module)
    INJECTION.CHANGED[name](changed)
    new = [
        (was, now)
        for key, here in vars(changed).items()
        for was, now in [(getattr(module, key), here), *_methods(getattr(before, key), here)]
        if inspect.isfunction(now) and now.__module__ == INJECTION.__name__
    ]
    assert len(new) == 1
    # A context manager's own function is inside.
    (was, now), *_ = ((inspect.unwrap(was), inspect.unwrap(now)) for was, now in new)
    taken = inspect.signature(now)
    if not any(p.kind is p.VAR_POSITIONAL for p in taken.parameters.values()):
        assert [*taken.parameters] == [*inspect.signature(was).parameters]


def _methods(before: Any, here: Any) -> list[tuple[Any, Any]]:
    if not isinstance(here, type) or here is before:
        return []
    return [(getattr(before, name), value) for name, value in vars(here).items() if hasattr(before, name)]
