"""metrics.jsonl, and the numbers of a batch computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.groups import Group
from agent.pool.batches import TakenBatch
from agent.records import SEARCH, Call, Repeat, StopReason, Trajectory
from agent.tickets import QueryState
from tracking import metrics
from tracking.metrics import MetricsLog, batch_metrics, drifted_tokens, keep_lines, read

# --- the file --------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_in_order(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new" / "folder" / "metrics.jsonl")
    log.write("step", {"step": 1, "reward/mean": 0.25, "version": 1})
    log.write("eval", {"step": 1, "data": "world", "stop": {"answered": 3}})
    log.write("step", {"step": 2})
    assert read(log.path) == [
        {"kind": "step", "step": 1, "reward/mean": 0.25, "version": 1},
        {"kind": "eval", "step": 1, "data": "world", "stop": {"answered": 3}},
        {"kind": "step", "step": 2},
    ]
    assert [row["step"] for row in read(log.path, "step")] == [1, 2]


def test_each_row_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for n in (1, 2, 3):
        log.write("step", {"step": n})
        assert len(log.path.read_text().splitlines()) == n


def test_an_older_file_is_added_to(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl").write("step", {"step": 1})
    MetricsLog(tmp_path / "metrics.jsonl").write("step", {"step": 2})
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_what_json_cannot_say_becomes_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("step", {"a": math.nan, "b": math.inf, "c": {"d": -math.inf, 1: 2.0}, "e": [math.nan, 1.0], "f": None})

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert row == {"kind": "step", "a": None, "b": None, "c": {"d": None, "1": 2.0}, "e": [None, 1.0], "f": None}


@pytest.mark.parametrize(
    "write", [lambda path: metrics.replace(path, [{"step": 2}]), lambda path: keep_lines(path, lambda row: True)]
)
def test_a_full_disk_as_a_file_is_replaced_is_told_with_its_name_and_costs_nothing(tmp_path: Path, write: Any) -> None:
    """A run that goes on in its folder begins so."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("step", {"step": 1})
    (tmp_path / ".metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        write(log.path)
    assert error.value.filename == str(log.path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"], "what is made aside goes: it takes room"
    assert read(log.path) == [{"kind": "step", "step": 1}]


def test_any_text_stays_on_its_line(tmp_path: Path) -> None:
    text = "naïve 世界\nand\r\x0b\x0c\x1c\x85\u2028\u2029more"
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("event", {"cause": text})
    log.write("event", {"cause": "next"})
    assert [row["cause"] for row in read(log.path)] == [text, "next"]
    assert "世界" in log.path.read_text(encoding="utf-8")


def test_a_line_that_was_never_finished_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("step", {"step": 1})
    with log.path.open("a") as file:
        file.write('{"kind": "step", "ste')
    assert read(log.path) == [{"kind": "step", "step": 1}]


# --- a batch ---------------------------------------------------------------------------------------


@pytest.fixture
def batch(make: Any) -> TakenBatch:
    """Five groups of two: two with signal, one too easy, one too hard, one stale; two accepted."""
    t = make.trajectory
    broken = t("q1", tokens=5, version=2, stop=StopReason.RETRIEVAL_FAILED)
    silent = StopReason.RESPONSE_TOKENS
    groups = [
        make.group(0, [(1.0, 1.0, 0.5), (0.0, 0.0, 0.0)], [t("q0", searches=2), t("q0", answer=None, stop=silent)]),
        make.group(
            1,
            [(0.5, 1.0, 0.25), (0.75, 1.0, None)],
            [t("q1", searches=1), t("q1", version=4)],
            excluded=[broken],
            span=(0.5, 3.0),
        ),
        make.group(
            2, [(1.0, 1.0, 1.0)] * 2, [t("q2", searches=1), t("q2", searches=3)], worker="w1", span=(100.0, 104.0)
        ),
        make.group(3, [(0.0, 0.0, 0.0)] * 2, [t("q3"), t("q3")], worker="w1", span=(99.0, 101.0), limit=2),
        make.group(4, [(0.0, 0.0, None), (1.0, 1.0, None)], [t("q4", version=3), t("q4")], worker="w0", limit=5),
    ]
    accepted = {0: QueryState.TOO_HARD, 1: QueryState.UNSEEN}
    return make.batch(groups, accepted, {"zero_variance": 2, "too_stale": 1}, kept=[4])


def test_every_number_of_a_batch_by_hand(batch: TakenBatch) -> None:
    row = batch_metrics(batch, version=5)
    stops = {key: row.pop(key) for key in list(row) if key.startswith("stop/")}
    assert stops == {"stop/answered": 9, "stop/response_tokens": 1, "stop/retrieval_failed": 1}
    # Action tokens: a trajectory has 2 a turn and 1 + searches turns; the excluded one has 5 in one.
    tokens = (6 + 2) + (4 + 2 + 5) + (4 + 8) + (2 + 2) + (2 + 2)
    # w0 from 0 to 3, w1 from 99 to 104, by clocks that have nothing to do with each other.
    seconds = 5.0
    assert row == {
        "reward/mean": (1 + 0 + 0.5 + 0.75 + 1 + 1 + 0 + 0 + 0 + 1) / 10,
        "outcome/mean": (1 + 0 + 1 + 1 + 1 + 1 + 0 + 0 + 0 + 1) / 10,
        "evidence/recall": (0.5 + 0 + 0.25 + 1 + 1 + 0 + 0) / 7,
        "tools/mean": (2 + 1 + 1 + 3) / 10,
        "search/mean": (2 + 1 + 1 + 3) / 10,
        "search/limit_mean": (2 + 5) / 2,
        "search/empty_share": 0.0,
        "search/refused_share": 0.0,
        "groups/signal": 3,
        "groups/too_easy": 1,
        "groups/too_hard": 1,
        "groups/accepted": 2,
        "continuation/attempted": 0,
        "continuation/replaced": 0,
        "continuation/extra_tokens": 0,
        "continuation/mean_gain": math.nan,
        "groups/kept": 1,
        "groups/cut_short": 0,
        "groups/returned/too_stale": 1,
        "groups/returned/zero_variance": 2,
        "pool/recycled_share": 0.5,
        "pool/recovered_too_hard": 1,
        "pool/recovered_too_easy": 0,
        "rollout/trajectories": 11,
        "rollout/excluded": 1,
        "rollout/excluded_why": "retrieval_failed: it broke",
        "rollout/generated_tokens": tokens,
        "rollout/seconds": seconds,
        "rollout/tokens_per_s": tokens / seconds,
        # The excluded trajectory was of version 2, but it is not going to be trained on.
        "rollout/staleness_max": 2,
    }


def test_continuations_are_counted_and_what_they_discarded_was_played(make: Any) -> None:
    t = make.trajectory
    plain = make.group(0, [(0.0, 0.0, 0.0), (1.0, 1.0, 0.0)], [t(), t()])

    def continued(order: int, *, replaced: int, tokens: int, **gain: float) -> Group:
        group = make.group(order, [(0.0, 0.0, 0.0), (0.5, 0.0, 1.0)], [t(f"q{order}"), t(f"q{order}", searches=1)])
        extra = {"attempted": 1, "replaced": replaced, "extra_tokens": tokens, "extra_rollouts": 2, **gain}
        thrown = (t(f"q{order}", stop=StopReason.TURN_TOKENS),) * 2
        return replace(group, discarded=thrown, before_continuation=QueryState.TOO_HARD, extra=extra)

    groups = [
        plain,
        continued(1, replaced=1, tokens=7, gain=0.5),
        continued(2, replaced=0, tokens=8),
        continued(3, replaced=1, tokens=9, gain=0.25),
    ]
    row = batch_metrics(make.batch(groups, {}, {}), version=5)
    assert {k.removeprefix("continuation/"): v for k, v in row.items() if k.startswith("continuation/")} == {
        "attempted": 3,
        "replaced": 2,
        "extra_tokens": 24,
        "mean_gain": 0.375,
    }
    assert row["rollout/trajectories"] == 8 + 6
    assert row["stop/turn_tokens"] == 6
    assert row["rollout/generated_tokens"] == 4 + 3 * (2 + 4 + 4)
    assert row["reward/mean"] == (1 + 3 * 0.5) / 8, "the members count, not what was discarded"


def test_a_recovered_easy_query_counts_as_one(make: Any) -> None:
    group = make.group(0, [(1.0, 1.0, None), (0.0, 0.0, None)], [make.trajectory()] * 2)
    row = batch_metrics(make.batch([group], {0: QueryState.TOO_EASY}, {}), version=5)
    assert (row["pool/recovered_too_easy"], row["pool/recovered_too_hard"], row["pool/recycled_share"]) == (1, 0, 1.0)


def test_accepted_groups_without_signal_do_not_count_as_recycled_or_recovered(make: Any) -> None:
    """The epoch rule accepts them; they carry no gradient."""
    dull = make.group(0, [(0.0, 0.0, None)] * 2, [make.trajectory()] * 2)
    signal = make.group(1, [(0.0, 0.0, None), (1.0, 1.0, None)], [make.trajectory("q1")] * 2)
    accepted = {0: QueryState.TOO_HARD, 1: QueryState.CONSUMED}
    row = batch_metrics(make.batch([dull, signal], accepted, {}), version=5)
    assert (row["groups/accepted"], row["pool/recycled_share"], row["pool/recovered_too_hard"]) == (2, 0.0, 0)


def test_the_staleness_counts_a_surplus_of_the_batch_before(make: Any) -> None:
    """It was played for that one, and is trained on in this one."""
    of_then = make.group(0, [(1.0, 1.0, None), (0.0, 0.0, None)], [make.trajectory(version=3)] * 2)
    batch = make.batch([of_then], {0: QueryState.UNSEEN}, {})
    assert batch_metrics(replace(batch, played=()), version=5)["rollout/staleness_max"] == 2


def test_a_batch_without_any_group_has_no_means(make: Any) -> None:
    row = batch_metrics(make.batch([], {}, {"lease_expired": 2}), version=5)
    means = ("reward/mean", "outcome/mean", "evidence/recall", "tools/mean", "search/mean", "pool/recycled_share")
    shares = ("search/empty_share", "search/refused_share")
    assert all(math.isnan(row[key]) for key in (*means, *shares, "rollout/tokens_per_s"))
    counts = ("groups/signal", "groups/too_easy", "groups/too_hard", "rollout/trajectories", "rollout/generated_tokens")
    assert all(row[key] == 0 for key in (*counts, "rollout/staleness_max", "rollout/seconds"))
    assert row["groups/returned/lease_expired"] == 2


def test_a_batch_that_names_no_evidence_has_no_recall(make: Any) -> None:
    group = make.group(0, [(1.0, 1.0, None)] * 2, [make.trajectory()] * 2)
    row = batch_metrics(make.batch([group], {}, {}), version=5)
    assert math.isnan(row["evidence/recall"])
    assert row["reward/mean"] == 1.0


def with_calls(trajectory: Trajectory, *calls: Call) -> Trajectory:
    """``trajectory`` with these in the place of its first calls, one a turn."""
    turns = [replace(turn, calls=(call,)) for turn, call in zip(trajectory.turns, calls, strict=False)]
    return replace(trajectory, turns=(*turns, *trajectory.turns[len(turns) :]))


def test_searches_without_a_passage_and_those_over_the_limit_are_told_apart(make: Any) -> None:
    def search(**more: Any) -> Call:
        return Call(tool=SEARCH, argument="x", **more)

    found = search(document_ids=("d1",), titles=("Emma",))
    members = [
        with_calls(make.trajectory(searches=2), found, search()),
        # Neither asked the retriever; and a tool that retrieves nothing isn't a search that found nothing.
        with_calls(make.trajectory(searches=3), search(repeat=Repeat.QUERY), Call(tool="open", argument="1"), found),
        with_calls(make.trajectory(searches=2), search(), search(refused=True)),
        with_calls(make.trajectory(searches=1), Call(tool="open", argument="1", refused=True)),
        # The last turn has no observation: nobody saw what it found.
        with_calls(make.trajectory(stop=StopReason.RESPONSE_TOKENS, answer=None), search()),
    ]
    group = make.group(0, [(0.0, 0.0, None)] * 5, members)
    row = batch_metrics(make.batch([group], {}, {}), version=5)
    assert row["search/empty_share"] == 2 / 4
    assert row["search/refused_share"] == 1 / 5


# --- lines that were never finished ----------------------------------------------------------------


@pytest.mark.parametrize("torn", ['{"kind": "step", "st', '{"kind": "event", "message": "é', "\0\0\0"])
def test_a_torn_line_costs_itself_alone(tmp_path: Path, torn: str) -> None:
    """A kill or a power cut, even within a letter; then a sweep notes the failure behind it, and reads on."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("step", {"step": 1})
    with log.path.open("ab") as file:
        file.write(torn.encode()[:-1] if torn.endswith("é") else torn.encode())
    assert read(log.path) == [{"kind": "step", "step": 1}]
    log.write("event", {"event": "failed", "message": "why"})
    log.write("step", {"step": 2})
    assert [row["kind"] for row in read(log.path)] == ["step", "event", "step"]
    assert read(log.path, "step") == [{"kind": "step", "step": 1}, {"kind": "step", "step": 2}]


def test_tokens_that_are_no_longer_what_was_parsed_are_counted(make: Any) -> None:
    """A mask that is off by one in any of three trajectories, an excluded one among them."""
    whole, off = make.trajectory("q0", searches=1), make.trajectory("q0")
    excluded = make.trajectory("q0", tokens=5, stop=StopReason.TOOL_FAILED)
    group = make.group(0, [(1.0, 1.0, 0.5), (0.0, 0.0, 0.0)], [whole, off], excluded=[excluded])

    def spelled(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def as_parsed(trajectory: Trajectory, by: int = 0) -> Trajectory:
        ids = (trajectory.token_ids + by).tolist()
        turns = (replace(turn, text=spelled(ids[turn.action_start : turn.action_end])) for turn in trajectory.turns)
        return replace(trajectory, turns=tuple(turns))

    def drifted(*by: int) -> int:
        one, other, third = map(as_parsed, (whole, off, excluded), by)
        first, second = group.members
        members = (replace(first, trajectory=one), replace(second, trajectory=other))
        return drifted_tokens([replace(group, members=members, excluded=(third,))], spelled)

    assert drifted(0, 0, 0) == 0
    assert drifted(1, 0, 0) == int(whole.action_mask.sum()) == 4
    assert drifted(0, 1, 1) == 2 + 5
