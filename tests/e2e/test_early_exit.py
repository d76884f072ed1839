"""Early exit from the command line: calibrated on one set of questions, used on another, with the real engine."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def calibrated(whole, launch, small):
    """20 development questions per hop, and a risk so high that a threshold with many exits is found."""
    run = launch(
        "calibrate",
        *small,
        "mode=calibrate",
        f"checkpoint={whole.checkpoint}",
        "data.eval_questions_per_hop=1",
        "data.dev_questions_per_hop=20",
        "exit.risk=0.5",
        "exit.delta=0.2",
        "exit.fit_share=0",  # what was found on all questions is compared with what is played on them
    )
    assert run.code == 0, run.output
    return run


def test_calibrating_leaves_threshold_curve_and_probes(calibrated):
    content = json.loads((calibrated.folder / "calibration.json").read_text())
    assert content["questions"] == 60
    assert content["risk_bound"] <= 0.5
    (chosen,) = [p for p in content["points"] if p["threshold"] == content["threshold"]]
    assert chosen["exited"] > 0
    assert chosen["searches"] <= content["full"]["searches"]
    assert content["full"]["em"] - chosen["em"] <= chosen["lost"] / 60 + 1e-9
    assert (calibrated.folder / "curve.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (calibrated.folder / "eval_rows.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    for row in rows:
        assert not row["fault"]
        assert len(row["probes"]) == row["searches"], "a probe after each search, and the episode goes on"
        assert row["stop_reason"] != "early_exit"
        assert all(0 <= p["probe"]["confidence"] <= 1 for p in row["probes"])


def test_what_was_computed_is_what_is_played(calibrated, whole, launch, small):
    """Held-out questions 0 to 20 of each hop are the development questions 1 to 20, and three more."""
    file = calibrated.folder / "calibration.json"
    checkpoint = f"checkpoint={whole.checkpoint}"
    run = launch("exits", *small, "mode=eval", checkpoint, "data.eval_questions_per_hop=21", f"exit.calibration={file}")
    assert run.code == 0, run.output
    (row,) = run.rows("eval")
    content = json.loads(file.read_text())
    (chosen,) = [p for p in content["points"] if p["threshold"] == content["threshold"]]
    assert (row["n"], row["faults"]) == (63, 0)
    # A confidence may differ in its last digits with how requests share a batch: one question may fall otherwise.
    assert -1 <= row["stop"]["early_exit"] - 60 * chosen["exited"] <= 3 + 1
    assert -1 <= 63 * row["em"] - 60 * chosen["em"] <= 3 + 1
    tokens = 63 * (row["action_tokens/mean"] + row["probe_tokens/mean"]) - 60 * chosen["tokens"]
    assert -64 <= tokens <= 3 * 5 * 48 + 64
    assert row["probe_tokens/mean"] > 0
    assert "early exits" in run.output


def test_a_calibration_for_other_settings_is_refused(calibrated, whole, launch, small):
    file = calibrated.folder / "calibration.json"
    asked = ["mode=eval", f"checkpoint={whole.checkpoint}", f"exit.calibration={file}", "exit.max_tokens=5"]
    run = launch("refused", *small, *asked)
    assert run.code == 2
    assert "was made with exit.max_tokens=32, not 5; set it back or calibrate again" in run.output


def test_asking_with_an_early_exit_and_selective_searches(whole, launch, small):
    question = next(t["question"] for t in whole.trajectories() if t["searches"])
    asked = ["mode=ask", f"question='{question}'", f"checkpoint={whole.checkpoint}", "exit.threshold=0.000001"]
    run = launch("exit-ask", *small, *asked, "selectivity=evidence")
    assert run.code == 0, run.output
    assert "early exit, confidence " in run.output
    assert "\nanswer: " in run.output
