"""Actors that hang, stop, are slow or die, under a real Ray: which are seen, as what, and which are left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray_fakes import PATIENCE_S, result, until

from actors.calls import Died, Hangs, died, get
from actors.health import Health
from actors.process import log_to
from actors.pulse import HEALTH, Beats, Pulse, during
from actors.restarts import HOUR_S, Restarts
from agent.errors import Fault, Final
from conf.topology import DeadlineConfig


@ray.remote(num_cpus=0, max_concurrency=100, concurrency_groups={HEALTH: 2})
class Patient:
    """Does what it is told."""

    def __init__(self, log_dir: Path) -> None:
        log_to(log_dir, "patient")
        self._beats = Beats()

    @ray.method(concurrency_group=HEALTH)
    async def ping(self) -> Pulse:
        return self._beats.pulse()

    @during("start")
    async def start(self) -> int:
        return os.getpid()

    async def block(self) -> None:
        """Its event loop gets no further."""
        while True:
            time.sleep(0.1)

    async def work(self) -> None:
        self._beats.did("update")

    @during("update")
    async def update(self) -> None:
        import asyncio

        await asyncio.Event().wait()


class Ward:
    """One patient, who is looked at as often as the test wants, by a clock of its own."""

    def __init__(self, folder: Path, deadlines: DeadlineConfig, **options: Any) -> None:
        self.now = 0.0
        self.lost: list[Died] = []
        self.log = folder / "patient.log"
        self.health = Health(deadlines, folder, clock=lambda: self.now)
        self.patient = Patient.options(**options).remote(folder)
        self.health.watch("patient", self.patient, self.lost.append, restarts="max_restarts" in options)
        self.pid = result(self.patient.start.remote())

    def look(self, seconds: float = 1.0) -> None:
        """A ping is answered, if it will be, and ``seconds`` of the ward's clock pass."""
        ray.wait([self.health._patients["patient"].asked], timeout=0.5)
        self.now += seconds
        self.health.look()


Open = Callable[..., Ward]


@pytest.fixture
def ward(local_ray: None, tmp_path: Path) -> Iterator[Open]:
    wards: list[Ward] = []

    def open_ward(deadlines: DeadlineConfig | None = None, **options: Any) -> Ward:
        wards.append(Ward(tmp_path, deadlines or DeadlineConfig(), **options))
        return wards[-1]

    yield open_ward
    for each in wards:
        ray.kill(each.patient)


def test_a_process_that_is_stopped_is_named_and_killed_within_the_deadline_of_a_ping(ward: Open) -> None:
    ward = ward(DeadlineConfig(ping=10.0))
    ward.look()
    os.kill(ward.pid, signal.SIGSTOP)
    looks = 0
    while not ward.lost:
        ward.look()
        looks += 1
    (error,) = ward.lost
    assert isinstance(error, Hangs)
    assert str(error).startswith(
        "patient hangs: no ping was answered for 11 s (cluster.deadlines.ping): its process is"
    )
    assert "stopped" in str(error)
    assert looks <= 13  # 10 s, and what was answered before
    assert "[slingshot] patient hangs: no ping" in ward.log.read_text()
    until(lambda: not _alive(ward.pid))


@pytest.mark.slow
def test_a_process_that_is_stopped_by_turns_is_slow(ward: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``cpulimit`` does it: whenever it is looked at it is stopped, and yet its processor time moves."""
    ward = ward(DeadlineConfig(ping=10.0))
    ward.look()
    os.kill(ward.pid, signal.SIGSTOP)
    used = 0.0
    monkeypatch.setattr("actors.hung.worked", lambda pid: used)
    for _ in range(40):
        used += 0.01
        ward.look()
    assert not ward.lost
    looks = 0
    while not ward.lost:
        ward.look()
        looks += 1
    assert "its process is stopped" in str(ward.lost[0])
    assert looks <= 11


def test_a_phase_without_progress_is_named_and_the_stacks_say_where_it_hangs(ward: Open) -> None:
    """Meanwhile every ping is answered."""
    ward = ward(DeadlineConfig(answer=20.0))
    ward.look()
    ward.patient.block.remote()
    until(lambda: ward.look() or ward.lost)
    assert str(ward.lost[0]).startswith("patient hangs: answer has made no progress for 2")
    assert "block" in ward.log.read_text().partition("what its threads do")[2]


@pytest.mark.slow
def test_work_renews_a_deadline_however_long_the_phase_lasts(ward: Open) -> None:
    ward = ward(DeadlineConfig(update=30.0))
    ward.look()
    ward.patient.update.remote()
    for _ in range(20):
        result(ward.patient.work.remote())
        ward.look(5.0)
    assert not ward.lost
    until(lambda: ward.look(5.0) or ward.lost)
    assert str(ward.lost[0]).startswith(
        "patient hangs: update has made no progress for 35 s (cluster.deadlines.update)"
    )


@pytest.mark.slow
def test_an_idle_actor_and_a_phase_without_a_deadline_are_left_alone(ward: Open) -> None:
    ward = ward(DeadlineConfig(update=None))
    ward.look()
    for _ in range(10):
        ward.look(5.0)
    ward.patient.update.remote()
    for _ in range(300):
        ward.now += 5.0
        ward.health.look()
        if ward.health._patients["patient"].silent > 5.0:
            ward.look(0.0)
    assert not ward.lost


@pytest.mark.slow
def test_a_supervisor_that_was_stopped_itself_accuses_nobody(ward: Open) -> None:
    ward = ward(DeadlineConfig(update=30.0))
    ward.look()
    ward.patient.update.remote()
    ward.look()
    ward.look(3600.0)
    assert not ward.lost


@pytest.mark.slow
def test_a_death_is_told_once_and_of_one_that_starts_again_each(ward: Open) -> None:
    once = ward()
    once.look()
    os.kill(once.pid, signal.SIGKILL)
    until(lambda: "patient" not in once.health._patients or once.look())
    (error,) = once.lost
    assert not isinstance(error, Hangs)
    assert str(error).startswith("patient died (")
    assert error.actor == "patient", "who has lost it knows by this whose end it was"


@pytest.mark.slow
def test_one_that_ray_starts_again_is_watched_again(ward: Open) -> None:
    ward = ward(max_restarts=-1)
    pid = ward.pid
    for deaths in (1, 2):
        ward.look()
        os.kill(pid, signal.SIGKILL)
        until(lambda deaths=deaths: ward.look() or len(ward.lost) == deaths)
        pulse = until(lambda: ward.look() or ward.health._patients["patient"].pulse)
        assert pulse.pid != pid
        pid = pulse.pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: ward.look() or len(ward.lost) == 3)
    assert isinstance(ward.lost[-1], Hangs)
    assert until(lambda: ward.look() or ward.health._patients["patient"].pulse).pid != pid


@ray.remote(num_cpus=0, max_restarts=-1)
class Stillborn:
    """Each of its processes ends before it has answered anything."""

    def ping(self) -> Pulse:
        os._exit(1)


def test_one_that_ray_starts_again_and_never_comes_up_is_the_end_of_the_run(local_ray: None, tmp_path: Path) -> None:
    """An hour may have so few of its starts that their number ends nothing."""
    lost: list[Died] = []
    now = 0.0
    health = Health(DeadlineConfig(start=30.0), tmp_path, clock=lambda: now)
    patient = Stillborn.remote()
    health.watch("retrieval", patient, lost.append, restarts=True)

    def look(times: int) -> None:
        nonlocal now
        for _ in range(times):
            now += 5.0
            health.look()

    wanted = (
        r"^retrieval can't be started, no process of it has answered a ping: start has made no progress for \d+ s "
        r"\(cluster\.deadlines\.start\); see .*retrieval\.log$"
    )
    look(5)
    assert ray.wait([health._patients["retrieval"].asked], timeout=PATIENCE_S)[0], "its process has ended"
    with pytest.raises(Final, match=wanted):
        look(2)  # the end of a process shortly before the deadline gives the next one no more time
    assert lost == []
    ray.kill(patient)


@pytest.mark.slow
def test_one_that_ray_gives_up_is_the_end_of_the_run(ward: Open) -> None:
    """Whoever waits until it is back would wait for ever."""
    ward = ward(max_restarts=1)
    ward.look()
    os.kill(ward.pid, signal.SIGKILL)
    until(lambda: ward.look() or ward.lost)
    again = until(lambda: ward.look() or ward.health._patients["patient"].pulse)
    os.kill(again.pid, signal.SIGKILL)
    with pytest.raises(Final, match=r"^patient can't be started again: patient died \(ActorDiedError\)"):
        until(ward.look)


@pytest.mark.slow
def test_who_is_gone_is_asked_when_something_broke(ward: Open) -> None:
    ward = ward()
    assert ward.health.gone("patient", "nobody") == {}
    os.kill(ward.pid, signal.SIGKILL)
    gone = until(lambda: ward.health.gone("patient", "nobody"))
    assert str(gone["patient"]).startswith("patient died (ActorDiedError)")


@pytest.mark.slow
def test_the_names_of_those_that_ended_are_free_afterwards(ward: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives a name up some time after the actor's death, and the next of that name is made at once."""
    asked, find = iter(("still there", "still there", None)), ray.get_actor
    monkeypatch.setattr(ray, "get_actor", lambda name: next(asked) or find(name))
    ward().health.end("patient")
    assert next(asked, "over") == "over"


@pytest.mark.slow
def test_the_name_of_one_whose_death_a_ping_saw_is_free(ward: Open) -> None:
    """Ray keeps the name of a dead actor that somebody holds, until it is killed; the next one needs it."""
    first = ward(name="patient")
    first.look()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: first.look() or first.lost)
    first.health.end("patient")
    assert ward(name="patient").pid != first.pid


def test_one_that_is_stopped_is_ended_too(ward: Open) -> None:
    """Ray asks a process to end itself, which this one can't."""
    ward = ward()
    until(lambda: ward.look() or ward.health._patients["patient"].pulse)
    os.kill(ward.pid, signal.SIGSTOP)
    ward.health.end("patient")
    until(lambda: not _alive(ward.pid))


def test_a_name_that_ray_does_not_give_up_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "get_actor", lambda name: name)
    monkeypatch.setattr("actors.health.FREED_S", 0.0)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    with pytest.raises(Fault, match=r"^Ray still holds the name of learner, which ended 0 s ago$"):
        Health(DeadlineConfig(), tmp_path).end("learner")


def test_a_full_machine_is_named_with_those_who_filled_it(tmp_path: Path) -> None:
    """Ray's own words, of a run beside which another program took eleven gigabytes."""
    page = (
        "Memory on the node (IP: 192.0.2.2, ID: c86f) was 22.67GB used / 23.54GB limit (0.962887)\n"
        "OOM kill reason: Memory usage 24169357312B exceeded threshold of 24012685312B\nTop 10 memory users: PID\t"
        "MEM(GB)\tCOMMAND\n14280\t9.88\tpython play.py job.json\n4933\t6.47\tray::LearnerActor\n"
        "4986\t3.36\tray::RolloutWorker\n3715\t0.41\tpython launch.py\n suggestions: Refer to the documentation"
    )
    assert str(died(ray.exceptions.OutOfMemoryError(page), "pool", tmp_path)) == (
        "pool died: Ray killed it, as the machine's memory was full (22.67GB used / 23.54GB limit); the largest: "
        "9.88 GB python play.py job.json, 6.47 GB ray::LearnerActor, 3.36 GB ray::RolloutWorker"
    )
    assert str(died(ray.exceptions.OutOfMemoryError("-"), "pool", tmp_path)).endswith("memory was full")


@ray.remote(num_cpus=0)
class Unmade:
    def __init__(self) -> None:
        raise OSError(28, "No space left on device")

    def ping(self) -> None:
        """Is never answered."""


@pytest.fixture(scope="module")
def unmade(local_ray: None) -> Any:
    """The handle of an actor that can't be made."""
    return Unmade.remote()


def test_one_that_can_not_be_made_says_why(unmade: Any, tmp_path: Path) -> None:
    with pytest.raises(Died, match=r"^pool died \(it can't be made: OSError: \[Errno 28\] No space left on device\)$"):
        get(unmade.ping.remote(), "pool", tmp_path)


def test_at_the_end_of_a_run_the_end_of_what_it_no_longer_needs_is_no_news(unmade: Any, tmp_path: Path) -> None:
    health = Health(DeadlineConfig(), tmp_path)
    for name in ("learner", "rollout-0"):
        health.watch(name, unmade, pytest.fail)
    health.only("learner", "pool")
    assert [*health._patients] == ["learner"]


def test_restarts_are_counted_by_the_hour() -> None:
    times = [0.0, 10.0, HOUR_S, HOUR_S + 10.0, 3 * HOUR_S, 3 * HOUR_S + 1.0, 3 * HOUR_S + 2.0]
    restarts = Restarts("workers", 2, clock=iter(times).__next__)
    for _ in times[:-1]:
        restarts.count("it broke")
    assert restarts.total == 6
    wanted = r"^workers failed 3 times within an hour \(cluster.restarts_per_hour=2\): it broke again$"
    with pytest.raises(Fault, match=wanted):
        restarts.count("it broke again")


@pytest.mark.parametrize(("minutes", "ends"), [(6, 11), (30, 3), (90, 3), (None, None)])
def test_restarts_of_which_none_comes_to_work_end_however_long_each_takes(
    minutes: int | None, ends: int | None
) -> None:
    """None: one in between does its work."""
    clock = iter(60.0 * (minutes or 30) * n for n in range(99)).__next__
    restarts, counted = Restarts("workers", 12, in_a_row=3, clock=clock), 0
    wanted = rf"^workers failed {ends} times in a row, for more than an hour, before any came to work \("
    with pytest.raises(Final, match=wanted) if ends else nullcontext():
        for counted in range(1, 40):
            restarts.count("it hangs", at_work=minutes is None and counted % 2 == 0)
    assert counted == (ends or 39)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it went before it was read, or as it was
        return False
