"""The launcher: a small process above the driver of a run, which outlives it.

It waits for the driver, passes its signals on, and ends with its exit code. When the driver dies without a word
(killed, out of memory, a crash), or a process of Ray's that it can't do without, the launcher says so in the line that
a fault has: what happened, and the checkpoint to resume from. At each end it takes away what is left: processes, their
shared memory, Ray's folder of the session.

The driver is a fork of this process, made before it has loaded anything large. It tells (``tell``) what is to be known.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from agent.visible import visible

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_S = 0.5
LAST_WORD_S = 3.0
"""How long a driver that has lost Ray has for a line of its own."""
SHUTDOWN_S = 20.0
"""How long it may then take to end."""
LEFT_S = 5.0
"""How long what a driver has started may outlive it by itself."""
KILLED_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

_pipe: int | None = None
"""The driver's end, where it has a launcher."""


def has_launcher() -> bool:
    """Whether this process is a driver that a launcher watches: then signals may come from it, too."""
    return _pipe is not None


def tell(**facts: Any) -> None:
    """Tells the launcher, if there is one: ``head`` (the processes of Ray's that have to live), ``session`` and
    ``logs`` (Ray's folder, and where its logs belong after a fault), ``leaving`` (their end is no fault any more),
    ``checkpoint`` (to resume from), ``goes_on`` (what to do in place of that), ``said`` (the driver has had its last
    word)."""
    if _pipe is not None:
        with suppress(OSError):  # the launcher was killed, and this process is about to be
            os.write(_pipe, json.dumps(facts).encode() + b"\n")


def launch() -> None:
    """Returns in the driver, a child of the calling process, which waits for it and exits as its launcher."""
    global _pipe
    if _pipe is not None or not _can_watch():
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where a parent has it ignored, no end of a child is told
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = os.pipe()
    launcher = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # whoever is there takes what comes meanwhile
    driver = os.fork()
    if driver:
        os.close(theirs)
        _end_with(_Launcher(driver, ours))
    os.close(ours)
    _pipe = theirs
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _can_watch() -> bool:
    """Whether this system tells of the end of processes that aren't one's children: old kernels and some sandboxes
    don't."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _end_with(launcher: _Launcher) -> NoReturn:
    code = 1
    try:
        code = launcher.run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class _Launcher:
    """Watches the process ``driver``, which tells into ``pipe``."""

    def __init__(self, driver: int, pipe: int) -> None:
        self._driver = driver
        self._pipe = pipe
        self._began = time.time()
        self._told = b""
        self._facts: dict[str, Any] = {}
        self._head: dict[str, int] = {}
        """Names of Ray's processes, and descriptors that become readable when they end."""
        self._gone: str | None = None
        """One of them that had ended before it could be watched."""
        self._sessions: dict[str, str] = {}
        """Folders of Ray's, and where their logs belong."""
        os.set_blocking(pipe, False)

    def run(self) -> int:
        """Until the driver has ended and nothing of it is left; the code to exit with."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what loses its parent becomes this process's
        status, lost = self._wait()
        self._listen()
        self._clear_processes(LEFT_S if os.WIFEXITED(status) else 0.0)
        code, line = self._outcome(status, lost)
        if line:
            with suppress(OSError):
                os.write(2, visible(f"slingshot: {line}").encode(errors="replace") + b"\n")
        self._clear_sessions(keep_logs=code == 1)
        return code

    def _wait(self) -> tuple[int, str | None]:
        """The driver's wait status, and what of Ray was lost before it ended."""
        # A signal that is ignored, as nohup does, isn't for the driver either.
        forwarded = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
        awaited = {*forwarded, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        lost, deadline = None, float("inf")
        while True:
            self._listen()
            if (status := self._reap()) is not None:
                return status, lost
            if lost is None and (lost := self._lost()):
                deadline = time.monotonic() + LAST_WORD_S
            if lost and self._facts.pop("said", None):
                self._facts["had its say"] = True
                deadline = time.monotonic() + SHUTDOWN_S
            if time.monotonic() > deadline:
                os.kill(self._driver, signal.SIGKILL)
            came = signal.sigtimedwait(awaited, LOOK_S)
            # A terminal sends its signals to all processes of a job by itself: those come from the kernel.
            if came is not None and came.si_signo in forwarded and came.si_code <= 0:
                with suppress(ProcessLookupError):
                    os.kill(self._driver, came.si_signo)

    def _listen(self) -> None:
        """Takes in what the driver has told."""
        with suppress(BlockingIOError):
            while part := os.read(self._pipe, 65536):
                self._told += part
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            facts = json.loads(line)
            if "head" in facts:
                self._forget_head()
                for name, pid in facts.pop("head").items():
                    try:
                        self._head[name] = os.pidfd_open(pid)
                    except ProcessLookupError:
                        self._gone = self._gone or name
                self._sessions[facts.pop("session")] = facts.pop("logs")
            if facts.get("leaving"):
                self._forget_head()
            self._facts |= facts

    def _forget_head(self) -> None:
        for descriptor in self._head.values():
            os.close(descriptor)
        self._head, self._gone = {}, None

    def _lost(self) -> str | None:
        """Which of Ray's processes has ended that shouldn't have."""
        if self._gone or not self._head:
            return self._gone
        ended, _, _ = select.select([*self._head.values()], [], [], 0)
        return next((name for name, descriptor in self._head.items() if descriptor in ended), None)

    def _reap(self) -> int | None:
        """The driver's status if it has ended; forgets others that have."""
        status = None
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._driver:
                    status = ended[1]
        return status

    def _outcome(self, status: int, lost: str | None) -> tuple[int, str]:
        """The exit code, and the line to say: nothing where the driver has had its say."""
        said = self._facts.get("said") or self._facts.get("had its say")
        if os.WIFEXITED(status) and (said or os.WEXITSTATUS(status) == 0):
            return os.WEXITSTATUS(status), ""
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number in FORWARDED and lost is None:
            return 128 + number, "" if said else f"stopped by {signal.Signals(number).name}"
        if said:
            return 1, ""
        if lost:
            why = f"Ray's {lost} has ended"
        elif number:
            why = f"the driver was killed by {_name(number)}"
            why += " (the memory may be full, or somebody did it)" if number == signal.SIGKILL else ""
        else:
            why = f"the driver ended with exit code {os.WEXITSTATUS(status)} and no word; Ray may have ended it"
        if logs := next(reversed(self._sessions.values()), None):
            why += f"; Ray's logs are in {Path(logs, 'ray')}"
        goes_on = self._facts.get("goes_on")
        if goes_on is None and (saved := self._facts.get("checkpoint")):
            goes_on = f"resume with resume={saved}"
        return 1, f"fault: {why}" + (f"; {goes_on}" if goes_on else "")

    # --- what is left -----------------------------------------------------------------------------

    def _clear_processes(self, patience_s: float) -> None:
        """Ends what the driver has left behind, and takes the shared memory away that only they had."""
        end = time.monotonic() + patience_s
        segments: set[Path] = set()
        while (left := _descendants()) and time.monotonic() < end + KILLED_S:
            segments |= {path for pid in left for path in _segments(pid)}
            if time.monotonic() >= end:
                # Trackers take away what the others leave; they end by themselves when those have.
                helpers = {
                    pid for pid in left if b"multiprocessing.resource_tracker import main" in _read(pid, "cmdline")
                }
                for pid in left - helpers or helpers:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.02)
        self._reap()
        if segments:
            held = {path for pid in _numbers() for path in _segments(pid)}
            for path in segments - held:
                with suppress(OSError):
                    path.unlink()

    def _clear_sessions(self, *, keep_logs: bool) -> None:
        """Removes Ray's folders of this run; their ``keep_logs`` go into the run's folder."""
        root = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")  # as Ray has it
        folders = set()
        for path in root.glob(f"session_*_{self._driver}"):
            with suppress(OSError):
                if path.stat().st_mtime >= self._began - 1:
                    folders.add(path)
        for folder in folders | {Path(session) for session in self._sessions}:
            logs = self._sessions.get(str(folder), self._facts.get("logs"))
            with suppress(OSError):
                if keep_logs and logs and (folder / "logs").is_dir():
                    shutil.copytree(folder / "logs", Path(logs, "ray"), symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            if (newest := root / "session_latest").is_symlink() and not newest.exists():
                newest.unlink()


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def _name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(pid: int, file: str) -> bytes:
    with suppress(OSError):
        return Path("/proc", str(pid), file).read_bytes()
    return b""


def _descendants() -> set[int]:
    """All processes below this one, but for those that have ended and whose parent hasn't noticed yet."""
    below: dict[int, list[int]] = {}
    ended = set()
    for pid in _numbers():
        # pid (name) state parent …; a name may have blanks and brackets of its own.
        if stat := _read(pid, "stat"):
            state, parent = stat.rpartition(b")")[2].split()[:2]
            below.setdefault(int(parent), []).append(pid)
            if state in b"ZX" and int(parent) != os.getpid():
                ended.add(pid)  # its parent hasn't asked for its exit code yet; if that ends, this process does
    found, todo = set(), [os.getpid()]
    while todo:
        children = below.get(todo.pop(), [])
        found.update(children)
        todo += children
    return found - ended


def _segments(pid: int) -> set[Path]:
    """The files in shared memory that a process has mapped and that still have a name."""
    names = re.findall(rb" (/dev/shm/[^\n]*)", _read(pid, "maps"))
    return {Path(os.fsdecode(name)) for name in names if not name.endswith(b" (deleted)")}
