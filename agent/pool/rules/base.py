"""The interface of a pool rule, and the settings that all rules share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import Fault, UserError, shortened
from agent.own import BREAKS, check_class
from agent.pool import rules as pool_rules
from agent.pool.beta_binomial import chance_of_any
from agent.pool.history import QueryHistory
from agent.settings import bounded, check_bounds, check_settings
from agent.shipped import file_of, member_of, module_names
from agent.tickets import QueryState

ACCEPTED = "accepted"
ZERO_VARIANCE = "zero_variance"
UNSELECTED = "unselected"

AT_ONCE = 0
"""A query's rest: it may be drawn again at once."""
FOREVER = -1
"""A query's rest: it is consumed, until the rule brings all consumed queries back."""

LONGEST = 2**30
"""Batches of a rest, or until a weight is computed anew."""

FloatVector = npt.NDArray[np.float64]


def _named(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of a rule, whose errors say whose they are."""

    @wraps(method)
    def asked(rule: PoolRule, *arguments: Any, **named: Any) -> Any:
        try:
            return method(rule, *arguments, **named)
        except Fault:
            raise
        except BREAKS as error:
            what = f"{type(error).__name__}: {shortened(error)}"
            raise Fault(f"pool={rule.name}: {method.__name__}() raised {what}") from error

    return asked


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _printed(value: Any) -> str:
    shown = np.array2string(value, threshold=6) if isinstance(value, np.ndarray) else repr(value)
    return shortened(ValueError(shown), 80)


def _floats(value: Any) -> FloatVector:
    """``value`` as an array of floats; if it isn't one of numbers, an array whose shape fits nothing."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return np.full((0, 0), np.nan)


@dataclass
class PoolRule(ABC):
    """Settings of the pool, and the decisions that make one method differ from another.

    A rule has no state: it decides from what the pool and its history tell it. Decisions about one
    batch see its groups in the order in which they were *drawn*, so that short episodes gain nothing
    by finishing first; and the number of draws depends on how groups turn out, never on when, so that
    a synchronous run is reproducible.
    """

    name: str = ""
    batch_questions: int = bounded(24, "at least 1")
    """B: most groups that one batch trains on."""
    group_size: int = bounded(8, "in [2, 255]")
    """K: trajectories per query."""
    max_staleness: int = bounded(0, "at least 0")
    """Most policy versions between sampling and training; 0 is synchronous and reproducible."""
    keep_surplus: bool = False
    """Keep signal-bearing groups beyond B for the next batch, if they will still be fresh enough then."""
    pilot: int = bounded(0, "in [0, 254]")
    """Rollouts of a group that are played first; the others are not started when these agree and queries
    drawn instead promise more signal per rollout. 0 plays all K at once."""
    min_viable: int = bounded(2, "in [2, 255]")
    """A group with fewer viable trajectories is returned; one alone has no advantage over others."""
    max_tool_failures: float = bounded(0.1, "in [0, 1]")
    """Share of a batch's trajectories that may be lost to a failed search, tool or reward. Above it nothing of the
    batch is trained on, since those that don't search, or don't answer, would be left; the run waits until searches
    are answered again, and stops where a reward fails so in two batches in a row."""
    lease_s: float = bounded(600.0, "above 0")
    """A claim whose group makes no progress for so long, not a token, returns to the pool."""
    quarantine_after: int = bounded(2, "at least 0")
    """Workers that die while they hold a question, none of its groups played in between, before it may be what kills
    them, and is never drawn again (``agent/pool/claims.py``); 0 draws it for ever."""
    max_empty_batches: int = bounded(10, "at least 1")
    """The run stops after this many batches in a row without a signal-bearing group."""

    def __post_init__(self) -> None:
        check_bounds(self, "pool")
        if self.keep_surplus and self.max_staleness == 0:
            raise UserError("pool.keep_surplus=true needs pool.max_staleness of at least 1: a kept group is a step old")
        if self.min_viable > self.group_size:
            raise UserError(f"pool.min_viable={self.min_viable} must lie in [2, pool.group_size={self.group_size}]")
        if self.pilot and not self.min_viable <= self.pilot < self.group_size:
            raise UserError(
                f"pool.pilot={self.pilot} must be 0 or lie in [pool.min_viable={self.min_viable}, "
                f"pool.group_size={self.group_size})"
            )
        if not (isinstance(self.explore, int | float) and 0 <= self.explore <= 1):
            raise UserError(f"pool.explore={self.explore} must lie in [0, 1]")

    # --- one batch -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def candidates(self) -> int:
        """Most queries that one batch draws (redraws after a fault not counted)."""

    @abstractmethod
    def wanted(self, *, room: int, drawn: int, zero: int) -> int:
        """Further draws that a batch wants.

        ``room`` groups are still to be trained on (B less the surplus of earlier batches), ``drawn``
        queries were drawn, and ``zero`` of their groups are known to bear no signal.
        """

    @abstractmethod
    def select(self, states: Sequence[QueryState]) -> list[str]:
        """For each group in draw order: ``ACCEPTED``, or the reason for which it returns to the pool."""

    # --- what the pool asks: the same, checked, since a rule may be the user's own --------------------

    def __init_subclass__(cls, **settings: Any) -> None:
        """What a rule raises is a fault that names its method."""
        super().__init_subclass__(**settings)
        for name in ("wanted", "select", "rest", "resets", "weights", "cuts", "next_look", "retained"):
            if name in vars(cls):
                setattr(cls, name, _named(vars(cls)[name]))

    def bound(self) -> int:
        """What ``candidates`` says. Like the methods below, raises ``Fault`` for what the rule must not return."""
        try:
            found: Any = self.candidates
        except BREAKS as error:
            raise self._wrong("candidates", f"raised {type(error).__name__}: {shortened(error)}") from error
        if not _whole(found) or found < 1:
            raise self._wrong("candidates", f"is {found!r}; it needs a number of draws, 1 or more")
        return int(found)

    def verdicts(self, states: Sequence[QueryState]) -> list[str]:
        """What ``select`` says."""
        said: Any = self.select(states)
        found = list(said) if isinstance(said, Iterable) else [said]
        if len(found) != len(states) or not all(each in (ACCEPTED, ZERO_VARIANCE, UNSELECTED) for each in found):
            raise self._wrong(
                "select()",
                f"returned {found} for {len(states)} groups; each needs {ACCEPTED!r}, {ZERO_VARIANCE!r} or "
                f"{UNSELECTED!r}",
            )
        return found

    def wants(self, *, room: int, drawn: int, zero: int) -> int:
        """What ``wanted`` says; an empty batch wants something."""
        found: Any = self.wanted(room=room, drawn=drawn, zero=zero)
        if not _whole(found) or (found < 1 and room > 0 and drawn == 0):
            raise self._wrong(
                "wanted()", f"returned {found!r}; it needs a number of draws, in an empty batch 1 or more"
            )
        return int(found)

    def rests(self, verdict: str, history: QueryHistory, query: int) -> int:
        """What ``rest`` says."""
        found: Any = self.rest(verdict, history, query)
        if not _whole(found) or not FOREVER <= found <= LONGEST:
            raise self._wrong("rest()", f"returned {found!r}; it needs AT_ONCE, FOREVER or a number of batches")
        return int(found)

    def brings_back(self, *, available: int) -> bool:
        """What ``resets`` says."""
        found: Any = self.resets(available=available)
        if not isinstance(found, bool | np.bool_):
            raise self._wrong("resets()", f"returned {found!r}; it needs True or False")
        return bool(found)

    def weighs(self, history: QueryHistory, queries: npt.NDArray[np.int64], batch: int) -> FloatVector:
        """What ``weights`` says."""
        said: Any = self.weights(history, queries.copy(), batch)  # one that sorts them sorts its own
        found = _floats(said)
        if found.shape != queries.shape or not (np.isfinite(found) & (found >= 0)).all():
            raise self._wrong(
                "weights()",
                f"returned {_printed(said)} for {len(queries)} questions; each needs a finite weight of at least 0",
            )
        return found

    def leaves(self, history: QueryHistory, query: int, batch: int) -> tuple[bool, bool]:
        """What ``cuts`` says."""
        found: Any = self.cuts(history, query, batch)
        pair = isinstance(found, tuple | list) and len(found) == 2
        if not pair or not all(isinstance(each, bool | np.bool_) for each in found):
            raise self._wrong(
                "cuts()", f"returned {found!r}; it needs two of True and False: after failures, after successes"
            )
        return bool(found[0]), bool(found[1])

    def looks(self, ages: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """What ``next_look`` says."""
        said: Any = self.next_look(ages)
        found = _floats(said)
        if found.shape != ages.shape or not ((found >= 0) & (found <= LONGEST) & (np.floor(found) == found)).all():
            raise self._wrong(
                "next_look()",
                f"returned {_printed(said)} for {len(ages)} questions; each needs a number of batches, 0 for never",
            )
        return found.astype(np.int64)

    def keeps(self, age: Any) -> FloatVector:
        """What ``retained`` says, of one age or of an array."""
        said: Any = self.retained(age)
        found = _floats(said)
        if found.shape != np.shape(age) or not ((found >= 0) & (found <= 1)).all():
            raise self._wrong(
                "retained()", f"returned {_printed(said)} for {_printed(age)}; each age needs a share in [0, 1]"
            )
        return found

    def _wrong(self, method: str, what: str) -> Fault:
        return Fault(f"pool={self.name}: {method} {what}")

    # --- one query -------------------------------------------------------------------------------

    @abstractmethod
    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        """Batches for which the query can't be drawn after ``verdict``: ``AT_ONCE``, ``FOREVER`` or a number."""

    @abstractmethod
    def resets(self, *, available: int) -> bool:
        """Whether consumed queries come back before a batch that finds ``available`` drawable queries."""

    explore = 0.0
    """Share of draws that are uniform over all drawable queries, whatever their weights."""

    def weights(self, history: QueryHistory, queries: npt.NDArray[np.int64], batch: int) -> FloatVector:
        """(len(queries),) finite weights >= 0 of drawable queries when ``batch`` is the newest.

        A query of weight 0 is drawn only where all that can be drawn have it, unless ``explore`` is above 0.
        """
        return np.ones(len(queries))

    def cuts(self, history: QueryHistory, query: int, batch: int) -> tuple[bool, bool]:
        """Whether to play no more after a pilot of failures alone, and after one of successes alone.

        That is so where the chance that one of the other rollouts differs, divided by their number, is below the
        signal-bearing groups per rollout of late.
        """
        if not self.pilot:
            return False, False
        a, b = history.beta(query, batch)
        others = self.group_size - self.pilot
        limit = others * history.population.signal_per_rollout
        # Successes after as many failures, and failures after as many successes.
        return chance_of_any(a, b + self.pilot, others) < limit, chance_of_any(b, a + self.pilot, others) < limit

    def next_look(self, ages: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Batches after which the weight of queries last drawn ``ages`` batches ago is computed anew; 0: never."""
        return np.zeros_like(ages)

    def retained(self, age: Any) -> Any:
        """Share of an observation that still counts after ``age`` batches (scalar or array)."""
        return np.ones_like(age, dtype=np.float64)


@dataclass
class OversamplingRule(PoolRule):
    """A rule that draws at most ceil(k B) queries a batch, and trains on the first B that bear signal."""

    oversample: float = bounded(1.0, "at least 1")
    """k >= 1: most queries drawn per trained group."""

    @property
    def candidates(self) -> int:
        return oversampled(self.batch_questions, self.oversample)

    def select(self, states: Sequence[QueryState]) -> list[str]:
        return take_signal(states, self.batch_questions)


def take_signal(states: Sequence[QueryState], room: int) -> list[str]:
    """Verdicts that accept the first ``room`` signal-bearing groups in draw order and no other."""
    verdicts: list[str] = []
    for state in states:
        if state is not QueryState.SIGNAL:
            verdicts.append(ZERO_VARIANCE)
        else:
            verdicts.append(ACCEPTED if room > 0 else UNSELECTED)
            room -= 1
    return verdicts


def draws_until_full(room: int, drawn: int, zero: int, bound: int) -> int:
    """Draws still wanted by a batch that draws one query for each that brought no signal, up to ``bound``.

    At any time as many groups are in flight or signal-bearing as there is room for, so that none is
    played in vain; how many are drawn in the end depends on their outcomes and not on their order in time.
    """
    return min(room + zero, bound) - drawn


def refuse_surplus(rule: PoolRule, which: str) -> None:
    """Raises ``UserError`` if a rule is to keep a surplus whose batches are full before they have one."""
    if rule.keep_surplus:
        raise UserError(f"pool.keep_surplus=true has no meaning for {which}, which never has a surplus")


def oversampled(questions: int, factor: float) -> int:
    """ceil(k B)."""
    return math.ceil(Fraction(str(factor)) * questions)  # 1.1 of 50 are 55, and 1.1 * 50 is a little more


def rule_names() -> list[str]:
    """The names of all rules: the modules beside this one."""
    return module_names(pool_rules.__path__, "base")


def rule_class(name: str) -> type[PoolRule]:
    """The rule of that name. Raises ``UserError`` for a file that can't be imported, or whose rule is none."""
    needs = "a dataclass `Rule`, made from agent.pool.rules.base.PoolRule"
    found = member_of(pool_rules.__name__, name, "Rule", "pool", needs)
    return checked_rule(found, f"pool={name}: Rule of {file_of(pool_rules.__name__, name)}")


def checked_rule(found: Any, where: str) -> type[PoolRule]:
    """``found``, if it is a rule. Raises ``UserError``, which ``where`` begins, if it is none."""
    check_class(found, PoolRule, where)
    check_settings(found, where)
    rule: type[PoolRule] = found
    return rule
