"""Building indexes: whole or not at all, in parts that outlast an interruption. The backend is a scripted one."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from agent.errors import Fault, UserError
from agent.records import Passage
from retrieval_service import download, rankers, stamps, textfile
from retrieval_service import index as index_module
from retrieval_service import names as names_module
from retrieval_service.backends.bm25 import _analyser
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import Record, corpus_stamp, write_corpus
from retrieval_service.encoder import encoder_of
from retrieval_service.index import (
    FORMAT,
    MANIFEST,
    SUMS,
    aside,
    check_index,
    ensure_index,
    keep_part,
    part_of,
    read_manifest,
)
from retrieval_service.names import FILE, Names, corpus_names
from retrieval_service.watch import Watch


class Scripted:
    """A recipe whose builder writes the ids of each part into a file; ``during`` runs when it is to join them."""

    backend = "scripted"
    key = "scripted"
    made_with: dict[str, Any] = {"analyser": "none"}  # noqa: RUF012
    slow = False

    def __init__(self) -> None:
        self.runs = 0
        self.worked: list[int] = []
        """The parts that were worked on."""
        self.refusing: Callable[[], None] = lambda: None
        """Runs when a builder is asked for."""
        self.during: Callable[[], None] = lambda: None
        self.reading: Callable[[], None] = lambda: None
        """Runs when a part has been read."""

    def builder(self, work: Path) -> Builder:
        self.runs += 1
        self.refusing()
        return Builder(self, work)


class Builder:
    def __init__(self, recipe: Scripted, work: Path) -> None:
        self.recipe, self.work, self.parts, self.closed = recipe, work, [], 0

    def take(self, number: int, part: Sequence[Record], told: Callable[[int], None]) -> None:
        assert number == len(self.parts)
        self.recipe.reading()
        done = part_of(self.work, number)
        if not done.exists():
            self.recipe.worked.append(number)
            made = aside(self.work, done.name)
            made.mkdir()
            (made / "ids").write_text("".join(f"{record.id}\n" for record in part))
            keep_part(made, done)
        self.parts.append(done / "ids")

    def finish(self, out: Path) -> None:
        self.recipe.during()
        out.mkdir()
        (out / "ids").write_text("".join(file.read_text() for file in self.parts))

    def close(self) -> None:
        assert not self.closed
        self.closed += 1


def ids(index: Path) -> list[str]:
    return (index / "ids").read_text().split()


@pytest.fixture
def recipe() -> Scripted:
    return Scripted()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    write_corpus(path, [Passage(id="a", title="A", text="one"), Passage(id="b", title="B", text="two")])
    return path


def folders(cache: Path) -> list[str]:
    """The folders of indexes in ``cache``, hidden ones included."""
    return sorted(path.name for path in (cache / "indexes").iterdir() if path.is_dir())


def test_an_index_is_built_once_and_reused(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    cache = tmp_path / "deep" / "cache"
    first = ensure_index(corpus, recipe, cache)
    again = ensure_index(corpus, recipe, cache)
    assert first == again
    assert recipe.runs == 1
    assert folders(cache) == [first.name]
    manifest = check_index(first, "scripted")
    assert manifest is not None
    assert manifest.documents == 2
    assert manifest.corpus_checksum == corpus_stamp(corpus, tmp_path).checksum
    assert manifest.made_with == {"analyser": "none"}
    assert corpus_names(corpus, cache).known({"B", "C"}, "title") == {"B"}
    assert not (cache / "corpora").exists(), "the names are the index's"


def test_a_copy_of_the_corpus_elsewhere_shares_the_index(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(corpus.read_bytes())
    assert ensure_index(corpus, recipe, tmp_path / "c") == ensure_index(copy, recipe, tmp_path / "c")
    assert recipe.runs == 1


def test_a_changed_corpus_gets_an_index_of_its_own(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    first = ensure_index(corpus, recipe, tmp_path / "c")
    write_corpus(corpus, [Passage(id="a", title="A", text="three")])
    second = ensure_index(corpus, recipe, tmp_path / "c")
    assert first != second
    assert recipe.runs == 2
    assert [check_index(path, "scripted").documents for path in (first, second)] == [2, 1]  # type: ignore[union-attr]


def test_one_more_backend_opens_the_index_that_the_first_one_opened(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = SimpleNamespace(
        ensure=lambda corpus, config, cache, watch: ensure_index(corpus, recipe, cache),
        Backend=lambda index, config: index,
    )
    monkeypatch.setattr(rankers, "backend_module", lambda name: ranker)
    open_one = rankers.opener(corpus, RetrievalConfig(), tmp_path / "c")
    first = open_one()
    write_corpus(corpus, [Passage(id="a", title="A", text="three")])
    assert open_one() == first
    assert recipe.runs == 1
    assert rankers.opener(corpus, RetrievalConfig(), tmp_path / "c")() != first


def test_a_bad_corpus_is_refused_before_anything_is_indexed(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    corpus.write_bytes(corpus.read_bytes() + b'{"id": "a", "contents": "again"}\n')
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 3: id 'a' is taken by line 1"):
        ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == []
    assert folders(tmp_path / "c") == []


@pytest.mark.parametrize("interruption", [Fault("disk full"), UserError("no Java"), KeyboardInterrupt()])
def test_an_interrupted_build_is_no_index_and_goes_on_where_it_was(
    tmp_path: Path, corpus: Path, recipe: Scripted, interruption: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "PART", 1)

    def interrupt() -> None:
        raise interruption

    recipe.during = interrupt
    with pytest.raises(type(interruption)):
        ensure_index(corpus, recipe, tmp_path / "c")
    (left,) = folders(tmp_path / "c")
    assert left.startswith(".")
    assert recipe.worked == [0, 1]
    shutil.rmtree(part_of(tmp_path / "c" / "indexes" / left, 1))  # as if it had been killed a little earlier
    recipe.during = lambda: None
    monkeypatch.setattr(index_module.platform, "node", lambda: "the next container")
    index = ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == [0, 1, 1]
    assert ids(index) == ["a", "b"]
    assert folders(tmp_path / "c") == [index.name]


@pytest.fixture
def interrupted(tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the two parts of a build lie that was interrupted before they were joined."""
    monkeypatch.setattr(names_module, "PART", 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    recipe.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        ensure_index(corpus, recipe, tmp_path / "c")
    recipe.during = lambda: None
    (left,) = folders(tmp_path / "c")
    return tmp_path / "c" / "indexes" / left


def test_parts_that_another_version_cut_are_not_gone_on_with(
    tmp_path: Path, corpus: Path, recipe: Scripted, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "PART", 2)
    index = ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == [0, 1, 0]
    assert ids(index) == ["a", "b"]
    assert folders(tmp_path / "c") == [index.name], "the old parts are gone"


@pytest.mark.parametrize("damage", ["cut short", "another byte", "a file gone", "a file more", "no sums", "half sums"])
def test_a_finished_part_that_is_damaged_is_made_again(
    tmp_path: Path, corpus: Path, recipe: Scripted, interrupted: Path, damage: str
) -> None:
    part = part_of(interrupted, 1)
    if damage == "cut short":
        (part / "ids").write_bytes(b"")
    elif damage == "another byte":
        (part / "ids").write_bytes(b"x\n")
    elif damage == "a file gone":
        (part / "ids").unlink()
    elif damage == "a file more":
        (part / "more").touch()
    elif damage == "no sums":
        (part / SUMS).unlink()
    else:
        (part / SUMS).write_text('{"ids": ')
    said: list[str] = []
    index = ensure_index(corpus, recipe, tmp_path / "c", Watch(say=said.append))
    assert ids(index) == ["a", "b"]
    assert recipe.worked == [0, 1, 1]
    assert said == [f"{part}: is damaged, and is made again"]


def test_a_part_and_an_index_get_their_names_when_they_are_on_the_disk(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    unsynced: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def note(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def look(made: Path, done: Path) -> None:
        unsynced.extend((done.name, file.name) for file in made.iterdir() if str(file) not in synced)
        rename(made, done)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", look)
    index = ensure_index(corpus, recipe, tmp_path / "c")
    assert unsynced == []
    names = {Path(path).name for path in synced}
    assert {"ids", SUMS, MANIFEST} <= names
    assert read_manifest(index) is not None


def test_what_a_builder_left_beside_its_index_goes_at_the_next_start(
    tmp_path: Path, corpus: Path, recipe: Scripted
) -> None:
    index = ensure_index(corpus, recipe, tmp_path / "c")
    (index.parent / f".{index.name}.building-9" / "part-00000").mkdir(parents=True)  # one who was killed in between
    assert ensure_index(corpus, recipe, tmp_path / "c") == index
    assert folders(tmp_path / "c") == [index.name]
    assert recipe.runs == 1


def test_a_setting_that_is_refused_costs_no_finished_part(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    def refuse() -> None:
        raise UserError("retrieval.device=cuda: not to be had here")

    def interrupt() -> None:
        raise KeyboardInterrupt

    recipe.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        ensure_index(corpus, recipe, tmp_path / "c")
    recipe.refusing = refuse
    with pytest.raises(UserError, match="not to be had"):
        ensure_index(corpus, recipe, tmp_path / "c")
    recipe.refusing = recipe.during = lambda: None
    ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == [0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_a_corpus_that_cannot_be_read_for_a_while_costs_no_finished_part(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    corpus.write_bytes(pack(corpus.read_bytes()))
    monkeypatch.setattr(names_module, "PART", 1)
    lines_of = textfile.lines_of

    def breaking(file: Any, name: str) -> Iterator[tuple[int, bytes]]:
        yield next(lines_of(file, name))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(textfile, "lines_of", breaking)
    with pytest.raises(UserError, match=r"corpus\.jsonl: cannot read the corpus \(Input/output error\)"):
        ensure_index(corpus, recipe, tmp_path / "c")
    monkeypatch.setattr(textfile, "lines_of", lines_of)
    ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == [0, 1]


@pytest.mark.parametrize(("kind", "total"), [("plain", 2), ("no last newline", 2), ("gzip", 0), ("Parquet", 2)])
def test_progress_is_counted(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch, kind: str, total: int
) -> None:
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    if kind == "no last newline":
        corpus.write_bytes(corpus.read_bytes().removesuffix(b"\n"))
    elif kind == "gzip":
        corpus.write_bytes(gzip.compress(corpus.read_bytes()))
    elif kind == "Parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), corpus)
    monkeypatch.setattr(names_module, "PART", 1)
    counted: list[tuple[int, int]] = []
    ensure_index(corpus, recipe, tmp_path / "c", Watch(count=lambda done, total: counted.append((done, total))))
    assert counted == [(1, total), (2, total)]


def free(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """The disk has so many bytes free, each time that it is looked at."""
    left = iter(sizes)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(left)))
    monkeypatch.setattr(index_module, "SMALL", 10)


def test_a_full_disk_is_told_before_anything_is_indexed(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = corpus.stat().st_size
    free(monkeypatch, 2 * size - 1)
    with pytest.raises(
        UserError, match=r"^indexing .*corpus\.jsonl: needs 0\.0 MB in .*, where 0\.0 MB are free; make"
    ):
        ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.runs == 0
    corpus.write_bytes(packed := gzip.compress(corpus.read_bytes()))
    free(monkeypatch, 6 * len(packed) - 1)
    with pytest.raises(UserError, match="make room"):
        ensure_index(corpus, recipe, tmp_path / "c")


def test_the_first_part_tells_how_large_an_index_will_be(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts of one size and the index of as much: four times that, of which a quarter is there."""
    monkeypatch.setattr(names_module, "PART", 1)
    size = len("a\n") + len(json.dumps({"ids": "0" * 128}))
    free(monkeypatch, 10**6, 3 * size - 1)
    with pytest.raises(UserError, match="make room"):
        ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == [0]
    free(monkeypatch, 10**6, 3 * size)
    ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == [0, 1], "a disk that was too small costs no part"


def test_a_corpus_that_changes_meanwhile_is_not_indexed(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    recipe.reading = lambda: corpus.write_bytes(corpus.read_bytes() + b'{"id": "c", "contents": "late"}\n')  # type: ignore[assignment]
    with pytest.raises(UserError, match="changed while it was being indexed"):
        ensure_index(corpus, recipe, tmp_path / "c")
    assert folders(tmp_path / "c") == []


def test_a_corpus_of_which_only_the_times_change_is_indexed(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    recipe.reading = lambda: os.utime(corpus, (1, 1))
    assert ids(ensure_index(corpus, recipe, tmp_path / "c")) == ["a", "b"]


@pytest.mark.parametrize("last", ["", '{"id": "a", "contents": "again"}'])
def test_what_is_wrong_at_the_end_is_found_before_a_part_is_encoded(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.setattr(names_module, "PART", 1)
    corpus.write_text(f"{(right := corpus.read_text())}{last}\n")
    recipe.slow = True
    with pytest.raises(UserError, match="line 3"):
        ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked == []
    recipe.slow = False
    with pytest.raises(UserError, match="line 3"):
        ensure_index(corpus, recipe, tmp_path / "c")
    assert recipe.worked != [], "what is quick is read once"
    corpus.write_text(right)
    recipe.worked = []
    assert ids(ensure_index(corpus, recipe, tmp_path / "c")) == ["a", "b"]


def test_concurrent_builders_build_once(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    building, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        building.set()
        assert go_on.wait(10)

    recipe.during = pause
    found: list[Path] = []
    builders = [
        threading.Thread(target=lambda: found.append(ensure_index(corpus, recipe, tmp_path / "c"))) for _ in range(3)
    ]
    builders[0].start()
    assert building.wait(10)
    for builder in builders[1:]:
        builder.start()
    assert found == []
    go_on.set()
    for builder in builders:
        builder.join(10)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert recipe.runs == 1


def test_who_loses_the_race_takes_the_winners_index(
    tmp_path: Path, corpus: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines whom no lock keeps apart: the second finds the place taken when it is done."""
    monkeypatch.setattr(index_module, "in_turn", lambda *told: nullcontext())
    machine = "one"
    monkeypatch.setattr(index_module.platform, "node", lambda: machine)
    won: list[Path] = []

    def another_builder_wins() -> None:
        nonlocal machine
        machine, recipe.during = "two", lambda: None
        won.append(ensure_index(corpus, recipe, tmp_path / "c"))
        (won[0] / "winner").touch()

    recipe.during = another_builder_wins
    index = ensure_index(corpus, recipe, tmp_path / "c")
    assert (recipe.runs, recipe.worked) == (2, [0]), "a part is made once"
    assert won == [index]
    assert (index / "winner").exists()
    assert folders(tmp_path / "c") == [index.name]


def test_what_is_no_complete_index_is_named(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    with pytest.raises(UserError, match="none: no such folder"):
        check_index(tmp_path / "none", "scripted")
    with pytest.raises(UserError, match=r"corpus\.jsonl: no such folder"):
        check_index(corpus, "scripted")
    index = ensure_index(corpus, recipe, tmp_path / "c")
    with pytest.raises(UserError, match="is an index of retrieval=scripted, not of retrieval=bm25"):
        check_index(index, "bm25")
    (index / MANIFEST).write_text('{"documents": 2')
    with pytest.raises(UserError, match=r"manifest\.json: damaged .* delete .*index"):
        check_index(index, "scripted")
    (index / MANIFEST).write_text('{"documents": 2}')
    with pytest.raises(UserError, match="damaged"):
        check_index(index, "scripted")


def test_what_a_manifest_has_lost_is_said_where_it_is_asked_for(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    index = ensure_index(corpus, recipe, tmp_path / "c")
    manifest = json.loads((index / MANIFEST).read_text())
    (index / MANIFEST).write_text(json.dumps(manifest | {"made_with": {}}))
    told = check_index(index, "scripted")
    assert told is not None
    said = rf"^{re.escape(str(index))}: its manifest\.json is damaged \(made_with has no analyser\); delete the folder"
    with pytest.raises(UserError, match=said):
        _analyser(index, told, RetrievalConfig())
    with pytest.raises(UserError, match="made_with has no encoder"):
        encoder_of(index, told.made_with, None, {})
    for name, value in (("made_with", None), ("documents", "2"), ("documents", True), ("backend", 3), ("corpus", [])):
        (index / MANIFEST).write_text(json.dumps(manifest | {name: value}))
        with pytest.raises(UserError, match=rf"manifest\.json: damaged \({name} is {re.escape(repr(value))}\); delete"):
            check_index(index, "scripted")


def test_an_index_of_another_format_is_refused(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    index = ensure_index(corpus, recipe, tmp_path / "c")
    manifest = json.loads((index / MANIFEST).read_text())
    (index / MANIFEST).write_text(json.dumps(manifest | {"format": manifest["format"] + 1}))
    with pytest.raises(UserError, match=rf"its format is {FORMAT + 1}, this version reads {FORMAT}"):
        check_index(index, "scripted")


def test_a_cached_index_that_was_damaged_is_not_used(tmp_path: Path, corpus: Path, recipe: Scripted) -> None:
    index = ensure_index(corpus, recipe, tmp_path / "c")
    (index / MANIFEST).unlink()
    assert check_index(index, "scripted") is None, "by itself it could be somebody else's Lucene index"
    with pytest.raises(UserError, match="not the complete index that its name says; delete it"):
        ensure_index(corpus, recipe, tmp_path / "c")


# --- checksums that are kept -----------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for their checksum, while no file counts as just written."""
    found: list[Path] = []
    read = stamps._read
    monkeypatch.setattr(stamps, "_read", lambda path: found.append(path) or read(path))
    monkeypatch.setattr(stamps, "SETTLED_S", -1.0)
    return found


def test_a_corpus_that_has_not_changed_is_read_once(
    tmp_path: Path, corpus: Path, recipe: Scripted, reads: list[Path]
) -> None:
    index = ensure_index(corpus, recipe, tmp_path / "c")
    assert corpus_stamp(corpus, tmp_path / "c").checksum == index.name.partition("-")[0]
    link = tmp_path / "link.jsonl"
    link.symlink_to(corpus)
    for path in (corpus, link):
        ensure_index(path, recipe, tmp_path / "c")
        corpus_names(path, tmp_path / "c")
    assert reads == [corpus]


@pytest.mark.parametrize("change", ["grown", "same size, same time", "another file", "touched", "damaged stamp"])
def test_whatever_may_have_changed_is_read_again(tmp_path: Path, corpus: Path, reads: list[Path], change: str) -> None:
    before, stat = corpus_stamp(corpus, tmp_path), corpus.stat()
    data = corpus.read_bytes()
    if change == "grown":
        corpus.write_bytes(data + b'{"id": "c", "contents": "x"}\n')
    elif change == "same size, same time":
        corpus.write_bytes(data.replace(b"one", b"two"))
        os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "another file":
        (tmp_path / "other").write_bytes(data.replace(b"one", b"six"))
        os.replace(tmp_path / "other", corpus)
    elif change == "touched":
        os.utime(corpus)
    else:
        (kept,) = (tmp_path / "stamps").iterdir()
        kept.write_text('{"format": 1')
    after = corpus_stamp(corpus, tmp_path)
    assert len(reads) == 2
    assert (after.checksum == before.checksum) == (change in ("touched", "damaged stamp"))


def test_a_modification_in_the_future_is_no_reason_to_read_again(
    tmp_path: Path, corpus: Path, reads: list[Path]
) -> None:
    os.utime(corpus, (2**32, 2**32))
    for _ in range(2):
        corpus_stamp(corpus, tmp_path / "c")
    assert reads == [corpus]


def test_a_file_that_was_just_written_is_not_trusted_the_next_time(tmp_path: Path, corpus: Path) -> None:
    """A change within the same tick of the file system's clock would leave no trace."""
    corpus_stamp(corpus, tmp_path)
    assert not (tmp_path / "stamps").exists()


def test_a_long_reading_says_why(
    tmp_path: Path, corpus: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "LARGE", 10)
    said: list[str] = []
    corpus_stamp(corpus, tmp_path, said.append)
    corpus_stamp(corpus, tmp_path, said.append)
    os.utime(corpus)
    corpus_stamp(corpus, tmp_path, said.append)
    assert said == [
        f"reading {corpus} for its checksum, 0.0 GB, once: it is new here",
        f"reading {corpus} for its checksum, 0.0 GB, once: it has changed since",
    ]


# --- ids that are there twice ----------------------------------------------------------------------


def test_an_id_that_another_part_has_is_found(
    tmp_path: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "PART", 2)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": name, "contents": "x"}) + "\n" for name in "abcdefb"))
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 7: id 'b' is taken by line 2; every id must be unique"):
        ensure_index(corpus, recipe, tmp_path / "c")
    assert folders(tmp_path / "c") == [], "the parts are of no use"


def test_ids_that_only_share_a_digest_are_no_mistake(
    tmp_path: Path, recipe: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "name_digest", lambda text: len(text))
    monkeypatch.setattr(names_module, "PART", 2)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": name, "contents": "x"}) + "\n" for name in "abcde"))
    index = ensure_index(corpus, recipe, tmp_path / "c")
    assert ids(index) == [*"abcde"]
    assert len(Names.load(index / FILE).ids) == 5


def test_parts_are_cut_by_number_and_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "PART", 3)
    monkeypatch.setattr(names_module, "PART_SIZE", 10)
    corpus = tmp_path / "corpus.jsonl"
    sizes = [1, 1, 1, 1, 9, 20, 1]
    corpus.write_text(
        "".join(json.dumps({"id": str(n), "contents": "x" * size}) + "\n" for n, size in enumerate(sizes))
    )
    assert [[record.id for record in part] for part in names_module.parts(corpus)] == [
        ["0", "1", "2"],
        ["3", "4"],
        ["5"],
        ["6"],
    ]
