"""How much CPU memory a run may take here: what is free, or what a container's limit leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""Which control groups this process is in."""


def available(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Bytes. The kernel ends a program that passes its control group's limit, however much the machine has."""
    import psutil

    free: int = psutil.virtual_memory().available
    return max(0, min([free, *_left(cgroups, own)]))


def _left(cgroups: Path, own: Path) -> Iterator[int]:
    """What each limit above this process leaves; pages of files that it may drop count as free."""
    for folder in _folders(cgroups, own):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                most, now = (int((folder / name).read_text()) for name in (limit, used))  # "max": there is none
                lines = (folder / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):
                continue
            stat = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdecimal()}
            yield most - now + stat.get("active_file", 0) + stat.get("inactive_file", 0)


def _folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """This process's control groups for memory, and those above them. In a container the first one is its root."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for line in lines:
        if len(line) == 3 and (line[1] == "" or "memory" in line[1].split(",")):
            root = cgroups if line[1] == "" else cgroups / "memory"
            parts = [part for part in line[2].split("/") if part not in ("", "..")]
            yield from (root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1))
