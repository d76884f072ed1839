"""Which episodes a report has room for, and an episode as the report holds it.

The logs may be many times larger than memory: they are read twice, a line at a time. First where each episode stands,
then those that are shown, the most wanted first, until the page is full.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tracking.trajectories import EVALUATIONS, TRAJECTORIES
from tracking.view.groups import Questions
from tracking.view.lines import Notices, clean, lines, parsed
from tracking.view.page import ELEMENT, Page, encoded

PLAIN, PASSAGE, SUPPORTING, FOUND = range(4)
"""Kinds of a piece of an observation; ``FOUND`` is a supporting passage that the episode sees for the first time."""


@dataclass(frozen=True, slots=True)
class Place:
    """An episode in its log."""

    start: int
    member: int
    reward: float | None


@dataclass
class Training:
    """The episodes of training by batch and question."""

    places: dict[int, dict[str, list[Place]]] = field(default_factory=dict)
    groups: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    """Of each group what its episodes say, for a run that has no ``groups.jsonl``."""
    questions: set[str] = field(default_factory=set)
    episodes: int = 0


@dataclass
class Evaluations:
    """The episodes of evaluations by step and question, and what they scored; a question asked twice counts once."""

    places: dict[int, dict[str, int]] = field(default_factory=dict)
    em: dict[int, dict[str, float | None]] = field(default_factory=dict)
    f1: dict[int, dict[str, float | None]] = field(default_factory=dict)
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def episodes(self) -> int:
        return sum(map(len, self.places.values()))


def find_training(folder: Path, notices: Notices, *, groups: bool) -> Training:
    """Where the episodes of training are; with ``groups``, also what they say of their groups."""
    found = Training()
    for line in lines(folder / TRAJECTORIES, notices):
        row = line.row
        batch, question = row.get("batch"), row.get("question_id")
        if not isinstance(batch, int) or not isinstance(question, str):
            continue
        there = found.places.setdefault(batch, {}).setdefault(question, [])
        reward = row.get("reward")
        place = Place(line.start, row.get("member", len(there)), reward if isinstance(reward, int | float) else None)
        there.append(place)
        found.questions.add(question)
        found.episodes += 1
        if groups:
            _told(found.groups, batch, question, row)
    return found


def _told(groups: dict[tuple[int, str], dict[str, Any]], batch: int, question: str, row: dict[str, Any]) -> None:
    names = ("batch", "order", "version", "question_id", "question", "golden_answers", "state", "accepted", "worker")
    group = groups.setdefault(
        (batch, question),
        {name: row.get(name) for name in names}
        | {name: [] for name in ("rewards", "outcomes", "evidence", "searches", "tokens", "stops")},
    )
    for name, key in (
        ("rewards", "reward"), ("outcomes", "outcome"), ("evidence", "evidence"), ("searches", "searches"),
        ("tokens", "action_tokens"), ("stops", "stop_reason"),
    ):  # fmt: skip
        group[name].append(row.get(key))


def find_evaluations(folder: Path, notices: Notices) -> Evaluations:
    """Where the episodes of evaluations are, and what they scored."""
    found = Evaluations()
    for line in lines(folder / EVALUATIONS, notices):
        row = line.row
        step, question = row.get("step"), row.get("question_id")
        if not isinstance(step, int) or not isinstance(question, str):
            continue
        found.places.setdefault(step, {})[question] = line.start
        found.em.setdefault(step, {})[question] = row.get("em")
        found.f1.setdefault(step, {})[question] = row.get("f1")
        if question not in found.questions:
            names = ("question_id", "question", "golden_answers", "supporting", "kind")
            found.questions[question] = {name: row.get(name) for name in names}
    return found


# --- choosing --------------------------------------------------------------------------------------


def spread(values: Iterable[int]) -> Iterator[int]:
    """``values`` so that each beginning of the order is spread over all of them: ends, middle, quarters, …

    >>> list(spread([1, 2, 3, 4, 5]))
    [1, 5, 3, 2, 4]
    """
    ordered = sorted(values)
    if not ordered:
        return
    yield ordered[0]
    if len(ordered) > 1:
        yield ordered[-1]
    gaps = [(0, len(ordered) - 1)]
    while gaps:
        inner: list[tuple[int, int]] = []
        for low, high in gaps:
            if high - low < 2:
                continue
            middle = (low + high) // 2
            yield ordered[middle]
            inner += [(low, middle), (middle, high)]
        gaps = inner


def extremes(places: list[Place]) -> list[Place]:
    """The best and the worst episode of a group, the first ones on ties; a group of equals has one."""
    scored = [p for p in places if p.reward is not None]
    if not scored:
        return places[:1]
    best = max(scored, key=lambda p: p.reward or 0.0)
    worst = min(scored, key=lambda p: p.reward or 0.0)
    return [best] if best.reward == worst.reward else [best, worst]


@dataclass
class Shown:
    """How much of a log a page shows."""

    episodes: int = 0
    full: bool = False
    """Something was left out for want of room."""


class Filler:
    """Puts episodes of one run into a page, up to ``limit`` bytes of the page in all."""

    def __init__(self, page: Page, limit: int, run: str, questions: Questions, *, tokens: bool) -> None:
        self._page = page
        self._limit = limit - page.rest
        self._run = run
        self._questions = questions
        self._tokens = tokens
        self.shown = Shown()

    def training(self, folder: Path, found: Training, asked: Collection[str]) -> None:
        """Those asked for, then the best and the worst of each group, then the others; batches spread over the run."""
        if not found.places:
            return
        taken: set[int] = set()
        with (folder / TRAJECTORIES).open("rb") as file:
            for batch, groups in found.places.items():
                self._batch(file, f"{batch}-asked", {q: groups[q] for q in asked if q in groups}, taken, tokens=True)
            for batch in spread(found.places):
                chosen = {q: extremes(places) for q, places in found.places[batch].items()}
                if not self._batch(file, f"{batch}", chosen, taken):
                    return
            for batch in spread(found.places):
                if not self._batch(file, f"{batch}-rest", found.places[batch], taken):
                    return

    def _batch(
        self,
        file: BinaryIO,
        name: str,
        groups: dict[str, list[Place]],
        taken: set[int],
        *,
        tokens: bool | None = None,
    ) -> bool:
        """One element with what fits of ``groups``; whether all did. Episodes in ``taken`` are there already."""
        parts: list[tuple[int, dict[str, Any]]] = []
        size, whole = ELEMENT + 64, True
        for question, places in groups.items():
            if question not in self._questions.numbers:
                continue  # older than the table of groups goes back
            for place in places:
                if place.start in taken:
                    continue
                row = self._row(file, place.start, self._tokens if tokens is None else tokens)
                number = self._questions.numbers[question]
                more = len(encoded(row)) + len(str(number)) + 8
                if self._page.size + size + more > self._limit:
                    self.shown.full, whole = True, False
                    break
                size += more
                taken.add(place.start)
                parts.append((number, row | {"member": place.member}))
            if not whole:
                break
        self._add(f"{self._run}-b-{name}", parts)
        return whole

    def evaluations(self, folder: Path, found: Evaluations, share: int) -> None:
        """The last and the first evaluation, then the others, up to ``share`` bytes; changed questions come first."""
        steps = sorted(found.places)
        if not steps:
            return
        end = min(self._page.size + share, self._limit)
        first, last = found.em[steps[0]], found.em[steps[-1]]
        with (folder / EVALUATIONS).open("rb") as file:
            for step in dict.fromkeys([steps[-1], *spread(steps)]):
                places = found.places[step]
                order = sorted(places, key=lambda q: first.get(q) == last.get(q))
                self._evaluation(file, step, [(q, places[q]) for q in order], end)

    def _evaluation(self, file: BinaryIO, step: int, places: list[tuple[str, int]], end: int) -> None:
        parts: list[tuple[int, dict[str, Any]]] = []
        size = ELEMENT + 64
        for question, start in places:
            row, number = self._row(file, start, False), self._questions.numbers.get(question)
            if number is None:
                continue
            more = len(encoded(row)) + len(str(number)) + 8
            if self._page.size + size + more > end:
                self.shown.full = True
                break
            size += more
            parts.append((number, row))
        self._add(f"{self._run}-e-{step}", parts)

    def _add(self, name: str, parts: list[tuple[int, dict[str, Any]]]) -> None:
        if not parts:
            return
        grouped: dict[str, list[dict[str, Any]]] = {}
        for number, row in parts:
            grouped.setdefault(str(number), []).append(row)
        self._page.add(name, encoded(grouped))
        self.shown.episodes += len(parts)

    def _row(self, file: BinaryIO, start: int, tokens: bool) -> dict[str, Any]:
        file.seek(start)
        return shown(parsed(file.readline()) or {}, tokens=tokens)


# --- an episode as the page holds it ---------------------------------------------------------------

_OF_THE_QUESTION = ("question_id", "question", "golden_answers", "supporting", "kind", "batch", "step", "turns")


def shown(row: dict[str, Any], *, tokens: bool) -> dict[str, Any]:
    """A row of a log without what the question's row says, its observations in pieces."""
    episode = {key: clean(value) for key, value in row.items() if key not in _OF_THE_QUESTION and value is not None}
    turns = row.get("turns")
    seen: set[str] = set()
    episode["turns"] = [_turn(t, seen, tokens) for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []
    return episode


def _turn(turn: dict[str, Any], seen: set[str], tokens: bool) -> dict[str, Any]:
    names = ("text", "found", *(("tokens", "logprobs", "versions") if tokens else ()))
    kept = {name: clean(turn[name]) for name in names if turn.get(name)}
    calls = [call for call in turn.get("calls") or [] if isinstance(call, dict)]
    inside = ("titles", "ids", "supporting")
    kept["calls"] = [clean({k: v for k, v in call.items() if k not in inside}) for call in calls]
    passages = [passage for call in calls for passage in _passages(call)]
    observation = turn.get("observation")
    if isinstance(observation, str):
        kept["observation"] = [[clean(text), kind] for text, kind in pieces(observation, passages, seen)]
    elif passages:  # a log of an earlier version has the titles alone
        kept["observation"] = [[clean(p.title) + "\n", p.kind(seen)] for p in passages]
    return kept


@dataclass(frozen=True, slots=True)
class _Passage:
    number: int
    """Of its result, from 1: as ``agent.dialogue.Dialogue`` lists it."""
    title: str
    name: str
    """Its id, or its title where the log has none."""
    wanted: bool

    def kind(self, seen: set[str]) -> int:
        """Which kind of a piece it is; ``seen`` are the names of those before it, and takes it in."""
        if not self.wanted:
            return PASSAGE
        kind = SUPPORTING if self.name in seen else FOUND
        seen.add(self.name)
        return kind

    @property
    def head(self) -> re.Pattern[str]:
        """How its first line begins."""
        title = self.title.replace("\n", " ")
        return re.compile(rf'^[^\n"]{{0,40}}\b{self.number}: ' + (f'"{re.escape(title)}"' if title else ""), re.M)


def _passages(call: dict[str, Any]) -> list[_Passage]:
    titles, ids, wanted = ([*(call.get(name) or ())] for name in ("titles", "ids", "supporting"))
    return [
        _Passage(at + 1, str(title), str(ids[at] if at < len(ids) else title), at in wanted)
        for at, title in enumerate(titles)
    ]


def pieces(observation: str, passages: list[_Passage], seen: set[str]) -> list[tuple[str, int]]:
    """``observation`` in pieces that join to what it was, one for each of ``passages``.

    An observation whose passages can't be told apart is one piece.
    """
    cuts, at = [], 0
    for passage in passages:
        found = passage.head.search(observation, at)
        if found is None:
            return [(observation, PLAIN)]
        cuts.append(found.start())
        at = found.end()
    if not cuts:
        return [(observation, PLAIN)] if observation else []
    ends = [*cuts[1:], len(observation)]
    before = [(observation[: cuts[0]], PLAIN)] if cuts[0] else []
    return before + [
        (observation[start:end], passage.kind(seen)) for passage, start, end in zip(passages, cuts, ends, strict=True)
    ]
