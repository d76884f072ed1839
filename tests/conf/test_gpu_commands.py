"""The commands of ``tests/gpu/test_box.py``, without a GPU: launch.py takes them, and they fit their cards."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import launch
from actors.plan.fit import refusal
from actors.plan.layouts import settled


def _box() -> ModuleType:
    """The file as a module of its own: no test of it is collected here."""
    spec = importlib.util.spec_from_file_location("box", Path(__file__).parents[1] / "gpu" / "test_box.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BOX = _box()


class Asked(Exception):
    """A test has launched something, and ends with that."""


def _cases() -> list[Any]:
    """Each test of the box with what it is run with."""
    cases = []
    for name, test in vars(BOX).items():
        if name.startswith("test_"):
            marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
            each = [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]
            cases += [pytest.param(test, given, id="-".join((name, *given.values()))) for given in each]
    return cases


@pytest.mark.parametrize(("test", "given"), _cases())
def test_its_command_is_taken_and_fits(
    test: Any, given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(name: str, *arguments: str, **environment: str) -> Path:
        (config,) = launch.check_overrides([*arguments, f"output_dir={tmp_path}", f"cache_dir={tmp_path}"]).configs
        assert refusal(settled(config)) is None
        raise Asked

    node = SimpleNamespace(address="127.0.0.1:6379", access={}, end=lambda: None)
    monkeypatch.setattr(BOX, "Nodes", lambda *arguments, **environment: node)
    monkeypatch.setattr(BOX, "CARDS", 1)
    with pytest.raises(Asked):
        test(asks, **given)
