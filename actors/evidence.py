"""Supporting documents before a start: whether the questions name them, and whether the corpus has them.

A public study found 2 to 6 points of exact match in questions whose documents the corpus lacks (arXiv 2605.27881);
``data.require_evidence`` leaves them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent.errors import UserError
from agent.records import Question
from conf.schema import RunConfig
from retrieval_service.names import Names, searched_names
from tasks.load import Task
from tasks.notices import Notice

EXPERT = "expert"
"""What questions of expert trajectories are called. They are never left out: their number is asked for."""


def check_evidence(
    config: RunConfig, task: Task, experts: Sequence[Question], say: Callable[[str], None]
) -> tuple[Task, list[Notice]]:
    """``task``, and what there is to say of its supporting documents and of the questions of its ``experts``.

    With ``data.require_evidence`` it is without the questions whose documents the corpus lacks. ``say`` is told of
    what takes long.

    Raises ``UserError`` where the reward or the group strategy needs them and no training question names any, or the
    corpus has none of them.
    """
    notices: list[Notice] = []
    if user := _user(config):
        notices += _unnamed(config, task, *user)
    sets = {"training": task.train, "held-out": task.eval, EXPERT: experts}
    found, said = with_documents(config, task, sets, say)
    return replace(task, train=found["training"], eval=found["held-out"]), [*notices, *said]


def _user(config: RunConfig) -> tuple[str, str] | None:
    """Who needs supporting documents and for what, and the setting that does without; None if nobody does."""
    if config.group.strategy == "continuation":
        return "group=continuation cuts where a question's supporting documents were found", "group=plain"
    if weight := config.reward.evidence_weight:
        return f"reward.evidence_weight={weight} pays for a question's supporting documents", "reward.evidence_weight=0"
    return None


def _unnamed(config: RunConfig, task: Task, need: str, without: str) -> list[Notice]:
    unnamed = [q for q in task.train if not q.supporting]
    match = config.data.evidence_match
    if len(unnamed) == len(task.train):
        said = "".join(f" ({notice.text})" for notice in task.notices if notice.kind == "unread")
        raise UserError(
            f"{need}, and no training question names any by {match}; add metadata.supporting_{match}s to "
            f"data.questions, or use {without}{said}"
        )
    if not unnamed:
        return []
    alone = (
        "are never continued" if config.group.strategy == "continuation" else "have the answer alone as their reward"
    )
    text = f"{len(unnamed)} of {len(task.train)} training questions name no supporting documents and {alone}"
    return [Notice(kind="evidence", text=text, items=tuple((q.id, "names no supporting documents") for q in unnamed))]


def with_documents(
    config: RunConfig, task: Task, sets: Mapping[str, Sequence[Question]], say: Callable[[str], None]
) -> tuple[dict[str, tuple[Question, ...]], list[Notice]]:
    """``sets`` by what they are, and how many questions of each name documents that the corpus of ``task`` lacks.

    With ``data.require_evidence`` those are left out.

    Raises ``UserError`` where the reward or the group strategy needs those of the training questions and none is
    there, where none is left, and where what an index holds isn't known.
    """
    found = {what: tuple(questions) for what, questions in sets.items()}
    required = config.data.require_evidence
    if task.config.source == "world":
        return found, []  # its corpus is made with its questions
    if not any(q.supporting for questions in found.values() for q in questions):
        return found, [_nothing_required(found, config.data.evidence_match)] if required else []
    names = searched_names(task.corpus, config.retrieval, config.cache, say)
    if names is None:
        if required:
            raise UserError(
                "data.require_evidence=true needs an index that was built here; what another one holds isn't known: "
                "leave retrieval.index or retrieval.url out, or set data.require_evidence=false"
            )
        return found, _unknown(config, found)
    notices: list[Notice] = []
    for what, questions in found.items():
        wanted = {name for q in questions for name in q.supporting}
        if not wanted:
            continue
        there = names.known(wanted, task.config.evidence_match)
        if not there and what == "training" and _user(config):
            raise UserError(_nothing_there(config, task, questions, names))
        lacking = {q.id: absent for q in questions if (absent := [name for name in q.supporting if name not in there])}
        if not lacking:
            continue
        leave_out = required and what != EXPERT
        if leave_out and len(lacking) == len(questions):
            raise UserError(
                f"data.require_evidence=true: the corpus lacks supporting documents of all {len(questions)} {what} "
                "questions; use the corpus that they were made for"
            )
        notice = _lacking(what, len(questions), lacking, left_out=leave_out)
        if leave_out:
            found[what] = tuple(q for q in questions if q.id not in lacking)
            if what == "training" and config.data.shares:
                counts = Counter(q.id.partition("/")[0] for q in found[what])
                left = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
                notice = replace(
                    notice, text=f"{notice.text}; of data.shares={config.data.shares} there are now {left}"
                )
        notices.append(notice)
    return found, notices


def _unknown(config: RunConfig, sets: Mapping[str, Sequence[Question]]) -> list[Notice]:
    """Of an index that was built elsewhere, or a server."""
    if not config.retrieval.elsewhere:
        return []
    count = sum(bool(q.supporting) for questions in sets.values() for q in questions)
    place = f"{config.retrieval.place_key}={config.retrieval.place}"
    text = f"{count} questions name supporting documents; whether {place} has them isn't known here"
    return [Notice(kind="evidence", text=text)]


def _nothing_required(sets: Mapping[str, Sequence[Question]], match: str) -> Notice:
    count = sum(map(len, sets.values()))
    named = f"none of {count} questions names supporting documents by {match}"
    return Notice(kind="evidence", text=f"data.require_evidence=true leaves nothing out: {named}")


def _lacking(what: str, count: int, lacking: Mapping[str, Sequence[str]], *, left_out: bool) -> Notice:
    """Of ``count`` questions those that name what isn't there, by their ids."""
    name, absent = next(iter(lacking.items()))
    then = ", and left out" if left_out else ": their evidence recall can't reach 1"
    text = (
        f"{len(lacking)} of {count} {what} questions name supporting documents that the corpus lacks, "
        f"such as '{absent[0]}' ({name}){then}"
    )
    items = tuple((name, f"the corpus lacks: {'; '.join(absent)}") for name, absent in lacking.items())
    return Notice(kind="left_out" if left_out else "evidence", text=text, items=items)


def _nothing_there(config: RunConfig, task: Task, questions: Sequence[Question], names: Names) -> str:
    match, other = ("title", "id") if task.config.evidence_match == "title" else ("id", "title")
    wanted = [name for q in questions for name in q.supporting]
    index = config.retrieval.index
    there = f"retrieval.index={index}" if index is not None else f"data.corpus={task.corpus}"
    said = f"{there}: has none of the supporting documents that the training questions name by {match}"
    if names.known(set(wanted), other):
        return f"{said}, but has them by {other}; set data.evidence_match={other}"
    if match == "title" and not names.examples:
        return f'{said}: its passages have no titles; give them some, as "title" or in quotes on the first line'
    own = f"; its own titles are like '{names.examples[0]}'" if match == "title" else ""
    return f"{said}, such as '{wanted[0]}'{own}; use the corpus that the questions were made for"
