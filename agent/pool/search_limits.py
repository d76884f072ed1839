"""How many searches an episode of training may have: fixed, annealed, or adapted to what its query needed of late.

The pool asks when a query is drawn, and the answer travels in the ticket: whoever plays it, and whenever, it is
the same. To add a rule, write a function here and put it into both tables; its name is then a valid
``search_limit.rule``.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.config import SearchLimitConfig
from agent.errors import UserError, one_of
from agent.pool.history import NEVER, QueryHistory

Limit = Callable[[SearchLimitConfig, int, QueryHistory, int, int], int | None]
"""(configuration, ``agent.max_searches``, history, query, batch) to the limit; None is the agent's own."""


def fixed(config: SearchLimitConfig, ceiling: int, history: QueryHistory, query: int, batch: int) -> int | None:
    """The agent's own limit for everyone."""
    return None


def anneal(config: SearchLimitConfig, ceiling: int, history: QueryHistory, query: int, batch: int) -> int:
    """start + (end - start) * min(batch / steps, 1), rounded half up."""
    start, end = _or(config.start, ceiling), _or(config.end, ceiling)
    done = min(batch, config.steps)
    # In whole numbers, so that no platform rounds otherwise.
    return (2 * (start * config.steps + (end - start) * done) + config.steps) // (2 * config.steps)


def adaptive(config: SearchLimitConfig, ceiling: int, history: QueryHistory, query: int, batch: int) -> int:
    """needed + spare + widen * misses, between ``fewest`` and ``most``; ``most`` for a query that was never solved.

    ``needed`` is the median of the searches with which the query was last solved, and ``misses`` counts the draws
    since then in which no rollout was right: see ``QueryHistory.observe_searches``.
    """
    most = _or(config.most, ceiling)
    if history.needed[query] == NEVER:
        return most
    wanted = int(history.needed[query]) + config.spare + config.widen * int(history.misses[query])
    return max(config.fewest, min(wanted, most))


RULES: dict[str, Limit] = {"fixed": fixed, "anneal": anneal, "adaptive": adaptive}
OF_RULES = {"anneal": ("start", "end", "steps"), "adaptive": ("fewest", "most", "spare", "widen")}
"""The settings that a rule reads; ``fixed`` reads none."""


def _or(value: int | None, ceiling: int) -> int:
    return ceiling if value is None else value


class SearchLimits:
    """The limits that ``config`` gives to episodes of an agent with at most ``ceiling`` searches.

    Raises ``UserError`` for an unknown rule, or for limits that are out of order or beyond the agent's.
    """

    def __init__(self, config: SearchLimitConfig, ceiling: int) -> None:
        one_of(config.rule, RULES, "search_limit.rule")
        for name in ("start", "end", "fewest", "most"):
            value = _or(getattr(config, name), ceiling)
            if config.rule != "fixed" and not 1 <= value <= ceiling:
                raise UserError(
                    f"search_limit.{name}={value} must lie in [1, agent.max_searches={ceiling}]; an evaluation has no "
                    "more"
                )
        if config.rule == "adaptive" and config.fewest > _or(config.most, ceiling):
            raise UserError(
                f"search_limit.fewest={config.fewest} is above search_limit.most={_or(config.most, ceiling)}"
            )
        self._config = config
        self._ceiling = ceiling

    def limit(self, history: QueryHistory, query: int, batch: int) -> int | None:
        """The most searches of the rollouts of ``query`` when it is drawn for ``batch``; None is the agent's own."""
        return RULES[self._config.rule](self._config, self._ceiling, history, query, batch)
