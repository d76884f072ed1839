"""The process above a driver: what it says for one that can't, what it passes on, what it leaves. No Ray here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from patience import until

ROOT = Path(__file__).parents[2]
DRIVER = """
import os, signal, subprocess, sys, time
from multiprocessing import shared_memory
from pathlib import Path
from actors.launcher import launch, tell
from actors.stopping import Stopping, at_once
from agent.errors import Stopped
root = Path({root!r})
def ready(text=""):
    (root / "aside").write_text(f"{{os.getpid()}} {{text}}")
    (root / "aside").rename(root / "ready")
{before}
launch()
{body}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver with a launcher; ``body`` calls ``ready``."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, *, before: str = "", **how: Any) -> subprocess.Popen[str]:
        code = DRIVER.format(root=str(tmp_path), body=body, before=before)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **how
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def ready(tmp_path: Path) -> Callable[[subprocess.Popen[str]], list[str]]:
    """What the driver says when it is ready, its process first."""

    def ready(process: subprocess.Popen[str]) -> list[str]:
        until((tmp_path / "ready").exists, hang_s=600.0)
        return (tmp_path / "ready").read_text().split()

    return ready


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600.0)
    return process.returncode, out, err


@pytest.mark.one_in(3)
@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_what_the_driver_says_and_ends_with_is_all(start: Any, code: int) -> None:
    process = start(f"print('hello'); print('a line', file=sys.stderr); tell(said=True); sys.exit({code})")
    assert end(process) == (code, "hello\n", "a line\n")


def test_where_ends_can_not_be_watched_the_driver_goes_on_by_itself(start: Any) -> None:
    """Kernels before 5.3, and sandboxes that allow no pidfd_open."""
    body = (
        "import actors.launcher as it\nprint(it.has_launcher())\ntell(head={'raylet': os.getpid()})\nprint('goes on')"
    )
    refused = "def refused(*given): raise OSError(38, 'Function not implemented')\nos.pidfd_open = refused"
    process = start(body, before=refused)
    assert end(process) == (0, "False\ngoes on\n", "")


def test_a_parent_that_ignores_the_end_of_children_changes_nothing(start: Any) -> None:
    """It is inherited; nobody would be told that the driver has ended."""
    process = start("sys.exit(3)", before="signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    code, _, err = end(process)
    assert (code, "slingshot: " in err) == (1, True), "the end is seen, and the line is said"


def test_a_process_of_rays_that_is_gone_already_is_lost(start: Any) -> None:
    body = (
        "child = subprocess.Popen(['true'])\nchild.wait()\n"
        "tell(head={'the raylet': child.pid}, session='/nowhere', logs='/nowhere')\ntime.sleep(600)"
    )
    code, _, err = end(start(body))
    assert code == 1
    assert "the raylet" in err


def test_a_driver_that_is_killed_has_its_line_said(start: Any, ready: Any) -> None:
    process = start("tell(checkpoint='/runs/a/step-000004'); ready(); time.sleep(1000)")
    os.kill(int(ready(process)[0]), signal.SIGKILL)
    assert end(process) == (
        1,
        "",
        "slingshot: fault: the driver was killed by SIGKILL (the memory may be full, or somebody did it); resume with "
        "resume=/runs/a/step-000004\n",
    )


def test_a_sweep_whose_driver_is_killed_goes_on_as_a_sweep(start: Any, ready: Any) -> None:
    """Its jobs tell of checkpoints, and a sweep takes no ``resume=``."""
    body = "tell(goes_on='the same command goes on'); tell(checkpoint='/runs/seed=1/step-000004')"
    process = start(f"{body}; ready(); time.sleep(1000)")
    os.kill(int(ready(process)[0]), signal.SIGKILL)
    assert end(process)[2] == (
        "slingshot: fault: the driver was killed by SIGKILL (the memory may be full, or somebody did it); the same "
        "command goes on\n"
    )


def test_a_driver_that_ends_without_a_word_has_its_line_said(start: Any) -> None:
    code, out, err = end(start("os._exit(7)"))
    assert (code, out) == (1, "")
    assert err == "slingshot: fault: the driver ended with exit code 7 and no word; Ray may have ended it\n"


def test_the_end_of_a_process_that_ray_needs_ends_the_run(start: Any, ready: Any, tmp_path: Path) -> None:
    session = tmp_path / "ray" / "session_of_this_run"
    (session / "logs").mkdir(parents=True)
    (session / "logs" / "raylet.out").write_text("why it ended\n")
    process = start(
        "raylet = subprocess.Popen(['sleep', '1000']); gcs = subprocess.Popen(['sleep', '1000'])\n"
        f"tell(head=dict(raylet=raylet.pid, gcs_server=gcs.pid), session={str(session)!r}, logs=str(root / 'logs'))\n"
        "tell(checkpoint='/runs/a/step-000004'); ready(raylet.pid); time.sleep(1000)"
    )
    driver, raylet = map(int, ready(process))
    os.kill(raylet, signal.SIGKILL)
    code, _, err = end(process)
    assert code == 1
    assert err == (
        f"slingshot: fault: Ray's raylet has ended; Ray's logs are in {tmp_path}/logs/ray; resume with "
        "resume=/runs/a/step-000004\n"
    )
    assert not psutil.pid_exists(driver)
    assert not session.exists()
    assert (tmp_path / "logs" / "ray" / "raylet.out").read_text() == "why it ended\n"


def test_rays_end_is_no_fault_once_the_driver_leaves(start: Any) -> None:
    process = start(
        "raylet = subprocess.Popen(['sleep', '1000'])\n"
        "tell(head=dict(raylet=raylet.pid), session=str(root), logs=str(root))\n"
        "tell(leaving=True); raylet.kill(); raylet.wait(); time.sleep(1.5); tell(said=True)"
    )
    assert end(process) == (0, "", "")


LEAVES = """
try:
    stopping = Stopping(lambda text, style: None)
    with at_once(), stopping.after_the_step():
        ready()
        while not stopping.asked: time.sleep(0.01)
        (root / "asked").touch()
        while not (root / "go on").exists(): time.sleep(0.01)
    raise Stopped(stopping.leaving)
except Stopped as stopped:
    print(stopped)
    tell(said=True)
    sys.exit(stopped.code)
"""


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("to_all", [False, True], ids=["to the launcher", "to all of its job"])
def test_a_signal_reaches_the_driver_once(
    start: Any, ready: Any, tmp_path: Path, number: signal.Signals, code: int, to_all: bool
) -> None:
    process = start(LEAVES, start_new_session=True)
    ready(process)
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    until((tmp_path / "asked").exists, hang_s=600.0)
    (tmp_path / "go on").touch()
    assert end(process) == (code, f"stopped by {number.name}\n", "")


def test_a_signal_that_a_driver_takes_no_notice_of_ends_it(start: Any, ready: Any) -> None:
    process = start("ready(); time.sleep(1000)")
    ready(process)
    process.terminate()
    assert end(process) == (143, "", "slingshot: stopped by SIGTERM\n")


def test_nothing_of_a_run_is_left(start: Any, ready: Any, tmp_path: Path) -> None:
    """Neither what left the driver's session, nor shared memory, nor Ray's folder."""
    process = start(
        "below = subprocess.Popen([sys.executable, '-c', '''if True:\n"
        "    import os, subprocess, time\n"
        "    from multiprocessing import resource_tracker, shared_memory\n"
        "    resource_tracker.register = lambda *a: None\n"
        "    memory = shared_memory.SharedMemory(create=True, size=4096)\n"
        '    far = subprocess.Popen(["sleep", "1000"], start_new_session=True)\n'
        "    print(os.getpid(), far.pid, memory.name, flush=True)\n"
        "    time.sleep(1000)'''], start_new_session=True, stdout=subprocess.PIPE, text=True)\n"
        "(root / 'ray' / f'session_now_{os.getpid()}' / 'logs').mkdir(parents=True)\n"
        "(root / 'ray' / 'session_latest').symlink_to(f'session_now_{os.getpid()}')\n"
        "ready(below.stdout.readline()); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    *pids, name = ready(process)
    code, _, err = end(process)
    assert (code, err) == (1, "slingshot: fault: the driver was killed by SIGSEGV\n")
    assert not [pid for pid in map(int, pids) if psutil.pid_exists(pid)]
    assert not Path("/dev/shm", name).exists()
    assert [*(tmp_path / "ray").iterdir()] == []


def test_a_driver_does_not_outlive_its_launcher(start: Any, ready: Any) -> None:
    process = start("ready(); time.sleep(1000)")
    driver = int(ready(process)[0])
    process.kill()
    until(lambda: not psutil.pid_exists(driver) or psutil.Process(driver).status() == psutil.STATUS_ZOMBIE)
