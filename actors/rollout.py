"""The rollout worker: a vLLM engine, and as many episodes in flight as it is given groups.

Consumes tickets of the pool; produces scored groups. It waits for a claim and for nothing else: a
search in one episode leaves the engine busy with the others.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from actors.engine import Engine
from actors.engine_thread import Counters
from actors.leases import Leases, Paced, PacedSearcher, left_behind
from actors.payloads import packed
from actors.placement import nearest
from actors.process import log_to
from actors.pulse import HEALTH, Beats, Pulse, during
from actors.searcher import RemoteSearcher
from actors.timed import TimedGenerator, TimedSearcher
from actors.weights import CHANNELS, NcclChannel, Published
from agent.config import AgentConfig, GroupConfig, RewardConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.errors import Fault, Final, Unusable, UserError, shortened
from agent.group import Player
from agent.inference.evaluation import EvalRow, evaluate
from agent.inference.infer import Inference, Inferred, infer
from agent.records import Question
from agent.rewards.scorer import Scorer
from agent.strategies import STRATEGIES, Strategy
from agent.tickets import Ticket
from agent.tokens import Tokenizer
from conf.topology import EngineConfig
from tracking.dispensable import Dispensable
from tracking.spans import SPANS, Spans, Stretches
from tracking.trajectories import EVALUATIONS, EvaluationLog, Texts

SHOWN_S = 0.02
"""The shortest wait for a claim, and stretch of generating or searching, in the timeline."""
_GONE = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
"""Who asks another actor, or for what it has put into the object store, and that actor is no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """What a worker is made from."""

    model_path: str
    dtype: str
    device: str
    colocated: bool
    """The engine can sleep."""
    transfers: bool
    """Weights may come by broadcast."""
    in_flight_updates: bool
    """New weights in mid-episode."""
    weight_bucket: int
    """Bytes."""
    weight_timeout_s: float
    engine: EngineConfig
    agent: AgentConfig
    reward: RewardConfig
    inference: Inference
    """How evaluations and questions are played."""
    run_dir: Path
    group_size: int
    groups_in_flight: int
    lease_s: float
    retrieval_timeout_s: float
    seed: int


@ray.remote(concurrency_groups={HEALTH: 4})  # type: ignore[call-overload]  # its stubs don't know it
class RolloutWorker:
    """Plays groups with the newest policy that it was given. Serves nothing before the first one."""

    def __init__(self, name: str, settings: WorkerSettings, log_dir: Path, retrieval: dict[str, Any]) -> None:
        log_to(log_dir, name)
        self._name = name
        self._settings = settings
        self._retrieval = retrieval
        self._beats = Beats()
        self._extras = Dispensable(print)
        self._spans = Spans(path=settings.run_dir / SPANS, actor=name, extras=self._extras)
        self._open = asyncio.Event()
        """Clear while new weights wait for the groups in flight."""
        self._open.set()
        self._leases: Leases | None = None
        """Of the ``run`` that is under way."""
        self._at_play = 0
        self._alone = asyncio.Condition()

    @ray.method(concurrency_group=HEALTH)
    async def ping(self) -> Pulse:
        """See ``actors/health.py``. An engine gets on by its steps, an evaluation by these and by answered searches."""
        steps: int | None = self._engine.progress if hasattr(self, "_engine") else None
        evaluating = steps if self._beats.under_way("evaluate") else None
        return self._beats.pulse({"generate": steps, "evaluate": evaluating})

    @during("start")
    async def start(self) -> bool:
        """Brings the engine up, which takes a while; it still has no weights then.

        Raises ``UserError`` if a tool can't be made, or the installed vLLM is for another device, and ``Fault`` if it
        can't start.
        """
        settings, agent = self._settings, self._settings.agent
        self._dialogue = Dialogue.of(Tokenizer(settings.model_path), agent)
        near, spare = nearest(self._retrieval, ray.get_runtime_context().get_node_id())
        searcher = RemoteSearcher(near, spare, timeout_s=settings.retrieval_timeout_s)
        generating, searching = (
            Stretches(replace(self._spans, actor=f"{self._name} {row}"), what, SHOWN_S)
            for row, what in (("engine", "generate"), ("searches", "search"))
        )
        # Before the engine, which takes a minute: a tool of the user's own may not be fit to be made. And in a thread,
        # which leaves this actor answering: what it is made of may take as long.
        self._searcher = PacedSearcher(TimedSearcher(searcher, searching), lambda: self._beats.did("evaluate"))
        environment = await asyncio.to_thread(Environment.of, agent, self._searcher)
        try:
            self._engine = await asyncio.to_thread(
                Engine,
                settings.model_path,
                settings.engine,
                device=settings.device,
                dtype=settings.dtype,
                max_model_len=agent.longest_episode,
                seed=settings.seed % 2**31,
                sleeps=settings.colocated,
                transfers=settings.transfers,
            )
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()  # vLLM's own errors are pages long, and some can't leave this process
            raise Fault(f"vLLM can't start: {type(error).__name__}: {shortened(error)}") from None
        self._player = Player(
            dialogue=self._dialogue,
            config=agent,
            generator=TimedGenerator(self._engine, generating),
            environment=environment,
            scorer=await asyncio.to_thread(Scorer, settings.reward, self._dialogue.protocol),  # imports the user's own
        )
        return True

    async def receive(self, published: Published) -> int | None:
        """Loads a published version, or a later one; returns the version that the engine then holds.

        None if it can't be had, since its learner is gone: the engine keeps what it has.
        """
        try:
            if published.channel == "nccl":  # a broadcast has all engines or none; this one is alone
                # In no phase of ours: the learner, which has deadlines of its own, gives it once its update has ended.
                published = await NcclChannel().copy(published)
            with self._beats.phase("publish"):
                tensors = await CHANNELS[published.channel]().receive(published)
        except _GONE as error:
            print(f"no weights of version {published.version}: {type(error).__name__}", flush=True)
            return None
        async with self._between_groups():  # as long as they take, where weights don't change within a group
            with self._beats.phase("publish"), self._spans.span("take weights"):
                await self._engine.load_weights(tensors, published.version)
        return published.version

    async def hold(self) -> None:
        """Stops the engine with its requests, for the weights that ``transfer`` or ``receive`` brings next.

        Without updates in flight no group is begun before these: it would wait for the engine, and ``receive`` for it.
        """
        await self._end_groups()
        await self._engine.hold()

    async def join(self, group: bytes, rank: int, world: int) -> None:
        """Becomes ``rank`` of a broadcast's group of ``world``."""
        settings = self._settings
        await self._engine.join(group, rank, world, bucket=settings.weight_bucket, timeout_s=settings.weight_timeout_s)

    @during("publish")
    async def transfer(self, published: Published) -> int:
        """Takes a version from the broadcast that the learner sends meanwhile; returns it."""
        try:
            with self._spans.span("take weights"):
                await self._engine.transfer(published)
        finally:
            self._open.set()
        return published.version

    async def abandon(self) -> None:
        """Ends a broadcast that others have left."""
        await self._engine.abandon()

    @during("sleep")
    async def sleep(self) -> None:
        """The engine leaves its card. Nothing may be playing but groups whose claims are gone, which end here."""
        await self._give_up_lost()
        await self._engine.sleep()

    @during("wake")
    async def wake(self) -> None:
        """The engine comes back, with the weights that it had."""
        await self._engine.wake()

    async def run(self, pool: Any, group: GroupConfig) -> int | None:
        """Claims from ``pool`` and plays by the strategy of ``group`` until the pool closes; returns the number of
        groups it played, and None if the pool is gone or out of reach: then nobody would take what is in flight.

        Raises what a group raised: the supervisor then replaces this worker. ``Final`` if the pool can't draw.
        """
        strategy = STRATEGIES[group.strategy]
        leases = self._leases = Leases(pool, self._name, self._settings.lease_s)
        playing: set[asyncio.Task[None]] = set()
        keeping = asyncio.ensure_future(leases.keep())
        serving = asyncio.ensure_future(self._serve(pool, strategy, leases, playing))
        try:
            # With groups that hang in all places nothing is claimed: then the leases alone tell that the pool is gone.
            done, _ = await asyncio.wait({keeping, serving}, return_when=asyncio.FIRST_COMPLETED)
            return await (serving if serving in done else keeping)
        except ray.exceptions.RayActorError as error:
            print(f"the pool is gone or out of reach: {type(error).__name__}", flush=True)
            return None
        finally:
            self._leases = None
            leases.end()
            for task in (keeping, serving, *playing):
                task.cancel()

    async def _serve(self, pool: Any, strategy: Strategy, leases: Leases, playing: set[asyncio.Task[None]]) -> int:
        """``run``, which is left what is ``playing`` when something breaks."""
        await pool.begin.remote(self._name)
        played = 0
        while True:
            room = self._settings.groups_in_flight - len(playing)
            if room > 0:
                claim = asyncio.ensure_future(self._claim(pool, room))
                done, _ = await asyncio.wait({claim, *playing}, return_when=asyncio.FIRST_COMPLETED)
                while claim not in done:
                    # A claim waits at the pool; groups that end meanwhile must not be left unwatched.
                    self._reap(playing, leases)
                    done, _ = await asyncio.wait({claim, *playing}, return_when=asyncio.FIRST_COMPLETED)
                if not claim.result():
                    break
                for ticket, question in claim.result():
                    task = asyncio.ensure_future(self._play(pool, strategy, ticket, question, leases))
                    leases.claimed(ticket, question.id, task)
                    playing.add(task)
                    played += 1
            elif playing:
                await asyncio.wait(playing, return_when=asyncio.FIRST_COMPLETED)
            self._reap(playing, leases)
        while playing:
            await asyncio.wait(playing, return_when=asyncio.FIRST_COMPLETED)
            self._reap(playing, leases)
        return played

    @during("evaluate")
    async def evaluate(self, questions: Sequence[Question], step: int | None) -> list[EvalRow]:
        """The episodes of ``questions``, which are logged as those of ``step`` unless that is None.

        See ``agent.inference.evaluation``.
        """
        with self._spans.span("evaluate"):
            played = await evaluate(self._player, questions, inference=self._settings.inference)
        if step is not None:
            log = EvaluationLog(path=self._settings.run_dir / EVALUATIONS)
            texts = Texts(self._dialogue.codec.decode)
            samples = self._settings.inference.samples
            rows = [(questions[at // samples], inferred, row) for at, (inferred, row) in enumerate(played)]
            self._extras.attempt(log.path.name, lambda: log.write(step, rows, texts))
        return [row for _, row in played]

    async def ask(self, question: Question) -> tuple[Inferred, list[str]]:
        """One episode, and the text of each turn's observation."""
        inferred = await infer(self._player, question, self._settings.inference)
        ids, decode = inferred.trajectory.token_ids, self._dialogue.codec.decode
        observations = [decode(ids[t.action_end : t.observation_end].tolist()) for t in inferred.trajectory.turns]
        return inferred, observations

    async def stats(self) -> Counters:
        return self._engine.stats

    async def _claim(self, pool: Any, limit: int) -> list[tuple[Ticket, Question]]:
        try:
            with self._spans.span("claim", SHOWN_S):
                claimed: list[tuple[Ticket, Question]] = await pool.claim.remote(self._name, limit)
        except ray.exceptions.RayTaskError as error:  # a rule of the user's own, say: any other worker would get that
            cause = error.cause
            why = str(cause) if isinstance(cause, Fault) else f"{type(cause).__name__}: {shortened(cause)}"
            raise Final(f"the pool can't draw a question: {why}") from error
        for ticket, question in claimed:
            if not isinstance(ticket, Ticket) or not isinstance(question, Question):
                raise Unusable("pool", f"a claim is of {type(ticket).__name__} and {type(question).__name__}")
        return claimed

    async def _play(self, pool: Any, strategy: Strategy, ticket: Ticket, question: Question, leases: Leases) -> None:
        await self._open.wait()
        self._at_play += 1
        steps, answered = lambda: self._engine.stats.steps, lambda: self._searcher.answered
        paced = Paced(self._player.generator, steps, answered)
        player = replace(self._player, generator=paced)
        try:
            with self._spans.span("play a group"), leases.playing(ticket, paced):
                group = await left_behind(
                    strategy(player, question, ticket, size=self._settings.group_size, worker=self._name)
                )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Its claim would be drawn again a lease later, and end so again.
            raise Fault(f"the group of question {question.id} was cancelled by its own code") from None
        finally:
            async with self._alone:
                self._at_play -= 1
                self._alone.notify_all()
        if group.excluded and (why := self._engine.dead):
            # What the engine still held is gone: the long episodes. And the question may be what it died of.
            raise Fault(f"the engine is dead: {why}")
        await pool.submit.remote(group.outcome(), packed(group))

    async def _give_up_lost(self) -> None:
        """Ends the groups whose claims are gone, without waiting for the next renewal."""
        if self._leases is not None:
            with suppress(ray.exceptions.RayActorError):  # then ``run`` ends with all that plays
                await self._leases.renew()

    async def _end_groups(self) -> None:
        """Without updates in flight: no group is begun until ``_open`` is set, and all that play have ended."""
        if self._settings.in_flight_updates:
            return
        self._open.clear()
        await self._give_up_lost()
        async with self._alone:
            await self._alone.wait_for(lambda: self._at_play == 0)

    @asynccontextmanager
    async def _between_groups(self) -> AsyncIterator[None]:
        """So it is in the body."""
        try:
            await self._end_groups()
            yield
        finally:
            self._open.set()

    @staticmethod
    def _reap(playing: set[asyncio.Task[None]], leases: Leases) -> None:
        """Takes out the groups that have ended. Raises what one has raised, unless it was given up."""
        for task in [*playing]:
            if task.done():
                playing.discard(task)
                if not leases.gave_up(task):
                    task.result()
                elif not task.cancelled():
                    task.exception()  # asyncio would log one that nobody has read
