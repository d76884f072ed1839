"""Lucene indexes: built by Anserini in parts, several at once, and joined in the corpus's order.

A part of the corpus becomes a small index of its own, by one Java thread, which keeps its order; several parts are
worked on at once. Then they are merged into one segment, the fastest to search, part after part: Lucene's numbers of
passages are those of the corpus, whatever the threads did. A part that is finished stays until then, so that an
interrupted build goes on with the next.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from agent.errors import Fault, UserError
from retrieval_service import jvm
from retrieval_service.config import STEMMERS, RetrievalConfig
from retrieval_service.corpus import Record
from retrieval_service.index import Builder, aside, keep_part, part_of

ANALYSER = "porter"
"""Anserini's English analyser: Lucene's tokens in lower case, its stop words dropped, Porter's stems. The default."""


def lucene_generation(index: Path) -> int:
    """The number of the newest commit in a Lucene folder, which its ``segments_…`` file has in base 36."""
    return max(int(file.name.partition("_")[2], 36) for file in index.glob("segments_*"))


def check_lucene(index: Path) -> None:
    """Raises ``UserError`` for a folder without a commit of Lucene's. Needs no JVM."""
    if not any(index.glob("segments_*")):
        raise UserError(
            f"{index}: not a Lucene index, or one whose building was cut short; delete it and build it again"
        )


@jvm.calling()
def analyse_with(searcher: Any, analyser: str) -> None:
    """Makes Anserini's ``searcher`` take its queries apart by ``analyser``."""
    if analyser in STEMMERS:
        english = jvm.java_class("io.anserini.analysis.DefaultEnglishAnalyzer")
        searcher.set_analyzer(english.newStemmingInstance(analyser))
    else:
        searcher.set_language(analyser)


class LuceneRecipe:
    """How the indexes of ``retrieval=bm25`` are made."""

    backend = "bm25"

    def __init__(self, config: RetrievalConfig) -> None:
        self._config = config
        analyser = config.analyser or ANALYSER
        self.made_with: dict[str, Any] = {"analyser": analyser, "anserini": jvm.anserini_version()}
        self.key = f"{analyser}-anserini-{self.made_with['anserini']}"

    def builder(self, work: Path) -> Builder:
        """Starts the JVM."""
        return LuceneBuilder(work, self._config)


class LuceneBuilder:
    """A ``Builder``. It works on ``config.threads`` parts at once."""

    collection: ClassVar[str] = "JsonCollection"
    """What Anserini reads the lines as."""

    @jvm.calling()
    def __init__(self, work: Path, config: RetrievalConfig) -> None:
        jvm.start_jvm(config.heap, config.threads)
        self._work = work
        self._analyser = config.analyser or ANALYSER
        self._threads = config.threads
        self._executor: Any = jvm.java_class("java.util.concurrent.Executors").newFixedThreadPool(config.threads)
        self._parts: list[Path] = []
        self._busy: deque[tuple[Path, int, Any, Any]] = deque()
        """Of each part under way: its folder, its passages, Anserini's indexer, and the future of its end."""

    @jvm.calling()
    def take(self, number: int, part: Sequence[Record], told: Callable[[int], None]) -> None:
        """Waits until fewer than ``threads`` parts are under way, then begins this one."""
        done = part_of(self._work, number)
        self._parts.append(done)
        if done.exists():
            return
        while len(self._busy) >= self._threads:
            self._settle()
        busy = aside(self._work, done.name)
        shutil.rmtree(busy, ignore_errors=True)
        # Anserini reads every JSON file of a folder, so the passages get a folder to themselves.
        (busy / "corpus").mkdir(parents=True)
        with open(busy / "corpus" / "part.jsonl", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(self._lines(part, told))
        indexer = jvm.java_class("io.anserini.index.IndexCollection")(self._arguments(busy))
        future = jvm.java_class("java.util.concurrent.FutureTask")(indexer, None)
        self._executor.execute(future)
        self._busy.append((done, len(part), indexer, future))

    def _lines(self, part: Sequence[Record], told: Callable[[int], None]) -> Iterator[str]:
        """The passages as Anserini reads them."""
        return (record.line for record in part)

    def _arguments(self, busy: Path) -> Any:
        args = jvm.java_class("io.anserini.index.IndexCollection$Args")()
        args.collectionClass = self.collection
        args.input = str(busy / "corpus")
        args.index = str(busy / "index")
        args.threads = 1
        self._terms(args)
        args.storeRaw = True
        args.quiet = True
        # Anserini's default is 4 GiB, whatever the heap: the writer would run out of memory before it flushed.
        heap = jvm.java_class("java.lang.Runtime").getRuntime().maxMemory() >> 20
        args.memoryBuffer = max(16, heap // 4 // self._threads)
        return args

    def _terms(self, args: Any) -> None:
        """Says how terms are made of the texts."""
        if self._analyser in STEMMERS:
            args.stemmer = self._analyser
        else:
            args.language = self._analyser

    def _settle(self) -> None:
        """Waits for the oldest part. Raises ``Fault`` unless Lucene has all of its passages."""
        done, documents, indexer, future = self._busy[0]  # it stays there if Ctrl-C ends the waiting
        try:
            future.get()
        except jvm.java_error() as error:
            self._busy.popleft()
            raise Fault(f"Lucene failed to index the corpus: {first_line(error)}") from error
        self._busy.popleft()
        counters = indexer.getCounters()
        names = ("indexed", "empty", "unindexable", "skipped", "errors")
        counts = {name: getattr(counters, name).get() for name in names}
        if counts["indexed"] != documents:
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise Fault(f"Lucene indexed {counts['indexed']} of {documents} passages ({found})")
        busy = aside(self._work, done.name)
        keep_part(busy / "index", done)
        shutil.rmtree(busy)

    @jvm.calling()
    def finish(self, out: Path) -> None:
        """Waits for the parts, and merges them."""
        while self._busy:
            self._settle()
        try:
            merge(self._parts, out)
        except jvm.java_error() as error:
            raise Fault(f"Lucene failed to merge the index: {first_line(error)}") from error

    @jvm.calling()
    def close(self) -> None:
        """Waits for what Lucene is at: it writes into folders that are about to go. What it finishes is kept for the
        next builder."""
        self._executor.shutdown()
        while self._busy:
            with suppress(Fault, OSError):  # its cause has been told, or another one has
                self._settle()


@jvm.calling()
def merge(indexes: Sequence[Path], out: Path) -> None:
    """Writes ``out``, a Lucene index of one segment that has the documents of ``indexes`` in their order."""
    slow = jvm.java_class("org.apache.lucene.index.SlowCodecReaderWrapper")
    readers = [jvm.java_class("org.apache.lucene.index.DirectoryReader").open(directory(index)) for index in indexes]
    try:
        leaves = [leaf for reader in readers for leaf in reader.leaves()]
        config = jvm.java_class("org.apache.lucene.index.IndexWriterConfig")()
        config.setUseCompoundFile(False)
        writer = jvm.java_class("org.apache.lucene.index.IndexWriter")(directory(out), config)
        add = jvm.own_method(writer, "addIndexes", "([Lorg/apache/lucene/index/CodecReader;)J")  # pyjnius picks another
        add([slow.wrap(leaf.reader()) for leaf in leaves])
        writer.close()
    finally:
        for reader in readers:
            reader.close()


def directory(path: Path) -> Any:
    """Lucene's ``Directory`` of a folder."""
    return jvm.java_class("org.apache.lucene.store.FSDirectory").open(
        jvm.java_class("java.nio.file.Paths").get(str(path))
    )


def first_line(error: BaseException) -> str:
    """An exception's text less the Java stack that pyjnius appends to it."""
    return str(error).partition("\n")[0].removeprefix("JVM exception occurred: ")
