"""Room beside a place: what killed makers left goes, and nothing of those that live."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from agent import lock as lock_module
from agent.aside import aside

KILLED = """
import os, sys
from pathlib import Path
from agent.aside import aside
with aside(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_there_for_the_body_alone(tmp_path: Path) -> None:
    with aside(tmp_path / "x") as first, aside(tmp_path / "x") as second:
        assert first != second
        assert first.parent == second.parent == tmp_path
        (first / "made").mkdir()
        (first / "made").rename(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    with pytest.raises(BlockingIOError), aside(tmp_path / "x"):
        raise BlockingIOError
    assert names(tmp_path) == ["x"]


def test_what_a_killed_maker_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    place = tmp_path / "a[1].json"
    (tmp_path / ".a1.json.x.aside").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout is not None
        theirs = Path(maker.stdout.readline().strip())
        with aside(place):
            pass
        assert names(theirs) == ["half"]
        maker.communicate()
    assert theirs.is_dir()
    with aside(place):
        assert not theirs.exists()
    assert names(tmp_path) == [".a1.json.x.aside"], "another place's"


def test_nothing_is_deleted_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*given: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock_module.fcntl, "flock", flock)
    with aside(tmp_path / "x") as first, aside(tmp_path / "x"):
        assert first.is_dir()
    assert names(tmp_path) == []
