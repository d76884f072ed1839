"""How tests wait: for a condition, as long as there is life. A slow machine is no failure; a hang is.

A bound in seconds is only there to end a hang, and is far longer than any machine needs.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil

HANG_S = 1800.0
"""The longest of all waits."""
STILL_S = 180.0
"""A process that has done next to nothing for so long stands still."""
LIFE = 0.05
"""Share of a core below which a process, with all that it has started, counts as doing nothing: an idle Ray takes a
few hundredths."""


class Pulse:
    """Whether a process (with its descendants) still works, by the processor time that it gets."""

    def __init__(
        self,
        pid: int,
        *,
        still_s: float = STILL_S,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[int], float] | None = None,
    ) -> None:
        self._pid = pid
        self._still_s = still_s
        self._clock = clock
        self._worked = worked or processor_seconds
        self._seen: list[tuple[float, float]] = []

    def beats(self) -> bool:
        """Looks at the process again; False once it has stood still for ``still_s``."""
        now, work = self._clock(), self._worked(self._pid)
        if self._seen and work < self._seen[-1][1]:  # a descendant has ended and took its share along
            self._seen.clear()
        self._seen.append((now, work))
        while len(self._seen) > 1 and now - self._seen[1][0] >= self._still_s:
            self._seen.pop(0)
        then, before = self._seen[0]
        return now - then < self._still_s or (work - before) / (now - then) > LIFE


def processor_seconds(pid: int) -> float:
    """Of a process and everything that it started; 0.0 when it is gone."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None, *, hang_s: float = HANG_S) -> Any:
    """The first true value of ``condition``. Fails when ``process`` has ended or stands still before that."""
    end = time.monotonic() + hang_s
    pulse = None if process is None else Pulse(process.pid)
    looked = 0.0
    while not (value := condition()):
        assert time.monotonic() < end, f"the condition did not come true within {hang_s:g} s"
        if process is not None and pulse is not None and time.monotonic() - looked > 1.0:
            looked = time.monotonic()
            if process.poll() is not None:
                assert condition(), f"the process ended with {process.returncode} before the condition came true"
            assert pulse.beats(), f"the process has stood still for {STILL_S:g} s"
        time.sleep(0.02)
    return value


def finished(process: subprocess.Popen[str], output: Any, *, hang_s: float = HANG_S) -> str:
    """Waits until ``process`` has ended; what it has written into the file ``output``.

    Kills it, and fails, when it stands still.
    """
    try:
        until(lambda: process.poll() is not None, process, hang_s=hang_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; its output:\n{_text(output)}") from error
    finally:
        process.kill()
    return _text(output)


def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with captured text, which waits as long as the process works."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True, **how)
        stdout = finished(process, out)
        return subprocess.CompletedProcess(command, process.returncode, stdout, _text(err))


def _text(file: Any) -> str:
    file.seek(0)
    text: str = file.read()
    return text
