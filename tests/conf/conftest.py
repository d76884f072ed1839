"""What tests of whole commands share: ``launch.main`` in this process, and a training run that only writes metrics."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers: importlib mode adds no folder by itself

from conf_runs import Command, Training

import launch


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
        monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        code = 0
        try:
            launch.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else -1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
