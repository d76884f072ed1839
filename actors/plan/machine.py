"""The check before a start: what this machine has, against what the configuration needs.

``snapshot`` looks, ``missing`` compares, ``check_machine`` refuses; ``check_cache`` is for a mode that needs no more.
Needs neither Ray nor torch; well under a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.plan.cards import GIB, nominal_gib, usable_bytes
from actors.plan.downloads import room
from actors.plan.engine import engine_memory
from actors.plan.fit import needs
from actors.plan.host import DISK_MARGIN, memory_bytes, object_store_bytes, output_bytes
from actors.plan.installation import engines, wrong_build
from actors.plan.learner import learner_memory
from actors.plan.less_memory import advice
from actors.plan.memory import available
from actors.plan.ray_address import reach
from agent.errors import UserError, all_of, refused
from conf.schema import RunConfig
from conf.topology import AUTO, ClusterConfig
from tracking.run_folder import unwritable

OLDEST_DRIVER = 580
"""CUDA 13, which the pinned torch and vLLM are built for, needs this one."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable by which CUDA, and with it Ray, is shown fewer GPUs than there are."""
DRIVER_S = 60.0
"""Longest that ``nvidia-smi`` may take: where no daemon keeps the driver awake, it starts it for each card in turn."""
NO_CARDS = 6
"""What ``nvidia-smi`` ends with where the driver works and has no card."""
_LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Bytes of a Unix socket's path."""
NEARLY = 0.95
"""A card reports a little less than its name says: 24,268 MiB on some RTX 3090."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One NVIDIA GPU, in GiB."""

    total: float
    used: float = 0.0
    """By whatever runs on it now."""
    name: str = ""
    """As the driver calls it."""
    index: int = 0
    """Its number, in the order of the slots (``CUDA_DEVICE_ORDER=PCI_BUS_ID``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """The file system that a folder is on, or would be."""

    device: int
    """Folders with the same number share it."""
    free: int
    """Bytes."""
    refusal: str | None = None
    """Why nothing can be written there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was found on a machine at one moment."""

    gpus: tuple[Gpu, ...]
    driver: str | None
    """Version of the NVIDIA driver; None without one."""
    memory: int
    """Bytes of CPU memory that this process may still take."""
    shared_memory: int | None
    """Free bytes of /dev/shm; None where there is none."""
    disks: Mapping[str, Disk]
    """``outputs``, ``cache`` and ``ray``."""
    ray_folder: str
    """Where Ray keeps its sessions."""
    compiler: str | None = "cc"
    """The C compiler that Triton would take; None if there is none."""
    cxx: str | None = "c++"
    """The C++ compiler that torch.compile would take on a CPU; None if there is none."""
    headers: Path | None = None
    """Python.h, where Triton would look for it and doesn't find it; None if it is there."""
    engines: frozenset[str] = frozenset({"cpu", "cuda"})
    """Devices that the installed vLLM can run on."""


def check_machine(config: RunConfig) -> None:
    """Raises ``UserError`` that names each thing that this machine lacks for ``config``.

    Or for a Ray cluster that doesn't answer.
    """
    if found := list(missing(config, snapshot(config))):
        raise UserError(all_of(found))
    if config.cluster.address is not None:
        reach(config.cluster.address, config.cluster.start_timeout_s)


def check_cache(config: RunConfig) -> None:
    """Raises ``UserError`` if nothing can be written to the cache."""
    if refusal := unwritable(config.cache):
        raise UserError(f"cache_dir={config.cache}: {refusal}; name another with cache_dir=FOLDER")


def missing(config: RunConfig, machine: Machine) -> Iterator[str]:
    """What ``machine`` lacks: what is needed, what there is, and the fix.

    On an existing Ray cluster only this machine's disks count; Ray knows the GPUs (``actors/placement.py``), and the
    learner finds out what compiles where it is (``learner/lean.py``).
    """
    if config.cluster.device == "cpu":
        yield from wrong_build(config, machine.engines)
        if config.algorithm.compile and config.cluster.learners and config.cluster.address is None:
            yield from _compiling(machine)
    if config.cluster.address is None:
        if config.cluster.device == "cuda":
            yield from _gpus(config, machine)
            yield from _shared_memory(config, machine)
        yield from _memory(config, machine)
    yield from _disks(config, machine)


def _gpus(config: RunConfig, machine: Machine) -> Iterator[str]:
    cluster = config.cluster
    gib = nominal_gib(cluster)
    have = [gpu.total for gpu in machine.gpus]
    taken = cards_of(cluster, machine.gpus)
    if len(taken) < cluster.gpus:
        found = f"{len(have)} of {', '.join(f'{g:.0f}' for g in have)} GiB" if have else "none"
        yield (
            f"cluster={cluster.name} needs {cluster.gpus} CUDA GPUs of {gib:g} GiB and this machine has {found}"
            f"{shown()}; add mode=plan to see the plan without them, or use cluster=local"
        )
        return
    yield from wrong_build(config, machine.engines)
    yield from _toolchain(machine)
    limit = usable_bytes(cluster)
    engine = engine_memory(config, limit)
    learner = learner_memory(config) if cluster.learners else None
    need = (engine.playing if learner is None else max(needs(learner, engine, colocated=cluster.colocated))) / GIB
    free = [gpu.total - gpu.used for gpu in taken]
    if min(free) < need:
        enough = sum(each >= need for each in free)
        fewer = f"cluster.cards={enough} leaves it out, " if cluster.name == AUTO and enough else ""
        yield (
            f"cluster={cluster.name} needs {need:.1f} GiB free on each of {cluster.gpus} GPUs and one has "
            f"{min(free):.1f}; end what runs on it (nvidia-smi shows it), {fewer}or take less: mode=plan "
            f"cluster.gpu_memory_gib={int(min(free))} says how, and vLLM's share, "
            "cluster.engine.gpu_memory_utilization, is of the whole card"
        )
    if _major(machine.driver) < OLDEST_DRIVER:
        yield (
            f"CUDA 13 needs an NVIDIA driver of version {OLDEST_DRIVER} or newer and this machine has "
            f"{machine.driver or 'none'}; install a newer one"
        )


def _major(driver: str | None) -> int:
    first = (driver or "").partition(".")[0]
    return int(first) if first.isdecimal() else 0


def cards_of(cluster: ClusterConfig, found: Sequence[Gpu]) -> list[Gpu]:
    """The cards that a run takes, in their order: of those that are large enough the ones with the most free memory."""
    large = [gpu for gpu in found if gpu.total >= NEARLY * nominal_gib(cluster)]
    freest = sorted(large, key=lambda gpu: gpu.used - gpu.total)[: cluster.gpus]
    return [gpu for gpu in large if gpu in freest]


def _compiling(machine: Machine) -> Iterator[str]:
    """What torch.compile compiles with on a CPU; on a GPU it is Triton's toolchain."""
    if machine.cxx is None:
        yield (
            "algorithm.compile=true compiles with a C++ compiler on a CPU, and there is none; install g++, set "
            "CXX=COMPILER, or leave it out"
        )
    if machine.headers is not None:
        yield f"algorithm.compile=true compiles with {_python_h(machine.headers)}; or leave it out"


def _toolchain(machine: Machine) -> Iterator[str]:
    """What Triton compiles its launchers with, on the first call of a kernel."""
    if machine.compiler is None:
        yield "on a GPU vLLM compiles kernels with a C compiler, and there is none; install gcc, or set CC=COMPILER"
    if machine.headers is not None:
        yield f"on a GPU vLLM compiles kernels with {_python_h(machine.headers)}"


def _python_h(place: Path) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"Python.h, and there is no {place}; on Debian and Ubuntu: apt install python{version}-dev"


def _shared_memory(config: RunConfig, machine: Machine) -> Iterator[str]:
    need = object_store_bytes(config)
    have = machine.shared_memory
    if have is None or have < need:
        yield (
            f"Ray's object store needs {need / GIB:.1f} GiB of /dev/shm and {(have or 0) / GIB:.1f} are free; run "
            f"`mount -o remount,size={-(-need // GIB) + 1}G /dev/shm`, or start the container with "
            f"--shm-size={-(-need // GIB) + 1}g"
        )


def _memory(config: RunConfig, machine: Machine) -> Iterator[str]:
    need = memory_bytes(config)
    if machine.memory < need:
        yield (
            f"cluster={config.cluster.name} model={config.model.name} needs {need / GIB:.1f} GiB of CPU memory and "
            f"{machine.memory / GIB:.1f} are available; end other programs, or {advice(config, machine.memory)}"
        )


def _disks(config: RunConfig, machine: Machine) -> Iterator[str]:
    """A line for each folder that can't be written to, and each file system too small for all that goes there."""
    need = {"outputs": output_bytes(config), "cache": DISK_MARGIN + room(config), "ray": DISK_MARGIN}
    folders = {"outputs": config.output_dir, "cache": str(config.cache), "ray": machine.ray_folder}
    place = {"outputs": "output_dir", "cache": "cache_dir", "ray": "RAY_TMPDIR"}
    mend = place | {"outputs": "output_dir or a smaller checkpoints.keep"}
    refused = {name: disk.refusal for name, disk in machine.disks.items() if disk.refusal}
    for name, refusal in refused.items():
        yield f"{place[name]}={folders[name]}: {refusal}; name another with {place[name]}=FOLDER"
    if config.cluster.address is None and (over := _too_long(machine.ray_folder)) > 0:
        yield (
            f"RAY_TMPDIR={machine.ray_folder}: its name is {over} bytes too long for Ray's sockets; name another with "
            "RAY_TMPDIR=FOLDER"
        )
    sharing: dict[int, list[str]] = defaultdict(list)
    for name in (n for n in need if n not in refused):
        sharing[machine.disks[name].device].append(name)
    for names in sharing.values():
        wanted, free = sum(need[n] for n in names), machine.disks[names[0]].free
        if free < wanted:
            yield (
                f"{' and '.join(folders[n] for n in names)} need {wanted / GIB:.1f} GiB of disk and {free / GIB:.1f} "
                f"are free; make room, or set {' or '.join(mend[n] for n in names)}"
            )


# --- looking ---------------------------------------------------------------------------------------


def snapshot(config: RunConfig) -> Machine:
    """This machine, now."""
    ray_folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # as Ray itself chooses
    here = config.cluster.device == "cuda" and config.cluster.address is None
    cards, driver = gpus() if here else ((), None)
    shared = Path("/dev/shm")
    return Machine(
        gpus=cards,
        driver=driver,
        memory=available(),
        shared_memory=shutil.disk_usage(shared).free if shared.is_dir() else None,
        disks={
            "outputs": _disk(Path(config.output_dir)),
            "cache": _disk(config.cache),
            "ray": _disk(Path(ray_folder) / "ray"),
        },
        ray_folder=ray_folder,
        compiler=compiler(),
        cxx=shutil.which(os.environ.get("CXX", "g++")),  # as torch looks: a name alone, without arguments
        headers=None if (header := Path(sysconfig.get_paths()["include"], "Python.h")).is_file() else header,
        engines=engines(),
    )


def compiler() -> str | None:
    """The C compiler that Triton would take: CC, gcc or clang."""
    given = os.environ.get("CC", "").split()
    return shutil.which(given[0]) if given else shutil.which("gcc") or shutil.which("clang")


def gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """Each NVIDIA GPU that CUDA_VISIBLE_DEVICES leaves, and the driver's version, as the driver reports them.

    Nothing without a driver. Raises ``UserError`` where it gives no number, as of a card that is cut into MIG slices,
    and where ``nvidia-smi`` fails: with a driver that doesn't work, a machine with cards looks like one without.
    """
    if shutil.which("nvidia-smi") is None:
        return (), None
    fields = "memory.total,memory.used,driver_version,uuid,name"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    said, fault = "", ""
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_S, check=False)
        said = answer.stdout
        if answer.returncode not in (0, NO_CARDS):
            fault = " ".join(f"{said} {answer.stderr}".split())[:200] or f"code {answer.returncode}"
    except subprocess.TimeoutExpired:
        fault = f"no answer for {DRIVER_S:g} s"
    except OSError as error:
        fault = refused(error)
    rows = [line.split(", ") for line in said.splitlines() if line.count(", ") == 4]
    if fault and not rows:  # beside rows it is a warning
        raise UserError(
            f"nvidia-smi fails, and without it no GPU can be used ({fault}); mend the driver (after an update the "
            "machine has to be restarted), or use cluster=local"
        )
    found = tuple(_gpu(i, rows[i]) for i in _visible([row[3].strip() for row in rows]))
    return found, rows[0][2].strip() if rows else None


def _gpu(index: int, row: Sequence[str]) -> Gpu:
    name = row[4].strip()
    try:
        return Gpu(total=float(row[0]) / 1024, used=float(row[1]) / 1024, name=name, index=index)
    except ValueError:
        raise UserError(
            f"GPU {index} ({name}): nvidia-smi gives its memory as {row[0].strip()!r}, {row[1].strip()!r}; MIG slices, "
            "and cards without memory of their own, can't be used here"
        ) from None


def shown() -> str:
    """What a line on the GPUs adds where not all of them may be seen."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return ""
    return f" with {VISIBLE}={given}" + (" (MIG slices can't be used here)" if "MIG-" in given else "")


def _visible(uuids: Sequence[str]) -> list[int]:
    """Which of the machine's GPUs CUDA shows a program, in that order: it reads CUDA_VISIBLE_DEVICES up to the first
    entry that is none of them, and shows none if one is there twice."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return [*range(len(uuids))]
    found: list[int] = []
    for entry in given.split(","):
        name = entry.strip()
        alike = [
            i for i, uuid in enumerate(uuids) if name == str(i) or (name.startswith("GPU-") and uuid.startswith(name))
        ]
        if len(alike) != 1:
            break
        if alike[0] in found:
            return []
        found += alike
    return found


def _disk(folder: Path) -> Disk:
    """Of the nearest folder above that exists."""
    if refusal := unwritable(folder):
        return Disk(device=0, free=0, refusal=refusal)
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return Disk(device=os.stat(folder).st_dev, free=shutil.disk_usage(folder).free)


def _too_long(ray_folder: str) -> int:
    """Bytes by which the names of Ray's sockets below ``ray_folder`` are longer than the system allows."""
    session = f"ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    return len(os.path.join(ray_folder, session).encode()) - _LONGEST_SOCKET
