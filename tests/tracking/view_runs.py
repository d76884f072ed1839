"""Folders of runs as they are left behind, made up: for the tests of the report."""

from __future__ import annotations

import copy
import functools
import json
import operator
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES
from tracking.view.report import write

CONFIG = "mode: train\nalgorithm:\n  steps: 10\nreward:\n  evidence_weight: 0.5\n"

ELEMENT = re.compile(r'<script type="application/json" id="([^"]*)">(.*)</script>')
"""A piece of a page's data, and its name."""

HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload="document.title=\'owned\'">',
    "javascript:document.title='owned'",
    "]]>{{title}}${document.title='owned'}",
    "\x1b[31mred\x1b[0m\x1b]0;owned\x07",
    "\u202eright to left\u2066\u200f",
    "half a pair \ud800 nul \x00",
)
"""What a passage, a question or an actor may be called by somebody who means harm."""


def turn(query: str, passages: Sequence[tuple[str, str]], supporting: Sequence[int] = (0,)) -> dict[str, Any]:
    """A search turn; ``passages`` are titles and texts."""
    shown = "\n".join(f'Result {n}: "{title}"\n{text}' for n, (title, text) in enumerate(passages, 1))
    text = f"<search> {query} </search>"
    return {
        "text": text,
        "observation": f"\n<result>\n{shown}\n</result>\n",
        "query": query,
        "titles": [title for title, _ in passages],
        "found": [passages[at][0] for at in supporting],
        "calls": [
            {
                "tool": "search",
                "argument": query,
                "titles": [title for title, _ in passages],
                "ids": [f"d-{title}" for title, _ in passages],
                "supporting": list(supporting),
            }
        ],
        "tokens": [text[at : at + 4] for at in range(0, len(text), 4)],
        "logprobs": [-0.25] * len(range(0, len(text), 4)),
        "versions": [[1, len(range(0, len(text), 4))]],
    }


def last_turn(answer: str) -> dict[str, Any]:
    text = f"<answer> {answer} </answer>"
    return {"text": text, "observation": "", "query": None, "titles": [], "found": [], "calls": [],
            "tokens": [text], "logprobs": [-2.0], "versions": [[2, 1]]}  # fmt: skip


def episode(question: str, turns: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What the rows of training and of evaluations share."""
    return {
        "question_id": question,
        "question": f"what of {question}?",
        "golden_answers": ["yes"],
        "supporting": ["Emma"],
        "stop_reason": "answered",
        "fault": "",
        "searches": len(turns) - 1,
        "action_tokens": 12,
        "inherited_turns": 0,
        "turns": list(turns),
        "answer": "yes",
        **more,
    }


PLAIN = (turn("emma", [("Emma", "a novel"), ("Other", "a thing")]), last_turn("yes"))


def played(batch: int, order: int, rewards: Sequence[float], question: str | None = None) -> list[dict[str, Any]]:
    """The episodes of a group, as ``trajectories.jsonl`` has them."""
    return [
        episode(
            question or f"q{order}", PLAIN, batch=batch, order=order, member=member, version=batch, state="signal",
            accepted=True, reward=reward, outcome=reward, evidence=1.0, gate=None, cost=0.0, worker="rollout-0",
            kind="bridge",
        )
        for member, reward in enumerate(rewards)
    ]  # fmt: skip


def group(batch: int, order: int, rewards: Sequence[float], question: str | None = None) -> dict[str, Any]:
    """The same group's line in ``groups.jsonl``."""
    n, name = len(rewards), question or f"q{order}"
    return {
        "batch": batch, "order": order, "version": batch, "question_id": name, "question": f"what of {name}?",
        "golden_answers": ["yes"], "supporting": ["Emma"], "kind": "bridge",
        "state": "signal" if len(set(rewards)) > 1 else "too_hard", "accepted": True,
        "before": "unseen", "recycled": False, "rewards": list(rewards), "outcomes": list(rewards),
        "evidence": [1.0] * n, "advantages": [0.0] * n, "searches": [1] * n, "tokens": [12] * n,
        "stops": ["answered"] * n, "faults": [], "discarded": 0, "continued": None, "cut_short": False,
        "worker": "rollout-0", "seconds": 1.5,
    }  # fmt: skip


def evaluated(step: int, question: str, em: float) -> dict[str, Any]:
    return episode(question, PLAIN, step=step, kind="2-hop", em=em, f1=em, evidence=1.0)


def step(number: int, **more: Any) -> dict[str, Any]:
    """A step's line in ``metrics.jsonl``, healthy unless ``more`` says otherwise."""
    return {
        "kind": "step", "step": number, "time_s": 2.0 * number, "time/step_s": 2.0, "reward/mean": 0.5,
        "outcome/mean": 0.5, "search/mean": 1.5, "groups/signal": 3, "groups/too_easy": 1, "groups/too_hard": 0,
        "rollout/trajectories": 16, "rollout/excluded": 0, "rollout/generated_tokens": 400, "rollout/seconds": 1.0,
        "rollout/tokens_per_s": 400.0, "rollout/mismatch": 1e-6, "rollout/staleness_max": 0, "learner/entropy": 0.4,
        "learner/updates": 1, "learner/idle_s": 0.8, "learner/seconds": 1.0, "weights/publish_s": 0.1,
        "workers/restarts": 0, "stop/answered": 16,
    } | more  # fmt: skip


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, *, batches: int = 3, groups: int = 2) -> Path:
    """A small whole run: two evaluations of three questions, ``batches`` steps of ``groups`` groups of four."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(CONFIG)
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=3\n")
    rewards = [[1.0, 0.0, 0.5, 0.0], [0.0] * 4]
    lines(
        folder / "metrics.jsonl",
        [
            {"kind": "eval", "step": 0, "em": 1 / 3, "f1": 1 / 3, "n": 3, "faults": 0, "time_s": 0.0},
            *(step(n + 1) for n in range(batches)),
            {"kind": "event", "event": "checkpoint", "time_s": 9.0, "step": batches, "path": "c"},
            {"kind": "eval", "step": batches, "em": 2 / 3, "f1": 2 / 3, "n": 3, "faults": 0, "time_s": 9.0},
            {"kind": "summary", "step": batches, "interrupted": False, "rollouts": 24, "time_s": 10.0},
        ],
    )
    pairs = [(batch, order) for batch in range(batches) for order in range(groups)]
    lines(folder / TRAJECTORIES, [row for b, o in pairs for row in played(b, o, rewards[o % 2])])
    lines(folder / GROUPS, [group(b, o, rewards[o % 2]) for b, o in pairs])
    lines(
        folder / EVALUATIONS,
        [evaluated(s, f"e{n}", float(em)) for s, ems in ((0, "100"), (batches, "011")) for n, em in enumerate(ems)],
    )
    spans = [("learner", "wait for a batch"), ("learner", "update"), ("rollout-0", "play a group")]
    lines(
        folder / "spans.jsonl",
        [{"actor": a, "what": w, "start": 100.0 + n, "end": 101.0 + n} for n, (a, w) in enumerate(spans)],
    )
    return folder


ODD: tuple[Any, ...] = (
    10**400, -1, 1e300, 0.5, "a text", True, None, [], ["a text", 10**400, None, [7]], {"a text": [10**400]},
    [[1, 10**9]],
)  # fmt: skip
"""What a value may be in a log that was damaged, or that another program wrote."""


def spoilt(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """``row`` with each value in it, at any depth, exchanged for each of ``ODD``."""
    for path in _paths(row):
        for value in ODD:
            each: Any = copy.deepcopy(row)
            place = functools.reduce(operator.getitem, path[:-1], each)
            place[path[-1]] = value
            yield each


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """The way to each value in ``value``; of a list its first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in inner:
        yield (key,)
        yield from ((key, *path) for path in _paths(each))


def write_spoilt_run(folder: Path) -> Path:
    """A run in whose logs each value is odd in every way; each such group has a batch of its own, from 100 on."""
    write_run(folder, batches=1)
    whole = {path: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    for path, rows in whole.items():
        odd = [each for row in {row.get("kind"): row for row in rows}.values() for each in spoilt(row)]
        odd = [row | {"batch": 100 + n} if row.get("batch") == 0 else row for n, row in enumerate(odd)]
        lines(path, rows + odd)
    return folder


def write_long_run(folder: Path) -> Path:
    """1,000 steps of 24 groups of 8 episodes: 600 MB."""
    write_run(folder, batches=1)
    passages = [(f"Title {n}", "lorem ipsum dolor " * 10) for n in range(3)]
    turns = [turn(f"query {n}", passages) for n in range(3)] + [last_turn("yes")]
    lines(folder / "metrics.jsonl", [step(n + 1) for n in range(1000)])
    with (folder / TRAJECTORIES).open("w") as episodes, (folder / GROUPS).open("w") as groups:
        for batch in range(1000):
            for order in range(24):
                rewards = [float((batch + order + n) % 3 == 0) for n in range(8)]
                name = f"question {(batch * 24 + order) % 9000}"
                rows = played(batch, order, rewards, name)
                episodes.writelines(json.dumps(row | {"turns": turns}) + "\n" for row in rows)
                groups.write(json.dumps(group(batch, order, rewards, name)) + "\n")
    return folder


def data(report: Path) -> dict[str, Any]:
    """The data of a page, by the ids of its elements."""
    return {name: json.loads(text) for name, text in ELEMENT.findall(report.read_text(encoding="utf-8"))}


def of(folder: Path, **how: Any) -> tuple[dict[str, Any], list[str]]:
    """The data of the page of a run, and its notices."""
    path, notices = write(folder, **how)
    return data(path), notices


def members(page: dict[str, Any]) -> set[tuple[str, str, int]]:
    """Batch, question and member of each training episode in a page."""
    return {
        (name.split("-")[2], question, episode["member"])
        for name, groups in page.items()
        if name.startswith("r0-b-")
        for question, episodes in groups.items()
        for episode in episodes
    }
