"""What every actor's process does first: write to its own log, keep quiet on the network."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from actors import SIGNALS, UNTRACKED

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    **UNTRACKED,
    **SIGNALS,
}
"""An actor that was given no GPU sees none: left alone, Ray shows it all of them."""


WIDTH = 300
"""Characters of a log's line that a message shows; vLLM's lists of what it supports have thousands."""


class _Log(io.FileIO):
    """A descriptor of an actor's log. What a full disk doesn't take is lost: no actor breaks of what it tells."""

    def write(self, content: Any, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(content)
        return len(content)


def log_to(folder: Path, actor: str) -> None:
    """Sends this process's output, of Python and of native code alike, to ``folder/actor.log``.

    From then on no print raises ``OSError``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / f"{actor}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(_Log(descriptor, "w", closefd=False)),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        for descriptor in (1, 2)
    )
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # what every thread does, for actors/health.py
    print(f"[slingshot] {actor}, niceness {os.nice(0)}, pid {os.getpid()}", flush=True)


def processor_seconds() -> float:
    """That this process and all that it has started have had."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended in between
            own += sum(child.cpu_times()[:2])
    return own


def last_lines(folder: Path, actor: str, count: int = 8) -> str:
    """The end of an actor's log, no line of it longer than ``WIDTH``; empty when it has none."""
    return "\n".join(line[:WIDTH] for line in _end(folder, actor).splitlines()[-count:])


def last_crash(folder: Path, actor: str) -> str:
    """What Python's fault handler wrote into an actor's log when the process crashed; empty if it didn't."""
    lines = [line for line in _end(folder, actor).splitlines() if line.startswith("Fatal Python error: ")]
    return lines[-1] if lines else ""


def _end(folder: Path, actor: str) -> str:
    """The last 64 KiB of an actor's log: a crash ends with the stacks of all threads."""
    path = folder / f"{actor}.log"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        return file.read().decode(errors="replace")
