"""trajectories.jsonl and its neighbours: episodes as a person reads them, with the numbers that decided their fate.

``trajectories.jsonl`` has the episodes of training, ``groups.jsonl`` a line for each group of them (all groups, also
those whose episodes are left out), ``eval_trajectories.jsonl`` the episodes of evaluations. ``mode=view`` reads them.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent.answers import normalise_title
from agent.groups import Group
from agent.inference.evaluation import EvalRow
from agent.inference.infer import Inferred
from agent.pool.batches import Accepted, TakenBatch
from agent.records import Call, Question, Score, Trajectory, Turn
from agent.rewards.evidence import evidence_found, evidence_wanted
from agent.visible import json_line
from learner.advantages import group_advantages
from tracking.metrics import line_end

TRAJECTORIES = "trajectories.jsonl"
GROUPS = "groups.jsonl"
EVALUATIONS = "eval_trajectories.jsonl"

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, as ``agent.tokens.TokenCodec.decode``."""


class Texts:
    """Token ids as text. A token by itself is decoded once: a run has few different ones, and many of each."""

    def __init__(self, decode: Decode) -> None:
        self.of = decode
        self.piece: Callable[[int], str] = lru_cache(1 << 16)(lambda token: decode([token]))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryLog:
    """Appends what was played for each batch to the files of ``folder``.

    Up to ``per_step`` trajectories, whole groups first (-1: all), and a line for every group. ``advantage`` is the
    method of ``learner.advantages``.
    """

    folder: Path
    per_step: int
    advantage: str = "std"

    def write(self, batch: TakenBatch[Group], version: int, texts: Texts) -> None:
        """Accepted groups come before the others; in a group, trajectories that a fault excluded come last."""
        accepted = {a.outcome.ticket.claim_id: a for a in batch.accepted}

        def verdict(group: Group) -> bool | None:
            """None for one that is kept: the next batch decides."""
            claim = group.ticket.claim_id
            return None if claim in batch.kept else claim in accepted

        groups = sorted(batch.payloads, key=lambda g: (g.ticket.claim_id not in accepted, g.ticket.order))
        chosen = [(group, member) for group in groups for member in range(len(group.members) + len(group.excluded))]
        if self.per_step >= 0:
            chosen = chosen[: self.per_step]
        rows = [trajectory_row(group, member, batch.index, version, verdict(group), texts) for group, member in chosen]
        _append(self.folder / TRAJECTORIES, rows)
        of_groups = (
            group_row(g, verdict(g), accepted.get(g.ticket.claim_id), batch.index, version, self.advantage)
            for g in groups
        )
        _append(self.folder / GROUPS, of_groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationLog:
    """Appends the episodes of evaluations to ``path``. Several workers may have one of the same file."""

    path: Path

    def write(self, step: int, played: Iterable[tuple[Question, Inferred, EvalRow]], texts: Texts) -> None:
        """One line per question."""
        _append(self.path, [evaluation_row(*each, step, texts) for each in played])


def trajectory_row(
    group: Group, member: int, batch: int, version: int, verdict: bool | None, texts: Texts
) -> dict[str, Any]:
    """The JSON object of one trajectory: number ``member`` of the group's members and then of its excluded ones."""
    score: Score | None = None
    if member < len(group.members):
        trajectory, score = group.members[member].trajectory, group.members[member].score
    else:
        trajectory = group.excluded[member - len(group.members)]
    return {
        "batch": batch,
        "order": group.ticket.order,
        "member": member,
        "version": version,
        **_question(group.question),
        "state": str(group.state),
        "accepted": verdict,
        "reward": score and score.reward,
        "outcome": score and score.outcome,
        "evidence": score and score.evidence,
        "gate": score and score.gate,
        "cost": score and score.cost,
        **_episode(trajectory, group.question, texts, tokens=True),
        "answer": trajectory.answer,
        "worker": group.worker,
    }


def evaluation_row(question: Question, inferred: Inferred, row: EvalRow, step: int, texts: Texts) -> dict[str, Any]:
    """The JSON object of one episode. Its tokens are left out: an evaluation has as many as some runs."""
    return {
        "step": step,
        "sample": row.sample,
        **_question(question),
        "em": None if row.fault else row.em,
        "f1": None if row.fault else row.f1,
        "cover_em": None if row.fault else row.cover,
        "answerable": row.answerable,
        "evidence": row.evidence,
        **_episode(inferred.trajectory, question, texts, tokens=False),
        "action_tokens": row.action_tokens,  # an endpoint's own count: the ids of its episodes are characters
        "answer": row.answer,
    }


def group_row(
    group: Group, verdict: bool | None, accepted: Accepted | None, batch: int, version: int, advantage: str
) -> dict[str, Any]:
    """The JSON object of one group. Lists go by the members; ``advantages`` are 0 where no signal is."""
    members = [m.trajectory for m in group.members]
    advantages = group_advantages(group.rewards, advantage).tolist() if members else []
    return {
        "batch": batch,
        "order": group.ticket.order,
        "version": version,
        **_question(group.question),
        "state": str(group.state),
        "accepted": verdict,
        "before": str(accepted.before) if accepted else None,
        "recycled": accepted.recycled if accepted else None,
        "rewards": [_short(r) for r in group.rewards],
        "outcomes": [_short(m.score.outcome) for m in group.members],
        "evidence": [_short(m.score.evidence) for m in group.members],
        "advantages": [_short(a) for a in advantages],
        "searches": [t.searches for t in members],
        "tokens": [t.action_tokens for t in members],
        "stops": [str(t.stop_reason) for t in members],
        "faults": [f"{t.stop_reason}: {t.fault}" for t in group.excluded],
        "discarded": len(group.discarded),
        "continued": None if group.before_continuation is None else bool(group.extra.get("replaced")),
        "cut_short": group.cut_short,
        "worker": group.worker,
        "seconds": round(group.finished_s - group.started_s, 3),
    }


def _question(question: Question) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "question": question.text,
        "golden_answers": list(question.golden_answers),
        "supporting": list(question.supporting),
        "kind": question.kind,
    }


def _episode(trajectory: Trajectory, question: Question, texts: Texts, *, tokens: bool) -> dict[str, Any]:
    return {
        "stop_reason": str(trajectory.stop_reason),
        "fault": trajectory.fault,
        "searches": trajectory.searches,
        "action_tokens": trajectory.action_tokens,
        "inherited_turns": sum(0 < turn.observation_end <= trajectory.inherited for turn in trajectory.turns),
        "turns": [
            _turn(trajectory, at, question, texts) | (_tokens(trajectory, turn, texts) if tokens else {})
            for at, turn in enumerate(trajectory.turns)
        ],
    }


def _turn(trajectory: Trajectory, at: int, question: Question, texts: Texts) -> dict[str, Any]:
    """A turn's action as the policy wrote it, its observation as the policy read it, and what it found for the first
    time."""
    turn = trajectory.turns[at]
    before = evidence_found(trajectory.turns[:at], question)
    return {
        "text": turn.text,
        "observation": texts.of(trajectory.token_ids[turn.action_end : turn.observation_end].tolist()),
        "query": turn.query,
        "titles": list(turn.titles),
        "found": sorted(evidence_found(trajectory.turns[: at + 1], question) - before),
        "calls": [_call(call, question) for call in turn.calls],
    }


def _call(call: Call, question: Question) -> dict[str, Any]:
    wanted, by_id = evidence_wanted(question), question.evidence_match == "id"
    names = call.document_ids if by_id else [normalise_title(t) for t in call.titles]
    shown: dict[str, Any] = {"tool": call.tool, "argument": call.argument, "titles": list(call.titles)}
    shown["ids"] = list(call.document_ids)
    shown["supporting"] = [at for at, name in enumerate(names) if name in wanted]
    if call.refused:
        shown["refused"] = True
    if call.repeat is not None:
        shown["repeat"] = str(call.repeat)
    return shown


def _tokens(trajectory: Trajectory, turn: Turn, texts: Texts) -> dict[str, Any]:
    """The action's tokens: what each adds to the text, its log-probability, and the version that sampled it."""
    span = slice(turn.action_start, turn.action_end)
    return {
        "tokens": [texts.piece(token) for token in trajectory.token_ids[span].tolist()],
        "logprobs": [_short(p) for p in trajectory.logprobs[span].tolist()],
        "versions": _runs(trajectory.versions[span].tolist()),
    }


def _runs(values: Sequence[int]) -> list[list[int]]:
    """Run lengths.

    >>> _runs([3, 3, 4])
    [[3, 2], [4, 1]]
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends a line for each row, in one piece where the file system has locks, and behind a line that was torn."""
    text = "".join(map(json_line, rows))
    with path.open("ab+") as file:
        with contextlib.suppress(OSError):  # without locks lines of two workers may mix: a reader leaves those out
            fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line_end(file) + text.encode())
