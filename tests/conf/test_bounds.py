"""Every number of the configuration has bounds, and what lies outside is refused with its key and its range."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any

import pytest

from agent.errors import UserError
from agent.pool.rules.base import rule_class, rule_names
from agent.settings import MOST, RANGE, Range, bounded, check_bounds
from conf.schema import RunConfig
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import own_settings


def settings_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, type, Field[Any], Any]]:
    """Key, dataclass, field and type of each setting below ``kind``."""
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        if is_dataclass(hints[f.name]) and f.name not in ("pool", "retrieval"):
            yield from settings_of(hints[f.name], f"{prefix}{f.name}.")
        elif f.name == "pool":
            for rule in rule_names():
                yield from settings_of(rule_class(rule), "pool.")
        elif f.name == "retrieval" and kind is RunConfig:
            for ranker in (RetrievalConfig, *own_settings().values()):
                yield from settings_of(ranker, "retrieval.")
        else:
            yield f"{prefix}{f.name}", kind, f, hints[f.name]


def numeric(hint: Any) -> bool:
    return hint in (int, float) or any(numeric(part) for part in typing.get_args(hint))


NUMBERS = [(key, kind, f, hint) for key, kind, f, hint in settings_of(RunConfig) if numeric(hint)]


def test_every_number_has_bounds() -> None:
    assert len(NUMBERS) > 100
    assert [key for key, _, f, _ in NUMBERS if RANGE not in f.metadata] == []


def outside(bounds: Range, hint: Any) -> list[float]:
    below = bounds.low if bounds.low_open else bounds.low - 1
    above = bounds.high if bounds.high_open else bounds.high * 2
    return [below, above, math.inf, -math.inf, math.nan] if "float" in str(hint) else [int(below), int(above)]


@pytest.mark.parametrize(("key", "kind", "f", "hint"), NUMBERS, ids=[f"{k}-{c.__module__}" for k, c, _, _ in NUMBERS])
def test_what_lies_outside_is_refused_with_key_and_range(key: str, kind: Any, f: Field[Any], hint: Any) -> None:
    bounds = f.metadata[RANGE]
    needed = {"source": "jsonl", "corpus": "x"} if key == "data.dev_share" else {}
    needed |= {"pool": rule_class("recycle")()} if kind is RunConfig else {}
    for number in outside(bounds, hint):
        value: Any = number
        if typing.get_origin(hint) is list:
            value = [[0.5, 0.0, number]] if "list[list" in str(hint) else [0.5, number, 0.5]
        elif typing.get_origin(hint) is dict:
            value = {"hidden_size": number}
        with pytest.raises(UserError) as refused:
            kind(**needed, **{f.name: value})
        said = str(refused.value)
        assert said.startswith(f"{key}={value} must ")
        assert said.endswith((bounds.text, f"at most {MOST}"))


@pytest.mark.parametrize(
    ("text", "inside", "beyond"),
    [
        ("at least 1", (1, 7, MOST), (0, 0.9, -1, MOST + 1)),
        ("above 0", (1e-30, 3.5), (0.0, -1e-30, 1e300)),
        ("above 0 and at most 1", (1e-30, 1.0), (0.0, 1.1, math.inf)),
        ("at least 0.5 and at most 10", (0.5, 10), (0.4, 10.1)),
        ("in [0, 1)", (0.0, 0.999), (1.0, -0.1)),
        ("in (0, 1]", (1.0, 1e-9), (0.0, 1.1)),
    ],
)
def test_a_range_is_what_it_says(text: str, inside: tuple[float, ...], beyond: tuple[float, ...]) -> None:
    bounds = Range.of(text)
    assert all(number in bounds for number in inside)
    assert not any(number in bounds for number in (*beyond, math.nan))


def test_a_range_that_nobody_can_read_is_a_mistake_of_ours() -> None:
    for text in ("[0, 1]", "between 0 and 1", "at least one", "at most 1", ""):
        with pytest.raises(ValueError, match=r"at least|could not convert"):
            Range.of(text)


def test_a_default_that_can_be_changed_is_not_shared() -> None:
    @dataclass
    class Settings:
        shares: list[float] = bounded([1.0, 2.0], "at least 0")

    one, other = Settings(), Settings()
    one.shares[0] = -1
    check_bounds(other, "x")
    with pytest.raises(UserError, match=r"^x\.shares=\[-1, 2\.0\] must be at least 0$"):
        check_bounds(one, "x")
