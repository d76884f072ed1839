"""Whether, and when, the same request over HTTP is worth sending again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait by its ``Retry-After``, a number or a date (RFC 9110, section 10.2.3).

    A date counts from the answer's own, since clocks differ. 0 without one, and for what is neither.
    """
    said = headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal():
        return float(said)
    until, now = _time(said), _time(headers.get("Date", ""))
    return 0.0 if until is None else max(0.0, until - (time.time() if now is None else now))


def _time(date: str) -> float | None:
    """Seconds since 1970 of a date in a header; None for what is none."""
    try:
        parts = parsedate_tz(date)
        return None if parts is None else float(mktime_tz(parts))
    except (ValueError, OverflowError):
        return None
