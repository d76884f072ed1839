"""Evaluating a policy: an episode or several per question, compared with the golden answers."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.answers import cover_match, exact_match, f1, has_words, is_closed, normalise
from agent.errors import Fault, commonest
from agent.group import Player
from agent.inference.early_exit import Probe
from agent.inference.infer import Inference, Inferred, infer
from agent.protocol import PROTOCOLS
from agent.records import Question, Repeat, StopReason
from agent.rewards.evidence import evidence_recall, evidence_wanted

_NUMBER = re.compile(rf"^\W*(?:{'|'.join(p.result_label for p in PROTOCOLS.values())}) \d+: ", re.M)
"""The label and number that ``Dialogue`` puts before each passage: the number must not count as an answer found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredProbe:
    """A probe answer, and what the episode would have been worth had it ended there."""

    probe: Probe
    em: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """One episode's result."""

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
    probe_tokens: int = 0
    """Tokens generated for probes, which ``action_tokens`` leaves out."""
    cover: float = 0.0
    """Cover EM (``agent.answers.cover_match``)."""
    answerable: float | None = None
    """1.0 when a golden answer stood in what one turn retrieved; None for yes and no, which stand nowhere."""
    documents: int = 0
    """Different supporting documents that the question names."""
    sample: int = 0
    """Number of the episode among those of its question."""
    text: str = ""
    """A digest of the question's text, by which questions of one id are told apart; empty in earlier files."""


def subset(questions: Sequence[Question], limit: int) -> tuple[Question, ...]:
    """At most ``limit`` of the questions (0: all) in their order: those whose ids have the smallest digests.

    The same ones every time and in every order of the file; a smaller sample is a part of a larger one.
    """
    if not limit or limit >= len(questions):
        return tuple(questions)
    digests = [hashlib.blake2b(q.id.encode(), digest_size=16, person=b"evaluation").digest() for q in questions]
    chosen = sorted(range(len(questions)), key=lambda at: (digests[at], at))[:limit]
    return tuple(questions[at] for at in sorted(chosen))


async def evaluate(
    player: Player, questions: Sequence[Question], *, inference: Inference | None = None
) -> list[tuple[Inferred, EvalRow]]:
    """The ``inference.samples`` episodes of each question with their rows, question by question."""
    how = inference or Inference()
    asked = [(question, sample) for question in questions for sample in range(how.samples)]
    played = await asyncio.gather(*(infer(player, question, how, sample) for question, sample in asked))
    rows = []
    for (question, sample), inferred in zip(asked, played, strict=True):
        row = eval_row(question, inferred, retrieved(player.dialogue.codec.decode, inferred))
        rows.append((inferred, replace(row, sample=sample)))
    return rows


def retrieved(decode: Callable[[Sequence[int]], str], inferred: Inferred) -> list[str]:
    """The passages that the policy read after each turn that retrieved something, without our numbers before them."""
    ids = inferred.trajectory.token_ids
    turns = [turn for turn in inferred.trajectory.turns if turn.document_ids]
    return [_unframed(decode(ids[turn.action_end : turn.observation_end].tolist())) for turn in turns]


def _unframed(observation: str) -> str:
    # Some chat templates give a result as a string of JSON.
    text = observation.replace("\\n", "\n").replace('\\"', '"')
    return _NUMBER.sub("", text)


def eval_row(question: Question, inferred: Inferred, retrieved: Sequence[str] = ()) -> EvalRow:
    """The result of one episode: no answer counts as a wrong one; a fault is marked and counts as nothing.

    ``retrieved`` is what the policy read after each turn that retrieved something.
    """
    trajectory, answer = inferred.trajectory, inferred.answer
    golden = question.golden_answers
    return EvalRow(
        question_id=question.id,
        kind=question.kind,
        answer=answer,
        em=_em(answer, question),
        f1=0.0 if answer is None else f1(answer, golden),
        cover=0.0 if answer is None else cover_match(answer, golden),
        answerable=_answerable(question, retrieved),
        documents=len(evidence_wanted(question)),
        evidence=evidence_recall(trajectory, question),
        searches=trajectory.searches,
        action_tokens=trajectory.action_tokens,
        stop_reason=str(trajectory.stop_reason),
        fault=trajectory.stop_reason.is_fault,
        error=trajectory.fault,
        skipped=trajectory.repeats(Repeat.QUERY),
        withheld=trajectory.repeats(Repeat.EVIDENCE),
        probes=tuple(ScoredProbe(probe=p, em=_em(p.answer, question)) for p in inferred.probes),
        probe_tokens=inferred.probe_tokens,
        text=_digest(question),
    )


def unplayed(question: Question, samples: int, error: str) -> list[EvalRow]:
    """The rows of ``samples`` episodes of a question that could not be played to an end, for ``error``: faults."""
    row = EvalRow(
        question_id=question.id,
        kind=question.kind,
        answer=None,
        em=0.0,
        f1=0.0,
        evidence=None,
        searches=0,
        action_tokens=0,
        stop_reason=str(StopReason.GENERATION_FAILED),
        fault=True,
        error=error,
        documents=len(evidence_wanted(question)),
        text=_digest(question),
    )
    return [replace(row, sample=sample) for sample in range(samples)]


def _digest(question: Question) -> str:
    return hashlib.blake2b(normalise(question.text).encode(), digest_size=8).hexdigest()


def _answerable(question: Question, retrieved: Sequence[str]) -> float | None:
    """1.0 when one of ``retrieved`` has a golden answer; where several are needed, when each is in one of them.

    Yes and no don't count, not as an alias either ("NO" for Norway): nearly any text has a "no". None without others.
    """
    asked: list[tuple[str, ...]] = [(each,) for each in question.needed] or [question.golden_answers]
    wanted = [found for golden in asked if (found := [g for g in golden if not is_closed(g)])]
    if not wanted:
        return None
    return min(max((has_words(text, golden) for text in retrieved), default=0.0) for golden in wanted)


def _em(answer: str | None, question: Question) -> float:
    return 0.0 if answer is None else exact_match(answer, question.golden_answers)


def check_any_scored(rows: Sequence[EvalRow]) -> None:
    """Raises ``Fault`` with the reason if not one of ``rows`` has a score: that is no evaluation of a policy."""
    if all(row.fault for row in rows):
        why = commonest([f"{row.stop_reason}: {row.error}" for row in rows]) if rows else "there are no questions"
        raise Fault(f"none of {len(rows)} questions could be evaluated: {why}")


def judged(rows: Sequence[EvalRow], max_fault_share: float) -> dict[str, Any]:
    """``summarise``, unless more than ``max_fault_share`` of the episodes ended in a fault.

    Then every mean is None and ``refused`` says why: what a dead part leaves over is a biased choice of the questions.
    """
    summary = summarise(rows)
    why = refusal(rows, max_fault_share)
    if why is None:
        return summary
    kept = {"n", "faults", "stop", "error", "samples"}
    return {k: v if k in kept else None for k, v in summary.items()} | {"refused": why}


def refusal(rows: Sequence[EvalRow], max_fault_share: float) -> str | None:
    """Why ``rows`` are no result: more of them than allowed ended in a fault. None if they are one."""
    faults = [f"{row.stop_reason}: {row.error}" for row in rows if row.fault]
    if len(faults) <= max_fault_share * len(rows):
        return None
    return (
        f"{len(faults)} of {len(rows)} episodes ended in a fault, more than "
        f"evaluation.max_fault_share={max_fault_share:g} allows: {commonest(faults)}"
    )


def summarise(rows: Sequence[EvalRow]) -> dict[str, Any]:
    """The metrics of an evaluation: means over the questions of their rows without a fault, and ``em/<kind>`` per kind.

    A question counts once, with the mean over its episodes, as in ``eval.json`` (``estimates.py``). A mean of nothing
    is None. ``error`` is the commonest fault's, if there was any.
    """
    viable = [r for r in rows if not r.fault]
    summary: dict[str, Any] = {
        "n": len(viable),
        "faults": len(rows) - len(viable),
        "em": _mean(viable, lambda r: r.em),
        "f1": _mean(viable, lambda r: r.f1),
        "cover_em": _mean(viable, lambda r: r.cover),
        "answerable": _mean(viable, lambda r: r.answerable),
        "evidence_recall": _mean(viable, lambda r: r.evidence),
        "search/mean": _mean(viable, lambda r: r.searches),
        "search/skipped_mean": _mean(viable, lambda r: r.skipped),
        "search/withheld_mean": _mean(viable, lambda r: r.withheld),
        "action_tokens/mean": _mean(viable, lambda r: r.action_tokens),
        "probe_tokens/mean": _mean(viable, lambda r: r.probe_tokens),
        "stop": dict(Counter(r.stop_reason for r in rows)),
    }
    if (samples := 1 + max((r.sample for r in rows), default=0)) > 1:
        summary["samples"] = samples
    if errors := [r.error for r in rows if r.error]:
        summary["error"] = commonest(errors)
    for kind in sorted({r.kind for r in viable if r.kind}):
        summary[f"em/{kind}"] = _mean([r for r in viable if r.kind == kind], lambda r: r.em)
    return summary


def _mean(rows: Sequence[EvalRow], of: Callable[[EvalRow], float | None]) -> float | None:
    """Over the questions that have one, of the mean over their ``rows``."""
    known: dict[str, list[float]] = {}
    for row in rows:
        if (value := of(row)) is not None:
            known.setdefault(row.question_id, []).append(value)
    return sum(sum(each) / len(each) for each in known.values()) / len(known) if known else None
