"""A sweep's folder: what a job is called, how far it is, what is kept of it, and the report of it all."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_shown import shown_by_markdown
from sweep_rows import RUN, evaluation, step

from agent.errors import UserError
from agent.pool.history import DRAW, STATES
from agent.tickets import QueryState
from agent.visible import visible
from tracking.config import ReportConfig
from tracking.console import Console
from tracking.draws import write_draws
from tracking.experiments import curves, pictures, report, sweep
from tracking.experiments.sweep import Job, Plan, Status
from tracking.metrics import MetricsLog, read, replace

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
SUMMARY = {"kind": "summary", "step": 4, "stopped_early": False, "interrupted": False}
RESUMED = {"kind": "event", "event": "resumed", "step": 2}


def job(seed: int = 0, **overrides: str) -> Job:
    return Job(overrides={**overrides, "seed": str(seed)}, seed=seed)


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "name", "condition"),
    [
        ({"seed": "3", "pool": "recycle"}, "pool=recycle,seed=3", "pool=recycle"),
        ({"condition": "recycle-2x", "seed": "3"}, "condition=recycle-2x,seed=3", "recycle-2x"),
        ({"condition": "epoch", "algorithm.optimizer.lr": "1e-4"}, None, "algorithm.optimizer.lr=1e-4,epoch"),
        ({"seed": "3"}, "seed=3", "all"),
        ({}, "all", "all"),
        # As Hydra's grammar escapes it.
        ({"pool": r"mine.rules\:Rule", "seed": "0"}, "pool=mine.rules:Rule,seed=0", "pool=mine.rules:Rule"),
        ({"model.path": "/models/a"}, "model.path=_models_a", "model.path=/models/a"),
    ],
)
def test_a_job_is_named_by_what_is_varied_and_its_condition_by_the_rest(
    overrides: dict[str, str], name: str | None, condition: str
) -> None:
    made = Job(overrides=overrides, seed=0)
    assert name in (None, made.name)
    assert made.condition == condition


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"^pool=epoch,seed=0: two jobs of the sweep have this name"):
        sweep.check_names([job(pool="epoch"), job(1, pool="epoch"), job(pool="epoch")])
    with pytest.raises(UserError, match="too long for a folder's name; put the settings into files of conf/condition"):
        sweep.check_names([job(**{"data.questions": "x" * 240})])


# --- plan.json -------------------------------------------------------------------------------------


def test_a_plan_keeps_the_jobs_of_earlier_sweeps_into_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep.save_plan(folder, Plan(jobs=(job(pool="epoch"), job(pool="recycle")), report=ReportConfig(title="one")))
    sweep.save_plan(folder, Plan(jobs=(job(1, pool="epoch"), job(pool="epoch")), report=ReportConfig(title="two")))
    plan = sweep.read_plan(folder)
    assert [j.name for j in plan.jobs] == ["pool=epoch,seed=1", "pool=epoch,seed=0", "pool=recycle,seed=0"]
    assert plan.report == ReportConfig(title="two")
    sweep.save_plan(folder, Plan(jobs=(job(2, pool="epoch"),), report=ReportConfig(baseline="pool=epoch")))
    assert sweep.read_plan(folder).report == ReportConfig(title="two", baseline="pool=epoch"), "what was said stays"


def test_a_folder_that_is_no_sweeps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no plan\.json there; name a sweep's folder"):
        sweep.read_plan(tmp_path)
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "eval.json").touch()
    with pytest.raises(UserError, match="a folder of evaluations, and mode=report is of training and simulation"):
        sweep.read_plan(tmp_path)
    for damaged in (
        '{"jobs": [',
        '{"jobs": [], "report": {"title": 5}}',
        '{"jobs": [{"overrides": {"condition": null}, "seed": 0}], "report": {}}',
        '{"jobs": [{"overrides": {}, "seed": Infinity}], "report": {}}',
    ):
        (tmp_path / "plan.json").write_text(damaged)
        with pytest.raises(UserError, match=r"plan\.json is damaged .*; delete it, and start the sweep again"):
            sweep.read_plan(tmp_path)


def test_the_report_is_as_asked_for_now_else_as_the_sweep_was_started() -> None:
    planned = ReportConfig(sweep="a", title="t", baseline="pool=epoch", target_em=0.5)
    assert sweep.settings(ReportConfig(sweep="b", target_em=0.25), planned) == ReportConfig(
        sweep="b", title="t", baseline="pool=epoch", target_em=0.25
    )


@pytest.mark.parametrize("target", [0.0, -1.0, 1.5])
def test_a_target_is_a_share(target: float) -> None:
    with pytest.raises(UserError, match=r"report\.target_em=.* must lie in \(0, 1\]"):
        ReportConfig(target_em=target)


# --- a job's state ---------------------------------------------------------------------------------

FAILED = {"kind": "event", "event": "failed", "message": "no room"}
STOPPED = {**SUMMARY, "stopped_early": True, "interrupted": True}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, (Status.WAITING, "")),
        ([], (Status.WAITING, "")),
        ([RUN[0]], (Status.UNFINISHED, "")),
        ([*RUN[:-1], SUMMARY], (Status.FINISHED, "")),
        ([*RUN[:-1], STOPPED], (Status.UNFINISHED, "")),
        ([RUN[0], FAILED], (Status.FAILED, "no room")),
        ([RUN[0], FAILED, RESUMED], (Status.UNFINISHED, "")),
        ([RUN[0], RESUMED, SUMMARY], (Status.FINISHED, "")),
    ],
    ids=[
        "no folder",
        "nothing yet",
        "running",
        "finished",
        "stopped",
        "failed",
        "gone on with",
        "resumed and finished",
    ],
)
def test_how_far_a_job_is(tmp_path: Path, rows: list[dict[str, Any]] | None, expected: tuple[Status, str]) -> None:
    if rows is not None:
        replace(tmp_path / "metrics.jsonl", rows)
    assert sweep.status(tmp_path) == expected


@pytest.mark.parametrize(
    ("result", "state"),
    [('{"slices": []}', Status.FINISHED), ('{"slices": [', Status.UNFINISHED), ("[]", Status.UNFINISHED)],
)
def test_an_evaluation_has_ended_where_its_result_can_be_read(tmp_path: Path, result: str, state: Status) -> None:
    replace(tmp_path / "metrics.jsonl", [RUN[0]])
    (tmp_path / "eval.json").write_text(result)
    assert sweep.status(tmp_path) == (state, "")


def test_what_is_worth_keeping_is_a_finished_job_or_a_whole_checkpoint(tmp_path: Path) -> None:
    assert not sweep.worth_keeping(tmp_path)
    replace(tmp_path / "metrics.jsonl", [RUN[0], RUN[1]])
    (tmp_path / "checkpoints" / ".tmp-step-000001").mkdir(parents=True)
    assert not sweep.worth_keeping(tmp_path)
    (tmp_path / "checkpoints" / "step-000001").mkdir()
    assert not sweep.has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "step-000001" / "manifest.json").touch()
    assert sweep.has_checkpoint(tmp_path)
    assert sweep.worth_keeping(tmp_path)
    sweep.clear(tmp_path)
    replace(tmp_path / "metrics.jsonl", [SUMMARY])
    assert sweep.worth_keeping(tmp_path)


def test_a_job_that_starts_over_keeps_nothing_but_its_configuration(tmp_path: Path) -> None:
    for name in (".hydra", "model", "logs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    replace(tmp_path / "metrics.jsonl", [RUN[0]])
    sweep.clear(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [".hydra", "file"]


def test_a_failure_is_recorded_after_what_the_run_wrote(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl").write("eval", {"step": 0})
    sweep.record_failure(tmp_path, "it broke")
    assert sweep.status(tmp_path) == (Status.FAILED, "it broke")
    assert len(read(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize(("rows", "stopped"), [([SUMMARY], False), ([STOPPED], True), ([RUN[0]], False), (None, False)])
def test_whether_the_user_ended_a_run(tmp_path: Path, rows: list[dict[str, Any]] | None, stopped: bool) -> None:
    if rows is not None:
        replace(tmp_path / "metrics.jsonl", rows)
    assert sweep.interrupted(tmp_path) is stopped


# --- the same configuration ------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "seed": 0,
    "output_dir": "a",
    "tracker": {"name": "none"},
    "pool": {"name": "recycle", "oversample": 1.0},
    "reward": {"gates": ["no_answer"], "weights": {}},
}


def test_what_changes_nothing_in_a_run_may_differ(tmp_path: Path) -> None:
    other = {**CONFIG, "output_dir": "b", "tracker": {"name": "wandb"}, "report": {"title": "x"}}
    sweep.check_same(tmp_path, CONFIG, other)


def test_a_newer_version_goes_on_with_a_sweep_that_lacks_its_settings(tmp_path: Path) -> None:
    newer = {**CONFIG, "cluster": {"nccl_p2p": True}, "pool": {"name": "recycle"}}
    sweep.check_same(tmp_path, CONFIG, newer)
    sweep.check_same(tmp_path, newer, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": {"name": "recycle", "oversample": 2.0}}, "pool.oversample=1.0, not 2.0;"),
        ({"pool": {"name": "epoch", "oversample": 2.0}}, "pool.name=recycle, not epoch (and 1 more keys differ);"),
        ({"pool": {"name": "epoch"}}, "pool.name=recycle, not epoch;"),
        ({"reward": {"gates": [], "weights": {}}}, "reward.gates=['no_answer'], not [];"),
    ],
)
def test_a_run_of_other_settings_is_named_with_the_key_and_what_to_do(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        sweep.check_same(tmp_path / "pool=recycle", CONFIG, {**CONFIG, **change})
    assert str(error.value).startswith(f"{tmp_path}/pool=recycle holds a run with {message}")
    assert str(error.value).endswith("delete that folder, or put the sweep elsewhere with report.sweep=FOLDER")


# --- the report ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two conditions of two seeds: three jobs have finished, one has failed; a third condition waits."""
    jobs = [job(seed, pool=rule) for rule in ("epoch", "recycle") for seed in (0, 1)]
    better = [{**row, "em": row["em"] + 0.1} if row["kind"] == "eval" else row for row in RUN]
    runs = {
        jobs[0].name: [*RUN[:-1], SUMMARY],
        jobs[1].name: [*better[:-1], SUMMARY],
        jobs[2].name: [*better[:-1], SUMMARY],
        jobs[3].name: [RUN[0], step(1), {**FAILED, "message": "a | b\nc"}],
    }
    for name, rows in runs.items():
        replace(tmp_path / name / "metrics.jsonl", rows)
    plan = Plan(
        jobs=(*jobs, job(pool="dynamic")),
        report=ReportConfig(sweep=str(tmp_path), title="A title", baseline="pool=epoch", target_em=0.65),
    )
    sweep.save_plan(tmp_path, plan)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the pictures of a report, which take seconds."""
    monkeypatch.setattr(pictures, "draw", lambda *_: {})


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_a_sweep_of_which_a_part_is_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write(folder, ReportConfig(sweep=str(folder)), Console())
    content = json.loads((folder / "sweep.json").read_text())
    assert [(j["name"], j["status"], j["seed"]) for j in content["jobs"]] == [
        ("pool=epoch,seed=0", "finished", 0),
        ("pool=epoch,seed=1", "finished", 1),
        ("pool=recycle,seed=0", "finished", 0),
        ("pool=recycle,seed=1", "failed", 1),
        ("pool=dynamic,seed=0", "waiting", 0),
    ]
    first, failed = content["jobs"][0], content["jobs"][3]
    assert (first["rollouts"], first["generated_tokens"], first["measures"]["em_after"]) == (160, 1800, 0.5)
    assert (first["first_eval"]["em"], first["last_eval"]["em"]) == (0.2, 0.5)
    assert first["overrides"] == {"pool": "epoch", "seed": "0"}
    assert (failed["message"], failed["rollouts"]) == ("a | b\nc", 40)
    epoch, recycle, dynamic = content["conditions"]
    assert [(c["name"], c["n"], len(c["jobs"])) for c in content["conditions"]] == [
        ("pool=epoch", 2, 2),
        ("pool=recycle", 1, 2),
        ("pool=dynamic", 0, 1),
    ]
    # 0.5 and 0.6: mean 0.55, deviation 0.1 / sqrt(2), over sqrt(2): 0.05 times t of one degree.
    assert epoch["measures"]["em_after"]["mean"] == pytest.approx(0.55)
    assert epoch["measures"]["em_after"]["high"] == pytest.approx(0.55 + 12.706 * 0.05)
    # Only the better run reaches 0.65, 35/40 of the way from 0.3 to 0.7 in 80 rollouts.
    assert epoch["measures"]["rollouts_to_target"] == {"mean": pytest.approx(70), "low": None, "high": None, "n": 1}
    assert recycle["measures"]["rollouts"]["mean"] == 160
    assert dynamic["measures"] == {}
    against, _ = content["comparisons"]
    assert (against["condition"], against["em_after"]["mean"], against["em_after"]["n"]) == (
        *("pool=recycle", pytest.approx(0.1)),
        1,
    )
    assert against["rollouts_per_signal_group"]["mean"] == pytest.approx(1.0)
    printed = capsys.readouterr().out
    for text in ("A title", "pool=recycle", "Against pool=epoch", "failed: a | b"):
        assert text in printed


@pytest.mark.usefixtures("undrawn")
def test_a_job_whose_evaluation_was_refused_or_whose_files_are_damaged_is_named_and_the_others_are_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = ["pool=epoch,seed=0", "pool=epoch,seed=1", "pool=recycle,seed=0"]
    at = max(i for i, row in enumerate(RUN) if row["kind"] == "eval")
    nothing = {**RUN[at], "em": None, "refused": "2 of 9 questions broke"}
    replace(folder / jobs[0] / "metrics.jsonl", [*RUN[:at], nothing, *RUN[at + 1 : -1], SUMMARY])
    of_another_version = [{k: v for k, v in row.items() if k != "pool/flipped_share"} for row in RUN[:-1]]
    replace(folder / jobs[1] / "metrics.jsonl", [*of_another_version, SUMMARY])
    (folder / jobs[2] / "draws.parquet").write_bytes(b"PAR1 cut off")
    report.write(folder, ReportConfig(sweep=str(folder)), Console())
    told = {j["name"]: j for j in json.loads((folder / "sweep.json").read_text())["jobs"]}
    assert [told[name]["status"] for name in jobs] == ["finished", "unreadable", "unreadable"]
    assert told[jobs[0]]["message"] == f"the evaluation of step {nothing['step']} was refused: 2 of 9 questions broke"
    assert told[jobs[0]]["measures"]["em_after"] is told[jobs[0]]["last_eval"] is None
    assert told[jobs[0]]["first_eval"]["em"] == 0.2
    assert "flipped_share" in told[jobs[1]]["message"]
    assert told[jobs[2]]["message"].startswith("its files: damaged")
    assert "2 of 9 questions broke" in capsys.readouterr().out


def test_the_table_in_the_folder_is_markdown(folder: Path) -> None:
    report.write(folder, ReportConfig(), Console(quiet=True))
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] == "# A title"
    assert "|  | pool=epoch | pool=recycle | pool=dynamic |" in lines
    assert "| --- | ---: | ---: | ---: |" in lines
    assert "| finished jobs | 2 of 2 | 1 of 2 | 0 of 1 |" in lines
    assert "| held-out EM after | 0.550 ± 0.635 | 0.600 | – |" in lines
    assert "| &nbsp;&nbsp;1-hop | 0.900 ± 0.000 | 0.900 | – |" in lines
    assert "| rollouts to EM 0.65 | 70 (1 of 2) | 70 | – |" in lines
    assert "| rollouts per signal-bearing group | 8.00 ± 0.00 | 8.00 | – |" in lines
    assert "| held-out EM after, difference | 0.100, 1 seed | – |" in lines
    assert "| &nbsp;&nbsp;2-hop | 0.000, 1 seed | – |" in lines
    assert "| pool=recycle,seed=1 | 0.200 | 0.200 | 40 | 400 | failed: a &#124; b c |" in lines
    assert [line for line in lines if line.startswith("![")] == [
        f"![{caption}]({name}.png)"
        for name, caption in (
            ("em", "How each seed learns: held-out exact match against rollouts"),
            ("em_tokens", "What it costs: held-out exact match against generated tokens"),
            ("evidence", "What is found: held-out evidence recall against generated tokens"),
            ("groups", "What is played: groups that were too hard, bore signal, were too easy"),
            ("pool", "What is recycled: share of trained groups; flipped share of questions"),
            ("against", "Is it better: against pool=epoch, paired by seed"),
            ("difference", "When is it better: held-out exact match less that of pool=epoch, paired by seed"),
            ("spent", "What a question takes: exact match against its searches, evaluation by evaluation"),
            (
                "spent_tokens",
                "What a question takes: exact match against its generated tokens, evaluation by evaluation",
            ),
        )
    ]
    for name in ("em", "em_tokens", "evidence", "groups", "pool", "against", "difference"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_picture_that_fails_is_named_and_the_others_are_drawn(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no groups")

    monkeypatch.setattr(pictures, "_groups", broken)
    (folder / "groups.png").write_bytes(b"of an earlier report")
    report.write(folder, ReportConfig(), Console())
    said = " ".join(capsys.readouterr().out.split())
    assert "groups.png failed and is left out of the report: ZeroDivisionError: no groups" in said
    assert "groups.png" not in (folder / "table.md").read_text()
    assert (folder / "em.png").is_file()
    assert not (folder / "groups.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("without", [["pool=epoch,seed=1"], ["pool=recycle,seed=0"], None])
def test_a_job_without_a_step_takes_no_picture_from_the_others(
    folder: Path, without: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one has that was evaluated alone; ``None``: all of them."""
    for name in without or ["pool=epoch,seed=0", "pool=epoch,seed=1", "pool=recycle,seed=0"]:
        replace(folder / name / "metrics.jsonl", [RUN[0], SUMMARY])
    report.write(folder, ReportConfig(), Console())
    assert "failed and is left out" not in " ".join(capsys.readouterr().out.split())
    for name in ("groups.png", "pool.png"):
        assert (folder / name).is_file() is (without is not None)


def test_what_is_spent_is_drawn_by_evaluations() -> None:
    assert curves.spent(RUN, "searches") == ([1.5, 3.5, 5.5], [0.2, 0.6, 0.5])
    simulated = [{**row, "search/mean": None, "action_tokens/mean": None} for row in RUN if row["kind"] == "eval"]
    assert curves.spent(simulated, "searches") == ([], [])
    assert curves.spent(RUN, "question_tokens") == ([10.5, 12.5, 14.5], [0.2, 0.6, 0.5])
    names = "abcdefgh"
    figure = pictures._spent({name: [RUN, RUN] for name in names}, "searches", "b")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"{name} (2 seeds)" for name in names]
    first, baseline, *_ = panels
    assert (len(first.lines), len(baseline.lines)) == (2 * (2 * 2) + 1, 2 * 2)
    assert {line.get_color() for line in baseline.lines} == {pictures.COLOURS[1]}
    path, last, *_ = baseline.lines
    assert list(path.get_xdata()) == [1.5, 3.5, 5.5]
    assert (list(last.get_xdata()), list(last.get_ydata())) == ([5.5], [0.5])
    assert [text.get_text() for text in first.get_legend().texts] == ["b"]
    assert not any(axes.get_legend() for axes in panels[1:])
    (alone,) = pictures._spent({"a": [RUN]}, "question_tokens", None).axes
    assert (alone.get_xlabel(), alone.get_legend()) == ("generated tokens per question", None)


def test_a_sweep_of_which_nothing_is_done_has_a_report_without_pictures(tmp_path: Path) -> None:
    sweep.save_plan(tmp_path, Plan(jobs=(job(pool="epoch"),), report=ReportConfig(baseline="pool=epoch")))
    report.write(tmp_path, ReportConfig(), Console(quiet=True))
    assert f"# {tmp_path.name}" in (tmp_path / "table.md").read_text()
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.usefixtures("undrawn")
def test_a_baseline_that_is_no_condition_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write(folder, ReportConfig(baseline="epoch"), Console())
    said = "nothing is compared: report.baseline=epoch is no condition here (pool=epoch, pool=recycle, pool=dynamic)"
    assert said in capsys.readouterr().out
    assert said in (folder / "table.md").read_text()
    assert json.loads((folder / "sweep.json").read_text())["comparisons"] == []


# --- curves of the pictures ------------------------------------------------------------------------


def test_a_band_spans_what_all_curves_have() -> None:
    x, mean, half = curves.mean_band([([0, 10], [0.0, 1.0]), ([0, 20], [0.0, 0.0])], points=3)
    assert x.tolist() == [0, 5, 10]
    assert mean.tolist() == [0, 0.25, 0.5]
    # 1 and 0 at the end: deviation 1 / sqrt(2), over sqrt(2), times t of one degree.
    assert half.tolist() == pytest.approx([0, 12.706 * 0.25, 12.706 * 0.5])
    assert np.isnan(curves.mean_band([([0, 10], [0.0, 1.0])])[2]).all()


def test_curves_that_share_no_part_have_no_mean_and_no_difference() -> None:
    x, mean, half = curves.mean_band([([0, 10], [0.0, 1.0]), ([20, 30], [0.0, 1.0])])
    assert len(x) == len(mean) == len(half) == 0
    early = [row for row in RUN if row["kind"] == "eval" and row["step"] < 4]
    late = [row | {"rollouts": row["rollouts"] + 1000} for row in early]
    assert curves.difference(early, late) == ([], [])
    (panel, *_) = pictures._difference({"a": {0: early}, "b": {0: late}}, "a").axes
    assert panel.get_title() == "b (0 seeds)"


def test_each_condition_has_a_panel_with_a_thin_line_for_each_seed_and_the_baselines_mean() -> None:
    figure = pictures._learnt({"a": [RUN, RUN], "b": [RUN], "c": [RUN], "d": [RUN]}, "rollouts", "em", "a", 0.5)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["a (2 seeds)", "b (1 seed)", "c (1 seed)", "d (1 seed)"]
    a, b = figure.axes[:2]
    assert [line.get_linewidth() for line in a.lines] == [0.8, 0.8, 2.0, 0.8]  # seeds, mean, target
    assert [line.get_linewidth() for line in b.lines] == [1.2, 0.8, 2.0, 0.8]
    assert not any(axes.collections for axes in figure.axes), "no bands over each other"
    assert [text.get_text() for text in b.get_legend().texts] == ["mean of a"]
    of_second = pictures._learnt({"a": [RUN], "b": [RUN], "c": [RUN]}, "rollouts", "em", "b").axes
    assert [axes.get_legend() is not None for axes in of_second] == [True, False, False], "where the baseline's mean is"


def test_a_scale_ends_a_little_above_the_highest_share() -> None:
    low = [{**row, "em": row["em"] / 5} if row["kind"] == "eval" else row for row in RUN]
    (panel,) = pictures._learnt({"a": [low]}, "rollouts", "em", None).axes
    assert panel.get_ylim() == (0, 0.2)
    (panel,) = pictures._learnt({"a": [low]}, "rollouts", "em", None, 0.4).axes
    assert panel.get_ylim() == (0, 0.5), "the target is in it"
    (panel,) = pictures._learnt({"a": [RUN]}, "rollouts", "em", None).axes
    assert panel.get_ylim() == (0, 1)


def test_what_is_found_is_drawn_for_the_runs_whose_questions_name_documents() -> None:
    without = [{**row, "evidence_recall": None} if row["kind"] == "eval" else row for row in RUN]
    assert curves.evaluated(RUN, "generated_tokens", "evidence_recall") == ([0, 800, 1800], [0.25, 0.25, 0.25])
    assert curves.evaluated(without, "generated_tokens", "evidence_recall") == ([], [])
    first, second = pictures._learnt({"a": [RUN], "b": [without]}, "rollouts", "evidence_recall", "a").axes
    assert (len(first.lines), len(second.lines)) == (2, 1), "the second shows the baseline alone"


def test_a_difference_is_of_the_same_seed_at_the_same_rollouts() -> None:
    other = [evaluation(0, 0.1, 40, 0), evaluation(1, 0.5, 120, 0)]
    x, y = curves.difference(RUN, other, points=3)
    assert (list(x), list(y)) == ([40, 80, 120], pytest.approx([0.4 - 0.1, 0.6 - 0.3, 0.55 - 0.5]))


@pytest.mark.usefixtures("undrawn")
def test_the_comparison_shows_seeds_mean_and_interval(folder: Path) -> None:
    report.write(folder, ReportConfig(), Console(quiet=True))
    told = json.loads((folder / "sweep.json").read_text())
    told["comparisons"][0]["em_after"] |= {"low": -0.1, "high": 0.3}
    axes = pictures.against(told).axes
    labels = [each.get_xlabel() for each in axes if each.get_visible() and each.lines]
    assert labels[0] == "held-out EM in the end, difference"
    assert labels[-1] == "rollouts per signal-bearing group, ratio"
    dots, interval, mean, zero = axes[0].lines
    assert list(dots.get_xdata()) == pytest.approx([0.1])
    assert list(interval.get_xdata()) == [-0.1, 0.3]
    assert list(mean.get_xdata()) == pytest.approx([0.1])
    assert list(zero.get_xdata()) == [0.0, 0.0]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["pool=recycle", "pool=dynamic"]


@pytest.mark.parametrize("page", ["query_pool", "david_grpo"])
def test_a_page_of_results_is_read_as_its_table_says(page: str) -> None:
    from plot_against import comparisons

    told = comparisons((DOCS / "results" / f"{page}.md").read_text())
    assert told["baseline"] == {"query_pool": "recycle", "david_grpo": "outcome"}[page]
    found = {c["condition"]: c for c in told["comparisons"]}
    if page == "query_pool":
        assert found["adaptive"]["em_after"] == {"mean": 0.155, "low": -0.116, "high": 0.426}
        assert found["epoch"]["rollouts_per_signal_group"] == {"mean": 0.855, "low": 0.816, "high": 0.896}
    else:
        assert found["david"]["em_after/2-hop"] == {"mean": 0.23, "low": 0.004, "high": 0.456}


def test_the_group_mix_is_of_all_runs_together() -> None:
    one = [step(1, mix=(10, 0, 0)), step(2, mix=(0, 10, 0))]
    other = [step(1, mix=(0, 5, 5)), step(2, mix=(5, 5, 0)), step(3, mix=(0, 0, 10))]  # the last is beyond the first's
    centres, shares = curves.group_mix([one, other])
    assert centres.tolist() == [20, 60]
    hard, signal, easy = shares.tolist()
    assert (hard, signal, easy) == ([0.25, 0.75], [0.5, 0.25], [0.25, 0.0])


def test_a_runs_curves_are_against_its_own_cost() -> None:
    assert curves.evaluated(RUN, "generated_tokens") == ([0, 800, 1800], [0.2, 0.6, 0.5])
    assert curves.stepped(RUN, "pool/flipped_share") == ([40, 80, 120, 160], [0.0, 0.0, 0.0, 0.125])
    rows = [*RUN, step(5, mix=(0, 9, 1), recycled=None)]
    ((x, share),) = curves.recycled([rows])
    assert (list(x), share) == ([20, 60, 100, 140], [0.0, 0.5, 0.5, 0.25])
    assert curves.recycled([[evaluation(0, 0.0, 0, 0), step(1, mix=(0, 1, 0), recycled=None)]]) == []


@pytest.mark.usefixtures("undrawn")
def test_what_needs_each_draw_of_a_run_is_taken_from_its_draws(folder: Path) -> None:
    log = np.zeros(4, dtype=DRAW)
    unseen, hard, signal, consumed = (STATES.index(QueryState(s)) for s in ("unseen", "too_hard", "signal", "consumed"))
    for i, (query, before, found) in enumerate([(0, unseen, hard), (1, unseen, signal), (0, hard, signal)]):
        after = consumed if found == signal else found
        log[i] = (query, i, 0, i, 4, 2, before, found, found, after, found == signal)
    log[3] = (1, 3, 0, 3, 4, 0, consumed, hard, hard, hard, False)
    write_draws(folder / "pool=recycle,seed=0" / "draws.parquet", log, ["a", "b"])
    report.write(folder, ReportConfig(), Console(quiet=True))
    lines = (folder / "table.md").read_text().splitlines()
    assert "| different questions trained on | – | 2 | – |" in lines
    assert "| &nbsp;&nbsp;of these from too hard | – | 1.000 | – |" in lines
    assert "| &nbsp;&nbsp;of these from too easy | – | 0.000 | – |" in lines


@pytest.mark.parametrize("row", [{}, {"kind": "summary"}, {"kind": "event", "event": "failed"}])
def test_a_damaged_row_is_no_end_of_a_job(tmp_path: Path, row: dict[str, Any]) -> None:
    replace(tmp_path / "metrics.jsonl", [row])
    assert sweep.status(tmp_path)[0] in (sweep.Status.UNFINISHED, sweep.Status.FAILED)
    assert not sweep.interrupted(tmp_path)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("at", "changed"),
    [
        (0, {"em/1-hop": "0.5"}),
        (0, {"em": math.nan}),
        (0, {"step": [1]}),
        (0, {"time_s": math.inf}),
        (1, {"rollout/generated_tokens": 10**400}),
        (2, {"groups/signal": math.nan}),
    ],
)
def test_a_value_that_no_run_writes_makes_no_number_and_ends_no_report(
    folder: Path, at: int, changed: dict[str, Any]
) -> None:
    name = "pool=epoch,seed=0"
    rows = [*RUN[:-1], SUMMARY]
    rows[at] = {**rows[at], **changed}
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.write(folder, ReportConfig(sweep=str(folder)), Console(quiet=True))
    text = (folder / "sweep.json").read_text()
    content = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    told = {j["name"]: j for j in content["jobs"]}
    assert (told[name]["status"], told[name]["measures"]) == ("unreadable", {})
    assert told[name]["message"].startswith("its files: damaged")
    assert content["conditions"][0]["n"] == 1


@pytest.mark.usefixtures("undrawn")
def test_markup_in_a_title_or_a_message_is_shown_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    title, message = "[/b] tools=[search,open] :100: *a* <b>", "no </search> in `x`; seed=* | a_b __c__"
    replace(folder / "pool=recycle,seed=1" / "metrics.jsonl", [RUN[0], step(1), {**FAILED, "message": message}])
    report.write(folder, ReportConfig(title=title), Console())
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{title}: mean ± half the 95 % interval" in printed
    assert f"failed: {message}" in printed
    shown = shown_by_markdown((folder / "table.md").read_text())
    assert shown.startswith(f"{title}\n")
    assert f"failed: {message}\n" in shown


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_line_of_a_finished_job_is_said(folder: Path) -> None:
    log = folder / "pool=epoch,seed=0" / "metrics.jsonl"
    first, *others = log.read_text().splitlines(keepends=True)
    log.write_text("".join([first, "\0\0\n", *others, '{"kind": "ev']))
    report.write(folder, ReportConfig(), Console(quiet=True))
    told = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert (told[0]["status"], told[0]["rollouts"]) == ("finished", 160)
    assert told[0]["message"] == "metrics.jsonl: 1 line is damaged and left out"
    assert told[1]["message"] == ""


@pytest.mark.usefixtures("undrawn")
def test_control_characters_and_half_surrogate_pairs_in_a_message_are_escapes(folder: Path) -> None:
    name, message = "pool=recycle,seed=1", "no \x1b[31m\u202e \ud800"
    replace(folder / name / "metrics.jsonl", [RUN[0], step(1), {**FAILED, "message": message}])
    report.write(folder, ReportConfig(), Console(quiet=True))
    told = {j["name"]: j for j in json.loads((folder / "sweep.json").read_text())["jobs"]}
    assert told[name]["message"] == message
    table = (folder / "table.md").read_text()
    assert "failed: no \\x1b[31m\\u202e \\ud800\n" in shown_by_markdown(table)
    assert visible(table) == table


@pytest.mark.usefixtures("undrawn")
def test_a_row_without_its_kind_ends_no_report(folder: Path) -> None:
    name = "pool=epoch,seed=0"
    replace(folder / name / "metrics.jsonl", [{"step": 1}, *RUN[:-1], SUMMARY])
    report.write(folder, ReportConfig(sweep=str(folder)), Console(quiet=True))
    told = {j["name"]: j for j in json.loads((folder / "sweep.json").read_text())["jobs"]}
    assert told[name]["status"] == "unreadable"
    assert told[name]["message"].startswith("its files: damaged")
