"""The built-in world: invented people, places and books, their facts, and questions of one to three hops.

    entities ── facts ──► passages (one sentence each)
                  └─ chains of relations ──► walks ──► questions

Nothing in it can be known beforehand, so a right answer has been found and copied. Every world uses
the same 200 name words; a world is which pairs of them name what, and who is related to whom. A world
has two splits that share no entity: questions are trained on one and evaluated on the other.

Text is written for a byte-level tokenizer: lower case, and no sentence or question starts with a name,
so that a name always carries its leading space and has the same tokens wherever it is to be copied.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain as concatenated
from itertools import islice, zip_longest

from agent.errors import UserError
from agent.records import Passage, Question
from agent.seeds import derive_seed

TRAIN, HELD_OUT = "train", "held-out"
SPLITS = (TRAIN, HELD_OUT)

ENTITIES = {"person": 500, "city": 160, "country": 50, "company": 160, "book": 250}
"""Entities of each type in the training split; the held-out split has half as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A function from the entities of one type to those of another, and the words for it."""

    keyword: str
    """Its name in passages, and the word an expert adds to a query."""
    subject: str
    object: str
    phrase: str
    """How a question says it; nests: ``the country of the city where {} was born``."""


RELATIONS = {
    r.keyword: r
    for r in (
        Relation(keyword="birthplace", subject="person", object="city", phrase="the city where {} was born"),
        Relation(keyword="spouse", subject="person", object="person", phrase="the person married to {}"),
        Relation(keyword="employer", subject="person", object="company", phrase="the company that {} works for"),
        Relation(keyword="country", subject="city", object="country", phrase="the country of {}"),
        Relation(keyword="capital", subject="country", object="city", phrase="the capital of {}"),
        Relation(keyword="headquarters", subject="company", object="city", phrase="the home city of {}"),
        Relation(keyword="founder", subject="company", object="person", phrase="the founder of {}"),
        Relation(keyword="author", subject="book", object="person", phrase="the writer of {}"),
    )
}

_BACK = {("spouse", "spouse"), ("capital", "country")}
"""Pairs that lead back to where they started."""


def chains(hops: int) -> tuple[tuple[str, ...], ...]:
    """The relation keywords of every kind of ``hops``-hop question, first hop first: 8, 13 and 19 for 1 to 3.

    >>> ("author", "birthplace", "country") in chains(3)
    True
    """
    found: list[tuple[str, ...]] = [(keyword,) for keyword in RELATIONS]
    for _ in range(hops - 1):
        found = [
            (*chain, relation.keyword)
            for chain in found
            for relation in RELATIONS.values()
            if RELATIONS[chain[-1]].object == relation.subject and (chain[-1], relation.keyword) not in _BACK
        ]
    return tuple(found)


def name_words() -> tuple[str, ...]:
    """The 200 words that names are made of: a consonant and a vowel, then one of 20 endings.

    The endings are letters that no English word ends on in this pattern, that no stemmer strips, and
    that make no stop word, so an index and a person see the same words.
    """
    rng = random.Random(0)
    starts = rng.sample([c + v for c in "bdfgklmnprtvz" for v in "aeiou"], 20)
    endings = rng.sample([c + v + f for c in "bgkmvzrl" for v in "aeiou" for f in "kmvxz"], 20)
    return tuple(rng.sample([start + ending for start in starts for ending in endings], 200))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """``object`` is the ``relation`` of ``subject``; what one passage says."""

    subject: str
    relation: str
    object: str

    @property
    def id(self) -> str:
        """Id of the passage that says it, unique in its world."""
        return f"{self.subject.replace(' ', '-')}/{self.relation}"

    @property
    def passage(self) -> Passage:
        return Passage(id=self.id, title=self.subject, text=f"the {self.relation} of {self.subject} is {self.object}.")


Walk = tuple[Fact, ...]
"""The facts that answer a question, in the order in which they have to be found."""


Facts = dict[tuple[str, str], Fact]
"""Facts by subject and relation."""


def question_of(walk: Walk, *, evidence_match: str) -> Question:
    """The question that ``walk`` answers. ``evidence_match`` is what its supporting documents are named by:
    ``title`` or ``id`` (an entity's passages share their title, so only ids tell them apart)."""
    words = walk[0].subject
    for fact in walk:
        words = RELATIONS[fact.relation].phrase.format(words)
    asks = "who" if RELATIONS[walk[-1].relation].object == "person" else "what"
    return Question(
        id=f"{walk[0].subject.replace(' ', '-')}/{'/'.join(fact.relation for fact in walk)}",
        text=f"{asks} is {words}?",
        golden_answers=(walk[-1].object,),
        supporting=tuple(fact.id if evidence_match == "id" else fact.subject for fact in walk),
        evidence_match=evidence_match,
        kind=f"{len(walk)}-hop",
    )


def _facts(entities: dict[str, list[str]], rng: random.Random) -> list[Fact]:
    """One fact for each relation of each entity. Marriage is mutual, and a capital lies in its country."""
    related: dict[tuple[str, str], str] = {}
    couples = iter(rng.sample(entities["person"], len(entities["person"])))
    for one, other in zip(couples, couples, strict=True):
        related[one, "spouse"], related[other, "spouse"] = other, one
    for country, city in zip(entities["country"], entities["city"], strict=False):
        related[country, "capital"], related[city, "country"] = city, country
    for relation in RELATIONS.values():
        for subject in entities[relation.subject]:
            related.setdefault((subject, relation.keyword), rng.choice(entities[relation.object]))
    return [Fact(subject=s, relation=r, object=o) for (s, r), o in related.items()]


class World:
    """The world of ``seed``: its facts, passages and questions; equal seeds give equal worlds."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = random.Random(derive_seed("world", seed))
        names = self._names(rng)
        self._walks: dict[tuple[str, ...], list[Walk]] = {}
        self.facts: dict[str, Facts] = {}
        """Facts of each split."""
        for split in SPLITS:
            share = 1 if split == TRAIN else 2
            entities = {kind: list(islice(names, n // share)) for kind, n in ENTITIES.items()}
            self.facts[split] = {(fact.subject, fact.relation): fact for fact in _facts(entities, rng)}
        passages = [fact.passage for facts in self.facts.values() for fact in facts.values()]
        # In random order, since an index breaks ties by it: the word order of relations must not matter.
        self.passages: tuple[Passage, ...] = tuple(rng.sample(passages, len(passages)))

    @staticmethod
    def _names(rng: random.Random) -> Iterator[str]:
        """Names of two words, no two of the same words: a bag of words could not tell them apart."""
        words = name_words()
        pairs = [(a, b) for i, a in enumerate(words) for b in words[i + 1 :]]
        for pair in rng.sample(pairs, 2 * sum(ENTITIES.values())):
            yield " ".join(rng.sample(pair, 2))

    def walks(self, split: str, chain: Sequence[str]) -> list[Walk]:
        """Every walk along ``chain`` in ``split`` that visits no entity twice, in a fixed order."""
        key = (split, *chain)
        if key not in self._walks:
            self._walks[key] = self._find_walks(self.facts[split], chain)
        return self._walks[key]

    def walk_of(self, question: Question) -> Walk:
        """The walk that one of this world's training questions asks for."""
        chain = question.id.split("/")[1:]
        return next(w for w in self.walks(TRAIN, chain) if question_of(w, evidence_match="id").id == question.id)

    @staticmethod
    def _find_walks(facts: Facts, chain: Sequence[str]) -> list[Walk]:
        found = []
        for fact in [f for f in facts.values() if f.relation == chain[0]]:
            walk = [fact]
            for relation in chain[1:]:
                walk.append(facts[walk[-1].object, relation])
            if len({fact.subject, *(f.object for f in walk)}) == len(walk) + 1:
                found.append(tuple(walk))
        return found

    def questions(self, split: str, hops: int, count: int, *, evidence_match: str = "title") -> list[Question]:
        """``count`` questions spread evenly over the chains of ``hops`` hops; more of them extend the list.

        Raises ``UserError`` when the split has fewer.
        """
        rng = random.Random(derive_seed("questions", self.seed, split, hops))
        rows = []
        for chain in chains(hops):
            walks = self.walks(split, chain)
            rows.append(rng.sample(walks, len(walks)))
        turns = concatenated.from_iterable(zip_longest(*rows))
        walks = list(islice((walk for walk in turns if walk is not None), count))
        if len(walks) < count:
            raise UserError(
                f"data.source=world has {len(walks)} {hops}-hop {split} questions, not {count}; "
                "lower data.train_questions, data.eval_questions_per_hop or data.dev_questions_per_hop"
            )
        return [question_of(walk, evidence_match=evidence_match) for walk in walks]

    def train_questions(
        self, count: int, *, hop_shares: Sequence[float] = (1, 1, 1), evidence_match: str = "title"
    ) -> tuple[Question, ...]:
        """``count`` training questions in random order, of 1, 2, 3 hops in proportion to ``hop_shares``."""
        total = sum(hop_shares)
        # Rounded cumulatively, so that the parts add up to ``count``.
        ends = [round(count * sum(hop_shares[: i + 1]) / total) for i in range(len(hop_shares))]
        questions: list[Question] = []
        for hops, end in enumerate(ends, start=1):
            questions += self.questions(TRAIN, hops, end - len(questions), evidence_match=evidence_match)
        return tuple(random.Random(derive_seed("order", self.seed)).sample(questions, count))

    def eval_questions(self, per_hop: int, *, evidence_match: str = "title") -> tuple[Question, ...]:
        """``per_hop`` held-out questions of each of 1, 2 and 3 hops."""
        return tuple(
            q for hops in (1, 2, 3) for q in self.questions(HELD_OUT, hops, per_hop, evidence_match=evidence_match)
        )

    def dev_questions(self, per_hop: int, *, after: int, evidence_match: str = "title") -> tuple[Question, ...]:
        """The ``per_hop`` held-out questions of each of 1, 2 and 3 hops that follow the first ``after``."""
        return tuple(
            q
            for hops in (1, 2, 3)
            for q in self.questions(HELD_OUT, hops, after + per_hop, evidence_match=evidence_match)[after:]
        )
