"""report.html: what is in it, what is left out and said to be, and how it takes damaged files; without a browser."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import view_runs as made
from view_runs import members, of

import launch
from agent.errors import UserError
from agent.pool.history import DRAW
from agent.visible import visible
from tracking.draws import write_draws
from tracking.experiments.sweep import record_failure
from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES
from tracking.view import in_lines
from tracking.view.episode_list import read_entries, read_episode
from tracking.view.episodes import FOUND, PASSAGE, PLAIN, SUPPORTING, shown
from tracking.view.lines import Notices
from tracking.view.mode import view_at_end
from tracking.view.page import HERE, encoded
from tracking.view.report import write
from tracking.view.run import wilson
from tracking.view.terminal import Viewer

# --- what is in it ---------------------------------------------------------------------------------


def test_a_whole_run_is_there_without_a_notice(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    write_draws(folder / "draws.parquet", np.zeros(0, dtype=DRAW), [])
    page, notices = of(folder)
    assert notices == []
    run = page["r0-run"]
    assert run["steps"]["reward/mean"] == [0.5] * 3
    assert run["end"] == "The run has ended after step 3."
    assert [e["event"] for e in run["events"]] == ["checkpoint"]
    assert run["evals"][1]["em_interval"] == wilson(2 / 3, 3)
    assert run["evals"][1]["f1_interval"] is not None
    assert len(page["r0-groups"]["batch"]) == 6
    assert page["r0-groups"]["draw"] == [1, 1, 2, 2, 3, 3]
    assert len(members(page)) == 3 * 2 * 4
    assert page["r0-evals"]["em"] == {"0": "100", "3": "011"}
    assert set(page["r0-e-0"]) == set(page["r0-e-3"]) == {"2", "3", "4"}
    assert page["r0-spans"]["actor"]["words"] == ["learner", "rollout-0"]
    assert page["about"]["runs"][0]["episodes"] == [30, 30]


def test_the_pools_own_record_says_what_became_of_a_question(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=1)
    log = np.zeros(2, dtype=DRAW)
    log[0] = (0, 0, 0, 0, 4, 2, 1, 2, 2, 4, True)
    log[1] = (1, 0, 1, 0, 4, 0, 0, 1, 1, 1, False)
    write_draws(folder / "draws.parquet", log, ["q0", "q1"])
    table = of(folder)[0]["r0-groups"]
    assert [table["before"]["words"][i] for i in table["before"]["at"]] == ["too_hard", "unseen"]
    assert [table["after"]["words"][i] for i in table["after"]["at"]] == ["consumed", "too_hard"]
    assert (table["accepted"], table["recycled"]) == ([True, False], [True, False])


@pytest.mark.parametrize("lacks", ["nothing", "the facts", "the file"])
def test_the_questions_of_training_have_their_documents_and_their_kind(tmp_path: Path, lacks: str) -> None:
    """A log of groups of an earlier version lacks them, and an older one the whole file: the episodes say them."""
    folder = made.write_run(tmp_path / "run", batches=1)
    if lacks == "the file":
        (folder / GROUPS).unlink()
    elif lacks == "the facts":
        rows = [json.loads(line) for line in (folder / GROUPS).read_text().splitlines()]
        made.lines(folder / GROUPS, [{k: v for k, v in r.items() if k not in ("supporting", "kind")} for r in rows])
    assert of(folder)[0]["r0-questions"] == [
        *([f"q{n}", f"what of q{n}?", ["yes"], ["Emma"], "bridge"] for n in range(2)),
        *([f"e{n}", f"what of e{n}?", ["yes"], ["Emma"], "2-hop"] for n in range(3)),
    ]


def test_a_held_out_question_with_the_id_of_one_to_train_on_is_another(tmp_path: Path) -> None:
    """As where both files count theirs from 0."""
    folder = made.write_run(tmp_path / "run")
    told = {"question": "Where was Bach born?", "golden_answers": ["Eisenach"]}
    rows = [made.evaluated(step, "q1", 0.0) | told for step in (0, 3)]
    made.lines(folder / EVALUATIONS, rows)
    page, notices = of(folder)
    assert not [text for text in notices if "tables don't have" in text]
    (held_out,) = page["r0-evals"]["questions"]
    assert held_out not in page["r0-groups"]["question"]
    assert page["r0-questions"][held_out][:3] == ["q1", "Where was Bach born?", ["Eisenach"]]
    assert sorted(row[0] for row in page["r0-questions"]) == ["q0", "q1", "q1"]
    assert set(page["r0-e-0"]) == {str(held_out)}
    asked, _ = of(folder, show=["q1"])
    assert {part: set(found) for part, found in asked.items() if part.endswith("-asked")} == {
        **{f"r0-e-{step}-asked": {str(held_out)} for step in (0, 3)},
        **{f"r0-b-{batch}-asked": {"1"} for batch in range(3)},
    }


def test_a_question_that_a_batch_has_twice_keeps_its_groups_apart(tmp_path: Path) -> None:
    """A fault gave the first group back, and the question was drawn again for the same batch."""
    folder = made.write_run(tmp_path / "run", batches=0)
    twice = [made.group(0, 0, [0.0], "q0") | {"accepted": False}, made.group(0, 3, [1.0, 0.0], "q0")]
    made.lines(folder / GROUPS, twice)
    made.lines(folder / TRAJECTORIES, [*made.played(0, 0, [0.0], "q0"), *made.played(0, 3, [1.0, 0.0], "q0")])
    log = np.zeros(1, dtype=DRAW)
    log[0] = (0, 0, 3, 0, 4, 2, 1, 2, 2, 4, True)
    write_draws(folder / "draws.parquet", log, ["q0"])
    page = of(folder)[0]
    table = page["r0-groups"]
    assert (table["draw"], table["order"], table["accepted"]) == ([1, 2], [0, 3], [False, True])
    episodes = [episode for part in ("r0-b-0", "r0-b-0-rest") for episode in page.get(part, {}).get("0", [])]
    assert sorted((e["order"], e["member"], e["reward"]) for e in episodes) == [(0, 0, 0.0), (3, 0, 1.0), (3, 1, 0.0)]
    (folder / GROUPS).unlink()
    assert of(folder)[0]["r0-groups"]["rewards"] == [[0], [1, 0]], "a log of an earlier version"


def test_an_evaluation_that_was_refused_is_said_and_has_no_interval(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    broken = {"em": None, "f1": None, "refused": "2 of 3 questions broke"}
    made.lines(folder / "metrics.jsonl", [r | broken if r["kind"] == "eval" and r["step"] == 3 else r for r in rows])
    last = of(folder)[0]["r0-run"]["evals"][-1]
    assert (last["em_interval"], last["f1_interval"], last["refused"]) == (None, None, "2 of 3 questions broke")


def test_evaluations_of_another_series_are_told_apart(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    assert all("series" not in each for each in of(folder)[0]["r0-run"]["evals"])
    asked = [(0, "a", "x"), (2, "a", "x"), (2, "b", "x"), (3, "b", "y")]
    rows = [
        {"kind": "eval", "step": step, "em": 0.5, "f1": 0.5, "n": 3, "held_out": held_out, "played": how}
        for step, held_out, how in asked
    ]
    made.lines(folder / "metrics.jsonl", [*rows, *(made.step(n + 1) for n in range(3))])
    told = of(folder)[0]["r0-run"]
    one, two, three = (
        "series 1: from step 0",
        "series 2: other questions, from step 2",
        "series 3: played otherwise, from",
    )
    assert [each["series"] for each in told["evals"]] == [one, one, two, f"{three} step 3"]
    assert [each["f1_interval"] is None for each in told["evals"]] == [False, True, True, False]
    lines = [str(line) for line in in_lines.run(told, [])]
    assert [line for line in lines if line.startswith("series")] == [one, two, f"{three} step 3"]


def test_a_run_that_is_named_by_a_point_has_its_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.write_run(tmp_path / "a run")
    monkeypatch.chdir(folder)
    run = of(Path())[0]["r0-run"]
    assert (run["name"], run["folder"]) == ("a run", str(folder))


def test_a_run_that_went_on_in_a_new_folder_counts_the_draws_before_and_says_where_they_are(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=0)
    drawn = [(0, "q0"), (0, "q1"), (1, "q0"), (2, "q1")]
    log = np.zeros(len(drawn), dtype=DRAW)
    for at, (batch, name) in enumerate(drawn):
        log[at]["query"], log[at]["batch"], log[at]["order"] = int(name[1]), batch, int(at == 1)
    write_draws(folder / "draws.parquet", log, ["q0", "q1"])
    path = str(tmp_path / "old" / "checkpoints" / "step-000002")
    made.lines(folder / "metrics.jsonl", [{"kind": "event", "event": "resumed", "step": 2, "path": path}])
    played = [(2, 0, "q1"), (3, 0, "q0"), (3, 1, "new"), (4, 0, "q1"), (5, 0, "q1")]  # from batch 3 on not yet recorded
    made.lines(folder / GROUPS, [made.group(batch, order, [1.0, 0.0], name) for batch, order, name in played])
    page, notices = of(folder)
    assert page["r0-groups"]["draw"] == [2, 3, 1, 3, 4]
    assert (
        "the run went on from a checkpoint of another folder: its groups and episodes before batch 2 are in "
        f"{tmp_path / 'old'}" in notices
    )


def test_a_run_that_went_on_in_its_own_folder_has_its_groups_there(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    for path in (folder, tmp_path / "where it was before"):
        resumed = {"kind": "event", "event": "resumed", "step": 2, "path": str(path / "checkpoints" / "step-000002")}
        made.lines(folder / "metrics.jsonl", [made.step(1), made.step(2), resumed])
        assert "another folder" not in " ".join(of(folder)[1])


def test_an_interval_lies_between_0_and_1() -> None:
    assert wilson(0.0, 150) == [0.0, pytest.approx(0.025, abs=1e-3)]
    assert wilson(1.0, 150) == [pytest.approx(0.975, abs=1e-3), 1.0]
    assert wilson(None, 150) is wilson(0.5, 0) is None


def test_a_run_that_goes_on_says_when_it_will_end(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    made.lines(folder / "metrics.jsonl", [made.step(n, time_s=120.0 * n) for n in (1, 2, 3, 4)])
    end = of(folder)[0]["r0-run"]["end"]
    assert end.endswith("after step 4. At the pace of its last steps the other 6 take 12 min 00 s.")


def end_of(folder: Path, rows: list[dict[str, Any]], config: str = made.CONFIG) -> str:
    (folder / ".hydra" / "config.yaml").write_text(config)
    made.lines(folder / "metrics.jsonl", rows)
    end: str = of(folder)[0]["r0-run"]["end"]
    return end.partition("At the pace of its last steps ")[2]


@pytest.mark.parametrize("config", ["algorithm:\n  steps: 2024-13-45\n", "[" * 1_000])
def test_a_configuration_that_is_damaged_says_no_time(tmp_path: Path, config: str) -> None:
    rows = [made.step(n, time_s=60.0 * n) for n in (1, 2)]
    assert end_of(made.write_run(tmp_path / "run"), rows, config) == ""


def test_the_time_left_is_no_difference_between_the_clocks_of_two_starts(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    resumed = {"kind": "event", "event": "resumed", "step": 4, "path": str(folder / "checkpoints" / "step-000004")}
    before = [made.step(n, time_s=10_000 + 60.0 * n) for n in (1, 2, 3, 4)]
    assert end_of(folder, [*before, resumed, made.step(5, time_s=40.0)]) == "the other 5 take 5 min 00 s."
    later = [made.step(n, time_s=40.0 + 120.0 * (n - 5)) for n in (5, 6, 7)]
    quick = [made.step(n, time_s=n / 10) for n in (1, 2, 3, 4)]
    assert end_of(folder, quick) == "the other 6 take 1 s."
    assert end_of(folder, [*before, resumed, *later]) == "the other 3 take 4 min 12 s."
    assert end_of(folder, [made.step(4, time_s=1000.0), made.step(5, time_s=3.0)]) == ""
    recovered = {"kind": "event", "event": "recovered", "step": 2, "time_s": 5_000.0}
    again = [*before[:2], recovered, made.step(3, time_s=19_000.0), made.step(4, time_s=19_060.0)]
    assert end_of(folder, again) == "the other 6 take 6 min 00 s."
    assert end_of(folder, [made.step(n, time_s=60.0 * n) for n in range(1, 11)]) == "", "the last is done"


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        ("rollout_budget: 160", "those that its rollout_budget leaves, about 4 take 4 min 00 s."),
        ("rollout_budget: 1600000", "the other 995 take 16 h 35 min."),
        ("token_budget: 3001", "those that its token_budget leaves, about 2 take 90 s."),
        ("rollout_budget: 10", ""),
        ("rollout_budget: much", "the other 995 take 16 h 35 min."),
    ],
)
def test_the_time_left_is_what_a_budget_leaves(tmp_path: Path, budget: str, left: str) -> None:
    folder = made.write_run(tmp_path / "run")
    seeding = {"kind": "event", "event": "seeding", "step": 1, "rollout/trajectories": 16} | {
        "rollout/generated_tokens": 400
    }
    rows = [seeding, *(made.step(n, time_s=60.0 * n) for n in range(1, 6))]
    assert end_of(folder, rows, f"algorithm:\n  steps: 1000\n  {budget}\n") == left


def test_a_run_that_broke_says_why(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    made.lines(folder / "metrics.jsonl", [made.step(1), {"kind": "event", "event": "fault", "why": "the engine died"}])
    assert of(folder)[0]["r0-run"]["end"] == "The run broke after step 1: the engine died"


def test_a_job_of_a_sweep_that_failed_before_its_run_began_says_why(tmp_path: Path) -> None:
    record_failure(tmp_path / "job", "data.corpus=x.jsonl is missing")
    assert of(tmp_path / "job")[0]["r0-run"]["end"] == "The run broke after step 0: data.corpus=x.jsonl is missing"


def test_curves_that_are_thinned_say_how_much(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    made.lines(folder / "metrics.jsonl", [made.step(n + 1) for n in range(4_100)])
    page, notices = of(folder)
    assert page["r0-run"]["steps"]["step"][-2:] == [4_097, 4_100]
    assert "the curves show one in 3 of 4,100 steps" in notices


def test_an_evaluation_lacks_nothing_of_a_training_run(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    for name in (TRAJECTORIES, GROUPS):
        (folder / name).unlink()
    row = {"kind": "eval", "step": 0, "checkpoint": "there", "em": 1.0, "n": 3, "faults": 0}
    made.lines(folder / "metrics.jsonl", [row])
    page, notices = of(folder)
    assert page["r0-run"]["end"] == "An evaluation of there."
    assert notices == []
    assert set(page["r0-e-0"]) == {"0", "1", "2"}


def test_alarms_are_in_it(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    made.lines(folder / "metrics.jsonl", [made.step(n, **{"rollout/mismatch": 0.2}) for n in (1, 2)])
    (alarm,) = of(folder)[0]["r0-run"]["alarms"]
    assert (alarm["name"], alarm["step"], alarm["last"]) == ("train–inference mismatch", 1, 2)


def test_passages_are_told_apart_marked_and_found_once() -> None:
    first = made.turn("a", [("Emma", "1: a novel\nof Emma 2: and"), ("", "of no title"), ("Emma", "a film")])
    again = made.turn("b", [("Emma", "1: a novel\nof Emma 2: and"), ("X", "y")], supporting=[0, 1])
    first["observation"] = first["observation"].replace('Result 2: ""\n', "Result 2: ")
    turns = shown(made.episode("q", [first, again]), tokens=False)["turns"]
    kinds = [[kind for _, kind in turn["observation"]] for turn in turns]
    assert kinds == [[PLAIN, FOUND, PASSAGE, PASSAGE], [PLAIN, SUPPORTING, FOUND]]
    for turn, seen in zip(turns, (first, again), strict=True):
        assert "".join(text for text, _ in turn["observation"]) == seen["observation"]
    assert "tokens" not in turns[0]


def test_passages_in_a_string_of_json_are_told_apart() -> None:
    """So Llama 3's chat template writes results."""
    odd = made.turn("a", [("Émile", "a \\n2: novel\nof his"), ('The "X"', "1: y"), ("", "z")], supporting=[1])
    listed = odd["observation"].removeprefix("\n<result>\n").replace('Result 3: ""\n', "Result 3: ")
    odd["observation"] = f"<|eot_id|>\n{json.dumps(listed, ensure_ascii=False)}<|eot_id|>"
    (seen,) = shown(made.episode("q", [odd]), tokens=False)["turns"]
    pieces = [text for text, _ in seen["observation"]]
    assert [kind for _, kind in seen["observation"]] == [PLAIN, PASSAGE, FOUND, PASSAGE]
    assert "".join(pieces) == odd["observation"]
    assert [piece.partition(":")[0][-8:] for piece in pieces[1:]] == ["Result 1", "Result 2", "Result 3"]


def test_an_observation_that_lists_no_passages_is_one_piece() -> None:
    odd = made.turn("a", [("Emma", "a novel")]) | {"observation": "\nThe search limit is reached.\n"}
    assert shown(made.episode("q", [odd]), tokens=False)["turns"][0]["observation"] == [[odd["observation"], PLAIN]]


# --- nothing in the data ends or runs anything -----------------------------------------------------


def test_no_text_can_end_the_element_that_holds_it() -> None:
    hostile = "</script><script>alert(1)</script><!-- <script>\u2028\u2029"
    assert b"<" not in encoded({hostile: [hostile]})
    assert json.loads(encoded({hostile: [hostile]})) == {hostile: [hostile]}
    assert encoded("\ud800") == b'"?"'
    with pytest.raises(ValueError, match="not JSON compliant"):
        encoded(float("nan"))


def test_the_page_makes_the_characters_visible_that_a_terminal_does() -> None:
    (hidden,) = re.findall(r"^const HIDDEN = /(.*)/g;$", (HERE / "page.js").read_text(encoding="utf-8"), re.MULTILINE)
    letters = [chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000]
    assert [c for c in letters if re.fullmatch(hidden, c)] == [c for c in letters if visible(c) != c]


def test_a_page_allows_its_own_program_and_style_and_nothing_else(tmp_path: Path) -> None:
    text = write(made.write_run(tmp_path / "run"))[0].read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    (program,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    wanted = {"script-src": program, "style-src": style}
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    for name, content in wanted.items():
        assert rules.pop(name) == f"'sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert not rules
    assert not re.search(
        r"innerHTML|insertAdjacent|outerHTML|document\.write|eval\(|new Function|setAttribute\(\"on", program
    )
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|https?://(?!www\.w3\.org/2000/svg)", program)


def test_a_page_of_a_folder_with_an_odd_name_is_written(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/{style}\xff"))
    (path, _) = write(made.write_run(folder))
    assert "<title>Slingshot: {style}?</title>" in path.read_text(encoding="utf-8")


def test_numbers_that_json_lacks_are_unknown(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 4, "reward/mean": NaN, "learner/loss": 1e999, "time_s": 3}\n')
        file.write('{"kind": "event", "event": "x", "value": [-Infinity]}\n')
    run = of(folder)[0]["r0-run"]
    assert run["steps"]["reward/mean"][-1] is None
    assert "learner/loss" not in run["steps"]
    assert run["events"][-1]["value"] == [None]


# --- damaged and missing files ---------------------------------------------------------------------


def test_torn_last_lines_and_lines_that_are_no_rows_are_left_out_with_a_notice(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    for name in ("metrics.jsonl", TRAJECTORIES, GROUPS, EVALUATIONS, "spans.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'[1]\n\xff\xfe\n{"batch": "x", "step": [], "question_id": 3}\n{"kind": "step", "st')
    page, notices = of(folder)
    for name in ("metrics.jsonl", TRAJECTORIES, GROUPS, EVALUATIONS, "spans.jsonl"):
        assert f"{name}: its last line was never finished and is left out" in notices
        assert f"{name}: 2 lines are no JSON objects and are left out" in notices
    assert len(members(page)) == 24


def test_odd_values_are_missing_in_page_and_terminal(tmp_path: Path) -> None:
    folder = made.write_spoilt_run(tmp_path / "run")
    page, notices = of(folder, limit=100_000_000)
    assert "metrics.jsonl: rows of a step or an evaluation that don't say which are left out" in notices
    assert {"0", "1"} <= {question for batch, question, _ in members(page) if batch == "0"}
    assert len(members(page)) > 300
    json.dumps(page, allow_nan=False)
    assert all(abs(n) < 1e100 for n in numbers(page))
    assert None not in page["r0-spans"]["actor"]["at"] + page["r0-spans"]["what"]["at"]
    entries = read_entries(folder, Notices())
    assert len(entries) > 900
    for entry in entries:
        assert "The log has changed" not in "".join(t.plain for t in in_lines.episode(entry, read_episode(entry)))
        in_lines.row(entry, 80, here=False)
    viewer = Viewer(folder)
    viewer.key("i")
    viewer.lines(80, 24)


def numbers(value: Any) -> Iterator[float]:
    """All of them in a page."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.parametrize("name", [TRAJECTORIES, GROUPS, EVALUATIONS, "spans.jsonl", "metrics.jsonl"])
def test_a_missing_file_is_a_notice(tmp_path: Path, name: str) -> None:
    folder = made.write_run(tmp_path / "run")
    (folder / name).unlink()
    assert f"{name} is missing" in of(folder)[1]


def test_a_broken_record_of_draws_and_a_missing_configuration_are_notices(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    (folder / "draws.parquet").write_bytes(b"PAR1 no")
    (folder / ".hydra" / "config.yaml").unlink()
    notices = of(folder)[1]
    assert any(notice.startswith("draws.parquet can't be read: ") for notice in notices)
    assert ".hydra/config.yaml is missing: the configuration is not known" in notices


def test_a_log_of_an_earlier_version_makes_the_table_of_groups_of_its_episodes(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    (folder / GROUPS).unlink()
    rows = [json.loads(line) for line in (folder / TRAJECTORIES).read_text().splitlines()]
    for row in rows:
        del row["order"], row["member"]
        row["turns"] = [{"text": t["text"], "query": t["query"], "titles": t["titles"]} for t in row["turns"]]
    made.lines(folder / TRAJECTORIES, rows)
    page, _ = of(folder)
    assert page["r0-groups"]["rewards"][:2] == [[1, 0, 0.5, 0], [0, 0, 0, 0]]
    assert len(members(page)) == 24


@pytest.mark.parametrize(("other", "names"), [("b/two", ["one", "two"]), ("b/one", ["{}/a/one", "{}/b/one"])])
def test_a_notice_of_two_runs_says_which_it_is_about(tmp_path: Path, other: str, names: list[str]) -> None:
    one, two = made.write_run(tmp_path / "a" / "one"), made.write_run(tmp_path / other)
    (two / "spans.jsonl").unlink()
    page, notices = of(one, compare=two)
    labels = [name.format(tmp_path) for name in names]
    assert [run["label"] for run in page["about"]["runs"]] == labels
    assert f"{labels[1]}: spans.jsonl is missing" in notices
    assert all(notice.startswith(tuple(f"{label}: " for label in labels)) for notice in notices)


def test_a_folder_that_takes_no_file_is_the_users_mistake_and_is_said_how_to_view_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.write_run(tmp_path / "run")

    def refuse(**given: Any) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("agent.aside.tempfile.mkdtemp", refuse)  # to root, too, which may write anywhere
    with pytest.raises(
        UserError,
        match=r"^run=.*/run: report\.html can't be written there \(Read-only file system\); mode=view view=terminal",
    ):
        write(folder)


def test_a_folder_that_holds_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^run=.*: is not the folder of a run: it has no metrics\.jsonl; name outputs/DATE/TIME, or a sweep",
    ):
        write(tmp_path)
    with pytest.raises(UserError, match=r"^compare=.*: is not the folder of a run"):
        write(made.write_run(tmp_path / "run"), compare=tmp_path)
    assert not list(tmp_path.rglob("*.html*"))


# --- the mode --------------------------------------------------------------------------------------


def test_the_mode_writes_into_the_runs_folder_while_another_process_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracking import run_folder
    from tracking.console import Console

    monkeypatch.chdir(tmp_path)
    folder = made.write_run(tmp_path / "run")
    (config,) = launch.check_overrides(["mode=view", f"run={folder}", "show=[e0]"]).configs
    with run_folder.claimed(folder, "output_dir"):
        launch.view(config, tmp_path / "outputs", Console())
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert {p.name for p in folder.iterdir()} == {
        *("metrics.jsonl", TRAJECTORIES, GROUPS, EVALUATIONS, "spans.jsonl", ".hydra", ".lock", "report.html")
    }


def test_a_report_that_fails_is_said_and_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tracking.console import Console

    view_at_end(tmp_path, Console())
    assert "the report could not be written: UserError: run=" in capsys.readouterr().out
