"""Fake actors for a real Ray, and what a test needs to watch them: no sleeping, every wait has a condition."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from patience import HANG_S

from actors.pulse import HEALTH, Beats, Pulse, during
from actors.retrieval import RetrievalActor
from agent.config import GroupConfig
from agent.errors import Fault, Final, Unusable, UserError
from agent.inference.evaluation import EvalRow
from agent.records import Passage, Question
from retrieval_service.backend import Identity
from retrieval_service.config import RetrievalConfig

PATIENCE_S = HANG_S
"""How long a test waits for what is certain to come; only a hang takes so long."""


KILLER = "a question that kills whoever plays it"


def result(ref: Any) -> Any:
    """What a call returns, waited for with patience."""
    return ray.get(ref, timeout=PATIENCE_S)


def pending(ref: Any) -> bool:
    """Whether a call is still under way."""
    return not ray.wait([ref], timeout=0)[0]


def until(condition: Callable[[], Any]) -> Any:
    """The first true value of ``condition``, asked again and again; fails the test when its patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)
    return value


@dataclass(frozen=True)
class Version:
    """Stands in for ``Published``, without its torch: the workers looks at nothing but the number and the channel."""

    version: int
    channel: str = "object_store"
    anew: bool = False
    """From a learner that went back to its checkpoint."""


@ray.remote
class Board:
    """Where fakes write down what they do, and wait at gates until the test opens them.

    One board does for many tests: each has a ``page`` of its own.
    """

    def __init__(self) -> None:
        self._events: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self._open: set[tuple[str, str]] = set()
        self._changed = asyncio.Condition()

    async def write(self, page: str, *event: str) -> None:
        async with self._changed:
            self._events[page].append(event)
            self._changed.notify_all()

    async def open(self, page: str, gate: str) -> None:
        async with self._changed:
            self._open.add((page, gate))
            self._changed.notify_all()

    async def gate(self, page: str, name: str) -> None:
        """Returns when ``name`` has been opened."""
        async with self._changed:
            await self._changed.wait_for(lambda: (page, name) in self._open)

    async def meet(self, page: str, where: str, who: str, world: int) -> bool:
        """Returns True when ``world`` have come, False when they part before."""
        async with self._changed:
            self._events[page].append(("met", where, who))
            self._changed.notify_all()

            def come() -> int:
                return sum(e[:2] == ("met", where) for e in self._events[page])

            def parted() -> bool:
                return any(e[0] == "parted" and where.startswith(e[1]) for e in self._events[page])

            await self._changed.wait_for(lambda: come() >= world or parted())
            return come() >= world

    async def part(self, page: str, group: bytes) -> None:
        await self.write(page, "parted", repr(group))

    async def seen(self, page: str, *event: str) -> None:
        """Returns when ``event`` has been written."""
        async with self._changed:
            await self._changed.wait_for(lambda: event in self._events[page])

    async def events(self, page: str, *beginning: str) -> list[tuple[str, ...]]:
        """All events so far that begin like this, less that beginning."""
        n = len(beginning)
        return [e[n:] for e in self._events[page] if e[:n] == beginning]


class FakeWorker:
    """A rollout worker that follows ``script``: for each method, what its successive calls do. See ``lasting.py``.

    ``die`` ends the process, ``fault``, ``final`` and ``user`` raise, ``faults`` gives an evaluation of nothing but
    faults, ``hang`` hangs, ``gone`` finds no weights or no pool, ``gate:NAME`` waits for a gate of the board and goes
    on. It insists on being used as a worker may be: started first, loaded before it serves, never an older version of
    one learner.
    """

    def __init__(self, name: str, board: Any, page: str, script: dict[str, list[str]]) -> None:
        self._name = name
        self._board = board
        self._page = page
        self._script = {method: list(steps) for method, steps in script.items()}
        self._started = False
        self._version: int | None = None
        self._evaluating = 0
        self._asleep = False
        self._held = False
        self._beats = Beats()
        self._group: tuple[bytes, int, int] | None = None

    async def ping(self) -> Pulse:
        return self._beats.pulse()

    @during("start")
    async def start(self) -> bool:
        await self._act("start")
        assert not self._started
        self._started = True
        return True

    async def receive(self, published: Version) -> int | None:
        told = await self._act("receive", str(published.version))
        assert self._started, "weights for a worker that is not up"
        assert not self._asleep, "weights for an engine that isn't on the card"
        assert published.anew or self._version is None or published.version >= self._version, "an older version"
        return None if told == "gone" else await self._take(published)

    async def hold(self) -> None:
        await self._act("hold")
        assert self._version is not None, "an engine that serves nothing"
        self._held = True

    async def join(self, group: bytes, rank: int, world: int) -> None:
        assert self._held, "NCCL starts while the engine samples"
        await self._act("join", str(rank), str(world))
        assert 0 < rank < world
        self._group = group, rank, world

    async def transfer(self, published: Version) -> int:
        """As in NCCL: ends when all ranks are there, or when the broadcast is abandoned."""
        assert self._held, "weights for an engine that samples"
        assert self._group is not None, "a broadcast without a group"
        await self._act("transfer", str(published.version))
        group, _, world = self._group
        if not await self._board.meet.remote(self._page, f"{group!r} {published.version}", self._name, world):
            self._group = None
            raise Fault("the broadcast was abandoned")
        return await self._take(published)

    async def abandon(self) -> None:
        if self._group is not None:
            await self._board.part.remote(self._page, self._group[0])

    async def _take(self, published: Version) -> int:
        self._held = False
        self._version = published.version
        await self._board.write.remote(self._page, self._name, "has", str(published.version))
        return published.version

    @during("sleep")
    async def sleep(self) -> None:
        await self._act("sleep")
        assert self._started, "an engine that isn't up can't sleep"
        assert not self._asleep
        self._asleep = True
        await self._board.write.remote(self._page, self._name, "asleep")

    @during("wake")
    async def wake(self) -> None:
        await self._act("wake")
        assert self._asleep
        self._asleep = False
        await self._board.write.remote(self._page, self._name, "awake")

    async def run(self, pool: str, group: GroupConfig) -> int | None:
        if await self._act("run", str(self._version)) == "gone":
            return None
        assert self._version is not None, "serves without weights"
        assert isinstance(group, GroupConfig)
        await self._board.gate.remote(self._page, f"{pool} closed")
        await self._board.write.remote(self._page, self._name, "ran")
        return 0

    @during("evaluate")
    async def evaluate(self, questions: tuple[Question, ...], step: int | None) -> list[EvalRow]:
        assert self._version is not None, "evaluates without weights"
        self._evaluating += 1
        told = await self._act("evaluate", str(len(questions)), f"at once {self._evaluating}")
        self._evaluating -= 1
        if any(q.text == KILLER for q in questions):
            os._exit(1)
        rows = [replace(row_of(q), fault=told == "faults") for q in questions]
        garbage: dict[str, Any] = {"none": None, "short": rows[1:], "text": ["row"] * len(rows), "others": rows[::-1]}
        return garbage.get(told, rows)

    async def _act(self, method: str, *details: str) -> str:
        """Does what the script says, and says what that was."""
        await self._board.write.remote(self._page, self._name, method, *details)
        steps = self._script.get(method, [])
        step = steps.pop(0) if steps else ""
        if step == "die":
            print(f"[slingshot] {self._name} is about to die")
            os._exit(1)
        elif step == "fault":
            raise Fault(f"{method} broke")
        elif step == "damaged":
            raise Unusable("learner", f"{method} got damaged weights")
        elif step == "garbled":
            raise Unusable("pool", f"{method} got a damaged claim")
        elif step == "final":
            raise Final(f"{method} can't go on")
        elif step == "user":
            raise UserError(f"{method} got bad input")
        elif step == "hang":
            await asyncio.Event().wait()
        elif step.startswith("gate:"):
            await self._board.gate.remote(self._page, step.removeprefix("gate:"))
        return step


def row_of(question: Question) -> EvalRow:
    return EvalRow(
        question_id=question.id,
        kind=question.kind,
        answer=f"answer to {question.id}",
        em=1.0,
        f1=1.0,
        evidence=None,
        searches=0,
        action_tokens=1,
        stop_reason="answered",
        fault=False,
    )


class FakeRetrieval:
    """Answers each query with passages made from it, records its calls, and waits in each call for ``go``.
    See ``lasting.py``.

    Not ``held``, it waits only for a query ``wait …``. A query ``bad …`` fails, ``raise …`` raises out of the call,
    ``none …`` has None for an answer, ``short …`` takes the answers of its whole call with it.
    """

    def __init__(self, *, held: bool = True) -> None:
        self._calls: list[tuple[list[str], int]] = []
        self._held = held
        self._go = asyncio.Semaphore(0)

    async def start(self) -> bool:
        return True

    async def ping(self) -> None:
        pass

    async def search_many(self, queries: list[str], k: int) -> Any:
        assert queries
        assert k > 0
        self._calls.append((queries, k))
        if self._held or any(q.startswith("wait") for q in queries):
            await self._go.acquire()
        if any(q.startswith("raise") for q in queries):
            raise ValueError("cannot search for that")
        if any(q.startswith("short") for q in queries):
            return []
        special = {"bad": lambda q: f"no luck with {q}", "none": lambda q: None}
        return [special.get(q.split()[0], lambda q: hits(q, k))(q) for q in queries]

    async def following_many(self, document_ids: list[str], k: int) -> list[tuple[Passage, ...] | str]:
        return [hits(f"after {d}", k) for d in document_ids]

    async def go(self, calls: int = 1) -> None:
        for _ in range(calls):
            self._go.release()

    async def calls(self) -> list[tuple[list[str], int]]:
        return self._calls

    async def pid(self) -> int:
        return os.getpid()


class ScriptedBackend:
    """Takes ``seconds`` for each query; one that is ``hang`` never comes back."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        time.sleep(self._seconds * len(queries))
        if "hang" in queries:
            threading.Event().wait()
        return [hits(query, k) for query in queries]

    def identity(self) -> Identity:
        return Identity(name="scripted", backend="scripted")

    def close(self) -> None:
        pass


@ray.remote(concurrency_groups={HEALTH: 1})  # type: ignore[call-overload]  # its stubs don't know it
class ScriptedRetrieval(RetrievalActor.__ray_metadata__.modified_class):  # type: ignore[attr-defined, misc, name-defined]
    """The real actor, over a ``ScriptedBackend``."""

    def __init__(self, log_dir: Path, timeout_s: float, seconds: float = 0.0) -> None:
        super().__init__(Path(), RetrievalConfig(timeout_s=timeout_s), Path(), log_dir, "retrieval")
        self._opener = lambda: lambda: ScriptedBackend(seconds)


def hits(query: str, k: int) -> tuple[Passage, ...]:
    return tuple(Passage(id=f"{query}-{n}", title=query, text="x") for n in range(k))


@ray.remote(concurrency_groups={"beside": 2})
class FakeSender:
    """The learner's end of a broadcast, by ``script`` as ``FakeWorker``'s. It insists on the order of calls."""

    def __init__(self, board: Any, page: str, script: dict[str, list[str]]) -> None:
        self._board = board
        self._page = page
        self._script = {method: list(steps) for method, steps in script.items()}
        self._groups = 0
        self._open: tuple[bytes, int] | None = None
        self._off = False

    def offer(self) -> bytes:
        assert not self._off, "NCCL after it was given up"
        self._act("offer")
        self._groups += 1
        self._open = None
        return b"group %d;" % self._groups

    def join(self, group: bytes, world: int) -> None:
        self._act("join", str(world))
        assert group == b"group %d;" % self._groups, "not the newest group"
        self._open = group, world

    def send(self, version: int) -> None:
        assert self._open is not None, "a broadcast without a group"
        self._act("send", str(version))
        group, world = self._open
        if not ray.get(self._board.meet.remote(self._page, f"{group!r} {version}", "learner", world)):
            raise Fault("the broadcast was abandoned")

    def leave(self) -> None:
        self._open = None
        self._act("leave")

    def fall_back(self) -> None:
        self._off = True
        self._act("fall back")

    @ray.method(concurrency_group="beside")
    def abandon(self) -> None:
        if self._open is not None:
            ray.get(self._board.part.remote(self._page, self._open[0]))

    def _act(self, method: str, *details: str) -> None:
        ray.get(self._board.write.remote(self._page, "learner", method, *details))
        steps = self._script.get(method, [])
        step = steps.pop(0) if steps else ""
        if step == "fault":
            raise Fault(f"{method} broke")
        if step.startswith("gate:"):
            ray.get(self._board.gate.remote(self._page, step.removeprefix("gate:")))
