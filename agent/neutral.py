"""Untrusted text (questions, passages, a tool's findings) that can open or close nothing.

A tag of ours or a special token inside it is broken with a space before it is encoded, and what comes out of the
tokenizer is checked, so that no document can open or close a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from agent.errors import Fault
from agent.tokens import TokenCodec

ENCODINGS = 512
"""Texts that are remembered: the episodes of a group share theirs, which costs an engine on a CPU a tenth of its speed
to encode again and again."""
_FIRST_VISIBLE = re.compile(r"^(\s*\S)")


@lru_cache(maxsize=16)
def _any_of(forbidden: tuple[str, ...]) -> re.Pattern[str]:
    breakable = sorted((f for f in forbidden if len(f.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(re.escape(f) for f in breakable))


def neutralise(text: str, forbidden: Sequence[str]) -> str:
    """``text`` with every occurrence of a ``forbidden`` string broken by a space after its first visible character.

    A forbidden string without two visible characters forges nothing and is left alone.

    >>> neutralise("a <search> tag", ["<search>"])
    'a < search> tag'
    """
    pattern = _any_of(tuple(forbidden))
    if not pattern.pattern:
        return text
    # Breaking one string may leave an overlapping one whole ("<a<ab>"), so repeat until none is left.
    while pattern.search(text):
        text = pattern.sub(lambda m: _FIRST_VISIBLE.sub(r"\1 ", m[0], count=1), text)
    return text


class Neutraliser:
    """Makes untrusted text harmless for one tokenizer: ``tags`` and the tokenizer's special tokens are broken in it."""

    def __init__(self, codec: TokenCodec, tags: Sequence[str]) -> None:
        self._codec = codec
        self._tags = tuple(tags)
        self._forbidden = tuple({*tags, *codec.special_tokens})
        self.harmless = lru_cache(ENCODINGS)(self._make_harmless)
        """From untrusted text to itself, neutralised, and its ids. Raises ``Fault`` when the tokenizer turns even that
        into a tag or a special token."""

    def neutral(self, text: str) -> str:
        """``text`` without tags and special tokens, as it is encoded unless the tokenizer rebuilds one."""
        return neutralise(text, self._forbidden)

    def _make_harmless(self, text: str) -> tuple[str, tuple[int, ...]]:
        safe = neutralise(text, self._forbidden)
        ids = self._codec.encode(safe)
        # A tokenizer that normalises (full-width to ASCII, say) could rebuild a tag: look at what it made.
        if self._forged(ids):
            safe = neutralise(self._codec.decode(ids), self._forbidden)
            ids = self._codec.encode(safe)
            if self._forged(ids):
                raise Fault(f"this tokenizer rebuilds a protocol tag out of untrusted text: {text[:80]!r}")
        return safe, tuple(ids)

    def _forged(self, ids: Sequence[int]) -> bool:
        decoded = self._codec.decode(ids)
        return bool(self._codec.special_ids.intersection(ids)) or any(tag in decoded for tag in self._tags)
