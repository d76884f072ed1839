"""Lucene indexes: built whole or not at all, kept by the corpus's checksum.

An index is a Lucene folder with one more file in it, the manifest, written last. It comes into being
in a temporary folder beside its place and is renamed into it. A Lucene folder that somebody else
built, with Pyserini say, has no manifest and is welcome if it stores the documents (``-storeRaw``).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import Fault, UserError
from retrieval_service import jvm
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import corpus_checksum, lay_out

MANIFEST = "manifest.json"
FORMAT = 2
"""Raise it when an index built by older code must not be used any more."""
ANALYSER = "porter"
"""Anserini's English analyser: Lucene's tokens in lower case, its stop words dropped, Porter's stems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an index was made of and by. ``documents`` is the number of passages in it."""

    format: int
    analyser: str
    anserini: str
    documents: int
    corpus: str
    corpus_checksum: str


def ensure_index(corpus: Path, config: RetrievalConfig, cache_dir: Path) -> Path:
    """The index of ``corpus`` in ``cache_dir``, built if it isn't there; starts the JVM only to build.

    The folder's name has the corpus's checksum and the index's version in it, so a changed corpus gets an
    index of its own. Of several builders, on this machine or on others that share the folder, one builds
    and the others wait. Raises ``UserError`` for a bad corpus or a damaged index, ``Fault`` if Lucene fails.
    """
    checksum = corpus_checksum(corpus)
    index = cache_dir / f"{checksum}-{ANALYSER}-anserini-{jvm.anserini_version()}-v{FORMAT}"
    if not index.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{index.name}.lock"):
            # Whoever left these behind was killed: a living builder would hold the lock.
            for leftover in cache_dir.glob(f"{_building(index)}*"):
                shutil.rmtree(leftover)
            if not index.exists():
                _build(corpus, checksum, index, config)
    _check_ours(index, checksum)
    return index


def build_index(corpus: Path, index: Path, config: RetrievalConfig) -> Manifest:
    """Builds the index of ``corpus`` at ``index``, a path that must not exist yet.

    Raises ``UserError`` for a bad corpus or a path that is taken, ``Fault`` if Lucene fails or does not
    hold every passage afterwards. In every such case nothing is left at ``index``.
    """
    if index.exists():
        raise UserError(f"{index}: exists already; delete it or name another folder")
    index.parent.mkdir(parents=True, exist_ok=True)
    return _build(corpus, corpus_checksum(corpus), index, config)


def check_index(index: Path) -> Manifest | None:
    """The manifest of ``index``, or None for a Lucene folder that was built elsewhere. Needs no JVM.

    Raises ``UserError`` that names the folder if it is not a complete index.
    """
    if not index.is_dir():
        raise UserError(f"{index}: no such folder; name a Lucene index")
    if not any(index.glob("segments_*")):
        raise UserError(f"{index}: not a Lucene index, or one whose building was cut short; build it again")
    file = index / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = Manifest(**json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); delete {index} and build it again") from error
    if manifest.format != FORMAT:
        raise UserError(f"{index}: its format is {manifest.format}, this version reads {FORMAT}; build it again")
    return manifest


def lucene_generation(index: Path) -> int:
    """The number of the newest commit in a Lucene folder, which its ``segments_…`` file has in base 36."""
    return max(int(file.name.partition("_")[2], 36) for file in index.glob("segments_*"))


def _check_ours(index: Path, checksum: str) -> None:
    manifest = check_index(index)
    if manifest is None or manifest.corpus_checksum != checksum:
        raise UserError(f"{index}: not the complete index that its name says; delete it and start again")


def _build(corpus: Path, checksum: str, index: Path, config: RetrievalConfig) -> Manifest:
    work = Path(tempfile.mkdtemp(prefix=_building(index), dir=index.parent))
    try:
        # Anserini reads every JSON file of a folder, so the corpus gets a folder to itself.
        (work / "corpus").mkdir()
        documents = lay_out(corpus, work / "corpus")
        run_lucene(work / "corpus", work / "index", documents, config)
        if corpus_checksum(corpus) != checksum:
            raise UserError(f"{corpus}: changed while it was being indexed; start again when it is complete")
        manifest = Manifest(
            format=FORMAT,
            analyser=ANALYSER,
            anserini=jvm.anserini_version(),
            documents=documents,
            corpus=corpus.name,
            corpus_checksum=checksum,
        )
        (work / "index" / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        try:
            os.rename(work / "index", index)
        except OSError:
            # Where file locks don't work, another builder may have been first. Its index is the same as ours.
            if not index.exists():
                raise
            _check_ours(index, checksum)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def run_lucene(source: Path, out: Path, documents: int, config: RetrievalConfig) -> None:
    """Indexes the JSONL files of ``source`` into ``out``; raises ``Fault`` unless that makes ``documents``."""
    jvm.start_jvm(config.heap, config.threads)
    args = jvm.java_class("io.anserini.index.IndexCollection$Args")()
    args.collectionClass = "JsonCollection"
    args.input = str(source)
    args.index = str(out)
    args.threads = config.threads
    args.stemmer = ANALYSER
    args.storeRaw = True
    # One segment: the fastest to search.
    args.optimize = True
    args.quiet = True
    # Anserini's default is 4 GiB, whatever the heap: the writer would run out of memory before it flushed.
    args.memoryBuffer = jvm.java_class("java.lang.Runtime").getRuntime().maxMemory() // 4 >> 20
    try:
        indexer = jvm.java_class("io.anserini.index.IndexCollection")(args)
        indexer.run()
    except jvm.java_error() as error:
        raise Fault(f"Lucene failed to index the corpus: {first_line(error)}") from error
    counters = indexer.getCounters()
    counts = {name: getattr(counters, name).get() for name in ("indexed", "empty", "unindexable", "skipped", "errors")}
    if counts["indexed"] != documents:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise Fault(f"Lucene indexed {counts['indexed']} of {documents} passages ({found})")


def first_line(error: BaseException) -> str:
    """An exception's text less the Java stack that pyjnius appends to it."""
    return str(error).partition("\n")[0].removeprefix("JVM exception occurred: ")


def _building(index: Path) -> str:
    return f".{index.name}.building-"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock ``path``, which the system frees when its holder dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
