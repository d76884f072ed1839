"""The user's questions, in our own layout and in those that the field's data sets are published in.

HotpotQA, 2WikiMultihopQA, MuSiQue (official, on the hub, and as FlashRAG has them), Bamboogle, BamTwoogle, PopQA,
TriviaQA on the hub, AntiLeak-Bench, Search-R1, verl, David-GRPO, rLLM.

| field | taken from, first that is there |
| --- | --- |
| text | ``question``; ``extra_info.question`` (verl, rLLM's rows for it); what follows ``question below:`` or ``Question:`` in the ``prompt`` (David-GRPO's Parquet) |
| golden answers, a text, a whole number or a list of them, which may be JSON within a text | ``golden_answers``, ``answers``, ``answer``; an ``answer`` with ``value`` and ``aliases`` (TriviaQA); ``possible_answers``, a list in JSON within a text (PopQA); ``reward_model.ground_truth`` or its ``target`` (Search-R1, verl); ``ground_truth``, ``extra_info.ground_truth`` (rLLM); and beside any of them ``answer_aliases`` (MuSiQue) and ``answer 2`` (Bamboogle's table), and for ``answer_id`` (2Wiki) the names in the ``id_aliases.json`` beside the file |
| what several answers mean | ``answers_mean``: ``any`` of them is right (if nothing is said), or ``all`` are needed, and aliases aren't read |
| id | ``id``, ``_id``, after ``data_source`` if that is named (Search-R1 mixes sets that both count from train_0); the file's name and the line |
| supporting titles | ``supporting_titles``; ``supporting_facts`` (HotpotQA, 2Wiki); ``paragraphs`` with ``is_supporting`` (MuSiQue); ``question_decomposition`` with ``support_paragraph`` (FlashRAG); ``evidence_documents`` (David-GRPO) |
| supporting ids, with ``evidence_match="id"`` | ``supporting_ids``; ``evidence_documents`` |
| kind | ``type``; ``level`` (HotpotQA: where there is no type), after ``data_source`` |

Supporting documents, ``answer_aliases``, ``answers_mean``, ``type`` and ``level`` may stand in the row or in its
``metadata``. Rows with ``answerable: false`` (the full MuSiQue), and with more needed answers than can be compared as
one, are left out with a notice, and so is said what looks like one of these fields and isn't read. Everything that is wrong with a file is a ``UserError`` that names the file, the line and the fix.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.answers import normalise, normalise_question
from agent.errors import UserError
from agent.records import Question
from agent.seeds import derive_seed
from retrieval_service.textfile import stem
from tasks import supporting
from tasks.aliases import entity_of, with_aliases
from tasks.asked import question_in
from tasks.fields import anywhere, first, text, text_or_number, texts, true_or_false
from tasks.hops import of_earlier_hop
from tasks.notices import Notice, left_out, some
from tasks.rows import Row, rows
from tasks.tables import json_list
from tasks.together import MOST, mean_all, together
from tasks.unread import Unread, is_like_a_field

_POSSIBLE = "possible_answers"
_ANSWERS = (
    "golden_answers",
    "answers",
    "answer",
    _POSSIBLE,
    "reward_model.ground_truth.target",
    "reward_model.ground_truth",
    "ground_truth",
    "extra_info.ground_truth",
)


_ALIASES = ("answer_aliases", "answer 2")
_UNANSWERED = "a question needs an answer: of a test set that is published without, take the development set"


def read_questions(
    path: Path, *, key: str, evidence_match: str = "title", strict: bool = False, notices: list[Notice] | None = None
) -> tuple[Question, ...]:
    """The questions of ``path`` in file order.

    ``key`` is the setting that names the file; ``evidence_match`` is what it names supporting documents by, ``title``
    or ``id``. What is left out or not read is added to ``notices``; with ``strict``, rows that would be left out are a
    ``UserError`` like all that is wrong.
    """
    questions: dict[str, Question] = {}
    entities: dict[str, str] = {}
    all_needed: list[tuple[str, str]] = []
    earlier: list[tuple[str, str]] = []
    found: list[Notice] = []
    unread, unplayable = Unread(), Unplayable()
    for where, number, row in rows(path, key, is_like_a_field, found):
        default_id = f"{stem(path)}-{number}"
        if unplayable.has(row, where, default_id):
            continue
        if mean_all(row, where):
            all_needed.append((_id(row, where, default_id), "needs all of its answers"))
        question = question_of(row, where, default_id, evidence_match)
        unread.look(row, question)
        if question.id in questions:
            raise UserError(f"{where}: id '{question.id}' is already taken; ids must differ (or leave them all out)")
        questions[question.id] = question
        if not question.needed and (hop := of_earlier_hop(row, question.golden_answers)):
            earlier.append((question.id, f"'{hop}' answers an earlier hop and counts as right"))
        if not question.needed and (entity := entity_of(row)):
            entities[question.id] = entity
    if entities:
        questions, said = with_aliases(questions, entities, path, key)
        found += said
    found += unread.notices(f"{key}={path}")
    found += unplayable.notices(f"{key}={path}", strict=strict)
    if all_needed:
        ids = some([i for i, _ in all_needed])
        line = f"{key}={path}: {len(all_needed)} rows need all of their answers, and one alone is wrong ({ids})"
        found.append(Notice(kind="answers", text=line, items=tuple(all_needed)))
    if earlier:
        ids = some([i for i, _ in earlier])
        line = f"{key}={path}: in {len(earlier)} rows the answer to an earlier hop counts as right ({ids}); take it out"
        found.append(Notice(kind="answers", text=line, items=tuple(earlier)))
    if not questions:
        raise UserError(f"{key}={path}: the file holds no questions{unplayable.without}")
    if notices is not None:
        notices += found
    return tuple(questions.values())


class Unplayable:
    """Rows of one file that are left out: marked ``answerable: false``, or needing more answers than can be compared as
    one. Asked about each row before ``question_of``."""

    def __init__(self) -> None:
        self._unanswerable: list[tuple[str, str]] = []
        self._too_many: list[tuple[str, str]] = []

    def has(self, row: Row, where: str, default_id: str) -> bool:
        """Whether ``row`` is one, which is then counted."""
        if not all(true_or_false(said, where) for said in anywhere(row, "answerable")):
            self._unanswerable.append((_id(row, where, default_id), "answerable is false"))
            return True
        if mean_all(row, where) and (count := len(_golden(row, where))) > MOST:
            self._too_many.append((_id(row, where, default_id), f"needs all of {count} answers"))
            return True
        return False

    @property
    def without(self) -> str:
        """What the questions of a file that holds nothing else lack."""
        return " with an answer" if self._unanswerable or self._too_many else ""

    def notices(self, file: str, *, strict: bool) -> list[Notice]:
        """One notice for either kind, for the file in words; with ``strict`` a ``UserError``."""
        kinds = (
            (self._unanswerable, "rows are marked answerable=false"),
            (self._too_many, f"rows need all of more than {MOST} answers, which no exact match can tell"),
        )
        return [
            left_out(f"{file}: {len(out)} {what} ({some([i for i, _ in out])})", out, strict=strict)
            for out, what in kinds
            if out
        ]


def question_of(row: Row, where: str, default_id: str, evidence_match: str) -> Question:
    """The question that ``row`` holds. ``where`` names the file and line in the ``UserError`` of a wrong one."""
    asked = question_in(row, where)
    golden = _golden(row, where)
    needed = golden if len(golden) > 1 and mean_all(row, where) else ()
    return Question(
        id=_id(row, where, default_id),
        text=asked,
        golden_answers=together(needed) or golden,
        needed=needed,
        supporting=supporting.supporting(row, where, evidence_match),
        evidence_match=evidence_match,
        kind=_kind(row, where),
    )


def _golden(row: Row, where: str) -> tuple[str, ...]:
    """The row's answers, each once; with other names of them, unless all are needed: which of them a name is of isn't
    said."""
    golden = _named_answers(row, where)
    for name in () if mean_all(row, where) else _ALIASES:
        for aliases in anywhere(row, name):
            golden += texts(aliases, where)
    if mean_all(row, where):  # two spellings of one are one: an answer that names it once is whole
        spellings: dict[str, str] = {}
        for answer in golden:
            spellings.setdefault(normalise(answer), answer)
        return tuple(spellings.values())
    return tuple(dict.fromkeys(golden))


def _named_answers(row: Row, where: str) -> tuple[str, ...]:
    try:
        name, value = first(row, _ANSWERS, where)
    except UserError as error:
        raise UserError(f"{error}; {_UNANSWERED}") from None
    if value == "":
        raise UserError(f"{where}: '{name}' is empty; {_UNANSWERED}")
    if name == _POSSIBLE:
        return texts((name, json_list((name, value), where)), where)
    if isinstance(value, Mapping) and value.get("value") is not None:  # TriviaQA
        if value["value"] == "<unk>":
            raise UserError(
                f"{where}: '{name}.value' is <unk>, as in TriviaQA's test set, whose answers aren't published; take "
                "the validation set"
            )
        aliases = () if value.get("aliases") in (None, []) else texts((f"{name}.aliases", value["aliases"]), where)
        return (text_or_number((f"{name}.value", value["value"]), where), *aliases)
    return texts((name, value), where)


def _kind(row: Row, where: str) -> str:
    """The slice that evaluations report the question in: it begins with its source, as the id does."""
    source = _source(row, where)
    for kind in anywhere(row, "type"):
        return _within(source, text_or_number(kind, where))
    for level in anywhere(row, "level"):
        return _within(source, text_or_number(level, where))
    return source


def _source(row: Row, where: str) -> str:
    value = row.get("data_source")
    return "" if value in (None, "") else text(("data_source", value), where)


def _within(source: str, name: str) -> str:
    return f"{source}/{name}" if source else name


def _id(row: Row, where: str, default: str) -> str:
    """The row's id, or ``default`` when it has none, after its source."""
    name = next((key for key in ("id", "_id") if row.get(key) is not None), None)
    value = "" if name is None else text_or_number((name, row[name]), where)
    return _within(_source(row, where), value or default)


def split(
    questions: Sequence[Question], share: float, seed: int, side: str = "eval", where: str = "data.questions"
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """``(train, held out)``, ``share`` of ``questions`` held out, at least one on each side, in their order.

    Which ones depends on ``seed`` and their ids alone, so adding or sorting questions moves few of them. ``where``
    names their file, and ``side`` is ``eval`` or ``dev``, by what they are held out for.
    """
    if len(questions) < 2:
        raise UserError(
            f"{where}: one question is too few for data.{side}_share={share} to hold one out of what is trained on; "
            f"add questions, or set data.{side}_questions=FILE in its place"
        )
    count = min(max(round(len(questions) * share), 1), len(questions) - 1)
    by_hash = sorted(questions, key=lambda q: (derive_seed("split", seed, q.id), q.id))
    held_out = {q.id for q in by_hash[:count]}
    return tuple(q for q in questions if q.id not in held_out), tuple(q for q in questions if q.id in held_out)


def split_texts(
    questions: Sequence[Question], share: float, seed: int, side: str = "eval", where: str = "data.questions"
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """``split`` over the different texts among ``questions``: all copies of one text are on the same side."""
    firsts: dict[str, Question] = {}  # of each text the copy with the smallest id: their order doesn't matter
    keys = [normalise_question(q.text) for q in questions]
    for key, question in zip(keys, questions, strict=True):
        if key not in firsts or question.id < firsts[key].id:
            firsts[key] = question
    held_out = {normalise_question(q.text) for q in split(list(firsts.values()), share, seed, side, where)[1]}
    sides: tuple[list[Question], list[Question]] = ([], [])
    for key, question in zip(keys, questions, strict=True):
        sides[key in held_out].append(question)
    return tuple(sides[0]), tuple(sides[1])
