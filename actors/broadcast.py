"""Directs a broadcast of weights: the learner and all engines that serve take part at once, or none.

    hold (every engine stops, its requests kept) ─► [open the group] ─► send, transfer ─► (each engine resumes)

NCCL blocks for ever on a missing rank and doesn't name it, so every engine first reports that it has stopped. One that
doesn't is named and replaced, and the others go on without it. The group is opened anew whenever the set of engines has
changed. If it can't be opened, or two broadcasts in a row break, the run goes on through the object store and says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from actors.calls import POLL_S, get
from actors.health import LONGEST_LOOK_S
from actors.weights import Published
from agent.errors import Fault

LEARNER = "learner"
GRACE_S = 30.0
"""Seconds that the other members of a broken broadcast have to return from it."""


@dataclass
class Outcome:
    """What became of each engine."""

    holding: tuple[str, ...] = ()
    """They hold the version. Engines in none of the three are still stopped and need it by another way."""
    lost: dict[str, str] = field(default_factory=dict)
    """Engines to replace, with the cause."""
    bystanders: dict[str, str] = field(default_factory=dict)
    """Engines to replace because another one broke the broadcast after they had loaded a part of it."""


class Broadcast:
    """Broadcasts from ``learner`` to the live engines. ``say`` gets one line when NCCL is given up."""

    def __init__(
        self, learner: Any, *, timeout_s: float, hold_s: float, say: Callable[[str], None], log_dir: Path
    ) -> None:
        """``hold_s`` is the longest that an engine may take to stop, ``timeout_s`` the longest of every other part."""
        self._learner = learner
        self._timeout_s = timeout_s
        self._hold_s = hold_s
        self._say = say
        self._log_dir = log_dir
        self._group: tuple[str, ...] = ()
        self._broken = 0
        self._off = False

    def deliver(self, published: Published, engines: Mapping[str, Any]) -> Outcome:
        """Brings ``published`` to ``engines``, by name. Raises ``Fault`` when the learner is lost."""
        outcome = Outcome()
        if self._off:
            return outcome
        held = {name: actor.hold.remote() for name, actor in engines.items()}
        outcome.lost = self._failures(
            held, self._hold_s, f"did not stop for the weights of version {published.version}"
        )
        members = {name: actor for name, actor in engines.items() if name not in outcome.lost}
        if not members or (tuple(members) != self._group and not self._open(members)):
            return outcome
        calls = {LEARNER: self._learner.send.remote(published.version)}
        calls |= {name: actor.transfer.remote(published) for name, actor in members.items()}
        what = f"did not finish the broadcast of version {published.version}"
        failed = self._failures(calls, self._timeout_s, what, together=members)
        if not failed:
            self._broken = 0
            outcome.holding = tuple(members)
            return outcome
        self._group = ()
        self._learner_answer(self._learner.leave.remote())
        (first, cause), *_ = failed.items()
        for name in members:
            if name == first:
                outcome.lost[name] = cause
            elif name in failed:
                outcome.bystanders[name] = (
                    f"it had loaded a part of version {published.version} when the broadcast broke"
                )
        outcome.holding = tuple(name for name in members if name not in failed)
        self._broken += 1
        if self._broken == 2:
            self._fall_back(f"two broadcasts in a row broke: {cause}")
        return outcome

    def _open(self, members: Mapping[str, Any]) -> bool:
        """Opens the group of the learner and ``members``; whether that went well."""
        self._group = ()
        try:
            group = self._learner_answer(self._learner.offer.remote())
        except Fault as error:
            self._fall_back(str(error))
            return False
        world = 1 + len(members)
        calls = {LEARNER: self._learner.join.remote(group, world)}
        calls |= {name: actor.join.remote(group, rank, world) for rank, (name, actor) in enumerate(members.items(), 1)}
        # Both ends stop waiting by themselves and say so; the grace is for their answers.
        failed = self._failures(calls, self._timeout_s + GRACE_S, "did not join the NCCL group")
        if failed:
            self._fall_back("; ".join(failed.values()))
            return False
        self._group = tuple(members)
        return True

    def _fall_back(self, why: str) -> None:
        self._off = True
        self._learner_answer(self._learner.fall_back.remote())
        self._say(
            "NCCL failed, and from here on weights go through the object store; the next time, try "
            f"cluster.nccl_p2p=false, or avoid NCCL with cluster.weight_channel=object_store ({' '.join(why.split())})"
        )

    def _learner_answer(self, ref: Any) -> Any:
        if not ray.wait([ref], timeout=self._timeout_s)[0]:
            raise Fault(
                f"the learner has not returned from NCCL for {self._timeout_s:g} s (cluster.weight_timeout_s); resume "
                "from the last checkpoint with cluster.weight_channel=object_store"
            )
        return get(ref, LEARNER, self._log_dir)

    def _failures(
        self, calls: Mapping[str, Any], timeout_s: float, what: str, *, together: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        """Waits for ``calls`` by name; which failed and why, in the order in which that was seen.

        Where ``together`` (engines by name) are in one broadcast, the first failure ends it for all.
        """
        failed: dict[str, str] = {}
        pending = {ref: name for name, ref in calls.items()}

        def collect(seconds: float, *, all_of_them: bool) -> None:
            left, looked = seconds, time.monotonic()
            while pending and (all_of_them or not failed) and left > 0:
                ready = ray.wait([*pending], num_returns=1, timeout=min(left, POLL_S))[0]
                now = time.monotonic()
                # Of the time in which this process was stopped itself next to nothing counts: others may have answered.
                left, looked = left - min(now - looked, LONGEST_LOOK_S), now
                for ref in ready:
                    name = pending.pop(ref)
                    try:
                        get(ref, name, self._log_dir)
                    except Fault as error:
                        failed[name] = str(error)

        collect(timeout_s, all_of_them=together is None)
        missing = [] if failed and together is not None else [*pending.values()]
        failed |= {name: f"{name} {what} within {timeout_s:g} s (cluster.weight_timeout_s)" for name in missing}
        if together is not None and failed:
            self._learner.abandon.remote()
            for actor in together.values():
                actor.abandon.remote()
            seen = dict(failed)
            collect(GRACE_S, all_of_them=True)
            hung = {name: f"{name} didn't return from a broken broadcast" for name in pending.values()}
            # After a time-out, an engine that doesn't return is the missing one: the others waited for it.
            order = {**hung, **seen} if missing else {**seen, **hung}
            failed = {**order, **failed}
        return failed
