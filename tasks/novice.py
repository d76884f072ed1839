"""What a supervised warm start imitates in the built-in world: a *lazy novice* in worlds other than the one that is
trained.

The novice writes well-formed searches and copies what it reads, but it is lazy: it mostly sees 1-hop
questions, mostly answers with whatever its first search brought, and sometimes searches for a name
alone. A policy that imitates it answers 1-hop questions and few others, while now and then it keeps
searching. That is what reinforcement learning needs: something to reinforce, and much left to learn.
Clean experts would leave neither (they reach 0.9 exact match before the first update).
"""

from __future__ import annotations

import random

from agent.protocol import TagProtocol
from agent.seeds import derive_seed
from tasks.bm25 import Bm25
from tasks.config import Novice
from tasks.demonstrations import Demonstration, Move, answer_text, search_text
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
