"""A format over one tokenizer: prompts and observations as token ids, turns as actions.

Trusted text (templates, tags, notices) and untrusted text (questions, passages) are kept apart: the untrusted is
neutralised first (``agent/neutral.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache

import numpy as np

from agent.config import AgentConfig
from agent.errors import Fault, UserError
from agent.formats.base import Format, Shown
from agent.formats.catalogue import KEY, format_class
from agent.neutral import ENCODINGS, Neutraliser
from agent.own import told
from agent.protocol import NO_RESULTS, THINK, THOUGHT_END, Action, TagProtocol
from agent.records import Finish, Passage, Turn
from agent.tokens import TokenCodec
from agent.tools.base import Result
from agent.tools.catalogue import tool_classes

MARKER = "Who wrote Emma?"
"""A question for a trial: a prompt that is made of it has to contain it."""


class Dialogue:
    """What an episode needs to know of text and tokens.

    Raises ``Fault`` when a tokenizer turns neutralised text into a tag or a special token all the same, and
    ``UserError`` that names its method for whatever else the format raises, which may be the user's own, and for what
    it returns that is something else.
    """

    def __init__(self, codec: TokenCodec, format: Format, *, name: str, max_passage_chars: int) -> None:
        self.codec = codec
        self._format = format
        self._key = f"{KEY}={name}"
        self._max_passage_chars = max_passage_chars
        self._neutraliser = Neutraliser(codec, format.marks)
        self._prompt = lru_cache(ENCODINGS)(self._encode_prompt)

    @classmethod
    def of(cls, codec: TokenCodec, config: AgentConfig) -> Dialogue:
        """The dialogue that ``config`` describes.

        Raises ``UserError`` for an unknown protocol, prompt or tool, and for a format that isn't whole or leaves the
        question out.
        """
        make, tools = format_class(config.format), tool_classes(config.tools)
        where = f"{KEY}={config.format}"
        with told(f"{where}: __init__()"):
            format = make(codec, config, tools)
        if missing := [name for name in Format.__annotations__ if not hasattr(format, name)]:
            raise UserError(f"{where}: its __init__() sets no {', '.join(missing)}; see agent/formats/base.py")
        for name in ("stop", "marks", "notices"):
            if not _are_texts(getattr(format, name)):
                raise UserError(f"{where}: its '{name}' must be a tuple of texts, none of them empty")
        dialogue = cls(codec, format, name=config.format, max_passage_chars=config.max_passage_chars)
        if MARKER not in dialogue.prompt_text(MARKER):
            raise UserError(f"{where}: its prompt lacks the question")
        # What every episode asks of it: one that gives something else is told before anything is played.
        dialogue.parse("", Finish.STOP, first=True)
        dialogue._observed([dialogue._shown(Result())], None)
        return dialogue

    def _wrong(self, method: str, found: object, needed: str) -> UserError:
        return UserError(f"{self._key}: {method}() returned {type(found).__name__}, and {needed} is needed")

    def _ids(self, method: str, found: object) -> list[int]:
        """What a method of the format gave, as token ids. Raises ``UserError`` that names it if they are none."""
        ids = [*found] if isinstance(found, Iterable) else []
        if not ids or not all(isinstance(i, int | np.integer) for i in ids):
            raise self._wrong(method, found, "a list of token ids that isn't empty")
        return list(map(int, ids))

    def _asking(self, method: str) -> AbstractContextManager[None]:
        """The format is asked in the body."""
        return told(f"{self._key}: {method}()", but=(Fault,))

    @property
    def protocol(self) -> TagProtocol:
        """The tags of the answer; in a format without tags of its own, those that stand for calls and results."""
        return self._format.protocol

    @property
    def marks(self) -> tuple[str, ...]:
        """See ``Format.marks``."""
        return self._format.marks

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of this format with this tokenizer."""
        return self._format.notices

    @property
    def lacks_end(self) -> bool:
        """Whether an expert's last action has to be followed by an end token: no closing tag ends it."""
        return self.protocol.braced_answer and not self._format.ends_turns

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end the policy's turn."""
        return self._format.stop

    @property
    def end(self) -> str:
        """See ``Format.end``."""
        return self._format.end

    def prompt_ids(self, question: str) -> list[int]:
        """(P,) ids of the prompt for ``question``, the tokenizer's own beginning included."""
        return [*self._prompt(question)]

    def prompt_text(self, question: str) -> str:
        """The prompt for ``question`` as text."""
        harmless, _ = self._neutraliser.harmless(question)
        with self._asking("prompt"):
            text: object = self._format.prompt(harmless)
        if not isinstance(text, str):
            raise self._wrong("prompt", text, "a text")
        return text

    def neutral(self, question: str) -> str:
        """``question`` without tags and special tokens, as its prompt has it unless the tokenizer rebuilds one."""
        return self._neutraliser.neutral(question)

    def parse(self, text: str, finish: Finish, *, first: bool = False) -> Action:
        """What a turn of the policy asks for; ``first`` says that it follows the prompt."""
        with self._asking("parse"):
            action: object = self._format.parse(self._begun(first) + text, finish)
            if isinstance(action, Action):
                action.check()
        if not isinstance(action, Action):
            raise self._wrong("parse", action, "an agent.protocol.Action")
        return action

    def _begun(self, first: bool) -> str:
        return self._format.begun[0 if first else 1]

    def results_ids(self, results: Sequence[Result], last: int | None = None) -> list[int]:
        """Ids of all that stands between a turn, whose last token is ``last``, and the next one: ``results`` in their
        order, and what the format puts around them."""
        return self._observed([self._shown(result) for result in results], last)

    def _observed(self, shown: Sequence[Shown], last: int | None) -> list[int]:
        with self._asking("observation"):
            found = self._format.observation(shown, last)
        return self._ids("observation", found)

    def observation_ids(self, passages: Sequence[Passage], last: int | None = None) -> list[int]:
        """``results_ids`` of one search that found ``passages``."""
        return self.results_ids([Result(passages=tuple(passages))], last)

    def action_ids(self, action: str, *, first: bool = False, last: bool = False) -> list[int]:
        """Ids of an expert's action, which is written in the tags of ``protocol``; ``first`` follows the prompt, and
        ``last`` ends the episode. Where a thought has been opened, the expert closes it before it acts."""
        with self._asking("written"):
            found = self._format.written(action, last=last)
        return [*self._closed(self._begun(first)), *self._ids("written", found)]

    def answer_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Ids that open an answer behind ``turns`` and their observations; they close a thought that is open there."""
        said = self._begun(first=not turns)
        if self._format.in_tags:  # all turns are one message, and what an earlier one has opened may still be
            said = self._begun(first=True) + "".join(turn.text for turn in turns)
        return [*self._closed(said), *self.codec.encode(self.protocol.answer_open)]

    def _closed(self, said: str) -> list[int]:
        """Ids that close the thought which ``said`` has left open; none if it has left none."""
        return self.codec.encode(f"\n{THOUGHT_END}\n\n") if said.rfind(THINK) > said.rfind(THOUGHT_END) else []

    def _encode_prompt(self, question: str) -> tuple[int, ...]:
        return (*self._format.beginning, *self.codec.encode(self.prompt_text(question)))

    def _shown(self, result: Result) -> Shown:
        if result.notice:
            return Shown(text=result.notice, ids=tuple(self.codec.encode(result.notice)))
        text, ids = self._neutraliser.harmless(self._told(result))
        return Shown(text=text, ids=ids)

    def _told(self, result: Result) -> str:
        if result.text is None:
            return self._listed(result.passages)
        return result.text[: self._max_passage_chars * max(1, len(result.passages))]

    def _listed(self, passages: Sequence[Passage]) -> str:
        """``passages`` in their order, numbered from 1."""
        shown, label = [], self.protocol.result_label
        for number, passage in enumerate(passages, start=1):
            title = passage.title.replace("\n", " ")[: self._max_passage_chars]
            text = passage.text[: self._max_passage_chars]
            shown.append(f'{label} {number}: "{title}"\n{text}' if title else f"{label} {number}: {text}")
        return "\n".join(shown) or NO_RESULTS


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(text, str) and text for text in value)
