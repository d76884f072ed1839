"""Between text and token ids: the port that the episode uses, and the real tokenizer behind it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from agent.errors import UserError


class TokenCodec(Protocol):
    """What the agent needs of a tokenizer. Text goes in once; sampled tokens are never re-encoded."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Every string that encodes to one reserved id wherever it occurs in a text."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of ``special_tokens``."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as it stands: no begin or end token is added, special tokens are recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""

    def chat(self, user: str) -> str:
        """``user`` as the first message of a conversation, up to where the assistant starts."""


class Tokenizer:
    """A Hugging Face tokenizer as a ``TokenCodec``. Raises ``UserError`` when ``path`` holds none."""

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"model.path={path}: no tokenizer can be loaded from it ({first})") from error

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        # Added tokens match anywhere in a text, whether or not they are flagged as special.
        # White space or a single character forges nothing, and occurs in every document.
        added = self._tokenizer.get_added_vocab()
        names = {*added, *self._tokenizer.all_special_tokens}
        return tuple(sorted(name for name in names if len(name.strip()) > 1))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.convert_tokens_to_ids(list(self.special_tokens)))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a turn; the engine stops on them by itself."""
        return () if self._tokenizer.eos_token_id is None else (self._tokenizer.eos_token_id,)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many ids ``encode`` makes of each text, all at once: many times faster than one by one."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def chat(self, user: str) -> str:
        if not self._tokenizer.chat_template:
            raise UserError("agent.chat=true, but this model's tokenizer has no chat template; set agent.chat=false")
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
        )

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer's files into the folder ``path``."""
        self._tokenizer.save_pretrained(str(path))
