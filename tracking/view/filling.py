"""Which episodes a report has room for: the most wanted first, until the page is full."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tracking.trajectories import EVALUATIONS, TRAJECTORIES
from tracking.view.episodes import Evaluations, Place, Training, logged, shown
from tracking.view.groups import MAX_QUESTION, Questions
from tracking.view.lines import clean
from tracking.view.page import ELEMENT, Page, encoded


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
    """The best and the worst episode of each group of a question, the first ones on ties; a group of equals has one."""
    groups: dict[int, list[Place]] = {}
    for place in places:
        groups.setdefault(place.order, []).append(place)
    return [place for own in groups.values() for place in _extremes(own)]


def _extremes(places: list[Place]) -> list[Place]:
    scored = [p for p in places if p.reward is not None]
    if not scored:
        return places[:1]
    best = max(scored, key=lambda p: p.reward or 0.0)
    worst = min(scored, key=lambda p: p.reward or 0.0)
    return [best] if best.reward == worst.reward else [best, worst]


class Filler:
    """Puts episodes of one run into a page, up to ``limit`` bytes of the page in all. The training episodes have their
    tokens with ``tokens``; those that are asked for have them in any case."""

    def __init__(self, page: Page, limit: int, run: str, questions: Questions, *, tokens: bool) -> None:
        self._page = page
        self._limit = limit - page.rest
        self._run = run
        self._questions = questions
        self._tokens = tokens
        self._taken: set[tuple[str, int]] = set()
        """The episodes that are in the page: log and place."""
        self.episodes = 0

    def asked(self, folder: Path, training: Training, evaluations: Evaluations, questions: Collection[str]) -> None:
        """All episodes of ``questions``."""
        if evaluations.places:
            with (folder / EVALUATIONS).open("rb") as file:
                for step, of_step in evaluations.places.items():
                    wanted = {q: of_step[q] for q in questions if q in of_step}
                    self._evaluation(file, f"{step}-asked", wanted, self._limit)
        if training.places:
            with (folder / TRAJECTORIES).open("rb") as file:
                for batch, groups in training.places.items():
                    self._batch(file, f"{batch}-asked", {q: groups[q] for q in questions if q in groups}, tokens=True)

    def evaluations(self, folder: Path, found: Evaluations, share: int) -> None:
        """The last and the first evaluation, then the others, up to ``share`` bytes; changed questions come first."""
        steps = sorted(found.places)
        if not steps:
            return
        end = min(self._page.size + share, self._limit)
        first, last = found.em(steps[0]), found.em(steps[-1])
        with (folder / EVALUATIONS).open("rb") as file:
            for step in dict.fromkeys([steps[-1], *spread(steps)]):
                places = found.places[step]
                order = sorted(places, key=lambda q: first.get(q) == last.get(q))
                self._evaluation(file, f"{step}", {q: places[q] for q in order}, end)

    def training(self, folder: Path, found: Training) -> None:
        """The best and the worst of each group, then the others; batches spread over the run."""
        if not found.places:
            return
        with (folder / TRAJECTORIES).open("rb") as file:
            for batch in spread(found.places):
                chosen = {q: extremes(places) for q, places in found.places[batch].items()}
                if not self._batch(file, f"{batch}", chosen, tokens=self._tokens):
                    return
            for batch in spread(found.places):
                if not self._batch(file, f"{batch}-rest", found.places[batch], tokens=self._tokens):
                    return

    def _batch(self, file: BinaryIO, name: str, groups: Mapping[str, list[Place]], *, tokens: bool) -> bool:
        """One element with what fits of ``groups``; whether all did."""
        wanted = [(q, place, {"member": place.member}) for q, places in groups.items() for place in places]
        return self._add(file, f"b-{name}", wanted, self._limit, held_out=False, tokens=tokens)

    def _evaluation(self, file: BinaryIO, name: str, asked: Mapping[str, dict[int, Place]], end: int) -> bool:
        """The same of an evaluation's questions, up to ``end`` bytes of the page; a sample has its number."""
        wanted = [
            (q, place, {"sample": place.member} if len(samples) > 1 else {})
            for q, samples in asked.items()
            for place in samples.values()
        ]
        return self._add(file, f"e-{name}", wanted, end, held_out=True, tokens=False)

    def _add(
        self,
        file: BinaryIO,
        name: str,
        wanted: list[tuple[str, Place, dict[str, int]]],
        end: int,
        *,
        held_out: bool,
        tokens: bool,
    ) -> bool:
        """Adds the element ``name`` with what fits of ``wanted``, each with what is to be said of it; whether all did.
        What is there already, and what is of a question that the tables don't have, is passed over."""
        found: dict[str, list[dict[str, Any]]] = {}
        size, whole = ELEMENT + 64, True
        for question, place, more in wanted:
            key, number = (file.name, place.start), self._questions.numbers.get((question, held_out))
            if key in self._taken or number is None:
                continue
            told = logged(file, place.start)
            row = shown(told, tokens=tokens) | more
            if str(number) not in found and len(told.get("question") or "") > MAX_QUESTION:
                row["question"] = clean(told["question"])  # the list of questions has its beginning
            size += len(encoded(row)) + len(f'"{number}":[],,')
            if self._page.size + size > end:
                whole = False
                break
            self._taken.add(key)
            found.setdefault(str(number), []).append(row)
            self.episodes += 1
        if found:
            self._page.add(f"{self._run}-{name}", encoded(found))
        return whole
