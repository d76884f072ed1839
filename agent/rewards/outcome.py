"""The outcome of an episode: a function of ``agent/rewards/outcomes``, or the user's own by its import path.

It takes ``(question, trajectory)``, or ``(question, trajectories)`` and then judges a whole group at once; it returns a
number in [0, 1], or one for each trajectory; and it may be ``async``. One that waits for something must be: the
worker's other episodes go on meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence, Set
from typing import Any

from agent.errors import RewardError, one_of, shortened
from agent.own import AWAITED_BREAKS, BREAKS, check_function, is_cancelled, is_path, resolve
from agent.records import MAX_REWARD, Question, Trajectory
from agent.rewards import outcomes
from agent.shipped import file_of, member_of, module_names

KEY = "reward.outcome"
_SIGNATURES = (("question", "trajectory"), ("question", "trajectories"))


def outcome_names() -> list[str]:
    """The names of the outcomes that are shipped."""
    return module_names(outcomes.__path__)


class Outcome:
    """Judges trajectories by the function that ``name`` names. Raises ``UserError`` where there is none."""

    def __init__(self, name: str) -> None:
        self._name, where = name, f"{KEY}={name}"
        if is_path(name):
            found = resolve(name, KEY)
        else:
            one_of(name, outcome_names(), KEY)
            found = member_of(outcomes.__name__, name, "outcome", KEY, "a function `outcome(question, trajectory)`")
            where += f": outcome of {file_of(outcomes.__name__, name)}"
        self._function, which = check_function(found, where, _SIGNATURES)
        self.groupwise = which == 1
        """Whether it judges the trajectories of a group by one another."""

    async def judge(self, question: Question, trajectories: Sequence[Trajectory]) -> list[float | RewardError]:
        """The outcome of each trajectory, or why it can't be told."""
        if not trajectories:
            return []
        if not self.groupwise:
            return list(await asyncio.gather(*(self._one(question, t) for t in trajectories)))
        try:
            values = self._listed(await self._called(question, list(trajectories)))
        except RewardError as error:
            return [error] * len(trajectories)
        if len(values) != len(trajectories):
            wrong = self._wrong(f"{len(values)} numbers for {len(trajectories)} trajectories")
            return [wrong] * len(trajectories)
        return [self._checked(value) for value in values]

    def _listed(self, value: Any) -> list[Any]:
        """The values of a group. Raises ``RewardError`` for what is no list, and for all that a generator raises."""
        if isinstance(value, str | bytes | Mapping | Set):  # letters, keys, and values without an order
            raise self._wrong(f"a {type(value).__name__}, which is no list of numbers")
        try:
            return list(value)
        except TypeError:
            raise self._wrong("something that is no list of numbers") from None
        except BREAKS as error:
            raise self._raised(error) from error

    async def _one(self, question: Question, trajectory: Trajectory) -> float | RewardError:
        try:
            return self._checked(await self._called(question, trajectory))
        except RewardError as error:
            return error

    async def _called(self, question: Question, given: Trajectory | list[Trajectory]) -> Any:
        """What the function returns. Raises ``RewardError`` for all that it raises."""
        try:
            value = self._function(question, given)
            return await value if inspect.isawaitable(value) else value
        except AWAITED_BREAKS as error:
            if is_cancelled(error):
                raise
            raise self._raised(error) from error

    def _checked(self, value: Any) -> float | RewardError:
        if isinstance(value, str | bytes):  # of a judge whose reply wasn't read: now and then it is a number
            return self._wrong(_printed(value))
        try:
            number = float(value)
        except Exception:  # whatever a tensor, say, or a number that is too large raises
            return self._wrong(_printed(value))
        return number if 0 <= number <= MAX_REWARD else self._wrong(_printed(value))

    def _raised(self, error: BaseException) -> RewardError:
        return RewardError(f"{KEY}={self._name} raised {type(error).__name__}: {shortened(error)}")

    def _wrong(self, returned: str) -> RewardError:
        return RewardError(
            f"{KEY}={self._name} returned {shortened(ValueError(returned), 80)}; an outcome is a number in [0, 1]"
        )


def _printed(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # of a tensor whose card has failed, say
        return f"a {type(value).__name__}"
