"""Building indexes: whole or not at all. Lucene is played by a function that writes the same files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import Fault, UserError
from agent.records import Passage
from retrieval_service import index as index_module
from retrieval_service.config import RetrievalConfig
from retrieval_service.corpus import corpus_checksum, write_corpus
from retrieval_service.index import FORMAT, MANIFEST, build_index, check_index, ensure_index

CONFIG = RetrievalConfig()


class FakeLucene:
    """Stands in for ``run_lucene``; ``during`` runs when half of the index is written."""

    def __init__(self) -> None:
        self.runs = 0
        self.during: Callable[[], None] = lambda: None

    def __call__(self, source: Path, out: Path, documents: int, config: RetrievalConfig) -> None:
        self.runs += 1
        (file,) = source.iterdir()
        assert file.suffix == ".jsonl"
        assert file.is_symlink(), "the corpus is to be linked, not copied"
        assert len(file.read_bytes().splitlines()) == documents
        out.mkdir()
        (out / "segments_1").touch()
        self.during()
        (out / "_0.fdt").touch()


@pytest.fixture
def lucene(monkeypatch: pytest.MonkeyPatch) -> FakeLucene:
    fake = FakeLucene()
    monkeypatch.setattr(index_module, "run_lucene", fake)
    return fake


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    write_corpus(path, [Passage(id="a", title="A", text="one"), Passage(id="b", title="B", text="two")])
    return path


def folders(cache: Path) -> list[str]:
    """The folders in ``cache``, hidden ones included."""
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_an_index_is_built_once_and_reused(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    cache = tmp_path / "deep" / "cache"
    first = ensure_index(corpus, CONFIG, cache)
    again = ensure_index(corpus, RetrievalConfig(k1=1.2, b=0.75), cache)
    assert first == again
    assert lucene.runs == 1
    assert folders(cache) == [first.name]
    manifest = check_index(first)
    assert manifest is not None
    assert manifest.documents == 2
    assert manifest.corpus_checksum == corpus_checksum(corpus)


def test_a_copy_of_the_corpus_elsewhere_shares_the_index(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(corpus.read_bytes())
    assert ensure_index(corpus, CONFIG, tmp_path / "c") == ensure_index(copy, CONFIG, tmp_path / "c")
    assert lucene.runs == 1


def test_a_changed_corpus_gets_an_index_of_its_own(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    first = ensure_index(corpus, CONFIG, tmp_path / "c")
    write_corpus(corpus, [Passage(id="a", title="A", text="three")])
    second = ensure_index(corpus, CONFIG, tmp_path / "c")
    assert first != second
    assert lucene.runs == 2
    assert [check_index(path).documents for path in (first, second)] == [2, 1]  # type: ignore[union-attr]


def test_a_bad_corpus_is_refused_before_anything_is_indexed(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    corpus.write_bytes(corpus.read_bytes() + b'{"id": "a", "contents": "again"}\n')
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 3: id 'a' is taken by line 1"):
        ensure_index(corpus, CONFIG, tmp_path / "c")
    assert lucene.runs == 0
    assert folders(tmp_path / "c") == []


@pytest.mark.parametrize("interruption", [Fault("disk full"), KeyboardInterrupt()])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, corpus: Path, lucene: FakeLucene, interruption: BaseException
) -> None:
    def interrupt() -> None:
        raise interruption

    lucene.during = interrupt
    with pytest.raises(type(interruption)):
        ensure_index(corpus, CONFIG, tmp_path / "c")
    assert folders(tmp_path / "c") == []
    lucene.during = lambda: None
    check_index(ensure_index(corpus, CONFIG, tmp_path / "c"))


def test_what_a_killed_builder_left_is_no_index_and_is_swept(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    index = ensure_index(corpus, CONFIG, tmp_path / "c")
    leftover = tmp_path / "c" / f".{index.name}.building-xyz"
    index.rename(leftover)
    assert ensure_index(corpus, CONFIG, tmp_path / "c") == index
    assert lucene.runs == 2
    assert folders(tmp_path / "c") == [index.name]


def test_a_corpus_that_changes_meanwhile_is_not_indexed(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    lucene.during = lambda: corpus.write_bytes(corpus.read_bytes() + b'{"id": "c", "contents": "late"}\n')  # type: ignore[assignment]
    with pytest.raises(UserError, match="changed while it was being indexed"):
        ensure_index(corpus, CONFIG, tmp_path / "c")
    assert folders(tmp_path / "c") == []


def test_concurrent_builders_build_once(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    building, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        building.set()
        assert go_on.wait(10)

    lucene.during = pause
    found: list[Path] = []
    builders = [
        threading.Thread(target=lambda: found.append(ensure_index(corpus, CONFIG, tmp_path / "c"))) for _ in range(3)
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
    assert lucene.runs == 1


def test_who_loses_the_race_takes_the_winners_index(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    """Two builders whom no lock keeps apart: the second finds the place taken when it is done."""
    index = tmp_path / "index"

    def another_builder_wins() -> None:
        lucene.during = lambda: None
        build_index(corpus, index, CONFIG)
        (index / "winner").touch()

    lucene.during = another_builder_wins
    build_index(corpus, index, CONFIG)
    assert lucene.runs == 2
    assert (index / "winner").exists()
    assert folders(tmp_path) == ["index"]


def test_build_does_not_overwrite(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    (tmp_path / "index").mkdir()
    with pytest.raises(UserError, match="index: exists already"):
        build_index(corpus, tmp_path / "index", CONFIG)
    assert lucene.runs == 0


def test_what_is_no_complete_index_is_named(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    with pytest.raises(UserError, match="none: no such folder"):
        check_index(tmp_path / "none")
    with pytest.raises(UserError, match=r"corpus\.jsonl: no such folder"):
        check_index(corpus)
    with pytest.raises(UserError, match=f"{tmp_path}: not a Lucene index"):
        check_index(tmp_path)
    index = tmp_path / "index"
    build_index(corpus, index, CONFIG)
    (index / MANIFEST).write_text('{"documents": 2')
    with pytest.raises(UserError, match=r"manifest\.json: damaged .* delete .*index"):
        check_index(index)
    (index / MANIFEST).write_text('{"documents": 2}')
    with pytest.raises(UserError, match="damaged"):
        check_index(index)


def test_an_index_of_another_format_is_refused(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    index = tmp_path / "index"
    build_index(corpus, index, CONFIG)
    manifest = json.loads((index / MANIFEST).read_text())
    (index / MANIFEST).write_text(json.dumps(manifest | {"format": manifest["format"] + 1}))
    with pytest.raises(UserError, match=rf"its format is {FORMAT + 1}, this version reads {FORMAT}"):
        check_index(index)


def test_a_cached_index_that_was_damaged_is_not_used(tmp_path: Path, corpus: Path, lucene: FakeLucene) -> None:
    index = ensure_index(corpus, CONFIG, tmp_path / "c")
    (index / MANIFEST).unlink()
    assert check_index(index) is None, "by itself it could be somebody else's Lucene index"
    with pytest.raises(UserError, match="not the complete index that its name says; delete it"):
        ensure_index(corpus, CONFIG, tmp_path / "c")
