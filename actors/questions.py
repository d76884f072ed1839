"""Which questions an evaluation or a calibration plays, and which ones it can't or shouldn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from actors.evidence import with_documents
from actors.prompts import of_format, short_enough
from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.inference.evaluation import subset
from agent.records import Question
from agent.tokens import Tokenizer
from conf.schema import RunConfig
from retrieval_service.names import Digests
from tasks.load import Task
from tasks.notices import Notice, some
from tasks.trained import ids_among, trained_on


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The questions of one run that plays a checkpoint."""

    questions: tuple[Question, ...] = ()
    about: str = ""
    """What they are, in words."""
    notices: tuple[Notice, ...] = ()


def asked(
    config: RunConfig,
    task: Task,
    checkpoint: Path,
    say: Callable[[str], None] = lambda text: None,
    calibrated: Digests | None = None,
) -> Asked:
    """The questions that ``config.mode`` plays with ``checkpoint``: none for ``ask``, which brings its own.

    ``say`` is told of what takes long. ``calibrated`` are the texts that ``exit.calibration`` was made on.

    Raises ``UserError`` where no question is left, or only such as the checkpoint's run has trained on, and where most
    prompts are too long, or that of ``ask`` is.
    """
    if config.mode == "ask":
        length = len(Dialogue.of(Tokenizer(checkpoint), config.agent).prompt_ids(config.question or ""))
        if length > config.agent.max_prompt_tokens:
            raise UserError(
                f"question=…: its prompt has {length} tokens, more than "
                f"agent.max_prompt_tokens={config.agent.max_prompt_tokens}; shorten the question or raise the limit"
            )
        return Asked()
    what, choose = ("development", _development) if config.mode == "calibrate" else ("held-out", _held_out)
    chosen = choose(config, task, checkpoint)
    if calibrated is not None:
        chosen = _but_calibrated(config, chosen, calibrated)
    tokenizer = Tokenizer(checkpoint)
    dialogue = Dialogue.of(tokenizer, config.agent)
    questions, long = short_enough(
        chosen.questions,
        what,
        dialogue,
        tokenizer,
        config.agent.max_prompt_tokens,
        strict=config.data.strict,
    )
    questions, lacking = _sample(config, task, questions, what, say)
    return Asked(
        questions=questions,
        about=chosen.about.replace("{n}", f"{len(questions):,}", 1),
        notices=(*task.notices, *chosen.notices, *long, *lacking, *of_format(dialogue)),
    )


def asked_of_endpoint(config: RunConfig, task: Task, say: Callable[[str], None]) -> Asked:
    """The questions for a model behind an endpoint: nobody knows its tokens, or what it was trained on."""
    questions, lacking = _sample(config, task, task.eval, "held-out", say)
    about = f"evaluating {len(questions):,} of the {len(task.eval):,} questions of {task.name}"
    return Asked(questions=questions, about=about, notices=(*task.notices, *lacking))


def _sample(
    config: RunConfig, task: Task, questions: tuple[Question, ...], what: str, say: Callable[[str], None]
) -> tuple[tuple[Question, ...], list[Notice]]:
    """As many as are asked for, and what there is to say of their supporting documents."""
    most = config.evaluation.limit(config.mode)
    if not config.data.require_evidence:  # else what is left out may make room for others
        questions = subset(questions, most)
    found, lacking = with_documents(config, task, {what: questions}, say)
    return subset(found[what], most), lacking


def _held_out(config: RunConfig, task: Task, checkpoint: Path) -> Asked:
    """All of the file that is given; of ``data.questions``, which may be the training file, what wasn't trained on."""
    data, found = config.data, task.eval
    if data.source == "world":
        return Asked(questions=found, about="evaluating {n} held-out questions of the world")
    learnt = trained_on(checkpoint, found)
    if data.eval_questions is not None:
        about = f"evaluating {{n}} of the {len(found):,} questions of data.eval_questions={data.eval_questions}"
        notices = [Notice(kind="trained_on", text=_learnt(learnt, found), items=_items(learnt))] if learnt else []
        return Asked(questions=found, about=about, notices=tuple(notices))
    about = f"evaluating {{n}} of the {len(found):,} questions of data.questions={data.questions}"
    if learnt is None:
        return Asked(questions=found, about=f"{about}; what the checkpoint was trained on is not recorded beside it")
    if len(learnt) == len(found):
        raise UserError(
            f"data.questions={data.questions}: the checkpoint's run has trained on every question; name others, or "
            f"play these all the same with data.eval_questions={data.questions}"
        )
    if not learnt:
        return Asked(questions=found, about=f"{about}; the checkpoint's run has trained on none of them")
    text = f"{_learnt(learnt, found)}, which are left out; data.eval_questions={data.questions} plays them, too"
    return Asked(
        questions=tuple(q for q in found if q.id not in learnt),
        about=about,
        notices=(Notice(kind="left_out", text=text, items=_items(learnt)),),
    )


def _but_calibrated(config: RunConfig, chosen: Asked, calibrated: Digests) -> Asked:
    """Less those on which early exit looks too good, its threshold having been found on them. As with what was trained
    on, those of a file for evaluation are played all the same."""
    data, found = config.data, chosen.questions
    known = ids_among(found, calibrated)
    if not known:
        return chosen
    said = (
        f"exit.calibration={config.exit.calibration}: was made on {len(known):,} of the {len(found):,} questions "
        f"({some(sorted(known))})"
    )
    items = tuple((name, "the calibration was made on it") for name in sorted(known))
    if data.source == "world" or data.eval_questions is not None:
        notice = Notice(kind="calibrated_on", text=f"{said}, on which early exit looks too good", items=items)
        return replace(chosen, notices=(*chosen.notices, notice))
    instead = f"data.eval_questions={data.questions}"
    if len(known) == len(found):
        raise UserError(f"{said}; name others, or play these all the same with {instead}")
    notice = Notice(kind="left_out", text=f"{said}, which are left out; {instead} plays them, too", items=items)
    left = tuple(q for q in found if q.id not in known)
    return replace(chosen, questions=left, notices=(*chosen.notices, notice))


def _development(config: RunConfig, task: Task, checkpoint: Path) -> Asked:
    """Development questions, which the policy must not know: a calibration on those it does promises too much."""
    found = task.development()
    if config.data.source == "jsonl" and (learnt := trained_on(checkpoint, found)):
        raise UserError(
            f"mode=calibrate: {_learnt(learnt, found)}; calibrate with the seed, the files and the data.dev_share of "
            "that run, or with other data.dev_questions"
        )
    return Asked(questions=found, about="calibrating on {n} development questions")


def _learnt(learnt: set[str], found: tuple[Question, ...]) -> str:
    return (
        f"the checkpoint's run has trained on {len(learnt):,} of the {len(found):,} questions ({some(sorted(learnt))})"
    )


def _items(learnt: set[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, "the checkpoint's run has trained on it") for name in sorted(learnt))
