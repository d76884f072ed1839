"""What is read from the folder of a finished run, written here by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest

from agent.errors import UserError
from agent.simulation.pipeline import simulate
from tracking.experiments.latencies import calibrate, scaled, spread, turns_of
from tracking.metrics import MetricsLog

CONFIG = """
pool: {max_staleness: 0, group_size: 2}
cluster: {rollout_workers: 1, engine: {max_num_seqs: 256}}
"""
STEP = {
    "rollout/seconds": 2.0,
    "rollout/generated_tokens": 80,
    "rollout/trajectories": 8,
    "learner/seconds": 1.0,
    "weights/publish_s": 0.25,
    "groups/signal": 2,
    "groups/too_easy": 1,
    "groups/too_hard": 1,
    "retrieval/p50_s": 0.01,
    "retrieval/p99_s": 0.1,
}
EPISODES = [
    {"action_tokens": 6, "turns": [{"text": "ab"}, {"text": "a"}]},
    {"action_tokens": 2, "turns": [{"text": "a"}]},
]


def write_run(folder):
    """Nine steps of 3.5 seconds each, an evaluation of 10 seconds after the fourth, and a slow first step."""
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(CONFIG)
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EPISODES))
    log = MetricsLog(folder / "metrics.jsonl")
    now = 60.0
    for step in range(1, 10):
        log.write("step", {"step": step, "time_s": now, **STEP})
        now += 3.5
        if step == 4:
            log.write("eval", {"step": step})
            now += 10
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is read from such a run: the engine's speed is looked for in simulations of a second together."""
    return calibrate(write_run(tmp_path_factory.mktemp("run")), half=3.0, recompute=2.0, seed=0)


def test_a_runs_latencies(found):
    """3.5 s from step to step: rollouts 2, update 1, publication 0.25, and 0.25 that are nobody else's."""
    latencies = found.latencies
    assert found.step_s == pytest.approx(3.5)
    assert found.rollout_s == pytest.approx(2.0)
    assert latencies.learner == (1.0,) * 4, "of seven undisturbed steps four are read"
    assert latencies.publish == pytest.approx(0.25)
    assert latencies.driver == pytest.approx(0.25)
    assert (latencies.half, latencies.recompute) == (3.0, 2.0)
    assert (found.layout.batch_questions, found.layout.group_size) == (4, 2)
    lengths = [sum(turns) for turns in latencies.episodes]
    assert sum(lengths) / len(lengths) == pytest.approx(80 / 8)
    assert simulate(latencies, found.layout, steps=20, seed=0).step_s == pytest.approx(3.5, rel=2e-3)


def test_episodes_keep_their_proportions_when_they_are_scaled():
    assert scaled([(4.0, 2.0), (2.0,)], 8.0) == ((8.0, 4.0), (4.0,))


def test_a_turn_has_the_share_of_tokens_that_it_has_of_the_text():
    row = {"action_tokens": 12, "turns": [{"text": "abc"}, {"text": ""}, {"text": "ab"}]}
    assert turns_of(row) == (6.0, 2.0, 4.0), "a turn without text still has its end token"


def test_searches_spread_between_their_median_and_their_99th_percentile():
    seconds = spread(0.01, 0.1)
    assert seconds == tuple(sorted(seconds))
    assert (seconds[99] * seconds[100]) ** 0.5 == pytest.approx(0.01)
    assert seconds[-2:] == (pytest.approx(0.1, rel=0.2), pytest.approx(0.1))
    assert spread(0.0, 0.0) == (0.0,)
    assert spread(0.02, 0.02) == (0.02,)


def broken(run, what):
    if what == "steps":
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:4]))
    elif what == "staleness":
        (run / ".hydra" / "config.yaml").write_text(CONFIG.replace("max_staleness: 0", "max_staleness: 2"))
    elif what == "config":
        (run / ".hydra" / "config.yaml").unlink()
    elif what == "metrics":
        (run / "metrics.jsonl").unlink()
    elif what == "no trajectories":
        (run / "trajectories.jsonl").unlink()
    elif what == "no times":
        log = run / "metrics.jsonl"
        log.write_text(log.read_text().replace('"time_s"', '"time"'))
    elif what == "no pool":
        (run / ".hydra" / "config.yaml").write_text("cluster: {}\n")
    elif what == "empty trajectories":
        (run / "trajectories.jsonl").write_text("")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("steps", r"3 steps.*4 are needed.*evaluation\.every"),
        ("staleness", r"pool\.max_staleness=2.*synchronous"),
        ("config", r"not the folder of a run"),
        ("metrics", r"not the folder of a run"),
        ("no trajectories", r"tracker\.trajectories_per_step"),
        ("empty trajectories", r"holds no episode"),
        ("no times", r"damaged, or another program's \('time_s'\)"),
        ("no pool", r"damaged, or another program's"),
    ],
)
def test_a_folder_that_cant_be_read_from_is_refused(run, what, message):
    broken(run, what)
    with pytest.raises(UserError, match=message):
        calibrate(run, half=3.0, recompute=0.0, seed=0)


def test_another_number_of_workers_is_simulated_from_the_same_run(found):
    found = dataclasses.replace(found, latencies=dataclasses.replace(found.latencies, half=0.0))
    one = simulate(found.latencies, found.layout, steps=20, seed=0)
    two = dataclasses.replace(found.layout, rollout_workers=2)
    assert simulate(found.latencies, two, steps=20, seed=0).rollout_s < 0.65 * one.rollout_s


@pytest.mark.slow
def test_a_line_that_its_writer_never_finished_is_left_out(run, found):
    with (run / "trajectories.jsonl").open("a") as file:
        file.write('{"action_tokens": 6}\n{"action_tokens": 6, "tur')
    assert calibrate(run, half=3.0, recompute=2.0, seed=0) == found
