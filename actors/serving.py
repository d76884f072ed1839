"""``mode=serve``: the configured index, or the server that stands for it, behind the HTTP server. Without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable

from actors.fetching import fetch
from actors.plan.machine import check_cache
from agent.errors import UserError
from conf.schema import RunConfig
from retrieval_service.backend import Backend, Identity
from retrieval_service.dialects import spoken
from retrieval_service.rankers import opener
from retrieval_service.server import run
from retrieval_service.server.gate import is_loopback
from retrieval_service.token import VARIABLE, read_token
from retrieval_service.watch import Watch
from tasks.load import load
from tracking.console import Console


def serve(config: RunConfig, console: Console) -> None:
    """Serves until Ctrl-C. Raises ``UserError`` for what is wrong with the address, the token or the index."""
    check_cache(config)
    _check_tokens(config)
    token = read_token(config.serve.token_file, "serve.token_file")
    if token is None and not is_loopback(config.serve.host):
        console.say(f"serve.host={config.serve.host} without a token: whoever reaches it may search", "yellow")

    for wrong in spoken()[1]:
        console.say(f"a dialect that isn't answered: {wrong}", "yellow")
    fetch(config, console)

    first: Callable[[], Backend] | None = None

    def open_backend() -> Backend:
        nonlocal first
        if first is not None:
            return first()  # one more, over the same index: the data may have changed since
        with console.phase("opening the index") as phase:
            count = phase.counting("documents")
            corpus = load(config.data, config.seed, config.cache, mode="serve", say=console.say, count=count).corpus
            watch = Watch(say=console.say, count=phase.counting("passages"))
            first = opener(corpus, config.retrieval, config.cache, watch)
            return first()

    def ready(url: str, identity: Identity) -> None:
        many = f"{identity.documents:,} passages" if identity.documents is not None else "passages"
        console.say(f"{url} serves {many} of {identity.name}; {url}/docs says how to ask; Ctrl-C ends it")

    run.serve(open_backend, config.retrieval, config.serve, token, ready)


def _check_tokens(config: RunConfig) -> None:
    """Raises ``UserError`` where one token would be both sides': this server's secret would go to the other server."""
    url = config.retrieval.url
    if url is None or config.serve.token_file or config.retrieval.token_file or os.environ.get(VARIABLE) is None:
        return
    raise UserError(
        f"{VARIABLE} would be both the token that this server asks for and the one that it sends to "
        f"retrieval.url={url}; name one of them by a file, serve.token_file=FILE or retrieval.token_file=FILE: the "
        "variable is then the other's"
    )
