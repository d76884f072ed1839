"""A pool rule of the user's own by import path, beside rewards and losses: checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import launch
from agent.errors import UserError

OWN = """
from dataclasses import dataclass, field

from agent.pool.rules.base import AT_ONCE, OversamplingRule, PoolRule


@dataclass
class Patient(OversamplingRule):
    patience: int = 3

    def wanted(self, *, room, drawn, zero):
        return self.candidates - drawn

    def rest(self, verdict, history, query):
        return self.patience or AT_ONCE

    def resets(self, *, available):
        return False


class Undressed(Patient):
    other: int = 1


@dataclass
class Unfinished(PoolRule):
    pass


@dataclass
class Positional(Patient):
    def wanted(self, room, drawn):
        return 0


@dataclass
class Called(Patient):
    def candidates(self):
        return 3


@dataclass
class Exploring(Patient):
    def explore(self):
        return 0.1


@dataclass
class Holding(Patient):
    seen: object = field(default_factory=object)


@dataclass
class Raising(Patient):
    def __post_init__(self):
        raise ZeroDivisionError("no patience")


@dataclass
class Crowded(Patient):
    group_size: int = 1


def judge(question, trajectory):
    return 1.0
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rule_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_its_fields_are_settings_like_those_of_the_shipped_rules() -> None:
    (config,) = launch.check_overrides(["pool=own_rule_module:Patient", "pool.patience=5", "pool.oversample=2"]).configs
    assert type(config.pool).__name__ == "Patient"
    assert (config.pool.name, config.pool.candidates) == ("own_rule_module:Patient", 48)
    assert vars(config.pool)["patience"] == 5
    with pytest.raises(UserError, match=r"pool\.patients is not a setting; did you mean 'pool\.patience'\?"):
        launch.check_overrides(["pool=own_rule_module:Patient", "pool.patients=5"])
    with pytest.raises(UserError, match=r"pool\.oversample=0\.5 must be at least 1"):
        launch.check_overrides(["pool=own_rule_module:Patient", "pool.oversample=0.5"])


def test_a_sweep_may_compare_it_with_a_shipped_one() -> None:
    request = launch.check_overrides(["-m", "mode=simulate", "pool=epoch,own_rule_module:Patient", "seed=0,1"])
    assert request.sweep is not None
    assert [job.overrides["pool"].replace("\\", "") for job in request.sweep.plan.jobs] == ["epoch"] * 2 + [
        "own_rule_module:Patient"
    ] * 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("pool=own_rule_module:Patiant", "own_rule_module has no Patiant; did you mean 'Patient'?"),
        ("pool=own_rule_modul:Patient", "there is no module own_rule_modul; set PYTHONPATH"),
        ("pool=own_rule_module:judge", "must be a class made from agent.pool.rules.base.PoolRule"),
        ("pool=own_rule_module:Undressed", "is no dataclass; write @dataclass above it"),
        ("pool=own_rule_module:Unfinished", "lacks candidates, resets, rest, select, wanted; see"),
        ("pool=own_rule_module:Positional", "wanted must take (self, *, room, drawn, zero), as PoolRule's does"),
        ("pool=own_rule_module:Called", "candidates must be a property or a value, as PoolRule's is"),
        ("pool=own_rule_module:Exploring", "explore must be a property or a value, as PoolRule's is"),
        (
            "pool=own_rule_module:Holding",
            "its settings can't be made (ValidationError: Unexpected type annotation: object ",
        ),
        ("pool=own_rule_module:Raising", "its settings can't be made (ZeroDivisionError: no patience)"),
        ("pool=own_rule_module:Crowded", "with its own defaults, pool.group_size=1 must lie in [2, 255]"),
        ("reward=own_rule_module:judge", "is no choice of reward; did you mean reward.outcome=own_rule_module:judge?"),
        ("algorithm=own_rule_module:judge", "did you mean algorithm.loss=own_rule_module:judge?"),
        ("reward.outcome=own_rule_module.py:judge", "a module is named without .py; write own_rule_module:judge"),
        ("reward.outcome=own_rule_module:juge", "own_rule_module has no juge; did you mean 'judge'?"),
        ("algorithm.loss=own_rule_module:judge", "must be a class made from learner.losses.base.Loss"),
    ],
)
def test_a_path_that_is_none_is_one_line(argument: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        launch.check_overrides([argument])
    assert str(error.value).startswith(argument)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reward_of_ones_own_is_a_valid_run() -> None:
    (config,) = launch.check_overrides(["reward.outcome=own_rule_module:judge", "algorithm.loss=gspo"]).configs
    assert (config.reward.outcome, config.algorithm.loss) == ("own_rule_module:judge", "gspo")


def test_it_is_a_condition_of_a_sweep_by_its_path() -> None:
    asked = launch.check_overrides(
        ["-m", "pool=own_rule_module:Patient,epoch", "report.baseline=pool=own_rule_module:Patient"]
    )
    assert asked.sweep is not None
    assert [job.name for job in asked.sweep.plan.jobs] == ["pool=own_rule_module:Patient", "pool=epoch"]
