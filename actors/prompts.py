"""Which questions have prompts that are too long to be played, and a task without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.records import Question
from agent.tokens import Tokenizer
from tasks.load import Task
from tasks.notices import Notice, left_out, some

CHUNK = 4096
"""Prompts that are encoded at once."""
MARGIN = 16
"""Tokens that a question may have more in its prompt than by itself, where the two meet; nearer to the limit its prompt
is encoded as an episode does it, to be exact."""


def too_long(
    questions: Sequence[Question], dialogue: Dialogue, tokenizer: Tokenizer, limit: int
) -> list[tuple[Question, int]]:
    """The questions whose prompt has more than ``limit`` tokens, each with its prompt's length.

    Quick for a million of them: what is said around each is encoded once, a short question not at all (a token is at
    least one character of ASCII text), and the others many at a time.
    """
    around = len(dialogue.prompt_ids(""))
    if len(dialogue.prompt_text("x" * 100)) != len(dialogue.prompt_text("")) + 100:
        around = limit  # a chat template that does more than wrap the question: each prompt is encoded
    room = limit - around - MARGIN
    unsure = [q for q in questions if not q.text.isascii() or len(dialogue.neutral(q.text)) > room]
    found = []
    for at in range(0, len(unsure), CHUNK):
        chunk = unsure[at : at + CHUNK]
        lengths = tokenizer.lengths([dialogue.neutral(q.text) for q in chunk])
        near = [q for q, length in zip(chunk, lengths, strict=True) if length > room]
        found += [(q, length) for q in near if (length := len(dialogue.prompt_ids(q.text))) > limit]
    return found


def short_enough(
    questions: tuple[Question, ...], what: str, dialogue: Dialogue, tokenizer: Tokenizer, limit: int, *, strict: bool
) -> tuple[tuple[Question, ...], list[Notice]]:
    """``questions`` less those whose prompt is too long, and what there is to say of these.

    ``what`` says in words what questions they are. Raises ``UserError`` where more than half are too long: then the
    limit is wrong and not the questions; and for any with ``strict`` (``data.strict``).
    """
    long = {q.id: length for q, length in too_long(questions, dialogue, tokenizer, limit)}
    if not long:
        return questions, []
    said = (
        f"{len(long)} of {len(questions)} {what} questions have a prompt of more than agent.max_prompt_tokens={limit}"
    )
    longest = max(long.values())
    if 2 * len(long) > len(questions):
        raise UserError(f"{said} tokens; the longest has {longest}: set agent.max_prompt_tokens={longest}")
    notice = left_out(
        f"{said} tokens, up to {longest} ({some(list(long))})",
        [(name, f"its prompt has {length} tokens") for name, length in long.items()],
        strict=strict,
    )
    return tuple(q for q in questions if q.id not in long), [notice]


def playable(task: Task, dialogue: Dialogue, tokenizer: Tokenizer, limit: int) -> Task:
    """``task`` without the questions whose prompt is too long, and with notices of them; see ``short_enough``."""
    strict = task.config.strict
    train, of_train = short_enough(task.train, "training", dialogue, tokenizer, limit, strict=strict)
    held_out, of_held_out = short_enough(task.eval, "held-out", dialogue, tokenizer, limit, strict=strict)
    notices = (*task.notices, *of_train, *of_held_out, *of_format(dialogue))
    return replace(task, train=train, eval=held_out, notices=notices)


def of_format(dialogue: Dialogue) -> tuple[Notice, ...]:
    """What there is to say of episodes with this model's tokenizer."""
    return tuple(Notice(kind="format", text=text) for text in dialogue.notices)
