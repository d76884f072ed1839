"""The terminal view, in a real pseudo-terminal, and what it lists."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import view_runs as made
from patience import until
from rich.cells import cell_len
from rich.text import Text

from agent.errors import Stopped, UserError
from agent.visible import visible
from tracking.console import Console
from tracking.trajectories import EVALUATIONS, TRAJECTORIES
from tracking.view import in_lines
from tracking.view.episode_list import Filters, in_range, read_entries, read_episode
from tracking.view.lines import MAX_TEXT, Notices
from tracking.view.terminal import Viewer, browse

ROOT = Path(__file__).parents[2]
OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|\?1049[lh]|H|1A|2K)")
"""All that the view itself tells a terminal: colours, the cursor, the second screen, its beginning, a moving line."""


class Terminal:
    """A view in a terminal of its own, as a person sees it and types into it."""

    def __init__(self, *arguments: str, width: int = 120, height: int = 30) -> None:
        self._ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.resize(width, height)
        ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which may run the tests, has it ignored
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), "mode=view", "view=terminal", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )
        signal.signal(signal.SIGHUP, ours)
        self.written = ""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        read = b""
        while True:
            try:
                read += os.read(self._ours, 65536)
            except OSError:
                return
            self.written = read.decode("utf-8", "replace")

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    @property
    def screen(self) -> str:
        """The newest picture on it, without its colours."""
        return OURS.sub("", self.written.rpartition("\x1b[H")[2]).replace("\r\n", "\n")

    def shows(self, *texts: str) -> str:
        """Waits for a picture with all of ``texts``."""
        try:
            until(lambda: all(text in self.screen for text in texts), self.process)
        except AssertionError as error:
            raise AssertionError(f"{texts} are not on the screen ({error}):\n{self.screen}") from error
        return self.screen

    def ends(self) -> int:
        return self.process.wait(600)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self._ours, self.theirs):
            os.close(end)


@contextmanager
def terminal(*arguments: str, **size: int) -> Iterator[Terminal]:
    opened = Terminal(*arguments, **size)
    try:
        yield opened
    finally:
        opened.close()


def test_a_run_is_read_filtered_and_searched_in_a_terminal(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "a run", batches=3)
    with (folder / TRAJECTORIES).open("a") as file:
        lost = made.played(9, 0, [0.0], "odd")[0] | {"reward": None, "stop_reason": "retrieval_failed", "fault": "gone"}
        file.write(json.dumps(lost | {"answer": None}) + "\n")
    with terminal(f"run={folder}", f"output_dir={tmp_path / 'out'}") as screen:
        screen.shows("a run: The run has ended after step 3.", "1 of 31 (31 logged): all episodes", "0/0 #0", "eval 0")
        screen.type("f")
        screen.shows("1 of 1 (31 logged): faults", "retrieval_failed", "odd")
        screen.type("\r")
        screen.shows("fault: gone", "turn 1, action", "<search> emma </search>", 'Result 1: "Emma"', "no answer")
        screen.type("qc")
        screen.shows("1 of 31")
        screen.type("r<0.5\r")
        screen.shows("(31 logged): score <0.5")
        screen.type("r>=1\ru")
        screen.shows("1 of 3 (31 logged): score >=1, training")
        screen.type("cr0.4..0.6x\r")
        screen.shows("'0.4..0.6x': write <0.5, >=1, =1 or 0.2..0.6")
        screen.type("cs")
        screen.shows("1 of 30 (31 logged): answered")
        screen.type("c:e1\r")
        screen.shows("1 of 2 (31 logged): question e1", "eval 0", "eval 3")
        screen.type(":nobody\r")
        screen.shows("no episode of a question 'nobody' is logged")
        screen.type("c/WHAT OF Q1\r")
        screen.shows("1 of 12 (31 logged): text 'WHAT OF Q1'")
        screen.type("j\x1b[B\r")
        screen.shows("batch 0, member 2", "id q1; right answers: yes")
        screen.type("n")
        screen.shows("batch 0, member 3")
        screen.type("a")
        screen.shows("of 12 (31 logged): question q1")
        screen.type("i")
        screen.shows("eval after step 3: held-out EM 0.667")
        screen.resize(60, 10)
        until(lambda: len(screen.screen.splitlines()) == 10, screen.process)
        assert max(map(len, screen.screen.splitlines())) == 60
        screen.type("qq")
        assert screen.ends() == 0
        assert termios.tcgetattr(screen.theirs) == screen.before, "the terminal is as it was"
        assert screen.written.rstrip().endswith("\x1b[?1049l\x1b[?25h")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(tmp_path: Path, number: signal.Signals) -> None:
    folder = made.write_run(tmp_path / "run")
    with terminal(f"run={folder}", f"output_dir={tmp_path / 'out'}") as screen:
        screen.shows("1 of 30 (30 logged)")
        assert termios.tcgetattr(screen.theirs) != screen.before
        screen.process.send_signal(number)
        assert screen.ends() == 128 + number
        assert termios.tcgetattr(screen.theirs) == screen.before
        until(lambda: f"stopped by {number.name}" in screen.written.partition("\x1b[?1049l\x1b[?25h")[2])


@contextmanager
def terminal_here(term: str) -> Iterator[tuple[int, list[bytes]]]:
    """A terminal of 60 by 10 as this process's own: its end for programs, and what they have written."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 60, 0, 0))
    written: list[bytes] = []

    def read() -> None:  # who changes a terminal's settings waits until all has been read
        with suppress(OSError):
            while True:
                written.append(os.read(ours, 65536))

    threading.Thread(target=read, daemon=True).start()
    with (
        pytest.MonkeyPatch.context() as patched,
        os.fdopen(os.dup(theirs), "r") as keys,
        os.fdopen(os.dup(theirs), "w") as screen,
    ):
        patched.setenv("TERM", term)
        patched.setattr(sys, "stdin", keys)
        patched.setattr(sys, "stdout", screen)
        yield theirs, written
    os.close(theirs)  # which ends the reading


def test_what_is_raised_meanwhile_leaves_the_terminal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a signal's handler, whose cases above are slow."""
    folder = made.write_run(tmp_path / "run")
    with terminal_here("xterm-256color") as (theirs, written):
        before = termios.tcgetattr(theirs)

        def stop(self: Viewer, width: int, height: int) -> list[Text]:
            assert termios.tcgetattr(theirs) != before
            raise Stopped(signal.SIGTERM)

        monkeypatch.setattr(Viewer, "lines", stop)
        with pytest.raises(Stopped):
            browse(folder, [], Console(quiet=True))
        assert termios.tcgetattr(theirs) == before
        sys.stdout.flush()
        until(lambda: b"".join(written).endswith(b"\x1b[?1049l\x1b[?25h"), hang_s=60.0)
        assert b"\x1b[?1049h" in b"".join(written)


@pytest.mark.parametrize(
    ("term", "said"),
    [("dumb", "can't draw on a terminal of TERM=dumb"), ("xterm", "needs a terminal, and its input or output is a")],
)
def test_where_nothing_can_be_drawn_it_is_said(monkeypatch: pytest.MonkeyPatch, term: str, said: str) -> None:
    with terminal_here(term):
        if term == "xterm":
            monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(
            UserError, match=rf"^view=terminal {said}.*; without view=terminal, report\.html is written$"
        ):
            browse(Path("nobody looks"), [], Console(quiet=True))


def test_a_signal_ends_a_search_and_the_view(tmp_path: Path) -> None:
    viewer = Viewer(made.write_run(tmp_path / "run"))

    def stop(said: str) -> None:
        raise Stopped(signal.SIGTERM)

    viewer.busy = stop
    for key in "/emma":
        viewer.key(key)
    with pytest.raises(Stopped):
        viewer.key("\r")


@pytest.mark.slow
def test_hostile_text_reaches_a_terminal_as_text(tmp_path: Path) -> None:
    folder, evil = made.write_run(tmp_path / "a\x1b[31mrun"), "\n".join(made.HOSTILE)
    turns = [made.turn(evil, [("Emma", evil), (made.HOSTILE[7], "x" * 10_000_000)]), made.last_turn(evil)]
    told = {"question": evil, "golden_answers": [evil], "stop_reason": made.HOSTILE[7], "worker": evil, "fault": evil}
    rows = [r | told | {"turns": turns, "answer": evil} for r in made.played(0, 0, [1.0, 0.0], made.HOSTILE[8])]
    made.lines(folder / TRAJECTORIES, rows)
    made.lines(folder / EVALUATIONS, [made.evaluated(0, made.HOSTILE[7], 1.0) | told | {"turns": turns}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "event", "event": "fault", "why": evil}) + "\n")
    with terminal(f"run={folder}", f"output_dir={tmp_path / 'out'}", width=240, height=100) as screen:
        screen.shows("1 of 3 (3 logged)", "\\x1b[31mred\\x1b[0m", "\\u202eright to left")
        screen.type("/" + "right to left\r\r")
        screen.shows("turn 1, action", "javascript:document.title", "</script><script>", "nul \\x00")
        screen.type("G")
        screen.shows("more characters are left out of this report")
        screen.type("qiqs:red\r")
        screen.shows("question \\x1b[31mred")
        screen.type("q")
        assert screen.ends() == 0
        rest = OURS.sub("", screen.written).replace("\r\n", "\n").replace("\r", "\n")
        assert [line for line in rest.splitlines() if visible(line) != line] == [], "nothing but the view's own orders"
        assert len(screen.written) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "slingshot: view=terminal needs a terminal, and its input or output is a file or a pipe; without"),
        (["compare={run}"], "slingshot: view=terminal shows one run; compare=FOLDER is for the page"),
        (["view=window"], "slingshot: view=window is not known"),
    ],
)
def test_without_a_terminal_there_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    folder = made.write_run(tmp_path / "run")
    given = [f"run={folder}", f"output_dir={tmp_path / 'out'}", *(a.format(run=folder) for a in arguments)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "mode=view", "view=terminal", *given],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


# --- what is listed --------------------------------------------------------------------------------


def test_the_episodes_are_those_of_the_report(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=2)
    entries = read_entries(folder, Notices())
    assert len(entries) == 2 * 2 * 4 + 6
    assert [(e.when, e.held_out, e.order, e.member) for e in entries[:12]] == [
        *[(0, True, 0, 0)] * 3,
        *((0, False, order, member) for order in (0, 1) for member in range(4)),
        (1, False, 0, 0),
    ]
    told = read_episode(entries[3])
    assert (told["question"], told["reward"], told["turns"][0]["found"]) == ("what of q0?", 1.0, ["Emma"])
    assert [kind for _, kind in told["turns"][0]["observation"]] == [0, 3, 1]


def test_only_what_is_trained_is_called_so(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=0)
    trained, returned, broken = made.played(0, 0, [1.0, 0.0, 0.0])
    made.lines(folder / TRAJECTORIES, [trained, returned | {"accepted": False}, broken | {"fault": "the search broke"}])
    made.lines(folder / EVALUATIONS, [made.evaluated(0, "e0", 1.0)])
    said = [
        [line.plain for line in in_lines.episode(entry, read_episode(entry))]
        for entry in read_entries(folder, Notices())
    ]
    assert ["turn 1, action, trained" in lines for lines in said] == [False, True, False, False]
    assert ["observation, masked" in lines for lines in said] == [False, True, False, False]
    assert all("turn 1, action" in lines and "observation" in lines for lines in (said[0], *said[2:]))


def test_a_log_of_an_earlier_version_is_listed_without_what_it_lacks(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=0)
    lacking = {k: v for k, v in made.evaluated(0, "e0", 1.0).items() if k not in ("question", "stop_reason")}
    made.lines(folder / EVALUATIONS, [lacking])
    (entry,) = read_entries(folder, Notices())
    assert (entry.question, entry.stop) == ("e0", "–")
    assert "None" not in "".join(line.plain for line in in_lines.episode(entry, read_episode(entry)))


def test_alarms_are_seen_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "2026-11-30")
    made.lines(folder / "metrics.jsonl", [made.step(n, **{"rollout/mismatch": 0.2}) for n in (1, 2, 3)])
    title = Viewer(folder).lines(80, 24)[0].plain
    assert title.startswith("2026-11-30: 1 alarm, i shows them. No summary: the run goes on")


def test_the_episodes_are_in_the_order_in_which_they_were_played(tmp_path: Path) -> None:
    """An evaluation after k steps comes before the batch of the next step, which may be no step of that number: a batch
    that nothing could be learned from is skipped. The seeding counts batches of its own."""
    folder = made.write_run(tmp_path / "run", batches=0)
    skipped = [{"kind": "event", "event": "untrainable_batch", "step": step, "batch": 1} for step in (0, 2)]
    odd = [{**skipped[1], "batch": "x"}, {**skipped[1], "event": "recovered", "batch": 0}]
    made.lines(folder / "metrics.jsonl", [*skipped, *odd])
    made.lines(folder / TRAJECTORIES, [row for batch in range(5) for row in made.played(batch, 0, [1.0])])
    made.lines(folder / EVALUATIONS, [made.evaluated(step, "e0", 1.0) for step in (0, 2, 4)])
    entries = read_entries(folder, Notices())
    assert [f"{'eval' if e.held_out else 'batch'} {e.when}" for e in entries] == [
        *("eval 0", "batch 0", "batch 1", "batch 2", "eval 2", "batch 3", "batch 4", "eval 4")
    ]
    assert all(read_episode(entry) for entry in entries)


def test_a_log_that_is_being_written_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    folder, notices = made.write_run(tmp_path / "run", batches=1), Notices()
    (folder / EVALUATIONS).unlink()
    with (folder / TRAJECTORIES).open("a") as file:
        file.write('[1]\n{"batch": 1, "question_id"')
    assert len(read_entries(folder, notices)) == 8
    assert len(notices.texts) == 3
    viewer = Viewer(folder)
    (folder / TRAJECTORIES).write_text("")
    viewer.key("\r")
    assert "The log has changed meanwhile" in "".join(line.plain for line in viewer.lines(80, 24))
    viewer.key("q")
    viewer.key("R")
    assert "0 of 0 (0 logged)" in "".join(line.plain for line in viewer.lines(80, 24))
    assert all(viewer.key(key) for key in ("\r", "j", "G", "a", "n", "\x1b[B", "\x1b[6~"))


def test_a_log_that_is_gone_or_was_replaced_shows_no_other_episode(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=1)
    viewer = Viewer(folder)
    log, changed = folder / TRAJECTORIES, "The log has changed meanwhile"
    viewer.key("u")
    before = log.read_text().splitlines(keepends=True)

    def opened() -> str:
        viewer.key("\r")
        told = "".join(line.plain for line in viewer.lines(80, 24))
        viewer.key("q")
        return told

    assert "what of q0?" in opened()
    log.write_text("".join(before[::-1]))
    assert changed in opened(), "another episode of the same length stands in its place"
    log.unlink()
    assert changed in opened()
    for key in "c/emma\r":
        viewer.key(key)
    assert "1 of 6 (14 logged)" in "".join(line.plain for line in viewer.lines(80, 24))


@pytest.mark.parametrize("width", [1, 30, 40, 60, 77, 78, 120])
def test_a_list_fits_into_the_terminal(tmp_path: Path, width: int) -> None:
    viewer = Viewer(made.write_run(tmp_path / "run"))
    head, row = (line.plain for line in viewer.lines(width, 24)[2:4])
    assert cell_len(head) == cell_len(row)
    if width >= 40:
        assert len(head) <= width
        assert "what of" in row
        assert ("answered" in row) == (width >= 60)


def test_the_end_of_what_is_typed_is_seen_in_a_narrow_terminal(tmp_path: Path) -> None:
    viewer = Viewer(made.write_run(tmp_path / "run"))
    for key in "r>=0.25":
        viewer.key(key)
    foot = viewer.lines(40, 24)[-1].plain
    assert foot.endswith("=1, 0.2..0.6: >=0.25▏")
    assert len(foot) == 40
    assert viewer.lines(200, 24)[-1].plain.startswith("reward, or EM")


def test_a_line_of_the_screen_is_one_line(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "a\nrun")
    broke = {"kind": "event", "event": "fault", "why": "it\nbroke\there"}
    made.lines(folder / "metrics.jsonl", [made.step(1), broke])
    for lines in (Viewer(folder, ["no\nsuch"]).lines(80, 24), Viewer(folder).lines(80, 24)):
        assert len(lines) == 24
        assert not [line.plain for line in lines if {"\n", "\t"} & {*line.plain}]


def test_questions_that_are_asked_for_come_first(tmp_path: Path) -> None:
    viewer = Viewer(made.write_run(tmp_path / "run"), ["e1"])
    assert "1 of 2 (30 logged): question e1" in viewer.lines(80, 24)[1].plain


def test_filters_are_met_together(tmp_path: Path) -> None:
    entries = read_entries(made.write_run(tmp_path / "run"), Notices())
    assert len(Filters(score="0.5").chosen(entries)) == 3
    assert len(Filters(score="0.5", use="held out").chosen(entries)) == 0
    assert len(Filters(text="EMMA", use="held out").chosen(entries)) == 6
    for nobodys in ("nowhere", "rollout-0", "answered", "signal"):  # nobody wrote or read these
        assert len(Filters(text=nobodys).chosen(entries)) == 0
    assert len(Filters(questions=frozenset(["q0", "e2"])).chosen(entries)) == 14


def test_a_search_is_of_what_was_written_and_read_and_not_of_what_is_shown_of_it(tmp_path: Path) -> None:
    folder = made.write_run(tmp_path / "run", batches=0)
    turns = [made.turn("x " * MAX_TEXT + "deep", [("Emma", "y " * MAX_TEXT + "below")]), made.last_turn("yes")]
    made.lines(folder / TRAJECTORIES, [row | {"turns": turns} for row in made.played(0, 0, [1.0])])
    entries = read_entries(folder, Notices())
    found = {text: len(Filters(text=text).chosen(entries)) for text in ("Deep", "below", "characters are left out")}
    assert found == {"Deep": 1, "below": 1, "characters are left out": 0}


@pytest.mark.parametrize("text", ["", "x", "1..", "<0..1", "1 2", "=<1", "0.5.5", "+-1", "1e", ".", "nan"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write <0\.5"):
        in_range(text)


def test_a_range_from_the_larger_to_the_smaller_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'0\.6\.\.0\.2': no number is in it; .*, 0\.2\.\.0\.6"):
        in_range("0.6..0.2")


def test_ranges() -> None:
    numbers = [-1.0, 0.0, 0.3333333, 0.5, 1.0]
    wanted = {"<0.5": 3, "<=0.5": 4, ">0": 3, ">= 0": 4, "=1": 1, "0.333": 1, "-1..0.5": 4, "0.4 to 1": 2}
    wanted |= {"1.": 1, "<5e-1": 3, ">1E-3": 3, "+1": 1, "0...5": 3, "0.4..1.": 2, "-1e0..+.5": 4}
    assert {text: sum(map(in_range(text), numbers)) for text in wanted} == wanted
