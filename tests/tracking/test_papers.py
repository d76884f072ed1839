"""The papers' tables, worked by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from agent.inference.estimates import slices
from agent.inference.evaluation import EvalRow
from conf.command_line import Sweep
from conf.jobs import run_sweep
from tracking.config import ReportConfig
from tracking.evals import papers
from tracking.experiments.sweep import Job, Plan

SIX = ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "bamtwoogle", "antileak")


def result(checkpoint: str, **sets: tuple[float, float]) -> dict[str, Any]:
    """eval.json, as far as the tables read it: EM and F1 of each set."""
    lines = [
        {"by": "set", "name": name, "questions": 1000 + at, "em": {"mean": em}, "f1": {"mean": f1}}
        for at, (name, (em, f1)) in enumerate(sets.items())
    ]
    data = {"name": "+".join(sets)}
    return {
        "checkpoint": checkpoint,
        "data": data,
        "played": {"seed": 0},
        "slices": [{**lines[0], "by": "all", "name": "all"}, *lines],
    }


def test_a_policy_on_all_sets_of_a_table_has_an_average(tmp_path: Path) -> None:
    sets = {name: (0.1 * at, 0.1 * at + 0.05) for at, name in enumerate(SIX)}
    (title, lines), (_, recycling) = papers.write(tmp_path, [result("mine", **sets)])
    of = "EM / F1, Qwen2.5-1.5B, as in arXiv 2601.21699, January 2026; AntiLeak-m over a Wikipedia of 2024"
    assert title == f"DAVID-GRPO: {of}"
    assert lines[0] == ["", "HotpotQA", "2Wiki", "MuSiQue", "Bamboogle", "BamTwoogle", "AntiLeak-m", "Avg."]
    assert lines[1] == [
        "mine",
        *("0.0 / 5.0", "10.0 / 15.0", "20.0 / 25.0", "30.0 / 35.0", "40.0 / 45.0", "50.0 / 55.0", "25.0 / 30.0"),
    ]
    assert lines[2] == ["questions played", *(f"1,00{at}" for at in range(6)), "–"]
    assert lines[3][0] == "DAVID-GRPO (published)"
    assert lines[3][-1] == "22.0 / 28.2"
    assert (tmp_path / "benchmark.md").read_text().splitlines()[4] == f"| {' | '.join(lines[1])} |"
    assert r"mine & 0.0 / 5.0 & 10.0 / 15.0 &" in (tmp_path / "benchmark.tex").read_text()
    with open(tmp_path / "benchmark.csv") as file:
        assert [row[1:] for row in csv.reader(file)] == [*lines, *recycling]


def test_a_set_that_is_missing_leaves_its_column_and_the_average_open() -> None:
    rows = papers.rows_of([result("mine", hotpotqa=(0.25, 0.5), nq=(0.5, 0.5), **{"2wikimultihopqa": (0.1, 0.2)})])
    (_, david), (_, recycling) = papers.tables(rows)
    assert david[1] == ["mine", "25.0 / 50.0", "10.0 / 20.0", "–", "–", "–", "–", "–"]
    assert recycling[1] == ["mine", "10.0", "–", "25.0", "–", "50.0", "–", "–", "–"]
    assert recycling[3] == ["query recycling (published)", *["–"] * 7, "66.0"]


def test_seeds_are_one_row_with_their_spread() -> None:
    jobs = [
        result(f"runs/seed={seed}/checkpoints/last", hotpotqa=(em, em), nq=(em, em), **{"2wiki": (em, em)})
        for seed, em in enumerate((0.1, 0.2, 0.3))
    ]
    (row,) = papers.rows_of([*jobs])
    (_, lines) = next(iter(papers.tables([row])))
    assert lines[1][:2] == ["runs/seed=*/checkpoints/last, 3 seeds", "20.0 ± 10.0 / 20.0 ± 10.0"]
    assert [row.seeds for row in papers.rows_of([*jobs, result("other", nq=(0.1, 0.1))])] == [3, 1]


def test_a_set_that_fewer_seeds_have_says_so_and_the_average_is_of_the_seeds_that_have_all() -> None:
    """As a sweep over seeds and sets leaves them of which some jobs failed."""

    def job(seed: int, **sets: tuple[float, float]) -> dict[str, Any]:
        return result(f"runs/seed={seed}/checkpoints/last", **sets)

    both = [job(0, hotpotqa=(0.1, 0.1)), job(1, hotpotqa=(0.2, 0.2)), job(2, hotpotqa=(0.6, 0.6))]
    (row,) = papers.rows_of([*both, job(0, musique=(0.3, 0.3)), job(2, musique=(0.4, 0.4))])
    assert row.seeds == 3
    assert row.cell(["hotpotqa"], ["em"]) == "30.0 ± 26.5"
    assert row.cell(["musique"], ["em", "f1"]) == "35.0 ± 7.1 / 35.0 ± 7.1 (2 seeds)"
    # 20 and 50 are the averages of seeds 0 and 2.
    assert row.cell(["hotpotqa", "musique"], ["em"]) == "35.0 ± 21.2 (2 seeds)"
    (row,) = papers.rows_of([*both[:2], job(1, musique=(0.4, 0.4))])
    assert (row.seeds, row.cell(["musique"], ["em"])) == (2, "40.0 (1 seed)")
    assert row.cell(["hotpotqa", "musique"], ["em"]) == "30.0 (1 seed)"
    (row,) = papers.rows_of([both[0], job(1, musique=(0.4, 0.4))])
    assert row.cell(["hotpotqa", "musique"], ["em"]) == papers.MISSING, "no seed has both"


def test_a_set_that_lacks_a_measure_has_no_number() -> None:
    found = result("a", hotpotqa=(0.1, 0.2), musique=(0.1, 0.1), bamboogle=(0.1, 0.1))
    found["slices"][1]["f1"]["mean"] = None
    (_, lines), *_ = papers.tables(papers.rows_of([found]))
    assert lines[1][1] == papers.MISSING


def test_a_checkpoints_name_breaks_no_table(tmp_path: Path) -> None:
    papers.write(tmp_path, [result("=a|b\nc", hotpotqa=(0.1, 0.1), musique=(0.1, 0.1))])
    assert "| =a&#124;b c | 10.0 / 10.0 |" in (tmp_path / "benchmark.md").read_text()
    assert "\n=a\\textbar{}b c & 10.0 / 10.0 &" in (tmp_path / "benchmark.tex").read_text()
    assert '"\'=a|b\nc",10.0' in (tmp_path / "benchmark.csv").read_text()


def test_no_other_setting_that_ends_with_seed_is_a_seed() -> None:
    worlds = [result(f"runs/data.world_seed={n},seed=0/checkpoints/last", nq=(0.1 * n, 0.1)) for n in (1, 2)]
    assert [(row.name, row.seeds) for row in papers.rows_of(worlds)] == [
        (f"runs/data.world_seed={n},seed=*/checkpoints/last", 1) for n in (1, 2)
    ]


def test_seeds_that_ended_at_other_steps_are_one_row_and_two_steps_of_a_seed_are_not() -> None:
    """Runs of one budget end with the step that reaches it."""

    def at(seed: int, step: int) -> dict[str, Any]:
        return result(f"runs/seed={seed}/checkpoints/step-{step:06}", nq=(0.1 * step, 0.1), hotpotqa=(0.1, 0.1))

    (row,) = papers.rows_of([at(0, 4), at(1, 3)])
    assert (row.name, row.seeds) == ("runs/seed=*/checkpoints/step-*", 2)
    rows = papers.rows_of([at(0, 4), at(1, 3), at(1, 4)])
    assert [(row.name[-6:], row.seeds) for row in rows] == [("000004", 2), ("000003", 1)]
    (row,) = papers.rows_of([at(0, 4), at(1, 4)])
    assert row.name.endswith("step-000004")


def test_other_settings_are_other_rows_and_the_same_evaluation_counts_once() -> None:
    """As ``-m retrieval=bm25,hybrid seed=0,1`` leaves them; greedy, a seed changes nothing."""
    jobs = [
        result("mine", hotpotqa=(em, em), nq=(em, em)) | {"index": {"backend": backend, "documents": 9}}
        for backend, em in (("bm25", 0.25), ("hybrid", 0.75))
        for _ in range(2)
    ]
    rows = papers.rows_of(jobs)
    assert [(row.name, row.seeds) for row in rows] == [
        ("mine, index.backend=bm25", 1),
        ("mine, index.backend=hybrid", 1),
    ]
    assert [row.cell(["nq"], ["em"]) for row in rows] == ["25.0", "75.0"]


def test_a_row_is_told_from_others_by_what_it_has() -> None:
    """Whole episodes, and an early exit, of which the others say nothing."""
    one = result("mine", hotpotqa=(0.1, 0.1), nq=(0.1, 0.1))
    rows = papers.rows_of([one | {"exit": None}, one | {"exit": {"threshold": 0.9}}])
    assert [row.name for row in rows] == ["mine, exit=None", "mine, exit.threshold=0.9"]


def test_a_set_that_was_played_twice_is_no_seed() -> None:
    """As ``-m "data.eval_questions=[a,b],[a,c]"`` of one checkpoint leaves it."""
    jobs = [
        result("mine", hotpotqa=(0.3, 0.4), musique=(0.1, 0.2)),
        result("mine", hotpotqa=(0.3, 0.4), nq=(0.2, 0.3)),
    ]
    jobs[1]["slices"][2]["questions"] = 3610
    (row,) = papers.rows_of(jobs)
    assert (row.seeds, row.cell(["hotpotqa"], ["em"])) == (1, "30.0")
    assert (row.cell(["musique"], ["em"]), row.cell(["nq"], ["em"])) == ("10.0", "20.0")


def test_other_weights_at_the_same_path_are_no_seed_and_the_last_counts() -> None:
    jobs = [
        result("run/checkpoints/best", nq=(em, em)) | {"weights": weights} for em, weights in ((0.1, "a"), (0.3, "b"))
    ]
    (row,) = papers.rows_of(jobs)
    assert (row.seeds, row.cell(["nq"], ["em"])) == (1, "30.0")


def test_another_number_of_questions_is_another_row() -> None:
    """As ``evaluation.questions=500,0`` leaves them: no two seeds of one evaluation."""
    sample, whole = (
        result("mine", hotpotqa=(0.4, 0.5), nq=(0.4, 0.5)),
        result("mine", hotpotqa=(0.3, 0.4), nq=(0.2, 0.3)),
    )
    for line in whole["slices"][1:]:
        line["questions"] = 7405
    rows = papers.rows_of([sample, whole | {"data": {"name": "all"}}])
    assert [(row.name, row.seeds, row.cell(["nq"], ["em"])) for row in rows] == [
        ("mine", 1, "40.0"),
        ("mine, of 7,405 questions", 1, "20.0"),
    ]
    (_, lines) = next(iter(papers.tables(rows)))
    assert (lines[3][0], lines[3][3]) == ("questions played", "1,000 / 7,405")


def test_the_authors_own_file_names_fill_their_columns() -> None:
    names = ("hotpot_dev_distractor_v1", "musique_ans_v1.0_dev", "bamboogle", "popQA", "searchR1_nq")
    (_, david), (_, recycling) = papers.tables(papers.rows_of([result("mine", **dict.fromkeys(names, (0.5, 0.5)))]))
    assert david[1][1:6] == ["50.0 / 50.0", "–", "50.0 / 50.0", "50.0 / 50.0", "–"]
    assert recycling[1][1:7] == ["–", "50.0", "50.0", "50.0", "50.0", "50.0"]


def test_a_sweep_of_evaluations_ends_with_the_tables_of_its_jobs(tmp_path: Path) -> None:
    jobs = tuple(Job(overrides={"seed": str(seed)}, seed=seed) for seed in range(3))

    def run() -> None:
        for job in jobs[:2]:  # the third one fails
            (tmp_path / job.name).mkdir()
            found = result("mine", hotpotqa=(0.1 * job.seed, 0.5), musique=(0.1, 0.1)) | {"played": {"seed": job.seed}}
            (tmp_path / job.name / "eval.json").write_text(json.dumps(found))

    run_sweep(Sweep(folder=tmp_path, plan=Plan(jobs=jobs, report=ReportConfig()), mode="eval"), run)
    assert "| mine, 2 seeds | 5.0 ± 7.1 / 50.0 ± 0.0 | – |" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ({"slices": []}, "seed=1: eval.json is none that mode=eval has written"),
        ({"checkpoint": "c", "data": {}, "slices": [{"by": "set"}]}, "seed=1: eval.json: data.name must be a text"),
        (None, ""),
    ],
)
def test_a_result_that_is_none_is_named_and_takes_nothing_from_the_tables_of_the_others(
    tmp_path: Path, damaged: dict[str, Any] | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = tuple(Job(overrides={"seed": str(seed)}, seed=seed) for seed in range(2))

    def run() -> None:
        for job, found in zip(jobs, (result("mine", hotpotqa=(0.1, 0.5), musique=(0.1, 0.1)), damaged), strict=True):
            (tmp_path / job.name).mkdir()
            (tmp_path / job.name / "eval.json").write_text('{"slices": [' if found is None else json.dumps(found))

    assert run_sweep(Sweep(folder=tmp_path, plan=Plan(jobs=jobs, report=ReportConfig()), mode="eval"), run) is None
    assert "| mine | 10.0 / 50.0 | – |" in (tmp_path / "benchmark.md").read_text()
    assert said in " ".join(capsys.readouterr().out.split())


def test_tables_that_fail_end_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(overrides={"seed": "0"}, seed=0)
    (tmp_path / "benchmark.md").mkdir()

    def run() -> None:
        (tmp_path / job.name).mkdir()
        found = result("mine", hotpotqa=(0.1, 0.5), musique=(0.1, 0.1))
        (tmp_path / job.name / "eval.json").write_text(json.dumps(found))

    assert run_sweep(Sweep(folder=tmp_path, plan=Plan(jobs=(job,), report=ReportConfig()), mode="eval"), run) is None
    assert "the tables of the evaluations failed and is left out" in " ".join(capsys.readouterr().out.split())


def test_two_sets_of_one_column_are_named_and_neither_is_taken_for_the_papers() -> None:
    sets = {"hotpotqa_distractor": (0.9, 0.9), "hotpotqa_fullwiki": (0.2, 0.2), "nq": (0.5, 0.5)}
    (_, lines) = [*papers.tables(papers.rows_of([result("mine", **sets)]))][-1]
    assert lines[1][3:6] == ["hotpotqa_distractor or hotpotqa_fullwiki?", "–", "50.0"]
    assert (lines[1][-1], lines[2][3]) == ("–", "–")


def test_an_evaluation_of_one_set_or_of_others_has_no_such_table(tmp_path: Path) -> None:
    whole = {"by": "all", "questions": 5, "em": {"mean": 0.1}, "f1": {"mean": 0.1}}
    one = {"checkpoint": "c", "data": {"name": "hotpotqa"}, "slices": [whole]}
    assert papers.write(tmp_path, [one]) == []
    assert papers.write(tmp_path, [result("mine", own=(0.1, 0.1), other=(0.2, 0.2))]) == []
    assert list(tmp_path.iterdir()) == []
    found = papers.write(tmp_path, [one, one | {"data": {"name": "musique"}}])  # two evaluations of one policy
    assert found[0][1][1][:4] == ["c", "10.0 / 10.0", "–", "10.0 / 10.0"]


def row(set_name: str, number: int, kind: str = "") -> EvalRow:
    return EvalRow(
        question_id=f"{set_name}/{number}",
        kind=f"{set_name}/{kind}" if kind else set_name,
        answer="a",
        em=1.0,
        f1=1.0,
        evidence=None,
        searches=1,
        action_tokens=1,
        stop_reason="answered",
        fault=False,
    )


def test_several_sets_have_a_line_each_before_the_types() -> None:
    rows = [row("hotpotqa", 0, "bridge"), row("hotpotqa", 1, "comparison"), row("nq", 0)]
    found = [(by, name, len(own)) for by, name, own in slices(rows)]
    assert found[:3] == [("all", "all", 3), ("set", "hotpotqa", 2), ("set", "nq", 1)]
    assert [name for by, name, _ in found if by == "type"] == ["hotpotqa/bridge", "hotpotqa/comparison"]
    assert [by for by, *_ in slices([row("own", 0), row("own", 1)])] == ["all"], "of one type"


def test_a_set_has_one_column_whatever_an_evaluation_calls_it() -> None:
    """The authors' file by its own name, and the hub's."""
    rows = papers.rows_of(
        [result("a", hotpotqa=(0.5, 0.5), musique=(0, 0)), result("b", hotpot_dev_v1=(0.6, 0.6), musique=(0, 0))]
    )
    (_, lines) = next(iter(papers.tables(rows)))
    at = lines[0].index("HotpotQA")
    assert [line[at].partition(" ")[0] for line in lines[1:3]] == ["50.0", "60.0"]
