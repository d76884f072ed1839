"""What tests of whole commands share: ``launch.main`` in this process, and a training run that only writes metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers: importlib mode adds no folder by itself

from composed_once import remember
from conf_runs import Command, Training, exit_of
from unmeasured import unmeasured

import launch


@pytest.fixture(scope="session", autouse=True)
def _unmeasured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        unmeasured(patch, tmp_path_factory.mktemp("measured"))
        yield


@pytest.fixture(scope="module", autouse=True)
def _composed_once() -> Iterator[None]:
    """Most of what these tests cost is composing, and most of that is the same in all of them."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    fake = Training()
    monkeypatch.setitem(launch.MODES, "train", fake)
    # Seconds per sweep; tests/tracking draws them.
    monkeypatch.setattr("tracking.experiments.pictures.draw", lambda *_: {"drawn.png": "a picture"})
    return fake


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``launch.py`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        return exit_of(list(arguments), monkeypatch, capsys)

    return run
