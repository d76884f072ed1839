"""report.html: what is in it, what is left out and said to be, and how it takes damaged files; without a browser."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import view_runs as made

import launch
from agent.errors import UserError
from agent.pool.history import DRAW
from agent.visible import visible
from tracking.draws import write_draws
from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES
from tracking.view import in_lines
from tracking.view.episode_list import read_entries, read_episode
from tracking.view.episodes import FOUND, PASSAGE, PLAIN, SUPPORTING, shown
from tracking.view.filling import spread
from tracking.view.lines import MAX_TEXT, Notices
from tracking.view.mode import view_at_end
from tracking.view.page import HERE, encoded
from tracking.view.report import write
from tracking.view.run import mean_interval, wilson
from tracking.view.terminal import Viewer

ELEMENT = re.compile(r'<script type="application/json" id="([^"]*)">(.*)</script>')


def data(report: Path) -> dict[str, Any]:
    """The data of a page, by the ids of its elements."""
    return {name: json.loads(text) for name, text in ELEMENT.findall(report.read_text(encoding="utf-8"))}


def of(folder: Path, **how: Any) -> tuple[dict[str, Any], list[str]]:
    path, notices = write(folder, **how)
    return data(path), notices


def members(page: dict[str, Any]) -> set[tuple[str, str, int]]:
    """Batch, question and member of each training episode in a page."""
    return {
        (name.split("-")[2], question, episode["member"])
        for name, groups in page.items()
        if name.startswith("r0-b-")
        for question, episodes in groups.items()
        for episode in episodes
    }


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


def test_a_run_that_went_on_in_a_new_folder_counts_the_draws_before_and_says_where_they_are(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=0)
    drawn = [(0, "q0"), (0, "q1"), (1, "q0"), (2, "q1")]
    log = np.zeros(len(drawn), dtype=DRAW)
    for at, (batch, name) in enumerate(drawn):
        log[at]["query"], log[at]["batch"], log[at]["order"] = int(name[1]), batch, at % 2
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
    assert end.endswith("after step 4. At the pace of its last steps the other 6 take 12 min.")


def end_of(folder: Path, rows: list[dict[str, Any]], config: str = made.CONFIG) -> str:
    (folder / ".hydra" / "config.yaml").write_text(config)
    made.lines(folder / "metrics.jsonl", rows)
    end: str = of(folder)[0]["r0-run"]["end"]
    return end.partition("At the pace of its last steps ")[2]


def test_the_time_left_is_no_difference_between_the_clocks_of_two_starts(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    resumed = {"kind": "event", "event": "resumed", "step": 4, "path": str(folder / "checkpoints" / "step-000004")}
    before = [made.step(n, time_s=10_000 + 60.0 * n) for n in (1, 2, 3, 4)]
    assert end_of(folder, [*before, resumed, made.step(5, time_s=40.0)]) == "the other 5 take 5 min."
    later = [made.step(n, time_s=40.0 + 120.0 * (n - 5)) for n in (5, 6, 7)]
    assert end_of(folder, [*before, resumed, *later]) == "the other 3 take 4 min."
    assert end_of(folder, [made.step(4, time_s=1000.0), made.step(5, time_s=3.0)]) == ""
    recovered = {"kind": "event", "event": "recovered", "step": 2, "time_s": 5_000.0}
    again = [*before[:2], recovered, made.step(3, time_s=19_000.0), made.step(4, time_s=19_060.0)]
    assert end_of(folder, again) == "the other 6 take 6 min."
    assert end_of(folder, [made.step(n, time_s=60.0 * n) for n in range(1, 11)]) == "", "the last is done"


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        ("rollout_budget: 160", "those that its rollout_budget leaves, about 4 take 4 min."),
        ("rollout_budget: 1600000", "the other 995 take 995 min."),
        ("token_budget: 3001", "those that its token_budget leaves, about 2 take 2 min."),
        ("rollout_budget: 10", ""),
        ("rollout_budget: much", "the other 995 take 995 min."),
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


def test_a_folder_that_holds_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^run=.*: is not the folder of a run: it has no metrics\.jsonl; name outputs/"
    ):
        write(tmp_path)
    with pytest.raises(UserError, match=r"^compare=.*: is not the folder of a run"):
        write(made.write_run(tmp_path / "run"), compare=tmp_path)
    assert not list(tmp_path.rglob("*.html*"))


# --- size ------------------------------------------------------------------------------------------


def test_a_full_page_has_the_best_and_the_worst_of_each_group_first_and_says_so(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=40)
    whole = write(folder)[0].stat().st_size
    path, notices = write(folder, limit=100_000 + int(whole * 0.7))
    page = data(path)
    assert path.stat().st_size <= 100_000 + int(whole * 0.7)
    logged = 40 * 2 * 4 + 6
    inside = len(members(page)) + 6
    assert f"{inside} of {logged} logged episodes" in " ".join(notices)
    assert page["about"]["runs"][0]["episodes"] == [inside, logged]
    left_out = {(str(b), "0", m) for b in range(40) for m in range(4)} - members(page)
    assert left_out
    assert not {m for _, _, m in left_out} & {0, 1}, "member 0 is each group's best, member 1 its worst"


def test_questions_that_are_asked_for_are_whole_with_their_tokens(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=40)
    with (folder / TRAJECTORIES).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in made.played(3, 7, [0.0] * 6, "wanted"))
    with (folder / GROUPS).open("a") as file:
        file.write(json.dumps(made.group(3, 7, [0.0] * 6, "wanted")) + "\n")
    page, notices = of(folder, limit=180_000, show=["wanted", "nobody"])
    number = str([row[0] for row in page["r0-questions"]].index("wanted"))
    episodes = page["r0-b-3-asked"][number]
    assert [e["member"] for e in episodes] == [*range(6)]
    assert all(e["turns"][0]["tokens"] for e in episodes)
    assert "show: no episode of a question 'nobody' is logged" in notices
    assert "tokens and log-probabilities are in the episodes of questions asked for with show=[ID] alone" in notices
    others = [
        e for n, g in page.items() if n.startswith("r0-b-") and n != "r0-b-3-asked" for es in g.values() for e in es
    ]
    assert others
    assert not any("tokens" in e["turns"][0] for e in others)


def test_held_out_questions_that_are_asked_for_are_whole_before_any_other(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=40)
    rows = [made.evaluated(step, f"e{n}", 1.0) for step in (0, 20, 40) for n in range(200)]
    made.lines(folder / EVALUATIONS, rows)
    page, notices = of(folder, limit=200_000, show=["e199"])
    number = str([row[0] for row in page["r0-questions"]].index("e199"))
    assert [len(page[f"r0-e-{step}-asked"][number]) for step in (0, 20, 40)] == [1, 1, 1]
    assert number not in page["r0-e-40"], "it is there once"
    assert page["about"]["runs"][0]["episodes"] == [len(members(page)) + held_out(page), 40 * 8 + 600]
    assert not any("show: no episode" in notice for notice in notices)


def held_out(page: dict[str, Any]) -> int:
    """How many episodes of evaluations a page has."""
    return sum(len(es) for name, asked in page.items() if name.startswith("r0-e-") for es in asked.values())


def test_a_question_has_all_its_samples_and_counts_once(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=1)
    right = {"e0": [1.0, 1.0, 0.0, 1.0, 0.0], "e1": [0.0] * 5}
    rows = [made.evaluated(1, q, em) | {"sample": n} for q, ems in right.items() for n, em in enumerate(ems)]
    rows[0] |= {"em": None, "f1": None}  # it ended in a fault, and was played again
    made.lines(folder / EVALUATIONS, [*rows, made.evaluated(1, "e0", 1.0) | {"sample": 0}])
    made.lines(
        folder / "metrics.jsonl",
        [{"kind": "eval", "step": 1, "em": 0.3, "f1": 0.3, "n": 10, "faults": 0, "samples": 5}],
    )
    page, notices = of(folder)
    assert [[e["sample"] for e in episodes] for episodes in page["r0-e-1"].values()] == [[*range(5)]] * 2
    assert page["about"]["runs"][0]["episodes"] == [18, 18]
    assert page["r0-evals"]["em"] == {"1": "10"}
    assert "held-out questions have 5 samples: right is one where at least half of its samples are" in notices
    (row,) = page["r0-run"]["evals"]
    assert row["em_interval"] == row["f1_interval"] == mean_interval([0.6, 0.0])
    assert row["em_interval"][0] == 0.0, "no share is below 0"
    viewer = Viewer(folder)
    viewer.key("i")
    told = "".join(line.plain for line in viewer.lines(200, 40))
    assert "held-out EM 0.3 (0 to 0.888), F1 0.3, on 10 episodes" in told


def test_a_text_of_ten_megabytes_is_shown_by_its_beginning(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=1)
    long = [made.turn("q", [("Emma", "x" * 10_000_000)]), made.last_turn("yes")]
    made.lines(folder / TRAJECTORIES, [row | {"turns": long} for row in made.played(0, 0, [1.0])])
    page, _ = of(folder)
    (passage,) = [t for t, kind in page["r0-b-0"]["0"][0]["turns"][0]["observation"] if kind == FOUND]
    assert passage.startswith('Result 1: "Emma"\nxxx')
    assert passage[MAX_TEXT:].startswith("… [9,980,")
    assert len(passage) < MAX_TEXT + 100


def test_two_compared_runs_share_the_room(tmp_path: Path) -> None:
    one, other = made.write_run(tmp_path / "one", batches=40), made.write_run(tmp_path / "other", batches=40)
    path, _ = write(one, compare=other, limit=400_000)
    assert path == one / "compare.html"
    assert path.stat().st_size <= 400_000
    page = data(path)
    assert [len([n for n in page if n.startswith(f"r{i}-b-")]) > 0 for i in (0, 1)] == [True, True]


def test_long_questions_leave_the_report_below_its_limit(tmp_path: Path) -> None:
    folder, limit = made.write_run(tmp_path / "run", batches=1), 1_000_000
    texts = {f"q{n}": f"{n} " + "why? " * 2000 for n in range(300)}
    told = [(batch, name, {"question": text}) for batch, (name, text) in enumerate(texts.items())]
    made.lines(folder / TRAJECTORIES, [r | t for b, name, t in told for r in made.played(b, 0, [1.0, 0.0], name)])
    answers = {"golden_answers": ["yes " * 100] * 10}
    made.lines(folder / GROUPS, [made.group(b, 0, [1.0, 0.0], name) | t | answers for b, name, t in told])
    made.lines(folder / EVALUATIONS, [made.evaluated(0, f"e{name}", 1.0) | t | answers for _, name, t in told])
    path, notices = write(folder, limit=limit, show=["q0", "eq299"])
    page = data(path)
    assert path.stat().st_size <= limit
    groups, questions = page["r0-groups"], page["r0-questions"]
    assert f"the table of groups has the newest {len(groups['batch'])} of 300" in notices
    assert groups["batch"][:2] == [0, 300 - len(groups["batch"]) + 1], "what is asked for, and the newest"
    assert f"{len(page['r0-evals']['questions'])} of 300 held-out questions are in the comparison" in " ".join(notices)
    assert len(groups["batch"]) > 60
    assert len(page["r0-evals"]["questions"]) > 10
    assert all(len(row[1]) < 600 for row in questions)
    for name, element in (("q0", "r0-b-0-asked"), ("eq299", "r0-e-0-asked")):
        first, *others = page[element][str([row[0] for row in questions].index(name))]
        assert first["question"] == texts[name.removeprefix("e")]
        assert not any("question" in e for e in others)
    inside = len(members(page)) + held_out(page)
    assert page["about"]["runs"][0]["episodes"] == [inside, 900]
    known = {row[0] for row in questions}
    unlisted = sum((2 if name in texts else 1) for name in {*texts, *(f"e{n}" for n in texts)} - known)
    assert f"{inside} of 900 logged episodes are in this report: {unlisted} are of questions" in " ".join(notices)


def test_many_long_events_leave_the_report_below_its_limit(tmp_path: Path) -> None:
    folder, limit = made.write_run(tmp_path / "run"), 1_000_000
    events = [{"kind": "event", "event": f"x{n}", "cause": "<" * 12_000, "<" * 12_000: n} for n in range(400)]
    evals = [{"kind": "eval", "step": n, "em": 0.5, "n": 3, "error": "é" * 5_000} for n in range(100)]
    made.lines(folder / "metrics.jsonl", [made.step(n) for n in range(100)] + evals + events)
    names = [{"actor": f"{n}" + "a" * 5_000, "what": "w", "start": n, "end": n + 1} for n in range(1000)]
    made.lines(folder / "spans.jsonl", names)
    path, notices = write(folder, limit=limit)
    page = data(path)
    assert path.stat().st_size <= limit
    run = page["r0-run"]
    assert f"the newest {len(run['events'])} of 400 events are shown" in notices
    assert 1 <= len(run["events"]) < 60
    assert run["events"][-1]["event"] == "x399"
    assert f"the timeline has the newest {len(page['r0-spans']['start'])} of 1,000 spans" in notices
    assert len(run["evals"]) == 100
    assert len(members(page)) == 24, "there is room for episodes"


def test_what_is_in_no_table_is_not_said_to_want_room(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=1)
    with (folder / TRAJECTORIES).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in made.played(9, 0, [0.0, 1.0], "in no group"))
    said = "14 of 16 logged episodes are in this report: 2 are of questions that its tables don't have; show=[ID]"
    notices = of(folder)[1]
    assert any(notice.startswith(said) for notice in notices)
    assert "MB" not in " ".join(notices)


def test_an_order_that_is_spread_wherever_it_ends() -> None:
    assert list(spread(range(9))) == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    assert list(spread([3])) == [3]
    assert list(spread([])) == []
    assert sorted(spread(range(100))) == [*range(100)]


BIG = """
import json, resource, sys, time
from pathlib import Path
from tracking.view.report import write
start = time.perf_counter()
path, _ = write(Path(sys.argv[1]))
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([path.stat().st_size, time.perf_counter() - start, memory]))
"""


@pytest.mark.slow
def test_a_run_of_1000_steps_of_192_episodes(tmp_path: Path) -> None:
    """600 MB of episodes: under 20 MB, 60 s and 2 GiB."""
    folder = made.write_long_run(tmp_path / "run")
    run = subprocess.run([sys.executable, "-c", BIG, str(folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    size, seconds, memory_kib = json.loads(run.stdout)
    print(size, seconds, memory_kib)
    assert 15_000_000 < size < 20_000_000
    assert seconds < 60
    assert memory_kib < 2 * 2**20


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
