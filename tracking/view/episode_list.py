"""The episodes of a run in a list, as the terminal view filters and searches them. The logs stay on the disk."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.records import StopReason
from tracking.metrics import UNTRAINABLE
from tracking.shapes import EVENT, HEAD
from tracking.trajectories import EVALUATIONS, TRAJECTORIES
from tracking.view.episodes import logged, shown
from tracking.view.lines import Notices, lines

FAULTS = frozenset(str(reason) for reason in StopReason if reason.is_fault)
_NUMBER = r"([+-]?(?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
"""As ``float`` reads it. Two points after a digit are those of a range."""
_RANGE = re.compile(rf"\s*(<=|>=|<|>|=)?\s*{_NUMBER}\s*(?:(?:\.\.|to)\s*{_NUMBER}\s*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An episode: where it stands, and what the list shows of it."""

    file: Path
    start: int
    when: int
    """The batch of an episode of training, the step of an evaluation."""
    steps: int
    """How many steps had ended before it."""
    held_out: bool
    order: int
    member: int
    question_id: str
    question: str
    score: float | None
    """Reward; exact match of an evaluation."""
    searches: int | None
    stop: str
    fault: bool
    answer: str | None

    @property
    def place(self) -> tuple[int, bool, int, int, int]:
        """Its place in the run, where an evaluation after k steps comes before the batch of the next step; the members
        of a group lie together."""
        return self.steps, not self.held_out, self.when, self.order, self.member


def read_entries(folder: Path, notices: Notices) -> list[Entry]:
    """All episodes that the run in ``folder`` has logged, in the order in which they were played."""
    skipped = _skipped(folder, notices)
    found = [
        entry
        for name, held_out in ((TRAJECTORIES, False), (EVALUATIONS, True))
        for line in lines(folder / name, notices, HEAD)
        if (entry := _entry(folder / name, line.start, line.row, held_out, skipped)) is not None
    ]
    return sorted(found, key=lambda entry: entry.place)


def _skipped(folder: Path, notices: Notices) -> list[int]:
    """The batches of training that made no step, in their order."""
    rows = (line.row for line in lines(folder / "metrics.jsonl", notices, EVENT) if line.row.get("step"))
    return sorted({r["batch"] for r in rows if r.get("event") == UNTRAINABLE and r.get("batch") is not None})


def _entry(file: Path, start: int, row: dict[str, Any], held_out: bool, skipped: Sequence[int] = ()) -> Entry | None:
    when, question = row.get("step" if held_out else "batch"), row.get("question_id")
    if when is None or question is None:
        return None
    stop = row.get("stop_reason") or "–"  # a log of an earlier version may lack it
    return Entry(
        file=file,
        start=start,
        when=when,
        steps=when if held_out else when - bisect_left(skipped, when),
        held_out=held_out,
        order=row.get("order") or 0,
        member=row.get("sample" if held_out else "member") or 0,
        question_id=question[:SHORT],
        question=(row.get("question") or question)[:SHORT],
        score=row.get("em" if held_out else "reward"),
        searches=row.get("searches"),
        stop=stop[:SHORT],
        fault=stop in FAULTS or bool(row.get("fault")),
        answer=None if row.get("answer") is None else row["answer"][:SHORT],
    )


SHORT = 200
"""Characters of a text that the list keeps: a log may have more episodes than fit into memory whole."""


def read_episode(entry: Entry) -> dict[str, Any]:
    """The episode as the report shows it (``tracking.view.episodes.shown``), with its ``question``,
    ``golden_answers`` and ``supporting``; empty if its log is gone, or has something else in its place meanwhile."""
    if not (row := _logged(entry)):
        return {}
    of_the_question = ("question", "golden_answers", "supporting")
    return shown(row, tokens=False) | {name: row.get(name) for name in of_the_question}


def _logged(entry: Entry) -> dict[str, Any]:
    """The row of an episode, whole; empty as ``read_episode`` says."""
    try:
        with entry.file.open("rb") as file:
            row = logged(file, entry.start)
    except OSError:
        return {}
    now = _entry(entry.file, entry.start, row, entry.held_out)
    return row if now is not None and replace(now, steps=entry.steps) == entry else {}


@dataclass
class Filters:
    """Which episodes are listed: those that pass all of what is set."""

    score: str = ""
    """``<0.5``, ``=1``, ``0.2..0.6``: see ``in_range``."""
    stop: str = ""
    faults: bool = False
    use: str = ""
    """``training`` or ``held out``."""
    questions: frozenset[str] = frozenset()
    text: str = ""
    """In the question, its answers, or anything that was written or read."""

    def chosen(
        self, entries: Sequence[Entry], looked: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Entry]:
        """Of ``entries`` those that pass. ``looked`` is told how many of how many were searched for a text."""
        within = in_range(self.score) if self.score else None
        found = [
            e
            for e in entries
            if (within is None or (e.score is not None and within(e.score)))
            and (not self.stop or e.stop == self.stop)
            and (not self.faults or e.fault)
            and (not self.use or e.held_out == (self.use == "held out"))
            and (not self.questions or e.question_id in self.questions)
        ]
        return list(self._with_text(found, looked)) if self.text else found

    def _with_text(self, entries: Sequence[Entry], looked: Callable[[int, int], None]) -> Iterator[Entry]:
        wanted = self.text.casefold()
        for done, entry in enumerate(entries):
            looked(done, len(entries))
            if any(wanted in text.casefold() for text in _texts(_logged(entry))):
                yield entry

    def __str__(self) -> str:
        set_ = [f"score {self.score}" if self.score else "", self.stop, "faults" if self.faults else "", self.use]
        set_ += [f"question {' '.join(sorted(self.questions))}"] if self.questions else []
        set_ += [f"text {self.text!r}"] if self.text else []
        return ", ".join(filter(None, set_)) or "all episodes"


def in_range(text: str) -> Callable[[float], bool]:
    """The numbers that ``text`` describes: ``<0.5``, ``>=1``, ``=1`` or ``1``, ``0.2..0.6``. Raises ``ValueError``.

    >>> [in_range(text)(0.5) for text in ("<0.5", "0.5", "0.2..0.6")]
    [False, True, True]
    """
    match = _RANGE.fullmatch(text)
    if match is None or (match[1] and match[3]):
        raise ValueError(f"{text!r}: write <0.5, >=1, =1 or 0.2..0.6")
    number = float(match[2])
    if match[3]:
        if number > (last := float(match[3])):
            raise ValueError(f"{text!r}: no number is in it; write the smaller one first, {match[3]}..{match[2]}")
        return lambda value: number <= value <= last
    return {
        "<": lambda value: value < number,
        "<=": lambda value: value <= number,
        ">": lambda value: value > number,
        ">=": lambda value: value >= number,
    }.get(match[1] or "=", lambda value: abs(value - number) < 5e-4)  # rewards are shown with three decimals


def _texts(row: dict[str, Any]) -> Iterator[str]:
    """What was asked, written or read, whole, whatever of it is shown; not the names of tools and states."""
    yield from (row.get(name) or "" for name in ("question", "answer"))
    for name in ("golden_answers", "supporting"):
        yield from filter(None, row.get(name) or ())
    for turn in filter(None, row.get("turns") or ()):
        yield turn.get("text") or ""
        if turn.get("observation") is not None:
            yield turn["observation"]
        else:  # a log of an earlier version has the titles alone
            for call in filter(None, turn.get("calls") or ()):
                yield from filter(None, call.get("titles") or ())
