"""report.html: what it has room for, what it leaves out and says so, and what a large one costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import view_runs as made
from view_runs import data, members, of

from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES
from tracking.view.episodes import FOUND
from tracking.view.filling import spread
from tracking.view.groups import draws
from tracking.view.lines import MAX_TEXT, Notices
from tracking.view.report import write
from tracking.view.run import mean_interval, spans
from tracking.view.terminal import Viewer


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


def test_a_question_that_a_batch_has_twice_has_the_best_and_the_worst_of_both_its_groups(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=0)
    twice = [(0, [0.0] * 4), (3, [0.5, 1.0, 0.75, 0.5])]
    made.lines(folder / GROUPS, [made.group(0, order, rewards, "q0") for order, rewards in twice])
    rows = [row for order, rewards in twice for row in made.played(0, order, rewards, "q0")]
    made.lines(folder / TRAJECTORIES, rows)
    assert [(e["order"], e["member"]) for e in of(folder)[0]["r0-b-0"]["0"]] == [(0, 0), (3, 1), (3, 0)]


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


def test_no_more_spans_are_kept_than_the_timeline_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracking.view.run.MOST_SPANS", 2)
    folder = made.write_run(tmp_path / "run")
    rows, found = spans(folder, Notices())
    assert ([row["what"] for row in rows], found) == (["update", "play a group"], 3)
    page, notices = of(folder)
    assert page["r0-spans"]["start"] == [0.0, 1.0]
    assert "the timeline has the newest 2 of 3 spans" in notices


def test_no_more_groups_are_kept_than_the_table_shows_and_those_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracking.view.groups.MOST", 3)
    folder = made.write_run(tmp_path / "run", batches=5)
    found = draws(folder, Notices(), instead=[], asked=["q0"])
    rows = [(row["batch"], row["question_id"], row["draw"]) for row in found.rows]
    assert rows == [(b, q, b + 1) for b in range(5) for q in ("q0", "q1") if q == "q0" or b > 1]
    assert (found.count, found.first) == (10, 0)
    page, notices = of(folder)
    assert page["r0-groups"]["batch"] == [3, 4, 4]
    assert page["r0-groups"]["draw"] == [4, 5, 5]
    assert "the table of groups has the newest 3 of 10" in notices


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
