"""Titles and ids of a Lucene index whose corpus isn't here, read out of its stored documents and kept beside them.

That is done once, in a process of its own: a JVM stays in the one that started it.
"""

from __future__ import annotations

import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.answers import normalise_title
from agent.errors import Fault
from retrieval_service import jvm
from retrieval_service.corpus import parse_record
from retrieval_service.download import Progress
from retrieval_service.names import EXAMPLES, FILE, Names, digests, name_digest

HEAP = "512m"
EVERY = 10_000
"""Documents between two words of how far it is."""


def keep_names(index: Path, progress: Progress) -> None:
    """Writes ``FILE`` into ``index``. Raises ``Fault`` with the last word and the exit code of the process that
    couldn't."""
    command = [sys.executable, "-m", "retrieval_service.titles", str(index.resolve())]  # it has another working folder
    root = str(Path(__file__).parents[1])
    said = ""
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            done, _, total = line.strip().partition("/")
            if done.isdecimal() and total.isdecimal():
                progress(int(done), int(total))
            else:
                said = line.strip() or said
    if process.returncode:
        raise Fault(f"{index}: its titles can't be read: {said or 'it said nothing'} (exit code {process.returncode})")


def read_names(index: Path) -> Names:
    """The names of all documents of ``index``; starts the JVM. Prints how far it is."""
    jvm.start_jvm(HEAP, 1)
    searcher = jvm.java_class("io.anserini.search.SimpleSearcher")(str(index))
    total: int = searcher.get_total_num_docs()
    ids = array("Q")
    examples: list[str] = []

    def titles() -> Iterator[str]:
        for number in range(total):
            if number % EVERY == 0:
                print(f"{number}/{total}", flush=True)
            try:
                passage = parse_record(searcher.doc_raw(number))
            except ValueError:  # a page without a word, which no search finds
                continue
            ids.append(name_digest(passage.id))
            if normal := normalise_title(passage.title):
                if len(examples) < EXAMPLES:
                    examples.append(passage.title)
                yield normal

    found = digests(titles())
    searcher.close()
    return Names(titles=found, ids=np.unique(np.array(ids, np.uint64)), examples=tuple(examples))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    read_names(folder).save(folder / FILE)
