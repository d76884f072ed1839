"""Text that others wrote, as terminals, tokenizers and files take it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor, gives orders to a terminal, turns the direction of writing, or can't be encoded. Tabs and ends
of lines stay."""


def visible(text: str) -> str:
    r"""``text`` with control characters as escapes.

    >>> visible("a\x1b[31mb\tc")
    'a\\x1b[31mb\tc'
    """
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable(text: str) -> str:
    """``text`` as tokenizers and Java take it, a plain one: halves of surrogate pairs become question marks, which are
    no words."""
    return str.encode(text, "utf-8", "replace").decode()


def json_line(row: Mapping[str, Any]) -> str:
    """``row`` as one line of JSON for programs and for people: letters as they are, control characters as escapes."""
    return _escaped(json.dumps(row, ensure_ascii=False)) + "\n"


def json_text(value: Any) -> str:
    """``value`` as JSON of many lines, in the same letters."""
    return _escaped(json.dumps(value, ensure_ascii=False, indent=1)) + "\n"


def _escaped(text: str) -> str:
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
