"""Ray's start: how an address is written, who answers there, and what is said when Ray doesn't come up."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from patience import run

from actors import ray_start
from actors.plan.machine import Gpu
from actors.plan.ray_address import reach
from agent.errors import UserError
from agent.pool.rules.recycle import Rule as Recycle
from conf.schema import RunConfig
from conf.topology import ClusterConfig

ROOT = Path(ray_start.__file__).parents[1]


# --- an address ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["auto", "head:6379", "10.0.0.1:6379", "[::1]:6379", "ray://head.example.org:10001"]
)
def test_an_address_that_is_one(address: str) -> None:
    assert ClusterConfig(address=address).address == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "head",
        "head:",
        ":6379",
        "head:0",
        "head:65536",
        "head:abc",
        "he ad:1",
        "http://head:8265",
        "ray://",
        "::1:6379",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=rf"^cluster\.address={address}: is written HOST:PORT, as `ray start --head`"):
        ClusterConfig(address=address)


def test_this_machine_is_no_address() -> None:
    with pytest.raises(UserError, match=r"^cluster\.address=local: leave it out \(null\) to start Ray on this machine"):
        ClusterConfig(address="local")


def refusal(address: str, patience_s: float = 0.5) -> str:
    """What is said of an address where no Ray cluster answers, which takes no longer than it may."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        reach(address, patience_s)
    assert time.monotonic() - started < 4 * patience_s + 4
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"cluster.address={address}")
    return str(error.value)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a program that lets one connect and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            assert ": no Ray cluster answers there: Connection refused; start one with `ray start" in refusal(given)


def test_a_host_that_nobody_knows_is_refused() -> None:
    assert ": no Ray cluster answers there: " in refusal("no-such-host.invalid:6379", patience_s=10.0)


def test_who_never_answers_is_no_head(silent: str) -> None:
    for given in (silent, f"ray://{silent}"):
        assert ": no Ray cluster answers there: what listens there is no Ray head, or doesn't respond; " in refusal(
            given
        )


@pytest.fixture
def grpc_server() -> Iterator[dict[str, Any]]:
    """A server of gRPC that answers health checks with ``answer``, at ``address``."""
    import grpc

    state: dict[str, Any] = {"answer": b"\x08\x01", "checks": 0}

    class Health(grpc.GenericRpcHandler):
        def service(self, call: Any) -> Any:
            if call.method != "/grpc.health.v1.Health/Check" or state["answer"] is None:
                return None
            state["checks"] += 1
            return grpc.unary_unary_rpc_method_handler(lambda request, context: state["answer"])

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Health()])
    state["address"] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield state
    server.stop(None)


def test_a_head_that_is_healthy_is_reached(grpc_server: dict[str, Any]) -> None:
    reach(grpc_server["address"], 5.0)
    reach(f"ray://{grpc_server['address']}", 5.0)
    assert grpc_server["checks"] == 1, "a client's server has no health check"


@pytest.mark.parametrize("answer", [None, b"\x08\x02"])
def test_another_server_or_one_that_is_not_serving_is_no_head(
    grpc_server: dict[str, Any], answer: bytes | None
) -> None:
    grpc_server["answer"] = answer
    assert "what listens there is no Ray head" in refusal(grpc_server["address"], 5.0)


def test_auto_is_the_cluster_that_the_environment_names(grpc_server: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setenv("RAY_ADDRESS", grpc_server["address"])
    reach("auto", 5.0)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert refusal("auto").startswith("cluster.address=auto (127.0.0.1:1): no Ray cluster answers there: ")


def test_auto_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", none)
    assert "cluster.address=auto: no Ray cluster answers there: none runs on this machine; " in refusal("auto")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Version mismatch: Ray: 2.50.0\nPython: 3.12", "Version mismatch: Ray: 2.50.0"),
        ("Failed. Last error: Traceback (most recent call last):\n  File x\nRpcError: no token", "RpcError: no token"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_refused_in_one_line(
    said: str, reason: str, grpc_server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def join(**given: Any) -> None:
        os.write(2, b"[W] rpc_client.h: noise of C++\n")
        raise RuntimeError(said)

    monkeypatch.setattr("ray.init", join)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    address = grpc_server["address"]
    config = RunConfig(pool=Recycle(), cluster=ClusterConfig(address=address), output_dir=str(tmp_path))
    with pytest.raises(UserError) as error:
        ray_start.start_ray(config, "test")
    assert str(error.value) == f"cluster.address={address}: can't join the Ray cluster there ({reason})"
    assert capfd.readouterr().err == ""
    assert (tmp_path / "logs" / "ray.log").read_text() == "[W] rpc_client.h: noise of C++\n"


def test_without_a_home_the_token_is_this_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", "/proc/nobody")
    ray_start._provide_token()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    ray_start._provide_token()
    assert os.environ["RAY_AUTH_TOKEN"] == token


# --- a start on this machine -----------------------------------------------------------------------

START = """
import json, sys, time
import psutil, ray
from ray._private import services
from actors import ray_start
from conf.topology import ClusterConfig
from agent.errors import Fault
from agent.pool.rules.recycle import Rule
from conf.schema import RunConfig

program, limit_s, ray_start.ATTEMPTS = sys.argv[1], float(sys.argv[2]), 2
services.RAYLET_EXECUTABLE = program or services.RAYLET_EXECUTABLE
config = RunConfig(pool=Rule(), cluster=ClusterConfig(dashboard=False, start_timeout_s=limit_s))
started = time.monotonic()
try:
    ray_start.start_ray(config, "test")
    end = "up"
except Fault as fault:
    end = str(fault)
seconds = time.monotonic() - started
left = [process.name() for process in psutil.Process().children(recursive=True)] if end != "up" else []
ray.shutdown()
print(json.dumps({"end": end, "seconds": seconds, "left": left}))
"""
"""Starts Ray with another program for its raylet, in a process with nothing else of Ray."""


def start(program: Path | None, limit_s: float) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", START, str(program or ""), str(limit_s)]
    done = run(command, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "all that is said is the line of the Fault"
    return json.loads(done.stdout.splitlines()[-1])


def raylet(folder: Path, script: str) -> Path:
    import ray

    program = folder / "raylet"
    real = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    program.write_text(f"#!/bin/sh\n{script.format(real=real)}\n")
    program.chmod(0o755)
    return program


@pytest.mark.slow
def test_a_ray_that_dies_as_it_starts_is_tried_again_and_named(tmp_path: Path) -> None:
    """Ray itself would wait half a minute for it, each time."""
    tried = start(raylet(tmp_path, f"echo x >> {tmp_path}/tried; exit 1"), 600.0)
    assert tried["end"].startswith("Ray's raylet ended while it started, 2 times; Ray's logs are in ")
    assert (tmp_path / "tried").read_text() == "x\nx\n"
    assert tried["left"] == []


@pytest.mark.slow
def test_a_ray_that_is_not_up_in_time_is_ended(tmp_path: Path) -> None:
    slow = start(raylet(tmp_path, "sleep 1000; exit 1"), 8.0)
    assert slow["end"].startswith(
        "Ray didn't start within cluster.start_timeout_s=8; raise that if the machine is slow "
    )
    assert slow["left"] == []
    assert slow["seconds"] < 60


@pytest.mark.slow
def test_a_slow_machine_is_waited_for(tmp_path: Path) -> None:
    """Ray's own limit is 30 seconds."""
    slow = start(raylet(tmp_path, 'sleep 40; exec {real} "$@"'), 600.0)
    assert slow["end"] == "up"
    assert slow["seconds"] > 40


@pytest.mark.parametrize("before", [None, "0,1,2"])
def test_ray_is_shown_the_cards_that_the_check_has_counted_on(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """Ray gives out the first ones that it sees: here one for the screen."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    found = (Gpu(total=4.0), Gpu(total=24.0, index=1), Gpu(total=24.0, index=2))
    monkeypatch.setattr(ray_start, "gpus", lambda: (found, "580.1"))
    for workers, shown in ((1, "1,2"), (2, before)):  # for three cards there are too few: the check has refused them
        cluster = ClusterConfig(device="cuda", rollout_workers=workers)
        with ray_start._cards_shown(RunConfig(pool=Recycle(), cluster=cluster)):
            assert os.environ.get("CUDA_VISIBLE_DEVICES") == shown
            assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    with ray_start._cards_shown(RunConfig(pool=Recycle())):
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


WORKERS = """
from actors import ray_start
from agent.pool.rules.recycle import Rule
from conf.schema import RunConfig
from conf.topology import ClusterConfig
import psutil, ray

ray_start.start_ray(RunConfig(pool=Rule(), cluster=ClusterConfig(dashboard=False)), "test")

@ray.remote(num_cpus=0)
class Finder:
    def found(self):
        import os
        import agent, tasks, mine
        return [agent.__file__, tasks.__file__, mine.__file__, os.getcwd()]

print(*ray.get(Finder.remote().found.remote()), sep="\\n")
print(sum(process.name() == "ray::IDLE" for process in psutil.Process().children(recursive=True)))
ray_start.stop_ray()
"""


@pytest.mark.slow
def test_workers_find_our_code_before_what_the_user_has_where_he_is(tmp_path: Path) -> None:
    """A folder with an ``agent`` package or a ``tasks.py`` of one's own, the current one or on PYTHONPATH.

    And no process waits for work beside that actor's: Ray would start one for each core, which none of ours uses.
    """
    for folder in (tmp_path / "here", tmp_path / "path"):
        (folder / "agent").mkdir(parents=True)
        (folder / "agent" / "__init__.py").write_text("raise RuntimeError('not this one')")
        (folder / "tasks.py").write_text("raise RuntimeError('nor this one')")
    (tmp_path / "path" / "mine.py").write_text("")
    (tmp_path / "start.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{WORKERS}")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["PYTHONPATH"] = str(tmp_path / "path")
    done = run([sys.executable, str(tmp_path / "start.py")], cwd=tmp_path / "here", env=env)
    expected = [ROOT / "agent/__init__.py", ROOT / "tasks/__init__.py", tmp_path / "path/mine.py", tmp_path / "here"]
    assert (done.returncode, done.stdout.split()) == (0, [*map(str, expected), "0"]), done.stderr


KEPT = """
import ctypes, os, signal
from actors import placement, ray_start  # which imports Ray
from actors.stopping import at_once
from agent.errors import Stopped
from agent.pool.rules.recycle import Rule
from conf.schema import RunConfig
from conf.topology import ClusterConfig
from retrieval_service import jvm

def handler():
    action = (ctypes.c_char * 152)()  # a struct sigaction; its first word is the handler
    assert ctypes.CDLL(None).sigaction(11, None, action) == 0
    return bytes(action[:8])

jvm.start_jvm("64m", 1)
before = handler()
with at_once():
    ray_start.start_ray(RunConfig(pool=Rule(), cluster=ClusterConfig(dashboard=False)), "test")
    print(handler() == before)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except Stopped as stopped:
        print(stopped)
    ray_start.stop_ray()
"""


@pytest.mark.slow
@pytest.mark.jvm
def test_ray_leaves_a_jvm_and_a_run_their_signals() -> None:
    """Java meets SIGSEGV by design, such as for a null pointer; another handler ends the process. Ray's handler of
    SIGTERM ends it, too."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = run([sys.executable, "-c", KEPT], cwd=ROOT, env=env)
    assert (done.returncode, done.stdout) == (0, "True\nstopped by SIGTERM\n"), done.stderr
