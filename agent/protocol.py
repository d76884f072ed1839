"""Tag protocols: how the policy asks, how the environment answers, and what can't be forged.

Trusted text (templates, tags) and untrusted text (questions, passages) are encoded apart. Untrusted
text is neutralised first: a protocol tag or a special token inside it is broken with a space, and
what comes out of the tokenizer is checked, so that no document can open or close a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from agent.config import AgentConfig
from agent.errors import Fault, one_of
from agent.records import Passage, Repeat
from agent.tokens import TokenCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """What one turn of the policy asks for: a search, an answer, or (both None) nothing valid."""

    query: str | None = None
    answer: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TagProtocol:
    """One set of tags.

    ``answer_close`` of ``}`` means a brace-balanced answer as in ``\\boxed{…}``: it can't be a stop
    string, so such an answer is read when the policy ends its turn.
    """

    name: str
    search_open: str
    search_close: str
    result_open: str
    result_close: str
    answer_open: str
    answer_close: str
    result_label: str

    @property
    def tags(self) -> tuple[str, ...]:
        """The strings that no untrusted text may contain."""
        tags = (self.search_open, self.search_close, self.result_open, self.result_close, self.answer_open)
        return tags if self.braced_answer else (*tags, self.answer_close)

    @property
    def braced_answer(self) -> bool:
        return self.answer_close == "}"

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end the policy's turn."""
        return (self.search_close,) if self.braced_answer else (self.search_close, self.answer_close)

    def parse(self, text: str) -> Action:
        """The action that ends ``text``, the policy's whole turn.

        The turn ends at the first closing tag; what follows it is the rest of the last token. A
        closing tag without its opening one, or an empty query, is no action.
        """
        closes = {tag: at for tag in self.stop if (at := text.find(tag)) >= 0}
        if closes:
            tag = min(closes, key=lambda t: closes[t])
            opening = self.search_open if tag == self.search_close else self.answer_open
            start = text.rfind(opening, 0, closes[tag])
            if start < 0:
                return Action()
            content = text[start + len(opening) : closes[tag]].strip()
            if tag == self.search_close:
                return Action(query=content) if content else Action()
            return Action(answer=content)
        return Action(answer=self._boxed(text)) if self.braced_answer else Action()

    def _boxed(self, text: str) -> str | None:
        """The content of the last balanced ``answer_open … }``, or None."""
        start = text.rfind(self.answer_open)
        while start >= 0:
            depth, begin = 1, start + len(self.answer_open)
            for at in range(begin, len(text)):
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                if depth == 0:
                    return text[begin:at].strip()
            start = text.rfind(self.answer_open, 0, start)
        return None


PROTOCOLS = {
    p.name: p
    for p in (
        TagProtocol(
            name="search",
            search_open="<search>",
            search_close="</search>",
            result_open="<result>",
            result_close="</result>",
            answer_open="<answer>",
            answer_close="</answer>",
            result_label="Result",
        ),
        TagProtocol(
            name="autocoa",
            search_open="<begin_search>",
            search_close="</end_search>",
            result_open="<search_result>",
            result_close="</search_result>",
            answer_open="\\boxed{",
            answer_close="}",
            result_label="result",
        ),
    )
}

PROMPTS = {
    "plain": "Question: {question}\n",
    "instruct": (
        "Answer the question below. You can look things up in a document collection: write "
        "{search_open} a short query {search_close} and the best passages come back between {result_open} "
        "and {result_close}. Think before each search about what is still missing, search once for each "
        "missing fact, and don't repeat a query. When the passages support an answer, write it, as short "
        "as possible, as {answer_open}the answer{answer_close}.\n\nQuestion: {question}\n"
    ),
}

NO_RESULTS = "No passage matches this query."
LIMIT_NOTICE = "The search limit is reached. Give the answer now."
REPEAT_NOTICES = {
    Repeat.QUERY: "This query was searched before. Its passages are above.",
    Repeat.EVIDENCE: "Nothing new was found. These passages are above.",
}
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


ENCODINGS = 512
"""Prompts, and observations, that a dialogue remembers: the episodes of a group share theirs, which costs an engine
on a CPU a tenth of its speed to encode again and again."""


class Dialogue:
    """A tag protocol over one tokenizer: prompts and observations as token ids.

    Raises ``UserError`` for an unknown protocol or prompt, and ``Fault`` when a tokenizer turns
    neutralised text into a tag or a special token all the same.
    """

    def __init__(
        self,
        codec: TokenCodec,
        *,
        protocol: str,
        prompt: str,
        chat: bool,
        max_passage_chars: int,
        beginning: Sequence[int] = (),
    ) -> None:
        """``beginning`` are ids that every prompt starts with; a chat's template brings them itself."""
        one_of(protocol, PROTOCOLS, "agent.protocol")
        one_of(prompt, PROMPTS, "agent.prompt")
        self.protocol = PROTOCOLS[protocol]
        self.codec = codec
        self._chat = chat
        self._beginning = tuple(beginning)
        self._template = PROMPTS[prompt]
        self._max_passage_chars = max_passage_chars
        self._forbidden = tuple({*self.protocol.tags, *codec.special_tokens})
        self._open = codec.encode(f"\n{self.protocol.result_open}\n")
        self._close = codec.encode(f"\n{self.protocol.result_close}\n")
        self._prompt = lru_cache(ENCODINGS)(self._encode_prompt)
        self._harmless = lru_cache(ENCODINGS)(self._make_harmless)

    @classmethod
    def of(cls, codec: TokenCodec, config: AgentConfig) -> Dialogue:
        """The dialogue that ``config`` describes."""
        return cls(
            codec,
            protocol=config.protocol,
            prompt=config.prompt,
            chat=config.chat,
            max_passage_chars=config.max_passage_chars,
            beginning=() if config.chat else codec.beginning,
        )

    def prompt_ids(self, question: str) -> list[int]:
        """(P,) ids of the prompt for ``question``, the tokenizer's own beginning included."""
        return [*self._prompt(question)]

    def prompt_text(self, question: str) -> str:
        """The prompt for ``question`` as text."""
        return self._around(self._harmless(question)[0])

    def neutral(self, question: str) -> str:
        """``question`` without tags and special tokens, as its prompt has it unless the tokenizer rebuilds one."""
        return neutralise(question, self._forbidden)

    def _encode_prompt(self, question: str) -> tuple[int, ...]:
        return (*self._beginning, *self.codec.encode(self.prompt_text(question)))

    def _around(self, harmless: str) -> str:
        """The prompt around a question that forges nothing."""
        tags = {
            name: getattr(self.protocol, name)
            for name in ("search_open", "search_close", "result_open", "result_close", "answer_open", "answer_close")
        }
        text = self._template.format(question=harmless, **tags)
        return self.codec.chat(text) if self._chat else text

    def observation_ids(self, passages: Sequence[Passage]) -> list[int]:
        """Ids of the result block that shows ``passages``, in their order, numbered from 1."""
        shown = []
        for number, passage in enumerate(passages, start=1):
            title = passage.title.replace("\n", " ")[: self._max_passage_chars]
            text = passage.text[: self._max_passage_chars]
            shown.append(
                f'{self.protocol.result_label} {number}: "{title}"\n{text}'
                if title
                else f"{self.protocol.result_label} {number}: {text}"
            )
        return [*self._open, *self._harmless("\n".join(shown) or NO_RESULTS)[1], *self._close]

    def notice_ids(self, notice: str) -> list[int]:
        """Ids of a result block with a ``notice`` of ours in the place of passages."""
        return [*self._open, *self.codec.encode(notice), *self._close]

    def _make_harmless(self, text: str) -> tuple[str, tuple[int, ...]]:
        """Untrusted ``text``, neutralised, and its ids."""
        safe = neutralise(text, self._forbidden)
        ids = self.codec.encode(safe)
        # A tokenizer that normalises (full-width to ASCII, say) could rebuild a tag: look at what it made.
        if self._forged(ids):
            safe = neutralise(self.codec.decode(ids), self._forbidden)
            ids = self.codec.encode(safe)
            if self._forged(ids):
                raise Fault(f"this tokenizer rebuilds a protocol tag out of untrusted text: {text[:80]!r}")
        return safe, tuple(ids)

    def _forged(self, ids: Sequence[int]) -> bool:
        decoded = self.codec.decode(ids)
        return bool(self.codec.special_ids.intersection(ids)) or any(tag in decoded for tag in self.protocol.tags)
