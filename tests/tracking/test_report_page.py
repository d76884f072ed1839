"""The report in a real browser, opened from the disk; skipped where there is none (Debian's chromium is enough)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import view_runs as made
from view_runs import HOSTILE

from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES
from tracking.view.report import write

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

Look = Callable[[Any], Awaitable[None]]


@pytest.fixture(autouse=True)
def _chromium() -> None:
    from browser import program  # and with it aiohttp, for this file alone

    if program() is None:
        pytest.skip("no Chromium on this machine")


class Reader:
    """A user of the page."""

    def __init__(self, page: Any, address: str) -> None:
        self._page, self._address = page, address

    async def go(self, view: str) -> None:
        """Opens a view by its address, and waits until it is there."""
        await self._page.evaluate(f"location.hash = {json.dumps(view)}")
        await self._page.until(f"document.body.dataset.view === {json.dumps(view)}")

    async def run(self, script: str) -> Any:
        return await self._page.evaluate(script)

    async def until(self, script: str) -> Any:
        return await self._page.until(script)

    async def text(self, selector: str = "#main") -> str:
        return await self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    async def column(self, table: str, at: int) -> list[str]:
        return await self.run(f"[...document.querySelectorAll('#{table} tbody tr')].map(r => r.cells[{at}].innerText)")

    async def enter(self, selector: str, value: str, event: str = "input") -> None:
        """Types into a field, or chooses from a list."""
        await self.run(
            f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('{event}')); }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    async def click(self, selector: str) -> None:
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")


def read(report: Path, look: Look) -> None:
    """Opens ``report``, lets ``look`` look, and asserts that nothing was asked of a network and nothing went wrong."""
    from browser import browser

    async def session() -> None:
        address = report.absolute().as_uri()
        async with browser() as page:
            for domain in ("Network", "Runtime", "Log"):
                await page.call(f"{domain}.enable")
            await page.open(address)
            await page.until("document.body !== null && document.body.dataset.view !== undefined")
            await look(Reader(page, address))
            await page.evaluate("1")  # what was told before this answer has been heard
            asked = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
            assert {url.partition("#")[0] for url in asked} == {address}
            wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
            assert [e for e in page.events if e["method"] in wrong] == []

    asyncio.run(session())


def test_each_view_opens_from_the_disk_sorts_filters_searches_and_links(tmp_path: Path) -> None:
    report, _ = write(made.write_run(tmp_path / "a run"))

    async def look(page: Reader) -> None:
        text = await page.text()
        assert "The run has ended after step 3." in text
        assert "EM 0.667" in text
        assert "evidence_weight: 0.5" in await page.run("document.querySelector('#config').textContent")
        captions = await page.run("[...document.querySelectorAll('figcaption')].map(c => c.innerText)")
        assert {"Held-out EM, with 95 % interval", "Groups of a batch", "Time of a step, s"} <= set(captions)
        assert await page.column("events", 1) == ["checkpoint"]

        await page.go("#/groups")
        assert await page.column("groups", 0) == ["2", "2", "1", "1", "0", "0"]
        await page.click("#groups th:nth-child(10) button")  # mean reward
        assert await page.column("groups", 9) == ["0"] * 3 + ["0.375"] * 3
        await page.click("#groups th:nth-child(10) button")
        assert await page.column("groups", 9) == ["0.375"] * 3 + ["0"] * 3
        await page.enter("[id='groups-filter-state']", "too_hard", "change")
        assert set(await page.column("groups", 2)) == {"q1"}
        await page.enter("[id='groups-filter-state']", "", "change")
        await page.enter("#groups-search", "OF Q0")
        assert await page.column("groups", 2) == ["q0"] * 3

        await page.click("#groups tbody tr")  # a row leads to its group
        await page.until("document.body.dataset.view === '#/group/0/0/0'")
        assert await page.run("document.querySelectorAll('#members .episode').length") == 4
        assert await page.run("document.querySelectorAll('#members .passage').length") == 8
        found = await page.run("[...document.querySelectorAll('#members .found')].map(e => e.textContent)")
        assert found == ['Result 1: "Emma"\na novel\n'] * 4
        assert "turn 1, action, trained" in await page.text("#members")

        await page.click("#members a")  # and an episode stands alone
        await page.until("document.body.dataset.view === '#/episode/0/0/0/0'")
        assert "outcome 1, evidence 1" in await page.text()
        assert await page.run("document.querySelectorAll('.token').length") == 0
        await page.click("#show-tokens")
        tip = await page.run("document.querySelector('.token').title")
        assert tip == "log-probability in the engine -0.250, version 1"
        assert await page.column("tokens", 4) == ["1"] * 6 + ["2"]

        await page.go("#/questions")
        assert set(await page.column("questions", 3)) == {"training", "held out"}
        assert set(await page.column("questions", 2)) == {"bridge", "2-hop"}
        await page.go("#/question/0")
        assert "supporting documents: Emma" in await page.text()
        assert await page.column("draws", 0) == [f"draw {n + 1}, batch {n}" for n in range(3)]
        assert await page.column("draws", 6) == ["1: emma · → yes\n0: emma · → yes"] * 3
        held_out = await page.run("new Run('r0', {}).evals.questions[0]")
        await page.go(f"#/question/{held_out}")
        assert await page.column("evaluations", 1) == ["1", "0"]
        assert await page.column("evaluations", 2) == ["–", "flipped"]
        assert await page.column("evaluations", 3) == ["–", "as before"]
        assert "turn 1, action\n" in await page.text(), "a held-out question is not trained on"

        await page.go("#/actors")
        assert await page.text("#busy") == "Busy between 0 and 3 s: learner 33 %, rollout-0 33 %"
        assert await page.run("document.querySelectorAll('#timeline rect title').length") == 3
        fills = "[...document.querySelectorAll('#timeline rect title')].map(t => t.parentNode.getAttribute('fill'))"
        assert await page.run(fills) == ["#dddddd", "#D55E00", "#56B4E9"], "the same in every run"

        await page.go("#/compare")
        counts = await page.text("#counts")
        assert "both right 0, the left one alone 1, the right one alone 2, none 0" in counts
        assert "Of 3 whose episodes are in this report, 3 are word for word the same on both sides." in counts
        await page.click("#differ tbody button")
        assert await page.run("document.querySelectorAll('#pair .episode').length") == 2

    read(report, look)


def test_two_runs_are_compared_by_the_ids_and_texts_of_their_questions(tmp_path: Path) -> None:
    one, other = made.write_run(tmp_path / "one"), made.write_run(tmp_path / "other")
    rows = [made.evaluated(3, f"e{n}", em) for n, em in ((2, 1.0), (1, 0.0), (7, 1.0))]
    rows[0]["turns"] = [made.turn("another search", [("Emma", "a novel")]), *rows[0]["turns"][1:]]
    rows.append(made.evaluated(3, "e0", 1.0) | {"question": "another question of that number?"})
    made.lines(other / EVALUATIONS, rows)
    report, _ = write(one, compare=other)

    async def look(page: Reader) -> None:
        assert "one against other" in await page.text()
        notices = await page.text("#notices")
        assert "one: draws.parquet is missing" in notices
        assert "other: draws.parquet is missing" in notices
        names = await page.run("[...document.querySelectorAll('#both .legend')][0].innerText")
        assert "one" in names
        assert "other" in names
        counts = await page.text("#counts")
        assert counts.startswith("Of 2 questions in both: both right 1, the left one alone 1,")
        assert "Of 2 whose episodes are in this report, 1 are word for word the same" in counts
        assert counts.endswith("1 ids are of other questions on the one side than on the other, and left out.")
        assert await page.column("differ", 0) == ["what of e1?"]

    read(report, look)


def test_hostile_text_is_shown_as_text_and_harms_nothing(tmp_path: Path) -> None:
    folder, evil = made.write_run(tmp_path / "<b>run"), "\n".join(HOSTILE)
    turns = [made.turn(evil, [("Emma", evil), (HOSTILE[1], "x" * 10_000_000)]), made.last_turn(evil)]
    turns[0]["tokens"] = [*HOSTILE]
    rows = made.played(0, 0, [1.0, 0.0], HOSTILE[3])
    told = {"question": evil, "golden_answers": [evil], "stop_reason": HOSTILE[0], "worker": HOSTILE[3], "state": evil}
    made.lines(folder / TRAJECTORIES, [r | told | {"turns": turns, "answer": evil, "fault": evil} for r in rows])
    made.lines(
        folder / GROUPS, [made.group(0, 0, [1.0, 0.0], HOSTILE[3]) | told | {"stops": [evil] * 2, "faults": [evil]}]
    )
    made.lines(folder / EVALUATIONS, [made.evaluated(s, HOSTILE[1], s / 3) | told | {"turns": turns} for s in (0, 3)])
    (folder / ".hydra" / "config.yaml").write_text(evil, errors="replace")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "event", "event": evil, "cause": evil, "<i>": evil}) + "\n")
    with (folder / "spans.jsonl").open("a") as file:
        file.write(json.dumps({"actor": evil, "what": evil, "start": 101.0, "end": 102.0}) + "\n")
    report, _ = write(folder, show=[HOSTILE[3]])  # else the tokens of a log of 20 MB are left out
    assert report.stat().st_size < 1_500_000

    async def look(page: Reader) -> None:
        for view in ("#/run", "#/groups", "#/group/0/0/0", "#/episode/0/0/0/0", "#/questions", "#/question/0",
                     "#/question/1", "#/actors", "#/compare"):  # fmt: skip
            await page.go(view)
            if view.startswith("#/episode"):
                await page.click("#show-tokens")
            if view == "#/compare":
                await page.click("#differ tbody button")
            assert await page.run("document.title") == "Slingshot: <b>run"
            assert await page.run("document.querySelectorAll('img, iframe, object, main script, main b b').length") == 0
            assert await page.run("document.querySelectorAll('script:not([type])').length") == 1
            text = await page.text()
            assert "can't be shown" not in text
            assert "\x1b" not in text
            assert "\u202e" not in text
        await page.go("#/group/0/0/0")
        text = await page.text("#members")
        for line in HOSTILE[:7]:
            assert line in text
        assert "␛[31mred␛[0m" in text
        assert "⟨U+202E⟩right to left" in text
        assert "more characters are left out of this report" in text

    read(report, look)


EVERY_VIEW = """
(() => {
  const run = runs[0], views = Object.keys(VIEWS).map((name) => [name]), wrong = [];
  run.questions.forEach((_, n) => views.push(["question", n]));
  for (const { batch, order, question } of run.groups) {
    views.push(["group", batch, order, question]);
    const members = run.episodes(batch, order, question).keys();
    for (const member of members) views.push(["episode", batch, order, question, member]);
  }
  for (const [name, ...numbers] of views) {
    try {
      const shown = (VIEWS[name] ?? INNER[name][0])(runs, ...numbers);
      document.getElementById("main").replaceChildren(...shown.flat(9).filter((n) => n !== null && n !== undefined));
      document.getElementById("show-tokens")?.click();
    } catch (error) { wrong.push([name, ...numbers, error.message]); }
  }
  return [views.length, wrong];
})()
"""
"""What can't be shown, without the address: a browser refuses hundreds of changes of it."""


def test_ticks_have_all_the_digits_of_their_step(tmp_path: Path) -> None:
    report, _ = write(made.write_run(tmp_path / "run"))

    async def look(page: Reader) -> None:
        for ends, labels in (
            ("31720, 31780", "31.72k 31.74k 31.76k 31.78k"),
            ("0, 1.9e-7", "0 5e-8 1e-7 1.5e-7"),
            ("1234560, 1234580, 2", "1.23456M 1.23457M 1.23458M"),
            ("0, 0.5", "0 0.2 0.4"),
        ):
            assert await page.run(f"ticks({ends}).map(short).join(' ')") == labels

    read(report, look)


def test_each_series_of_evaluations_is_a_line_of_its_own(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    made.lines(folder / "metrics.jsonl", [r | {"held_out": r["step"]} if r["kind"] == "eval" else r for r in rows])
    report, _ = write(folder)

    async def look(page: Reader) -> None:
        of_em = "document.querySelector('#charts figure')"
        assert await page.run(f"{of_em}.querySelectorAll('path[fill=none]').length") == 2
        keys = await page.run(f"[...{of_em}.querySelectorAll('.key')].map(k => k.innerText.trim())")
        assert keys == ["em, series 1: from step 0", "em, series 2: other questions, from step 3"]

    read(report, look)


def test_a_run_that_knows_only_em_says_nothing_else_of_its_evaluations(tmp_path: Path) -> None:
    """As a simulation leaves it."""
    folder = tmp_path / "run"
    rows = [{"kind": "eval", "step": 0, "em": 0.5}, {"kind": "summary", "step": 0, "rollouts": 24, "time_s": 1.0}]
    made.lines(folder / "metrics.jsonl", rows)
    report, _ = write(folder)

    async def look(page: Reader) -> None:
        cells = await page.run("[...document.querySelectorAll('#facts tr')].map(r => r.innerText.split('\\t'))")
        facts = dict(cells)
        assert facts["held out, step 0"] == "EM 0.500"
        assert "workers replaced" not in facts

    read(report, look)


def test_the_groups_of_an_evaluation_say_where_its_episodes_are(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run")
    for name in (TRAJECTORIES, GROUPS):
        (folder / name).unlink()
    report, _ = write(folder)

    async def look(page: Reader) -> None:
        await page.go("#/groups")
        assert (
            "No group has been logged. The episodes of evaluations are under Questions over time." in await page.text()
        )
        await page.click("#main a")
        await page.until("document.body.dataset.view === '#/questions'")
        assert len(await page.column("questions", 0)) == 3

    read(report, look)


def test_a_page_of_odd_values_opens_in_every_view(tmp_path: Path) -> None:
    report, _ = write(made.write_spoilt_run(tmp_path / "run"), limit=100_000_000)

    async def look(page: Reader) -> None:
        count, wrong = await page.run(EVERY_VIEW)
        assert wrong == []
        assert count > 600

    read(report, look)


def test_a_question_shows_its_samples_and_its_whole_text(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=1)
    whole = "why? " * 500 + "the end"
    samples = [made.evaluated(1, "e0", em) | {"sample": n, "question": whole} for n, em in enumerate([1.0, 0.0, 1.0])]
    made.lines(folder / EVALUATIONS, [*samples, made.evaluated(0, "e0", 0.0) | {"question": whole}])
    report, _ = write(folder)

    async def look(page: Reader) -> None:
        await page.go("#/question/2")
        assert await page.text("h1") == whole
        assert await page.column("evaluations", 1) == ["0", "1"]
        names = await page.run("[...document.querySelectorAll('.episode')].map(e => e.querySelector('b').innerText)")
        assert names == ["Held out", "Sample 0", "Sample 1", "Sample 2"]
        await page.go("#/compare")
        await page.click("#differ tbody button")
        assert await page.run("document.querySelectorAll('#pair .episode').length") == 4

    read(report, look)


@pytest.mark.slow
def test_the_largest_page_opens_within_two_seconds(tmp_path: Path) -> None:
    """By the page's own clock, from the address to the first view."""
    report, _ = write(made.write_long_run(tmp_path / "run"))

    async def look(reader: Reader) -> None:
        seconds = await reader.run("performance.now()") / 1000
        print(f"{report.stat().st_size / 1e6:.1f} MB, open after {seconds:.2f} s")
        assert seconds < 2.0

    read(report, look)
