"""Gates: what sets a trajectory's reward to 0. One is a function here and its entry in ``GATES``."""

from __future__ import annotations

from collections.abc import Callable

from agent.answers import normalise
from agent.protocol import TagProtocol
from agent.records import Trajectory


def _no_answer(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    return trajectory.answer is None


def _no_search(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    return trajectory.searches == 0


def _unbalanced(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    """Any opening tag in the policy's text without its closing one, or the reverse."""
    text = "".join(turn.text for turn in trajectory.turns)
    pairs = [(protocol.search_open, protocol.search_close), (protocol.result_open, protocol.result_close)]
    if not protocol.braced_answer:
        pairs.append((protocol.answer_open, protocol.answer_close))
    return any(text.count(opening) != text.count(closing) for opening, closing in pairs)


def _search_after_answer(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    text = "".join(turn.text for turn in trajectory.turns)
    answer = text.find(protocol.answer_open)
    return answer >= 0 and text.find(protocol.search_open, answer) >= 0


def _duplicate_query(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    queries = [normalise(turn.query) for turn in trajectory.turns if turn.query is not None]
    return len(set(queries)) < len(queries)


GATES: dict[str, Callable[[Trajectory, TagProtocol], bool]] = {
    "no_answer": _no_answer,
    "no_search": _no_search,
    "unbalanced": _unbalanced,
    "search_after_answer": _search_after_answer,
    "duplicate_query": _duplicate_query,
}
