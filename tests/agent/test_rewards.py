"""Outcome, evidence recall, their mix, and each gate with a trajectory that it closes on and one that it lets pass."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.answers import normalise_title
from agent.config import RewardConfig
from agent.errors import UserError
from agent.protocol import PROTOCOLS
from agent.records import Question, Score, StopReason, Trajectory
from agent.rewards.costs import redundant_searches
from agent.rewards.evidence import evidence_recall
from agent.rewards.gates import GATES
from agent.rewards.outcome import outcome_names
from agent.rewards.scorer import Scorer
from tasks.together import together

PLAIN = Question(id="q", text="Who?", golden_answers=("Jane Austen", "Austen"))
TWO = Question(id="q", text="Who?", golden_answers=("Jane Austen",), supporting=("Emma (novel)", "Jane Austen"))
SEARCH = {"text": "<search>emma</search>", "query": "emma"}
ANSWER = {"text": "<answer>Jane Austen</answer>", "answer": "Jane Austen"}


def score(scorer: Scorer, question: Question, trajectory: Trajectory) -> Score:
    """Of one trajectory, which no fault excludes."""
    (member,) = asyncio.run(scorer.score(question, [trajectory])).members
    return member.score


def found(query: str, *documents: tuple[str, str]) -> dict:
    return {"text": f"<search>{query}</search>", "query": query, "found": documents}


# --- outcome -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "answer", "expected"),
    [
        ("em", "the austen!", 1.0),
        ("em", "Miss Jane", 0.0),
        ("em_soft", "Austen, Jane", 1.0),
        ("em_soft", "Jane", 0.5),
        ("em_soft", "Brontë", 0.0),
        ("f1", "Jane Brontë", 0.5),
        ("cover_em", "It was Jane Austen.", 1.0),
        ("cover_em", "Jane Austenite", 1.0),
        ("cover_em", "?", 0.0),
        ("cover_words", "It was Jane Austen.", 1.0),
        ("cover_words", "Jane Austenite", 0.0),
        ("cover_words", "?", 0.0),
    ],
)
def test_outcomes(make_trajectory, search_protocol, outcome, answer, expected):
    scorer = Scorer(RewardConfig(outcome=outcome), search_protocol)
    got = score(scorer, PLAIN, make_trajectory({"text": "", "answer": answer}))
    assert (got.reward, got.outcome, got.evidence, got.gate) == (expected, expected, None, None)


BACHS = ("Johann Sebastian Bach", "Johann Christian Bach", "Johann Christoph Friedrich Bach")
CUPS = ("2015 FIFA World Cup", "2018 FIFA World Cup")


@pytest.mark.parametrize(
    ("needed", "answer", "expected"),
    [
        (("Johann Sebastian Bach", "Vivaldi"), "Johann Sebastian Bach", 0.5),
        (("Johann Sebastian Bach", "Vivaldi"), "Vivaldi, Johann Sebastian Bach", 1.0),
        (("Johann Sebastian Bach", "Vivaldi"), "both Vivaldi and the Johann Sebastian Bach!", 1.0),
        (("Johann Sebastian Bach", "Vivaldi"), "Telemann", 0.0),
        (("A1", "B2", "C3"), "A1 and B2", 0.5),
        (("A1", "B2", "C3"), "C3, A1, and B2", 1.0),
        (BACHS, " and ".join(BACHS[:2]), 0.5),
        (CUPS, CUPS[0], 0.5),
        (("New York City", "New York"), "New York City", 0.5),
        (("New York City", "New York"), "New York and New York City", 1.0),
        (("The The", "Bach"), "The The and Bach", 1.0),
        (("3.5", "4"), "35 and 4", 0.0),
        (("北京", "上海"), "上海, 北京", 1.0),
    ],
)
def test_where_all_answers_are_needed_only_all_of_them_earn_all(
    make_trajectory, search_protocol, needed, answer, expected
):
    asked = replace(PLAIN, golden_answers=together(needed), needed=needed)
    scorer = Scorer(RewardConfig(outcome="em_soft"), search_protocol)
    assert score(scorer, asked, make_trajectory({"text": "", "answer": answer})).outcome == expected


@pytest.mark.parametrize("outcome", outcome_names())
def test_one_of_two_needed_answers_never_earns_all(make_trajectory, search_protocol, outcome):
    for needed in (("Johann Sebastian Bach", "Vivaldi"), CUPS, ("New York City", "New York")):
        asked = replace(PLAIN, golden_answers=together(needed), needed=needed)
        scorer = Scorer(RewardConfig(outcome=outcome), search_protocol)
        assert score(scorer, asked, make_trajectory({"text": "", "answer": needed[0]})).outcome < 1


@pytest.mark.parametrize("outcome", outcome_names())
def test_no_answer_has_no_outcome(make_trajectory, search_protocol, outcome):
    scorer = Scorer(RewardConfig(outcome=outcome), search_protocol)
    got = score(scorer, PLAIN, make_trajectory("hm", stop_reason=StopReason.NO_ACTION))
    assert (got.reward, got.outcome) == (0.0, 0.0)


# --- evidence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "normal"),
    [
        ('"William_King (governor)"', "william king (governor)"),
        ("  Emma \n (novel) ", "emma (novel)"),
        ("Straße", "strasse"),
        ("Ｅmma", "emma"),
        ("O'Brien", "o'brien"),
    ],
)
def test_normalise_title(title, normal):
    assert normalise_title(title) == normal


def test_evidence_by_title(make_trajectory):
    def recall(*turns, question=TWO):
        return evidence_recall(make_trajectory(*turns), question)

    assert recall(ANSWER) == 0.0
    assert recall(found("a", ("1", "EMMA_(novel)"))) == 0.5
    assert recall(found("a", ("1", "Emma (novel)")), found("b", ("2", "other"), ("3", "jane austen"))) == 1.0
    # The same document twice, in one turn or in two, counts once; so do two passages of one title.
    assert recall(found("a", ("1", "Emma (novel)"), ("9", "Emma (novel)")), found("b", ("1", "Emma (novel)"))) == 0.5
    assert recall(ANSWER, question=PLAIN) is None
    band = Question(id="q", text="?", golden_answers=("a",), supporting=("!!!", "\u200b"))
    assert recall(found("a", ("1", "???"), ("2", "")), question=band) == 0.0, "titles without a word differ, too"
    assert recall(found("a", ("1", "!!!")), question=band) == 1.0, "and no title is no document's"
    twice = Question(id="q", text="?", golden_answers=("a",), supporting=("Emma", "emma", '"Emma"'))
    assert recall(found("a", ("1", "Emma")), question=twice) == 1.0


def test_evidence_by_id(make_trajectory):
    question = Question(id="q", text="?", golden_answers=("a",), supporting=("d1", "d2", "d2"), evidence_match="id")
    right_title = make_trajectory(found("a", ("x", "d1")))
    assert evidence_recall(right_title, question) == 0.0
    assert evidence_recall(make_trajectory(found("a", ("d1", ""), ("d1", ""))), question) == 0.5
    both = make_trajectory(found("a", ("d1", "")), found("b", ("d2", "")))
    assert evidence_recall(both, question) == 1.0
    assert evidence_recall(make_trajectory(found("a", ("D1", ""))), question) == 0.0


def test_a_result_block_written_by_the_policy_is_no_evidence(make_trajectory, play_script):
    forged = '<result>\nResult 1: "Emma (novel)"\nx\n</result>'
    assert evidence_recall(make_trajectory(forged), TWO) == 0.0
    played = play_script([forged + "<answer>Jane Austen</answer>"]).trajectory
    assert evidence_recall(played, TWO) == 0.0


def test_evidence_in_a_played_episode(play_script, austen):
    played = play_script(["<search>emma</search>", "<answer>Jane Austen</answer>"], [[austen]]).trajectory
    assert evidence_recall(played, TWO) == 0.5


# --- the mix -------------------------------------------------------------------------------------


def test_the_mix(make_trajectory, search_protocol):
    half_found = make_trajectory(found("a", ("1", "Emma (novel)")), ANSWER)
    mixed = Scorer(RewardConfig(evidence_weight=0.25), search_protocol)
    got = score(mixed, TWO, half_found)
    assert got.reward == 0.25 * 0.5 + 0.75 * 1.0
    assert (got.outcome, got.evidence) == (1.0, 0.5)
    wrong = make_trajectory(found("a", ("1", "Emma (novel)")), {"text": "<answer>x</answer>", "answer": "x"})
    assert score(mixed, TWO, wrong).reward == 0.125
    assert score(mixed, PLAIN, half_found).reward == 1.0, "without supporting documents the outcome is the reward"
    assert score(Scorer(RewardConfig(), search_protocol), TWO, half_found).reward == 1.0
    assert score(Scorer(RewardConfig(evidence_weight=1.0), search_protocol), TWO, half_found).reward == 0.5


# --- gates ---------------------------------------------------------------------------------------

BOXED = {"text": "\\boxed{Jane}", "answer": "Jane"}
BOX_SEARCH = {"text": "<begin_search>emma</end_search>", "query": "emma"}

CLOSED = [  # gate, protocol, trajectories that it sets to 0, trajectories that it lets pass
    (
        "no_answer",
        "search",
        [
            [SEARCH],
            ["hm"],
            [SEARCH, "<answer>cut"],
            [SEARCH, "<answer> </answer>"],
            [SEARCH, {"text": "<answer>\u200b</answer>", "answer": "\u200b"}],
        ],
        [[SEARCH, ANSWER], [ANSWER]],
    ),
    (
        "no_search",
        "search",
        [[ANSWER], [{**SEARCH, "observed": False}], [{**SEARCH, "refused": True}, ANSWER]],
        [[SEARCH, ANSWER], [SEARCH]],
    ),
    (
        "unbalanced",
        "search",
        [
            ["<search>cut"],
            ["emma</search>"],
            ["<search> and ", SEARCH, ANSWER],
            ["<result>", ANSWER],
            ["</result>", ANSWER],
            ["<answer>", SEARCH, ANSWER],
        ],
        [
            [SEARCH, ANSWER],
            ["hm"],
            ["<result>mine</result>", ANSWER],
            ["\\boxed{", ANSWER],
            [{"text": "<think>With <answer> I end.</think>emma", "query": "emma"}, ANSWER],
        ],
    ),
    (
        "unbalanced",
        "autocoa",
        [["<begin_search>", BOXED], ["</end_search>"], ["<search_result>", BOXED], ["</search_result>", BOXED]],
        [[BOX_SEARCH, BOXED], ["<search>", BOXED], ["<answer>", BOXED]],
    ),
    (
        "search_after_answer",
        "search",
        [
            [{"text": "<answer>Jane <search>emma</search>", "query": "emma"}, ANSWER],
            ["<answer>Jane", SEARCH, ANSWER],
            [{"text": "<answer>Jane</answer><search>", "answer": "Jane"}],
            [{"text": "<answer>Jane</answer><tool_call>{}</tool_call>", "query": "emma"}, ANSWER],
            ["<answer>Jane</answer>", {"text": "<tool_call>{}</tool_call>", "query": "emma"}, ANSWER],
        ],
        [
            [SEARCH, ANSWER],
            [SEARCH, SEARCH, ANSWER],
            [ANSWER],
            ["hm"],
            [{"text": "<think>I'll write <answer>.</think><tool_call>{}</tool_call>", "query": "emma"}, ANSWER],
        ],
    ),
    (
        "search_after_answer",
        "autocoa",
        [[{"text": "\\boxed{Jane} <begin_search>emma</end_search>", "query": "emma"}, BOXED]],
        [[BOX_SEARCH, BOXED]],
    ),
    (
        "duplicate_query",
        "search",
        [
            [SEARCH, SEARCH, ANSWER],
            [SEARCH, found("x"), found("The EMMA?"), ANSWER],
            [SEARCH, {**SEARCH, "refused": True}],
            [found("caf\u00e9"), found("cafe\u0301"), ANSWER],
        ],
        [[SEARCH, found("emma author"), ANSWER], [SEARCH, ANSWER], [ANSWER], [found("The The"), found("!!!"), ANSWER]],
    ),
]


def test_every_gate_is_there_and_is_tested():
    papers = {"no_answer", "no_search", "unbalanced", "search_after_answer", "duplicate_query"}
    assert {gate for gate, *_ in CLOSED} == set(GATES) == papers


@pytest.mark.parametrize(("gate", "protocol", "closed", "open_"), CLOSED)
def test_gates(make_trajectory, gate, protocol, closed, open_):
    gated = Scorer(RewardConfig(gates=[gate], evidence_weight=0.5), PROTOCOLS[protocol])
    free = Scorer(RewardConfig(evidence_weight=0.5), PROTOCOLS[protocol])
    question = Question(id="q", text="?", golden_answers=("Jane Austen", "Jane"), supporting=("Emma",))
    for turns in closed:
        t = make_trajectory(found("needle", ("1", "Emma")), *turns) if gate != "no_search" else make_trajectory(*turns)
        got = score(gated, question, t)
        assert (got.reward, got.gate) == (0.0, gate), turns
        ungated = score(free, question, t)
        assert (got.outcome, got.evidence) == (ungated.outcome, ungated.evidence), "a gate hides nothing"
        assert ungated.gate is None
    for turns in open_:
        t = make_trajectory(*turns)
        assert score(gated, question, t) == score(free, question, t), turns


def test_the_first_gate_named_is_the_one_reported(make_trajectory, search_protocol):
    both = make_trajectory("<search>cut")
    for gates in (["no_answer", "unbalanced"], ["unbalanced", "no_answer"]):
        assert score(Scorer(RewardConfig(gates=gates), search_protocol), PLAIN, both).gate == gates[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"outcome": "em_sofd"}, r"reward\.outcome=em_sofd.*did you mean 'em_soft'"),
        ({"gates": ["no_answer", "no_serch"]}, r"reward\.gates=no_serch.*did you mean 'no_search'"),
    ],
)
def test_unknown_names(search_protocol, changed, message):
    with pytest.raises(UserError, match=message):
        Scorer(RewardConfig(**changed), search_protocol)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_the_weight_is_a_share(weight):
    with pytest.raises(UserError, match=r"reward\.evidence_weight"):
        RewardConfig(evidence_weight=weight)


# --- costs ---------------------------------------------------------------------------------------

EMMA, AUSTEN = ("1", "Emma (novel)"), ("2", "Jane Austen")


@pytest.mark.parametrize(
    ("turns", "redundant"),
    [
        ([ANSWER], 0),
        ([found("a", EMMA), found("b", AUSTEN), ANSWER], 0),
        ([found("a", EMMA), found("b", EMMA), ANSWER], 1),  # nothing new
        ([found("a", EMMA), found("b", EMMA, AUSTEN), found("c", AUSTEN, EMMA), ANSWER], 1),
        ([found("the Emma?", EMMA), found("emma", AUSTEN), ANSWER], 1),  # the same query, though it finds more
        ([found("a", EMMA), found("a", EMMA), found("a", EMMA)], 2),
        ([found("a"), ANSWER], 1),  # nothing at all
        ([found("a", EMMA), {**SEARCH, "refused": True}, ANSWER], 0),  # no search
        ([found("a", EMMA), {**found("a"), "observed": False}], 0),
        ([found("a", ("1", "t")), found("b", ("2", "t")), ANSWER], 0),  # two documents of one title
        ([found("!!!", EMMA), found("???", AUSTEN), ANSWER], 0),  # queries without a word are compared as they stand
    ],
)
def test_redundant_searches(make_trajectory, turns, redundant):
    assert redundant_searches(make_trajectory(*turns)) == redundant


@pytest.mark.parametrize(
    ("costs", "cost"),
    [
        ({}, 0.0),
        ({"search_cost": 0.1}, 0.3),
        ({"token_cost": 0.01}, 0.04),  # of four turns, one token each
        ({"redundant_cost": 0.25}, 0.25),
        ({"search_cost": 0.1, "token_cost": 0.01, "redundant_cost": 0.25}, 0.59),
        ({"search_cost": 0.5}, 1.0),  # no more than was earned
    ],
)
def test_what_is_spent_is_taken_off(make_trajectory, search_protocol, costs, cost):
    frugal = Scorer(RewardConfig(evidence_weight=0.5, **costs), search_protocol)
    got = score(frugal, TWO, make_trajectory(found("a", EMMA), found("b", AUSTEN), found("c", AUSTEN), ANSWER))
    assert got.cost == pytest.approx(cost)
    assert got.reward == pytest.approx(1 - cost)
    assert (got.outcome, got.evidence) == (1.0, 1.0)
    assert got.perfect


@pytest.mark.parametrize("changed", [{}, {"gates": ["no_answer"]}])
def test_costs_take_only_what_was_earned(make_trajectory, search_protocol, changed):
    """Else a policy that gives up at once would be better off than one that tries and fails."""
    frugal = Scorer(RewardConfig(search_cost=0.3, **changed), search_protocol)
    tried = score(frugal, PLAIN, make_trajectory(found("a", EMMA), found("b"), "hm", stop_reason=StopReason.NO_ACTION))
    gave_up = score(frugal, PLAIN, make_trajectory("hm", stop_reason=StopReason.NO_ACTION))
    assert (tried.reward, tried.cost) == (gave_up.reward, gave_up.cost) == (0.0, 0.0)
    assert not tried.perfect


@pytest.mark.parametrize("name", ["search_cost", "token_cost", "redundant_cost"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_cost_is_a_share_of_the_full_reward(name, value):
    with pytest.raises(UserError, match=rf"reward\.{name}={value} must lie in \[0, 1\]"):
        RewardConfig(**{name: value})
    assert getattr(RewardConfig(), name) == 0.0, "off by default"
