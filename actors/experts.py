"""Expert trajectories of a run's own: made with its index, its agent and its tokenizer (``tasks/making``)."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from actors.stopping import told
from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.errors import Fault, Stopped, UserError
from agent.records import Question
from agent.tokens import Tokenizer
from agent.tools.base import Searcher
from conf.schema import RunConfig
from learner.digests import file_digest
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import read_corpus
from retrieval_service.names import searched_names
from retrieval_service.rankers import opener
from retrieval_service.service import RetrievalService
from tasks.demonstrations import Demonstration, as_trajectory, control_tokens, end_ids
from tasks.experts import check_fits
from tasks.load import Task
from tasks.making.config import ExpertsConfig
from tasks.making.made import FILE, REPORT, Expert, Made, whole
from tasks.making.make import Library, make

Report = Callable[[int, int], None]
"""Is told of the questions that are done, and of how many there are."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made; pickles."""

    questions: tuple[Question, ...]
    corpus: Path | None
    cache: Path
    agent: AgentConfig
    retrieval: RetrievalConfig
    experts: ExpertsConfig
    seed: int
    model: Path | None
    """The folder of the model whose tokenizer measures them; None measures nothing."""

    @classmethod
    def of(cls, config: RunConfig, task: Task, model: Path | None) -> Order:
        """The training questions of ``task``."""
        return cls(
            questions=task.train,
            corpus=task.corpus,
            cache=config.cache,
            agent=config.agent,
            retrieval=config.retrieval,
            experts=config.experts,
            seed=config.seed,
            model=model,
        )

    def name(self, data: Mapping[str, str]) -> str:
        """Equal for orders of the same. ``data`` are digests of the texts: the questions, the corpus and the prompt."""
        files = sorted(self.model.iterdir()) if self.model is not None else []
        told = {
            "data": dict(data),
            "agent": asdict(self.agent),
            "retrieval": asdict(self.retrieval),
            "experts": asdict(self.experts),
            "seed": self.seed,
            "tokenizer": [file_digest(file) for file in files if file.suffix in (".json", ".jinja")],
        }
        return json.dumps(told, sort_keys=True)


def made_here(order: Order, report: Report, *, keep: Callable[[Expert], None] = lambda expert: None) -> Made:
    """Makes them in this process, which has a JVM from then on. A signal ends the making, and what there is by then is
    returned; ``keep`` is that of ``make``.

    Raises ``UserError`` for a wrong corpus, index or endpoint, ``Fault`` if Lucene fails, and ``Stopped`` for a signal
    that came before anything could be made.
    """
    return asyncio.run(_made(order, report, again=True, keep=keep))


def made_apart(order: Order, report: Report) -> Made:
    """``made_here`` in a process of its own, whose JVM ends with it. Raises what that raises."""
    came: list[signal.Signals] = []
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(order, theirs), name="experts", daemon=True)
    process.start()
    theirs.close()

    def stop(number: signal.Signals) -> None:
        came.append(number)
        process.terminate()  # it hands over what it has made

    try:
        with told(stop):
            made = _received(ours, report)
        made.stopped = came[0] if came else made.stopped
        return made
    except (EOFError, OSError):  # OSError: within a message
        process.join()
        if came:
            raise Stopped(came[0]) from None
        raise Fault(f"the process that makes the expert trajectories ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        ours.close()


def _received(ours: Connection, report: Report) -> Made:
    """What the child has made. Raises what it has raised, and ``EOFError`` if it is gone."""
    while True:
        kind, said = ours.recv()
        if kind == "made":
            assert isinstance(said, Made)
            return said
        if kind == "raised":
            raise said
        report(*said)


def _child(order: Order, out: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the parent, which ends this process by SIGTERM
    making = _made(
        order, lambda done, total: out.send(("done", (done, total))), lambda made: out.send(("made", made)), again=False
    )
    try:
        asyncio.run(making)
    except (UserError, Fault, OSError) as error:
        out.send(("raised", error))


async def _made(
    order: Order,
    report: Report,
    hand_over: Callable[[Made], None] = lambda made: None,
    *,
    again: bool,
    keep: Callable[[Expert], None] = lambda expert: None,
) -> Made:
    """See ``made_here``; ``hand_over`` is called with what was made while a signal still ends nothing, and ``again`` is
    that of ``actors.stopping.told``."""
    wanted = {name for question in order.questions for name in question.supporting}
    by_id = any(question.evidence_match == "id" for question in order.questions)
    names = searched_names(order.corpus, order.retrieval, order.cache)
    there = None if names is None else names.known(wanted, "id" if by_id else "title")
    titles: dict[str, str] = {}
    if by_id and order.corpus is not None:
        titles = {p.id: p.title for p in read_corpus(order.corpus) if p.id in wanted}
    service = RetrievalService(
        opener(order.corpus, order.retrieval, order.cache, top_k=order.agent.top_k), order.retrieval
    )
    await service.start()
    going = _making(order, service, there, titles, report, keep)
    making, came = asyncio.ensure_future(going), list[signal.Signals]()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        came.append(number)
        loop.call_soon_threadsafe(making.cancel)  # nothing once it is done

    with told(stop, again=again):
        try:
            made = await making
        except asyncio.CancelledError:
            if came:
                raise Stopped(came[0]) from None
            raise
        finally:
            await service.close()
        made.stopped = came[0] if came else None
        hand_over(made)
        return made


async def _making(
    order: Order,
    searcher: Searcher,
    there: Collection[str] | None,
    titles: Mapping[str, str],
    report: Report,
    keep: Callable[[Expert], None],
) -> Made:
    fits = _measure(order.model, order.agent)
    library = Library(searcher=searcher, agent=order.agent, there=there, titles=titles, fits=fits)
    return await make(order.questions, library, order.experts, order.seed, report, keep)


def _measure(model: Path | None, agent: AgentConfig) -> Callable[[Demonstration], bool]:
    """Whether the policy could play an expert, written with the model's tokenizer: see ``check_fits``."""
    if model is None:
        return lambda demonstration: True
    tokenizer = Tokenizer(model)
    dialogue = Dialogue.of(tokenizer, agent)
    ends, control = end_ids(dialogue, tokenizer), control_tokens(dialogue, tokenizer)

    def fits(demonstration: Demonstration) -> bool:
        with suppress(UserError):
            check_fits(as_trajectory(demonstration, dialogue, end_ids=ends), agent, control)
            return True
        return False

    return fits


def write(made: Made, folder: Path, settings: str = "") -> Path:
    """The file of what was made, its report beside it; ``settings`` are those of ``Made.write``.

    Raises ``UserError`` where nothing could be made, ``Fault`` where the making broke off or all of it was faults, and
    ``Stopped`` where a signal has come; what was made before is written all the same.
    """
    file = made.write(folder, settings)
    if made.stopped is not None:
        raise Stopped(made.stopped, f"; {len(made.experts)} expert trajectories are in {file}")
    if made.broken:
        raise Fault(f"making expert trajectories ended early: {made.broken}; {len(made.experts)} are in {file}")
    if made.experts:
        return file
    lines = [line for line in made.lines() if "gave none" in line or "faults" in line]
    if made.faults:
        raise Fault(f"no expert trajectory could be made: {'; '.join(lines)}")
    raise UserError(f"no expert trajectory could be made of the {made.offered} training questions: {'; '.join(lines)}")


def own_experts(
    config: RunConfig,
    task: Task,
    run_dir: Path,
    model: Path | None,
    resumed: Path | None,
    data: Mapping[str, str],
    report: Report,
) -> tuple[Path, list[str]]:
    """The file for ``data.experts=auto``, and what there is to say of it. A run that goes on keeps its experts:
    ``resumed`` is the checkpoint that it goes on from. So does one that is started again in its folder before it had
    any, with the same settings and the same ``data`` (digests, as in ``Provenance``)."""
    file = run_dir / FILE
    if resumed is not None and (before := resumed.parent.parent / FILE).is_file():
        if before.resolve() != file.resolve():
            shutil.copy(before, file)
            with suppress(FileNotFoundError):
                shutil.copy(before.with_name(REPORT), run_dir / REPORT)
        return file, [f"expert trajectories: those of {before}"]
    order = Order.of(config, task, model)
    settings = order.name(data)
    if whole(run_dir, settings):
        return file, [f"expert trajectories: those of {file}, made with the same settings"]
    made = made_apart(order, report)
    return write(made, run_dir, settings), list(made.lines())
