"""Vectors in Lucene's graph of near neighbours (HNSW), built by Lucene and searched by Anserini's searcher, as Pyserini
does it. It needs no package besides Pyserini.

Scores are those of Lucene's ``MAXIMUM_INNER_PRODUCT``, turned back into inner products: any vectors can be taken, of
length 1 or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import Fault, RetrievalError, UserError
from retrieval_service import jvm
from retrieval_service.encoder import Vectors
from retrieval_service.lucene import check_lucene, directory, first_line

LONGEST = 1024
"""Numbers of a vector that Lucene's format takes at most."""
FIELDS = ("id", "vector")
"""The names that Anserini's searcher reads."""


class Hnsw:
    """Approximate search along the graph, looking at ``beam`` candidates at least. Starts the JVM; for one thread.

    Raises ``UserError`` that names the folder if Lucene can't open it.
    """

    @jvm.calling()
    def __init__(self, folder: Path, beam: int, heap: str, threads: int) -> None:
        check_lucene(folder)
        jvm.start_jvm(heap, threads)
        self._java_error = jvm.java_error()
        self._folder, self._beam = folder, beam
        try:
            reader = jvm.java_class("org.apache.lucene.index.DirectoryReader").open(directory(folder))
            self._size = int(reader.numDocs())
            reader.close()
            self._args = jvm.java_class("io.anserini.search.HnswDenseSearcher$Args")()
            self._args.index, self._args.efSearch = str(folder), beam
            self._searcher = jvm.java_class("io.anserini.search.HnswDenseSearcher")(self._args)
        except self._java_error as error:
            raise UserError(
                f"{folder}: Lucene cannot open it ({first_line(error)}); delete the index and build it again"
            ) from error

    def __len__(self) -> int:
        return self._size

    @jvm.calling()
    def search(self, queries: Vectors, k: int) -> tuple[Vectors, np.ndarray[Any, np.dtype[np.int64]]]:
        """See ``vectors.Nearest``. Raises ``RetrievalError`` if Lucene fails."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        numbers = np.full((len(queries), k), -1, np.int64)
        self._args.efSearch = max(self._beam, k)
        try:
            for at, query in enumerate(queries):
                for place, hit in enumerate(self._searcher.search(query.tolist(), k)):
                    scores[at, place], numbers[at, place] = _inner_product(hit.score), int(hit.docid)
        except self._java_error as error:
            raise RetrievalError(f"{self._folder}: Lucene: {first_line(error)}") from error
        return scores, numbers

    @jvm.calling()
    def close(self) -> None:
        """Closes the index and detaches the calling thread from the JVM."""
        self._searcher.close()
        jvm.detach_thread()


@jvm.calling()
def write_graph(parts: Sequence[Vectors], out: Path, heap: str, threads: int) -> None:
    """Writes the folder ``out``: the graph over the vectors of all parts, each (n, size). Starts the JVM.

    Raises ``Fault`` if Lucene fails.
    """
    jvm.start_jvm(heap, threads)
    lucene = "org.apache.lucene."
    document, vector, text, column, bytes_ref = (
        jvm.java_class(lucene + name)
        for name in ("document.Document", "document.KnnFloatVectorField", "document.StringField",
                     "document.BinaryDocValuesField", "util.BytesRef")
    )  # fmt: skip
    kept = jvm.java_class(lucene + "document.Field$Store").YES
    nearness = jvm.java_class(lucene + "index.VectorSimilarityFunction").MAXIMUM_INNER_PRODUCT
    config = jvm.java_class(lucene + "index.IndexWriterConfig")()
    config.setUseCompoundFile(False)
    # A quarter of the heap: merging the graphs of what was flushed takes as much again.
    most = jvm.java_class("java.lang.Runtime").getRuntime().maxMemory()
    config.setRAMBufferSizeMB(max(16.0, (most >> 20) / 4))
    try:
        writer = jvm.java_class(lucene + "index.IndexWriter")(directory(out), config)
        number = 0
        for part in parts:
            for values in part:
                entry, name = document(), str(number)
                entry.add(text(FIELDS[0], name, kept))
                entry.add(column(FIELDS[0], bytes_ref(name.encode())))  # for ties, which Anserini orders by id
                entry.add(vector(FIELDS[1], values.tolist(), nearness))
                writer.addDocument(entry)
                number += 1
        writer.forceMerge(1)
        writer.close()
    except jvm.java_error() as error:
        raise Fault(f"Lucene failed to make the graph of the vectors: {first_line(error)}") from error


def _inner_product(score: float) -> float:
    """What Lucene made ``score`` of: it is 1 / (1 - p) below 0, and p + 1 from there."""
    return score - 1 if score >= 1 else 1 - 1 / score
