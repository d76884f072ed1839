"""The first hour of a user with an older, busy machine: `make first-hour`.

A fresh clone with a fresh home folder, two cores without AVX-512, four busy processes beside; then the README's two
commands in a terminal, and the demo once more into a log. Fails if a command fails, or is silent for too long.
Standard library only: nothing is installed yet.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TERMINAL_S = 10.0
"""Longest silence of a terminal."""
LOG_S = 30.0
"""Longest silence of a log."""
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Hides AVX-512 from oneDNN and torch, on a processor that has it."""


@dataclass(frozen=True)
class Seen:
    """What a command has shown."""

    code: int
    seconds: float
    silence: float
    """The longest, in seconds."""
    before: str
    """The line that it followed."""
    text: str


def spin() -> None:
    while True:
        pass


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other programs, each of which wants a core for itself."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def watch(command: list[str], folder: Path, environment: dict[str, str], *, terminal: bool) -> Seen:
    """Runs ``command``, shows what it writes, and measures its silences."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    began = heard = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    chunks: list[str] = []
    silence, before = 0.0, ""
    while True:
        ready, _, _ = select.select([ours], [], [], 1.0)
        now = time.monotonic()
        if now - heard > silence:
            silence, before = now - heard, last_line("".join(chunks[-50:]))
        if not ready:
            continue
        try:
            data = os.read(ours, 65536)
        except OSError:  # a terminal whose other end is closed
            data = b""
        if not data:
            break
        heard = now
        chunks.append(data.decode(errors="replace"))
        sys.stdout.write(chunks[-1])
        sys.stdout.flush()
    os.close(ours)
    return Seen(process.wait(), time.monotonic() - began, silence, before, plain("".join(chunks)))


def plain(text: str) -> str:
    """``text`` without a terminal's control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


def last_line(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", plain(text)) if line.strip()]
    return lines[-1].strip() if lines else "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--load", type=int, default=4, help="busy processes beside")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", choices=("demo", "test"), help="one of the two commands")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    failures = []
    with tempfile.TemporaryDirectory(prefix="first-hour-") as name, busy(arguments.load):
        clone, home = Path(name) / "slingshot", Path(name) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        environment = {**os.environ, **OLDER, "HOME": str(home), "TERM": "xterm"}
        commands = [(["make", "demo"], True), (["make", "demo"], False), (["make", "test"], True)]
        commands = [c for c in commands if arguments.only in (None, c[0][1])]
        for command, terminal in commands:
            seen = watch(command, clone, environment, terminal=terminal)
            what = f"{' '.join(command)} in a {'terminal' if terminal else 'log'}"
            limit = TERMINAL_S if terminal else LOG_S
            print(f"\n== {what}: code {seen.code}, {seen.seconds:.0f} s, longest silence {seen.silence:.1f} s")
            if seen.code:
                failures.append(f"{what} failed with {seen.code}")
            if seen.silence > limit:
                failures.append(f"{what} was silent for {seen.silence:.1f} s (limit {limit:g}) after: {seen.before}")
            for pattern in (r"held-out EM .* after \d+ steps", r"\d+ passed.*"):
                for found in re.findall(pattern, seen.text)[-1:]:
                    print(f"   {found}")
    for failure in failures:
        print(f"first hour: {failure}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
