"""``mode=eval`` from the command line: stopped in the middle, gone on with by the same command, compared."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest
from patience import finished, until

pytestmark = pytest.mark.slow


def test_an_evaluation_that_was_stopped_goes_on_by_the_same_command(whole, start, small, launch, tmp_path):
    folder = tmp_path / "eval"
    rows = folder / "eval_rows.jsonl"
    asked = [*small, "mode=eval", f"checkpoint={whole.checkpoint}", "data.eval_questions_per_hop=100"]
    asked += ["evaluation.samples=16", "evaluation.temperature=1.0"]
    process = start(folder, *asked, "resume=if_any")
    until(lambda: rows.is_file() and rows.stat().st_size, process)
    process.send_signal(signal.SIGINT)
    output = tmp_path / "eval.output"
    with output.open() as file:
        finished(process, file)
    assert process.returncode == 130, output.read_text()
    before = rows.read_text()
    assert 0 < before.count("\n") < 300 * 16
    assert not (folder / "eval.json").exists()
    process = start(folder, *asked, "resume=if_any")
    with output.open() as file:
        finished(process, file)
    assert process.returncode == 0, output.read_text()
    assert "questions were played before; going on with the others" in output.read_text()
    assert rows.read_text().startswith(before), "nothing was played twice"
    for name in ("eval_rows.jsonl", "eval_trajectories.jsonl"):
        lines = map(json.loads, (folder / name).read_text().splitlines())
        counts = Counter((line["question_id"], line["sample"]) for line in lines)
        assert len(counts) == 300 * 16
        assert {*counts.values()} == {1}
    found = json.loads((folder / "eval.json").read_text())
    (line, *_) = found["slices"]
    assert (line["questions"], found["faults"]) == (300, 0)
    assert line["em"]["mean"] <= line["pass@2"]["mean"] <= line["pass@16"]["mean"]
    pair = launch("pair", "mode=compare", f"run={folder}", f"compare={folder}")
    assert pair.code == 0, pair.output
    compared = json.loads((pair.folder / "comparison.json").read_text())
    assert compared["slices"][0]["em"]["alike"] == 300
