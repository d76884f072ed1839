"""What a dialect is: a body that asks, the reply to it, and both again from the asking side.

server:  body ──speaks──► request ──asked──► Asked ── search ──► hits ──reply──► JSON
client:  queries ──body──► JSON ── POST ──► JSON ──hits──► passages
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.readable import named
from agent.records import Passage
from retrieval_service.corpus import contents_of, split_contents, titled

Hits = tuple[Passage, ...]
TopK = Annotated[int, Field(ge=1)]


class Request(BaseModel):
    """A body of a request. Types are what they say: a number in quotes is no number. A key that it doesn't have is
    refused: another program's would be ignored, and the default of ours taken in silence."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, body: Any) -> Any:
        for name in body:
            if name not in cls.model_fields:
                own = ", ".join(map(repr, cls.model_fields))
                raise ValueError(f"{name[:40]!a} is no key of this request; its keys are {own}")
        return body


def mistake(error: ValidationError) -> str:
    """The first thing that is wrong with a request, on one line: where, and what. Nothing of what was sent is in it but
    a key."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    what = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc']))}: {what}" if first["loc"] else what


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a request asks for."""

    queries: tuple[str, ...]
    k: int
    scores: bool
    """Whether the reply gives them."""
    single: bool = False
    """One query by itself, and not a list of one: some replies differ."""


class Dialect(ABC):
    """One program's requests and replies."""

    about: ClassVar[str]
    """Whose it is, for the page that lists the routes."""
    path: ClassVar[str]
    """Where its requests go, by POST; several dialects may share one."""
    request: ClassVar[type[Request]]
    example: ClassVar[Mapping[str, Any]]
    """A body that it would send."""

    # --- the server's side ---

    @abstractmethod
    def speaks(self, body: Mapping[str, Any]) -> bool:
        """Whether ``body`` is of this dialect, among those that share its path."""

    @abstractmethod
    def asked(self, request: Any) -> Asked:
        """What a request, an instance of ``self.request``, asks for."""

    @abstractmethod
    def reply(self, asked: Asked, found: Sequence[Hits]) -> Any:
        """The reply, made of what JSON has; ``found`` are each query's passages, best first. A passage without a score
        isn't given one: its entry has none, or null where a list has to have one."""

    # --- the client's side ---

    batched: ClassVar[bool] = True
    """Whether a body holds several queries."""

    @abstractmethod
    def body(self, queries: Sequence[str], k: int) -> dict[str, Any]:
        """A body that asks for each query's ``k`` best passages, with scores; of one query unless ``batched``."""

    @abstractmethod
    def hits(self, reply: Any) -> list[Hits]:
        """Each query's passages. Raises ``ValueError`` with the reason for a reply that this dialect doesn't have."""


def document(passage: Passage) -> dict[str, str]:
    """A passage as ``{id, title, text, contents}``, which has the keys that any of the programs reads."""
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "contents": contents_of(passage.title, passage.text),
    }


def passage_of(document: Any, score: Any = None) -> Passage:
    """The passage that a reply's document is: its title stands beside its contents or on their first line, as in a
    corpus (``corpus.py``). One without an id is named by a digest of its contents. A score of None is none.

    Raises ``ValueError`` with the reason if it is none.
    """
    if not isinstance(document, dict):
        raise ValueError(f"a document is {named(document)}, not an object")
    contents, title, text = (document.get(key) for key in ("contents", "title", "text"))
    text = "" if text is None and "text" in document else text  # as in a corpus, beside a title
    if isinstance(contents, str) and contents.strip():
        given = " ".join(title.split()) if isinstance(title, str) else ""
        title, text = split_contents(titled(given, contents))
    elif not (isinstance(text, str) and isinstance(title or "", str) and (text.strip() or (title or "").strip())):
        raise ValueError('a document has neither "contents" nor "text"')
    if isinstance(score, bool) or not (
        score is None or (isinstance(score, int | float) and abs(score) <= sys.float_info.max)
    ):
        raise ValueError(f"a score is {score!r:.40}, not a number")
    name = document.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | float | None):
        raise ValueError(f"an id is {named(name)}, not a text")
    if name in (None, ""):
        name = "contents-" + hashlib.blake2b(f"{title}\n{text}".encode(errors="replace"), digest_size=8).hexdigest()
    return Passage(id=str(name), title=title or "", text=text, score=None if score is None else float(score))


def items(value: Any, what: str) -> list[Any]:
    """``value`` if it is a list; raises ``ValueError`` that says what is none otherwise."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {named(value)}, not a list")
    return value


def paired(documents: Any, scores: Any) -> Hits:
    """The passages of a list of documents and a list of as many scores, null where none is told; raises ``ValueError``
    for anything else."""
    documents, scores = items(documents, "the documents"), items(scores, "the scores")
    if len(documents) != len(scores):
        raise ValueError(f"{len(documents)} documents have {len(scores)} scores")
    return scored_alike(tuple(map(passage_of, documents, scores)))


def scored_alike(hits: Hits) -> Hits:
    """``hits`` of one reply; raises ``ValueError`` if some have a score and others none: the reply is damaged."""
    if len({passage.score is None for passage in hits}) > 1:
        raise ValueError("some documents have a score, and others have none")
    return hits
