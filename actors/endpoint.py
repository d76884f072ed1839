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
        """What the newest episodes ended in, as long as all of them ended in a fault."""

    def evaluate(
        self,
        questions: Sequence[Question],
        played: Callable[[int, int], None] | None = None,
        *,
        step: int | None = None,
        chunk: int = CHUNK,
        keep: Callable[[list[EvalRow]], None] = lambda rows: None,
    ) -> list[EvalRow]:
        """See ``WorkerPool.evaluate``. Raises ``UserError`` for an endpoint that refuses everything, and ``Fault`` once
        ``PATIENCE`` episodes in a row have ended in a fault."""
        found: list[EvalRow] = []
        at = 0
        while at < len(questions):
            # As long as nothing has been answered a dead endpoint is to be seen soon; each chunk's end costs time.
            few = max(1, PATIENCE // self._config.evaluation.samples)
            asked = questions[at : at + (chunk if self._answered else min(chunk, few))]
            episodes = self._runner.run(self._chunk(asked))
            at += len(asked)
            if step is not None:
                self._log.write(step, episodes, Texts(CODEC.decode))
            rows = [row for _, _, row in episodes]
            keep(rows)
            found += rows
            if played is not None:
                played(at, len(questions))
            self._check_alive(rows)
        return found

    def _check_alive(self, rows: Sequence[EvalRow]) -> None:
        for row in rows:
            if not row.fault:
                self._in_a_row.clear()
            elif row.question_id not in self._failed:
                self._in_a_row.append(f"{row.stop_reason}: {row.error}")
        self._failed |= {row.question_id for row in rows if row.fault}
        if len(self._in_a_row) >= PATIENCE:
            raise Fault(
                f"the last {len(self._in_a_row)} episodes all ended in a fault: {commonest(self._in_a_row)}; "
                f"resume=if_any output_dir={self._run_dir} goes on"
            )

    async def _chunk(self, questions: Sequence[Question]) -> list[Played]:
        how = self._config.evaluation
        places = asyncio.Semaphore(how.endpoint.parallel)
        async with how.endpoint.client() as client:
            client.answered = self._answered
            asked = [(question, sample) for question in questions for sample in range(how.samples)]
            played = await asyncio.gather(*(self._episode(client, places, q, sample) for q, sample in asked))
        self._answered = client.answered
        return played

    async def _episode(self, client: Endpoint, places: asyncio.Semaphore, question: Question, sample: int) -> Played:
        config = self._config
        model = Teacher(client, self._stage.protocol, config.evaluation.endpoint, config.agent)
        async with places:
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

    Raises ``UserError`` for bad data or a bad index.
    """
    check_cache(config)
    fetch(config, console)
    with console.phase("reading the data"):
        task = load(config.data, config.seed, config.cache, mode="eval")
        asked = asked_of_endpoint(config, task, console.say)
        write_notices(run_dir, asked.notices)
    console.notices(asked.notices, run_dir)
    console.say(asked.about)
    service = RetrievalService(opener(task.corpus, config.retrieval, config.cache), config.retrieval)
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
            yield Served(task=task, asked=asked, workers=players, weights="", index=lambda: service.identity)
        finally:
            runner.run(service.close())
