"""Processes that want the same: one after the other, where the file system can tell them apart."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Event, Thread

import pytest

from retrieval_service import turns
from retrieval_service.turns import in_turn


def test_who_waits_says_for_what_and_goes_on_once_the_other_has_ended(tmp_path: Path) -> None:
    lines: list[str] = []
    waiting, there = Event(), Event()

    def say(line: str) -> None:
        lines.append(line)
        waiting.set()

    def wait() -> None:
        with in_turn(tmp_path / ".lock", say, "fetches it"):
            there.set()

    with in_turn(tmp_path / ".lock", lines.append, "fetches it"):
        other = Thread(target=wait)
        other.start()
        assert waiting.wait(10)
        assert not there.is_set()
    other.join(10)
    assert there.is_set()
    assert lines == ["waiting for another process, which fetches it"]


def test_a_file_system_without_locks_keeps_nobody_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, what: int) -> None:
        raise OSError(refused, "refused")

    monkeypatch.setattr(turns.fcntl, "flock", refuse)
    refused = errno.ENOLCK
    with in_turn(tmp_path / ".lock", print, "fetches it"), in_turn(tmp_path / ".lock", print, "fetches it"):
        pass
    refused = errno.EIO
    with pytest.raises(OSError, match="refused"), in_turn(tmp_path / ".lock", print, "fetches it"):
        pytest.fail("it wasn't held")


def test_the_lock_of_another_user_is_held_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()
    opened = os.open

    def of_another_user(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, mode)

    monkeypatch.setattr(turns.os, "open", of_another_user)
    lines: list[str] = []
    with in_turn(tmp_path / ".lock", lines.append, "fetches it"):
        there = Event()

        def wait() -> None:
            with in_turn(tmp_path / ".lock", lambda line: there.set(), "fetches it"):
                pass

        other = Thread(target=wait)
        other.start()
        assert there.wait(10)
    other.join(10)
    assert not other.is_alive()
