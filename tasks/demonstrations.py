"""Expert trajectories for the warm start: a *lazy novice* in worlds other than the one that is trained.

The novice writes well-formed searches and copies what it reads, but it is lazy: it mostly sees 1-hop
questions, mostly answers with whatever its first search brought, and sometimes searches for a name
alone. A policy that imitates it answers 1-hop questions and few others, while now and then it keeps
searching. That is what reinforcement learning needs: something to reinforce, and much left to learn.
Clean experts would leave neither (they reach 0.9 exact match before the first update).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.dialogue import Dialogue
from agent.protocol import THINK, THOUGHT_END, TagProtocol
from agent.records import NO_VERSION, BoolArray, IntArray, Passage, Question, StopReason, Trajectory, Turn
from agent.seeds import derive_seed
from agent.tokens import Tokenizer
from agent.tools.base import Result
from tasks.bm25 import Bm25
from tasks.config import Novice
from tasks.world import TRAIN, Fact, Walk, World, chains, question_of

WORLDS = 8
"""Worlds that the novice's questions come from."""
TWO_HOP_CHAINS = (
    ("author", "birthplace"),
    ("birthplace", "country"),
    ("country", "capital"),
    ("employer", "headquarters"),
    ("founder", "spouse"),
    ("spouse", "employer"),
)
"""The 2-hop questions that the novice knows: 6 chains of 13. Each relation is in one; the rest must be generalised."""


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


def demonstrations(
    world_seed: int, count: int, protocol: TagProtocol, top_k: int, novice: Novice | None = None
) -> tuple[Demonstration, ...]:
    """``count`` episodes of a novice who plays in eight worlds, none of them that of ``world_seed``."""
    novice = novice or Novice()
    rng = random.Random(derive_seed("demonstrations", world_seed))
    kinds = (chains(1), TWO_HOP_CHAINS, chains(3))
    worlds = [World(derive_seed("demonstration world", world_seed, i)) for i in range(min(count, WORLDS))]
    engines = [Bm25(world.passages) for world in worlds]
    facts = [{fact.id: fact for split in world.facts.values() for fact in split.values()} for world in worlds]
    made = []
    for i in range(count):
        at = i % WORLDS
        (known,) = rng.choices(kinds, novice.hop_shares)
        walk = rng.choice(worlds[at].walks(TRAIN, rng.choice(known)))
        moves = _play(walk, engines[at], facts[at], protocol, top_k, novice, rng)
        made.append(Demonstration(question=question_of(walk, evidence_match="id"), moves=moves))
    return tuple(made)


def _play(
    walk: Walk,
    engine: Bm25,
    facts: dict[str, Fact],
    protocol: TagProtocol,
    top_k: int,
    novice: Novice,
    rng: random.Random,
) -> tuple[Move, ...]:
    """The novice's moves along ``walk``. It answers only with what it has read, right or wrong."""
    known = walk[:1] if rng.random() < novice.answers_early else walk
    moves = []
    for fact in known:
        keyword = "" if rng.random() < novice.omits_keyword else f" {fact.relation}"
        passages = engine.search(f"{fact.subject}{keyword}", top_k)
        moves.append(Move(action=search_text(protocol, f"{fact.subject}{keyword}"), passages=passages))
        found = fact if fact.id in {p.id for p in passages} else facts[passages[0].id]
        if found is not fact:
            break
    # No draw where there is nothing to decide: the demonstrations of a seed stay what they are.
    if novice.double_checks and len(known) == len(walk) and found is fact and rng.random() < novice.double_checks:
        moves.append(moves[-1])
    return (*moves, Move(action=answer_text(protocol, found.object)))


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
