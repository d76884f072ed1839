"""Which ranker a configuration names: its settings, its index, and how it is opened."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.paths import at_home
from retrieval_service.backend import Backend
from retrieval_service.backends import backend_names
from retrieval_service.config import RetrievalConfig
from retrieval_service.prebuilt import ensure_prebuilt
from retrieval_service.rerank import Reranked
from retrieval_service.watch import SILENT, Watch


def _module(name: str) -> Any:
    return importlib.import_module(f"retrieval_service.backends.{name}")


def settings_of(name: str) -> type[RetrievalConfig]:
    """The settings of a ranker: a class ``Settings`` of its own, or those that all have."""
    settings: type[RetrievalConfig] = getattr(_module(name), "Settings", RetrievalConfig)
    return settings


def own_settings() -> dict[str, type[RetrievalConfig]]:
    """The rankers that have settings of their own, with these."""
    return {name: kind for name in backend_names() if (kind := settings_of(name)) is not RetrievalConfig}


def open_backend(config: RetrievalConfig, index: Path | None) -> Backend:
    """The ranker that ``config.backend`` names, over ``index``; call it in the thread that will search.

    Raises ``UserError`` if ``index`` is not an index that this ranker can use, or the server doesn't answer.
    """
    backend: Backend = _module(config.backend).Backend(index, config)
    if config.reranker is None:
        return backend
    try:
        return Reranked(backend, config)
    except BaseException:
        backend.close()
        raise


def index_for(corpus: Path | None, config: RetrievalConfig, cache: Path, watch: Watch = SILENT) -> Path:
    """The index of ``corpus`` for the ranker that ``config.backend`` names, built below ``cache`` if it isn't there.

    Raises ``UserError`` for a bad corpus or a damaged index, and without a corpus; ``Fault`` if building fails.
    """
    if corpus is None:
        raise UserError(
            "there is nothing to search: set data.corpus=FILE, retrieval.index=FOLDER for a built index, or "
            "retrieval=wikipedia"
        )
    index: Path = _module(config.backend).ensure(corpus, config, cache, watch)
    return index


def opener(corpus: Path | None, config: RetrievalConfig, cache: Path, watch: Watch = SILENT) -> Callable[[], Backend]:
    """What opens the ranker over the server or the index that ``config`` names, else over the index of ``corpus``.

    That is built below ``cache`` if it isn't there, and a published one is fetched, by the first call alone: whoever
    opens one more searches the same, whatever has become of the corpus. A call raises ``UserError`` for a bad corpus or
    index, or a server that doesn't answer.
    """
    index = lru_cache(lambda: _found(corpus, config, cache, watch))
    return lambda: open_backend(config, index())


def _found(corpus: Path | None, config: RetrievalConfig, cache: Path, watch: Watch) -> Path | None:
    """The index to open; None for a server."""
    if config.url is not None:
        return None
    if config.index is not None:
        return at_home(config.index)
    if config.prebuilt is not None:
        return ensure_prebuilt(config.prebuilt, cache, watch.say)
    return index_for(corpus, config, cache, watch)
