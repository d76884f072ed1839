"""Questions and corpora by name, fetched once and kept.

``flashrag:SET/SPLIT`` is a file of FlashRAG's data sets on the hub, ``RUC-NLPIR/FlashRAG_datasets``:
``hotpotqa/train``, ``musique/dev``, ``2wikimultihopqa/train``, ``nq/test``, ``triviaqa/test``, ``popqa/test``,
``bamboogle/test`` and others; ``conf/data`` names the usual ones. ``github:bamtwoogle`` and ``github:antileak`` are the
files that these sets' authors publish, of a fixed commit. ``data.corpus=wiki-18`` is the papers' corpus, from the hub.

What is fetched is said first. It goes on where an earlier attempt was interrupted, is compared with the checksum that
the hub or this file names, and lies in the cache with a note beside it: from which commit, and its SHA-256, which every
later run compares; of the corpus, which takes long to read, the size alone. A file that was put there by hand is taken
as it is, unless its checksum is known, and noted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agent.errors import UserError
from agent.paths import LONGEST_NAME
from agent.readable import json_of
from retrieval_service.download import Show, Source, already, downloaded, hidden, hub_url, on_hub, sha256, size_text
from retrieval_service.turns import in_turn
from retrieval_service.whole import written
from tasks.config import DataConfig
from tasks.paths import GITHUB, WIKI_18, files_of, is_named, listed, read_by

REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
_NAME = re.compile(r"flashrag:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w-]*)")
BRANCH = "main"
"""The revision that is meant where none is given; any other has a place of its own in the cache."""
CORPUS = "retrieval-corpus/wiki-18.jsonl.gz"
"""21,015,324 passages of a hundred words: the dump of December 2018 that DPR split (Karpukhin et al. 2020)."""
CORPUS_COMMIT = "7023d43bec2094aa1a9470d3b25f0d702e12ca4a"
"""Later ones have it as a zip file, which no reader of lines reads."""
CORPUS_SIZE = 5_123_307_260
SIZES = {
    "hotpotqa/train.jsonl": 566_000_000,
    "hotpotqa/dev.jsonl": 46_000_000,
    "nq/train.jsonl": 9_960_000,
    "nq/dev.jsonl": 1_070_000,
    "nq/test.jsonl": 488_000,
}
"""About how many bytes, for the plan, which asks nobody: NQ's as the hub shows them, HotpotQA's by its own files."""
CORPUS_SHA256 = "7abd929223399cd63c52b499f289bf4f9039be1e9f8c43e1cb3938305b2317db"
_RAW = "https://raw.githubusercontent.com"
_BAMTWOOGLE, _ANTILEAK = "fd75eaf1ff92c9b05c19708239a16d127bf10d18", "9daf9304a598fc778bdb8f34f90413f39d79489e"
ON_GITHUB = {
    "bamtwoogle.csv": Source(
        url=f"{_RAW}/google-research-datasets/BamTwoogle/{_BAMTWOOGLE}/bamtwoogle.csv",
        size=9_480,
        checksum="4aa38764c257ed08f84f28dc72a681b74d6f33c4c12b30c8f1f2776647a5eec1",
        commit=_BAMTWOOGLE,
    ),
    "antileak.json": Source(
        url=f"{_RAW}/BobXWu/AntiLeak-Bench/{_ANTILEAK}/releases/en_20220101_20230101/multihop-gold.json",
        size=14_964_498,
        checksum="",  # nobody publishes one
        commit=_ANTILEAK,
    ),
}
"""By what the file is called here: the set's name and what it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What is kept beside a file."""

    sha256: str
    size: int
    """Bytes."""
    revision: str | None = None
    """That was asked for; None of a file that was put there by hand."""
    commit: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A file that a setting names: of which set, and where it is kept."""

    key: str
    """The setting's, without ``data.``."""
    name: str
    """As it is given."""
    file: str
    """In the repository."""
    path: Path
    revision: str
    known: Source | None = None
    """What the file has to be, where this code says so and nobody need be asked."""

    @property
    def given(self) -> str:
        return f"data.{self.key}={self.name}"

    @property
    def about(self) -> int | None:
        """About how many bytes it has; None where only the hub knows."""
        return SIZES.get(self.file) if self.known is None else self.known.size

    def source(self) -> Source:
        """Raises ``UserError`` where the hub doesn't have it, or can't be asked."""
        return self.known or on_hub(REPOSITORY, self.file, self.revision, self.given, self.path)


def named(config: DataConfig, cache: Path, mode: str) -> list[Named]:
    """The named files that ``mode`` reads, without looking for them. Raises ``UserError`` for a name that is none."""
    found = []
    for key in read_by(mode, config.eval_questions):
        value = getattr(config, key)
        for file in files_of(value, f"data.{key}") if value else ():
            if file.startswith(GITHUB):
                found.append(_on_github(key, file, cache))
            elif is_named(file):
                found.append(_named_split(key, file, cache, config.revision))
    if config.corpus == WIKI_18:
        path, url = cache / "corpora" / Path(CORPUS).name, hub_url(REPOSITORY, CORPUS, CORPUS_COMMIT)
        known = Source(url=url, size=CORPUS_SIZE, checksum=CORPUS_SHA256, commit=CORPUS_COMMIT)
        found.append(Named(key="corpus", name=WIKI_18, file=CORPUS, path=path, revision=CORPUS_COMMIT, known=known))
    return found


def fetched(
    config: DataConfig,
    cache: Path,
    mode: str,
    say: Callable[[str], None],
    show: Show = hidden,
) -> DataConfig:
    """``config`` with paths in place of the names that ``mode`` reads; what isn't in ``cache`` is fetched.

    ``say`` is told of it before. Raises ``UserError`` for a name that isn't there, a file that isn't what was fetched,
    a disk that is too small, and where the hub can't be asked.
    """
    paths: dict[str, str] = {}
    for each in named(config, cache, mode):
        ensure(each, say, show)
        paths[each.name] = str(each.path)
    if not paths:
        return config
    changed: dict[str, Any] = {}
    for key in ("corpus", *read_by(mode, config.eval_questions)):
        if value := getattr(config, key):
            files = (value,) if key == "corpus" else files_of(value, f"data.{key}")
            changed[key] = listed([paths.get(file, file) for file in files])
    return replace(config, **changed)


def _on_github(key: str, name: str, cache: Path) -> Named:
    files = {f"{GITHUB}{Path(file).stem}": file for file in ON_GITHUB}
    if name not in files:
        raise UserError(f"data.{key}={name}: is none of the sets that are read from GitHub, {', '.join(files)}")
    file, known = files[name], ON_GITHUB[files[name]]
    path = cache / "questions" / "github" / file
    return Named(key=key, name=name, file=file, path=path, revision=known.commit, known=known)


def _named_split(key: str, name: str, cache: Path, revision: str) -> Named:
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"data.{key}={name}: a named set is written flashrag:SET/SPLIT, such as flashrag:hotpotqa/train"
        )
    folder = cache / "questions" / "flashrag"
    if revision != BRANCH:  # a folder: the file's name is what the set is called
        folder /= f"@{quote(revision, safe='')}"
    path = folder / f"{match[1]}-{match[2]}.jsonl"
    for given, kept in ((f"data.revision={revision}", folder), (f"data.{key}={name}", _note_of(path))):
        if (length := len(os.fsencode(kept.name))) > LONGEST_NAME:
            raise UserError(
                f"{given[:60]}…: is too long: it would be kept as a file whose name has {length} bytes, and file "
                f"systems take {LONGEST_NAME}; name a branch, a tag or a commit of {REPOSITORY}, and a set of it"
            )
    return Named(key=key, name=name, file=f"{match[1]}/{match[2]}.jsonl", path=path, revision=revision)


def ensure(wanted: Named, say: Callable[[str], None], show: Show = hidden) -> None:
    """Has the file at ``wanted.path``, whole and as it was when it came. Raises as ``fetched``."""
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(wanted.path.with_suffix(".lock"), say, f"fetches {wanted.file}"):  # jobs that start together: once
        note = _kept(wanted)
        # A branch moves: what it was when it was fetched stays, so that runs can be compared. Another revision in a
        # place of this one's was put there before each had its own.
        if note is None or (note.revision is not None and wanted.revision not in (note.revision, note.commit)):
            _fetch(wanted, say, show)


def _note_of(path: Path) -> Path:
    return path.with_suffix(".source.json")


def _write_note(path: Path, note: Note) -> None:
    with written(_note_of(path)) as file:  # half a note would be no one's, and cost the file beside it
        file.write(f"{json.dumps(asdict(note), indent=1)}\n".encode())


def _kept(wanted: Named) -> Note | None:
    """The note of a file that is here, and is what it was; None where there is none."""
    path, given = wanted.path, wanted.given
    if path.is_dir():
        raise UserError(f"{given}: {path} is a folder, not the file; take it away, and the file is fetched")
    if not path.is_file():
        _note_of(path).unlink(missing_ok=True)  # of a file that was deleted: another one may come in its place
        return None
    size = path.stat().st_size
    try:
        note = Note(**json_of(_note_of(path).read_text()))
    except FileNotFoundError:
        note = Note(sha256=sha256(path), size=size)
        if wanted.known and wanted.known.checksum not in ("", note.sha256):
            raise UserError(f"{given}: {path} is another file (SHA-256); delete it, and it is fetched") from None
        _write_note(path, note)
        return note
    except (ValueError, TypeError) as error:
        raise UserError(f"{given}: {_note_of(path)} can't be read; delete it and {path.name}") from error
    # The corpus isn't read at every start: one that has changed has another stamp (stamps.py), and so another index.
    if note.size != size or (wanted.key != "corpus" and note.sha256 != sha256(path)):
        raise UserError(
            f"{given}: {path} is not what it was when it came (SHA-256); delete it, and it is fetched again, or delete "
            f"{_note_of(path).name} beside it if you have put another file there"
        )
    return note


def _fetch(wanted: Named, say: Callable[[str], None], show: Show) -> None:
    """Fetches the file, which appears when it is whole and right."""
    path, source = wanted.path, wanted.source()
    place = f"of {REPOSITORY} (revision {wanted.revision}, commit {source.commit[:7]})"
    say(
        f"fetching {wanted.file} {place if source.on_hub else f'from {source.url}'}: {size_text(source.size)}"
        f"{already(source, path)}, to {path}"
    )
    with show(f"fetching {wanted.file}") as progress:
        part = downloaded(source, path, wanted.given, progress)
    verified = source.checksum if source.by_sha256 else sha256(part)
    note = Note(sha256=verified, size=source.size, revision=wanted.revision, commit=source.commit)
    path.unlink(missing_ok=True)  # of another revision; never beside a note that isn't its own
    _write_note(path, note)
    part.rename(path)
