"""Whether the actors of a run live and get on. One that hangs is named, its stacks are written, and it is killed.

    ping ─► Pulse: phases under way, and the work done in each      (about once a second, in a group of its own)

A phase of ``cluster.deadlines`` is over its time when no work was done in it for so long: a slow machine does some.
A ping that isn't answered says less: its process may hold the interpreter's lock while it works. So a process on this
machine that gets on with something, by its processor time, is given time; one that is stopped is not, unless it is
stopped by turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray

from actors import hung
from actors.calls import POLL_S, Died, Hangs, died, get
from actors.placement import is_there
from actors.pulse import ANSWER, Pulse
from agent.errors import Fault, Final
from conf.topology import DeadlineConfig

LONGEST_LOOK_S = 5.0
"""Between two looks no more than this counts: who was stopped himself has watched nobody."""
PATIENCE = 6
"""Times the deadline of a ping, for a process that isn't stopped."""
ENDS_S = 5.0
"""How long a process that Ray was told to kill may take to end."""
FREED_S = 60.0
"""How long Ray may need to give up the name of an actor that has ended: on a full machine more than a moment."""
WORKS = 0.1
"""Share of a core with which a process counts as working. Ray's own threads take a few hundredths."""
TAKE = "take"
"""The phase of a learner that waits for those who play: it gets on as they do."""


@dataclass
class _Patient:
    name: str
    actor: Any
    lost: Callable[[Died], None]
    restarts: bool
    """Ray starts it again whenever its process ends."""
    asked: Any = None
    """The ping that is under way."""
    pulse: Pulse | None = None
    """The newest; None before the first of a process."""
    still: dict[str, float] = field(default_factory=lambda: {"start": 0.0})
    """Watched seconds without progress, by phase."""
    silent: float = 0.0
    """Watched seconds since the last answer, or sign of work."""
    worked: float | None = None
    """Processor seconds of the process soon after that time."""
    ran: tuple[float, float] = (0.0, 0.0)
    """Its processor seconds when they were last seen to have moved, and how long it had been silent then."""

    def begin(self) -> None:
        """A new process: nothing is known of it yet."""
        self.asked, self.pulse, self.silent, self.still = self.actor.ping.remote(), None, 0.0, {"start": 0.0}

    def take_in(self, pulse: Pulse) -> bool:
        """A ping was answered; whether work was done since the one before."""
        before = self.pulse.busy if self.pulse else {}
        moved = any(work != before.get(phase) for phase, work in pulse.busy.items() if phase != ANSWER)
        self.still = {
            phase: self.still.get(phase, 0.0) if before.get(phase) == work else 0.0
            for phase, work in pulse.busy.items()
        }
        self.pulse, self.silent, self.worked = pulse, 0.0, None
        self.asked = self.actor.ping.remote()
        return moved


class Health:
    """Watches the actors of one run. ``look`` is to be called about once a second while anything is waited for."""

    def __init__(
        self, deadlines: DeadlineConfig, log_dir: Path, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._deadlines = deadlines
        self._log_dir = log_dir
        self._clock = clock
        self._looked = clock()
        self._patients: dict[str, _Patient] = {}
        # A Ray client is on none of the nodes.
        self._node = "" if ray.util.client.ray.is_connected() else ray.get_runtime_context().get_node_id()

    def watch(self, name: str, actor: Any, lost: Callable[[Died], None], *, restarts: bool = False) -> None:
        """From now on ``lost`` is told if ``actor`` died or hung. With ``restarts`` Ray starts it again each time."""
        patient = self._patients[name] = _Patient(name, actor, lost, restarts)
        patient.begin()

    def forget(self, name: str) -> None:
        """Its end is no news."""
        self._patients.pop(name, None)

    def only(self, *names: str) -> None:
        """From now on the end of any other is no news."""
        self._patients = {name: patient for name, patient in self._patients.items() if name in names}

    def look(self) -> None:
        """Looks at every actor, unless that was less than a second ago. Raises what a ``lost`` raises."""
        now = self._clock()
        passed = min(now - self._looked, LONGEST_LOOK_S)
        if passed < POLL_S:
            return
        self._looked = now
        for patient in [*self._patients.values()]:
            if self._patients.get(patient.name) is patient:  # or another's end has been its own
                self._look_at(patient, passed)

    def answer(self, ref: Any, name: str) -> Any:
        """The result of a call of ``name`` that needs nobody else, while all actors are watched."""
        while not ray.wait([ref], timeout=POLL_S)[0]:
            self.look()
        return get(ref, name, self._log_dir)

    def gone(self, *names: str) -> dict[str, Died]:
        """Those of ``names`` that are watched and dead, or don't answer, each with its end; they are asked now."""
        asked = {self._patients[name].actor.ping.remote(): name for name in names if name in self._patients}
        if not asked:
            return {}
        limit_s = PATIENCE * (self._deadlines.ping or LONGEST_LOOK_S)
        answered, silent = ray.wait([*asked], num_returns=len(asked), timeout=limit_s)
        errors = {asked[ref]: self._error(ref) for ref in answered}
        dead: dict[str, Died] = {
            name: died(error, name, self._log_dir) for name, error in errors.items() if error is not None
        }
        return dead | {asked[ref]: Hangs(asked[ref], f"no ping was answered for {limit_s:g} s") for ref in silent}

    def end(self, *names: str) -> None:
        """Kills those of these actors that are watched, whatever state they are in; that is no news.

        All the names are free afterwards. Raises ``Fault`` if Ray holds one for longer than ``FREED_S``.
        """
        ended = [self._patients.pop(name) for name in names if name in self._patients]
        pids = [each.pulse.pid for each in ended if each.pulse is not None and each.pulse.node == self._node]
        families = [family for pid in pids if (family := hung.family(pid))]
        for patient in ended:
            ray.kill(patient.actor)
        # Ray first: a process that somebody else has killed is an unexpected death to it, and it tells the user so.
        psutil.wait_procs([family[0] for family in families if not hung.stopped(family[0].pid)], ENDS_S)
        for family in families:
            hung.kill(family)
        deadline = time.monotonic() + FREED_S
        for name in names:
            while is_there(name):
                if time.monotonic() > deadline:
                    raise Fault(f"Ray still holds the name of {name}, which ended {FREED_S:.0f} s ago")
                time.sleep(0.05)

    # --- one actor -------------------------------------------------------------------------------

    def _look_at(self, patient: _Patient, passed: float) -> None:
        for phase in patient.still:
            patient.still[phase] += passed
        if ray.wait([patient.asked], timeout=0)[0]:
            error = self._error(patient.asked)
            if error is not None:
                self._died(patient, error)
                return
            before, pulse = patient.pulse, ray.get(patient.asked)
            if patient.take_in(pulse):
                self._somebody_plays(patient)
            if before is not None and (pulse.pid, pulse.node) != (before.pid, before.node):
                again = f"{patient.name} died, and runs again as process {pulse.pid}"
                patient.lost(Died(again, actor=patient.name))
                return
        else:
            patient.silent += passed
        if why := self._hangs(patient):
            self._kill(patient, why)

    def _somebody_plays(self, patient: _Patient) -> None:
        for other in self._patients.values():
            if other is not patient and TAKE in other.still:
                other.still[TAKE] = 0.0

    def _hangs(self, patient: _Patient) -> str | None:
        """What ``patient`` hangs in; None if it gets on."""
        for phase, still in patient.still.items():
            deadline = self._deadlines.of(phase)
            if deadline is not None and still > deadline:
                return f"{phase} has made no progress for {still:.0f} s (cluster.deadlines.{phase})"
        limit, pulse = self._deadlines.ping, patient.pulse
        if limit is None or pulse is None or not patient.silent:
            return None
        here = pulse.node == self._node
        now = hung.worked(pulse.pid) if here else 0.0
        if patient.worked is None:
            patient.worked, patient.ran = now, (now, 0.0)
        if now != patient.ran[0]:
            patient.ran = (now, patient.silent)
        if patient.silent <= limit:
            return None
        # Who limits a program's share of a processor stops it by turns: such a process is slow.
        state = hung.stopped(pulse.pid) if here and patient.silent - patient.ran[1] > limit else None
        if state is None and (now - patient.worked >= WORKS * patient.silent or (here and hung.reads(pulse.pid))):
            patient.silent, patient.worked, patient.ran = 0.0, now, (now, 0.0)
        if state is None and patient.silent <= PATIENCE * limit:
            return None
        what = f"its process is {state}" if state else "its process does nothing"
        return f"no ping was answered for {patient.silent:.0f} s (cluster.deadlines.ping): {what}"

    def _kill(self, patient: _Patient, why: str) -> None:
        hangs, pulse = Hangs(patient.name, why), patient.pulse
        if pulse is not None and pulse.node == self._node:
            hung.write_stacks(pulse.pid, self._log_dir / f"{patient.name}.log", str(hangs))
            hung.kill(hung.family(pulse.pid))
        if patient.restarts:
            if pulse is None:  # its next process would be as silent, and few such fit into an hour
                log = self._log_dir / f"{patient.name}.log"
                raise Final(f"{patient.name} can't be started, no process of it has answered a ping: {why}; see {log}")
            if pulse.node != self._node:
                ray.kill(patient.actor, no_restart=False)
            patient.begin()
        else:
            ray.kill(patient.actor)
            self.forget(patient.name)
        patient.lost(hangs)

    def _died(self, patient: _Patient, error: ray.exceptions.RayError) -> None:
        known = patient.pulse is not None
        if patient.restarts and not isinstance(error, ray.exceptions.ActorDiedError):
            if not known:  # it is still being started again
                patient.asked = patient.actor.ping.remote()
                return
            patient.begin()
            patient.lost(died(error, patient.name, self._log_dir))
            return
        ray.kill(patient.actor)  # it is dead; but Ray keeps the name of one that nobody has killed
        self.forget(patient.name)
        end = died(error, patient.name, self._log_dir)
        if patient.restarts:  # no other will come: whoever waits for it would wait for ever
            raise Final(f"{patient.name} can't be started again: {end}")
        patient.lost(end)

    @staticmethod
    def _error(ref: Any) -> ray.exceptions.RayError | None:
        """Of a ping that has ended, why without an answer."""
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            return error
        return None
