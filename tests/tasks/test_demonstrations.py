"""The novice's search engine, its demonstrations, and how they become tokens."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.protocol import PROTOCOLS
from agent.records import Passage, Question
from tasks.bm25 import Bm25
from tasks.config import Novice
from tasks.demonstrations import Demonstration, Encoded, Move, as_trajectory, encode
from tasks.novice import TWO_HOP_CHAINS, demonstrations
from tasks.world import SPLITS, World, chains

SEARCH = PROTOCOLS["search"]
COUNT = 3000


@pytest.fixture(scope="module")
def made() -> tuple[Demonstration, ...]:
    return demonstrations(0, COUNT, SEARCH, 2)


class Characters:
    """A codec of one token per character and one per tag."""

    special_tokens = ("<search>", "</search>", "<result>", "</result>", "<answer>", "</answer>")
    special_ids = frozenset(range(-6, 0))
    beginning: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    has_template = False

    def encode(self, text):
        parts = re.split("(" + "|".join(self.special_tokens) + ")", text)
        at = {tag: i - 6 for i, tag in enumerate(self.special_tokens)}
        return [i for part in parts for i in ([at[part]] if part in at else map(ord, part))]

    def decode(self, ids):
        return "".join(self.special_tokens[i + 6] if i < 0 else chr(i) for i in ids)

    def render(self, messages, **how):
        raise AssertionError("plain prompts only")


def dialogue(protocol: str = "search") -> Dialogue:
    return Dialogue.of(Characters(), AgentConfig(protocol=protocol, prompt="plain", chat=False, max_passage_chars=2000))


def queries(demonstration: Demonstration) -> list[str]:
    return [SEARCH.parse(move.action).query for move in demonstration.moves[:-1]]


def test_bm25_scores_by_hand():
    passages = [
        Passage(id="a", title="red", text="red fox"),
        Passage(id="b", title="blue", text="a fox and a hen"),
        Passage(id="c", title="grey", text="wolf"),
    ]
    found = Bm25(passages, k1=0.9, b=0.4).search("Fox, red!", 3)
    assert [p.id for p in found] == ["a", "b"], "a passage without any word of the query is no hit"
    average = (3 + 6 + 2) / 3

    def weight(n, length):
        return n / (n + 0.9 * (0.6 + 0.4 * length / average))

    fox, red = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    assert found[0].score == pytest.approx(red * weight(2, 3) + fox * weight(1, 3))
    assert found[1].score == pytest.approx(fox * weight(1, 6))


def test_bm25_breaks_ties_by_order():
    passages = [Passage(id=str(i), title="", text="same words") for i in range(5)]
    assert [p.id for p in Bm25(passages).search("words", 3)] == ["0", "1", "2"]


def test_an_experts_query_finds_its_passage():
    world = World(0)
    engine = Bm25(world.passages)
    facts = [fact for split in SPLITS for fact in world.facts[split].values()]
    ranks = Counter()
    for fact in facts:
        found = [p.id for p in engine.search(f"{fact.subject} {fact.relation}", 2)]
        ranks[found.index(fact.id) if fact.id in found else "missed"] += 1
    assert ranks[0] / len(facts) > 0.97
    assert ranks["missed"] == 0


def test_a_name_alone_finds_a_passage_of_its_entity():
    world = World(0)
    engine = Bm25(world.passages)
    titles = sorted({p.title for p in world.passages})[::7]
    assert all(engine.search(title, 2)[0].title == title for title in titles)


@pytest.mark.slow
def test_demonstrations_depend_on_the_seed_alone(made):
    assert demonstrations(0, 40, SEARCH, 2) == made[:40]
    assert demonstrations(1, 40, SEARCH, 2) != made[:40]


def test_demonstrations_come_from_other_worlds(made):
    own = {p.text for p in World(0).passages}
    shown = {p.text for d in made for m in d.moves for p in m.passages or ()}
    assert len(shown & own) / len(shown) < 0.01


def test_the_novice_is_as_lazy_as_it_should_be(made):
    novice = Novice()
    kinds = Counter(d.question.kind for d in made)
    for hops, share in enumerate(novice.hop_shares, start=1):
        assert kinds[f"{hops}-hop"] / COUNT == pytest.approx(share, abs=0.025)
    asked = [len(query.split()) for d in made for query in queries(d)]
    assert set(asked) == {2, 3}
    assert asked.count(2) / len(asked) == pytest.approx(novice.omits_keyword, abs=0.025)
    many = [d for d in made if d.question.kind != "1-hop"]
    # A few of those that mean to go on stop all the same: a search for a name alone found something else.
    goes_on = sum(len(queries(d)) > 1 for d in many) / len(many)
    assert goes_on == pytest.approx(1 - novice.answers_early, abs=0.05)
    two_hop = {tuple(d.question.id.split("/")[1:]) for d in made if d.question.kind == "2-hop"}
    assert two_hop == set(TWO_HOP_CHAINS)
    assert two_hop < set(chains(2))
    assert {relation for chain in two_hop for relation in chain} == {chain[0] for chain in chains(1)}


@pytest.mark.slow
def test_a_novice_that_checks_makes_its_last_search_again():
    novice = Novice(hop_shares=[1, 1, 1], answers_early=0, omits_keyword=0, double_checks=0.6)
    made = demonstrations(0, 600, SEARCH, 2, novice)
    twice = 0
    for d in made:
        hops, asked = int(d.question.kind[0]), queries(d)
        assert len(asked) == hops or (len(asked) == hops + 1 and asked[-1] == asked[-2])
        assert SEARCH.parse(d.moves[-1].action).answer in d.question.golden_answers
        twice += len(asked) > hops
    assert twice / len(made) == pytest.approx(0.6, abs=0.06)
    lazy = Novice(answers_early=1, omits_keyword=0, double_checks=1)
    for d in demonstrations(0, 100, SEARCH, 2, lazy):
        assert len(queries(d)) == (2 if d.question.kind == "1-hop" else 1), "it checks where it has found everything"


def test_the_novice_answers_only_with_what_it_reads(made):
    for demonstration in made:
        seen = [p for m in demonstration.moves[:-1] for p in m.passages]
        assert 0 < len(demonstration.moves[0].passages) <= 2
        answer = SEARCH.parse(demonstration.moves[-1].action).answer
        assert any(p.text.endswith(f" is {answer}.") for p in seen)
        for query, move in zip(queries(demonstration)[1:], demonstration.moves, strict=False):
            entity = " ".join(query.split()[:2])
            assert any(p.text.endswith(f" is {entity}.") for p in move.passages)


def test_whether_the_novice_is_right(made):
    right: dict[str, list[bool]] = {kind: [] for kind in ("1-hop", "2-hop", "3-hop")}
    for d in made:
        answer = SEARCH.parse(d.moves[-1].action).answer
        right[d.question.kind].append(answer in d.question.golden_answers)
        if d.question.kind != "1-hop" and len(d.moves) == 2:
            assert not right[d.question.kind][-1], "an early answer is a wrong one"
    assert 0.96 < np.mean(right["1-hop"]) < 0.995, "a name alone usually finds the passage too"
    assert 0 < np.mean(right["2-hop"]) < 1 - Novice().answers_early + 0.05


def test_a_perfect_expert_is_always_right(monkeypatch):
    monkeypatch.setattr("tasks.novice.WORLDS", 3)  # the walks through each are looked for first
    expert = Novice(hop_shares=[1, 1, 1], answers_early=0, omits_keyword=0)
    for d in demonstrations(0, 300, SEARCH, 2, expert):
        assert SEARCH.parse(d.moves[-1].action).answer == d.question.golden_answers[0]
        assert d.question.kind == f"{len(d.moves) - 1}-hop"
        assert set(d.question.supporting) <= {p.id for m in d.moves[:-1] for p in m.passages}


def test_encoding_masks_what_the_policy_did_not_write():
    passages = (Passage(id="p", title="mi zo", text="the author of mi zo is ka ru."),)
    demonstration = Demonstration(
        question=Question(id="q", text="who is the writer of mi zo?", golden_answers=("ka ru",)),
        moves=(
            Move(action="<search> mi zo author</search>", passages=passages),
            Move(action="<search> mi</search>", passages=()),
            Move(action="<answer> ka ru</answer>"),
        ),
    )
    ids, mask = encode(demonstration, dialogue())
    assert ids.dtype == np.int32
    assert mask.dtype == np.bool_
    codec = Characters()
    # The mask cuts the text into alternating pieces, the first of them not the policy's.
    cuts = [0, *(np.flatnonzero(np.diff(mask)) + 1), len(ids)]
    pieces = [codec.decode(ids[a:b].tolist()) for a, b in pairwise(cuts)]
    assert not mask[0]
    assert pieces == [
        "Question: who is the writer of mi zo?\n",
        "<search> mi zo author</search>",
        '\n<result>\nResult 1: "mi zo"\nthe author of mi zo is ka ru.\n</result>\n',
        "<search> mi</search>",
        "\n<result>\nNo passage matches this query.\n</result>\n",
        "<answer> ka ru</answer>",
    ]


def test_an_answer_without_a_closing_tag_is_ended_by_end_ids():
    autocoa = PROTOCOLS["autocoa"]
    (made,) = demonstrations(0, 1, autocoa, 2)
    assert autocoa.parse(made.moves[-1].action).answer
    ids, mask = encode(made, dialogue("autocoa"), end_ids=[7])
    assert ids[-1] == 7
    assert mask[-1]
    with pytest.raises(ValueError, match="end_ids is needed"):
        encode(made, dialogue("autocoa"))


@pytest.mark.parametrize("moves", [(), (Move(action="a", passages=()),), (Move(action="a"), Move(action="b"))])
def test_only_the_last_move_ends_a_demonstration(moves):
    with pytest.raises(ValueError, match="exactly the last move ends"):
        Demonstration(question=Question(id="q", text="?", golden_answers=("a",)), moves=moves)


def test_encoded_demonstrations_come_apart_as_they_were(made):
    encoded = Encoded.of([as_trajectory(demonstration, dialogue()) for demonstration in made[:7]])
    assert encoded.lengths.sum() == len(encoded.token_ids) == len(encoded.action_mask)
    for (ids, mask), demonstration in zip(encoded.split(), made[:7], strict=True):
        wanted_ids, wanted_mask = encode(demonstration, dialogue())
        assert ids.tolist() == wanted_ids.tolist()
        assert mask.tolist() == wanted_mask.tolist()
