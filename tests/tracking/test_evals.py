"""eval.json and its tables, the rows that an evaluation goes on from, two evaluations compared."""

from __future__ import annotations

import csv
import json
import operator
import re
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from markdown_shown import shown_by_markdown

from agent.config import AgentConfig
from agent.errors import UserError
from agent.inference.early_exit import Probe
from agent.inference.evaluation import EvalRow, ScoredProbe
from agent.visible import visible
from tracking.console import Console
from tracking.evals import table
from tracking.evals.compare import compare, paired
from tracking.evals.result import RESULT, begin, read_result, result, versions
from tracking.evals.rows import ROWS, EvalRows, forget_others
from tracking.trajectories import EVALUATIONS


def row(question: str, em: float = 0.0, *, sample: int = 0, kind: str = "bridge", fault: bool = False) -> EvalRow:
    return EvalRow(
        question_id=question,
        kind=kind,
        answer="née\u2028x",
        em=em,
        f1=em,
        evidence=0.5,
        searches=2,
        action_tokens=10,
        stop_reason="retrieval_failed" if fault else "answered",
        fault=fault,
        sample=sample,
    )


SETTING = {
    "checkpoint": "run_1/step",
    "data": {"name": "a|b", "questions": 4},
    "played": {"samples": 1, "temperature": 0.0, "seed": 0},
    "agent": {"top_k": 3},
}
ROWS_OF = [row("a", 1.0), row("b", 1.0), row("c", kind="50%_x"), row("d", kind="50%_x")]


def evaluated(folder: Path, rows: list[EvalRow], samples: int = 1, **more: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    EvalRows(folder).write(rows)
    played = {"samples": samples, "temperature": 0.0 if samples == 1 else 1.0, "seed": 0}
    setting = {**SETTING, "played": played, **more}
    found = result(rows, setting, samples=samples, seed=0, max_fault_share=0.01)
    (folder / RESULT).write_text(json.dumps(found))
    return found


def test_the_result_has_a_line_for_all_and_for_each_type(tmp_path: Path) -> None:
    found = evaluated(tmp_path, ROWS_OF)
    assert [(s["by"], s["name"], s["questions"]) for s in found["slices"]] == [
        *(("all", "all", 4), ("type", "50%_x", 2), ("type", "bridge", 2)),
    ]
    em = found["slices"][0]["em"]
    assert (em["mean"], em["n"]) == (0.5, 4)
    assert 0 <= em["low"] < 0.5 < em["high"] <= 1
    assert found["slices"][2]["em"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}
    assert found["slices"][0]["answerable"]["mean"] is None
    assert (found["faults"], found["refused"]) == (0, None)
    assert read_result(tmp_path, "compare=x") == found


def test_faults_are_marked_in_the_result(tmp_path: Path) -> None:
    found = evaluated(tmp_path, [*ROWS_OF, row("e", fault=True)])
    assert (found["faults"], found["slices"][0]["faults"], found["slices"][0]["em"]["n"]) == (1, 1, 4)
    assert found["refused"].startswith("1 of 5 episodes ended in a fault")


def test_samples_give_pass_at_k(tmp_path: Path) -> None:
    rows = [row(q, float(k < right), sample=k) for q, right in (("a", 0), ("b", 1), ("c", 4)) for k in range(4)]
    (line, *_) = evaluated(tmp_path, rows, samples=4)["slices"]
    assert line["em"]["mean"] == pytest.approx((0 + 1 / 4 + 1) / 3)
    assert line["pass@2"]["mean"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert line["pass@4"]["mean"] == pytest.approx(2 / 3)
    assert table.header([line])[:5] == ["", "questions", "pass@1 (EM)", "pass@2", "pass@4"]


def test_the_mean_is_called_pass_at_1_only_where_it_is_of_the_same_questions(tmp_path: Path) -> None:
    rows = [row(q, sample=k, fault=q == "b" and k == 1) for q in "ab" for k in range(2)]
    lines = evaluated(tmp_path, rows, samples=2)["slices"]
    assert (lines[0]["em"]["n"], lines[0]["pass@2"]["n"]) == (2, 1)
    assert table.header(lines)[2:4] == ["EM", "pass@2"]


def test_the_tables_say_the_same_in_three_forms(tmp_path: Path) -> None:
    lines = evaluated(tmp_path, ROWS_OF)["slices"]
    table.write(tmp_path, "eval", lines, "run_1 on a|b\nsecond")
    markdown = (tmp_path / "eval.md").read_text().splitlines()
    assert markdown[3] == "|  | questions | EM | F1 | cover EM | evidence | answerable | searches | tokens | faults |"
    assert len({line.count("|") for line in markdown[3:]}) == 1
    assert markdown[5].startswith("| all | 4 | 50.0 [0.0, 100.0] | ")
    assert markdown[7] == (
        "| bridge | 2 | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 0.0 [0.0, 0.0] | 50.0 [50.0, 50.0] | – | "
        "2.00 [2.00, 2.00] | 10.0 [10.0, 10.0] | 0 |"
    )
    latex = (tmp_path / "eval.tex").read_text()
    assert latex.startswith("% run_1 on a|b\n% second\n\\begin{tabular}{lrrrrrrrrr}\n\\toprule\n")
    assert "50\\%\\_x & 2 & 0.0 [0.0, 0.0]" in latex
    assert latex.count(r" \\") == 4
    rows = [*csv.DictReader((tmp_path / "eval.csv").open())]
    assert [r["name"] for r in rows] == ["all", "50%_x", "bridge"]
    assert (rows[0]["em"], rows[0]["answerable"], rows[0]["tokens_high"]) == ("0.5", "", "10.0")


def test_latex_keeps_what_a_name_says() -> None:
    lines = [{"by": "type", "name": "a&b~c^d\\e#{}$", "questions": 1}]
    assert r"a\&b\textasciitilde{}c\textasciicircum{}d\textbackslash{}e\#\{\}\$ & 1 \\" in table.latex(lines)
    lines = [{"by": "type", "name": "<a> --b", "questions": 1}]
    assert r"\textless{}a\textgreater{} -{}-b & 1 \\" in table.latex(lines)
    for name in ("[2pt]", "*"):  # an option of \midrule, or of the line before
        assert f"\\midrule\n{{}}{name} & 1 " in table.latex([lines[0] | {"name": name}])


def test_a_name_breaks_no_table_and_is_no_formula() -> None:
    line = {"by": "type", "name": "=1+1\n| a", "questions": 1}
    assert table.markdown([line]).splitlines()[-1] == "| =1+1 &#124; a | 1 |"
    assert "\n=1+1 \\textbar{} a & 1 " in table.latex([line])
    for name in ("=1+1", "+1", "-1", "@a"):
        assert f"\ntype,'{name},1\n" in table.comma_separated([line | {"name": name}])


def test_control_characters_of_a_name_are_escapes_in_its_tables(tmp_path: Path) -> None:
    lines = [{"by": "type", "name": "a\x1b]0;x\x07\u202eb", "questions": 1}]
    table.write(tmp_path, "eval", lines, "on \x1b[2J")
    texts = {ending: (tmp_path / f"eval.{ending}").read_text() for ending in ("md", "csv", "tex")}
    assert [text for text in texts.values() if visible(text) != text] == []
    assert "type,a\\x1b]0;x\\x07\\u202eb,1" in texts["csv"]


def test_markdown_shows_a_name_as_it_is(tmp_path: Path) -> None:
    names = [
        "<b>x</b>",
        "*a*",
        "_a_ b_c",
        "`a`",
        "~~a~~",
        "a|b",
        "a\\|b",
        "[a](b)",
        "![a][b]",
        "&lt;",
        "<a@b.c>",
        "\\*",
    ]
    lines = [{"by": "type", "name": name, "questions": 1} for name in names]
    about = "run_1 of *seed=* <x>\n[a](b): c"
    table.write(tmp_path, "eval", lines, about)
    shown = shown_by_markdown((tmp_path / "eval.md").read_text())
    assert shown.splitlines() == [
        *about.splitlines(),
        "",
        "questions",
        *(word for name in names for word in (name, "1")),
    ]


# --- going on ------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    log = EvalRows(tmp_path)
    rows = [row("a", 1.0, sample=1), row("a", sample=0), row("b"), row("c", fault=True, sample=0), row("c", sample=1)]
    log.write(rows[:2])
    log.write(rows[2:])
    assert log.read(2) == {"a": [rows[1], rows[0]], "c": rows[3:]}, "b lacks an episode"
    assert log.viable(2) == {"a": [rows[1], rows[0]]}
    log.write([replace(rows[3], fault=False)])
    assert log.viable(2).keys() == {"a", "c"}, "the last attempt counts"
    assert EvalRows(tmp_path / "empty").read(1) == {}


PROBE = {"searches": 1, "action_tokens": 5, "answer": None, "confidence": 0.8, "tokens": 3}


def test_rows_come_back_with_their_probes(tmp_path: Path) -> None:
    probe = Probe(searches=1, action_tokens=5, answer="größer", confidence=0.8, tokens=3)
    rows = [replace(row("a"), probes=(ScoredProbe(probe=probe, em=1.0),) * 2, probe_tokens=6), row("b")]
    EvalRows(tmp_path).write(rows)
    assert EvalRows(tmp_path).last() == rows


@pytest.mark.parametrize(
    "changed",
    [
        {"em": "1"},
        {"em": None},
        {"f1": float("nan")},
        {"f1": 10**400},
        {"kind": None},
        {"sample": 0.5},
        {"fault": 1},
        {"searches": True},
        {"evidence": "x"},
        {"probes": [{"em": 1.0}]},
        {"probes": [{"em": "1", "probe": PROBE}]},
        {"probes": [{"em": 1.0, "probe": PROBE | {"confidence": None}}]},
        {"probes": [{"em": 1.0, "probe": PROBE | {"tokens": "3"}}]},
        {"probes": None},
    ],
)
def test_a_row_that_no_evaluation_wrote_is_one_line(tmp_path: Path, changed: dict[str, Any]) -> None:
    EvalRows(tmp_path).write([row("a"), row("b")])
    first, second = EvalRows(tmp_path).path.read_text().splitlines()
    EvalRows(tmp_path).path.write_text(f"{first}\n{json.dumps(json.loads(second) | changed)}\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}.*jsonl, the row of question 'b': damaged, or another") as caught:
        EvalRows(tmp_path).last()
    assert "\n" not in str(caught.value)


def test_a_whole_number_in_a_row_is_a_number(tmp_path: Path) -> None:
    EvalRows(tmp_path).write([replace(row("a"), em=1, evidence=None)])
    assert EvalRows(tmp_path).last()[0].em == 1


def test_a_line_that_was_never_finished_is_no_row(tmp_path: Path) -> None:
    log = EvalRows(tmp_path)
    log.write([row("a"), row("b")])
    whole = log.path.read_bytes()
    for end in (len(whole) - 1, len(whole) - 40):
        log.path.write_bytes(whole[:end] + b"")
        assert [*log.read(1)] == ["a"]
    log.path.write_bytes(whole + b'{"question_id": "c"}\n[1]\n')
    assert [*log.read(1)] == ["a", "b"]


def test_what_is_played_again_leaves_the_logs(tmp_path: Path) -> None:
    EvalRows(tmp_path).write([row("a"), row("b"), row("c", fault=True)])
    lines = [json.dumps({"question_id": q, "turns": []}) + "\n" for q in ("a", "c", "b")]
    (tmp_path / EVALUATIONS).write_text("".join(lines) + '{"question_id": "a", "tur')
    forget_others(tmp_path, EvalRows(tmp_path).viable(1).keys())
    assert (tmp_path / EVALUATIONS).read_text() == lines[0] + lines[2]
    assert [*EvalRows(tmp_path).read(1)] == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([EVALUATIONS, ROWS])
    forget_others(tmp_path / "nowhere", ())


def test_an_evaluation_goes_on_only_as_it_began(tmp_path: Path) -> None:
    begin(tmp_path, SETTING)
    EvalRows(tmp_path).write([row("a"), row("b", fault=True)])
    begin(tmp_path, SETTING)
    changed = {**SETTING, "agent": {"top_k": 5}}
    with pytest.raises(
        UserError, match=r"^output_dir=.*: holds another evaluation, .*; differs: agent\.top_k=5 \(was 3\)$"
    ):
        begin(tmp_path, changed)


def test_an_evaluation_goes_on_however_its_checkpoint_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "step").mkdir(parents=True)
    (tmp_path / "best").symlink_to(Path("run") / "step")
    begun = {**SETTING, "checkpoint": "run/step", "weights": "w"}
    begin(tmp_path, begun)
    EvalRows(tmp_path).write([row("a")])
    for spelt in ("./run/step", "run/step/", "best", str(tmp_path / "run" / "step")):
        begin(tmp_path, {**begun, "checkpoint": spelt})
    with pytest.raises(UserError, match=r"differs: weights=v \(was w\)$"):
        begin(tmp_path, {**begun, "checkpoint": "best", "weights": "v"})
    with pytest.raises(UserError, match=r"differs: checkpoint=run/other \(was run/step\)$"):
        begin(tmp_path, {**begun, "checkpoint": "run/other"})


@pytest.mark.parametrize("rows", [[], [row("a", fault=True)]])
def test_a_start_that_played_nothing_binds_nobody(tmp_path: Path, rows: list[EvalRow]) -> None:
    """As with a wrong address, which is a part of the setting."""
    begin(tmp_path, SETTING)
    EvalRows(tmp_path).write(rows)
    other = {**SETTING, "checkpoint": "run_2/step"}
    begin(tmp_path, other)
    EvalRows(tmp_path).write([row("a")])
    begin(tmp_path, other)
    with pytest.raises(UserError, match="holds another evaluation"):
        begin(tmp_path, SETTING)


def test_versions_name_the_prompt_by_its_text(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("{tools} {question}")
    one = versions(AgentConfig(prompt=str(file)), file.name)
    file.write_text("{tools}: {question}")
    two = versions(AgentConfig(prompt=str(file)), file.name)
    assert one["prompt"]["name"] == "prompt.txt"
    assert one["prompt"]["digest"] != two["prompt"]["digest"]
    assert (one["normaliser"], one["extractor"]) == (
        5,
        {"version": 2, "format": "tags", "protocol": "search"},
    )


# --- comparing -----------------------------------------------------------------------------------


def test_differences_are_paired_by_question() -> None:
    """Two that differ on one question in ten: much surer than two means of their own."""
    ems = [float(i % 2) for i in range(200)]
    others = [row(f"q{i}", em) for i, em in enumerate(ems)]
    better = [row(f"q{i}", 1.0 if i % 10 == 0 else em) for i, em in enumerate(ems)]
    em = paired(better, others, 0)[0]["em"]
    assert em["mean"] == pytest.approx(0.1)
    assert (em["better"], em["worse"], em["alike"]) == (20, 0, 180)
    assert 0.05 < em["low"] < 0.08
    assert paired(others, better, 0)[0]["em"]["mean"] == pytest.approx(-0.1)
    assert paired([row("x")], [row("y")], 0) == []


def test_a_comparison_leaves_its_tables_and_says_what_is_not_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(tmp_path / "one", ROWS_OF)
    evaluated(tmp_path / "two", [row("a"), row("b", 1.0), row("c"), row("e")], agent={"top_k": 5}, checkpoint="other")
    compare(tmp_path / "one", tmp_path / "two", tmp_path, Console(), seed=0)
    said = capsys.readouterr().out
    assert "the two were not evaluated alike: agent.top_k=3 (was 5)" in said
    assert "3 of up to 4 questions have a score in both" in said
    assert "EM: better on 1, worse on 0, alike on 2 questions" in said
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["slices"][0]["em"]["mean"] == pytest.approx(1 / 3)
    assert "| all | 3 | +33.3 [" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.tex").is_file()
    assert (tmp_path / "comparison.csv").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "holds no eval.json; mode=eval writes it when it has ended"),
        ("{", "eval.json can't be read (Expecting property name"),
        ("[]", "eval.json is none that mode=eval has written"),
    ],
)
def test_what_is_no_evaluation_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / RESULT).write_text(text)
    with pytest.raises(UserError) as refused:
        read_result(tmp_path, "compare=there")
    assert str(refused.value).startswith(f"compare=there: {said}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("checkpoint", 7, "checkpoint must be a text, not the number 7"),
        ("played", [], "played must be an object, not a list"),
        ("played.samples", "1", "played.samples must be a whole number, not a text"),
        ("data.name", None, "data.name must be a text, not null"),
        ("slices.0", "all", "slices[0] must be an object, not a text"),
        ("slices.0.questions", "3", "slices[0].questions must be a whole number, not a text"),
        ("slices.0.questions", 3.5, "slices[0].questions must be a whole number, not the number 3.5"),
        ("slices.0.em", 0.5, "slices[0].em must be an object, not the number 0.5"),
        ("slices.0.f1.mean", "0.5", "slices[0].f1.mean must be a number or null, not a text"),
        ("slices.0.em.mean", float("nan"), "slices[0].em.mean must be a number or null, not the number nan"),
    ],
)
def test_a_key_that_another_program_wrote_otherwise_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    evaluated(tmp_path, [row("a")])
    found = read_result(tmp_path, "compare=there")
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    reduce(operator.getitem, path, found)[last] = value
    (tmp_path / RESULT).write_text(json.dumps(found))
    with pytest.raises(UserError, match=f"^{re.escape(f'compare=there: eval.json: {said}; evaluate again')}$"):
        read_result(tmp_path, "compare=there")


def test_rows_that_are_missing_or_of_another_version_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluated(tmp_path / name, [row("a")])
    rows = tmp_path / "two" / ROWS
    for text, said in (
        (rows.read_text().replace('"cover"', '"covers"'), "none of its rows is of this version"),
        (None, "missing"),
    ):
        rows.unlink() if text is None else rows.write_text(text)
        with pytest.raises(UserError) as refused:
            compare(tmp_path / "one", tmp_path / "two", tmp_path, Console(quiet=True), seed=0)
        assert str(refused.value).startswith(str(rows))
        assert said in str(refused.value)


def test_two_without_a_common_question_are_not_compared(tmp_path: Path) -> None:
    evaluated(tmp_path / "one", [row("a")])
    evaluated(tmp_path / "two", [row("b")])
    with pytest.raises(UserError, match=r"^run=.*one and compare=.*two have no question in common"):
        compare(tmp_path / "one", tmp_path / "two", tmp_path, Console(quiet=True), seed=0)


def test_one_id_may_be_of_two_questions(tmp_path: Path) -> None:
    one = [replace(row(f"dev_{i}", 1.0), text=f"one {i}") for i in range(4)]
    two = [replace(each, text=f"two {i}", em=0.0) for i, each in enumerate(one)]
    evaluated(tmp_path / "one", one)
    evaluated(tmp_path / "two", two)
    with pytest.raises(UserError, match=r": 4 ids \(dev_0, dev_1, dev_2, …\) are of other questions in the one than"):
        compare(tmp_path / "one", tmp_path / "two", tmp_path, Console(quiet=True), seed=0)
    evaluated(tmp_path / "three", [*two[:1], *(replace(each, em=0.0) for each in one[1:3]), replace(one[3], text="")])
    compare(tmp_path / "one", tmp_path / "three", tmp_path, Console(quiet=True), seed=0)
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["slices"][0]["questions"] == 3
    assert "1 ids (dev_0) are of other questions in the one than in the other, and left out" in found["notices"]


def test_rows_of_an_earlier_version_have_no_text(tmp_path: Path) -> None:
    EvalRows(tmp_path).write([row("a")])
    file = tmp_path / ROWS
    assert '"text": ""' in file.read_text()
    file.write_text(file.read_text().replace(', "text": ""', "").replace(', "probes": []', ""))
    assert EvalRows(tmp_path).last() == [row("a")]


def test_a_set_of_several_and_the_same_alone_are_told_apart(tmp_path: Path) -> None:
    """Ids of one file may be those of another, too: they are no proof that the questions are the same."""
    evaluated(tmp_path / "one", [row("hotpotqa/a"), row("musique/a")])
    evaluated(tmp_path / "two", [row("a")])
    for names in (("one", "two"), ("two", "one")):
        with pytest.raises(
            UserError, match=r"'hotpotqa/a' is of hotpotqa\) and the other of one \('a'\); evaluate both"
        ):
            compare(*(tmp_path / name for name in names), tmp_path, Console(quiet=True), seed=0)
