"""The built-in world, checked against what its passages say rather than against its own facts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from agent.errors import UserError
from tasks.world import HELD_OUT, RELATIONS, TRAIN, World, chains, name_words

SENTENCE = re.compile(r"the (\w+) of (\w+ \w+) is (\w+ \w+)\.")
STOP_WORDS = set(
    re.findall(r"\w+", "a an and are as at be but by for if in into is it no not of on or such that the to")
)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def questions(world):
    return {TRAIN: world.train_questions(1440), HELD_OUT: world.eval_questions(150)}


def read(world: World) -> dict[tuple[str, str], str]:
    """What a reader learns from the passages: the object of each subject and relation."""
    told = {}
    for passage in world.passages:
        relation, subject, object_ = SENTENCE.fullmatch(passage.text).groups()
        assert subject == passage.title
        assert (subject, relation) not in told
        told[subject, relation] = object_
    return told


def understand(text: str) -> tuple[str, list[str]]:
    """The entity and the relations, first hop first, that a question's words name."""
    words = re.fullmatch(r"(?:who|what) is (.+)\?", text)[1]
    relations = []
    while " " in words.replace(" ", "", 1):
        for relation in RELATIONS.values():
            before, after = relation.phrase.split("{}")
            if words.startswith(before) and words.endswith(after):
                relations.insert(0, relation.keyword)
                words = words[len(before) : len(words) - len(after)]
                break
        else:
            raise AssertionError(f"no relation's phrase fits {words!r}")
    return words, relations


def test_words_are_the_same_everywhere_and_nothing_else_in_the_text():
    words = name_words()
    assert len(words) == len(set(words)) == 200
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()
    assert digest.startswith(WORDS_DIGEST), "another word list makes another tokenizer and another world"
    templates = set(re.findall(r"\w+", " ".join(r.phrase + " " + r.keyword for r in RELATIONS.values())))
    assert not set(words) & (templates | STOP_WORDS)
    # Porter's stemmer, which the index applies, leaves them alone and so apart.
    assert not [w for w in words if w.endswith(("s", "e", "y", "ed", "ing"))]


WORDS_DIGEST = "1f990eb6d72227bb"


def test_size_of_the_world(world):
    assert len(world.passages) == 3420
    assert len({p.id for p in world.passages}) == 3420
    counts = Counter(p.text.split()[1] for p in world.passages)
    assert counts == {
        "birthplace": 750,
        "spouse": 750,
        "employer": 750,
        "country": 240,
        "capital": 75,
        "headquarters": 240,
        "founder": 240,
        "author": 375,
    }
    assert [len(chains(hops)) for hops in (1, 2, 3)] == [8, 13, 19]


def test_names_are_distinct_as_bags_of_words(world):
    titles = {p.title for p in world.passages}
    assert len(titles) == len({frozenset(t.split()) for t in titles}) == 1680
    assert all(set(t.split()) <= set(name_words()) for t in titles)


def test_marriage_is_mutual_and_a_capital_lies_in_its_country(world):
    told = read(world)
    for (subject, relation), object_ in told.items():
        if relation == "spouse":
            assert object_ != subject
            assert told[object_, "spouse"] == subject
        if relation == "capital":
            assert told[object_, "country"] == subject


def test_equal_seeds_give_equal_worlds(world, questions):
    again = World(0)
    assert again.passages == world.passages
    assert again.train_questions(1440) == questions[TRAIN]
    assert again.eval_questions(150) == questions[HELD_OUT]
    assert World(1).passages != world.passages


@pytest.mark.parametrize("split", [TRAIN, HELD_OUT])
def test_answers_follow_from_the_passages(world, questions, split):
    told = read(world)
    for question in questions[split]:
        entity, relations = understand(question.text)
        path = [entity]
        for relation in relations:
            path.append(told[path[-1], relation])
        assert question.golden_answers == (path[-1],)
        assert question.supporting == tuple(path[:-1])
        assert question.kind == f"{len(relations)}-hop"
        assert len(set(path)) == len(path), "a walk that comes back gives its answer away"
        assert question.text.startswith("who" if RELATIONS[relations[-1]].object == "person" else "what")


def test_supporting_documents_by_id_are_the_passages_on_the_path(world):
    passages = {p.id: p for p in world.passages}
    by_title = world.train_questions(300)
    for question, other in zip(world.train_questions(300, evidence_match="id"), by_title, strict=True):
        found = [passages[i] for i in question.supporting]
        assert tuple(p.title for p in found) == other.supporting
        assert [p.text.split()[1] for p in found] == understand(question.text)[1]


def test_training_and_held_out_questions_share_no_entity(world, questions):
    seen = {}
    for split in (TRAIN, HELD_OUT):
        everything = " ".join(f"{q.supporting} {q.golden_answers}" for q in questions[split])
        seen[split] = set(re.findall(r"'(\w+ \w+)'", everything))
    assert seen[TRAIN]
    assert seen[HELD_OUT]
    assert not seen[TRAIN] & seen[HELD_OUT]
    for split in (TRAIN, HELD_OUT):  # and what the index knows of one leads nowhere in the other
        own = {f.subject for f in world.facts[split].values()}
        assert {f.object for f in world.facts[split].values()} <= own


def test_hops_and_chains_are_balanced(questions):
    assert Counter(q.kind for q in questions[HELD_OUT]) == {"1-hop": 150, "2-hop": 150, "3-hop": 150}
    assert Counter(q.kind for q in questions[TRAIN]) == {"1-hop": 480, "2-hop": 480, "3-hop": 480}
    per_chain = Counter(q.id.split("/", 1)[1] for q in questions[HELD_OUT])
    for hops in (1, 2, 3):
        counts = [per_chain["/".join(chain)] for chain in chains(hops)]
        assert max(counts) - min(counts) <= 1
    ids = [q.id for split in questions.values() for q in split]
    assert len(set(ids)) == len(ids)
    # Drawn in random order: a pool's first batch is not all of one kind.
    assert len({q.kind for q in questions[TRAIN][:24]}) == 3


def test_more_questions_extend_fewer(world):
    few, many = world.train_questions(90), world.train_questions(900)
    assert {q.id for q in few} < {q.id for q in many}


@pytest.mark.parametrize(
    ("shares", "expected"), [((1, 0, 0), [100]), ((1, 1, 1), [33, 34, 33]), ((0.8, 0.2, 0), [80, 20])]
)
def test_hop_shares(world, shares, expected):
    kinds = Counter(q.kind for q in world.train_questions(100, hop_shares=shares))
    assert [kinds[f"{hops}-hop"] for hops in (1, 2, 3) if kinds[f"{hops}-hop"]] == expected


def test_asking_for_more_than_there_are_says_how_many_there_are(world):
    with pytest.raises(UserError, match=r"2280 1-hop train questions, not 3000; lower data\.train_questions"):
        world.train_questions(3000, hop_shares=(1, 0, 0))
    with pytest.raises(UserError, match="1140 1-hop held-out questions, not 1141"):
        world.eval_questions(1141)
