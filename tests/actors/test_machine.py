"""What a machine has against what a configuration needs, each lack in one line."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import settings
from plan_box import SIZES

from actors.plan import less_memory
from actors.plan import machine as looked_at
from actors.plan.cards import GIB, usable_bytes
from actors.plan.engine import engine_memory
from actors.plan.fit import changed
from actors.plan.host import memory_bytes, output_bytes
from actors.plan.learner import RESERVE, learner_memory
from actors.plan.machine import (
    Disk,
    Gpu,
    Machine,
    cards_of,
    check_cache,
    check_machine,
    compiler,
    gpus,
    missing,
    snapshot,
)
from actors.plan.memory import available
from agent.errors import UserError
from agent.pool.rules.recycle import Rule as Recycle
from conf.schema import RunConfig
from conf.topology import ClusterConfig
from learner.config import AlgorithmConfig, ModelConfig, OptimizerConfig


def config(**cluster: Any) -> RunConfig:
    """Qwen2.5 1.5B on four 24 GiB cards, unless told otherwise."""
    return RunConfig(
        pool=Recycle(),
        cluster=ClusterConfig(**{"name": "box", "device": "cuda", "rollout_workers": 3, **cluster}),
        model=ModelConfig(name="m", path="org/m", dtype="bfloat16", architecture=SIZES),
        algorithm=AlgorithmConfig(optimizer=OptimizerConfig(kind="adamw8bit")),
        output_dir="/data/outputs",
        cache_dir="/data/cache",
    )


def machine(**changed: Any) -> Machine:
    """Four idle RTX 3090 and enough of everything."""
    disk = Disk(device=1, free=500 * GIB)
    given: dict[str, Any] = {
        "gpus": (Gpu(total=23.7),) * 4,
        "driver": "580.65.06",
        "memory": 128 * GIB,
        "shared_memory": 64 * GIB,
        "disks": {"outputs": disk, "cache": disk, "ray": Disk(device=2, free=50 * GIB)},
        "ray_folder": "/tmp",
    }
    return Machine(**{**given, **changed})


def only(**changed: Any) -> str:
    """The one thing that a machine lacks for the configuration."""
    (line,) = missing(config(), machine(**changed))
    return line


def test_a_machine_that_has_all_is_not_complained_of() -> None:
    assert list(missing(config(), machine())) == []


def test_missing_gpus_are_named_with_what_is_needed_and_there() -> None:
    assert only(gpus=(), driver=None) == (
        "cluster=box needs 4 CUDA GPUs of 24 GiB and this machine has none; add mode=plan to see the plan without "
        "them, or use cluster=local"
    )
    assert "needs 4 CUDA GPUs of 24 GiB and this machine has 4 of 24, 24, 24, 8 GiB;" in only(
        gpus=(*(Gpu(total=24.0),) * 3, Gpu(total=8.0))
    )


def test_a_card_in_use_is_named() -> None:
    need = learner_memory(config()).peak / GIB
    assert need > 21.3, "more than an engine: the learner keeps what there is room for"
    assert only(gpus=(*(Gpu(total=24.0),) * 3, Gpu(total=24.0, used=1.5))) == (
        f"cluster=box needs {need:.1f} GiB free on each of 4 GPUs and one has 22.5; end what runs on it "
        "(nvidia-smi shows it), or take less: mode=plan cluster.gpu_memory_gib=22 says how, and vLLM's share, "
        "cluster.engine.gpu_memory_utilization, is of the whole card"
    )
    less = config(gpu_memory_gib=22)
    assert list(missing(less, machine(gpus=(Gpu(total=24.0, used=1.5),) * 4))) == []
    in_use = (*(Gpu(total=24.0),) * 4, Gpu(total=24.0, used=9.5))
    assert list(missing(config(), machine(gpus=in_use))) == [], "the four others will do"


def test_cluster_auto_can_do_without_a_card_in_use() -> None:
    in_use = (*(Gpu(total=24.0),) * 3, Gpu(total=24.0, used=9.5))
    (line,) = missing(config(name="auto"), machine(gpus=in_use))
    assert "; end what runs on it (nvidia-smi shows it), cluster.cards=3 leaves it out, or take less: " in line
    (line,) = missing(config(name="auto"), machine(gpus=(Gpu(total=24.0, used=9.5),) * 4))
    assert "cluster.cards" not in line


def test_beside_a_sleeping_engine_a_colocated_learner_needs_more() -> None:
    """What ``problems`` adds up, and the dry run doesn't see: no engine is there yet."""
    shared = settings.composed("model=qwen1.5b", "cluster=1x24gb")
    learner, engine = learner_memory(shared), engine_memory(shared, usable_bytes(shared.cluster))
    need = max(learner.peak + engine.asleep, engine.playing + learner.at_rest + RESERVE) / GIB
    assert need > learner.peak / GIB + 0.5
    for free, lacking in ((need + 0.1, False), (need - 0.1, True)):
        machine_now = machine(gpus=(Gpu(total=24.0, used=24.0 - free),))
        assert any("GiB free on each of 1 GPUs" in line for line in missing(shared, machine_now)) == lacking


@pytest.mark.parametrize("driver", ["570.133.20", "535.54"])
def test_an_old_driver_is_named(driver: str) -> None:
    assert only(driver=driver) == (
        f"CUDA 13 needs an NVIDIA driver of version 580 or newer and this machine has {driver}; install a newer one"
    )


def test_what_triton_compiles_with_is_named() -> None:
    assert only(compiler=None) == (
        "on a GPU vLLM compiles kernels with a C compiler, and there is none; install gcc, or set CC=COMPILER"
    )
    line = only(headers=Path("/usr/include/python3.x/Python.h"))
    assert line.startswith("on a GPU vLLM compiles kernels with Python.h, and there is no /usr/include/python3.x/")
    assert line.endswith(f"apt install python{sys.version_info.major}.{sys.version_info.minor}-dev")
    assert list(missing(config(device="cpu"), machine(compiler=None, headers=Path("x"), shared_memory=0))) == []


def test_what_a_learner_is_compiled_with_on_a_cpu_is_named() -> None:
    compiled = replace(config(device="cpu"), algorithm=AlgorithmConfig(compile=True))
    assert list(missing(compiled, machine())) == []
    (line,) = missing(compiled, machine(cxx=None))
    assert line == (
        "algorithm.compile=true compiles with a C++ compiler on a CPU, and there is none; install g++, set "
        "CXX=COMPILER, or leave it out"
    )
    (line,) = missing(compiled, machine(headers=Path("/usr/include/python3.x/Python.h")))
    assert line.startswith("algorithm.compile=true compiles with Python.h, and there is no /usr/include/python3.x/")
    assert list(missing(config(device="cpu"), machine(cxx=None))) == [], "nothing is compiled"
    afar = replace(compiled, cluster=replace(compiled.cluster, address="auto"))
    assert list(missing(afar, machine(cxx=None))) == [], "nor here"


@pytest.mark.parametrize(("free", "said"), [(GIB // 16, "0.1"), (None, "0.0")])
def test_too_little_shared_memory_is_named_with_both_cures(free: int | None, said: str) -> None:
    assert only(shared_memory=free) == (
        f"Ray's object store needs 7.2 GiB of /dev/shm and {said} are free; run `mount -o remount,size=9G /dev/shm`, "
        "or start the container with --shm-size=9g"
    )


def test_too_little_memory_is_named() -> None:
    need = memory_bytes(config())
    assert list(missing(config(), machine(memory=need))) == []
    assert only(memory=need - 1).startswith(f"cluster=box model=m needs {need / GIB:.1f} GiB of CPU memory and ")


@pytest.mark.parametrize(
    ("cluster", "training", "cure"),
    [
        ({}, {}, "cluster.rollout_workers=1"),
        ({"rollout_workers": 1}, {"kind": "adamw", "offload": True}, "algorithm.optimizer.offload=false "),
        ({"rollout_workers": 1}, {"kind": "adamw8bit"}, "model.lora_rank=16"),
        ({"device": "cpu", "rollout_workers": 1}, {"kind": "adamw"}, "algorithm.optimizer.kind=adamw8bit"),
    ],
)
def test_a_cure_for_too_little_memory_is_one(cluster: dict[str, Any], training: dict[str, Any], cure: str) -> None:
    """Each is the first that gives as much as it does, and what is told is enough where it is set."""
    asked = replace(config(**cluster), algorithm=AlgorithmConfig(optimizer=OptimizerConfig(**training)))
    asked = changed(asked, "retrieval.heap", less_memory.HEAP)
    keys = [setting.partition("=")[0] for setting in cure.split()]
    (change,) = [change for change in less_memory._changes(asked) if change[0][0] == keys[0]]
    less = asked
    for key, value in change:
        less = changed(less, key, value)
    lines = [*missing(asked, machine(memory=memory_bytes(less), engines=frozenset({"cpu", "cuda"})))]
    assert [line for line in lines if f"end other programs, or set {cure}" in line], lines
    assert not [line for line in missing(less, machine(memory=memory_bytes(less))) if "CPU memory" in line]


def test_where_no_setting_gives_enough_memory_none_is_named() -> None:
    assert only(memory=GIB).endswith(
        "or take a smaller model: no other setting makes that enough (mode=plan shows what takes it)"
    )


def test_folders_on_one_disk_need_the_sum() -> None:
    need = output_bytes(config()) + GIB // 4
    enough, short = (Disk(device=1, free=n) for n in (need, need - 1))
    ray = Disk(device=2, free=GIB)
    assert list(missing(config(), machine(disks={"outputs": enough, "cache": enough, "ray": ray}))) == []
    assert only(disks={"outputs": short, "cache": short, "ray": ray}) == (
        f"/data/outputs and /data/cache need {need / GIB:.1f} GiB of disk and {need / GIB:.1f} are free; make room, or "
        "set output_dir or a smaller checkpoints.keep or cache_dir"
    )


def test_rays_folder_has_a_need_of_its_own() -> None:
    disk = Disk(device=1, free=500 * GIB)
    line = only(disks={"outputs": disk, "cache": disk, "ray": Disk(device=2, free=0)}, ray_folder="/tmp")
    assert line == "/tmp need 0.2 GiB of disk and 0.0 are free; make room, or set RAY_TMPDIR"


def test_a_folder_that_cannot_be_written_to_is_named_with_its_setting() -> None:
    disk, closed = Disk(device=1, free=500 * GIB), Disk(device=0, free=0, refusal="/data is a file, not a folder")
    ray = Disk(device=2, free=50 * GIB)
    assert only(disks={"outputs": disk, "cache": closed, "ray": ray}) == (
        "cache_dir=/data/cache: /data is a file, not a folder; name another with cache_dir=FOLDER"
    )
    assert only(disks={"outputs": closed, "cache": disk, "ray": ray}).startswith(
        "output_dir=/data/outputs: /data is a "
    )
    assert only(disks={"outputs": disk, "cache": disk, "ray": closed}).startswith("RAY_TMPDIR=/tmp: /data is a file")


def test_a_name_too_long_for_rays_sockets_is_named() -> None:
    assert list(missing(config(), machine(ray_folder="/" + "x" * 30))) == []
    line = only(ray_folder="/" + "x" * 60)
    assert line.startswith("RAY_TMPDIR=/xxx")
    assert "bytes too long for Ray's sockets; name another with RAY_TMPDIR=FOLDER" in line
    elsewhere = replace(config(), cluster=replace(config().cluster, address="head:6379"))
    assert list(missing(elsewhere, machine(ray_folder="/" + "x" * 60))) == [], "its sockets are there already"


def test_a_cpu_needs_memory_and_disk_alone() -> None:
    small = machine(gpus=(), driver=None, shared_memory=0)
    cpu = replace(config(device="cpu"), model=ModelConfig())
    assert list(missing(cpu, small)) == []
    assert len(list(missing(cpu, replace(small, memory=GIB)))) == 1


def test_of_a_cluster_elsewhere_only_the_disks_are_seen() -> None:
    none = machine(gpus=(), driver=None, shared_memory=0, memory=0)
    assert list(missing(config(address="ray://somewhere:10001"), none)) == []


def test_everything_that_lacks_is_told_at_once() -> None:
    lines = list(missing(config(), machine(gpus=(), memory=0, shared_memory=0)))
    assert len(lines) == 3
    assert not any("\n" in line for line in lines)


# --- looking ---------------------------------------------------------------------------------------


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an ``nvidia-smi`` on the path that prints what it is given, and ends with a code."""

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(output: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{output}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_the_gpus_are_what_the_driver_says(driver: Callable[..., None]) -> None:
    driver(TWO)
    found = (Gpu(total=24.0, used=0.5, name="NVIDIA GeForce RTX 3090"), Gpu(total=80.0, name="NVIDIA H100", index=1))
    assert gpus() == (found, "580.65.06")


@pytest.mark.parametrize(
    ("group", "folder", "names"),
    [
        ("0::/", "", ("memory.max", "memory.current")),
        ("0::/slurm/job_7/step_0", "slurm/job_7", ("memory.max", "memory.current")),
        ("0::/../../job_7", "job_7", ("memory.max", "memory.current")),
        ("4:cpu:/x\n3:memory:/docker/ab", "memory/docker/ab", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_a_containers_limit_counts(group: str, folder: str, names: tuple[str, str], tmp_path: Path) -> None:
    """The kernel ends what passes it, however much the machine has."""
    own, inside = tmp_path / "own", tmp_path / "cgroup" / folder
    own.write_text(f"{group}\n")
    inside.mkdir(parents=True)
    (inside / "memory.stat").write_text("anon 5\nactive_file 2\ninactive_file 3\n")
    for limit, left in (("1000", 905), ("90", 0), ("max", None)):
        for name, value in zip(names, (limit, "100"), strict=True):
            (inside / name).write_text(f"{value}\n")
        found = available(tmp_path / "cgroup", own)
        assert found == left if left is not None else found > 10**6
    assert available(tmp_path / "none", tmp_path / "none") > 10**6


@pytest.mark.parametrize("row", ["[Insufficient Permissions], [Insufficient Permissions]", "[N/A], [N/A]"])
def test_a_card_without_a_number_is_named(driver: Callable[..., None], row: str) -> None:
    driver(f"{row}, [Unknown], GPU-a, NVIDIA A100-SXM4-40GB\\n")
    with pytest.raises(UserError, match=r"^GPU 0 \(NVIDIA A100-SXM4-40GB\): nvidia-smi gives its memory as '\["):
        gpus()


def test_the_cards_that_are_free_and_large_enough_are_taken() -> None:
    box = config(rollout_workers=1).cluster
    small, busy = Gpu(total=4.0, index=0), Gpu(total=24.0, used=20.0, index=1)
    free = [Gpu(total=24.0, used=0.1 * n, index=2 + n) for n in range(2)]
    for found in ([small, *free], [busy, *free], [free[0], busy, free[1], small]):
        assert cards_of(box, found) == free
    assert cards_of(box, [small, free[0]]) == free[:1]


def test_where_nothing_is_trained_no_learner_is_counted() -> None:
    """Of a model that trains in 24 GiB at its peak: asking it is possible beside a browser."""
    asked = config(rollout_workers=1, learners=1, colocated=True)
    asked.mode, asked.cluster = "ask", asked.cluster.for_inference()
    share = engine_memory(asked, usable_bytes(asked.cluster)).playing / GIB
    desktop = (Gpu(total=24.0, used=24.0 - share - 0.1),)
    assert list(missing(asked, machine(gpus=desktop))) == []
    training = config(device="cpu", rollout_workers=1)
    alone = config(device="cpu", rollout_workers=1)
    alone.cluster = alone.cluster.for_inference()
    assert memory_bytes(alone) < memory_bytes(training) - learner_memory(training).static


TWO = (
    "24576, 512, 580.65.06, GPU-3090aaaa-0, NVIDIA GeForce RTX 3090\\n"
    "81920, 0, 580.65.06, GPU-100bbbbb-1, NVIDIA H100\\n"
)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["NVIDIA H100"]),
        ("1,0", ["NVIDIA H100", "NVIDIA GeForce RTX 3090"]),
        ("GPU-100b", ["NVIDIA H100"]),
        ("GPU-", []),  # of two alike CUDA takes none
        ("0,2,1", ["NVIDIA GeForce RTX 3090"]),
        ("0,-1,1", ["NVIDIA GeForce RTX 3090"]),
        ("1,1", []),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_gpus_that_cuda_does_not_show_are_not_there(
    driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    driver(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in gpus()[0]] == names
    (line,) = [line for line in missing(config(), machine(gpus=())) if "CUDA GPUs" in line]
    assert f"this machine has none with CUDA_VISIBLE_DEVICES={visible};" in line


def test_the_compiler_is_that_of_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert compiler() is None
    for name in ("clang", "gcc", "mine"):
        (tmp_path / name).touch(mode=0o755)
        assert compiler() == str(tmp_path / (name if name != "mine" else "gcc"))
    monkeypatch.setenv("CC", "mine -m64")
    assert compiler() == str(tmp_path / "mine")
    monkeypatch.setenv("CC", "gone")
    assert compiler() is None


@pytest.mark.parametrize(("output", "code"), [("", 0), ("No devices were found\\n", 6)])
def test_a_driver_without_gpus_has_none(driver: Callable[..., None], output: str, code: int) -> None:
    driver(output, code)
    assert gpus() == ((), None)


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("Failed to initialize NVML:\\n  Driver/library version mismatch\\n", 18, "NVML: Driver/library version mis"),
        ("", 255, "code 255"),
    ],
)
def test_a_driver_that_does_not_work_is_not_taken_for_a_machine_without_gpus(
    driver: Callable[..., None], output: str, code: int, said: str
) -> None:
    driver(output, code)
    with pytest.raises(UserError, match=rf"^nvidia-smi fails, and without it no GPU can be used \(.*{said}.*=local$"):
        check_machine(config())
    assert snapshot(config(address="auto")).gpus == (), "those of the Ray cluster are elsewhere"


def test_a_warning_beside_the_cards_is_one(driver: Callable[..., None]) -> None:
    driver(f"{TWO}WARNING: infoROM is corrupted at gpu 0000:01:00.0\\n", 14)
    assert [gpu.name for gpu in gpus()[0]] == ["NVIDIA GeForce RTX 3090", "NVIDIA H100"]


def test_a_driver_that_hangs_is_named(
    driver: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(looked_at, "DRIVER_S", 0.1)
    with pytest.raises(UserError, match=r"^nvidia-smi fails, .* \(no answer for 0\.1 s\); mend the driver \("):
        gpus()


def test_a_machine_without_a_driver_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs 4 CUDA GPUs of 24 GiB and this machine has none"):
        check_machine(replace(config(), output_dir=str(tmp_path), cache_dir=str(tmp_path)))


def test_several_things_that_are_missing_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_at, "missing", lambda config, found: iter(("no GPU; add one", "no disk; make room")))
    with pytest.raises(UserError, match=r"^2 problems: \(1\) no GPU; add one \(2\) no disk; make room$"):
        check_machine(replace(config(), output_dir=str(tmp_path), cache_dir=str(tmp_path)))


def test_a_machine_where_nothing_can_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    given = replace(config(device="cpu"), model=ModelConfig(), output_dir=str(tmp_path), cache_dir=str(file / "cache"))
    with pytest.raises(UserError, match=rf"^cache_dir={file}/cache: {file} is a file, not a folder; name another"):
        check_machine(given)
    with pytest.raises(UserError, match=rf"^cache_dir={file}/cache: {file} is a file, not a folder; name another"):
        check_cache(given)
    given = replace(given, cache_dir=str(tmp_path))
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "/proc/nothing")
        with pytest.raises(UserError, match=r"^RAY_TMPDIR=/proc/nothing: nothing can be written to it \("):
            check_machine(given)
        monkeypatch.setenv(name, str(tmp_path))  # RAY_TMPDIR goes before TMPDIR


def test_a_home_that_nobody_can_write_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nobody")
    given = replace(config(device="cpu"), model=ModelConfig(), output_dir=str(tmp_path), cache_dir=RunConfig.cache_dir)
    with pytest.raises(UserError, match=r"^cache_dir=/proc/nobody/\.cache/slingshot: nothing can be written to it"):
        check_machine(given)


def test_a_ray_cluster_that_is_gone_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        given = replace(config(device="cpu", address=address), model=ModelConfig())  # which every disk has room for
        given = replace(given, output_dir=str(tmp_path), cache_dir=str(tmp_path))
        with pytest.raises(
            UserError, match=rf"^cluster\.address={address}: no Ray cluster answers there: Connection ref"
        ):
            check_machine(given)


def test_a_snapshot_looks_at_the_folders_that_are_to_be_made(tmp_path: Path) -> None:
    found = snapshot(replace(config(device="cpu"), output_dir=str(tmp_path / "a" / "b"), cache_dir=str(tmp_path)))
    assert found.disks["outputs"].device == found.disks["cache"].device == os.stat(tmp_path).st_dev
    assert found.disks["outputs"].free > 0
    assert found.memory > 0
    assert (found.gpus, found.driver) == ((), None)
