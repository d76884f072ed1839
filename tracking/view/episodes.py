"""Where the episodes of a run stand in its logs, and an episode as the report holds it.

The logs may be many times larger than memory: they are read twice, a line at a time. First where each episode stands,
then those that are shown (``tracking.view.filling``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from agent.formats.chat_template import ESCAPES
from tracking.shapes import EPISODE, HEAD, QUESTION, shaped
from tracking.trajectories import EVALUATIONS, TRAJECTORIES
from tracking.view.lines import Notices, clean, lines, parsed

PLAIN, PASSAGE, SUPPORTING, FOUND = range(4)
"""Kinds of a piece of an observation; ``FOUND`` is a supporting passage that the episode sees for the first time."""


@dataclass(frozen=True, slots=True)
class Place:
    """An episode in its log."""

    start: int
    member: int
    """Its number in its group; in an evaluation, among the samples of its question."""
    order: int = 0
    """Its group's place in the batch, which may have a question twice."""
    reward: float | None = None
    em: float | None = None
    f1: float | None = None


@dataclass
class Training:
    """The episodes of training by batch and question."""

    places: dict[int, dict[str, list[Place]]] = field(default_factory=dict)
    groups: dict[tuple[int, int, str], dict[str, Any]] = field(default_factory=dict)
    """Of each group (``group_of``) what its episodes say, for a run that has no ``groups.jsonl``."""
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the first episode of each says of it: ``groups.jsonl`` of an earlier version names no documents."""
    episodes: int = 0


@dataclass
class Evaluations:
    """The episodes of evaluations by step, question and sample; of one that was played twice, the last."""

    places: dict[int, dict[str, dict[int, Place]]] = field(default_factory=dict)
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def episodes(self) -> int:
        return sum(len(samples) for asked in self.places.values() for samples in asked.values())

    def samples(self, step: int) -> int:
        """The most of a question; 0 without any."""
        return max(map(len, self.places.get(step, {}).values()), default=0)

    def em(self, step: int) -> dict[str, float]:
        """Each question's mean over its samples, where one is known."""
        return self._means(step, "em")

    def f1(self, step: int) -> dict[str, float]:
        return self._means(step, "f1")

    def _means(self, step: int, name: str) -> dict[str, float]:
        known = {
            question: [score for place in samples.values() if (score := getattr(place, name)) is not None]
            for question, samples in self.places.get(step, {}).items()
        }
        return {question: sum(scores) / len(scores) for question, scores in known.items() if scores}


def find_training(folder: Path, notices: Notices, *, groups: bool) -> Training:
    """Where the episodes of training are; with ``groups``, also what they say of their groups."""
    found = Training()
    for line in lines(folder / TRAJECTORIES, notices, HEAD):
        row = line.row
        batch, question = row.get("batch"), row.get("question_id")
        if batch is None or question is None:
            continue
        there = found.places.setdefault(batch, {}).setdefault(question, [])
        order, member = row.get("order") or 0, row.get("member")
        if member is None:
            member = sum(place.order == order for place in there)
        there.append(Place(line.start, member, order, reward=row.get("reward")))
        if question not in found.questions:
            found.questions[question] = _of_the_question(row)
        found.episodes += 1
        if groups:
            _told(found.groups, row)
    return found


def group_of(row: dict[str, Any]) -> tuple[int, int, str]:
    """Batch, place in it, and question: which group a row of a log is about. A batch may have a question twice."""
    return row["batch"], row.get("order") or 0, row["question_id"]


def _told(groups: dict[tuple[int, int, str], dict[str, Any]], row: dict[str, Any]) -> None:
    names = ("batch", "order", "version", "question_id", "question", "golden_answers", "state", "accepted", "worker")
    group = groups.setdefault(
        group_of(row),
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
    for line in lines(folder / EVALUATIONS, notices, HEAD):
        row = line.row
        step, question = row.get("step"), row.get("question_id")
        if step is None or question is None:
            continue
        place = Place(line.start, row.get("sample") or 0, em=row.get("em"), f1=row.get("f1"))
        found.places.setdefault(step, {}).setdefault(question, {})[place.member] = place
        if question not in found.questions:
            found.questions[question] = _of_the_question(row)
    return found


def _of_the_question(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in QUESTION}


# --- an episode as the page holds it ---------------------------------------------------------------

_SAID_ELSEWHERE = (*QUESTION, "batch", "step", "sample", "turns")


def logged(file: BinaryIO, start: int) -> dict[str, Any]:
    """The row of an episode in its log; an empty one if there is none."""
    file.seek(start)
    row: dict[str, Any] = shaped(parsed(file.readline()) or {}, EPISODE)
    return row


def shown(row: dict[str, Any], *, tokens: bool) -> dict[str, Any]:
    """A row of a log, as ``logged`` has it, without what the question's row says, its observations in pieces."""
    episode = {key: clean(value) for key, value in row.items() if key not in _SAID_ELSEWHERE and value is not None}
    seen: set[str] = set()
    episode["turns"] = [_turn(turn, seen, tokens) for turn in row.get("turns") or [] if turn is not None]
    return episode


def _turn(turn: dict[str, Any], seen: set[str], tokens: bool) -> dict[str, Any]:
    names = ("text", "found", *(("tokens", "logprobs", "versions") if tokens else ()))
    kept = {name: clean(turn[name]) for name in names if turn.get(name)}
    if not _are_runs(kept.get("versions") or [], len(kept.get("tokens") or [])):
        del kept["versions"]
    calls = [call for call in turn.get("calls") or [] if call is not None]
    inside = ("titles", "ids", "supporting")
    kept["calls"] = [clean({k: v for k, v in call.items() if k not in inside}) for call in calls]
    passages = [passage for call in calls for passage in _passages(call)]
    observation = turn.get("observation")
    if observation is not None:
        kept["observation"] = [[clean(text), kind] for text, kind in pieces(observation, passages, seen)]
    elif passages:  # a log of an earlier version has the titles alone
        kept["observation"] = [[clean(p.title) + "\n", p.kind(seen)] for p in passages]
    return kept


def _are_runs(versions: list[Any], tokens: int) -> bool:
    """Whether ``versions`` are pairs of a version and of how many tokens it wrote: of ``tokens`` at most."""
    pairs = all(run is not None and len(run) == 2 and None not in run and run[1] >= 0 for run in versions)
    return pairs and sum(count for _, count in versions) <= tokens


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
        r"""How its first line begins; in a result that a chat template writes as a string of JSON (Llama 3), behind a
        quote or ``\n``."""
        title = self.title.replace("\n", " ")
        titles = "|".join(re.escape(text) for text in dict.fromkeys(escape(title) for escape in ESCAPES))
        quoted = rf'\\?"(?:{titles})' if title else ""
        return re.compile(rf'(?:^"?|\\n)[^\n"\\]{{0,40}}\b{self.number}: {quoted}', re.M)


def _passages(call: dict[str, Any]) -> list[_Passage]:
    titles, ids, wanted = ([*(call.get(name) or ())] for name in ("titles", "ids", "supporting"))
    return [
        _Passage(at + 1, title or "", (ids[at] if at < len(ids) else None) or title or "", at in wanted)
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
