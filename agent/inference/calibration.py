"""The threshold of early exit: what every one of them would have cost, and the boldest whose risk is small enough.

A question is *lost* at a threshold if the full episode answers it right and the exit answers it wrong. The risk
of a threshold is the probability of that; the EM that early exit costs is at most its risk, since an exit may
also be right where the full episode is wrong.

The threshold is found by *learn then test* with fixed-sequence testing (Angelopoulos, Bates, Candès, Jordan and
Lei, arXiv 2110.01052; CALM, arXiv 2207.07061, does so for exits inside a model): from the most
cautious threshold of a grid that was fixed beforehand to the boldest, each is tested for a risk above the
wanted one, until the first that isn't rejected. The last one that was has its risk with probability
1 - delta over the choice of the development questions, without a correction for having tested many. The test
is the exact binomial one: it rejects where the upper bound of Clopper and Pearson (Biometrika 26, 1934) is at
most the wanted risk.

Before that, some of the questions tell what a confidence is worth after each number of searches
(``scaling.py``): one threshold for all depths is one for comparable chances then. The other questions find
the threshold, so that what is fitted and what is tested don't know of each other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.errors import UserError
from agent.inference.evaluation import EvalRow
from agent.inference.scaling import Scale, fit
from agent.seeds import derive_seed

THRESHOLDS = tuple(1 / (1 + math.exp(-z / 2)) for z in range(28, -9, -1))
"""From 0.9999992 to 0.018 in steps of half a logit, most cautious first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How one recorded episode would have ended."""

    em: float
    searches: int
    tokens: int
    """Generated: the episode's own, and those of the probes up to the end."""
    exited: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """All recorded episodes at one threshold."""

    threshold: float
    em: float
    searches: float
    """Mean per question."""
    tokens: float
    """Mean of generated tokens per question, probes included."""
    exited: float
    """Share of questions that end at a probe."""
    lost: int
    """Questions that the full episode answers right and this one wrong."""
    risk_bound: float
    """Upper bound of the risk, at the wanted confidence for this threshold alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The curve over the grid, and the threshold that was chosen."""

    scale: Scale | None
    """What confidences are worth; the thresholds are on it."""
    questions: int
    """Those that found the threshold, as everything below."""
    em: float
    searches: float
    tokens: float
    """Means of the full episodes, which have no probes."""
    points: tuple[Point, ...]
    chosen: Point | None
    """None if not even the most cautious threshold keeps the risk."""


def ending(row: EvalRow, threshold: float) -> Ending:
    """How the full episode ``row`` would have ended: at its first probe of at least ``threshold``, or as it did."""
    tokens = 0
    for scored in row.probes:
        probe = scored.probe
        tokens += probe.cost(threshold)
        if probe.confidence >= threshold:
            return Ending(em=scored.em, searches=probe.searches, tokens=probe.action_tokens + tokens, exited=True)
    return Ending(em=row.em, searches=row.searches, tokens=row.action_tokens + tokens, exited=False)


def point(rows: Sequence[EvalRow], threshold: float, delta: float) -> Point:
    """What ``rows``, full episodes with all of their probes, would have come to."""
    endings, n = [ending(row, threshold) for row in rows], len(rows)
    lost = sum(row.em > end.em for row, end in zip(rows, endings, strict=True))
    return Point(
        threshold=threshold,
        em=sum(e.em for e in endings) / n,
        searches=sum(e.searches for e in endings) / n,
        tokens=sum(e.tokens for e in endings) / n,
        exited=sum(e.exited for e in endings) / n,
        lost=lost,
        risk_bound=upper_bound(lost, n, delta),
    )


def calibrate(rows: Sequence[EvalRow], *, risk: float, delta: float, fit_share: float) -> Calibration:
    """The boldest threshold whose risk is at most ``risk`` with probability 1 - ``delta``.

    ``rows`` are full episodes of development questions with all of their probes; faults are left out. ``fit_share``
    of them, the same ones every time, make the scale. Raises ``UserError`` when too few are left to show the risk
    even if none is lost.
    """
    played = [row for row in rows if not row.fault]
    check_enough(len(played), risk=risk, delta=delta, fit_share=fit_share)
    # By chance: questions often come in turns, and every third may be of one kind.
    n = len(played)
    fitted = set(random.Random(derive_seed("calibration", n)).sample(range(n), int(n * fit_share)))
    viable = [row for i, row in enumerate(played) if i not in fitted]
    scale = None
    if fitted:
        scale = scale_of([played[i] for i in sorted(fitted)])
        viable = [scaled(row, scale) for row in viable]
    points = tuple(point(viable, threshold, delta) for threshold in THRESHOLDS)
    chosen = None
    for candidate in points:
        if candidate.risk_bound > risk:
            break
        chosen = candidate
    n = len(viable)
    return Calibration(
        scale=scale,
        questions=n,
        em=sum(row.em for row in viable) / n,
        searches=sum(row.searches for row in viable) / n,
        tokens=sum(row.action_tokens for row in viable) / n,
        points=points,
        chosen=chosen,
    )


def scale_of(rows: Sequence[EvalRow]) -> Scale:
    """What the probes of ``rows``, full episodes, say that a confidence is worth."""
    return fit((p.probe.searches, p.probe.confidence, p.em >= row.em) for row in rows for p in row.probes)


def scaled(row: EvalRow, scale: Scale) -> EvalRow:
    """``row`` with its probes' confidences on ``scale``."""
    probes = tuple(
        replace(
            p,
            probe=replace(
                p.probe,
                confidence=scale(p.probe.searches, p.probe.confidence),
                # Without a score of its own it bounds nothing, on any scale.
                opening=scale(p.probe.searches, p.probe.opening) if p.probe.opening_tokens else 1.0,
            ),
        )
        for p in row.probes
    )
    return replace(row, probes=probes)


def check_enough(
    questions: int, *, risk: float, delta: float, fit_share: float, max_fault_share: float = 0.0, more: str = "more"
) -> None:
    """Raises ``UserError`` if so few questions can't show the risk even if none of them is lost.

    ``more`` says how there are more. ``max_fault_share`` of them may end in a fault: they are counted as if they did.
    """
    needed = math.ceil(math.log(delta) / math.log1p(-risk))
    viable = questions - int(questions * max_fault_share)  # as many as ``refusal`` lets through
    left = viable - int(viable * fit_share)
    if left < needed:
        takers = [f"exit.fit_share={fit_share:.3g}"] if fit_share else []
        takers += [f"evaluation.max_fault_share={max_fault_share:g}"] if viable < questions else []
        leave = "leaves" if len(takers) == 1 else "leave"
        of = f" (those that {' and '.join(takers)} {leave} of {questions})" if takers else ""
        other = " or lower evaluation.max_fault_share" if viable < questions else ""
        raise UserError(
            f"{left} development questions{of} can't show a risk of exit.risk={risk} at exit.delta={delta}, which "
            f"takes {needed} even if none is lost; give {more}, or raise exit.risk{other}"
        )


def upper_bound(k: int, n: int, delta: float) -> float:
    """Clopper and Pearson's: the p at which ``k`` or fewer of ``n`` have probability ``delta``.

    >>> round(upper_bound(0, 299, 0.05), 4)
    0.01
    """
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _at_most(k, n, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def _at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial with ``n`` and 0 < ``p`` < 1."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    return math.fsum(map(math.exp, logs))
