"""What a trajectory is worth: outcome, evidence recall, their mix, gates, and what it cost.

To add an outcome or a gate, write a function here and put it into its table; its name is then a
valid value of ``reward.outcome`` or ``reward.gates``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.answers import exact_match, normalise, normalise_title, soft_match
from agent.config import RewardConfig
from agent.errors import one_of
from agent.protocol import TagProtocol
from agent.records import SEARCH, Question, Score, Trajectory, Turn

OUTCOMES: dict[str, Callable[[str, Sequence[str]], float]] = {"em": exact_match, "em_soft": soft_match}


def evidence_wanted(question: Question, match: str) -> frozenset[str]:
    """D*, the question's distinct supporting documents, by normalised ``title`` or by ``id``."""
    names = question.supporting if match == "id" else map(normalise_title, question.supporting)
    return frozenset(name for name in names if name)  # no title is the title of no document


def evidence_found(turns: Sequence[Turn], question: Question, match: str) -> frozenset[str]:
    """D* & union of D_t over ``turns``. Only what the environment returned counts: a result block that the policy
    wrote is text."""
    if match == "id":
        found = {d for turn in turns for d in turn.document_ids}
    else:
        found = {normalise_title(t) for turn in turns for t in turn.titles}
    return evidence_wanted(question, match) & found


def evidence_recall(trajectory: Trajectory, question: Question, match: str) -> float | None:
    """r_g = |D* & union of D_t| / |D*| over the retrieval records; None without supporting documents."""
    wanted = evidence_wanted(question, match)
    return len(evidence_found(trajectory.turns, question, match)) / len(wanted) if wanted else None


def _no_answer(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    return trajectory.answer is None


def _no_search(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    return trajectory.searches == 0


def _unbalanced(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    """Any opening tag in the policy's text without its closing one, or the reverse."""
    text = "".join(turn.text for turn in trajectory.turns)
    return any(text.count(opening) != text.count(closing) for opening, closing in protocol.pairs)


def _search_after_answer(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    """A search's tag after an answer's, or (in a format without such tags) a call in a later turn."""
    text = "".join(turn.text for turn in trajectory.turns)
    answer = text.find(protocol.answer_open)
    answered = [protocol.answer_open in turn.text for turn in trajectory.turns]
    if True in answered and any(turn.calls for turn in trajectory.turns[answered.index(True) + 1 :]):
        return True
    return answer >= 0 and any(text.find(call.opening, answer) >= 0 for call in protocol.calls)


def _duplicate_query(trajectory: Trajectory, protocol: TagProtocol) -> bool:
    queries = [normalise(query) for turn in trajectory.turns for query in turn.queries]
    return len(set(queries)) < len(queries)


GATES: dict[str, Callable[[Trajectory, TagProtocol], bool]] = {
    "no_answer": _no_answer,
    "no_search": _no_search,
    "unbalanced": _unbalanced,
    "search_after_answer": _search_after_answer,
    "duplicate_query": _duplicate_query,
}


def redundant_searches(trajectory: Trajectory) -> int:
    """Answered searches whose normalised query repeats an earlier one's, or that retrieved no document for the first
    time."""
    queries: set[str] = set()
    documents: set[str] = set()
    count = 0
    for call in (call for turn in trajectory.turns for call in turn.answered):
        if call.tool == SEARCH:
            query = normalise(call.argument)
            count += query in queries or documents.issuperset(call.document_ids)
            queries.add(query)
        documents.update(call.document_ids)
    return count


class Scorer:
    """Scores trajectories by one ``RewardConfig``. Raises ``UserError`` for an unknown outcome or gate."""

    def __init__(self, config: RewardConfig, protocol: TagProtocol) -> None:
        one_of(config.outcome, OUTCOMES, "reward.outcome")
        one_of(config.evidence_match, ("title", "id"), "reward.evidence_match")
        for gate in config.gates:
            one_of(gate, GATES, "reward.gates")
        self._config = config
        self._protocol = protocol

    @property
    def evidence_match(self) -> str:
        """What supporting documents are compared by, ``title`` or ``id``."""
        return self._config.evidence_match

    def score(self, question: Question, trajectory: Trajectory) -> Score:
        """r = w r_g + (1 - w) r_o less the costs, or 0 if a gate closes. Without supporting documents w = 0."""
        answer = trajectory.answer
        outcome = 0.0 if answer is None else OUTCOMES[self._config.outcome](answer, question.golden_answers)
        evidence = evidence_recall(trajectory, question, self._config.evidence_match)
        gate = next((g for g in self._config.gates if GATES[g](trajectory, self._protocol)), None)
        weight = 0.0 if evidence is None else self._config.evidence_weight
        earned = 0.0 if gate else weight * (evidence or 0.0) + (1 - weight) * outcome
        cost = min(self._cost(trajectory), earned)
        return Score(reward=earned - cost, outcome=outcome, evidence=evidence, gate=gate, cost=cost)

    def _cost(self, trajectory: Trajectory) -> float:
        """What the budget terms would take off, were it earned."""
        c = self._config
        return (
            c.search_cost * trajectory.searches
            + c.token_cost * trajectory.action_tokens
            + c.redundant_cost * redundant_searches(trajectory)
        )
