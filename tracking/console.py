"""What a person reads while a run goes on: a header, a line per step, a line per evaluation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich.box import SIMPLE
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from agent.visible import visible
from tasks.notices import FILE, Notice
from tracking.progress import Phase, Phases


class Console:
    """Prints to standard output; ``quiet`` prints nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        out = cast(TextIO, _Output())
        self._rich = RichConsole(file=out, quiet=quiet, highlight=False, soft_wrap=True, emoji=False)
        if not self._rich.file.isatty():
            self._rich.width = 10_000  # a file or a pipe has no width that a table would have to fit into
        self._phases = Phases(self._rich)

    def phase(self, title: str) -> AbstractContextManager[Phase]:
        """Shows ``title`` as under way, and for how long, while the body runs. Any thread may have one."""
        return self._phases.phase(title)

    def say(self, text: str, style: str = "") -> None:
        """A line of plain text. Control characters in it are shown as escapes."""
        self._print(text, style=style, markup=False)

    def notices(self, notices: Sequence[Notice], folder: Path) -> None:
        """What there is to say of the data, a line each, and where the questions are listed."""
        for notice in notices:
            self.say(f"{'agent' if notice.kind == 'format' else 'data'}: {notice.text}", "yellow")
        if any(notice.items for notice in notices):
            self.say(f"data: all of these questions are listed in {folder / FILE}", "dim")

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose first column names what the others give."""
        table = Table(title=Text(visible(title), "bold"), title_justify="left", box=SIMPLE)
        for at, name in enumerate(header):
            table.add_column(Text(visible(name)), justify="right" if at else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(visible(cell)) for cell in row))
        self._print(table)

    def step(self, row: Mapping[str, Any], progress: str) -> None:
        """One learner step; ``progress`` says which one."""
        groups = f"{row['groups/signal']}/{row['groups/too_easy']}/{row['groups/too_hard']}"
        self._print(
            f"{progress}  reward {_number(row['reward/mean'])}"
            f"  searches {_number(row['search/mean'])}"
            f"  signal/easy/hard {groups:>9}  {_number(row['rollout/tokens_per_s'], 0):>6} tok/s"
            f"  mismatch {_number(row['rollout/mismatch'], 8)}  {row['time/step_s']:.2f} s",
            markup=False,
        )
        if why := row.get("rollout/excluded_why"):
            self.say(f"{row['rollout/excluded']} episodes ended in a fault and were left out: {why}", "yellow")

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One evaluation."""
        unit = "episodes" if row.get("samples", 1) > 1 else "questions"
        slices = "  ".join(f"{key[3:]} {_number(value)}" for key, value in row.items() if key.startswith("em/"))
        self._print(
            f"eval after step {row['step']:>3}: held-out EM {_number(row['em'])} on {row['n']} {unit}"
            f"  F1 {_number(row['f1'])}  searches {_number(row['search/mean'], 2)}{_saved(row)}  {slices}",
            style="bold",
            markup=False,
        )
        if faults := row.get("faults"):
            self.say(f"{faults} more {unit} ended in a fault: {row.get('error', 'no reason was given')}", "yellow")
        if why := row.get("refused"):
            self.say(f"this is no result: {why}", "red")

    def _print(self, what: Any, **how: Any) -> None:
        self._rich.print(visible(what) if isinstance(what, str) else what, **how)
        self._phases.heard()


class _Output:
    """Standard output, or nothing once that can't be written to: a run outlasts its terminal, and its ``tee``.

    Python refuses a write within another. What a signal's handler says while a reader lets this thread wait (``less``,
    Ctrl-S) is written after that.
    """

    def __init__(self) -> None:
        self._gone = self._busy = False
        self._later: list[str] = []

    def write(self, text: str) -> int:
        self._do(lambda out: out.write(text), text)
        return len(text)

    def flush(self) -> None:
        self._do(lambda out: out.flush(), "")

    @property
    def rich_proxied_file(self) -> _Output:
        """This is where rich writes, also while its moving lines stand in front of ``sys.stdout``."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(_standard_output(), name)

    def _do(self, do: Callable[[TextIO], object], text: str) -> None:
        if self._gone:
            return
        if self._busy:  # rich lets one thread write at a time: it is this one
            self._later.append(text)
            return
        self._busy = True
        try:
            do(out := _standard_output())
            while self._later:
                out.write(self._later.pop(0))
                out.flush()
        except OSError:
            self._gone = True
            with suppress(OSError, ValueError):  # what Python has kept is not to fail again at its exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        finally:
            self._busy = False


def _standard_output() -> TextIO:
    out: TextIO = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return out


def _saved(row: Mapping[str, Any]) -> str:
    """What early exit and query selectivity did; nothing where they are off or had nothing to do."""
    exits = row.get("stop", {}).get("early_exit", 0)
    parts = [f"  early exits {exits}"] if exits else []
    if probes := row.get("probe_tokens/mean"):
        tokens = row["action_tokens/mean"] + probes
        parts.append(f"  generated tokens {_number(tokens, 1)}, {_number(probes, 1)} of them in probes")
    for what in ("skipped", "withheld"):
        if repeats := row.get(f"search/{what}_mean"):
            parts.append(f"  {what} {_number(repeats, 2)}")
    return "".join(parts)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"
