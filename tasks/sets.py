"""The user's questions by what they are for: trained on, held out for evaluation, held back for calibration.

    mode=train       data.questions, less what is held out of them, or is in data.eval_questions or data.dev_questions
    mode=eval        data.eval_questions, else all of data.questions but what is held back for calibration
    mode=calibrate   as in training; data.questions may be left out if data.dev_questions are given
    mode=ask, index  none

No question is on two sides: copies of a question stay together when a file is split, and what data.eval_questions or
data.dev_questions have is left out of data.questions, before shares of them are taken and some are held out. Texts are
compared by ``normalise_question`` (``agent/answers.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.answers import normalise_question
from agent.errors import UserError
from agent.paths import at_home
from agent.records import Question
from retrieval_service.textfile import stem
from tasks.config import DataConfig
from tasks.files import split_texts
from tasks.notices import Notice, left_out, some
from tasks.paths import files_of, set_names
from tasks.several import mixed, read_sets


@dataclass(frozen=True, kw_only=True, slots=True)
class Sets:
    """The questions of one run."""

    name: str
    """What the questions are called that the mode is about: those that are trained on, evaluated, or calibrated on."""
    held_out_name: str = ""
    """What those of ``eval`` are called; empty if as ``name`` says."""
    train: tuple[Question, ...] = ()
    eval: tuple[Question, ...] = ()
    held_back: tuple[Question, ...] = ()
    """What ``data.dev_share`` or ``data.dev_questions`` keep for development."""
    notices: tuple[Notice, ...] = ()


class _Reader:
    """Reads the files that ``config`` names, and collects what there is to say of them."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.notices: list[Notice] = []

    def read(self, key: str) -> tuple[Question, ...]:
        """The questions of ``data.<key>``."""
        return mixed(self.sets(key), [], self.seed)

    def sets(self, key: str) -> dict[str, tuple[Question, ...]]:
        """The questions of each file of ``data.<key>``, by what it is called."""
        return read_sets(
            self.value(key),
            key=f"data.{key}",
            evidence_match=self.config.evidence_match,
            strict=self.config.strict,
            notices=self.notices,
        )

    def shared(self, sets: dict[str, tuple[Question, ...]]) -> tuple[Question, ...]:
        """As many of the questions of ``sets``, the files of ``data.questions``, as go with their shares."""
        found = mixed(sets, self.config.shares, self.seed)
        if self.config.shares:
            self.notices.append(_shared(sets, found, self.config.shares))
        return found

    def split(self, questions: Sequence[Question], side: str) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
        """``questions`` of ``data.questions`` less ``data.<side>_share`` of them, and those."""
        where = f"data.questions={self.value('questions')}"
        share: float = getattr(self.config, f"{side}_share")
        left = " (after data.eval_share)" if side == "dev" and self.config.eval_questions is None else ""
        return split_texts(questions, share, self.seed, side, where + left)

    def value(self, key: str) -> str:
        return str(getattr(self.config, key))

    def name(self, key: str) -> str:
        """What the questions of ``data.<key>`` are called."""
        files = [at_home(file) for file in files_of(self.value(key), f"data.{key}")]
        return "+".join(set_names(files))

    def without(
        self, sets: Mapping[str, tuple[Question, ...]], key: str, others: Sequence[Question]
    ) -> dict[str, tuple[Question, ...]]:
        """``sets``, the files of ``data.questions``, less what ``others`` have, the questions of ``data.<key>``."""
        texts = {normalise_question(q.text) for q in others}
        found = [q for questions in sets.values() for q in questions]
        leaks = {q.id for q in found if normalise_question(q.text) in texts}
        where, there = f"data.questions={self.value('questions')}", f"data.{key}={self.value(key)}"
        left = {name: tuple(q for q in questions if q.id not in leaks) for name, questions in sets.items()}
        if not leaks:
            return left
        if len(leaks) == len(found):
            raise UserError(f"{where}: every question is also in {there}; none is left")
        if self.config.shares and (gone := [name for name, questions in left.items() if not questions]):
            raise UserError(f"{where}: every question of {gone[0]} is also in {there}; leave that file out")
        self.notices.append(
            left_out(
                f"{where}: {len(leaks)} of {len(found)} questions are also in {there} "
                f"({some([q.id for q in found if q.id in leaks])})",
                [(q.id, f"its text is also in {there}") for q in found if q.id in leaks],
                strict=self.config.strict,
            )
        )
        return left


def _shared(sets: Mapping[str, tuple[Question, ...]], found: Sequence[Question], shares: Sequence[float]) -> Notice:
    """What ``data.shares`` leaves out."""
    taken = {question.id for question in found}
    counts = ", ".join(f"{sum(q.id in taken for q in qs):,} of {len(qs):,} of {name}" for name, qs in sets.items())
    without = [(q.id, "beyond its set's share") for questions in sets.values() for q in questions if q.id not in taken]
    return Notice(kind="left_out", text=f"data.shares={list(shares)}: {counts}", items=tuple(without))


def sets(config: DataConfig, seed: int, mode: str) -> Sets:
    """The questions that ``mode`` needs of the user's files.

    ``data.split_seed``, else ``seed``, chooses what is held out.

    Raises ``UserError`` for files that are missing or wrong, and with ``data.strict`` for what would be left out.
    """
    seed = seed if config.split_seed is None else config.split_seed
    reader = _Reader(config, seed)
    if mode in ("ask", "index", "serve"):
        return Sets(name=stem(Path(config.corpus or "")))
    if mode == "eval":
        return _evaluated(reader)
    files = reader.sets("questions") if config.questions is not None else {}
    calibrated = not files or (mode == "calibrate" and config.dev_questions is not None)
    name, held_out_name = reader.name("dev_questions" if calibrated else "questions"), ""
    held_out: tuple[Question, ...] = ()
    held_back = reader.read("dev_questions") if config.dev_questions is not None else ()
    if config.eval_questions is not None:
        held_out, held_out_name = reader.read("eval_questions"), reader.name("eval_questions")
        files = reader.without(files, "eval_questions", held_out)
    if held_back:
        files = reader.without(files, "dev_questions", held_back)
    train = reader.shared(files) if files else ()
    if train and config.eval_questions is None:
        train, held_out = reader.split(train, "eval")
    if train and config.dev_share:
        train, held_back = reader.split(train, "dev")
    return Sets(
        name=name,
        held_out_name=held_out_name,
        train=train,
        eval=held_out,
        held_back=held_back,
        notices=tuple(reader.notices),
    )


def _evaluated(reader: _Reader) -> Sets:
    """All of the file that is given, less the calibration's questions, on which an early exit would look too good."""
    config = reader.config
    if config.eval_questions is not None:
        questions = reader.read("eval_questions")
        return Sets(name=reader.name("eval_questions"), eval=questions, notices=tuple(reader.notices))
    files = reader.sets("questions")
    if config.dev_questions is not None:
        files = reader.without(files, "dev_questions", reader.read("dev_questions"))
    questions = reader.shared(files)
    if config.dev_share:
        train = reader.split(questions, "eval")[0]  # as the run that trained did it
        held_back = {q.id for q in reader.split(train, "dev")[1]}
        questions = tuple(q for q in questions if q.id not in held_back)
        reader.notices.append(
            Notice(
                kind="left_out",
                text=f"data.dev_share={config.dev_share}: {len(held_back)} questions are for calibration, and left out",
                items=tuple((name, "held back for calibration") for name in held_back),
            )
        )
    return Sets(name=reader.name("questions"), eval=questions, notices=tuple(reader.notices))
