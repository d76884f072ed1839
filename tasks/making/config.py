"""Settings of the expert trajectories that are made."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from agent.config import AgentConfig
from agent.errors import UserError
from agent.prompts import check_placeholders
from agent.protocol import PROTOCOLS
from agent.settings import SENTENCE, bounded, check_bounds
from retrieval_service.address import is_askable
from retrieval_service.environment import reached
from tasks.config import check_three
from tasks.making.endpoint import COMPLETIONS, Endpoint

AUTO = "auto"
"""``data.experts=auto``: the run makes its own."""
THOUGHT = ("question", "query")
ANSWER_THOUGHT = ("question", "answer")
"""Placeholders of the templates."""
PLAYED: Mapping[str, Any] = {
    "format": "tags",
    "thinking": None,
    "tools": ["search"],
    "max_parallel": 1,
    "malformed": "stop",
}
"""Settings of the agent with which a model behind an endpoint plays, whatever they are."""


@dataclass
class EndpointConfig:
    """A model behind an OpenAI-compatible endpoint, which ``mode=eval`` plays in a checkpoint's place.

    Its key, where it wants one, is the environment variable ``SECRET``.
    """

    KEY: ClassVar[str] = "evaluation.endpoint"
    """Of these settings."""
    SECRET: ClassVar[str] = "ENDPOINT_KEY"

    url: str | None = field(default=None, metadata=SENTENCE)
    """Up to and without ``/chat/completions``, such as ``http://127.0.0.1:8000/v1``; None uses none."""
    model: str | None = field(default=None, metadata=SENTENCE)
    """The model's name there."""
    parallel: int = bounded(8, "at least 1")
    """Most episodes at a time."""
    timeout_s: float = bounded(120.0, "above 0")
    """For one try of one turn."""
    tries: int = bounded(4, "at least 1")
    """Most tries of one turn; before the second one a second passes, and twice as long before each later one."""

    def __post_init__(self) -> None:
        check_bounds(self, self.KEY)

    def check(self) -> None:
        """To be called where it is used. Raises ``UserError`` for an address that is none, without a model, or with
        certificates or proxies of the environment that can't be used."""
        key = self.KEY
        if self.url is not None and (problem := _wrong(self.url, self.SECRET)):
            shown = re.sub("//[^/]*@", "//…@", self.url)  # a password is for no log
            raise UserError(f"{key}.url={shown} {problem}")
        secret = os.environ.get(self.SECRET, "")
        if self.url is not None and not (secret.isascii() and (secret.isprintable() or not secret)):
            raise UserError(f"the environment variable {self.SECRET} must be a key of plain ASCII letters, on one line")
        if self.url is not None and not self.model:
            raise UserError(f"{key}.url={self.url} needs {key}.model=NAME, the model's name there")
        if self.url is None and self.model is not None:
            raise UserError(f"{key}.model={self.model} needs {key}.url=http://HOST:PORT/v1")
        if self.url is not None:
            reached(self.url)  # before an index is opened

    def client(self) -> Endpoint:
        """Of the endpoint; its key is taken from the environment."""
        return Endpoint(
            self.url or "",
            self.model or "",
            key=os.environ.get(self.SECRET, ""),
            timeout_s=self.timeout_s,
            tries=self.tries,
        )


def check_played(agent: AgentConfig, key: str) -> None:
    """Raises ``UserError`` for settings of ``agent`` that a model behind the endpoint ``key`` wouldn't play by."""
    for name, played in PLAYED.items():
        if (given := getattr(agent, name)) != played:
            raise UserError(
                f"agent.{name}={given}: a model behind {key} writes one search a turn, in tags; leave agent.{name} "
                "out, or take agent=search"
            )


def _wrong(url: str, secret: str) -> str:
    """What is wrong with an endpoint's address; empty for nothing."""
    if not url.startswith(("http://", "https://")):
        return "must start with http:// or https://"
    if not is_askable(url):
        return "is no address, such as http://127.0.0.1:8000/v1"
    parts = urlsplit(url)
    if parts.username is not None or parts.query or parts.fragment or parts.path.rstrip("/").endswith(COMPLETIONS):
        return f"is more than an address, such as http://127.0.0.1:8000/v1; a key goes into {secret}"
    return ""


@dataclass
class TeacherConfig(EndpointConfig):
    """A teacher behind such an endpoint: its right episodes with all of the evidence are kept.

    Without one, experts are made from the evidence alone.
    """

    KEY: ClassVar[str] = "experts.teacher"
    SECRET: ClassVar[str] = "TEACHER_KEY"

    episodes: int = bounded(4, "at least 1")
    """Episodes of each question."""
    temperature: float = bounded(0.7, "at least 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes > 1 and not self.temperature:
            raise UserError(
                f"{self.KEY}.episodes={self.episodes} needs {self.KEY}.temperature above 0: greedy episodes are all "
                f"alike; or set {self.KEY}.episodes=1"
            )


@dataclass
class ExpertsConfig:
    """How ``mode=experts`` and ``data.experts=auto`` make expert trajectories; ``data.experts`` says which are used."""

    count: int = bounded(0, "at least 0")
    """Most trajectories; 0 makes all that can be made of the training questions."""
    search_shares: list[float] | None = bounded(None, "at least 0")
    """Proportions of trajectories with one, two, and more searches; needs ``count``. Null takes a search for each
    supporting document, or what the teacher did."""
    guess_titles: bool = False
    """Where no other query finds a document, search for its title though neither the question nor a passage that was
    shown names it: more questions, and searches that no policy could think of."""
    thoughts: list[str] = field(default_factory=list)
    """Templates of what is said before a search, with ``{question}`` and ``{query}``; one is drawn for each."""
    answer_thoughts: list[str] = field(default_factory=list)
    """The same before an answer, with ``{question}`` and ``{answer}``."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        check_bounds(self, "experts")
        shares = self.search_shares
        if shares is not None:
            check_three(shares, "experts.search_shares")
            if not self.count:
                raise UserError("experts.search_shares needs experts.count=N: how many trajectories they are shares of")
        _check_templates(self.thoughts, "experts.thoughts", THOUGHT)
        _check_templates(self.answer_thoughts, "experts.answer_thoughts", ANSWER_THOUGHT)


def _check_templates(templates: list[str], key: str, known: tuple[str, ...]) -> None:
    tags = {tag for protocol in PROTOCOLS.values() for tag in protocol.tags}
    for template in templates:
        if not template.strip():
            raise UserError(f"{key}: a template is empty; leave it out")
        check_placeholders(template, known, f"{key}: {template!r}")
        for tag in tags:
            if tag in template:
                raise UserError(f"{key}: {template!r} has the tag {tag}; write the thought alone")
