"""What a person reads of a step and of an evaluation."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tracking.console import Console

ROW: dict[str, Any] = {"step": 3, "n": 20, "em": 0.5, "f1": 0.625, "search/mean": 2.0, "faults": 0, "em/1-hop": 1.0}


def shown(capsys: pytest.CaptureFixture[str], **changed: Any) -> list[str]:
    Console().evaluation({**ROW, **changed})
    return capsys.readouterr().out.splitlines()


def test_an_evaluation_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = shown(capsys)
    assert line == "eval after step   3: held-out EM 0.500 on 20 questions  F1 0.625  searches 2.00  1-hop 1.000"


def test_questions_that_broke_are_counted_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    _, second = shown(capsys, faults=4, error="timeout (3 of 4)")
    assert second == "4 more questions ended in a fault: timeout (3 of 4)"


def test_what_isnt_known_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    line = shown(capsys, em=None, f1=None, n=0)[0]
    assert "held-out EM – on 0 questions  F1 –" in line


def test_what_others_wrote_gives_no_orders_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("a passage \x1b[31mred\x07 \u202eback\ttab\nline\r")
    console.table("t\x1b", ["name\x9b"], [["cell\x1b]0;title\x07"]])
    console.evaluation({**ROW, "em/\x1b[2Jkind": 0.5})
    shown = capsys.readouterr().out
    assert "a passage \\x1b[31mred\\x07 \\u202eback    tab\nline\\r\n" in shown
    assert "t\\x1b" in shown
    assert "name\\x9b" in shown
    assert "cell\\x1b]0;title\\x07" in shown
    assert "\\x1b[2Jkind" in shown
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & {*shown}


def test_what_others_wrote_is_no_markup_and_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("card:100:x [red]y[/red]")
    console.table("[/b] agent.tools=[search,open] :x:", ["[red]"], [["[bold]:100:"]])
    shown = capsys.readouterr().out
    for text in ("card:100:x [red]y[/red]\n", "[/b] agent.tools=[search,open] :x:", " [red] ", " [bold]:100: "):
        assert text in shown


@pytest.mark.parametrize("moving", [False, True])
def test_a_run_outlasts_whoever_reads_its_output(moving: bool) -> None:
    code = (
        "import os, sys\n"
        "from tracking.console import Console\n"
        "console = Console()\n"
        "with console.phase('a phase'):\n"
        f"    assert (console._phases._live is not None) is {moving}\n"
        "    os.write(2, b'begins\\n')\n"
        "    sys.stdin.read()\n"
        "    for line in range(200): console.say('a line of the run')\n"
        "open(sys.argv[1], 'w').write('the end')\n"
    )
    with tempfile.NamedTemporaryFile() as end:
        reader, writer = pty.openpty() if moving else os.pipe()
        run = subprocess.Popen(
            [sys.executable, "-c", code, end.name], stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(writer)
        assert run.stderr is not None
        assert run.stderr.readline() == "begins\n"
        os.close(reader)  # nobody reads from now on
        assert (run.communicate(timeout=300)[1], run.returncode) == ("", 0)
        assert Path(end.name).read_text() == "the end"


def test_what_a_signals_handler_says_within_a_write_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stands still (``less``, Ctrl-S) keeps the run in a write, where Ctrl-C finds it."""
    written: list[bytes] = []

    class Stalled(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.append(bytes(data))
            if len(written) == 1:
                console.say("stopping")  # as a handler that Python lets in here does
            return len(data)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Stalled())))
    console = Console()
    console.say("a step")
    console.say("saved")
    lines = b"".join(written).decode().split("\n")
    assert lines[0] == "a step"
    assert lines[-3:] == ["stopping", "saved", ""]


def test_a_table_in_a_file_has_all_the_room_it_needs_also_with_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    Console().table("a title", ["", "name"], [["x" * 150, "y" * 150]])
    assert f"{'y' * 150}" in capsys.readouterr().out


STEP: dict[str, Any] = {
    **{f"groups/{state}": 1 for state in ("signal", "too_easy", "too_hard")},
    "reward/mean": 0.5,
    "search/mean": 1.0,
    "rollout/tokens_per_s": 10.0,
    "rollout/mismatch": 0.0,
    "time/step_s": 1.0,
    "rollout/excluded": 0,
}


def test_episodes_that_were_left_out_are_counted_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    Console().step(STEP, "step 1/2")
    assert len(capsys.readouterr().out.splitlines()) == 1
    Console().step({**STEP, "rollout/excluded": 2, "rollout/excluded_why": "reward_failed: no judge"}, "step 2/2")
    *_, second = capsys.readouterr().out.splitlines()
    assert second == "2 episodes ended in a fault and were left out: reward_failed: no judge"
