"""What was made of which questions, and why not of the others."""

from __future__ import annotations

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Any

from agent.errors import UserError, commonest
from agent.readable import WRONG, json_of
from retrieval_service.whole import written
from tasks.making.episodes import Written
from tasks.notices import some

FILE, REPORT = "experts.jsonl", "experts_report.json"
"""In the folder of the run that made them."""
BUCKETS = ("1", "2", "3+")
"""Trajectories by their searches."""


class Why(StrEnum):
    """Why a question gave no trajectory, or an episode wasn't kept."""

    UNNAMED = "names no supporting documents"
    LACKING = "the corpus lacks a supporting document"
    NOT_FOUND = "no query finds a supporting document"
    NOT_THERE = "the answer isn't in the supporting documents as they are shown"
    SEARCHES = "needs more searches than agent.max_searches"
    LONG = "beyond agent's limits of tokens (prompt, response, turn), or with a control token of the model"
    FORM = "can't be written as a row"
    SHARE = "its share of experts.search_shares is full"
    COUNT = "experts.count was reached"
    UNANSWERED = "no answer"
    WRONG = "a wrong answer"
    EVIDENCE = "not all of the evidence"
    LIMIT = "searched beyond agent.max_searches"
    DUPLICATE = "the same queries as another episode of its question"
    FAULT = "a fault"


UNTRIED = frozenset({Why.UNNAMED, Why.LACKING})
"""Of questions that nothing is played for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expert:
    """A trajectory that may be taken."""

    written: Written
    searches: int
    closed: bool
    """Its answer is yes or no, which stands in no document."""
    queries: tuple[str, ...] = ()
    """What each query was made of (``evidence.By``); nothing of a teacher's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """What one question gave."""

    experts: tuple[tuple[Expert, ...], ...] = ()
    """Of each of these at most one is taken: they are the same episode with more searches or fewer."""
    refused: tuple[Why, ...] = ()
    """Of a teacher one for each episode that isn't kept."""
    faults: tuple[str, ...] = ()
    detail: str = ""
    """What ``refused`` is about, such as the document that isn't found."""
    episodes: int = 0
    """How many a teacher played."""

    @property
    def broken(self) -> bool:
        """Whether nothing but faults came of it."""
        return bool(self.faults) and not self.experts and not self.refused

    @property
    def played(self) -> bool:
        """Whether something came of it that isn't known beforehand."""
        return bool(self.experts) or not UNTRIED.issuperset(self.refused)

    @property
    def why(self) -> Why:
        """Why there are no experts."""
        return Counter(self.refused).most_common(1)[0][0] if self.refused else Why.FAULT


class Selection:
    """Takes up to ``count`` experts (0: all), with one, two and more searches in the proportions of ``shares``."""

    def __init__(self, count: int, shares: list[float] | None) -> None:
        self._count = count
        self.wanted = _parts(count, shares) if shares is not None else None
        """How many of each bucket."""
        self.taken: Counter[int] = Counter()

    @property
    def wanting(self) -> float:
        """How many more are taken; infinity without a ``count``."""
        return self._count - self.taken.total() if self._count else inf

    @property
    def full(self) -> bool:
        """Whether nothing more is taken."""
        return self.wanting <= 0

    def take(self, alternatives: tuple[Expert, ...]) -> Expert | None:
        """The one of ``alternatives`` whose bucket lacks most of its share; None if there is no room for any."""
        if self.full:
            return None
        if self.wanted is None:
            chosen = alternatives[0]
        else:
            wanted = self.wanted
            room = [expert for expert in alternatives if self.taken[bucket(expert)] < wanted[bucket(expert)]]
            if not room:
                return None
            chosen = max(room, key=lambda e: 1 - self.taken[bucket(e)] / wanted[bucket(e)])
        self.taken[bucket(chosen)] += 1
        return chosen


def bucket(expert: Expert) -> int:
    """Which of ``BUCKETS`` it is in."""
    return min(max(expert.searches, 1), len(BUCKETS)) - 1


def _parts(count: int, shares: list[float]) -> list[int]:
    """``count`` in whole numbers as near to ``shares`` as can be."""
    exact = [count * share / sum(shares) for share in shares]
    parts = [int(part) for part in exact]
    nearest = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for at in nearest[: count - sum(parts)]:
        parts[at] += 1
    return parts


@dataclass
class Made:
    """The experts of one making, and the books."""

    offered: int
    """Questions that there were."""
    selection: Selection
    teacher: bool = False
    experts: list[Expert] = field(default_factory=list)
    tried: int = 0
    questions: int = 0
    """Those of the tried ones that gave a trajectory, whether or not it was taken."""
    episodes: int = 0
    refused: Counter[Why] = field(default_factory=Counter)
    """Episodes of a teacher that weren't kept: what isn't here, or a fault, is in the file."""
    left_out: dict[Why, list[tuple[str, str]]] = field(default_factory=dict)
    """Questions that gave no trajectory, or none that was taken: id and detail, by reason."""
    faults: list[str] = field(default_factory=list)
    broken: str = ""
    """Why the making ended early."""
    stopped: signal.Signals | None = None
    """What has come from outside meanwhile: nothing else is to follow."""

    def add(self, question_id: str, attempt: Attempt) -> None:
        """Enters what a question gave, and takes what there is room for."""
        self.tried += 1
        self.episodes += attempt.episodes
        self.refused.update(attempt.refused if attempt.episodes else ())
        self.faults += attempt.faults
        self.questions += bool(attempt.experts)
        passed_over: list[Why] = []
        for alternatives in attempt.experts:
            full = self.selection.full
            if (expert := self.selection.take(alternatives)) is not None:
                self.experts.append(expert)
            else:
                passed_over.append(Why.COUNT if full else Why.SHARE)
        self.refused.update(passed_over if attempt.episodes else ())
        if len(passed_over) == len(attempt.experts):
            why = passed_over[0] if passed_over else attempt.why
            self.left_out.setdefault(why, []).append((question_id, attempt.detail))

    @property
    def by_searches(self) -> dict[str, int]:
        """Trajectories in each bucket."""
        counts = Counter(bucket(e) for e in self.experts)
        return {name: counts[at] for at, name in enumerate(BUCKETS)}

    def lines(self) -> Iterator[str]:
        """What a person is told."""
        searches = ", ".join(f"{count} with {name}" for name, count in self.by_searches.items())
        closed = sum(e.closed for e in self.experts)
        yield (
            f"{len(self.experts):,} expert trajectories of {self.tried:,} questions tried, {self.questions:,} of which "
            f"gave one ({self.offered:,} there are); searches: {searches}; {closed} answers are yes or no"
        )
        if queries := self.queries():
            yield "queries: " + ", ".join(f"{count} by {by}" for by, count in queries.items())
        if self.selection.wanted is not None and not self.selection.full:
            wanted = dict(zip(BUCKETS, self.selection.wanted, strict=True))
            short = [f"{wanted[b]} with {b} searches, made {n}" for b, n in self.by_searches.items() if n < wanted[b]]
            yield "experts.search_shares: fewer than wanted: " + "; ".join(short)
        if self.teacher:
            kept, faults = len(self.experts), len(self.faults)
            others = "".join(f"; {count} {why}" for why, count in self.refused.most_common())
            yield f"{self.episodes:,} episodes of the teacher: {kept} kept{others}; {faults} faults"
        for why, left in sorted(self.left_out.items(), key=lambda item: -len(item[1])):
            none = "none that is taken" if why in (Why.SHARE, Why.COUNT) else "none"
            yield f"{len(left)} questions gave {none}: {why} ({some([name for name, _ in left])})"
        if self.faults:
            yield f"faults, counted apart: {commonest(self.faults)}"

    def queries(self) -> dict[str, int]:
        """What the queries of the trajectories were made of; empty of a teacher's."""
        return dict(Counter(by for e in self.experts for by in e.queries).most_common())

    def report(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "questions": self.offered,
            "tried": self.tried,
            "gave_one": self.questions,
            "trajectories": len(self.experts),
            "searches": self.by_searches,
            "yes_no": sum(e.closed for e in self.experts),
            "queries": self.queries(),
            "left_out": {str(why): len(left) for why, left in self.left_out.items()},
            "left_out_questions": {str(why): [list(item) for item in left] for why, left in self.left_out.items()},
            "episodes": self.episodes if self.teacher else None,
            "not_kept": {str(why): n for why, n in self.refused.items()} if self.teacher else None,
            "faults": len(self.faults),
            "fault": commonest(self.faults) if self.faults else "",
        }

    def write(self, folder: Path, settings: str = "") -> Path:
        """The file of trajectories, with its report beside it. ``settings`` names all that decides them; by it a file
        that is whole is known again (``whole``)."""
        rows = "".join(map(_line, self.experts))
        with written(folder / FILE) as file:  # in whose place is what was kept so far
            file.write(rows.encode())
        ended = self.experts and not self.broken and self.stopped is None
        of = {"of": _seal(settings, rows)} if ended else {}
        report = json.dumps(self.report() | of, ensure_ascii=False, indent=1)
        with written(folder / REPORT) as file:
            file.write(f"{report}\n".encode())
        return folder / FILE


class Kept:
    """Writes each expert into the file in ``folder`` as it is taken: a teacher's may be hours of work, and paid for.

    Raises ``UserError`` where the file is there already, with another making's: nothing goes on with it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        if self._file.exists() and self._file.stat().st_size:
            raise UserError(
                f"{self._file}: is there already, of another making, and would be replaced; move it away, or set "
                "output_dir=FOLDER to another one"
            )

    def __call__(self, expert: Expert) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(_line(expert))


def _line(expert: Expert) -> str:
    return json.dumps(expert.written.row, ensure_ascii=False) + "\n"


def whole(folder: Path, settings: str) -> bool:
    """Whether the file of trajectories in ``folder`` is all that ``settings`` give, and as it was written."""
    try:
        report = json_of((folder / REPORT).read_text(encoding="utf-8"))
        return bool(report["of"] == _seal(settings, (folder / FILE).read_text(encoding="utf-8")))
    except (OSError, *WRONG):
        return False


def _seal(settings: str, rows: str) -> str:
    return hashlib.blake2b(f"{settings}\n{rows}".encode(), digest_size=16).hexdigest()
