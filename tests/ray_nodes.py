"""Ray's nodes as processes of this machine, which a test may start, wrap and kill."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
from patience import until

RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=2", "--disable-usage-stats"]


def _environment() -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "1800"}
    quiet |= {"RAY_worker_register_timeout_seconds": "1800", "RAY_agent_register_timeout_ms": "1800000"}
    return {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "RAY_", "OMP_"))} | quiet


class Nodes:
    """Ray's nodes, each a process group of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        """Starts the head, with further ``arguments`` of ``ray start``."""
        # A token of their own: that of ``~/.ray`` is made by whichever Ray of this machine needs one first.
        self.access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        """The environment of who joins."""
        self._environment = _environment() | self.access | environment
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # Ray's sockets need short names
        self.processes: list[subprocess.Popen[bytes]] = []
        said = self._start("--head", "--port=0", "--include-dashboard=false", f"--temp-dir={self.folder}", *arguments)
        self.address = said.split("--address='")[1].split("'")[0]

    def add(self, *arguments: str, wrapped: Sequence[str] = ()) -> None:
        """Another node, started by the command ``wrapped`` if there is one."""
        # At an address of its own: a driver joins by the node that has its machine's, and that is to be the head.
        own = f"--node-ip-address=127.0.0.{len(self.processes) + 1}"
        self._start(f"--address={self.address}", own, *arguments, wrapped=wrapped)

    def _start(self, *arguments: str, wrapped: Sequence[str] = ()) -> str:
        """What Ray says of its start."""
        log = self.folder / f"node-{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*wrapped, *RAY, *arguments],
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
        self.processes.append(process)
        until(lambda: "will now block" in log.read_text() or process.poll() is not None)  # the last that it says
        assert process.poll() is None, log.read_text()
        return log.read_text()

    def kill(self, number: int) -> None:
        """The node's end without a word, with all that runs on it."""
        for process in (psutil.Process(self.processes[number].pid), *self.family(number)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def family(self, number: int) -> list[psutil.Process]:
        """All that runs on the node."""
        return psutil.Process(self.processes[number].pid).children(recursive=True)

    def end(self) -> None:
        for number, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill(number)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
