"""What every actor's process does first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from actors import UNTRACKED
from actors.process import QUIET

ROOT = Path(__file__).parents[2]
ACTOR = """
import os, sys
from pathlib import Path
from actors.process import log_to
log_to(Path(sys.argv[1]), "learner")
print("dry run: é")
print("no weights", file=sys.stderr)
os.system("echo native >&2")
sys.exit(7)
"""


def actor(folder: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", ACTOR, str(folder)], env=environment, check=False).returncode


def test_all_that_a_process_says_is_in_its_log_in_its_order(tmp_path: Path) -> None:
    assert actor(tmp_path) == 7
    first, *others = (tmp_path / "learner.log").read_text(encoding="utf-8").splitlines()
    assert first.startswith("[slingshot] learner, niceness ")
    assert others == ["dry run: é", "no weights", "native"]


def test_no_library_reports_usage_in_any_mode() -> None:
    """The driver's own downloads come before Ray is started, and most modes start none."""
    code = "import launch; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    environment = {name: value for name, value in os.environ.items() if name not in UNTRACKED}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == "True\n"
    assert UNTRACKED.items() <= QUIET.items(), "and so in the actors"


def test_a_log_on_a_full_disk_ends_no_process(tmp_path: Path) -> None:
    """The disk is that of the run: what it does without, as it says there, would have ended it otherwise."""
    (tmp_path / "learner.log").symlink_to("/dev/full")
    assert actor(tmp_path) == 7
