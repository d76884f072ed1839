"""Faults from inside the real actors: Python reads this file as it starts, where it is on the path.

An actor that enters a phase (``actors/pulse.py``), or asks its engine, adds a line to ``$FAULTS/phases``, and does what
the file ``$FAULTS/order`` says if it is for that phase: an order is carried out once, by whoever takes it first.

    {"when": ["learner", "publish"], "target": "pool", "kind": "kill", "held_s": 0.0}

Of ``garbage`` the order only says from when on: the next thing that the target gives to another actor is damaged; of
``outage``, that no search is answered as long as the file ``$FAULTS/outage`` is there. With ``held_s`` the phase lasts
so many seconds longer.
"""

import importlib.abc
import importlib.util
import json
import os
import re
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

FOLDER = os.environ.get("FAULTS")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def entered(phase):
    """This actor enters ``phase``: says so, and carries out an order for it."""
    log = Path(os.readlink("/proc/self/fd/1"))
    actor, folder = log.stem, Path(FOLDER)
    with (folder / "phases").open("a") as file:
        file.write(json.dumps([time.time(), actor, phase, os.getpid()]) + "\n")
    order = folder / "order"
    try:
        wanted = json.loads(order.read_text())
    except (OSError, ValueError):
        return
    who, what = wanted["when"]
    if what != phase or kind_of(actor) != who:
        return
    try:
        order.rename(folder / "taken")
    except OSError:  # somebody else was first
        return
    kind, target = wanted["kind"], wanted["target"]
    pid = os.getpid() if kind_of(actor) == target else newest(log.parent, target)
    done = folder / "done.new"
    done.write_text(json.dumps({**wanted, "at": time.time(), "pid": pid}))
    done.rename(folder / "done")
    if kind in SIGNALS:
        os.kill(pid, SIGNALS[kind])
    elif kind == "garbage":
        (folder / f"garbage-{target}").touch()
    elif kind == "outage":
        (folder / "outage").touch()
    elif kind == "hang":
        while True:
            time.sleep(1)
    time.sleep(wanted["held_s"])


def kind_of(actor):
    """``rollout`` of ``rollout-3``."""
    return actor.partition("-")[0]


def newest(logs, target):
    """The process of the newest actor of a kind that is up; of a ``tracker``, W&B's own."""
    if target == "tracker":
        return tracker()
    starts = []
    for log in logs.glob(f"{target}*.log"):
        for pid in re.findall(r"^\[slingshot\] .* pid (\d+)$", log.read_text(errors="replace"), re.M):
            if Path(f"/proc/{pid}").exists():
                starts.append((Path(f"/proc/{pid}").stat().st_ctime, int(pid)))
    return max(starts)[1]


def tracker():
    """The process which W&B has started for this run."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "wandb-core" and process.environ().get("FAULTS") == FOLDER:
                return process.pid
    raise AssertionError("W&B has no process of its own")


def changed_pulse(module):
    phase = module.Beats.phase

    @contextmanager
    def watched(self, name):
        with phase(self, name):
            entered(name)
            yield

    module.Beats.phase = watched


def changed_leases(module):
    generate = module.Paced.generate

    async def watched(self, *arguments, **named):
        entered("generate")
        return await generate(self, *arguments, **named)

    module.Paced.generate = watched


def spoilt(target):
    """Whether the next answer of ``target`` is the one to be damaged. Whoever asks first is its giver."""
    try:
        (Path(FOLDER) / f"garbage-{target}").rename(Path(FOLDER) / f"given-{target}")
    except OSError:
        return False
    return True


def changed_retrieval(module):
    """A search is answered with nothing that a search could give; in an outage, none is answered."""
    all_answers = module._all

    async def watched(asked, beats):
        answers = await all_answers(asked, beats)
        if (Path(FOLDER) / "outage").exists():
            return ["the index is gone"] * len(answers)
        return [None] * len(answers) if spoilt("retrieval") else answers

    module._all = watched


def changed_payloads(module):
    """A group has changed on its way from the worker."""
    packed = module.packed

    def watched(group):
        content = packed(group)
        return content[:-1] + bytes([content[-1] ^ 1]) if spoilt("rollout") else content

    module.packed = watched


def changed_pool(module):
    """A claim is of no question: the actor looks its questions up by ``query``."""
    claim = module.QueryPool.claim

    def watched(self, *arguments, **named):
        tickets = claim(self, *arguments, **named)
        return [SimpleNamespace(query=t.query) for t in tickets] if tickets and spoilt("pool") else tickets

    module.QueryPool.claim = watched


def changed_weights(module):
    """What is published isn't what its checksum says."""
    publish = module.ObjectStoreChannel.publish

    def watched(self, tensors, version):
        published = publish(self, tensors, version)
        return replace(published, checksum="0" * 16) if spoilt("learner") else published

    module.ObjectStoreChannel.publish = watched


def changed_tracker(module):
    """What W&B's own process answers isn't a message."""
    read = module.ServiceClient._read_server_response

    async def watched(self):
        response = await read(self)
        if response is not None and spoilt("tracker"):
            response.ParseFromString(b"\xff")
        return response

    module.ServiceClient._read_server_response = watched


CHANGED = {
    "actors.pulse": changed_pulse,
    "actors.leases": changed_leases,
    "actors.retrieval": changed_retrieval,
    "actors.payloads": changed_payloads,
    "actors.weights": changed_weights,
    "agent.pool.query_pool": changed_pool,
    "wandb.sdk.lib.service.service_client": changed_tracker,
}


class Finder(importlib.abc.MetaPathFinder):
    """Lets the modules of ``CHANGED`` be found as always, and changes them once they are executed."""

    def find_spec(self, name, path=None, target=None):
        if name not in CHANGED:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            CHANGED[name](module)

        spec.loader.exec_module = execute_and_change
        return spec


if FOLDER:
    sys.meta_path.insert(0, Finder())
