"""Gates: what sets a trajectory's reward to 0. One is a function here and its entry in ``GATES``."""

from __future__ import annotations

from collections.abc import Callable

from agent.answers import is_blank, normalise_query
from agent.protocol import THOUGHT_END, TagProtocol
from agent.records import Trajectory


def _no_answer(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    return is_blank(trajectory.answer or "")


def _no_search(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    return trajectory.searches == 0


def _said(trajectory: Trajectory) -> list[str]:
    """The policy's text of each turn without its thoughts, which are no actions."""
    return [turn.text.rpartition(THOUGHT_END)[2] for turn in trajectory.turns]


def _unbalanced(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    """Any opening tag in the policy's text without its closing one, or the reverse."""
    text = "".join(_said(trajectory))
    return any(text.count(opening) != text.count(closing) for opening, closing in protocol.pairs)


def _search_after_answer(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    """A search's tag after an answer's, or (in a format without such tags) a call in the same or a later turn."""
    said = _said(trajectory)
    text = "".join(said)
    answer = text.find(protocol.answer_open)
    first = next((number for number, turn in enumerate(said) if protocol.answer_open in turn), len(said))
    for number, turn in enumerate(trajectory.turns[first:], start=first):
        tagged = any(call.opening in said[number] for call in protocol.calls)
        if turn.calls and (number > first or not tagged):
            return True
    return answer >= 0 and any(text.find(call.opening, answer) >= 0 for call in protocol.calls)


def _duplicate_query(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    queries = [normalise_query(query) for turn in trajectory.turns for query in turn.queries]
    return len(set(queries)) < len(queries)


GATES: dict[str, Callable[[Trajectory, TagProtocol], bool]] = {
    "no_answer": _no_answer,
    "no_search": _no_search,
    "unbalanced": _unbalanced,
    "search_after_answer": _search_after_answer,
    "duplicate_query": _duplicate_query,
}
