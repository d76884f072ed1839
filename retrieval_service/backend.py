"""What the service needs of a ranker, and which ranker a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.errors import RetrievalError, UserError
from agent.records import Passage
from retrieval_service.backends import backend_names
from retrieval_service.config import RetrievalConfig
from retrieval_service.prebuilt import ensure_prebuilt
from retrieval_service.watch import SILENT, Watch


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Which passages are searched, and how: what makes two results comparable."""

    name: str
    backend: str
    documents: int | None = None
    """Passages; None where a server doesn't say."""
    checksum: str | None = None
    """Of the corpus; None for an index that was built elsewhere."""
    analyser: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """What the ranking depends on besides, such as ``k1`` and ``b``."""


class Unavailable(RetrievalError):
    """Nothing can be answered at the moment: the backend needn't be asked for each query by itself."""


class Backend(Protocol):
    """A ranker. It is made, called and closed by one and the same thread.

    It may have attributes: ``lanes = 2`` says that it is cheap to open once more, for a second thread; ``most`` is the
    largest batch that makes sense. A batch that raises is asked again in halves, so that one query fails alone, unless
    it is ``Unavailable`` that is raised.
    """

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each query, in order, its at most ``k`` best passages, best first.

        A query that matches nothing has no passages.
        """
        ...

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each passage, in order, the at most ``k`` ones that come after it in the same document
        (``retrieval_service.corpus.document_of``), in the order of the corpus. Raises for an id that isn't there.
        """
        ...

    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each id, in order, its passage and the at most ``k - 1`` that come after it in the same document.

        An id that isn't there has none.
        """
        ...

    def identity(self) -> Identity:
        """What is searched. It doesn't change."""
        ...

    def close(self) -> None:
        """Lets go of files; called once, last."""
        ...


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
        reranked: Backend = importlib.import_module("retrieval_service.rerank").Reranked(backend, config)
        return reranked
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


def open_for(corpus: Path | None, config: RetrievalConfig, cache: Path, watch: Watch = SILENT) -> Backend:
    """``open_backend`` over the server or the index that ``config`` names, else over the index of ``corpus``.

    That is built below ``cache`` if it isn't there, and a published one is fetched. Raises ``UserError`` for a bad
    corpus or index, or a server that doesn't answer.
    """
    if config.url is not None:
        return open_backend(config, None)
    if config.index is not None:
        return open_backend(config, Path(config.index).expanduser())
    if config.prebuilt is not None:
        return open_backend(config, ensure_prebuilt(config.prebuilt, cache, watch.say))
    return open_backend(config, index_for(corpus, config, cache, watch))
