"""Two configurations compared, key by key."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "(no such key)"
_SHOWN = 60
"""Characters of a value in a list of differences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A setting that two configurations don't agree on."""

    key: str
    """With dots: ``algorithm.optimizer.lr``."""
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}={_short(self.now)} (was {_short(self.before)})"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What differs between two nested configurations, by key. A key that one of them lacks is ``NOTHING`` there."""
    one, other = dict(_flat(before)), dict(_flat(now))
    pairs = ((key, one.get(key, NOTHING), other.get(key, NOTHING)) for key in sorted(one.keys() | other.keys()))
    return [Difference(key=key, before=was, now=is_now) for key, was, is_now in pairs if was != is_now]


def of_both(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """``differences`` of the keys that both have: one that only one of them has belongs to a choice that differs itself
    (``pool.name``), or to another version of this program."""
    return [d for d in differences(before, now) if NOTHING not in (d.before, d.now)]


def listed(found: Iterable[Difference], digests: Collection[str] = ()) -> str:
    """Differences in one line. Of the keys in ``digests`` the values say nothing to a person."""
    return ", ".join(f"{d.key}: not the same" if d.key in digests else str(d) for d in found)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
