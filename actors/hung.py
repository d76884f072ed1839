"""The process of an actor that may hang, seen from outside: whether it works, what its threads do, and its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

STACKS_S = 5.0
"""Longest that is waited for the stacks of a process."""
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def stopped(pid: int) -> str | None:
    """The state of a process that can't run (it was stopped by a signal, or has ended); None for one that can."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    return str(status) if status in _STOPPED else None


def worked(pid: int) -> float:
    """Processor seconds of a process so far; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def reads(pid: int) -> bool:
    """Whether a process waits for a disk just now."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_DISK_SLEEP)
    except psutil.NoSuchProcess:
        return False


def write_stacks(pid: int, log: Path, why: str) -> None:
    """Appends what every thread of a process does to its log: by py-spy, or by its own fault handler (``log_to``)."""
    with contextlib.suppress(OSError), log.open("ab") as file:
        file.write(f"[slingshot] {why}; what its threads do:\n".encode())
        file.flush()
        if not _spied(pid, file.fileno()):
            file.seek(0, os.SEEK_END)
            before = file.tell()
            os.kill(pid, signal.SIGUSR1)
            end = time.monotonic() + STACKS_S
            while log.stat().st_size == before and stopped(pid) is None and time.monotonic() < end:
                time.sleep(0.05)


def _spied(pid: int, output: int) -> bool:
    spy = Path(sys.executable).with_name("py-spy")
    found = str(spy) if spy.is_file() else shutil.which("py-spy")
    if found is None:
        return False
    command = [found, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, stdout=output, stderr=subprocess.DEVNULL, timeout=STACKS_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started; none if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Ends ``processes`` at once, whatever state they are in."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
