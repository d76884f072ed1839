from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_writing import write_checkpoint

from agent.errors import Fault, UserError
from learner.checkpoint import (
    Writing,
    checkpoints,
    go_back_to,
    latest,
    latest_sound,
    load_state,
    put_back,
    save_state,
    set_best,
    verify,
)
from learner.manifest import MANIFEST, Files, listed

FILES = {"model.safetensors", "config.json", "pool/state"}


def fill(folder: Path, text: str = "state", without: str = "") -> Files:
    (folder / "pool").mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")
    (folder / "pool" / "state").write_text(text)
    if without:
        (folder / without).unlink()
    return listed(folder)


def write(root: Path, step: int, keep: int = 0, text: str = "state") -> Path:
    return write_checkpoint(root, step, lambda folder: fill(folder, text), keep=keep)


def test_whole_and_listed(tmp_path: Path) -> None:
    path = write(tmp_path, 100)
    assert path == tmp_path / "step-000100"
    assert verify(path) == 100
    assert set(json.loads((path / MANIFEST).read_text())["files"]) == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["step-000100"]


def test_latest_is_the_one_that_was_written_last(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None
    for step in (20, 5, 1_000_000):
        write(tmp_path, step)
    (tmp_path / ".tmp-step-2000000").mkdir()
    (tmp_path / "step-notes").mkdir()
    assert latest(tmp_path) == tmp_path / "step-1000000"


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000003", "step-000004"]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_can_not_be_pruned_does_not_unmake_what_is_written(tmp_path: Path) -> None:
    """An old one that was moved elsewhere, with a link in its place."""
    old = write(tmp_path / "elsewhere", 1)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "step-000001").symlink_to(old)
    new = write(tmp_path / "here", 2, keep=1)
    assert verify(new) == 2
    assert old.is_dir()
    assert checkpoints(tmp_path / "here") == [new]


def test_a_failed_write_leaves_the_others_and_is_cleared_away(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def fails(folder: Path) -> Files:
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 2, fails)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]  # a full disk needs the room
    (tmp_path / ".tmp-step-000007").mkdir()  # of a writer that was killed
    write(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000003"]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    write(tmp_path, 1, text="old")
    path = write(tmp_path, 1, text="new")
    assert (path / "pool" / "state").read_text() == "new"
    assert verify(path) == 1


@pytest.mark.parametrize(
    "finds", [lambda root: put_back(root) or latest(root), lambda root: write(root, 2) and root / "step-000001"]
)
def test_a_kill_while_one_takes_the_place_of_another_leaves_the_other(
    finds: Callable[[Path], Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes there next, or puts it back, gives it its name again once the killed one no longer holds its lock.
    Who only looks changes nothing."""
    write(tmp_path, 1, text="old")
    writing = Writing(tmp_path, 1)
    files = fill(writing.folder, "new")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if target.name == "step-000001" and path == writing.folder:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            writing.finish(files)
    put_back(tmp_path)
    assert latest(tmp_path) is None, "it is another's to write now"
    writing._lock.close()
    assert latest(tmp_path) is None, "it was only looked for"
    found = finds(tmp_path)
    assert found == tmp_path / "step-000001"
    assert (found / "pool" / "state").read_text() == "old"
    assert verify(found) == 1
    write(tmp_path, 3)
    assert not [*tmp_path.glob(".tmp-*")]


def test_one_that_can_not_get_its_name_leaves_it_to_the_one_that_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, text="old")
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.name == ".tmp-step-000001":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="Input/output"):
            write(tmp_path, 1, text="new")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert (tmp_path / "step-000001" / "pool" / "state").read_text() == "old"


@pytest.mark.parametrize("name", ["model.safetensors", "pool/state"])
@pytest.mark.parametrize("how", ["missing", "truncated", "one bit"])
def test_damage_is_found_and_named(name: str, how: str, tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    file = path / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if how == "truncated" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UserError, match=f"{name} is {'missing' if how == 'missing' else 'damaged'}"):
        verify(path)


def test_without_a_model_it_is_no_checkpoint(tmp_path: Path) -> None:
    for step, name in enumerate(("model.safetensors", "config.json"), start=1):
        path = write_checkpoint(tmp_path, step, lambda folder, name=name: fill(folder, without=name))
        with pytest.raises(UserError, match="it holds no model"):
            verify(path)


def test_what_its_writer_did_not_list_or_no_longer_finds_is_a_fault(tmp_path: Path) -> None:
    def more(folder: Path) -> Files:
        files = fill(folder)
        (folder / "stray").write_text("")
        return files

    def fewer(folder: Path) -> Files:
        files = fill(folder)
        (folder / "pool" / "state").unlink()
        return files

    def other(folder: Path) -> Files:
        files = fill(folder)
        (folder / "pool" / "state").write_text("longer than before")
        return files

    for wrong, why in ((more, "stray was listed by no writer"), (fewer, "pool/state is gone"), (other, "has 18 bytes")):
        with pytest.raises(Fault, match=why):
            write_checkpoint(tmp_path, 1, wrong)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_takes_checkpoints(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CIFS, and some of FUSE."""
    sync = os.fsync

    def files_alone(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", files_alone)
    assert verify(write(tmp_path, 1)) == 1


def test_what_can_not_be_synced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/\.tmp-step-000001/"):
        write(tmp_path, 1)
    assert checkpoints(tmp_path) == []


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    def second(folder: Path) -> Files:
        with pytest.raises(Fault, match="another process is writing checkpoints there"):
            write(tmp_path, 2)
        return fill(folder)

    write_checkpoint(tmp_path, 1, second)
    write(tmp_path, 2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000001", "step-000002"]


def test_the_best_one_of_another_folder_is_found_from_one_that_is_new(tmp_path: Path) -> None:
    path = write(tmp_path / "old", 1)
    set_best(path, tmp_path / "new" / "checkpoints")
    assert (tmp_path / "new" / "checkpoints" / "best").resolve() == path.resolve()
    set_best(path, tmp_path / "old")
    assert (tmp_path / "old" / "best").readlink() == Path("step-000001"), "a folder that is moved keeps its best"


# --- the order of time -----------------------------------------------------------------------------


def test_pruning_goes_by_when_they_were_written_and_not_by_their_steps(tmp_path: Path) -> None:
    """A run went back from step 100 to 40: what it writes then is new."""
    for step in (40, 80, 100):
        write(tmp_path, step)
    path = write(tmp_path, 60, keep=2)
    assert path.is_dir()
    assert latest(tmp_path) == path
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000100", "step-000060"]
    write(tmp_path, 80, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000060", "step-000080"]


def test_the_best_and_the_spared_stay(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    set_best(second)
    for step in (3, 4):
        write_checkpoint(tmp_path, step, fill, keep=1, spare=(first,))
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000001", "step-000002", "step-000004"]
    set_best(tmp_path / "step-000004")
    assert (tmp_path / "best").resolve() == (tmp_path / "step-000004").resolve()
    write_checkpoint(tmp_path, 5, fill, keep=1)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000004", "step-000005"]


def test_before_a_damaged_one_comes_the_one_that_it_followed(tmp_path: Path) -> None:
    for step in (40, 80, 100, 60):  # 80 and 100 are of what the run went back behind
        write(tmp_path, step)
    assert latest_sound(tmp_path, verify) == (tmp_path / "step-000060", [])
    (tmp_path / "step-000060" / "model.safetensors").write_text("{")
    found, (refused,) = latest_sound(tmp_path, verify)
    assert found == tmp_path / "step-000040"
    assert "step-000060: model.safetensors is damaged" in refused
    write(tmp_path, 70, keep=1)
    assert {p.name for p in checkpoints(tmp_path)} == {"step-000070"}


def test_one_that_a_run_goes_back_to_counts_as_written_last(tmp_path: Path) -> None:
    for step in (40, 80, 100):
        write(tmp_path, step)
    untouched = (tmp_path / "step-000100" / MANIFEST).stat().st_mtime_ns
    go_back_to(tmp_path / "step-000100")
    assert (tmp_path / "step-000100" / MANIFEST).stat().st_mtime_ns == untouched, "it is the last one"
    go_back_to(tmp_path / "step-000040")
    assert latest_sound(tmp_path, verify) == (tmp_path / "step-000040", [])
    assert {p.name for p in tmp_path.iterdir()} == {"step-000040", "step-000080", "step-000100"}
    write(tmp_path, 60, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000040", "step-000060"]


@pytest.mark.parametrize("damage", ["{", None])
@pytest.mark.parametrize("step", [10, 20, 30])
def test_one_whose_manifest_is_damaged_or_missing_keeps_no_sound_one_from_being_used(
    step: int, damage: str | None, tmp_path: Path
) -> None:
    """It has lost its place in time: it may be the oldest."""
    for each in (10, 20, 30):
        write(tmp_path, each)
    manifest = tmp_path / f"step-{step:06d}" / MANIFEST
    manifest.unlink() if damage is None else manifest.write_text(damage)
    found, (refused,) = latest_sound(tmp_path, verify)
    assert found == tmp_path / ("step-000020" if step == 30 else "step-000030")
    assert f"step-{step:06d}" in refused
    write(tmp_path, 40, keep=1)
    assert {p.name for p in checkpoints(tmp_path)} == {manifest.parent.name, "step-000040"}, "its user may look at it"


def test_where_all_are_damaged_none_is_sound(tmp_path: Path) -> None:
    for step in (1, 2):
        (write(tmp_path, step) / "config.json").unlink()
    found, refused = latest_sound(tmp_path, verify)
    assert found is None
    assert len(refused) == 2


MANIFESTS = [
    *("", "[]", '{"step": 1}', '{"step": "x", "files": {}}', '{"step": 1e999, "files": {}}'),
    '{"step": 1, "files": {"pool/state": {}}}',
]


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_damaged_manifest(content: str, tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=MANIFEST):
        verify(path)
    (path / MANIFEST).unlink()
    with pytest.raises(UserError, match=MANIFEST):
        verify(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    save_state(path / "s.pt", {})
    for folder in (tmp_path, *tmp_path.parents[:3]):  # one more where several processes share the tests
        folder.chmod(folder.stat().st_mode | 0o055)
    for name in (MANIFEST, "s.pt"):
        (path / name).chmod(0o600)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"manifest\.json can't be read \(Permission denied\)"):
            verify(path)
        with pytest.raises(UserError, match=r"s\.pt can't be read \(Permission denied\)"):
            load_state(path / "s.pt")
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_state_round_trip(tmp_path: Path) -> None:
    state = {"t": torch.arange(3), "n": 2**100, "s": "x", "l": [1.5, None], "d": {"a": {1: True}}}
    save_state(tmp_path / "s.pt", state)
    loaded = load_state(tmp_path / "s.pt")
    assert torch.equal(loaded.pop("t"), state.pop("t"))  # type: ignore[arg-type]
    assert loaded == state


def test_state_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        load_state(tmp_path / "absent.pt")
    path = tmp_path / "s.pt"
    for content in (b"", b"not a file of torch", b"\x80\x02cos\nsystem\n."):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            load_state(path)
    save_state(path, {"t": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(UserError, match="damaged"):
        load_state(path)
