"""Groups written by hand, and the batch that a pool would have made of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.groups import Group
from agent.pool.batches import Accepted, Played, TakenBatch
from agent.records import SEARCH, Call, Question, Score, ScoredTrajectory, StopReason, Trajectory, Turn
from agent.tickets import QueryState, Ticket

sys.path.insert(0, str(Path(__file__).parent))  # for sweep_rows: importlib mode adds no folder by itself


def trajectory(
    question: str = "q0",
    *,
    tokens: int = 2,
    searches: int = 0,
    version: int = 5,
    stop: StopReason = StopReason.ANSWERED,
    answer: str | None = "yes",
) -> Trajectory:
    """``searches`` turns of ``tokens`` action tokens and one observation token, then a turn with the answer."""
    turns, mask, at = [], [], 0
    for _ in range(searches):
        turns.append(
            Turn(
                action_start=at,
                action_end=at + tokens,
                observation_end=at + tokens + 1,
                text="<search>x</search>",
                calls=(Call(tool=SEARCH, argument="x", document_ids=("d1",), titles=("Emma",)),),
            )
        )
        mask += [True] * tokens + [False]
        at += tokens + 1
    turns.append(Turn(action_start=at, action_end=at + tokens, observation_end=at + tokens, text="a", answer=answer))
    mask += [True] * tokens
    return Trajectory(
        question_id=question,
        prompt_ids=[0],
        token_ids=[1] * len(mask),
        action_mask=mask,
        logprobs=[-0.5 if m else 0.0 for m in mask],
        versions=[version if m else -1 for m in mask],
        turns=tuple(turns),
        stop_reason=stop,
        fault="it broke" if stop.is_fault else "",
    )


def group(
    order: int,
    scores: Sequence[tuple[float, float, float | None]],
    trajectories: Sequence[Trajectory],
    *,
    excluded: Sequence[Trajectory] = (),
    worker: str = "w0",
    span: tuple[float, float] = (0.0, 1.0),
    limit: int | None = None,
) -> Group:
    """``scores`` are (reward, outcome, evidence) of each member; the question is ``q<order>``."""
    question = Question(id=f"q{order}", text=f"question {order}?", golden_answers=("yes", "yeah"))
    return Group(
        question=question,
        ticket=Ticket(claim_id=100 + order, query=order, batch=3, order=order, seed=0, max_searches=limit),
        members=tuple(
            ScoredTrajectory(trajectory=t, score=Score(reward=r, outcome=o, evidence=e))
            for (r, o, e), t in zip(scores, trajectories, strict=True)
        ),
        excluded=tuple(excluded),
        worker=worker,
        started_s=span[0],
        finished_s=span[1],
    )


def batch(
    groups: Sequence[Group], accepted: dict[int, QueryState], returned: dict[str, int], kept: Sequence[int] = ()
) -> TakenBatch[Group]:
    """``accepted`` says by order what the query was before; ``kept`` are orders."""
    played = tuple(Played(outcome=g.outcome(), payload=g) for g in groups)
    return TakenBatch(
        index=3,
        accepted=tuple(
            Accepted(played=p, before=accepted[p.payload.ticket.order])
            for p in played
            if p.payload.ticket.order in accepted
        ),
        states=Counter(g.state for g in groups),
        returned=Counter(returned),
        played=played,
        kept=frozenset(g.ticket.claim_id for g in groups if g.ticket.order in kept),
    )


@pytest.fixture
def make() -> Any:
    """The three makers."""

    class Make:
        trajectory: Callable[..., Trajectory] = staticmethod(trajectory)
        group: Callable[..., Group] = staticmethod(group)
        batch: Callable[..., TakenBatch[Group]] = staticmethod(batch)

    return Make
