"""Settings of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.errors import UserError
from agent.settings import PATH, TEXT


@dataclass
class ServeConfig:
    """Where ``mode=serve`` listens, who may ask, and how much at once."""

    host: str = field(default="127.0.0.1", metadata=TEXT)
    """The address to listen at; the default is reached from this machine alone, ``0.0.0.0`` from everywhere."""
    port: int = 8000
    """0 takes a free one."""
    token_file: str | None = field(default=None, metadata=PATH)
    """The file with the token that requests must bear; without one, it is taken from ``SLINGSHOT_RETRIEVAL_TOKEN``.
    Without either, whoever reaches the server may search."""
    max_query_chars: int = 10_000
    """Longest query. Lucene takes a word after the other, so a long one is slow for all."""
    max_queries: int = 4096
    """Most queries of one request; Search-R1 sends those of a whole batch of rollouts."""
    max_top_k: int = 100
    max_body_kib: int = 4096
    """Longest body of a request."""
    max_waiting: int = 8192
    """Most searches that wait at once, of all requests together; one more request is answered with 429."""
    max_connections: int = 512
    """Most open connections; the next one is answered with 429 and closed."""
    read_timeout_s: float = 10.0
    """Longest that a client may take to send a request's head, and then its body."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise UserError(f"serve.port={self.port} must lie in 0 to 65535")
        for name in (
            "max_query_chars",
            "max_queries",
            "max_top_k",
            "max_body_kib",
            "max_waiting",
            "max_connections",
            "read_timeout_s",
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"serve.{name}={getattr(self, name)} must be above 0")
        if self.max_waiting < self.max_queries:
            raise UserError(
                f"serve.max_waiting={self.max_waiting} must be at least serve.max_queries={self.max_queries}, or a "
                "request of that many could never be answered"
            )
