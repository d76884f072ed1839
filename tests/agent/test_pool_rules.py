"""Each pool rule by itself, and played through a small pool by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pool_cases import asked, enter, pool_of

from agent.errors import Fault, UserError
from agent.pool.history import QueryHistory
from agent.pool.places import Place
from agent.pool.rules.base import (
    ACCEPTED,
    AT_ONCE,
    FOREVER,
    UNSELECTED,
    ZERO_VARIANCE,
    PoolRule,
    oversampled,
    rule_class,
    rule_names,
)
from agent.simulation.policies import outcome
from agent.tickets import QueryState, Ticket

EPOCH, DYNAMIC, RECYCLE, ADAPTIVE = map(rule_class, ("epoch", "dynamic", "recycle", "adaptive"))
SIGNAL, HARD, EASY = QueryState.SIGNAL, QueryState.TOO_HARD, QueryState.TOO_EASY
REWARDS = {SIGNAL: (0.0, 1.0), HARD: (0.0, 0.0), EASY: (1.0, 1.0)}


def history_of(draws=(), n=3, rule=None):
    """The history of ``n`` queries after ``draws``: (query, batch, successes, size)."""
    history = QueryHistory(n, (rule or EPOCH()).retained)
    for query, batch, successes, size in draws:
        found = SIGNAL if 0 < successes < size else EASY if successes else HARD
        ticket = Ticket(claim_id=0, query=query, batch=batch, order=0, seed=0)
        history.observe(outcome(ticket, size, successes, 0), batch)
        history.settle(
            query,
            batch=batch,
            order=0,
            version=0,
            size=size,
            successes=successes,
            rolled_out=found,
            found=found,
            after=found,
            accepted=False,
        )
    return history


# --- the rules alone -----------------------------------------------------------------------------


def test_rules_are_found_by_name():
    assert {"epoch", "recycle"} <= set(rule_names())
    assert "base" not in rule_names()
    for name in rule_names():
        rule = rule_class(name)()
        assert isinstance(rule, PoolRule)
        assert rule.name == name


@pytest.mark.parametrize("name", rule_names())
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_questions": 0}, "batch_questions"),
        ({"group_size": 1}, "group_size"),
        ({"max_staleness": -1}, "max_staleness=-1"),
        ({"min_viable": 0}, "min_viable=0"),
        ({"min_viable": 9}, r"min_viable=9 must lie in \[2, pool.group_size=8\]"),
        ({"lease_s": 0.0}, "lease_s"),
        ({"max_empty_batches": 0}, "max_empty_batches"),
    ],
)
def test_settings_are_checked(name, changed, message):
    with pytest.raises(UserError, match=message):
        rule_class(name)(**changed)


def test_recycle_checks_its_own_settings():
    with pytest.raises(UserError, match=r"pool\.oversample=0\.5"):
        RECYCLE(oversample=0.5)
    with pytest.raises(UserError, match=r"pool\.when_dry=rest.*did you mean 'reset'"):
        RECYCLE(when_dry="rest")


def test_epoch_takes_and_consumes_all():
    rule = EPOCH(batch_questions=3)
    assert rule.candidates == 3
    assert [rule.wanted(room=3, drawn=d, zero=d) for d in range(4)] == [3, 2, 1, 0]
    assert rule.select([SIGNAL, HARD, EASY]) == [ACCEPTED] * 3
    assert rule.rest(ACCEPTED, history_of(), 0) == FOREVER
    assert [rule.resets(available=a) for a in (0, 1, 2)] == [True, False, False]


@pytest.mark.parametrize(
    ("oversample", "batch", "candidates"), [(1.0, 3, 3), (2.0, 3, 6), (1.5, 3, 5), (1.0, 1, 1), (1.1, 10, 11)]
)
def test_recycle_draws_k_b_candidates(oversample, batch, candidates):
    rule = RECYCLE(batch_questions=batch, oversample=oversample)
    assert rule.candidates == candidates
    assert rule.wanted(room=batch, drawn=1, zero=0) == rule.wanted(room=batch, drawn=1, zero=1) == candidates - 1


def test_recycle_trains_on_the_first_b_with_signal():
    rule = RECYCLE(batch_questions=2, oversample=2.0)
    assert rule.select([HARD, SIGNAL, EASY, SIGNAL]) == [ZERO_VARIANCE, ACCEPTED, ZERO_VARIANCE, ACCEPTED]
    assert rule.select([SIGNAL, SIGNAL, SIGNAL, HARD]) == [ACCEPTED, ACCEPTED, UNSELECTED, ZERO_VARIANCE]
    assert rule.select([]) == []
    assert rule.rest(ACCEPTED, history_of(), 0) == FOREVER
    for kept in (ZERO_VARIANCE, UNSELECTED):
        assert rule.rest(kept, history_of(), 0) == AT_ONCE
    assert [rule.resets(available=a) for a in (0, 3, 4)] == [True, True, False]
    assert not RECYCLE(when_dry="keep").resets(available=0)


# --- through a pool ------------------------------------------------------------------------------


class Played:
    """A pool of which every query has a fixed state, played batch by batch."""

    def __init__(self, rule, questions, make_group, states):
        self.pool = pool_of(questions, rule, seed=11)
        self.states = list(states)
        self._make_group = make_group

    def batch(self):
        """Draws, plays, takes and releases one batch: the queries drawn, and the batch."""
        drawn = []
        while tickets := self.pool.claim("w", now=0.0, limit=100):
            drawn += [t.query for t in tickets]
            for ticket in reversed(tickets):  # the order in which episodes end doesn't matter
                question = asked(self.pool, ticket)
                assert enter(self.pool, self._make_group(question, ticket, REWARDS[self.states[ticket.query]]))
        taken = self.pool.take(version=0)
        self.pool.release(taken.index)
        return drawn, taken

    def accepted(self, taken):
        return [a.payload.ticket.query for a in taken.accepted]


@pytest.fixture
def played(make_questions, make_group):
    def make(rule, states):
        return Played(rule, make_questions(len(states)), make_group, states)

    return make


def test_epoch_by_hand(played):
    run = played(EPOCH(batch_questions=2, group_size=2), [SIGNAL, HARD, EASY, SIGNAL, HARD])
    first, taken = run.batch()
    assert len(set(first)) == 2
    assert run.accepted(taken) == first, "zero-variance groups are in the batch too"
    assert taken.returned == {}
    assert run.pool.places() == {
        "available": 3,
        "claimed": 0,
        "submitted": 0,
        "accepted": 0,
        "resting": 0,
        "consumed": 2,
        "quarantined": 0,
    }
    second, _ = run.batch()
    assert not set(first) & set(second)
    third, taken = run.batch()  # the fifth query, and the first of the next epoch
    (fifth,) = set(range(5)) - {*first, *second}
    assert third[0] == fifth
    assert third[1] in {*first, *second}
    assert not any(a.recycled for a in taken.accepted), "what an epoch consumed is not recycled"
    fourth, _ = run.batch()
    fifth_batch, _ = run.batch()
    assert sorted([third[1], *fourth, *fifth_batch]) == [0, 1, 2, 3, 4], "each query once in the second epoch"


@pytest.mark.parametrize("n", [3, 4, 7, 10])
@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_an_epoch_is_a_pass_through_all_queries(make_questions, make_group, n, staleness):
    rule = EPOCH(batch_questions=4, group_size=2, max_staleness=staleness)
    pool = pool_of(make_questions(n), rule, seed=n)
    draws: list[int] = []
    for step in range(12):
        while tickets := pool.claim("w", now=0.0):
            draws += [t.query for t in tickets]
            enter(pool, make_group(asked(pool, tickets[0]), tickets[0], (0.0, 1.0), version=step))
        pool.release(pool.take(version=step).index)
    assert len(draws) >= 12 * min(n, 4)
    for start in range(0, len(draws) - n + 1, n):
        assert sorted(draws[start : start + n]) == list(range(n))


def test_recycle_by_hand(played):
    """Six queries, batches of two: the two with signal go, the others come again."""
    rule = RECYCLE(batch_questions=2, group_size=2, max_empty_batches=99)
    run = played(rule, [SIGNAL, HARD, EASY, HARD, SIGNAL, EASY])
    drawn = Counter()
    consumed: set[int] = set()
    for _ in range(30):
        queries, taken = run.batch()
        assert len(set(queries)) == 2
        assert not consumed & set(queries)
        before = dict(drawn)
        drawn.update(queries)
        wanted = [q for q in queries if run.states[q] is SIGNAL]
        assert run.accepted(taken) == wanted
        assert [a.recycled for a in taken.accepted] == [before.get(q, 0) > 0 for q in wanted]
        assert taken.returned == Counter({ZERO_VARIANCE: 2 - len(wanted)} if len(wanted) < 2 else {})
        assert taken.states == Counter(run.states[q] for q in queries)
        assert [g.ticket.query for g in taken.payloads] == queries
        consumed |= set(wanted)
        if consumed == {0, 4}:
            break
    assert consumed == {0, 4}
    assert run.pool.places() == {
        "available": 4,
        "claimed": 0,
        "submitted": 0,
        "accepted": 0,
        "resting": 0,
        "consumed": 2,
        "quarantined": 0,
    }
    later = {q for _ in range(20) for q in run.batch()[0]}
    assert later == {1, 2, 3, 5}
    assert run.pool.history.flipped_share == 0.0, "signal at the first draw is no flip"


def test_recycle_with_oversampling_keeps_what_it_does_not_select(played):
    run = played(RECYCLE(batch_questions=2, group_size=2, oversample=2.0), [SIGNAL] * 6)
    queries, taken = run.batch()
    assert len(set(queries)) == 4
    assert run.accepted(taken) == queries[:2], "the first drawn, not the first to finish"
    assert taken.returned == {UNSELECTED: 2}
    again, taken = run.batch()
    assert set(again) == set(range(6)) - set(queries[:2])
    for accepted in taken.accepted:
        known = accepted.outcome.ticket.query in queries
        assert accepted.recycled == known
        assert accepted.before is (SIGNAL if known else QueryState.UNSEEN)


def test_recycled_queries_remember_what_they_were(played):
    run = played(RECYCLE(batch_questions=3, group_size=2), [HARD, EASY, HARD])
    run.batch()
    assert run.pool.seen() == {"unseen": 0, "too_hard": 2, "signal": 0, "too_easy": 1, "consumed": 0}
    assert run.pool.history.flipped_share == 0.0
    run.states[:2] = [SIGNAL, SIGNAL]
    _, taken = run.batch()
    assert {a.payload.ticket.query: (a.recycled, a.before) for a in taken.accepted} == {
        0: (True, HARD),
        1: (True, EASY),
    }
    assert run.pool.history.flipped_share == pytest.approx(2 / 3)
    run.states[:] = [HARD, SIGNAL, HARD]
    _, taken = run.batch()  # only one is left, so the two come back, with a clean slate
    assert [(a.recycled, a.before) for a in taken.accepted] == [(False, QueryState.CONSUMED)]
    assert run.pool.history.flipped_share == pytest.approx(2 / 3)


def test_recycle_when_dry(played):
    reset = played(RECYCLE(batch_questions=2, group_size=2), [SIGNAL] * 3)
    reset.batch()
    assert reset.pool.places()["consumed"] == 2
    queries, taken = reset.batch()  # one drawable query is fewer than two: all come back first
    assert len(set(queries)) == 2
    assert not any(a.recycled for a in taken.accepted)
    keep = played(RECYCLE(batch_questions=2, group_size=2, when_dry="keep"), [SIGNAL] * 3)
    keep.batch()
    assert len(keep.batch()[0]) == 1
    assert keep.batch()[0] == []
    assert keep.pool.places()["consumed"] == 3


# --- dynamic -------------------------------------------------------------------------------------


def test_dynamic_draws_one_more_for_each_group_without_signal():
    rule = DYNAMIC(batch_questions=4, oversample=2.0)
    assert rule.candidates == 8
    assert rule.wanted(room=4, drawn=0, zero=0) == 4
    assert rule.wanted(room=4, drawn=4, zero=0) == 0, "as many in flight or with signal as there is room for"
    assert rule.wanted(room=4, drawn=4, zero=3) == 3
    assert rule.wanted(room=4, drawn=7, zero=6) == 1, "bounded by k B"
    assert rule.wanted(room=3, drawn=0, zero=0) == 3
    assert rule.rest(ACCEPTED, history_of(), 0) == rule.rest(ZERO_VARIANCE, history_of(), 0) == FOREVER
    assert [rule.resets(available=a) for a in (0, 1)] == [True, False]
    with pytest.raises(UserError, match=r"pool\.oversample=0\.9"):
        DYNAMIC(oversample=0.9)


def test_dynamic_by_hand(played):
    """Six queries, two with signal: one batch of two draws until it has them, each query once an epoch."""
    run = played(DYNAMIC(batch_questions=2, group_size=2, oversample=3.0), [SIGNAL, HARD, EASY, HARD, SIGNAL, EASY])
    drawn, taken = run.batch()
    assert len(set(drawn)) == len(drawn)
    assert {0, 4} <= set(drawn)
    assert drawn[-1] in {0, 4}, "the draw that fills the batch is the last"
    assert sorted(run.accepted(taken)) == [0, 4]
    assert taken.returned == ({ZERO_VARIANCE: len(drawn) - 2} if len(drawn) > 2 else {})
    assert run.pool.places()["consumed"] == len(drawn), "zero-variance queries too are out for the epoch"


# --- recycle's options ---------------------------------------------------------------------------


def test_recycle_can_stop_as_soon_as_the_batch_is_full(played):
    rule = RECYCLE(batch_questions=2, group_size=2, oversample=3.0, stop_early=True)
    assert rule.wanted(room=2, drawn=0, zero=0) == 2
    run = played(rule, [SIGNAL] * 9)
    queries, taken = run.batch()
    assert len(queries) == len(taken.accepted) == 2, "six candidates were never needed"


class Own(RECYCLE):
    """A rule of the user's own."""

    given = staticmethod(lambda queries: np.ones(len(queries)))
    said = staticmethod(lambda states: [ACCEPTED] * len(states))

    def weights(self, history, queries, batch):
        return self.given(queries)

    def select(self, states):
        return self.said(states)


def test_a_weight_of_0_is_drawn_where_nothing_else_is_left_and_no_query_twice(make_questions):
    class Some(Own):
        given = staticmethod(lambda queries: (queries < 3).astype(float))

    pool = pool_of(make_questions(16), Some(batch_questions=8, group_size=2, oversample=1.0), seed=1)
    drawn = [ticket.query for ticket in iter(lambda: next(iter(pool.claim("w", now=0.0)), None), None)]
    assert len({*drawn}) == len(drawn) == 8
    assert {*drawn[:3]} == {0, 1, 2}


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none_name_the_rule(make_questions, weight):
    class Wrong(Own):
        given = staticmethod(lambda queries: np.full(len(queries), weight))

    with pytest.raises(Fault, match=r"^pool=mine: weights\(\) returned .* for 4 questions; each needs a finite weight"):
        pool_of(make_questions(4), Wrong(name="mine"), seed=1)


def test_a_rule_that_changes_the_queries_it_is_given_changes_its_own(make_questions):
    """Else the pool would put others in the place of those that it asked about."""

    def weigh(queries):
        queries[:] = 0
        return np.ones(len(queries))

    pool = pool_of(make_questions(4), type("Changing", (Own,), {"given": staticmethod(weigh)})(name="mine"), seed=1)
    tickets = pool.claim("w", now=0.0, limit=4)
    pool.worker_lost("w")
    assert pool.places()["available"] == 4
    assert {ticket.query for ticket in tickets} == {0, 1, 2, 3}


@pytest.mark.parametrize("verdicts", [["accept"], [], [ACCEPTED, ACCEPTED]])
def test_verdicts_that_are_none_name_the_rule(make_questions, make_group, verdicts):
    class Wrong(Own):
        said = staticmethod(lambda states: verdicts)

    pool = pool_of(make_questions(4), Wrong(name="mine", batch_questions=1, group_size=2, oversample=1.0), seed=1)
    (ticket,) = pool.claim("w", now=0.0)
    enter(pool, make_group(asked(pool, ticket), ticket, (0.0, 1.0)))
    with pytest.raises(Fault, match=r"^pool=mine: select\(\) returned .* for 1 groups; each needs 'accepted', "):
        pool.take(version=0)


def one_batch(make_questions, make_group, rule) -> None:
    """A batch of one group with signal, drawn from one question, and the first draw of the next."""
    pool = pool_of(make_questions(1), rule, seed=1)
    (ticket,) = pool.claim("w", now=0.0)
    enter(pool, make_group(asked(pool, ticket), ticket, (0.0, 1.0)))
    pool.take(version=0)
    pool.release(0)
    pool.claim("w", now=0.0)


@pytest.mark.parametrize(
    ("method", "does", "said"),
    [
        ("rest", lambda *_: None, r"rest\(\) returned None; it needs AT_ONCE, FOREVER or a number of batches"),
        ("rest", lambda *_: -5, r"rest\(\) returned -5; it needs"),
        (
            "wanted",
            lambda *_, **__: 0,
            r"wanted\(\) returned 0; it needs a number of draws, in an empty batch 1 or more",
        ),
        ("wanted", lambda *_, **__: None, r"wanted\(\) returned None; it needs a number of draws"),
        ("select", lambda *_: None, r"select\(\) returned \[None\] for 1 groups"),
        ("rest", lambda *_: 2**40, r"rest\(\) returned 1099511627776; it needs"),
        ("wanted", lambda *_, **__: True, r"wanted\(\) returned True; it needs a number of draws"),
        ("weights", lambda *_: "x", r"weights\(\) returned 'x' for 1 questions; each needs a finite weight"),
        ("resets", lambda *_, **__: "no", r"resets\(\) returned 'no'; it needs True or False"),
        ("cuts", lambda *_: False, r"cuts\(\) returned False; it needs two of True and False"),
        ("cuts", lambda *_: (0, 1), r"cuts\(\) returned \(0, 1\); it needs two of True and False"),
        ("next_look", lambda *_: None, r"next_look\(\) returned None for 1 questions; each needs a number of batches"),
        ("next_look", lambda _, ages: ages - 5.5, r"next_look\(\) returned .* for 1 questions; each needs a number of"),
        ("retained", lambda *_: "half", r"retained\(\) returned 'half' for .*; each age needs a share in \[0, 1\]"),
        ("retained", lambda _, age: age + 1.5, r"retained\(\) returned .*; each age needs a share in \[0, 1\]"),
        ("candidates", 0, r"candidates is 0; it needs a number of draws, 1 or more"),
        ("candidates", property(lambda self: self.nothing), r"candidates raised AttributeError: .* 'nothing'"),
    ],
)
def test_what_a_rule_of_ones_own_does_wrong_is_told_with_its_method(
    make_questions, make_group, monkeypatch, method, does, said
):
    monkeypatch.setattr(Own, method, does)
    rule = Own(name="mine", batch_questions=1, group_size=2, oversample=1.0)
    with pytest.raises(Fault, match=f"^pool=mine: {said}"):
        one_batch(make_questions, make_group, rule)


@pytest.mark.parametrize("method", ["wanted", "select", "rest", "resets", "weights", "cuts", "next_look", "retained"])
def test_what_a_rule_of_ones_own_raises_is_told_with_its_method(make_questions, make_group, method):
    def fails(*_, **__):
        raise KeyError("x")

    fails.__name__ = method
    rule = type("Wrong", (Own,), {method: fails})(name="mine", batch_questions=1, group_size=4, pilot=2)
    with pytest.raises(Fault, match=rf"^pool=mine: {method}\(\) raised KeyError: 'x'"):
        one_batch(make_questions, make_group, rule)


def test_a_resume_with_another_rule_weighs_by_it(make_questions, make_group):
    """Or the old rule's weights would count until a query is drawn, which they may make unlikely."""
    settings = {"batch_questions": 4, "group_size": 2}
    pool = pool_of(make_questions(20), ADAPTIVE(**settings), seed=3)
    for batch in range(8):
        while tickets := pool.claim("w", now=0.0):
            enter(pool, make_group(asked(pool, tickets[0]), tickets[0], REWARDS[(SIGNAL, HARD)[tickets[0].query % 2]]))
        pool.take(version=batch)
        pool.release(batch)
    state = pool.state()
    again, other = (pool_of(make_questions(20), rule(**settings), seed=3) for rule in (ADAPTIVE, RECYCLE))
    again.load_state(state)
    assert np.array_equal(again.state()["weight"], state["weight"]), "the same rule: nothing changes"
    other.load_state(state)
    open_now = other.state()["place"] == Place.AVAILABLE
    assert len({*state["weight"][open_now].round(6)}) > 2
    assert {*other.state()["weight"][open_now]} == {1.0}


def test_a_surplus_is_trained_on_in_the_next_batch(make_questions, make_group):
    rule = RECYCLE(batch_questions=2, group_size=2, oversample=2.0, max_staleness=1, keep_surplus=True)
    pool = pool_of(make_questions(20), rule, seed=5)

    def play(batch):
        while tickets := pool.claim("w", now=0.0):
            (ticket,) = tickets
            assert ticket.batch in (batch, batch + 1)
            enter(pool, make_group(asked(pool, ticket), ticket, (0.0, 1.0), version=batch))

    play(0)
    first = pool.take(version=0)
    assert (len(first.accepted), len(first.kept), first.returned) == (2, 2, {})
    assert pool.places()["submitted"] == 2 + 4, "the surplus, and the next batch"
    pool.release(0)
    assert pool.books.groups.in_flight == 6
    second = pool.take(version=1)
    kept = [g.ticket.query for g in first.payloads if g not in [a.payload for a in first.accepted]]
    assert [a.payload.ticket.query for a in second.accepted] == kept, "drawn first, trained on first"
    assert {a.payload.ticket.claim_id for a in second.accepted} == first.kept
    drawn = [(int(row["query"]), int(row["batch"])) for row in pool.history.log if row["accepted"]][2:]
    assert drawn == [(query, 0) for query in kept], "for the batch that they were drawn for"
    assert not second.kept, "what was played by version 0 would be too old for the batch after"
    assert second.returned == {UNSELECTED: 4}
    pool.release(1)
    pool.books.check()
    assert pool.books.groups.in_flight == 0
    for rule_of in (RECYCLE, DYNAMIC, ADAPTIVE):
        with pytest.raises(UserError, match=r"keep_surplus=true needs pool\.max_staleness"):
            rule_of(keep_surplus=True)


@pytest.mark.parametrize(
    ("rule_of", "more", "which"),
    [
        (EPOCH, {}, "epoch,"),
        (DYNAMIC, {}, "dynamic,"),
        (ADAPTIVE, {}, "adaptive,"),
        (RECYCLE, {"stop_early": True, "oversample": 2.0}, r"recycle with pool\.stop_early=true,"),
        (RECYCLE, {}, r"recycle with pool\.oversample=1,"),
    ],
)
def test_a_rule_whose_batches_are_full_before_they_have_a_surplus_keeps_none(rule_of, more, which):
    with pytest.raises(UserError, match=f"no meaning for pool={which} which never has a surplus"):
        rule_of(keep_surplus=True, max_staleness=1, **more)
    # Each draw beyond the first three stands for one that brought no signal: never do more than three bear it.
    rule = rule_of(batch_questions=3, max_staleness=1, **more)
    assert all(rule.wants(room=3, drawn=3 + zero, zero=zero) <= 0 for zero in range(4))


# --- adaptive ------------------------------------------------------------------------------------


def test_adaptive_weighs_queries_by_their_chance_of_signal_against_an_unseen_one():
    rule = ADAPTIVE(group_size=4, half_life=8.0, sharpness=2.0)
    history = history_of([(1, 0, 4, 4), (2, 0, 2, 4)], rule=rule)
    history.population.load([1.0, 0.5, 0.375, 0.0, 0.0])  # the arcsine prior, Beta(1/2, 1/2)
    unseen = 1 - 2 * (0.5 * 1.5 * 2.5 * 3.5) / 24  # E[p^4] = 0.5*1.5*2.5*3.5 / (1*2*3*4)
    easy = 1 - (4.5 * 5.5 * 6.5 * 7.5 + 0.5 * 1.5 * 2.5 * 3.5) / (5 * 6 * 7 * 8)
    mixed = 1 - 2 * (2.5 * 3.5 * 4.5 * 5.5) / (5 * 6 * 7 * 8)
    expected = [1.0, (easy / unseen) ** 2, (mixed / unseen) ** 2]
    np.testing.assert_allclose(rule.weights(history, np.arange(3), 0), expected, rtol=1e-6)
    # A half-life later each count weighs half.
    easy = 1 - (2.5 * 3.5 * 4.5 * 5.5 + 0.5 * 1.5 * 2.5 * 3.5) / (3 * 4 * 5 * 6)
    assert rule.weights(history, np.array([1]), 8)[0] == pytest.approx((easy / unseen) ** 2)
    # In the end it is as good as never seen, whatever it was.
    np.testing.assert_allclose(rule.weights(history, np.arange(3), 400), 1.0, rtol=1e-6)


def test_adaptive_rests_what_it_trained_and_retires_what_stays_without_signal():
    rule = ADAPTIVE(cooldown=3, retire_after=2, longest_rest=20)
    assert rule.rest(ACCEPTED, history_of([(0, 0, 2, 4)]), 0) == 3
    rests = [rule.rest(ZERO_VARIANCE, history_of([(0, b, 4, 4) for b in range(draws)]), 0) for draws in range(1, 7)]
    assert rests == [AT_ONCE, 3, 6, 12, 20, 20]
    again = history_of([(0, 0, 4, 4), (0, 1, 4, 4), (0, 2, 3, 4), (0, 3, 4, 4)])
    assert rule.rest(ZERO_VARIANCE, again, 0) == AT_ONCE, "signal in between starts the count anew"
    assert ADAPTIVE(retire_after=0).rest(ZERO_VARIANCE, again, 0) == AT_ONCE
    assert not rule.resets(available=0)


def test_adaptive_looks_again_at_ever_longer_intervals():
    rule, batch, looks = ADAPTIVE(), 1, []
    while batch < 100:
        looks.append(batch)
        batch += int(rule.next_look(np.array([batch]))[0])
    assert looks == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    "changed",
    [
        {"oversample": 0.0},
        {"half_life": 0.0},
        {"sharpness": -1.0},
        {"sharpness": 101.0},
        {"explore": 1.5},
        {"cooldown": -1},
        {"cooldown": 2**31},
        {"longest_rest": 2**31},
        {"retire_after": -1},
        {"longest_rest": 0},
    ],
)
def test_adaptive_checks_its_settings(changed):
    with pytest.raises(UserError, match=rf"pool\.{next(iter(changed))}"):
        ADAPTIVE(**changed)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("sharpness", [0.0, 20.0, 100.0])
def test_adaptive_draws_what_may_be_drawn_however_sharply(played, sharpness):
    """Chances of every size, those of nothing too: no weight becomes nothing or infinite."""
    rule = ADAPTIVE(batch_questions=2, group_size=2, oversample=3.0, cooldown=1, sharpness=sharpness)
    run = played(rule, [SIGNAL, *[EASY] * 20, *[HARD] * 20])
    for _ in range(100):
        drawn, _ = run.batch()
        assert len({*drawn}) == len(drawn)
    weights = rule.weights(run.pool.history, np.arange(41), 100)
    assert np.all(np.isfinite(weights) & (weights > 0))


def test_adaptive_brings_trained_queries_back_after_their_rest(played):
    """Twelve queries with signal, two a batch, three batches of rest: never out longer, never drawn earlier."""
    run = played(ADAPTIVE(batch_questions=2, group_size=2, cooldown=3), [SIGNAL] * 12)
    last: dict[int, int] = {}
    for batch in range(60):
        for query in run.batch()[0]:
            assert batch - last.get(query, -99) > 3
            last[query] = batch
        assert run.pool.places()["resting"] == 2 * min(batch + 1, 4)
        assert run.pool.places()["consumed"] == 0
    assert set(last) == set(range(12))


def test_adaptive_finds_the_queries_with_signal_and_gives_the_others_a_way_back(played):
    states = [SIGNAL] * 8 + [EASY] * 16 + [HARD] * 16
    run = played(ADAPTIVE(batch_questions=2, group_size=2, oversample=3.0, cooldown=1), states)
    for _ in range(120):
        run.batch()
    drawn, trained = run.pool.history.draws.copy(), run.pool.books.groups.accepted
    groups = drawn.sum()
    assert trained / groups > 0.6, "a uniform draw would bring 0.2"
    run.states[8:] = [SIGNAL] * 32  # the policy has moved
    for _ in range(300):
        run.batch()
    assert (run.pool.history.draws > drawn).all(), "none is written off"


@pytest.mark.slow
def test_exploration_draws_uniformly_whatever_the_weights(make_questions, make_group):
    class Lopsided(ADAPTIVE):
        def weights(self, history, queries, batch):
            return np.where(queries == 0, 1.0, 1e-9)

    rule = Lopsided(batch_questions=1, group_size=2, cooldown=0, explore=0.4, max_empty_batches=10**9)
    pool = pool_of(make_questions(10), rule, seed=1)
    batches = 4000
    counts = Counter()
    for _ in range(batches):
        (ticket,) = pool.claim("w", now=0.0)
        counts[ticket.query] += 1
        enter(pool, make_group(asked(pool, ticket), ticket, (0.0, 1.0)))
        pool.release(pool.take(version=0).index)
    for query in range(10):
        p = 0.64 if query == 0 else 0.04
        assert abs(counts[query] - batches * p) < 4 * (batches * p * (1 - p)) ** 0.5


def test_a_probe_is_cut_where_other_rollouts_promise_more():
    rule = ADAPTIVE(group_size=8, pilot=4)
    history = history_of(n=3, rule=rule)
    history.population.load([1.0, 0.5, 0.375, 0.0, 1.0])  # Beta(1/2, 1/2), and no signal of late
    assert rule.cuts(history, 0, 0) == (False, False), "nothing promises more"
    # After four failures Beta(1/2, 9/2): four more bring a success with chance 1 - 4.5*5.5*6.5*7.5/1680 = 0.2818,
    # 0.0705 per rollout.
    history.population.load([1.0, 0.5, 0.375, 0.07, 1.0])
    assert rule.cuts(history, 0, 0) == (False, False)
    history.population.load([1.0, 0.5, 0.375, 0.071, 1.0])
    assert rule.cuts(history, 0, 0) == (True, True)
    # A query that was solved 8 times of 8 is let go after four more successes, not after four failures.
    history = history_of([(1, 0, 8, 8)], rule=rule)
    history.population.load([1.0, 0.5, 0.375, 0.06, 1.0])
    assert rule.cuts(history, 1, 0) == (False, True)
    assert ADAPTIVE(group_size=8).cuts(history, 1, 0) == (False, False)


@pytest.mark.parametrize("pilot", [-1, 1, 8, 9])
def test_a_pilot_must_leave_something_to_play(pilot):
    with pytest.raises(UserError, match=rf"pool\.pilot={pilot}"):
        ADAPTIVE(pilot=pilot)


def test_the_bound_of_draws_is_exact():
    """1.1 times 50 is a little more than 55 in floating point."""
    for questions, factor, wanted in ((50, 1.1, 55), (100, 1.1, 110), (25, 2.2, 55), (45, 2.2, 99), (8, 1.3, 11)):
        assert oversampled(questions, factor) == wanted
    for questions in range(1, 257):
        for twentieths in range(20, 81):
            assert oversampled(questions, twentieths / 20) == -(-questions * twentieths // 20)
