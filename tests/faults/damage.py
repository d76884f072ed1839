"""A real run that is damaged from inside, at the phase that a test names, and watched from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from patience import until
from small_run import SMALL_RUN

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
PARTS = ("rollout", "retrieval", "pool", "learner")
KINDS = ("kill", "stop", "slow", "garbage")
HANGS = {
    "rollout": ("start", "publish", "evaluate", "generate"),
    "retrieval": ("start", "search"),
    "pool": ("start", "save"),
    "learner": ("start", "publish", "update", "save"),
}
"""The own phases of each part, in which its thread, or its event loop, gets no further."""
PHASES = {
    "starting": ("learner", "start"),
    "idle": ("learner", "take"),
    "generating": ("rollout", "generate"),
    "searching": ("retrieval", "search"),
    "publishing": ("learner", "publish"),
    "evaluating": ("rollout", "evaluate"),
    "checkpointing": ("pool", "save"),
}
"""What a phase of the run begins with: an actor, and the phase that it enters."""
EVENTS = {"rollout": "worker_lost", "retrieval": "retrieval_lost", "pool": "recovered", "learner": "recovered"}
"""The row of metrics.jsonl that says so."""
SLOW_S = 15.0
"""How long a slow process gets a tenth of its time."""
SETTINGS = [
    *SMALL_RUN,
    *(
        f"cluster.deadlines.{name}=20"
        for name in ("answer", "generate", "evaluate", "search", "update", "publish", "save")
    ),
    "cluster.deadlines.start=60",
    "cluster.deadlines.ping=5",
    "cluster.restarts_per_hour=1000",
    "cluster.losses_in_a_row=1000",
    "pool.max_empty_batches=1000000",
]


@dataclass(frozen=True)
class Seen:
    """What came of one fault, in seconds after it; None where nothing was to come."""

    detected_s: float | None
    recovered_s: float | None


class Damaged:
    """The run ``process`` in ``folder``, whose actors take orders from ``faults``."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, faults: Path) -> None:
        self.process, self.folder, self.faults = process, folder, faults

    @classmethod
    def start(cls, folder: Path, cache: Path, *arguments: str) -> Damaged:
        """Starts launch.py; its output is collected beside its folder."""
        faults = folder.with_name(f"{folder.name}.faults")
        faults.mkdir(parents=True)
        path = os.pathsep.join([str(INJECT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "FAULTS": str(faults), "PYTHONPATH": path}
        command = [sys.executable, str(ROOT / "launch.py"), *arguments]
        command += [f"hydra.run.dir={folder}", f"cache_dir={cache}"]
        with folder.with_name(f"{folder.name}.output").open("w") as output:
            process = subprocess.Popen(
                command, cwd=folder.parent, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment
            )
        return cls(process, folder, faults)

    @property
    def output(self) -> str:
        return self.folder.with_name(f"{self.folder.name}.output").read_text()

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def phases(self, since: float) -> list[list[Any]]:
        """(time, actor, phase, pid) of what was entered after ``since``."""
        path = self.faults / "phases"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [row for row in map(json.loads, lines) if row[0] > since]

    def wait(self, condition: Any, hang_s: float = 600.0) -> Any:
        """Waits as long as the run works. Fails with its output."""
        try:
            return until(condition, self.process, hang_s=hang_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; its output:\n{self.output[-5000:]}") from error

    def damage(self, target: str, kind: str, phase: str, *, held_s: float = 0.0, hang_s: float = 600.0) -> Seen:
        """Gives an order and waits until the fault is seen and got over.

        ``phase`` is one of ``PHASES``, or one of the target's own; it lasts ``held_s`` longer. A target whose start is
        meant is killed before, so that it starts.
        """
        before = self._seen(target)
        self.order(target, kind, phase, held_s)
        if phase in ("starting", "start"):
            os.kill(self.newest(target), signal.SIGKILL)
            self.wait(lambda: self._seen(target) > before, hang_s)
            before += 1
        self.wait((self.faults / "done").exists, hang_s)
        done = json.loads((self.faults / "done").read_text())
        at, pid = done["at"], done["pid"]
        if kind == "slow":
            self.slow(pid)
            assert self._seen(target) == before, "slow isn't dead"
            self.goes_on()
            return Seen(None, None)
        (self.faults / "taken").unlink(missing_ok=True)
        if kind == "garbage":
            given = self.faults / f"given-{target}"
            self.wait(given.exists, hang_s)
            given.unlink()
            at = time.time()
            if target == "retrieval":
                return self._unanswered(before)
        detected = None
        if (target, kind, phase) != ("retrieval", "kill", "starting"):  # Ray starts it once more in the same outage
            self.wait(lambda: self._seen(target) > before, hang_s)
            detected = time.time() - at
        self.wait(lambda: self._back(target, at, pid), hang_s)
        recovered = self._back(target, at, pid) - at
        # Of one that has never answered a ping only Ray knows the process, and kills it when it doesn't go by itself.
        self.wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, hang_s)
        return Seen(detected, recovered)

    def order(self, target: str, kind: str, phase: str, held_s: float = 0.0) -> None:
        """Gives an order, which is carried out as the phase is entered; one before it that wasn't is void."""
        when = (target, "start") if phase == "starting" else PHASES.get(phase, (target, phase))
        (self.faults / "done").unlink(missing_ok=True)
        order = self.faults / "order.new"
        order.write_text(json.dumps({"when": when, "target": target, "kind": kind, "held_s": held_s}))
        order.rename(self.faults / "order")

    def newest(self, target: str) -> int:
        """The newest process of a part that has entered any phase."""
        return next(pid for _, actor, _, pid in reversed(self.phases(0.0)) if actor.partition("-")[0] == target)

    def _seen(self, target: str) -> int:
        """How often the run has said that such a part is lost."""
        rows = [row for row in self.rows() if row.get("event") == EVENTS[target]]
        return len([row for row in rows if "lost" not in row or target in row["lost"]])

    def _back(self, target: str, at: float, pid: int) -> float | None:
        """When the part that was damaged did its own work again, in another process."""
        entered = [row for row in self.phases(at) if row[3] != pid]
        if target in ("rollout", "retrieval"):
            work = {"rollout": ("generate", "evaluate"), "retrieval": ("search",)}[target]
            return next((t for t, actor, what, _ in entered if actor.startswith(target) and what in work), None)
        # Pool and learner come together. One of them that only gave garbage may still be at work before that.
        began = next((t for t, actor, what, _ in entered if (actor, what) == ("pool", "start")), None)
        if began is None:
            return None
        return next((t for t, actor, what, _ in entered if t > began and (actor, what) == ("learner", "take")), None)

    def _unanswered(self, before: int) -> Seen:
        """Searches were answered with garbage: they failed, the retrieval goes on, and so does the run."""
        began, steps = time.time(), self.steps()
        self.wait(lambda: any(actor.startswith("retrieval") for _, actor, what, _ in self.phases(began)))
        back = time.time() - began
        self.wait(lambda: self.steps() > steps)
        assert self._seen("retrieval") == before, "it isn't dead"
        return Seen(None, back)

    def steps(self) -> int:
        """How many it has done."""
        return len([row for row in self.rows() if row["kind"] == "step"])

    def slow(self, pid: int) -> None:
        """Gives a process a tenth of its time for a while."""
        process, end = psutil.Process(pid), time.monotonic() + SLOW_S
        while time.monotonic() < end:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.9)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.1)

    def goes_on(self) -> None:
        """Waits for a step that began after this."""
        steps = self.steps()
        self.wait(lambda: self.steps() > steps + 1)

    def end(self) -> None:
        """Ctrl-C: the run ends well, and leaves no process, no port and no segment of shared memory."""
        ports = listening(started_with(self.faults))
        assert ports, "Ray listens"
        self.process.send_signal(signal.SIGINT)
        self.wait(lambda: self.process.poll() is not None, 900.0)
        assert self.process.returncode == 0, self.output[-5000:]
        assert not ports & listening(psutil.process_iter())

    def check(self) -> None:
        """See ``balanced``."""
        balanced([row for row in self.rows() if row["kind"] == "step"])


def balanced(steps: list[dict[str, Any]]) -> None:
    """Asserts that the books balance in every step, and that none of the ``steps`` is missing or there twice."""
    assert [row["step"] for row in steps] == [*range(1, len(steps) + 1)]
    for row in steps:
        returned = sum(v for k, v in row.items() if k.startswith("books/groups/returned/"))
        received, accepted, flying = (row[f"books/groups/{k}"] for k in ("received", "accepted", "in_flight"))
        assert received == accepted + returned + flying, row
        assert row["rollout/staleness_max"] <= 1


def started_with(faults: Path) -> list[psutil.Process]:
    """The processes of the run which takes its orders there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FAULTS") == str(faults) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def left_behind(faults: Path) -> list[str]:
    """Those that are still there, by number and name."""
    found = []
    for process in started_with(faults):
        with suppress(psutil.Error):
            found.append(f"{process.pid} {process.name()}")
    return found


def listening(processes: Iterable[psutil.Process]) -> set[int]:
    """The TCP ports on which they listen."""
    ports: set[int] = set()
    for process in processes:
        with suppress(psutil.Error):
            ports |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return ports


def segments() -> set[str]:
    """Names of the segments of shared memory that no process uses."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        used |= {line.partition("/dev/shm/")[2].split()[0] for line in lines if "/dev/shm/" in line}
    return {p.name for p in Path("/dev/shm").iterdir()} - used
