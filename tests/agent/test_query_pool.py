"""The query pool, promise by promise."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
from pool_cases import asked, enter, pool_of

from agent.errors import Fault, UserError
from agent.pool.claims import Lost
from agent.pool.history import STATES
from agent.pool.query_pool import QueryPool
from agent.pool.rules.base import AT_ONCE, rule_class
from agent.records import StopReason
from agent.tickets import QueryState

EPOCH, RECYCLE = rule_class("epoch"), rule_class("recycle")
SIGNAL, ZERO = (0.0, 1.0), (0.0, 0.0)


@pytest.fixture
def make_pool(make_questions):
    def make(n=6, rule=None, seed=0, **settings):
        rule = rule or RECYCLE(**{"batch_questions": 2, "group_size": 2, **settings})
        return pool_of(make_questions(n), rule, seed=seed)

    return make


@pytest.fixture
def submit(make_group):
    def run(pool, ticket, rewards=SIGNAL, **more):
        return enter(pool, make_group(asked(pool, ticket), ticket, rewards, **more))

    return run


@pytest.fixture
def step(submit):
    """Plays one batch from first claim to release; returns its tickets."""

    def run(pool, rewards=SIGNAL, version=0):
        tickets = pool.claim("w", now=0.0, limit=100)
        for ticket in tickets:
            submit(pool, ticket, rewards, version=version)
        pool.release(pool.take(version=version).index)
        return tickets

    return run


def as_in_a_checkpoint(state):
    """``state`` after a trip through ``np.savez`` and JSON."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    rest = json.loads(json.dumps({name: value for name, value in state.items() if name not in arrays}))
    with np.load(file) as loaded:
        return {**rest, **{name: loaded[name] for name in arrays}}


def drawn(tickets):
    return [(t.batch, t.order, t.query, t.seed) for t in tickets]


# --- making one ----------------------------------------------------------------------------------


def test_bad_questions_are_the_users_mistake(make_questions):
    with pytest.raises(UserError, match="no training question"):
        QueryPool([], EPOCH(), seed=0)
    with pytest.raises(UserError, match="question id q1 occurs more than once"):
        pool_of([*make_questions(3), make_questions(2)[1]], EPOCH(), seed=0)


# --- pools smaller than what a batch draws ----------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["epoch", "dynamic", "recycle", "adaptive"])
@pytest.mark.parametrize("questions", [1, 2, 4, 6, 7])
def test_a_claim_that_gets_nothing_changes_nothing(make_questions, submit, name, questions):
    """Whoever waits is woken by what changes a pool. A claim in vain made it ready, and nobody took the batch."""
    rng = random.Random(questions)
    pool = pool_of(
        make_questions(questions), rule_class(name)(batch_questions=4, group_size=2, max_empty_batches=1000), seed=0
    )
    batches = 0
    while batches < 40:
        ready = pool.ready
        tickets = pool.claim("w", now=0.0, limit=24)
        if not tickets:
            assert ready
            assert pool.ready
            pool.release(pool.take(version=batches).index)
            batches += 1
        for ticket in tickets:
            submit(pool, ticket, rng.choice([SIGNAL, ZERO, (1.0, 1.0)]), version=batches)


# --- claims --------------------------------------------------------------------------------------


def test_a_batch_is_drawn_without_replacement_up_to_the_staleness_bound(make_pool):
    for staleness in range(4):
        pool = make_pool(n=20, max_staleness=staleness)
        tickets = pool.claim("w", now=0.0, limit=100)
        assert [t.batch for t in tickets] == [b for b in range(staleness + 1) for _ in range(2)]
        assert [t.order for t in tickets] == [0, 1] * (staleness + 1)
        assert len({t.query for t in tickets}) == len({t.seed for t in tickets}) == len(tickets)
        assert [t.claim_id for t in tickets] == list(range(len(tickets)))
        assert pool.claim("w", now=0.0) == []
        assert not pool.ready


def test_a_release_opens_the_next_batch_and_a_take_does_not(make_pool, submit):
    pool = make_pool(n=20, max_staleness=1)
    for ticket in pool.claim("w", now=0.0, limit=100):
        submit(pool, ticket)
    pool.take(version=0)
    assert pool.claim("w", now=0.0) == []
    pool.release(0)
    assert [t.batch for t in pool.claim("w", now=0.0, limit=100)] == [2, 2]


def test_the_same_seed_draws_the_same_whoever_claims(make_pool, submit):
    def run(workers, seed):
        rng = random.Random(workers)
        pool, tickets = make_pool(n=30, seed=seed, batch_questions=5, oversample=1.6), []
        for _ in range(12):
            held = []
            while got := pool.claim(f"w{rng.randrange(workers)}", now=0.0, limit=rng.randint(1, workers)):
                held += got
            tickets += held
            for ticket in rng.sample(held, len(held)):
                submit(pool, ticket, SIGNAL if ticket.query % 3 else ZERO)
            pool.release(pool.take(version=0).index)
        return tickets

    assert drawn(run(1, 0)) == drawn(run(2, 0)) == drawn(run(7, 0))
    assert [t.query for t in run(1, 0)] != [t.query for t in run(1, 1)]
    assert not {t.seed for t in run(1, 0)} & {t.seed for t in run(1, 1)}


def test_a_lost_worker_gives_its_claims_back(make_pool, submit):
    pool = make_pool(n=20, batch_questions=4)
    lost = pool.claim("dead", now=0.0, limit=2)
    kept = pool.claim("alive", now=0.0, limit=2)
    assert pool.worker_lost("dead") == Lost(2, ())
    assert pool.worker_lost("dead") == Lost(0, ())
    assert pool.places()["claimed"] == 2
    again = pool.claim("alive", now=0.0, limit=100)
    assert [t.order for t in again] == [4, 5], "drawn again, behind the others"
    for ticket in (*kept, *again):
        assert submit(pool, ticket)
    batch = pool.take(version=0)
    assert batch.returned == {"worker_lost": 2}
    assert len(batch.accepted) == 4
    assert pool.books.groups.returned == {"worker_lost": 2}
    assert not submit(pool, lost[0]), "the claim is no longer held"


def test_a_lease_runs_out_and_a_late_group_is_dropped(make_pool, submit):
    pool = make_pool(lease_s=10.0)
    (early,) = pool.claim("w", now=0.0)
    (later,) = pool.claim("w", now=5.0)
    assert pool.next_deadline == 10.0
    assert pool.expire(now=9.9) == 0
    assert pool.expire(now=10.0) == 1
    assert pool.next_deadline == 15.0
    before = pool.places()
    assert not submit(pool, early)
    assert (pool.books.late_groups, pool.books.late_tokens) == (1, 6)
    assert pool.books.trajectories.received == pool.books.tokens.received == 0
    assert pool.places() == before
    assert submit(pool, later), "in time as long as nobody has called its lease"
    assert not submit(pool, later), "once is enough"
    assert pool.next_deadline is None


def test_a_lease_that_is_renewed_begins_anew(make_pool, submit):
    pool = make_pool(lease_s=10.0)
    mine, other = pool.claim("w", now=0.0, limit=2)
    both = [mine.claim_id, other.claim_id]
    assert pool.renew("w", both, [mine.claim_id], now=8.0) == []
    assert pool.renew("another", both, [other.claim_id], now=8.0) == both
    assert pool.next_deadline == 10.0, "only its holder renews a claim"
    assert pool.expire(now=17.9) == 1
    assert pool.renew("w", both, both, now=17.9) == [other.claim_id], "what is gone is told"
    assert submit(pool, mine)
    assert pool.renew("w", both, [], now=18.0) == both
    assert not submit(pool, other)


def test_a_question_that_two_workers_died_of_is_quarantined(make_pool, submit):
    """The one of six that is claimed both times: reported, counted, and never drawn again, whatever is brought back."""
    pool = make_pool(n=6, batch_questions=6)
    first = pool.claim("first", now=0.0, limit=6)
    killer = first[0].query
    for ticket in first[1:]:
        assert submit(pool, ticket)
    assert pool.worker_lost("first") == Lost(1, ())
    (again,) = pool.claim("second", now=0.0, limit=6)
    assert again.query == killer
    saved = pool.state()
    assert pool.worker_lost("second") == Lost(1, (killer,))
    assert pool.places()["quarantined"] == 1
    assert pool.books.groups.returned == {"worker_lost": 1, "quarantined": 1}
    batch = pool.take(version=0)
    assert batch.returned == {"worker_lost": 1, "quarantined": 1}
    pool.release(0)
    drawn = pool.claim("third", now=0.0, limit=6)
    assert sorted(t.query for t in drawn) == [q for q in range(6) if q != killer]
    assert "1 quarantined" in pool.describe()
    pool.books.check()
    resumed = make_pool(n=6, batch_questions=6)
    resumed.load_state(saved)
    resumed.claim("fourth", now=0.0, limit=6)
    assert resumed.worker_lost("fourth").quarantined == (killer,), "a checkpoint knows who is suspected"


def test_deaths_that_found_the_same_questions_together_accuse_none_until_the_others_are_played(make_pool, submit):
    """Workers that die of a full memory would else empty a small pool."""
    pool = make_pool(n=6, batch_questions=6)
    for worker in ("first", "second"):
        assert len(pool.claim(worker, now=0.0, limit=6)) == 6
        assert pool.worker_lost(worker) == Lost(6, ())
    pool.release(pool.take(version=0).index)  # its draws are used up
    assert pool.places()["quarantined"] == 0
    held = pool.claim("fourth", now=0.0, limit=6)
    for ticket in held[2:]:
        assert submit(pool, ticket)
    assert pool.worker_lost("fourth") == Lost(2, ())
    one, other = pool.claim("fifth", now=0.0, limit=6)
    assert submit(pool, other)
    assert pool.worker_lost("fifth") == Lost(1, (one.query,))


def test_the_question_that_was_there_at_the_most_deaths_is_the_one(make_pool):
    """Of a larger pool, each death finds others beside it."""
    pool = make_pool(n=6, batch_questions=6)
    once, twice = pool.claim("first", now=0.0), pool.claim("second", now=0.0)
    assert pool.worker_lost("second") == Lost(1, ())
    rest = pool.claim("third", now=0.0, limit=5)
    assert twice[0].query in {t.query for t in rest}
    assert pool.worker_lost("third") == Lost(5, (twice[0].query,))
    assert pool.worker_lost("first") == Lost(1, ())
    assert pool.places()["quarantined"] == 1
    assert once[0].query != twice[0].query


def test_workers_that_broke_of_something_else_accuse_no_question(make_pool):
    pool = make_pool(n=6, batch_questions=6)
    for worker in ("first", "second"):
        assert len(pool.claim(worker, now=0.0, limit=6)) == 6
        assert pool.worker_lost(worker, suspect=False) == Lost(6, ())


def test_a_question_that_was_played_in_between_is_not_suspected(make_pool, submit):
    pool = make_pool(n=2, batch_questions=2)
    mine, other = pool.claim("first", now=0.0, limit=2)
    assert submit(pool, other)
    pool.worker_lost("first")
    (again,) = pool.claim("second", now=0.0)
    assert submit(pool, again)
    pool.release(pool.take(version=0).index)
    assert {t.query for t in pool.claim("second", now=0.0, limit=2)} == {mine.query, other.query}
    assert pool.worker_lost("second") == Lost(2, ())


def test_an_outcome_must_answer_its_claim(make_pool, make_group, submit):
    pool = make_pool()
    first, second = pool.claim("w", now=0.0, limit=2)
    forged = dataclasses.replace(second, claim_id=first.claim_id)
    with pytest.raises(ValueError, match="doesn't answer the claim"):
        enter(pool, make_group(asked(pool, second), forged, SIGNAL))
    assert submit(pool, first)
    assert submit(pool, second)
    assert pool.ready


def test_too_few_viable_trajectories_send_a_group_back(make_pool, submit):
    pool = make_pool(n=20, group_size=4, min_viable=3)
    first, second = pool.claim("w", now=0.0, limit=2)
    assert first.min_viable == 3, "who plays it knows"
    assert submit(pool, first, (1.0, 0.0), faults=2)
    assert submit(pool, second, (1.0, 0.0, 0.0), faults=1)
    assert not pool.ready
    (again,) = pool.claim("w", now=0.0, limit=5)
    assert again.order == 2
    submit(pool, again, (1.0, 0.0, 0.0, 0.0))
    batch = pool.take(version=0)
    assert [a.payload.ticket.order for a in batch.accepted] == [1, 2]
    assert batch.returned == {"too_few_viable": 1}
    books = pool.books
    assert books.groups.returned == {"too_few_viable": 1}
    assert books.trajectories.returned == {"too_few_viable": 2, "generation_failed": 3}
    assert books.tokens.returned == {"too_few_viable": 6, "generation_failed": 9}
    assert (books.trajectories.accepted, books.tokens.accepted) == (7, 21)
    assert books.trajectories.in_flight == books.tokens.in_flight == books.groups.in_flight == 0


@pytest.mark.parametrize("fault", [StopReason.RETRIEVAL_FAILED, StopReason.REWARD_FAILED])
def test_a_group_with_a_failed_search_or_reward_goes_back_whole(make_pool, submit, fault):
    """Those that are left of it are those that didn't search, or gave no answer to judge."""
    pool = make_pool(n=20, group_size=4, batch_questions=3, max_tool_failures=0.5)
    first, second, third = pool.claim("w", now=0.0, limit=3)
    assert submit(pool, first, (1.0, 0.0, 1.0), faults=1, fault=fault)
    assert submit(pool, second, (1.0, 0.0, 0.0), faults=1, fault=StopReason.GENERATION_FAILED)
    submit(pool, third, (1.0, 0.0, 0.0, 0.0))
    (again,) = pool.claim("w", now=0.0, limit=5)
    submit(pool, again, (0.0, 0.0, 0.0, 1.0))
    batch = pool.take(version=0)
    assert [a.payload.ticket.order for a in batch.accepted] == [1, 2, 3]
    assert batch.returned == {"with_tool_failure": 1}
    assert not batch.too_many_tool_failures
    assert pool.books.trajectories.returned == {"with_tool_failure": 3, str(fault): 1, "generation_failed": 1}
    pool.books.check()


def test_nothing_is_trained_on_where_too_many_searches_fail(make_pool, submit):
    """A question whose episodes don't search has no failed tool, but the batch has too many of them."""
    pool = make_pool(n=20, group_size=4, batch_questions=2)
    first, second = pool.claim("w", now=0.0, limit=2)
    submit(pool, first, (1.0, 0.0), faults=2, fault=StopReason.TOOL_FAILED)
    submit(pool, second, (1.0, 0.0, 0.0, 0.0))
    (again,) = pool.claim("w", now=0.0, limit=1)
    submit(pool, again, (1.0, 0.0, 0.0, 0.0))
    batch = pool.take(version=0)
    assert (batch.too_many_tool_failures, batch.accepted, batch.returned) == (True, (), {"with_tool_failure": 3}), (
        "2 of 12"
    )
    assert pool.places()["available"] == 20
    assert pool.seen()["unseen"] == 20, "such a batch says nothing of its questions"
    pool.release(batch.index)
    for ticket in pool.claim("w", now=0.0, limit=2):
        submit(pool, ticket, (1.0, 0.0, 0.0, 0.0))
    assert len(pool.take(version=0).accepted) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(StopReason.GENERATION_FAILED, "too_few_viable"), (StopReason.RETRIEVAL_FAILED, "with_tool_failure")],
)
def test_a_dead_part_can_not_loop_forever(make_pool, submit, fault, reason):
    pool = make_pool(n=50, batch_questions=3, oversample=2.0, max_empty_batches=3)
    played = Counter()

    def run():
        for _ in range(1000):
            for ticket in pool.claim("w", now=0.0, limit=1):
                played[ticket.batch] += 1
                submit(pool, ticket, (), faults=2, fault=fault)
            if pool.ready:
                pool.release(pool.take(version=0).index)

    with pytest.raises(Fault) as error:
        run()
    assert played == {0: 12, 1: 12, 2: 12}, "six candidates, and as many redraws"
    assert str(error.value) == (
        f"3 batches in a row had no signal-bearing group (the last one returned 12 {reason}); "
        "the pool of 50 questions has 0 too hard, 0 too easy, 0 with signal, 50 unseen; "
        "50 are available, 0 resting, 0 consumed"
    )
    pool.books.check()


def test_crashing_workers_can_not_loop_forever(make_pool):
    pool = make_pool(n=50, batch_questions=3)
    claims = 0
    while not pool.ready:
        claims += len(pool.claim("w", now=0.0))
        pool.worker_lost("w")
    assert claims == 6
    assert pool.take(version=0).accepted == ()


# --- batches without signal ----------------------------------------------------------------------


def test_batches_without_signal_stop_the_run(make_pool, step):
    pool = make_pool(n=4, max_empty_batches=3)
    step(pool, ZERO)
    step(pool, (1.0, 1.0))
    step(pool, SIGNAL)
    assert pool.empty_batches == 0
    step(pool, ZERO)
    step(pool, ZERO)
    assert pool.empty_batches == 2
    with pytest.raises(
        Fault, match=r"3 batches in a row .*returned 2 zero_variance.*pool of 4 questions has [234] too hard"
    ):
        step(pool, ZERO)


def test_zero_variance_counts_as_empty_for_plain_grpo_too(make_pool, step):
    pool = make_pool(n=10, rule=EPOCH(batch_questions=2, group_size=2, max_empty_batches=2))
    step(pool, ZERO)
    with pytest.raises(Fault, match=r"\(the last one returned nothing\)"):
        step(pool, ZERO)


def test_a_pool_that_has_run_dry_stops_the_run_without_any_claim(make_pool, step):
    pool = make_pool(n=2, when_dry="keep", max_empty_batches=2)
    step(pool, SIGNAL)
    assert pool.ready, "nobody can draw, and still the learner must not wait"
    pool.release(pool.take(version=1).index)
    assert pool.claim("w", now=0.0) == []
    with pytest.raises(Fault, match=r"0 are available, 0 resting, 2 consumed"):
        pool.take(version=1)


def test_a_batch_waits_for_queries_in_flight_rather_than_stay_empty(make_pool, submit):
    pool = make_pool(n=2, max_staleness=2)
    tickets = pool.claim("w", now=0.0, limit=100)
    assert len(tickets) == 2, "nothing is left for the second batch"
    for ticket in tickets:
        submit(pool, ticket, ZERO)
    assert pool.take(version=0).index == 0
    assert pool.ready is False
    assert [t.batch for t in pool.claim("w", now=0.0, limit=100)] == [1, 1], "zero-variance queries are back at once"


def test_a_batch_waits_for_the_release_that_brings_queries_back(make_pool, submit):
    rule = EPOCH(batch_questions=2, group_size=2, max_staleness=1)
    pool = make_pool(n=2, rule=rule)
    for ticket in pool.claim("w", now=0.0, limit=100):
        submit(pool, ticket)
    pool.take(version=0)
    assert not pool.ready
    assert pool.claim("w", now=0.0) == []
    pool.release(0)
    assert len(pool.claim("w", now=0.0, limit=100)) == 2
    assert not pool.ready


def test_a_batch_larger_than_the_pool_takes_what_there_is(make_pool, submit):
    pool = make_pool(n=3, batch_questions=8)
    tickets = pool.claim("w", now=0.0, limit=100)
    assert len(tickets) == 3
    assert pool.worker_lost("w").returned == 3
    tickets = pool.claim("w", now=0.0, limit=100)
    for number, ticket in enumerate(tickets):
        assert not pool.ready
        submit(pool, ticket, SIGNAL if number else ZERO)
    batch = pool.take(version=0)
    assert len(batch.accepted) == 2
    assert len(batch.payloads) == 3


# --- take and release ----------------------------------------------------------------------------


def test_take_needs_a_complete_batch(make_pool, submit):
    pool = make_pool()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"take\(\) before the batch is complete"):
            pool.take(version=0)
        (ticket,) = pool.claim("w", now=0.0)
    submit(pool, ticket)
    with pytest.raises(ValueError, match=r"take\(\) before the batch is complete"):
        pool.take(version=0)


def test_batches_are_released_in_order_once_and_after_their_take(make_pool, submit):
    pool = make_pool(n=20, max_staleness=1)
    for ticket in pool.claim("w", now=0.0, limit=100):
        submit(pool, ticket)
    with pytest.raises(ValueError, match="release of batch 0"):
        pool.release(0)
    pool.take(version=0)
    pool.take(version=1)
    with pytest.raises(ValueError, match="release of batch 1, but 0 is the next"):
        pool.release(1)
    pool.release(0)
    with pytest.raises(ValueError, match="release of batch 0, but 1 is the next"):
        pool.release(0)
    pool.release(1)
    assert pool.places()["consumed"] == 4


def test_a_batch_whose_release_its_rule_broke_off_is_not_released(make_pool, submit, monkeypatch):
    class Returning(RECYCLE):
        def rest(self, verdict, history, query):
            return AT_ONCE

    def fails(*_):
        raise KeyError("x")

    pool = make_pool(rule=Returning(batch_questions=2, group_size=2))
    for ticket in pool.claim("w", now=0.0, limit=2):
        submit(pool, ticket)
    pool.take(version=0)
    with monkeypatch.context() as broken:
        broken.setattr(Returning, "weights", fails)
        for _ in range(2):
            with pytest.raises(KeyError):
                pool.release(0)
            assert pool.taken == 0
    pool.release(0)
    assert pool.taken is None
    assert pool.places()["available"] == 6


def test_a_group_that_is_too_old_is_returned_and_not_trained(make_pool, submit):
    pool = make_pool(n=20, batch_questions=3, max_staleness=1)
    tickets = pool.claim("w", now=0.0, limit=3)
    submit(pool, tickets[0], SIGNAL, versions=(5, 3))  # one old token is enough
    submit(pool, tickets[1], SIGNAL, versions=(5, 4))
    submit(pool, tickets[2], SIGNAL, versions=(3, 3))
    batch = pool.take(version=5)
    assert [a.payload.ticket.order for a in batch.accepted] == [1]
    assert batch.returned == {"too_stale": 2}
    assert sum(batch.states.values()) == 1
    assert pool.seen()["unseen"] == 19, "a stale group says nothing of its query"
    assert pool.books.trajectories.returned == {"too_stale": 4}
    assert pool.places()["available"] == 19


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_draws_follow_the_weights_without_replacement(make_pool, submit):
    """Ordered triples drawn from eight weights, against their exact probabilities."""
    n, batch, batches = 8, 3, 6000
    weights = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.5])

    class Weighted(RECYCLE):
        def weights(self, history, queries, batch):
            return weights[queries]

    pool = make_pool(n=n, rule=Weighted(batch_questions=batch, group_size=2, max_empty_batches=10**9), seed=4)
    pairs: Counter[tuple[int, int]] = Counter()
    members: Counter[int] = Counter()
    for _ in range(batches):
        tickets = pool.claim("w", now=0.0, limit=100)
        for ticket in tickets:
            submit(pool, ticket, ZERO)
        pool.release(pool.take(version=0).index)
        queries = [t.query for t in tickets]
        assert len(set(queries)) == batch
        pairs[queries[0], queries[1]] += 1
        members.update(queries)
    total = weights.sum()

    def probability(order):
        p, left = 1.0, total
        for q in order:
            p *= weights[q] / left
            left -= weights[q]
        return p

    expected = {pair: batches * probability(pair) for pair in itertools.permutations(range(n), 2)}
    chi_square = sum((pairs[pair] - e) ** 2 / e for pair, e in expected.items())
    assert chi_square < 93.2, "55 degrees of freedom, p = 0.001"
    included = np.zeros(n)
    for triple in itertools.permutations(range(n), batch):
        included[list(triple)] += probability(triple)
    for query in range(n):
        p = included[query]
        sigma = (batches * p * (1 - p)) ** 0.5
        assert abs(members[query] - batches * p) < 4 * sigma


@pytest.mark.parametrize("each", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_equal_weights_draw_equally(make_pool, step, each):
    pool = make_pool(n=10, max_empty_batches=10**9)
    counts = Counter(t.query for _ in range(5 * each) for t in step(pool, ZERO))
    chi_square = sum((counts[q] - each) ** 2 / each for q in range(10))
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.one_in(5)
@pytest.mark.parametrize("rule", [EPOCH, RECYCLE])
@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("in_flight", [0, 1, 4])
def test_a_resumed_pool_draws_what_the_other_would_have_drawn(make_pool, submit, rule, before, in_flight):
    """Also with a batch in flight, and also when that batch crossed into the next epoch."""

    def make():
        return make_pool(n=10, rule=rule(batch_questions=4, group_size=2), seed=3)

    def play(pool, steps, held=()):
        tickets = []
        for _ in range(steps):
            batch = [*held, *pool.claim("w", now=0.0, limit=100)]
            held = ()
            tickets += batch
            for ticket in batch:
                submit(pool, ticket, SIGNAL if ticket.query % 3 else ZERO)
            pool.release(pool.take(version=0).index)
        return drawn(tickets)

    pool = make()
    play(pool, before)
    held = pool.claim("w", now=0.0, limit=in_flight) if in_flight else []
    state = as_in_a_checkpoint(pool.state())
    other = make()
    other.load_state(state)
    assert other.books.groups.in_flight == 0
    other.books.check()
    assert play(other, 8) == play(pool, 8, held)
    assert other.seen() == pool.seen()
    assert other.places() == pool.places()
    assert other.history.flipped_share == pool.history.flipped_share
    assert (other.history.log == pool.history.log).all()
    assert other.books.groups == pool.books.groups
    assert other.books.tokens == pool.books.tokens


def test_a_state_loaded_is_the_state_saved(make_pool, step):
    pool = make_pool(n=10)
    for rewards in (SIGNAL, ZERO, ZERO, SIGNAL):
        step(pool, rewards)
    state = pool.state()
    other = make_pool(n=10)
    other.load_state(as_in_a_checkpoint(state))
    again = other.state()
    assert again.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_the_query_of_a_surplus_group_is_weighed_anew_like_any_other_after_a_resume(make_pool, submit):
    class Ageing(RECYCLE):
        def next_look(self, ages):
            return np.maximum(1, ages)

    rule = Ageing(batch_questions=1, group_size=2, oversample=2.0, max_staleness=1, keep_surplus=True)
    pool, other = (make_pool(n=2, rule=rule) for _ in range(2))
    for rewards in (ZERO, SIGNAL):
        for ticket in pool.claim("w", now=0.0, limit=2):
            submit(pool, ticket, rewards)
        batch = pool.take(version=0)
        pool.release(batch.index)
    assert len(batch.kept) == 1
    other.load_state(as_in_a_checkpoint(pool.state()))
    assert other.places() == {**pool.places(), "available": 1, "submitted": 0}
    assert (other.state()["looks_at"] >= 0).sum() == 1


def test_a_query_whose_ticket_could_not_be_made_can_be_drawn_after_a_resume(make_pool):
    class Breaking(RECYCLE):
        def cuts(self, history, query, batch):
            raise KeyError("x")

    pool, other = make_pool(n=4, rule=Breaking(batch_questions=2, group_size=2)), make_pool(n=4)
    with pytest.raises(Fault, match=r"cuts\(\) raised KeyError"):
        pool.claim("w", now=0.0)
    assert pool.places()["claimed"] == 1
    other.load_state(as_in_a_checkpoint(pool.state()))
    assert other.places()["available"] == 4


def test_a_rule_is_asked_for_weights_of_queries_that_there_are(make_pool, step):
    """Nothing was in flight at the checkpoint; a rule that looks for its largest weight would break there."""

    class Relative(RECYCLE):
        def weights(self, history, queries, batch):
            weights = 1.0 + history.draws[queries]
            return weights / weights.max()

    rule = Relative(batch_questions=2, group_size=2)
    pool, other = make_pool(rule=rule), make_pool(rule=rule)
    step(pool, ZERO)
    other.load_state(as_in_a_checkpoint(pool.state()))
    assert drawn(other.claim("w", now=0.0, limit=2)) == drawn(pool.claim("w", now=0.0, limit=2))


def test_queries_that_a_rule_could_not_weigh_are_not_available(make_pool, step, monkeypatch):
    """Else the checkpoint of the run's end had them with a weight of 0, and they were drawn last."""

    class Mine(RECYCLE):
        def weights(self, history, queries, batch):
            return np.ones(len(queries))

    def fails(*_):
        raise KeyError("x")

    rule = Mine(batch_questions=2, group_size=2)
    pool, other = make_pool(n=3, rule=rule), make_pool(n=3, rule=rule)
    step(pool)
    with monkeypatch.context() as broken:
        broken.setattr(Mine, "weights", fails)
        with pytest.raises(KeyError):
            pool.claim("w", now=0.0)  # too few are left: the consumed ones come back
    other.load_state(as_in_a_checkpoint(pool.state()))
    assert other.state()["weight"].sum() == other.places()["available"] == 1
    assert len(other.claim("w", now=0.0, limit=2)) == 2


def test_a_state_is_a_copy(make_pool, step):
    pool = make_pool(n=10)
    state = as_in_a_checkpoint(pool.state())
    live = pool.state()
    step(pool)
    for name, value in state.items():
        np.testing.assert_array_equal(live[name], value, err_msg=name)


def test_a_state_reads_no_names():
    """The pool's actor makes one before each take, and a million names take a third of a second."""

    class Names(list):
        def __iter__(self):
            raise AssertionError("the names are read")

    names = [f"q{i}" for i in range(6)]
    pool = QueryPool(names, RECYCLE(batch_questions=2, group_size=2), seed=0)
    pool.ids = Names(names)
    assert pool.state()["ids"] == QueryPool(names, EPOCH(), seed=1).state()["ids"]


def test_work_in_flight_is_claimed_again_before_anything_else(make_pool, submit):
    """Also by a pool with several open batches, some of them half played, under a rule whose draws went on."""
    pool = make_pool(n=12, batch_questions=3, max_staleness=1)
    _, second, *_ = held = pool.claim("w", now=0.0, limit=5)
    submit(pool, second)
    other = make_pool(n=12, batch_questions=3, max_staleness=1)
    other.load_state(as_in_a_checkpoint(pool.state()))
    assert other.places()["claimed"] == 5
    assert not other.ready
    again = other.claim("w", now=0.0, limit=5)
    assert drawn(again) == drawn(held)
    assert not {t.claim_id for t in again} & {t.claim_id for t in held}, "a late group answers no new claim"
    assert other.books.groups.in_flight == 5
    assert drawn(other.claim("w", now=0.0, limit=9)) == drawn(pool.claim("w", now=0.0, limit=9))


@pytest.mark.parametrize("bound", [0, 1])
def test_batches_that_a_larger_staleness_had_opened_wait_for_a_smaller_one(make_pool, submit, bound):
    """Their groups would be too stale once the batches before them are trained on."""
    pool = make_pool(n=12, batch_questions=2, max_staleness=3)
    held = drawn(pool.claim("w", now=0.0, limit=100))
    other = make_pool(n=12, batch_questions=2, max_staleness=bound)
    other.load_state(as_in_a_checkpoint(pool.state()))
    played = []
    for batch in range(4):
        tickets = other.claim("w", now=0.0, limit=100)
        played += drawn(tickets)
        assert max(ticket.batch for ticket in tickets) == batch + bound
        for ticket in tickets:
            submit(other, ticket, version=batch)
        taken = other.take(version=batch)
        assert (taken.index, len(taken.accepted), taken.returned["too_stale"]) == (batch, 2, 0)
        other.release(batch)
    assert played[: len(held)] == held


def test_no_state_between_take_and_release(make_pool, submit):
    pool = make_pool()
    for ticket in pool.claim("w", now=0.0, limit=2):
        submit(pool, ticket)
    pool.take(version=0)
    with pytest.raises(ValueError, match="every taken batch has been released"):
        pool.state()
    pool.release(0)
    assert pool.state()["released"] == 1


def test_a_state_of_other_questions_is_the_users_mistake(make_pool, make_questions):
    state = make_pool(n=6).state()
    for n in (5, 7):
        with pytest.raises(UserError, match="other questions"):
            make_pool(n=n).load_state(state)
    with pytest.raises(UserError, match="other questions"):
        pool_of(make_questions(6)[::-1], RECYCLE(), seed=0).load_state(state)


def test_a_pool_in_use_loads_no_state(make_pool):
    pool = make_pool()
    state = pool.state()
    pool.claim("w", now=0.0)
    with pytest.raises(ValueError, match="in use"):
        pool.load_state(state)


def test_a_continuation_that_brings_signal_is_trained_and_both_states_are_on_record(make_pool, make_group):
    pool = make_pool()
    saved, plain = pool.claim("w", now=0.0, limit=2)
    group = make_group(asked(pool, saved), saved, SIGNAL)
    left_out = make_group.trajectory(group.question, 0)
    enter(pool, dataclasses.replace(group, before_continuation=QueryState.TOO_HARD, discarded=(left_out,)))
    enter(pool, make_group(asked(pool, plain), plain, ZERO))
    batch = pool.take(version=0)
    assert [a.payload.question.id for a in batch.accepted] == [group.question.id]
    pool.release(batch.index)
    rows = [[STATES[row[name]] for name in ("before", "rolled_out", "found", "after")] for row in pool.history.log]
    assert rows == [
        [QueryState.UNSEEN, QueryState.TOO_HARD, QueryState.SIGNAL, QueryState.CONSUMED],
        [QueryState.UNSEEN, QueryState.TOO_HARD, QueryState.TOO_HARD, QueryState.TOO_HARD],
    ]
    pool.books.check()


@pytest.mark.parametrize("before", ["recycle", "epoch", "dynamic"])
def test_another_rule_that_brings_nothing_back_finds_all_questions(make_questions, step, before):
    """``adaptive`` has no way back for what is consumed, since it consumes nothing."""
    sizes = {"batch_questions": 2, "group_size": 2}
    pool = pool_of(make_questions(12), rule_class(before)(**sizes), seed=0)
    for _ in range(3):
        step(pool)
    assert pool.places()["consumed"] == 6
    other = pool_of(make_questions(12), rule_class("adaptive")(**sizes, cooldown=0), seed=0)
    other.load_state(as_in_a_checkpoint(pool.state()))
    assert other.places()["consumed"] == 0
    seen = {ticket.query for _ in range(40) for ticket in step(other)}
    assert len(seen) == 12


def test_what_a_rule_keeps_consumed_stays_so_in_its_own_resumed_run(make_questions, step):
    sizes = {"batch_questions": 2, "group_size": 2, "when_dry": "keep"}
    pool = pool_of(make_questions(12), RECYCLE(**sizes), seed=0)
    step(pool)
    other = pool_of(make_questions(12), RECYCLE(**sizes, oversample=1.5), seed=0)
    other.load_state(as_in_a_checkpoint(pool.state()))
    assert other.places()["consumed"] == 2


def test_adaptive_weighs_a_question_at_the_ages_that_it_says(make_questions, submit, monkeypatch):
    """One, two, four, eight batches after its draw, each time for the batch that opens then."""
    adaptive = rule_class("adaptive")
    ages, first = [], []
    weights = adaptive.weights

    def noted(self, history, queries, batch):
        ages.extend(batch - history.drawn_at[q] for q in first if q in queries)
        return np.where(np.isin(queries, first), 1e-9, weights(self, history, queries, batch))  # it isn't drawn again

    monkeypatch.setattr(adaptive, "weights", noted)
    rule = adaptive(batch_questions=1, group_size=2, oversample=1.0, retire_after=0, explore=0.0, max_empty_batches=99)
    pool = pool_of(make_questions(40), rule, seed=0)
    for version in range(20):
        (ticket,) = pool.claim("w", now=0.0, limit=9)
        if not first:
            first.append(ticket.query)
        submit(pool, ticket, ZERO, version=version)
        pool.release(pool.take(version=version).index)
    assert ages == [1, 2, 4, 8, 16]
