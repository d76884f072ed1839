"""What the terminal view shows, as lines of text. Whatever a run has written is shown with its control characters as
escapes (``agent/visible.py``): none of them reaches the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from agent.visible import visible
from tracking.view.episode_list import Entry
from tracking.view.episodes import FOUND, SUPPORTING

STYLES = {SUPPORTING: "green", FOUND: "bold green"}
"""Of the passages of an observation, which is dim."""
HEAD = ("where", "score", "srch", "end", "id", "question", "answer")


def columns(width: int) -> tuple[int, ...]:
    """Cells of each column of the list; 0 for one that a narrow terminal has no room for."""
    rest = width - 14 - 6 - 5 - 17 - 6
    if rest >= 30:
        return 14, 6, 5, 17, rest // 5, rest - rest // 5 - rest // 4, rest // 4
    end = 17 if width >= 60 else 0
    return 14, 6, 0, end, 0, max(1, width - 14 - 6 - end - 2 - bool(end)), 0


def head(width: int) -> Text:
    """The list's first line."""
    return one_line(_cells(HEAD, width), "bold")


def row(entry: Entry, width: int, *, here: bool) -> Text:
    """An episode's line in the list."""
    where = f"eval {entry.when}" if entry.held_out else f"{entry.when}/{entry.order} #{entry.member}"
    texts = (
        *(where, number(entry.score), "–" if entry.searches is None else str(entry.searches), entry.stop),
        *(entry.question_id, entry.question, "–" if entry.answer is None else entry.answer),
    )
    line = one_line(_cells(texts, width))
    line.stylize(_style(entry))
    if here:
        line.stylize("reverse")
    return line


def _style(entry: Entry) -> str:
    if entry.fault:
        return "magenta"
    return "" if entry.score is None else "green" if entry.score > 0.5 else "red"


def _cells(texts: Sequence[str], width: int) -> str:
    sizes = zip(texts, columns(width), strict=True)
    return " ".join(set_cell_size(" ".join(visible(text).split()), size) for text, size in sizes if size)


def one_line(text: str, style: str = "") -> Text:
    """Text that is cut where the terminal ends, also where it has ends of lines."""
    return Text(re.sub(r"[\t\n]", " ", visible(text)), style=style, no_wrap=True, overflow="crop")


def number(value: Any, digits: int = 3) -> str:
    """A number as the report shows it."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if isinstance(value, int | float) else "–"


# --- one episode, one run ------------------------------------------------------------------------------


def episode(entry: Entry, told: dict[str, Any]) -> Iterator[Text]:
    """An episode from its question to its answer; ``told`` is of ``read_episode``."""
    if not told:
        yield text("The log has changed meanwhile: R reads it anew.", "red")
        return
    yield text(told.get("question") or entry.question_id, "bold")
    yield text(f"id {entry.question_id}; right answers: {' | '.join(map(str, told.get('golden_answers') or []))}")
    if supporting := told.get("supporting"):
        yield text(f"supporting documents: {' | '.join(map(str, supporting))}", "dim")
    where = f"evaluation after step {entry.when}" if entry.held_out else f"batch {entry.when}, member {entry.member}"
    parts = [(name, told.get(name)) for name in ("reward", "outcome", "evidence", "gate", "cost", "em", "f1")]
    scores = "".join(f", {name} {number(v) if not isinstance(v, str) else v}" for name, v in parts if v is not None)
    yield text(f"{where}{scores}, {number(told.get('searches'))} searches, ended: {entry.stop}", _style(entry))
    if fault := told.get("fault"):
        yield text(f"fault: {fault}", "magenta")
    trained = bool(told.get("accepted")) and not entry.fault
    for at, turn in enumerate(told.get("turns", []), 1):
        yield from _turn(at, turn, trained)
        if told.get("inherited_turns") == at:
            yield text("── a continuation: what is above was taken over, from here it was played anew ──", "yellow")
    answer = told.get("answer")
    yield text("")
    yield text("no answer" if answer is None else f"answer: {answer}", "bold")


def _turn(at: int, turn: dict[str, Any], trained: bool) -> Iterator[Text]:
    yield text("")
    yield text(f"turn {at}, action{', trained' if trained else ''}", "cyan")
    yield text(str(turn.get("text", "")))
    for call in turn.get("calls", []):
        notes = ", refused: its limit is reached" if call.get("refused") else ""
        notes += f", repeats a {call['repeat']}" if call.get("repeat") else ""
        yield text(f"→ {call.get('tool')}: {call.get('argument')}{notes}", "cyan")
    if found := turn.get("found"):
        yield text(f"finds {', '.join(map(str, found))}", "green")
    if observation := turn.get("observation"):
        yield text(f"observation{', masked' if trained else ''}", "cyan")
        for piece, kind in observation:
            yield text(piece.strip("\n"), STYLES.get(kind, "dim"))


def run(facts: dict[str, Any], notices: list[str]) -> Iterator[Text]:
    """What the report's first view says in words: ``facts`` are of ``tracking.view.run``."""
    yield text(str(facts["folder"]), "bold")
    yield text(str(facts["end"]))
    for alarm in facts["alarms"]:
        yield text("")
        yield text(f"alarm at step {alarm['step']}: {alarm['name']}: {alarm['what']}", "yellow")
        yield text(f"Look at {alarm['look']}. {alarm['change']}")
    yield text("")
    series = None
    for each in facts["evals"]:
        if (begun := each.get("series")) != series:
            series = begun
            yield text(str(series), "dim")
        parts = [f"held-out EM {number(each.get('em'))}"]
        if interval := each["em_interval"]:
            parts[0] += f" ({number(interval[0])} to {number(interval[1])})"
        if each.get("f1") is not None:  # a simulation has neither
            parts.append(f"F1 {number(each['f1'])}")
        if each.get("n") is not None:
            parts.append(f"on {each['n']} {'episodes' if (each.get('samples') or 1) > 1 else 'questions'}")
        refused = f"; refused as a result: {each['refused']}" if each.get("refused") else ""
        yield text(f"eval after step {each.get('step')}: {', '.join(parts)}{refused}")
    for notice in notices:
        yield text(notice, "yellow")


def text(said: str, style: str = "") -> Text:
    """Text of several lines, as a terminal may show it."""
    return Text(visible(said), style=style, overflow="fold", tab_size=4)


def wrapped(texts: Iterator[Text], width: int) -> list[Text]:
    """``texts`` in lines of at most ``width`` cells."""
    console = Console(width=width)
    return [line for each in texts for line in each.wrap(console, width, overflow="fold")]
