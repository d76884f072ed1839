"""BM25 over a Lucene index, through Anserini's searcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.errors import UserError
from agent.visible import printable
from retrieval_service.backend import Identity, Read
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import Manifest, ensure_index
from retrieval_service.lucene import LuceneRecipe, analyse_with
from retrieval_service.lucene_searcher import LuceneSearcher
from retrieval_service.watch import SILENT, Watch


class Bm25(LuceneSearcher):
    """A ``Backend``: Lucene's BM25 with the config's ``k1`` and ``b``. For one thread; starts the JVM.

    Raises ``UserError`` that names the folder if ``index`` is not a complete index with its documents
    stored, or without a Java >= 21.
    """

    backend = "bm25"
    java = "io.anserini.search.SimpleSearcher"

    def _check_asked(self) -> None:
        self._analyser = _analyser(self._index, self._manifest, self._config)

    def _set_up(self) -> None:
        if self._analyser is not None:
            analyse_with(self._searcher, self._analyser)
        self._searcher.set_bm25(self._config.k1, self._config.b)

    def begin_batch(self, queries: Sequence[str], k: int) -> Read:
        """See ``Backend``. A query is a bag of words, without operators; one without an indexed word has no hits.

        Raises ``ValueError`` for ``k < 1`` and ``RetrievalError`` if Lucene fails.
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        return self._begin(self._list(tuple(map(printable, queries))), len(queries), k)

    def identity(self) -> Identity:
        """The index's, with the analyser, ``k1`` and ``b``."""
        return self._identity(self._analyser, {"k1": self._config.k1, "b": self._config.b})


def _analyser(index: Path, manifest: Manifest | None, config: RetrievalConfig) -> str | None:
    """The index's, or the one that is given for an index that doesn't say; None is Anserini's own.

    Raises ``UserError`` if another one is given than the index was made with.
    """
    made = None if manifest is None else str(manifest.made_with["analyser"])
    if made is not None and config.analyser not in (None, made):
        raise UserError(
            f"{index}: was made with retrieval.analyser={made}, not {config.analyser}; leave it out, or build "
            "another index"
        )
    return made or config.analyser


def ensure(corpus: Path, config: RetrievalConfig, cache: Path, watch: Watch = SILENT) -> Path:
    """See ``retrieval_service.rankers.index_for``."""
    return ensure_index(corpus, LuceneRecipe(config), cache, watch)


Backend = Bm25
"""What ``retrieval.backend=bm25`` opens."""
