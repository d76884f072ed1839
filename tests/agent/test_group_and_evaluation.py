"""The K episodes of a group, and the evaluation of a policy."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from agent.answers import has_words
from agent.config import AgentConfig, RewardConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.errors import Fault, GenerationError, RetrievalError
from agent.group import Player, play_group
from agent.inference.estimates import interval, values
from agent.inference.evaluation import (
    EvalRow,
    check_any_scored,
    eval_row,
    evaluate,
    judged,
    retrieved,
    subset,
    summarise,
)
from agent.inference.infer import Inference, Inferred
from agent.records import Completion, Finish, Question, StopReason
from agent.rewards.scorer import Scorer
from agent.tickets import Ticket


def rows_of(evaluation):
    """The rows of ``evaluate``, without the episodes."""
    return [row for _, row in asyncio.run(evaluation)]


TICKET = Ticket(claim_id=3, query=0, batch=1, order=2, seed=99)


class Policy:
    """Searches once and answers by its seed and temperature, so that episodes may run in any order."""

    def __init__(self, codec, answer):
        self._codec, self._answer = codec, answer
        self.seeds: list[int] = []
        self.temperatures: list[float] = []
        self._running = 0
        self.at_once = 0

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        self.seeds.append(seed)
        self.temperatures.append(temperature)
        self._running += 1
        self.at_once = max(self.at_once, self._running)
        await asyncio.sleep(0)
        self._running -= 1
        searched = "</result>\n" in self._codec.decode(prompt_ids)[-20:]
        text = f"<answer>{self._answer(len(self.seeds))}</answer>" if searched else f"<search>emma {seed}</search>"
        ids = tuple(self._codec.encode(text))
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), versions=(4,) * len(ids), finish=Finish.STOP)


class Shelf:
    """Fails the searches of which the number is in ``failing``."""

    def __init__(self, passages, failing=()):
        self._passages, self._failing, self.searches = passages, failing, 0

    async def search(self, query, k):
        number, self.searches = self.searches, self.searches + 1
        await asyncio.sleep(0)
        if number in self._failing:
            raise RetrievalError("timeout")
        return tuple(self._passages)


@pytest.fixture
def make_player(codec, search_protocol):
    def make(generator, searcher):
        config = AgentConfig(temperature=0.8)
        scorer = Scorer(RewardConfig(evidence_weight=0.5), search_protocol)
        dialogue = Dialogue.of(codec, config)
        return Player(
            dialogue=dialogue,
            config=config,
            generator=generator,
            environment=Environment.of(config, searcher),
            scorer=scorer,
        )

    return make


def test_a_group_of_k_episodes_less_the_faulted_ones(make_player, codec, emma, austen):
    policy = Policy(codec, lambda n: "Jane Austen")
    player = make_player(policy, Shelf([austen], failing={1, 3}))
    group = asyncio.run(play_group(player, emma, TICKET, size=5, worker="w7"))
    assert (group.question, group.ticket, group.worker) == (emma, TICKET, "w7")
    assert group.rewards == (1.0, 1.0, 1.0)
    assert [m.score.evidence for m in group.members] == [1.0] * 3
    assert [t.stop_reason for t in group.excluded] == [StopReason.RETRIEVAL_FAILED] * 2
    assert policy.at_once == 5, "the episodes of a group run beside each other"
    assert set(policy.temperatures) == {0.8}
    assert len(set(policy.seeds)) == len(policy.seeds) == 8
    assert group.oldest_version == 4
    assert group.finished_s >= group.started_s > 0


def test_the_same_ticket_plays_the_same_group(make_player, codec, emma, austen):
    def tokens(seed):
        player = make_player(Policy(codec, lambda n: "x"), Shelf([austen]))
        ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=seed)
        group = asyncio.run(play_group(player, emma, ticket, size=3, worker="w"))
        return [m.trajectory.token_ids.tolist() for m in group.members]

    assert tokens(1) == tokens(1)
    assert len({str(t) for t in tokens(1) + tokens(2)}) == 6


def test_evaluation_is_greedy_and_keeps_the_order(make_player, codec, austen):
    questions = [Question(id=f"q{i}", text=f"{i}?", golden_answers=("Jane Austen",), kind="bridge") for i in range(4)]
    policy = Policy(codec, lambda n: "Jane Austen")
    rows = rows_of(evaluate(make_player(policy, Shelf([austen], failing={2})), questions))
    assert set(policy.temperatures) == {0.0}
    assert [r.question_id for r in rows] == ["q0", "q1", "q2", "q3"]
    assert [r.fault for r in rows] == [False, False, True, False]
    assert summarise(rows)["em"] == 1.0


def test_a_row(make_trajectory, emma):
    answered = make_trajectory(
        {"text": "s", "query": "emma", "found": [("d", "Emma (novel)")]}, {"text": "a", "answer": "Jane"}
    )
    row = eval_row(emma, Inferred(trajectory=answered))
    assert len(row.text) == 16
    assert row == EvalRow(
        question_id="q",
        kind="",
        answer="Jane",
        em=0.0,
        f1=pytest.approx(2 / 3),
        evidence=1.0,
        searches=1,
        action_tokens=2,
        stop_reason="answered",
        fault=False,
        answerable=0.0,
        documents=1,
        text=row.text,
    )
    mute = make_trajectory("hm", stop_reason=StopReason.NO_ACTION)
    silent = eval_row(emma, Inferred(trajectory=mute))
    assert (silent.answer, silent.em, silent.f1, silent.evidence, silent.fault) == (None, 0.0, 0.0, 0.0, False)


def test_an_alias_that_is_spelt_as_no_stands_in_no_passage(make_trajectory, emma):
    played = Inferred(trajectory=make_trajectory({"text": "", "answer": "Norway"}))
    norway = dataclasses.replace(emma, golden_answers=("Norway", "NO"))
    assert eval_row(norway, played, ["There is no such place."]).answerable == 0.0
    assert eval_row(norway, played, ["Oslo is in Norway."]).answerable == 1.0
    assert eval_row(dataclasses.replace(emma, golden_answers=("No",)), played, ["no"]).answerable is None


def test_answers_all_of_which_are_needed_may_be_retrieved_one_by_one(make_trajectory, emma):
    both = dataclasses.replace(emma, golden_answers=("Rome and Paris", "Rome, Paris"), needed=("Rome", "Paris"))
    played = Inferred(trajectory=make_trajectory("hm", stop_reason=StopReason.NO_ACTION))
    assert eval_row(both, played, ["Rome is in Italy.", "Paris is in France."]).answerable == 1.0
    assert eval_row(both, played, ["Rome is in Italy.", "Lyon, too"]).answerable == 0.0
    assert eval_row(emma, played, ["Jane Austen wrote it"]).answerable == 1.0


def row(question, kind="", em=0.0, evidence=None, *, sample=0, fault=False):
    return EvalRow(
        question_id=question,
        kind=kind,
        answer=None,
        em=em,
        f1=em / 2,
        evidence=evidence,
        searches=2,
        action_tokens=10,
        stop_reason="retrieval_failed" if fault else "answered",
        fault=fault,
        sample=sample,
    )


def test_a_summary_leaves_faults_out():
    rows = [
        row("a", "bridge", 1.0, 0.5),
        row("b", "bridge", 0.0, None),
        row("c", "comparison", 1.0, 1.0),
        row("d", "hop", 1.0, 1.0, fault=True),
    ]
    assert summarise(rows) == {
        "n": 3,
        "faults": 1,
        "em": pytest.approx(2 / 3),
        "f1": pytest.approx(1 / 3),
        "cover_em": 0.0,
        "answerable": None,
        "evidence_recall": 0.75,
        "search/mean": 2.0,
        "search/skipped_mean": 0.0,
        "search/withheld_mean": 0.0,
        "action_tokens/mean": 10.0,
        "probe_tokens/mean": 0.0,
        "stop": {"answered": 3, "retrieval_failed": 1},
        "em/bridge": 0.5,
        "em/comparison": 1.0,
    }
    assert summarise([])["em"] is None


def test_a_summary_has_the_numbers_of_the_result_where_a_fault_took_an_episode():
    """A question counts once, however many of its episodes are left."""
    rows = [row("a", "x", 1.0, sample=k, fault=k == 3) for k in range(4)] + [row("b", "x", sample=k) for k in range(4)]
    found = summarise(rows)
    assert (found["n"], found["faults"], found["em"], found["f1"], found["em/x"]) == (7, 1, 0.5, 0.25, 0.5)
    assert found["em"] == interval([*values(rows, "em").values()], 0)["mean"]


def test_what_broke_is_kept(make_player, codec, austen):
    questions = [Question(id=f"q{i}", text=f"{i}?", golden_answers=("Jane Austen",)) for i in range(3)]
    player = make_player(Policy(codec, lambda n: "Jane Austen"), Shelf([austen], failing={0}))
    rows = rows_of(evaluate(player, questions))
    assert [row.error for row in rows] == ["timeout", "", ""]
    assert summarise(rows)["error"] == "timeout"
    assert "error" not in summarise(rows[1:])
    check_any_scored(rows)


def test_an_evaluation_in_which_everything_breaks_is_none(make_player, codec, austen):
    questions = [Question(id=f"q{i}", text=f"{i}?", golden_answers=("Jane Austen",)) for i in range(3)]
    player = make_player(Policy(codec, lambda n: "Jane Austen"), Shelf([austen], failing={0, 1, 2}))
    rows = rows_of(evaluate(player, questions))
    with pytest.raises(Fault, match=r"^none of 3 questions could be evaluated: retrieval_failed: timeout$"):
        check_any_scored(rows)
    other = dataclasses.replace(rows[0], stop_reason="generation_failed", error="head size 16")
    with pytest.raises(Fault, match=r"retrieval_failed: timeout \(2 of 3\)$"):
        check_any_scored([*rows[1:], other])
    with pytest.raises(Fault, match=r"^none of 0 questions could be evaluated: there are no questions$"):
        check_any_scored([])


def test_a_subset_is_the_same_in_every_order_and_a_part_of_a_larger_one():
    questions = [Question(id=str(i), text="?", golden_answers=("a",)) for i in range(2000)]
    small = subset(questions, 100)
    assert [int(q.id) for q in small] == sorted(int(q.id) for q in small), "in the order of the file"
    assert {*small} == {*subset(questions[::-1], 100)} < {*subset(questions, 500)}
    assert len(small) == 100
    assert 10 <= sum(int(q.id) < 500 for q in small) <= 40, "from the whole of it"
    assert subset(questions, 0) == subset(questions, 2000) == tuple(questions)
    assert [q.id for q in subset(questions, 3)] == ["644", "651", "1514"], "on every machine"


@pytest.mark.parametrize("label", ["Result", "Doc", "result"])
def test_a_passage_is_read_without_our_numbers_and_without_the_escapes_of_a_template(make_trajectory, label):
    inferred = Inferred(trajectory=make_trajectory({"text": "s", "query": "emma", "found": [("d", "Emma")]}, "hm"))
    plain = f'\n<result>\n{label} 1: "Emma"\nJane Austen wrote it in 1815.\n{label} 2: "Tea"\na drink\n</result>\n'
    for text in (plain, "<|start_header_id|>ipython<|end_header_id|>\n\n" + json.dumps(plain[10:-11])):
        (read,) = retrieved(lambda ids, text=text: text, inferred)
        assert [has_words(read, (golden,)) for golden in ("Jane Austen", "1815", "1", "2")] == [1.0, 1.0, 0.0, 0.0]


def test_what_stands_in_the_retrieved_text_can_be_answered(make_player, codec, austen):
    def row(golden, failing=()):
        question = Question(id="q", text="who?", golden_answers=golden, supporting=("a", "b", "A ", " "))
        player = make_player(Policy(codec, lambda n: "I say Jane Austen!"), Shelf([austen], failing={*failing}))
        return rows_of(evaluate(player, [question]))[0]

    told = austen.text.split()
    there, not_there = row((" ".join(told[:2]),)), row(("Bram Stoker", "Mary Shelley"))
    assert (there.answerable, not_there.answerable, there.documents) == (1.0, 0.0, 2)
    assert row(("Yes",)).answerable is None
    assert row(("1",)).answerable == 0.0, "it is our number of the passage"
    assert row(("Jane Austen",)).cover == 1.0
    assert row(("Jane Austen",)).em == 0.0


def test_samples_are_drawn_from_seeds_of_their_own(make_player, codec, austen):
    questions = [Question(id=f"q{i}", text=f"{i}?", golden_answers=("Jane Austen",)) for i in range(2)]

    def seeds(questions, seed):
        policy = Policy(codec, lambda n: "x")
        how = Inference(samples=3, temperature=0.7, seed=seed)
        rows = rows_of(evaluate(make_player(policy, Shelf([austen])), questions, inference=how))
        assert [(r.question_id, r.sample) for r in rows] == [(q.id, k) for q in questions for k in range(3)]
        assert set(policy.temperatures) == {0.7}
        return {*policy.seeds}

    both = seeds(questions, 1)
    assert len(both) == 2 * 3 * 2, "two turns of three episodes of two questions"
    assert seeds(questions[::-1], 1) == both, "they don't depend on what is played beside them"
    assert not both & seeds(questions, 2)


@pytest.mark.parametrize(("share", "refused"), [(0.25, False), (0.24, True), (0.0, True)])
def test_too_many_faults_are_no_result(make_player, codec, austen, share, refused):
    questions = [Question(id=f"q{i}", text=f"{i}?", golden_answers=("Jane Austen",), kind="x") for i in range(4)]
    player = make_player(Policy(codec, lambda n: "Jane Austen"), Shelf([austen], failing={2}))
    rows = rows_of(evaluate(player, questions))
    summary = judged(rows, share)
    assert (summary["n"], summary["faults"]) == (3, 1)
    if refused:
        assert (summary["em"], summary["f1"], summary["em/x"]) == (None, None, None)
        assert summary["refused"] == (
            f"1 of 4 episodes ended in a fault, more than evaluation.max_fault_share={share:g} allows: "
            "retrieval_failed: timeout"
        )
    else:
        assert (summary["em"], summary.get("refused")) == (1.0, None)
    assert judged([rows[2]], 1.0)["em"] is None, "a mean of nothing"


# --- a pilot -------------------------------------------------------------------------------------


def piloted(make_player, codec, emma, austen, answers, **ticket):
    """A group of four with a pilot of two, whose n-th episode to be answered gives ``answers[n]``."""
    given = iter(answers)
    policy = Policy(codec, lambda n: next(given))
    player = make_player(policy, Shelf([austen]))
    ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=9, pilot=2, **ticket)
    return asyncio.run(play_group(player, emma, ticket, size=4, worker="w")), policy


@pytest.mark.parametrize(
    ("answers", "cut"),
    [(["x", "x"], "cut_hard"), (["Jane Austen", "Jane Austen"], "cut_easy")],
)
def test_a_probe_that_decides_leaves_the_rest_unplayed(make_player, codec, emma, austen, answers, cut):
    group, policy = piloted(make_player, codec, emma, austen, answers, **{cut: True})
    assert group.cut_short
    assert group.outcome().pilot == (2 if cut == "cut_easy" else 0, 2)
    assert len(group.members) == 2
    assert len(policy.seeds) == 4, "two episodes of two turns, and no more"


@pytest.mark.parametrize(
    ("answers", "cut"),
    [
        (["x", "Jane Austen", "x", "x"], "cut_hard"),  # they differ: signal already
        (["x", "x", "x", "Jane Austen"], "cut_easy"),  # decided, but not in the way that the ticket lets go
        (["Jane Austen", "Jane Austen", "x", "x"], "cut_hard"),
    ],
)
def test_a_probe_that_does_not_decide_is_the_first_half_of_the_group(make_player, codec, emma, austen, answers, cut):
    group, policy = piloted(make_player, codec, emma, austen, answers, **{cut: True})
    assert not group.cut_short
    assert group.outcome().pilot == (sum(answer != "x" for answer in answers[:2]), 2)
    assert len(group.members) == 4
    whole = Policy(codec, lambda n: "x")
    player = make_player(whole, Shelf([austen]))
    asyncio.run(play_group(player, emma, Ticket(claim_id=0, query=0, batch=0, order=0, seed=9), size=4, worker="w"))
    assert sorted(policy.seeds) == sorted(whole.seeds), "each place in the group has its seed"


def test_a_probe_with_a_fault_decides_nothing(make_player, codec, emma, austen):
    class Breaks(Policy):
        async def generate(self, *args, **how):
            if not self.seeds:
                self.seeds.append(how["seed"])
                raise GenerationError("aborted")
            return await super().generate(*args, **how)

    player = make_player(Breaks(codec, lambda n: "x"), Shelf([austen]))
    ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=9, pilot=2, cut_hard=True, cut_easy=True)
    group = asyncio.run(play_group(player, emma, ticket, size=4, worker="w"))
    assert (len(group.members), len(group.excluded), group.cut_short, group.pilot) == (3, 1, False, None)


def test_a_probe_with_a_failed_search_ends_a_group_that_goes_back_whole(make_player, codec, emma, austen):
    player = make_player(Policy(codec, lambda n: "x"), Shelf([austen], failing={0}))
    ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=9, pilot=2)
    group = asyncio.run(play_group(player, emma, ticket, size=4, worker="w"))
    assert (len(group.members), len(group.excluded), group.cut_short, group.pilot) == (1, 1, False, None)
    assert group.outcome().selective_faults == 1
