"""From a folder of documents to a corpus in one file, which is kept as long as the folder doesn't change."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agent.answers import normalise_title
from agent.errors import Fault, UserError, shortened
from agent.records import Passage
from agent.visible import printable
from retrieval_service.corpus import write_corpus
from retrieval_service.documents.chunks import chunks
from retrieval_service.documents.kept import keep, kept, properties
from retrieval_service.documents.readers import LONGEST_TITLE, READERS, Document, pdf_package

FORMAT = 9
"""Raise it when the same documents would become other passages than before."""
TOLD, MOST = 5, 100
"""Files that can't be read: in the line that ends the command, and after which no more are looked for."""
LONGEST_NAME = 100
"""Bytes of a folder's name in that of its corpus; file systems take 255 in all."""
_ESCAPED = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What can't stand on a line, and the backslash that it is written with."""
_HELD = re.compile(rb"process \d+ on ")
"""How the lock of a run's folder begins."""


@dataclass(kw_only=True, slots=True)
class _Reading:
    """One pass over the documents, and what there is to say of it."""

    folder: Path
    files: list[Path]
    words: int
    overlap: int
    cache: Path
    say: Callable[[str], None]
    broken: list[str] = field(default_factory=list)
    """What is wrong with files that can't be read."""
    silent: list[str] = field(default_factory=list)
    """Files without a text."""
    guessed: dict[str, list[str]] = field(default_factory=dict)
    """Files whose encoding was guessed, by how they were read."""
    titles: set[str] = field(default_factory=set)

    def passages(self, count: Callable[[int, int], None]) -> Iterator[Passage]:
        """Raises ``UserError`` in the end for documents that can't be read, and where none holds a text."""
        for number, file in enumerate(self.files, start=1):
            name = _shown(file.relative_to(self.folder).as_posix())
            document = self._document(file)
            count(number, len(self.files))
            if document is None:
                continue
            if document.guessed:
                self.guessed.setdefault(document.guessed, []).append(name)
            texts = chunks(document.paragraphs, self.words, self.overlap)
            if not texts:
                self.silent.append(name)
                continue
            title = self._title(document.title, file, name)
            for number, text in enumerate(texts):
                yield Passage(id=f"{name}#{number}", title=title, text=_whole(text))
        if self.broken:
            raise UserError(self._wrong())
        if len(self.silent) == len(self.files):
            raise UserError(
                f"{self.folder}: there is no text in its {len(self.files)} documents; scanned pages need OCR first"
            )

    def _document(self, file: Path) -> Document | None:
        """What ``file`` holds. None for one that can't be read, which is said at once.

        The others are read all the same: that may take hours, and should find all that are broken. Raises ``UserError``
        after ``MOST``.
        """
        try:
            before = properties(file)
            found = None if before is None else kept(file, before, self.cache)
            document = found or READERS[file.suffix.lower()](file)
            same = before is not None and found is None and properties(file) == before
        except Fault:
            raise
        except UserError as error:
            why = str(error)
        except OSError as error:
            why = f"{_shown(str(file))}: can't be read ({error.strerror})"
        except Exception as error:  # whatever a file that nobody thought of makes of its reader
            why = f"{_shown(str(file))}: can't be read ({shortened(error)}); repair it or take it out"
        else:
            if same and before is not None:
                keep(file, before, document, self.cache)
            return document
        self.broken.append(why)
        if len(self.broken) == MOST:
            raise UserError(self._wrong())
        self.say(f"{why}; reading on, to find all that can't be read")
        return None

    def _wrong(self) -> str:
        if len(self.broken) == 1:
            return self.broken[0]
        listed = " ".join(f"({number}) {why}" for number, why in enumerate(self.broken[:TOLD], start=1))
        more = " … (all are told above)" if len(self.broken) > TOLD else ""
        return f"{self.folder}: {len(self.broken)} documents can't be read: {listed}{more}"

    def _title(self, given: str, file: Path, name: str) -> str:
        """The document's own, or its file's name. Of two that are alike the second has its path with it: by titles the
        passages of a document are told from those of others."""
        stem = " ".join(_whole(file.stem).replace("_", " ").replace("-", " ").split())
        title = _whole(given)[:LONGEST_TITLE].strip() or stem or name
        while normalise_title(title) in self.titles:  # "A.txt" and "a.txt" are alike, too
            title = f"{title} ({name})"
        self.titles.add(normalise_title(title))
        return title


def documents_corpus(
    folder: Path,
    cache: Path,
    words: int,
    overlap: int,
    say: Callable[[str], None] = lambda text: None,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """The passages of the documents below ``folder``, as a JSONL file below ``cache``: of at most ``words`` words, with
    ``overlap`` of the one before (``chunks.py``), the document's title on each, and ids like ``notes/a.md#3``. What is
    read of files that take long is kept there, too (``kept.py``).

    Hidden files are left out, and links are followed. ``say`` is told where the passages are, and which files were left
    out or can't be read, ``count`` how many documents of how many are read. Raises ``UserError`` for a folder without
    documents, and for those that can't be read, all of them.
    """
    files, others = _documents(folder)
    kinds = "text, Markdown, HTML and PDF"
    if not files:
        there = f" (it has {_kinds(others)})" if others else ""
        raise UserError(f"{folder}: holds no documents{there}; {kinds} are read, and corpus files by their own path")
    corpus = cache / "corpora" / f"{_called(folder)}-{_fingerprint(folder, files, words, overlap)}.jsonl"
    if not corpus.exists():
        if others:
            say(f"{folder}: {sum(others.values())} files are no {kinds} and are left out ({_kinds(others)})")
        if pdf := next((file for file in files if file.suffix.lower() == ".pdf"), None):
            pdf_package(pdf)  # before the others are read
        reading = _Reading(folder=folder, files=files, words=words, overlap=overlap, cache=cache, say=say)
        written = write_corpus(corpus, reading.passages(count))
        read = len(files) - len(reading.silent)
        if reading.silent:
            say(f"{folder}: {len(reading.silent)} files hold no text and are left out, such as {reading.silent[0]}")
        for guess, names in reading.guessed.items():
            say(f"{folder}: {len(names)} files {guess}, such as {names[0]}")
        say(f"{folder}: {read} documents are {written:,} passages, in {corpus}")
    return corpus


def _documents(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The documents in the order of their names, and of the other files how many there are by their names' ends.

    Links are followed; a folder that is there under several names is read under one, its own if that is below
    ``folder``. Folders of runs are left out: their reports have the questions with the right answers. Raises
    ``UserError`` for a folder that can't be read.
    """
    files: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    tops = [str(folder)]
    try:
        for top in tops:  # to which the links below it are added
            for here, folders, names in os.walk(top, onerror=_raise):
                if (real := os.path.realpath(here)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                if here != str(folder) and _is_of_a_run(Path(here)):
                    others["folders of runs"] += 1
                    folders.clear()
                    continue
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                tops += [link for name in folders if os.path.islink(link := os.path.join(here, name))]
                for file in (Path(here, name) for name in names if not name.startswith(".")):
                    if not file.is_file():
                        others["pipes and devices" if file.exists() else "dangling links"] += 1
                    elif file.suffix.lower() in READERS:
                        files.append(file)
                    else:
                        others[file.suffix.lower() or file.name] += 1
    except OSError as error:
        raise UserError(
            f"{_shown(error.filename or str(folder))}: can't be read ({error.strerror}); make it readable, or take it "
            "out of the folder"
        ) from error
    return sorted(files), +others


def _raise(error: OSError) -> None:
    raise error


def _is_of_a_run(folder: Path) -> bool:
    """Whether a run or a sweep of this program was written there (``tracking/run_folder.py``)."""
    lock = folder / ".lock"
    try:
        return lock.is_file() and _HELD.match(lock.read_bytes()[:100]) is not None
    except OSError:
        return False


def _kinds(others: Counter[str]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3)) + (
        ", …" if len(others) > 3 else ""
    )


def _called(folder: Path) -> str:
    """The beginning of the folder's name, for people; with what is added to it a file system takes it."""
    return _shown(folder.resolve().name).encode()[:LONGEST_NAME].decode(errors="ignore")


def _fingerprint(folder: Path, files: list[Path], words: int, overlap: int) -> str:
    """Changes when a file is added, taken away, renamed or written to. Reads no file.

    Files out of an archive may have the lengths and times of its next version's: the change time tells them apart.
    """
    digest = hashlib.blake2b(f"{FORMAT} {words} {overlap}".encode(), digest_size=16)
    for file in files:
        stat = file.stat()
        name = file.relative_to(folder).as_posix()
        now = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        digest.update(f"\0{name}\0{now}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _shown(name: str) -> str:
    """A file's name on one line, in UTF-8; two names stay two. Bytes of another encoding become ``\\udce9``, and a
    backslash two."""
    return _ESCAPED.sub(lambda found: repr(found[0])[1:-1], name).encode(errors="backslashreplace").decode()


def _whole(text: str) -> str:
    """``text`` without halves of surrogate pairs and zero bytes, which PDF files are known to give."""
    return printable(text.replace("\0", " "))
