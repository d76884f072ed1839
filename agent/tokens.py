"""Between text and token ids: the port that the episode uses, and the real tokenizer behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from unicodedata import category

from agent.collector import without_collector
from agent.errors import UserError, shortened
from agent.readable import content_of


class TokenCodec(Protocol):
    """What the agent needs of a tokenizer. Text goes in once; sampled tokens are never re-encoded."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Every string that encodes to one reserved id wherever it occurs in a text."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of ``special_tokens``."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a turn; the engine stops on them by itself."""

    @property
    def beginning(self) -> tuple[int, ...]:
        """The ids that the model expects before a text: a begin token, or nothing. A chat brings its own."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as it stands: no begin or end token is added, special tokens are recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation in the model's chat template, up to where the assistant starts.

        ``tools`` are JSON schemas, ``options`` variables of the template. Raises ``UserError`` for a template that is
        missing or fails.
        """


SAMPLE = "Question: Who wrote Emma in 1815?\nAnswer: Jane Austen."
"""A text that every tokenizer of a language model gives back as it was."""


class Tokenizer:
    """A Hugging Face tokenizer as a ``TokenCodec``.

    Raises ``UserError`` that starts with ``given`` (by default ``model.path=…``) when ``path`` holds none.
    """

    def __init__(self, path: str | Path, given: str | None = None) -> None:
        with without_collector():
            from transformers import AutoTokenizer

        self._given = given or f"model.path={path}"
        self._path = Path(path)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        except Exception as error:  # what a damaged file raises depends on the kind of the tokenizer
            raise UserError(f"{self._given}: no tokenizer can be loaded from it ({shortened(error)})") from error

    def check(self, rows: int) -> None:
        """Raises ``UserError`` unless this is a tokenizer for a model whose embedding has ``rows`` rows.

        Where its files are missing, transformers makes an empty one without an error.
        """
        with content_of(f"{self._given}: its tokenizer"):
            self._check(rows)

    def _check(self, rows: int) -> None:
        ids, files = self.encode(SAMPLE), ("tokenizer.json", "tokenizer_config.json")
        missing = [name for name in files if not (self._path / name).is_file()]
        hint = f" ({' and '.join(missing)} missing)" if missing else ""
        if not ids:
            raise UserError(
                f"{self._given}: its tokenizer makes no tokens of a text{hint}; copy the tokenizer's files from the "
                "model that the weights come from"
            )
        if (text := self.decode(ids)).strip() != SAMPLE:
            raise UserError(
                f"{self._given}: its tokenizer makes {text!r} of {SAMPLE!r}{hint}; copy the tokenizer's files from the "
                "model that the weights come from"
            )
        token, highest = max(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        if highest >= rows:
            raise UserError(
                f"{self._given}: its tokenizer has ids up to {highest} ({token}){hint}, and the model's embedding has "
                f"{rows} rows; copy the tokenizer's files from the model that the weights come from, or resize the "
                "embedding"
            )
        if not self.eos_ids:
            raise UserError(
                f"{self._given}: its tokenizer has no end token{hint}; name it as eos_token in tokenizer_config.json"
            )
        end: str = self._tokenizer.eos_token
        if not end or (len(end) == 1 and end.isalnum()):
            raise UserError(
                f"{self._given}: its tokenizer's end token is {end!r}, at which no turn can end; name the model's own "
                "as eos_token in tokenizer_config.json"
            )

    @property
    def _added(self) -> Iterable[Any]:
        return self._tokenizer.added_tokens_decoder.values()

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        # Added tokens match anywhere in a text, whether or not they are flagged as special.
        # White space or a single character forges nothing, and occurs in every document: also as SentencePiece
        # writes it (Gemma has tokens of several "▁"). Nor do words that a tokenizer was given for its field.
        added = [token.content for token in self._added if token.special or not _is_word(token.content)]
        names = {*added, *self._tokenizer.all_special_tokens}
        return tuple(sorted(name for name in names if len(name.replace("\u2581", " ").strip()) > 1))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.convert_tokens_to_ids(list(self.special_tokens)))

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Of the tokens that the tokenizer flags as special: ends and beginnings of turns and texts."""
        flagged = {i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset({*flagged, *self._tokenizer.all_special_ids})

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        # Whatever puts it there, a post-processor or add_bos_token; what comes after the text isn't taken.
        with content_of(f"{self._given}: its tokenizer"):
            text, whole = self.encode(SAMPLE), self._tokenizer.encode(SAMPLE, add_special_tokens=True)
        for at in range(len(whole) - len(text) + 1):
            if whole[at : at + len(text)] == text:
                return tuple(whole[:at])
        raise UserError(f"{self._given}: its tokenizer changes a text when it adds special tokens to it")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a turn; the engine stops on them by itself."""
        return () if self._tokenizer.eos_token_id is None else (self._tokenizer.eos_token_id,)

    @cached_property
    def _fast(self) -> Any:
        """The tokenizer's Rust part, five times as fast as by transformers; None if it has none."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if fast is not None:  # transformers sets both anew for each call, whatever the file says
            fast.no_truncation()
            fast.no_padding()
        return fast

    def encode(self, text: str) -> list[int]:
        if self._fast is None:
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._fast.encode(text, add_special_tokens=False).ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many ids ``encode`` makes of each text, all at once: many times faster than one by one."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @property
    def has_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> str:
        if not self.has_template:
            raise UserError(
                f"{self._given}: its tokenizer has no chat template, which agent.chat=true and agent.format=tools "
                "need; set agent.chat=false and agent.format=tags"
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=True,
                **(options or {}),
            )
            text.encode()  # half a character, as JSON may have it, is none that a tokenizer takes
            return text
        except Exception as error:  # a template is a program
            raise UserError(
                f"{self._given}: its chat template fails ({type(error).__name__}: {shortened(error)}); fix it or set "
                "agent.chat=false and agent.format=tags"
            ) from error

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer's files into the folder ``path``."""
        self._tokenizer.save_pretrained(str(path))


def _is_word(token: str) -> bool:
    """Whether it is of letters and what stands between them, as a name or a term is; what frames a text is not."""
    return all(char.isalnum() or char in " \u2581-'’.&+" or category(char)[0] == "M" for char in token)
