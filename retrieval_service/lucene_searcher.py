"""Searching a Lucene index whose documents are stored, through a searcher of Anserini's: what its rankers share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from agent.errors import RetrievalError, UserError
from agent.records import Passage
from agent.visible import printable
from retrieval_service import jvm
from retrieval_service.backend import Identity, Read
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import document_of, parse_record
from retrieval_service.index import Manifest, check_index
from retrieval_service.lru import Lru, weight_of
from retrieval_service.lucene import check_lucene, first_line, lucene_generation

AS_LIST = "([Ljava/lang/Object;)Ljava/util/List;"
BATCH_SEARCH = "(Ljava/util/List;Ljava/util/List;II)Ljava/util/Map;"
KEPT_PASSAGES, KEPT_BYTES = 50_000, 256 << 20
"""Most passages kept as Python objects, and their bytes; the popular ones needn't be read and parsed for every
search."""


class LuceneSearcher(ABC):
    """A ``Backend`` but for how queries are asked, and what its identity says. For one thread; starts the JVM.

    Raises ``UserError`` that names the folder if ``index`` is not a complete index of ``backend`` with its documents
    stored, or without a Java >= 21.
    """

    lanes = 2
    backend: ClassVar[str]
    java: ClassVar[str]
    """Anserini's class."""

    @jvm.calling()
    def __init__(self, index: Path | None, config: RetrievalConfig) -> None:
        if index is None:
            raise ValueError(f"{self.backend} needs an index")
        self._index, self._config = index, config
        self._manifest: Manifest | None = check_index(index, self.backend)
        check_lucene(index)
        self._check_asked()
        jvm.start_jvm(config.heap, config.threads)
        self._java_error = jvm.java_error()
        try:
            self._searcher: Any = jvm.java_class(self.java)(str(index))
        except self._java_error as error:
            raise UserError(
                f"{index}: Lucene cannot open it ({first_line(error)}); delete it and build it again"
            ) from error
        self._documents: int = self._searcher.get_total_num_docs()
        self._reader: Any = None
        self._passages: Lru[int, Passage] = Lru(
            KEPT_PASSAGES, KEPT_BYTES, lambda number, passage: weight_of("", (passage,))
        )
        """By Lucene's numbers: an id isn't safe, since pyjnius takes its first character for a byte order mark."""
        try:
            self._check()
            self._set_up()
        except BaseException:
            self.close()
            raise
        # Of tuples: a list is read back afterwards, and a text of Java's that begins with U+FFFE can't be.
        self._list = jvm.own_method("java.util.Arrays", "asList", AS_LIST)
        self._batch_search = jvm.own_method(self._searcher, "batch_search", BATCH_SEARCH)
        # A query is a policy's text, not ours: one with over 1,024 different words is slow, not an error.
        jvm.java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(2**31 - 1)
        self.search_batch(["a first one"], 1)  # see own_method

    @abstractmethod
    def _check_asked(self) -> None:
        """Holds the settings against the manifest, before the JVM is needed. Raises ``UserError``."""

    @abstractmethod
    def _set_up(self) -> None:
        """Makes the searcher ready for queries."""

    @abstractmethod
    def begin_batch(self, queries: Sequence[str], k: int) -> Read:
        """See ``Backend``."""

    def search_batch(self, queries: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each query its at most ``k`` best passages with their scores: best first, equals by id.

        Raises ``ValueError`` for ``k < 1`` and ``RetrievalError`` if Lucene fails, and what the ranker itself raises.
        """
        return self.begin_batch(queries, k)()

    @abstractmethod
    def identity(self) -> Identity:
        """See ``Backend``."""

    def _check(self) -> None:
        documents = self._manifest.documents if self._manifest else None
        if not self._documents:
            raise UserError(f"{self._index}: holds no documents; delete it and build it again")
        if documents not in (None, self._documents):
            raise UserError(
                f"{self._index}: holds {self._documents} documents, not {documents}; delete it and build it again"
            )
        raw = self._searcher.doc_raw(0)
        if raw is None:
            raise UserError(f"{self._index}: its documents are not stored; build it again with -storeRaw")
        try:
            parse_record(raw)
        except ValueError as error:
            raise UserError(
                f"{self._index}: its documents are not passages ({error}); build it from a corpus"
            ) from error

    def _begin(self, queries: Any, count: int, k: int) -> Read:
        """Searches for the ``count`` elements of ``queries``, a Java list: for each its at most ``k`` best passages,
        best first, equals by id. Raises ``RetrievalError`` if Lucene fails."""
        jvm.keep_signals()
        try:
            keys = self._list(tuple(map(str, range(count))))
            hits = self._batch_search(queries, keys, min(k, self._documents), self._config.threads)
        except self._java_error as error:
            raise RetrievalError(f"Lucene: {self._cause(queries, k) or first_line(error)}") from error
        return partial(self._read, hits, count)

    @jvm.calling()
    def _read(self, hits: Any, count: int) -> list[tuple[Passage, ...]]:
        try:
            return [tuple(map(self._passage, hits.get(str(number)))) for number in range(count)]
        except self._java_error as error:
            raise RetrievalError(f"Lucene: {first_line(error)}") from error

    def end_reading(self) -> None:
        """See ``Backend``."""
        jvm.detach_thread()

    @jvm.calling()
    def _cause(self, queries: Any, k: int) -> str | None:
        """Why a batch of one failed, which batch search keeps to itself."""
        if queries.size() > 1:  # they are asked again
            return None
        try:
            self._searcher.search(queries.get(0), k)
        except self._java_error as error:
            return first_line(error)
        except UnicodeDecodeError:  # of a query that can't be had back, see ``_list``
            return None
        return None

    def _passage(self, hit: Any) -> Passage:
        number: int = hit.lucene_docid
        passage = self._passages.get(number)
        if passage is None:
            passage = parse_record(hit.lucene_document.get("raw"))
            self._passages.put(number, passage)
        return Passage(id=passage.id, title=passage.title, text=passage.text, score=hit.score)

    def _identity(self, analyser: str | None, settings: Mapping[str, Any]) -> Identity:
        """The index's, by its manifest; one that was built elsewhere is named by its folder."""
        manifest = self._manifest
        told = {**settings, "lucene_generation": lucene_generation(self._index)}
        if manifest is None:
            return Identity(
                name=Path(os.path.abspath(self._index)).name,  # also of "."
                backend=self.backend,
                documents=self._documents,
                analyser=analyser,
                settings=told,
            )
        return Identity(
            name=manifest.corpus,
            backend=self.backend,
            documents=self._documents,
            checksum=manifest.corpus_checksum,
            analyser=analyser,
            settings=told | {"anserini": manifest.made_with["anserini"]},
        )

    @jvm.calling()
    def document_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each id its passage and the at most ``k - 1`` after it; none for an id that the index doesn't hold.

        Raises ``ValueError`` for ``k < 1`` and ``RetrievalError`` if Lucene fails.
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        try:
            raws = [self._searcher.doc_raw(printable(d)) for d in document_ids]
        except self._java_error as error:
            raise RetrievalError(f"Lucene: {first_line(error)}") from error
        found: list[tuple[Passage, ...]] = [() if raw is None else (parse_record(raw),) for raw in raws]
        if k == 1:
            return found
        return [f + self.following_batch([f[0].id], k - 1)[0] if f else () for f in found]

    @jvm.calling()
    def following_batch(self, document_ids: Sequence[str], k: int) -> list[tuple[Passage, ...]]:
        """For each passage its at most ``k`` successors of the same document, in the corpus's order, without scores.

        Lucene's numbers of passages are their order in the corpus (``lucene.py``); in an index that was built elsewhere
        by several threads they needn't be. Raises ``ValueError`` for ``k < 1`` and ``RetrievalError`` for an id that
        the index doesn't hold, or if Lucene fails.
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        utils = jvm.java_class("io.anserini.index.IndexReaderUtils")
        try:
            if self._reader is None:
                self._reader = utils.getReader(str(self._index))
            return [self._following(utils, document_id, k) for document_id in document_ids]
        except self._java_error as error:
            raise RetrievalError(f"Lucene: {first_line(error)}") from error

    def _following(self, utils: Any, document_id: str, k: int) -> tuple[Passage, ...]:
        raw = self._searcher.doc_raw(document_id)
        if raw is None:
            raise RetrievalError(f"the index holds no passage {document_id!r}")
        document = document_of(parse_record(raw))
        at: int = utils.convertDocidToLuceneDocid(self._reader, document_id)
        found: list[Passage] = []
        for number in range(at + 1, min(at + 1 + k, self._documents)):
            passage = parse_record(self._searcher.doc_raw(number))
            if document_of(passage) != document:
                break
            found.append(passage)
        return tuple(found)

    @jvm.calling()
    def close(self) -> None:
        """Closes the index and detaches the calling thread from the JVM."""
        if self._reader is not None:
            self._reader.close()
        self._searcher.close()
        jvm.detach_thread()
