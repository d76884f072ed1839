"""Weights & Biases: online for those who have logged in, and never a connection for others."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import view_runs as made

from tracking.config import TrackerConfig
from tracking.dispensable import Dispensable
from tracking.trackers.base import Asked
from tracking.trackers.several import Trackers
from tracking.trackers.wandb import mode
from tracking.trajectories import EVALUATIONS


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without credentials; their home."""
    from wandb.sdk import wandb_setup  # a second, for this file alone

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_CONFIG_DIR",
        "NETRC",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb_setup, "_singleton", None)  # it has read what was said before
    return home


AUTO = TrackerConfig()
KEY = "0" * 40


def netrc(home: Path, text: str) -> None:
    (home / ".netrc").write_text(text)
    (home / ".netrc").chmod(0o600)


def test_without_credentials_it_is_offline(nobody: Path) -> None:
    assert mode(AUTO) == "offline"


def test_a_key_in_the_environment_means_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode(AUTO) == "online"


def test_a_login_in_netrc_means_online(nobody: Path) -> None:
    netrc(nobody, f"machine api.wandb.ai login user password {KEY}\n")
    assert mode(AUTO) == "online"


@pytest.mark.parametrize("host", ["wandb.lab.example", "localhost:8080"])
def test_a_login_at_a_server_of_ones_own_means_online(nobody: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
    netrc(nobody, f"machine api.wandb.ai login user password {KEY}\n")
    assert mode(AUTO) == "offline"
    netrc(nobody, f"machine {host} login user password {KEY}\n")
    assert mode(AUTO) == "online"


def test_the_netrc_that_the_environment_names_is_the_one(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc(nobody, f"machine api.wandb.ai login user password {KEY}\n")
    (nobody / ".netrc").rename(nobody / "elsewhere")
    assert mode(AUTO) == "offline"
    monkeypatch.setenv("NETRC", str(nobody / "elsewhere"))
    assert mode(AUTO) == "online"


def test_a_user_who_has_switched_it_off_is_offline(nobody: Path) -> None:
    netrc(nobody, f"machine api.wandb.ai login user password {KEY}\n")
    settings = nobody / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = offline\n")
    assert mode(AUTO) == "offline"


@pytest.mark.parametrize("text", [f"machine example.com login user password {KEY}\n", "machine\n", ""])
def test_a_netrc_of_others_or_a_broken_one_means_offline(nobody: Path, text: str) -> None:
    netrc(nobody, text)
    assert mode(AUTO) == "offline"


@pytest.mark.parametrize("wanted", ["offline", "disabled", "online"])
def test_the_users_environment_comes_before_credentials(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", wanted)
    assert mode(AUTO) == wanted


@pytest.mark.parametrize("wanted", ["offline", "online"])
def test_the_configuration_comes_before_everything(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "online" if wanted == "offline" else "offline")
    assert mode(TrackerConfig(wandb_mode=wanted)) == wanted


def test_what_was_told_before_a_call_that_failed_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    config = TrackerConfig(wandb=True, wandb_mode="offline")
    run = Trackers.open(Asked(config=config, folder=tmp_path, settings={}), {}, Dispensable(told.append))
    run.log({"step": 1, "reward/mean": 0.5})
    monkeypatch.setattr("tracking.trackers.wandb.Tracker.log", None)
    run.log({"step": 2, "reward/mean": 0.5})
    run.close()
    assert len(told) == 1
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"reward/mean" in record.read_bytes()


@pytest.mark.slow
def test_a_run_that_has_lost_wandbs_process_ends_without_a_word_of_it(tmp_path: Path) -> None:
    """In a process of its own: what is tried is its end."""
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys\n"
        "from pathlib import Path\n"
        "import psutil\n"
        "from tracking.config import TrackerConfig\n"
        "from tracking.dispensable import Dispensable\n"
        "from tracking.trackers.base import Asked\n"
        "from tracking.trackers.in_time import InTime\n"
        "from tracking.trackers.several import Trackers\n"
        "from tracking.trackers.wandb import Tracker\n"
        "config = TrackerConfig(wandb=True, wandb_mode='offline')\n"
        "opened = Tracker(Asked(config=config, folder=Path(sys.argv[1]), settings={}))\n"
        "(core,) = [p for p in psutil.Process().children(recursive=True) if p.name() == 'wandb-core']\n"
        "core.send_signal(signal.SIGSTOP)\n"
        "Trackers({'wandb': (opened, InTime(1.0))}, Dispensable(print)).close()\n"
        "core.kill()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "the tracker wandb failed and is off for the rest of this run, which goes on: "
        "no answer within 1 s (tracker.timeout_s)"
    ]


def test_an_offline_run_is_written_into_the_runs_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrackerConfig(wandb=True, wandb_mode="offline")
    asked = Asked(config=config, folder=folder, settings={"seed": 3})
    run = Trackers.open(asked, {}, Dispensable(pytest.fail))
    assert list(run.ids) == ["wandb"]
    run.log({"step": 1, "reward/mean": 0.5, "kind": "step", "bad": math.nan})
    made.lines(folder / EVALUATIONS, [made.evaluated(1, "q1", 1.0)])
    run.evaluation({"step": 1, "em": 0.25})
    run.close()
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for text in (b"reward/mean", b"eval/em", b"slingshot", asked.name.encode(), b"eval/episodes"):
        assert text in content
    assert b"bad" not in content
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/eval/episodes_*.table.json")
    told = json.loads(table.read_text())
    (row,) = (dict(zip(told["columns"], values, strict=True)) for values in told["data"])
    assert (row["question_id"], row["em"], row["answer"]) == ("q1", 1, "yes")
    assert "<search> emma </search>" in row["episode"]
