"""``mode=view``, as a page or in the terminal, and the report at the end of a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from agent.paths import at_home
from tracking.console import Console
from tracking.view.report import check, write


def view_run(folder: Path, compare: Path | None, show: Collection[str], console: Console) -> None:
    """Writes the report of the run in ``folder`` and says where it is; see ``write``."""
    other = at_home(compare) if compare else None
    with console.phase("reading the run"):
        path, notices = write(at_home(folder), compare=other, show=show)
    for notice in notices:
        console.say(notice, "yellow")
    console.say(f"report: {path.absolute()}")


def view_in_terminal(folder: Path, show: Collection[str], console: Console) -> None:
    """Shows the episodes of the run in ``folder`` in the terminal; see ``tracking.view.terminal``."""
    from tracking.view.terminal import browse

    check(at_home(folder), "run")
    browse(at_home(folder), show, console)


def view_at_end(run_dir: Path, console: Console) -> None:
    """Writes the report of a run that has ended, however it did. What goes wrong with it is said and is no fault."""
    try:
        with console.phase("writing the report"):
            path, _ = write(run_dir)
    except Exception as error:  # a run of days must not end in an error for the sake of its picture
        console.say(f"the report could not be written: {type(error).__name__}: {error}", "yellow")
    else:
        console.say(f"report {path}")
