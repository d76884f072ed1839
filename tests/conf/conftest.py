"""What tests of whole commands share: ``launch.main`` in this process, and a training run that only writes metrics."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers: importlib mode adds no folder by itself

from conf_runs import Command, Training, exit_of

import launch


@pytest.fixture(scope="session", autouse=True)
def _files_read_once() -> Iterator[None]:
    """Hydra reads the thirty files of a composition anew each time: a third of its time, and these tests compose much.

    What is remembered are the project's own files; those that a test writes lie in folders of another kind.
    """
    (files,) = (kind for kind in Plugins.instance().discover(ConfigSource) if kind.scheme() == "pkg")
    read, known = files._read_config, {}

    def remembered(self: Any, resource: Any) -> Any:
        if str(resource) not in known:
            known[str(resource)] = read(self, resource)
        return copy.deepcopy(known[str(resource)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_read_config", remembered)
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
