"""From settings to a task: questions to train on and to evaluate, and the corpus to search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agent.answers import normalise_question
from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.paths import at_home
from agent.protocol import TagProtocol
from agent.records import Question
from retrieval_service.corpus import read_corpus, write_corpus
from retrieval_service.documents.folder import documents_corpus
from retrieval_service.download import Show, hidden
from tasks.characters import Characters
from tasks.config import NO_DEVELOPMENT, DataConfig
from tasks.demonstrations import Demonstration, encode
from tasks.experts import choose, read_experts, world_experts
from tasks.named import fetched
from tasks.notices import Notice
from tasks.novice import demonstrations
from tasks.sets import sets
from tasks.world import World

TEXT_SAMPLE = 2000
"""Demonstrations of the world, or passages of a corpus times ten, that a tokenizer is trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is learned. Holds no open files, and pickles."""

    name: str
    """What the questions are called that the mode is about (``tasks/sets.py``)."""
    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    """Held-out questions; in the world they share no entity with ``train``."""
    corpus: Path | None
    """File of passages, as ``retrieval_service.corpus`` reads it; None where an index or a server has them."""
    config: DataConfig
    held_out_name: str = ""
    """What the questions of ``eval`` are called; empty if as ``name`` says."""
    held_back: tuple[Question, ...] = ()
    """What ``data.dev_share`` or ``data.dev_questions`` keep for development."""
    notices: tuple[Notice, ...] = ()
    """What there is to say of the files."""

    def demonstrations(self, protocol: TagProtocol, top_k: int) -> tuple[Demonstration, ...]:
        """What a supervised warm start imitates: the world's lazy novice (``top_k`` passages a search), or the
        trajectories of ``data.experts``. Made anew by each call, in seconds.

        Raises ``UserError`` for a source that has none, or a wrong file.
        """
        if self.config.source == "world":
            return demonstrations(
                self.config.world_seed, self.config.demonstrations, protocol, top_k, self.config.novice
            )
        return self._experts_of_file(protocol, "algorithm.warm_start.steps=0")

    def experts(self, protocol: TagProtocol, top_k: int, count: int, seed: int) -> tuple[Demonstration, ...]:
        """``count`` expert trajectories for expert seeding, one per question, chosen by ``seed``.

        In the world an exact expert plays training questions (``top_k`` passages a search); otherwise they are
        those of ``data.experts``. Raises ``UserError`` when there are fewer, or for a wrong file.
        """
        if self.config.source == "world":
            world = World(self.config.world_seed)
            return world_experts(world, self.train, count, seed, protocol, top_k)
        experts = {e.question.id: e for e in self._experts_of_file(protocol, "algorithm.seeding.steps=0")}
        first: dict[str, str] = {}  # a teacher's file has several of one question
        for question in choose([e.question for e in experts.values()], seed):
            first.setdefault(normalise_question(question.text), question.id)
        if len(first) < count:
            raise UserError(
                f"algorithm.seeding.experts={count}, but data.experts={self.config.experts} holds trajectories of "
                f"{len(first)} questions; lower it or add some"
            )
        return tuple(experts[name] for name in [*first.values()][:count])

    def development(self) -> tuple[Question, ...]:
        """Questions to calibrate on, none of them in ``eval``.

        In the world they are held-out ones too, about entities that training has not seen. Raises ``UserError`` where
        there are none, or one that is held out for evaluation.
        """
        config = self.config
        if config.source == "world":
            world, asked = World(config.world_seed), config.eval_questions_per_hop
            return world.dev_questions(
                config.dev_questions_per_hop, after=asked, evidence_match=self.config.evidence_match
            )
        if not self.held_back:
            raise UserError(NO_DEVELOPMENT)
        held_out = {normalise_question(q.text) for q in self.eval}
        for question in self.held_back:
            if normalise_question(question.text) in held_out:
                raise UserError(
                    f"data.dev_questions={config.dev_questions}: question '{question.id}' is held out for evaluation; "
                    "leave it out, or set data.eval_questions=FILE with other questions"
                )
        return self.held_back

    def _experts_of_file(self, protocol: TagProtocol, without: str) -> tuple[Demonstration, ...]:
        """Raises ``UserError`` without a file (``without`` is a way out), or for a question that is held out."""
        if self.config.experts is None:
            raise UserError(
                f"data.source={self.config.source} brings no expert trajectories; set {without} or data.experts=FILE"
            )
        return self.file_of_experts(protocol)[0]

    def file_of_experts(self, protocol: TagProtocol) -> tuple[tuple[Demonstration, ...], list[Notice]]:
        """All that ``data.experts`` holds, and what there is to say of it. Raises ``UserError`` for a wrong file."""
        path = at_home(self.config.experts or "")
        notices: list[Notice] = []
        experts = read_experts(
            path,
            protocol,
            key="data.experts",
            evidence_match=self.config.evidence_match,
            strict=self.config.strict,
            notices=notices,
        )
        for what, side, way_out in (
            ("held out for evaluation", self.eval, ", or set data.eval_questions=FILE with other questions"),
            ("kept for calibration", self.held_back, ""),
        ):
            kept = {normalise_question(q.text) for q in side}
            if name := next((e.question.id for e in experts if normalise_question(e.question.text) in kept), None):
                raise UserError(
                    f"data.experts={path}: the question of '{name}' is {what}; leave that trajectory out{way_out}"
                )
        return experts, notices

    def tokenizer_text(self, protocol: TagProtocol, top_k: int) -> Iterator[str]:
        """Texts to train a tokenizer on, as the policy will see them, tags included.

        In the world they don't depend on its seed: one tokenizer serves every world.
        """
        codec = Characters()
        agent = AgentConfig(protocol=protocol.name, prompt="plain", chat=False)
        dialogue = Dialogue.of(codec, agent)
        if self.config.source == "world":
            for demonstration in demonstrations(0, TEXT_SAMPLE, protocol, top_k):
                yield codec.decode(encode(demonstration, dialogue, end_ids=codec.encode("\n"))[0].tolist())
            return
        for question in self.train:
            yield codec.decode(dialogue.prompt_ids(question.text))
        if self.corpus is None:
            raise UserError(
                "a model that is made from scratch needs texts to make its tokenizer of: set data.corpus=FILE"
            )
        for passage in islice(read_corpus(self.corpus), 10 * TEXT_SAMPLE):
            yield codec.decode(dialogue.observation_ids([passage]))


def load(
    config: DataConfig,
    seed: int,
    cache: Path,
    *,
    mode: str = "train",
    say: Callable[[str], None] = lambda text: None,
    show: Show = hidden,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> Task:
    """The task that ``config`` describes. The world's corpus, and what is fetched, is kept below the folder ``cache``.

    ``seed`` chooses what is held out of the user's questions; the world has a seed of its own, so that
    runs with different seeds answer the same questions. ``mode`` says which of the user's files are needed
    (``tasks/sets.py``), ``say`` is told of what is fetched of them, and ``show`` shows it; ``count`` is told how many
    of a folder's documents are read. Raises ``UserError`` for files that are missing or wrong.
    """
    if config.source == "world":
        return _world_task(config, cache)
    config = fetched(config, cache, mode, say, show)
    found = sets(config, seed, mode)  # before a folder of documents, which may take hours
    corpus = _corpus(config, cache, say, count)
    return Task(
        name=found.name,
        held_out_name=found.held_out_name,
        train=found.train,
        eval=found.eval,
        corpus=corpus,
        config=config,
        held_back=found.held_back,
        notices=found.notices,
    )


def _corpus(
    config: DataConfig, cache: Path, say: Callable[[str], None], count: Callable[[int, int], None]
) -> Path | None:
    """The file of passages that ``data.corpus`` names, or that is made of the folder that it names."""
    if not config.corpus:
        return None
    path = at_home(config.corpus)
    if path.is_dir():
        return documents_corpus(path, cache, config.passage_words, config.overlap_words, say, count)
    if not path.is_file():
        raise UserError(
            f"data.corpus={path}: no such file; name one of passages (id, contents), or a folder of documents"
        )
    return path


def _world_task(config: DataConfig, cache: Path) -> Task:
    world, match = World(config.world_seed), config.evidence_match
    corpus = cache / "corpora" / f"world-{config.world_seed}.jsonl"
    # Always written, so that a file from an older version of the world is never taken for this one.
    write_corpus(corpus, world.passages)
    return Task(
        name="world",
        train=world.train_questions(config.train_questions, hop_shares=config.hop_shares, evidence_match=match),
        eval=world.eval_questions(config.eval_questions_per_hop, evidence_match=match),
        corpus=corpus,
        config=config,
    )
