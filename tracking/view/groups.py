"""The table of draws: a row for each group that was played, from ``groups.jsonl`` and ``draws.parquet``."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tracking.shapes import GROUP, QUESTION
from tracking.trajectories import GROUPS
from tracking.view.episodes import group_of
from tracking.view.lines import MAX_CELL, Notices, clean, lines, shortened

MOST = 30_000
"""Groups in a report: as many bytes as half of it, at 200 a group."""
MAX_QUESTION = 500
"""Characters of a text in the list of questions; an episode has its question whole."""
PLAIN = ("batch", "order", "version", "state", "before", "after", "accepted", "recycled", "cut_short", "continued")
LISTS = ("rewards", "outcomes", "evidence", "advantages", "searches", "tokens", "stops", "faults")
NAMES = (*PLAIN, *LISTS, "discarded", "worker", "seconds")


@dataclass
class Questions:
    """The questions of a report, by number. What a row of training doesn't say of its own, ``told`` may, by its id.

    A held-out question may have the id of one to train on, as where both files count from 0: it is another.
    """

    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    numbers: dict[tuple[str, bool], int] = field(default_factory=dict)
    """By its id, and whether it is held out."""
    rows: list[list[Any]] = field(default_factory=list)

    def number(self, row: dict[str, Any], *, held_out: bool = False) -> int:
        """Of the question that a row of a log is about; new ones are taken in."""
        name = str(row.get("question_id", ""))
        if (name, held_out) not in self.numbers:
            self.numbers[name, held_out] = len(self.rows)
            told = {} if held_out else self.told.get(name, {})
            texts = [told.get(key) if row.get(key) is None else row[key] for key in QUESTION if key != "question_id"]
            self.rows.append([clean(text, MAX_QUESTION) for text in (name, *texts)])
        return self.numbers[name, held_out]

    def copy(self) -> Questions:
        return Questions(self.told, dict(self.numbers), [list(row) for row in self.rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """The groups that a run has played."""

    rows: list[dict[str, Any]]
    """The newest ``MOST``, and all of the questions that are asked for, sorted by batch and place in it; each with
    ``draw``: which of its question's draws it is, from 1."""
    count: int
    """How many there are, those without a row here too."""
    first: int | None
    """The batch of the first of them; None without any."""


def draws(folder: Path, notices: Notices, *, instead: list[dict[str, Any]], asked: Collection[str] = ()) -> Played:
    """The groups of the run in ``folder``; those of the questions that are ``asked`` for are all there.

    A run without ``groups.jsonl`` has the groups ``instead``, made of the episodes that it logged.
    """
    kept: deque[dict[str, Any]] = deque(maxlen=MOST)  # all of a long run's would take gigabytes
    wanted: list[dict[str, Any]] = []
    played: list[tuple[int, int, str]] = []
    for row in chain((line.row for line in lines(folder / GROUPS, notices, GROUP)), instead):
        if row.get("batch") is None or row.get("question_id") is None:
            continue
        played.append(group_of(row))
        (wanted if row["question_id"] in asked else kept).append(row)
    rows = sorted((*wanted, *kept), key=lambda row: group_of(row)[:2])
    fates = _fates(folder, notices)
    # A batch may have a question twice: a fault gave the first of its groups back.
    places: dict[str, set[tuple[int, int]]] = {}
    for batch, order, name in (*fates, *played):
        places.setdefault(name, set()).add((batch, order))
    drawn = {name: sorted(found) for name, found in places.items()}
    for row in rows:
        key = group_of(row)
        row["draw"] = bisect_right(drawn[key[2]], key[:2])
        if (fate := fates.get(key)) is not None:
            row["before"], row["after"], row["accepted"] = fate
            row["recycled"] = row["before"] not in ("unseen", "consumed")
    return Played(rows=rows, count=len(played), first=min((batch for batch, *_ in played), default=None))


def newest(rows: list[dict[str, Any]], count: int, asked: Collection[str]) -> list[dict[str, Any]]:
    """``count`` of ``rows`` in their order: those of the questions that are ``asked`` for, then the newest."""
    order = sorted(range(len(rows)), key=lambda at: str(rows[at].get("question_id")) in asked)
    return [rows[at] for at in sorted(order[len(order) - count :])]


def table(rows: list[dict[str, Any]], questions: Questions) -> dict[str, list[Any]]:
    """The columns of the table: ``question`` (a number of ``questions``), ``draw`` and ``NAMES``."""
    columns: dict[str, list[Any]] = {name: [] for name in ("question", "draw", *NAMES)}
    for row in rows:
        columns["question"].append(questions.number(row))
        for key in ("draw", *NAMES):
            columns[key].append(clean(row.get(key), MAX_CELL))
    return _without_repeats(columns)


def say_where(folder: Path, events: Sequence[Mapping[str, Any]], first: int | None, notices: Notices) -> None:
    """A notice of the folders that have the groups before batch ``first``, the first one here: the run was resumed from
    there."""
    paths = [str(e.get("path")) for e in events if e.get("event") == "resumed"]
    others = dict.fromkeys(str(run) for path in paths if (run := Path(path).parent.parent) != folder.absolute())
    if others and first != 0:
        where = shortened(" and ".join(others), MAX_CELL)
        since = "" if first is None else f" before batch {first}"
        notices.add(
            f"the run went on from a checkpoint of another folder: its groups and episodes{since} are in {where}"
        )


def _fates(folder: Path, notices: Notices) -> dict[tuple[int, int, str], tuple[str, str, bool]]:
    """What the pool's own record says of each draw, by ``group_of``: the state before and after, and the verdict.

    Of a run that was resumed in a new folder it has the draws before that, too.
    """
    path = folder / "draws.parquet"
    if not path.is_file():
        notices.add("draws.parquet is missing (a checkpoint writes it): states before and after a draw are not known")
        return {}
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(
            path, columns=["batch", "order", "query_id", "before", "after", "accepted"]
        ).to_pydict()
        return {
            (batch, order, name): (before, after, accepted)
            for batch, order, name, before, after, accepted in zip(*table.values(), strict=True)
            if isinstance(batch, int) and isinstance(order, int) and isinstance(name, str)
        }
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        notices.add(f"draws.parquet can't be read: {error}")
        return {}


def _without_repeats(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Columns of words as ``{"words": […], "at": […]}``: a name that stands in every row costs a digit there."""
    packed: dict[str, Any] = dict(columns)
    for name in ("state", "before", "after", "worker"):
        packed[name] = in_words(columns[name])
    stops = [[word or "–" for word in row or []] for row in columns["stops"]]
    words = sorted({word for row in stops for word in row})
    places = {word: at for at, word in enumerate(words)}
    packed["stops"] = {"words": words, "at": [[places[word] for word in row] for row in stops]}
    return packed


def in_words(values: list[Any]) -> dict[str, list[Any]]:
    """
    >>> in_words(["b", None, "b"])
    {'words': ['b'], 'at': [0, None, 0]}
    """
    words = sorted({str(v) for v in values if v is not None})
    places = {word: at for at, word in enumerate(words)}
    return {"words": words, "at": [None if v is None else places[str(v)] for v in values]}
