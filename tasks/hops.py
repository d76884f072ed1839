"""Answers to the hops of a question: the last one in MuSiQue's ``question_decomposition`` is the question's own."""

from __future__ import annotations

from collections.abc import Sequence

from agent.answers import normalise
from tasks.fields import anywhere
from tasks.rows import Row
from tasks.supporting import objects, unquoted


def of_earlier_hop(row: Row, golden: Sequence[str]) -> str | None:
    """One of ``golden`` that answers an earlier hop of the row's question and not the last one, as in a list that was
    made of the answers to all of them; None where there is none, or the row has no hops."""
    for _, value in anywhere(row, "question_decomposition"):
        hops = [normalise(str(hop.get("answer") or "")) for hop in objects(unquoted(value))]
        earlier = {*hops[:-1]} - {*hops[-1:], ""}
        if (found := next((text for text in golden if normalise(text) in earlier), None)) is not None:
            return found
    return None
