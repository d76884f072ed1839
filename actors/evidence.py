"""Supporting documents before a start: whether the questions name them, and whether the corpus has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from agent.errors import UserError
from agent.records import Question
from conf.schema import RunConfig
from retrieval_service.names import Names, corpus_names
from tasks.load import Task
from tasks.notices import Notice


def check_evidence(
    config: RunConfig, task: Task, experts: Sequence[Question], say: Callable[[str], None]
) -> list[Notice]:
    """What there is to say of the supporting documents of ``task``, and of the questions of its ``experts``.

    ``say`` is told of what takes long.

    Raises ``UserError`` where the reward or the group strategy needs them and no training question names any, or the
    corpus has none of them.
    """
    notices: list[Notice] = []
    if user := _user(config):
        notices += _unnamed(config, task, *user)
    sets = {"training": task.train, "held-out": task.eval, "expert": experts}
    return [*notices, *missing_documents(config, task, sets, say)]


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


def missing_documents(
    config: RunConfig, task: Task, sets: Mapping[str, Sequence[Question]], say: Callable[[str], None]
) -> list[Notice]:
    """How many questions of each of ``sets``, by what they are, name documents that the corpus of ``task`` lacks.

    Raises ``UserError`` where the reward or the group strategy needs those of the training questions and none is there.
    """
    if task.config.source == "world" or config.retrieval.elsewhere:
        return []  # the world's corpus is made with its questions; another index may hold other documents
    notices: list[Notice] = []
    names: Names | None = None
    for what, questions in sets.items():
        wanted = {name for q in questions for name in q.supporting}
        if not wanted:
            continue
        names = names or corpus_names(task.corpus, config.cache / "corpora", say)
        there = names.known(wanted, task.config.evidence_match)
        if not there and what == "training" and _user(config):
            raise UserError(_nothing_there(task, questions, names))
        lacking = [(q, [name for name in q.supporting if name not in there]) for q in questions]
        lacking = [(q, absent) for q, absent in lacking if absent]
        if lacking:
            question, absent = lacking[0]
            text = (
                f"{len(lacking)} of {len(questions)} {what} questions name supporting documents that the corpus lacks, "
                f"such as '{absent[0]}' ({question.id}): their evidence recall can't reach 1"
            )
            items = tuple((q.id, f"the corpus lacks: {'; '.join(absent)}") for q, absent in lacking)
            notices.append(Notice(kind="evidence", text=text, items=items))
    return notices


def _nothing_there(task: Task, questions: Sequence[Question], names: Names) -> str:
    match, other = ("title", "id") if task.config.evidence_match == "title" else ("id", "title")
    wanted = [name for q in questions for name in q.supporting]
    said = (
        f"data.corpus={task.corpus}: has none of the supporting documents that the training questions name by {match}"
    )
    if names.known(set(wanted), other):
        return f"{said}, but has them by {other}; set data.evidence_match={other}"
    if match == "title" and not names.examples:
        return f'{said}: its passages have no titles; give them some, as "title" or in quotes on the first line'
    own = f"; its own titles are like '{names.examples[0]}'" if match == "title" else ""
    return f"{said}, such as '{wanted[0]}'{own}; use the corpus that the questions were made for"
