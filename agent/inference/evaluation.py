"""Evaluating a policy: one greedy episode per question, compared with the golden answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.answers import exact_match, f1
from agent.errors import Fault, commonest
from agent.group import Player
from agent.inference.early_exit import Probe
from agent.inference.infer import Inference, Inferred, infer
from agent.records import Question, Repeat
from agent.rewards.evidence import evidence_recall


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredProbe:
    """A probe answer, and what the episode would have been worth had it ended there."""

    probe: Probe
    em: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """One question's result."""

    question_id: str
    kind: str
    answer: str | None
    em: float
    f1: float
    evidence: float | None
    searches: int
    action_tokens: int
    stop_reason: str
    fault: bool
    error: str = ""
    """What broke, if ``fault``."""
    skipped: int = 0
    """Searches that repeated an earlier query and weren't made."""
    withheld: int = 0
    """Searches that found nothing new, whose passages weren't shown again."""
    probes: tuple[ScoredProbe, ...] = ()
    """Of an early exit, in their order."""

    @property
    def probe_tokens(self) -> int:
        """Tokens generated for probes, which ``action_tokens`` leaves out."""
        return sum(p.probe.cost() for p in self.probes)


def subset(questions: Sequence[Question], limit: int) -> tuple[Question, ...]:
    """At most ``limit`` of the questions (0: all), the same ones every time, spread over the whole list."""
    if not limit or limit >= len(questions):
        return tuple(questions)
    return tuple(questions[i * len(questions) // limit] for i in range(limit))


async def evaluate(
    player: Player, questions: Sequence[Question], *, inference: Inference | None = None
) -> list[tuple[Inferred, EvalRow]]:
    """The episode of each question and its row, in their order. Greedy in every turn."""
    how = inference or Inference()
    played = await asyncio.gather(*(infer(player, q, how) for q in questions))
    return [(inferred, eval_row(q, inferred)) for q, inferred in zip(questions, played, strict=True)]


def eval_row(question: Question, inferred: Inferred) -> EvalRow:
    """The result of one episode: no answer counts as a wrong one; a fault is marked and counts as nothing."""
    trajectory, answer = inferred.trajectory, inferred.answer
    return EvalRow(
        question_id=question.id,
        kind=question.kind,
        answer=answer,
        em=_em(answer, question),
        f1=0.0 if answer is None else f1(answer, question.golden_answers),
        evidence=evidence_recall(trajectory, question),
        searches=trajectory.searches,
        action_tokens=trajectory.action_tokens,
        stop_reason=str(trajectory.stop_reason),
        fault=trajectory.stop_reason.is_fault,
        error=trajectory.fault,
        skipped=trajectory.repeats(Repeat.QUERY),
        withheld=trajectory.repeats(Repeat.EVIDENCE),
        probes=tuple(ScoredProbe(probe=p, em=_em(p.answer, question)) for p in inferred.probes),
    )


def _em(answer: str | None, question: Question) -> float:
    return 0.0 if answer is None else exact_match(answer, question.golden_answers)


def check_any_scored(rows: Sequence[EvalRow]) -> None:
    """Raises ``Fault`` with the reason if not one of ``rows`` has a score: that is no evaluation of a policy."""
    if all(row.fault for row in rows):
        why = commonest([f"{row.stop_reason}: {row.error}" for row in rows]) if rows else "there are no questions"
        raise Fault(f"none of {len(rows)} questions could be evaluated: {why}")


def summarise(rows: Sequence[EvalRow]) -> dict[str, Any]:
    """The metrics of an evaluation: means over the rows without a fault, and ``em/<kind>`` per kind.

    A mean of nothing is None. ``error`` is the commonest fault's, if there was any.
    """
    viable = [r for r in rows if not r.fault]
    recalls = [r.evidence for r in viable if r.evidence is not None]
    summary: dict[str, Any] = {
        "n": len(viable),
        "faults": len(rows) - len(viable),
        "em": _mean([r.em for r in viable]),
        "f1": _mean([r.f1 for r in viable]),
        "evidence_recall": _mean(recalls),
        "search/mean": _mean([r.searches for r in viable]),
        "search/skipped_mean": _mean([r.skipped for r in viable]),
        "search/withheld_mean": _mean([r.withheld for r in viable]),
        "action_tokens/mean": _mean([r.action_tokens for r in viable]),
        "probe_tokens/mean": _mean([r.probe_tokens for r in viable]),
        "stop": dict(Counter(r.stop_reason for r in rows)),
    }
    if errors := [r.error for r in rows if r.error]:
        summary["error"] = commonest(errors)
    for kind in sorted({r.kind for r in viable if r.kind}):
        summary[f"em/{kind}"] = _mean([r.em for r in viable if r.kind == kind])
    return summary


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
