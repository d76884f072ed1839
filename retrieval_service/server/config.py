"""Settings of the HTTP server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from agent.errors import UserError
from agent.settings import PATH, TEXT, bounded, check_bounds

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?")


@dataclass
class ServeConfig:
    """Where ``mode=serve`` listens, who may ask, and how much at once."""

    host: str = field(default="127.0.0.1", metadata=TEXT)
    """The address to listen at; the default is reached from this machine alone, ``0.0.0.0`` from everywhere."""
    port: int = bounded(8000, "in [0, 65535]")
    """0 takes a free one."""
    token_file: str | None = field(default=None, metadata=PATH)
    """The file with the token that requests must bear; without one, it is taken from ``SLINGSHOT_RETRIEVAL_TOKEN``.
    Without either, whoever reaches the server may search."""
    cors: list[str] = field(default_factory=list)
    """Origins, such as ``http://localhost:6274``, whose pages in a browser may ask: a browser lets none do it by
    itself."""
    max_query_chars: int = bounded(10_000, "at least 1")
    """Longest query. Lucene takes a word after the other, so a long one is slow for all."""
    max_queries: int = bounded(4096, "at least 1")
    """Most queries of one request; Search-R1 sends those of a whole batch of rollouts."""
    max_top_k: int = bounded(100, "at least 1")
    max_passages: int = bounded(50_000, "at least 1")
    """Most passages of one reply: a request's queries times the passages that it asks for of each. A passage takes
    about 1.3 KB there."""
    max_body_kib: int = bounded(4096, "at least 1")
    """Longest body of a request."""
    max_held_mib: int = bounded(512, "at least 1")
    """Most memory that the bodies and the replies of all requests take together, in MiB, until they have been read; one
    more is answered with 429."""
    max_waiting: int = bounded(8192, "at least 1")
    """Most searches that wait at once, of all requests together; one more request is answered with 429."""
    max_connections: int = bounded(512, "at least 1")
    """Most open connections; the next one is answered with 429 and closed."""
    read_timeout_s: float = bounded(10.0, "above 0")
    """Longest that a client may take to send a request's head, and then its body; and over which it has to read at
    least 16 KB a second of its reply."""

    def __post_init__(self) -> None:
        check_bounds(self, "serve")
        if not self.host.strip():  # as of a variable that isn't set, and the system would listen everywhere
            raise UserError("serve.host is empty; write 127.0.0.1 for this machine alone, 0.0.0.0 for everywhere")
        for origin in self.cors:
            if not _ORIGIN.fullmatch(origin):
                raise UserError(
                    f"serve.cors: {origin} is no origin as a browser sends it; write http://HOST or https://HOST:PORT, "
                    "in lower case and without a path"
                )
        if self.max_waiting < self.max_queries:
            raise UserError(
                f"serve.max_waiting={self.max_waiting} must be at least serve.max_queries={self.max_queries}, or a "
                "request of that many could never be answered"
            )
        if self.max_held_mib << 10 < self.max_body_kib:
            raise UserError(
                f"serve.max_held_mib={self.max_held_mib} must be at least serve.max_body_kib={self.max_body_kib} KiB, "
                "or a request of that size could never be answered"
            )
        if self.max_passages < self.max_top_k:
            raise UserError(
                f"serve.max_passages={self.max_passages} must be at least serve.max_top_k={self.max_top_k}, or a "
                "query that asks for so many could never be answered"
            )
