"""The episodes of a run in a list, as the terminal view filters and searches them. The logs stay on the disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.records import StopReason
from tracking.trajectories import EVALUATIONS, TRAJECTORIES
from tracking.view.episodes import logged, shown
from tracking.view.lines import Notices, lines
from tracking.view.shapes import HEAD

FAULTS = frozenset(str(reason) for reason in StopReason if reason.is_fault)
_RANGE = re.compile(r"\s*(<=|>=|<|>|=)?\s*(-?\d*\.?\d+)\s*(?:(?:\.\.|to)\s*(-?\d*\.?\d+)\s*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An episode: where it stands, and what the list shows of it."""

    file: Path
    start: int
    when: int
    """The batch of an episode of training, the step of an evaluation."""
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
    def place(self) -> tuple[int, bool, int, int]:
        """Its place in the run; the members of a group lie together."""
        return self.when, self.held_out, self.order, self.member


def read_entries(folder: Path, notices: Notices) -> list[Entry]:
    """All episodes that the run in ``folder`` has logged, in the order in which they were played."""
    found = [
        entry
        for name, held_out in ((TRAJECTORIES, False), (EVALUATIONS, True))
        for line in lines(folder / name, notices, HEAD)
        if (entry := _entry(folder / name, line.start, line.row, held_out)) is not None
    ]
    return sorted(found, key=lambda entry: entry.place)


def _entry(file: Path, start: int, row: dict[str, Any], held_out: bool) -> Entry | None:
    when, question = row.get("step" if held_out else "batch"), row.get("question_id")
    if when is None or question is None:
        return None
    stop = str(row.get("stop_reason"))
    return Entry(
        file=file,
        start=start,
        when=when,
        held_out=held_out,
        order=row.get("order") or 0,
        member=row.get("sample" if held_out else "member") or 0,
        question_id=question[:SHORT],
        question=(row.get("question") or "")[:SHORT],
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
    try:
        with entry.file.open("rb") as file:
            row = logged(file, entry.start)
    except OSError:
        return {}
    if _entry(entry.file, entry.start, row, entry.held_out) != entry:
        return {}
    of_the_question = ("question", "golden_answers", "supporting")
    return shown(row, tokens=False) | {name: row.get(name) for name in of_the_question}


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
            if any(wanted in text.casefold() for text in _texts(read_episode(entry))):
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
        return lambda value: number <= value <= float(match[3])
    return {
        "<": lambda value: value < number,
        "<=": lambda value: value <= number,
        ">": lambda value: value > number,
        ">=": lambda value: value >= number,
    }.get(match[1] or "=", lambda value: abs(value - number) < 5e-4)  # rewards are shown with three decimals


def _texts(episode: dict[str, Any]) -> Iterator[str]:
    """What was asked, written or read; not the names of tools and states."""
    yield from (episode[name] for name in ("question", "answer") if isinstance(episode.get(name), str))
    for name in ("golden_answers", "supporting"):
        yield from (text for text in episode.get(name) or () if isinstance(text, str))
    for turn in episode.get("turns") or ():
        yield turn.get("text") or ""
        yield "".join(piece for piece, _ in turn.get("observation") or ())
