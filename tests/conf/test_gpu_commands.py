"""The commands of ``tests/gpu/test_box.py``, without a GPU: launch.py takes them, and they fit their cards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from by_path import module_at

import launch
from actors.plan.fit import refusal
from actors.plan.layouts import settled

BOX = module_at(Path(__file__).parents[1] / "gpu" / "test_box.py")


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


@pytest.mark.one_in(3)
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
