"""A run's folder: one process at a time, and only where something can be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.errors import UserError
from tracking import run_folder
from tracking.run_folder import LOCK, claimed, make_new, trace, unwritable


def test_a_folder_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    wanted = tmp_path / "2026-01-01" / "12-00-00"
    made = [make_new(wanted, "output_dir") for _ in range(3)]
    assert [folder.name for folder in made] == ["12-00-00", "12-00-00-2", "12-00-00-3"]
    assert all(folder.is_dir() for folder in made)


def test_runs_of_one_moment_never_share_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        made = [*threads.map(lambda _: make_new(tmp_path / "day" / "second", "output_dir"), range(64))]
    assert len(set(made)) == 64


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with claimed(folder, "output_dir"):
        assert folder.is_dir()
        holder = f"process {os.getpid()} on "
        with (
            pytest.raises(
                UserError, match=rf"^output_dir={folder}: {holder}.* is writing there; wait until it has ended; "
            ),
            claimed(folder, "output_dir"),
        ):
            pass
    with claimed(folder, "output_dir"):
        pass


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tracking.run_folder import claimed\n"
        "with claimed(Path(sys.argv[1]), 'output_dir'):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(run_folder.__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"process {process.pid} on .* is writing there"),
            claimed(tmp_path, "output_dir"),
        ):
            pass
        process.kill()
        process.wait()
    with claimed(tmp_path, "output_dir"):
        pass


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with claimed(tmp_path / "run", "output_dir"):
        assert (tmp_path / "run" / LOCK).is_file()


def test_what_a_run_left_is_seen(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "my notes").touch()
    assert trace(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert trace(tmp_path) == "checkpoints"
    (tmp_path / "metrics.jsonl").touch()
    assert trace(tmp_path) == "metrics.jsonl"


# --- where nothing can be written ------------------------------------------------------------------


def test_a_folder_that_can_be_written_to_is_not_complained_of(tmp_path: Path) -> None:
    assert unwritable(tmp_path) is None
    assert unwritable(tmp_path / "to" / "be" / "made") is None
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below" / "it"):
        assert unwritable(folder) == f"{file} is a file, not a folder"
        with pytest.raises(
            UserError, match=rf"^output_dir={folder}: {file} is a file, not a folder; another folder is"
        ):
            make_new(folder, "output_dir")
        with pytest.raises(UserError, match=rf"^x={folder}: {file} is a file"), claimed(folder, "x"):
            pass


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    assert unwritable(tmp_path / "link" / "run") == f"{tmp_path / 'link'} is a link to gone, which doesn't exist"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_a_file_system_where_nothing_can_be_made_is_named() -> None:
    assert unwritable(Path("/proc/run")) == "nothing can be written to it (No such file or directory)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "theirs").mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        found = [unwritable(tmp_path / name) for name in ("closed", "closed/run", "theirs", "theirs/run")]
    finally:
        os.seteuid(0)
    assert found == ["nothing can be written to it (Permission denied)"] * 4


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert unwritable(tmp_path) == "nothing can be written to it (No space left on device)"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    assert unwritable(tmp_path / ("x" * 300)) == "nothing can be written to it (File name too long)"
