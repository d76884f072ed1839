"""``mode=eval`` of a model behind an OpenAI-compatible endpoint: its episodes over the same index, without Ray.

The loop, the tools and the result blocks are those of every episode; the model writes in tags and sees messages
(``tasks/making/teacher.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from actors.fetching import fetch
from actors.inference import Served
from actors.plan.machine import check_cache
from actors.questions import asked_of_endpoint
from actors.replay import CHUNK
from actors.stopping import at_once, run_until_told
from agent.errors import Fault, commonest
from agent.inference.evaluation import EvalRow, eval_row, retrieved
from agent.inference.infer import Inferred
from agent.records import Question
from agent.seeds import derive_seed
from conf.schema import RunConfig
from retrieval_service.rankers import opener
from retrieval_service.service import RetrievalService
from tasks.load import load
from tasks.making.endpoint import Endpoint
from tasks.making.episodes import CODEC, Stage
from tasks.making.teacher import PATIENCE, Teacher
from tasks.notices import write_notices
from tracking.console import Console
from tracking.evals.rows import EvalRows
from tracking.trajectories import EVALUATIONS, EvaluationLog, Texts

Played = tuple[Question, Inferred, EvalRow]


class EndpointPlayers:
    """Plays questions with the model of ``config.evaluation.endpoint``, several at a time.

    ``runner`` has the loop that ``stage`` searches in.
    """

    def __init__(self, config: RunConfig, run_dir: Path, stage: Stage, runner: asyncio.Runner) -> None:
        self._config = config
        self._run_dir = run_dir
        self._log = EvaluationLog(path=run_dir / EVALUATIONS)
        self._stage = stage
        self._runner = runner
        played = EvalRows(run_dir).last()
        self._answered = sum(not row.fault for row in played)
        """Completions so far, of a start before this one as well: more than 0 is all that counts."""
        self._failed = {row.question_id for row in played if row.fault}
        """Questions that a fault has ended before. That they fail again tells nothing of the endpoint."""
        self._in_a_row: list[str] = []
        """What the newest questions ended in, as long as all of their episodes ended in a fault."""

    def evaluate(
        self,
        questions: Sequence[Question],
        played: Callable[[int, int], None] | None = None,
        *,
        step: int | None = None,
        chunk: int = CHUNK,
        keep: Callable[[list[EvalRow]], None] = lambda rows: None,
    ) -> list[EvalRow]:
        """See ``WorkerPool.evaluate``; rows are kept as their questions end: whatever ends this process, what is paid
        for is there. Raises ``UserError`` for an endpoint that refuses everything, and ``Fault`` once nothing but
        faults has come of ``PATIENCE`` questions in a row."""
        found: dict[int, list[EvalRow]] = {}
        texts, checked = Texts(CODEC.decode), 0

        def ended(number: int, episodes: Sequence[Played]) -> None:
            nonlocal checked
            found[number] = [row for _, _, row in episodes]
            if step is not None:
                self._log.write(step, episodes, texts)
            keep(found[number])
            if played is not None:
                played(len(found), len(questions))
            while checked in found:  # in their order: a refusal takes no time, and would come before all answers
                checked += 1
                self._check_alive(found[checked - 1])

        run_until_told(self._runner, self._play(questions, ended))
        return [row for number in range(len(questions)) for row in found[number]]

    def _check_alive(self, rows: Sequence[EvalRow]) -> None:
        faults = [f"{row.stop_reason}: {row.error}" for row in rows if row.fault]
        if len(faults) < len(rows):
            self._in_a_row.clear()
        elif rows[0].question_id not in self._failed:
            self._in_a_row.append(faults[0])
        self._failed |= {row.question_id for row in rows if row.fault}
        if len(self._in_a_row) >= PATIENCE:
            raise Fault(
                f"nothing but faults came of the last {len(self._in_a_row)} questions: {commonest(self._in_a_row)}; "
                f"resume=if_any output_dir={self._run_dir} goes on"
            )

    async def _play(self, questions: Sequence[Question], ended: Callable[[int, Sequence[Played]], None]) -> None:
        """Plays all episodes, ``parallel`` at a time; ``ended`` is told of a question, by its number, once all of its
        own have ended."""
        how = self._config.evaluation
        asked = iter([(number, sample) for number in range(len(questions)) for sample in range(how.samples)])
        open_ones: dict[int, dict[int, Played]] = {}

        async def player(client: Endpoint) -> None:
            for number, sample in asked:
                own = open_ones.setdefault(number, {})
                own[sample] = await self._episode(client, questions[number], sample)
                if len(own) == how.samples:
                    ended(number, [own[k] for k in range(how.samples)])
                    del open_ones[number]

        async with how.endpoint.client() as client:
            client.answered = self._answered
            most = min(how.endpoint.parallel, len(questions) * how.samples)
            players = [asyncio.create_task(player(client)) for _ in range(most)]
            try:
                await asyncio.gather(*players)
            finally:
                for task in players:
                    task.cancel()
                await asyncio.gather(*players, return_exceptions=True)
                self._answered = client.answered

    async def _episode(self, client: Endpoint, question: Question, sample: int) -> Played:
        config = self._config
        model = Teacher(client, self._stage.protocol, config.evaluation.endpoint, config.agent)
        trajectory = await self._stage.play(
            question,
            model,
            seed=derive_seed(config.seed, question.id, sample),
            temperature=config.evaluation.temperature,
        )
        inferred = Inferred(trajectory=trajectory)
        row = eval_row(question, inferred, retrieved(CODEC.decode, inferred))
        return question, inferred, replace(row, sample=sample, action_tokens=model.tokens)


@contextmanager
def behind_endpoint(config: RunConfig, run_dir: Path, console: Console) -> Iterator[Served[EndpointPlayers]]:
    """The data, and the model that plays it. What there is to say of the questions goes to ``console``.

    Raises ``UserError`` for bad data or a bad index, and ``Stopped`` for a signal that has ended it.
    """
    with at_once(), _behind(config, run_dir, console) as served:
        yield served


@contextmanager
def _behind(config: RunConfig, run_dir: Path, console: Console) -> Iterator[Served[EndpointPlayers]]:
    check_cache(config)
    fetch(config, console)
    with console.phase("reading the data") as phase:
        count = phase.counting("documents")
        task = load(config.data, config.seed, config.cache, mode="eval", say=console.say, count=count)
        asked = asked_of_endpoint(config, task, console.say)
        write_notices(run_dir, asked.notices)
    console.notices(asked.notices, run_dir)
    console.say(asked.about)
    service = RetrievalService(
        opener(task.corpus, config.retrieval, config.cache, top_k=config.agent.top_k), config.retrieval
    )
    stage = Stage(config.agent, service, prompt=config.agent.prompt)
    limits = config.agent  # of the turns, which the endpoint is told; nobody here can count an episode's tokens
    config.agent = replace(
        stage.agent, max_new_tokens_first=limits.max_new_tokens_first, max_new_tokens=limits.max_new_tokens
    )
    with asyncio.Runner() as runner:
        with console.phase("the retrieval index opens"):
            runner.run(service.start())
        try:
            players = EndpointPlayers(config, run_dir, stage, runner)
            yield Served(
                task=task, asked=asked, workers=players, weights="", index=lambda: service.identity, ending=None
            )
        finally:
            runner.run(service.close())
