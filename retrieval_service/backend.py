"""What the service needs of a ranker, and which ranker a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from agent.errors import one_of
from agent.records import Passage
from retrieval_service.config import RetrievalConfig


class Backend(Protocol):
    """A ranker. It is made, called and closed by one and the same thread."""

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each query, in order, its at most ``k`` best passages, best first.

        A query that matches nothing has no passages. An exception fails the whole batch.
        """
        ...

    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each passage, in order, the at most ``k`` ones that come after it in the same document
        (``retrieval_service.corpus.document_of``), in the order of the corpus.

        An exception, such as for an id that isn't there, fails the whole batch.
        """
        ...

    def close(self) -> None:
        """Lets go of files; called once, last."""
        ...


def _open_bm25(index: Path, config: RetrievalConfig) -> Backend:
    from retrieval_service.bm25 import Bm25

    return Bm25(index, config)


_OPENERS: dict[str, Callable[[Path, RetrievalConfig], Backend]] = {"bm25": _open_bm25}


def open_backend(config: RetrievalConfig, index: Path) -> Backend:
    """The ranker that ``config.backend`` names, over ``index``; call it in the thread that will search.

    Raises ``UserError`` if ``index`` is not an index that this ranker can use.
    """
    one_of(config.backend, _OPENERS, "retrieval.backend")
    return _OPENERS[config.backend](index, config)
