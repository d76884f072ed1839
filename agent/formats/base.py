"""What a format is: the text of a prompt, what a turn of the policy means, the tokens of an observation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from agent.config import AgentConfig
from agent.protocol import Action, TagProtocol
from agent.records import Finish
from agent.tokens import TokenCodec
from agent.tools.base import Tool


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One result as the policy sees it: a text that forges nothing, and its ids when it is encoded by itself."""

    text: str
    ids: tuple[int, ...]


class Format(ABC):
    """One way to write an episode down, for one tokenizer and the tools of a run.

    Its ``__init__`` sets the fields below, and raises ``UserError`` for what doesn't fit.
    """

    in_tags: ClassVar[bool] = False
    """Whether calls and results stand between tags of ``agent.protocol`` and of the tools: a prompt of the user's own
    is then the user's message, and tells the tags."""
    protocol: TagProtocol
    """The tags of the answer, and those that gates and experts know calls and results by."""
    stop: tuple[str, ...]
    """Strings that end the policy's turn; the model's end token does, too."""
    marks: tuple[str, ...]
    """Strings that no untrusted text may contain, special tokens aside."""
    end: str = ""
    """The special token in ``stop`` that ends any turn, where the model's end token is another one; else empty."""
    begun: tuple[str, str] = ("", "")
    """What is open where the first turn begins, since the prompt has opened it, and where a later turn begins:
    ``<think>`` or nothing."""
    ends_turns: bool = False
    """Whether ``written`` brings the token that ends a turn; otherwise an answer without a closing tag lacks it."""
    notices: tuple[str, ...] = ()
    """What a user should know of this format with this tokenizer."""
    beginning: tuple[int, ...] = ()
    """Ids that every prompt starts with, where its text doesn't bring them."""

    @abstractmethod
    def __init__(self, codec: TokenCodec, config: AgentConfig, tools: Sequence[type[Tool]]) -> None: ...

    @abstractmethod
    def prompt(self, question: str) -> str:
        """The prompt of a question that forges nothing."""

    @abstractmethod
    def parse(self, text: str, finish: Finish) -> Action:
        """What the turn ``text`` asks for: special tokens and what was ``begun`` of it included."""

    @abstractmethod
    def observation(self, shown: Sequence[Shown], last: int | None) -> list[int]:
        """Ids of all that stands between a turn that ended with the token ``last`` and the next turn."""

    @abstractmethod
    def written(self, action: str, *, last: bool) -> list[int]:
        """Ids of an expert's action, which is given in the tags of ``protocol``; ``last`` ends the episode."""
