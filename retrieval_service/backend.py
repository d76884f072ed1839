"""What the service needs of a ranker, and which ranker a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

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


def open_backend(config: RetrievalConfig, index: Path) -> Backend:
    """The ranker that ``config.backend`` names, over ``index``; call it in the thread that will search.

    Raises ``UserError`` if ``index`` is not an index that this ranker can use.
    """
    module = importlib.import_module(f"retrieval_service.backends.{config.backend}")
    backend: Backend = module.Backend(index, config)
    return backend
