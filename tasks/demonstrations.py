"""Demonstrations: whole episodes to imitate, move for move in text, and what they are as tokens.

They are read from a file of expert trajectories (``experts.py``), played in the built-in world (``novice.py``,
``experts.py``), or made (``making/``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.dialogue import Dialogue
from agent.protocol import THINK, THOUGHT_END, TagProtocol
from agent.records import NO_VERSION, BoolArray, IntArray, Passage, Question, StopReason, Trajectory, Turn
from agent.tokens import Tokenizer
from agent.tools.base import Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One action as the policy would write it, and the passages that the environment answered with.

    ``passages`` is None after the action that ends the episode; an empty tuple is a search that found
    nothing, which the policy does see.
    """

    action: str
    passages: tuple[Passage, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A whole episode to imitate: every move but the last is answered with passages."""

    question: Question
    moves: tuple[Move, ...]

    def __post_init__(self) -> None:
        if not self.moves or [m.passages is None for m in self.moves] != [False] * (len(self.moves) - 1) + [True]:
            raise ValueError(f"demonstration of {self.question.id}: exactly the last move ends the episode")


def search_text(protocol: TagProtocol, query: str) -> str:
    """A search as the policy writes it. The space before a name gives it the tokens it has in passages."""
    return f"{protocol.search_open} {query}{protocol.search_close}"


def answer_text(protocol: TagProtocol, answer: str) -> str:
    """A final answer as the policy writes it."""
    return f"{protocol.answer_open} {answer}{protocol.answer_close}"


def end_ids(dialogue: Dialogue, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What ends an expert's last action where the protocol's answer has no closing tag: the chat template's end of a
    turn, or the model's end token."""
    if not dialogue.lacks_end:
        return ()
    return tuple(tokenizer.encode(dialogue.end)) if dialogue.end else tokenizer.eos_ids


def control_tokens(dialogue: Dialogue, tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens, by id, that end turns or mark messages: no policy writes one within an action."""
    marks = {i for mark in (*dialogue.marks, THINK, THOUGHT_END) for i in tokenizer.encode(mark)}
    return {i: tokenizer.decode([i]) for i in tokenizer.control_ids if i not in marks}


def as_trajectory(demonstration: Demonstration, dialogue: Dialogue, *, end_ids: Sequence[int] = ()) -> Trajectory:
    """A demonstration as the record of an episode: actions and observations encoded apart, as in an episode.

    ``end_ids`` end the last action; a protocol without a closing answer tag needs them, since there the
    policy has to end its turn by itself. Raises ``ValueError`` when they are missing.
    """
    if dialogue.lacks_end and not end_ids:
        raise ValueError(f"protocol {dialogue.protocol.name} reads an answer when the turn ends: end_ids is needed")
    ids: list[int] = []
    mask: list[bool] = []
    turns = []
    for number, move in enumerate(demonstration.moves):
        action, passages = dialogue.protocol.parse(move.action), move.passages or ()
        ends = move.passages is None
        acted = [*dialogue.action_ids(move.action, first=number == 0, last=ends), *(end_ids if ends else ())]
        observed = [] if ends else dialogue.observation_ids(passages, acted[-1])
        turns.append(
            Turn(
                action_start=len(ids),
                action_end=len(ids) + len(acted),
                observation_end=len(ids) + len(acted) + len(observed),
                text=move.action,
                answer=action.answer,
                calls=tuple(Result(passages=passages).call(request) for request in action.requests),
            )
        )
        ids += [*acted, *observed]
        mask += [True] * len(acted) + [False] * len(observed)
    return Trajectory(
        question_id=demonstration.question.id,
        prompt_ids=np.array(dialogue.prompt_ids(demonstration.question.text)),
        token_ids=np.array(ids),
        action_mask=np.array(mask),
        logprobs=np.zeros(len(ids), np.float32),
        versions=np.full(len(ids), NO_VERSION),
        turns=tuple(turns),
        stop_reason=StopReason.ANSWERED,
        expert=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Expert:
    """An expert trajectory of the seeding, and the question that it answers."""

    question: Question
    trajectory: Trajectory


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """D demonstrations as token ids, end to end: three arrays travel faster than two for each."""

    token_ids: IntArray
    """(N,) all of them, prompts included."""
    action_mask: BoolArray
    """(N,) true where the policy acts."""
    lengths: IntArray
    """(D,) tokens of each."""

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> Encoded:
        """Of what ``as_trajectory`` made."""
        encoded = [_flat(trajectory) for trajectory in trajectories]
        return cls(
            token_ids=np.concatenate([ids for ids, _ in encoded]),
            action_mask=np.concatenate([mask for _, mask in encoded]),
            lengths=np.array([len(ids) for ids, _ in encoded], np.int32),
        )

    def split(self) -> list[tuple[IntArray, BoolArray]]:
        """(T,) token ids and (T,) mask of each demonstration."""
        cuts = np.cumsum(self.lengths)[:-1]
        return list(zip(np.split(self.token_ids, cuts), np.split(self.action_mask, cuts), strict=True))


def encode(
    demonstration: Demonstration, dialogue: Dialogue, *, end_ids: Sequence[int] = ()
) -> tuple[IntArray, BoolArray]:
    """A demonstration as the supervised warm start sees it: (T,) token ids, prompt included, and a (T,) mask that is
    true where the policy acts. See ``as_trajectory``."""
    return _flat(as_trajectory(demonstration, dialogue, end_ids=end_ids))


def _flat(made: Trajectory) -> tuple[IntArray, BoolArray]:
    """Prompt and response as one."""
    ids = np.concatenate([made.prompt_ids, made.token_ids])
    return ids, np.concatenate([np.zeros(len(made.prompt_ids), np.bool_), made.action_mask])
