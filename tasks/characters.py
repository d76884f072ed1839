"""A ``TokenCodec`` without a tokenizer: its ids are code points, so a dialogue over it shows the exact text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Characters:
    """One id for each character; no token is special, and a chat has no frame."""

    special_tokens: tuple[str, ...] = ()
    special_ids: frozenset[int] = frozenset()
    eos_ids: tuple[int, ...] = ()
    beginning: tuple[int, ...] = ()
    has_template: bool = False

    def encode(self, text: str) -> list[int]:
        """See ``agent.tokens.TokenCodec``."""
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """See ``agent.tokens.TokenCodec``."""
        return "".join(map(chr, ids))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """See ``agent.tokens.TokenCodec``."""
        return "".join(message["content"] for message in messages)
