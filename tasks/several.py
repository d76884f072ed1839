"""Several files of questions as one set: ``data.questions=[a.jsonl,b.jsonl]``, with shares or whole.

A question's id and kind then begin with the name of its set (``tasks/paths.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.answers import exact_match, normalise_question
from agent.errors import UserError
from agent.paths import at_home
from agent.records import Question
from agent.seeds import derive_seed
from tasks.files import read_questions
from tasks.notices import Notice, some
from tasks.paths import files_of, set_names


def read_sets(
    value: str, *, key: str, evidence_match: str, strict: bool, notices: list[Notice] | None
) -> dict[str, tuple[Question, ...]]:
    """The questions of each file that ``value`` names, by their set. Raises and notes as ``read_questions``."""
    files = [at_home(file) for file in files_of(value, key)]
    if len({file.resolve() for file in files}) < len(files):
        raise UserError(f"{key}={value}: names a file twice")
    sets = {}
    for name, file in zip(set_names(files), files, strict=True):
        found = read_questions(file, key=key, evidence_match=evidence_match, strict=strict, notices=notices)
        sets[name] = found if len(files) == 1 else tuple(_of_set(name, question) for question in found)
    if notices is not None:
        notices += contradicting([q for found in sets.values() for q in found], f"{key}={value}")
    return sets


def contradicting(questions: Sequence[Question], where: str) -> list[Notice]:
    """What there is to say of questions that have the text of an earlier one and none of its answers."""
    firsts: dict[str, Question] = {}
    found = []
    for question in questions:
        first = firsts.setdefault(normalise_question(question.text), question)
        if first is not question and not any(exact_match(a, first.golden_answers) for a in question.golden_answers):
            found.append((question.id, f"has the text of '{first.id}' and none of its answers"))
    if not found:
        return []
    text = (
        f"{where}: {len(found)} questions have the text of another one and none of its answers "
        f"({some([name for name, _ in found])}): what is right for one is wrong for the other"
    )
    return [Notice(kind="answers", text=text, items=tuple(found))]


def _of_set(name: str, question: Question) -> Question:
    kind = f"{name}/{question.kind}" if question.kind else name
    return replace(question, id=f"{name}/{question.id}", kind=kind)


def mixed(sets: dict[str, tuple[Question, ...]], shares: Sequence[float], seed: int) -> tuple[Question, ...]:
    """As many of the questions as go with ``shares`` of the sets, one share each; of all of them without shares.

    The set that is shortest for its share is taken whole. Which ones of the others depends on ``seed`` and their ids
    alone. They are in their order.
    """
    if not shares:
        return tuple(question for questions in sets.values() for question in questions)
    most = min(len(questions) / share for questions, share in zip(sets.values(), shares, strict=True))
    chosen: list[Question] = []
    for questions, share in zip(sets.values(), shares, strict=True):
        count = max(round(most * share), 1)
        by_hash = sorted(questions, key=lambda q: (derive_seed("shares", seed, q.id), q.id))
        taken = {q.id for q in by_hash[:count]}
        chosen += [q for q in questions if q.id in taken]
    return tuple(chosen)
