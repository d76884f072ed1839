"""Published indexes: a small real one, packed as they are, from a server on this machine."""

from __future__ import annotations

import ast
import errno
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import filelock
import pytest
from hub import Hub, serving
from huggingface_hub import constants

from agent.errors import Fault, UserError
from retrieval_service import download, jvm, prebuilt, titles
from retrieval_service.config import RetrievalConfig
from retrieval_service.download import Progress
from retrieval_service.names import FILE, searched_names
from retrieval_service.prebuilt import archive_of, ensure_prebuilt, room_for, to_fetch
from retrieval_service.rankers import opener
from retrieval_service.titles import keep_names
from retrieval_service.wikipedia import HOTPOTQA, PREBUILT, WIKI_18, Prebuilt, fitting, index_of

pytestmark = pytest.mark.jvm

PAGES = {
    "Emma (novel)": "Emma is a novel written by Jane Austen.",
    "'Adud al-Dawla": 'An emir of the Buyid dynasty, called "Pillar of the [Abbasid] Dynasty".',
    "Jane Austen": "Jane Austen was born in Steventon.",
    "Empty": "",
    "AT&T": "A company.\nOf telephones.",
}
CONFIG = RetrievalConfig(prebuilt=HOTPOTQA.name)
ON_HUB = "castorini/prebuilt-indexes-beir/lucene-inverted/flat/" + HOTPOTQA.archive


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """``PAGES`` as BEIR's HotpotQA has them, indexed with the options of the published index, and packed."""
    folder = tmp_path_factory.mktemp("beir")
    (folder / "corpus").mkdir()
    rows = [{"_id": str(at), "title": t, "text": text, "metadata": {}} for at, (t, text) in enumerate(PAGES.items())]
    (folder / "corpus" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jvm.start_jvm(CONFIG.heap, CONFIG.threads)
    args = jvm.java_class("io.anserini.index.IndexCollection$Args")()
    args.collectionClass, args.input, args.index = "BeirFlatCollection", str(folder / "corpus"), str(folder / "index")
    args.threads, args.storeRaw, args.storePositions, args.storeDocvectors = 1, True, True, True
    args.optimize, args.quiet = True, True
    jvm.java_class("io.anserini.index.IndexCollection")(args).run()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(folder / "index", arcname=HOTPOTQA.archive.removesuffix(".tar.gz"))
    return out.getvalue()


@pytest.fixture
def there(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with that archive in the published one's place."""
    small = replace(
        HOTPOTQA,
        md5=hashlib.md5(packed, usedforsecurity=False).hexdigest(),
        size=len(packed),
        documents=len(PAGES),
    )
    monkeypatch.setitem(PREBUILT, HOTPOTQA.name, small)
    with serving(Hub({ON_HUB: packed})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(download, "sleep", lambda seconds: None)
        monkeypatch.setattr(prebuilt, "keep_names", lambda index, progress: (index / FILE).touch())
        yield hub


def fetched(cache: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    return ensure_prebuilt(HOTPOTQA.name, cache, said.append), said


def names_kept_from_here(index: Path, progress: Progress) -> None:
    """As ``keep_names`` has it done in a process of its own, whose JVM takes seconds to start."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jvm, "start_jvm", lambda heap, threads: None)  # it runs, with other settings
        titles.read_names(index.resolve()).save(index / FILE)


@pytest.mark.parametrize("keep", [names_kept_from_here, pytest.param(keep_names, marks=pytest.mark.slow)])
def test_an_index_is_fetched_once_and_searched(
    keep: Callable[[Path, Progress], None],
    there: Hub,
    packed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prebuilt, "keep_names", keep)
    assert (to_fetch(HOTPOTQA.name, tmp_path), room_for(HOTPOTQA.name, tmp_path)) == (len(packed), len(packed) * 5 // 2)
    monkeypatch.chdir(tmp_path)
    folder, (first, second, third) = fetched(Path())
    assert first.startswith(f"fetching the index {HOTPOTQA.name} (5 passages: the first paragraphs of all of Wikipedia")
    assert f": {len(packed) / 1e6:.1f} MB, about 0.0 MB unpacked, from {there.url}/datasets/castorini/" in first
    assert second == f"unpacking {archive_of(HOTPOTQA.name, Path())}, which is deleted then, to {folder}"
    assert third == "reading the titles of 5 passages, once: by them supporting documents are looked up"
    names = searched_names(None, CONFIG, tmp_path)
    assert names is not None
    assert names.known({"Emma (novel)", "Persuasion", "AT&amp;T"}, "title") == {"Emma (novel)", "AT&amp;T"}
    assert names.known({"4", "5"}, "id") == {"4"}
    backend = opener(None, CONFIG, tmp_path)()
    try:
        found = backend.search_batch(["who wrote the novel Emma?", "an emir of the Buyid dynasty", "telephones"], 2)
        best = [hits[0] for hits in found]
        assert [(p.title, p.text) for p in best] == [(t, PAGES[t]) for t in ("Emma (novel)", "'Adud al-Dawla", "AT&T")]
        (empty,) = backend.search_batch(["empty"], 1)
        assert [(p.title, p.text) for p in empty] == [("Empty", "")]
        identity = backend.identity()
    finally:
        backend.close()
    small = PREBUILT[HOTPOTQA.name]
    assert (identity.name, identity.checksum, identity.documents) == (HOTPOTQA.name, small.md5, len(PAGES))
    assert len(there.asked) == 1, "its size and checksum are known, and nobody is asked again"
    assert [p.name for p in folder.parent.iterdir() if not p.name.startswith(".")] == [folder.name]
    assert (to_fetch(HOTPOTQA.name, tmp_path), room_for(HOTPOTQA.name, tmp_path)) == (0, 0)


def test_of_several_who_want_it_one_reads_its_titles(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_wait(index: Path, progress: object) -> None:
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(index.parent / f".{index.name}.lock", timeout=0).acquire()
        (index / FILE).touch()

    monkeypatch.setattr(prebuilt, "keep_names", others_wait)
    folder, _ = fetched(tmp_path)
    (folder / FILE).unlink()  # as if it had been interrupted there
    assert [line.split()[0] for line in fetched(tmp_path)[1]] == ["reading"]
    assert fetched(tmp_path)[1] == []


def test_a_python_that_unpacks_anywhere_is_refused_before_anything_is_fetched(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"^retrieval\.prebuilt=beir.*: needs Python 3\.11\.4 or newer, which unpacks"):
        fetched(tmp_path)
    assert not there.asked


def test_a_folder_in_the_archives_place_is_told_before_anything_is_fetched(there: Hub, tmp_path: Path) -> None:
    """As a browser leaves it that unpacks what it has fetched."""
    archive_of(HOTPOTQA.name, tmp_path).mkdir(parents=True)
    with pytest.raises(UserError, match=r"^retrieval\.prebuilt=beir.*\.tar\.gz is a folder, .*: retrieval\.index=/"):
        fetched(tmp_path)
    assert not there.asked


def test_one_that_was_interrupted_goes_on(there: Hub, packed: bytes, tmp_path: Path) -> None:
    there.breaks_after = 1000
    with pytest.raises(UserError, match=r"^retrieval\.prebuilt=beir.*: is not here, and the hub can't be asked \(it"):
        fetched(tmp_path)
    assert to_fetch(HOTPOTQA.name, tmp_path) == len(packed) - 1000
    there.breaks_after = None
    there.asked.clear()
    folder, said = fetched(tmp_path)
    assert there.got() == ["bytes=1000-"]
    assert "MB, of which 0.0 MB are here already, about" in said[0]
    assert folder.is_dir()


def test_an_archive_that_a_kill_left_beside_its_index_goes(there: Hub, packed: bytes, tmp_path: Path) -> None:
    folder, _ = fetched(tmp_path)
    (folder / FILE).unlink()
    archive_of(HOTPOTQA.name, tmp_path).write_bytes(packed)
    assert fetched(tmp_path)[0] == folder
    assert not archive_of(HOTPOTQA.name, tmp_path).exists()


def test_one_that_came_damaged_is_refused(there: Hub, packed: bytes, tmp_path: Path) -> None:
    there.files[ON_HUB] = packed[:-9] + bytes(9)
    with pytest.raises(UserError, match=r"\.tar\.gz came damaged \(its checksum is another\); start again"):
        fetched(tmp_path)
    assert not index_of(HOTPOTQA.name, tmp_path).exists()
    there.files[ON_HUB] = packed
    assert fetched(tmp_path)[0].is_dir()


def test_a_disk_that_is_too_small_is_said_before(there: Hub, packed: bytes, tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(1, 1, len(packed) * 5 // 2 - 1))
    with pytest.raises(UserError, match=r"^retrieval\.prebuilt=beir.*: needs 0\.0 MB in .*/indexes, where 0\.0 MB are"):
        fetched(tmp_path)
    assert not there.asked
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(1, 1, len(packed) * 5 // 2))
    assert fetched(tmp_path)[0].is_dir()


def test_a_disk_that_fills_while_it_is_unpacked_costs_no_second_download(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extract", full)
        with pytest.raises(UserError, match=r"can't be unpacked: .*No space left on device; start again to go on"):
            fetched(tmp_path)
    assert [p.name for p in index_of(HOTPOTQA.name, tmp_path).parent.iterdir() if p.is_dir()] == []
    folder, said = fetched(tmp_path)
    assert folder.is_dir()
    assert [line.split()[0] for line in said] == ["unpacking", "reading"], "it isn't fetched again"
    assert len(there.asked) == 1


def test_without_a_network_the_line_says_what_to_put_where(
    there: Hub, packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    archive = archive_of(HOTPOTQA.name, tmp_path)
    with pytest.raises(UserError) as caught:
        fetched(tmp_path)
    assert str(caught.value) == (
        f"retrieval.prebuilt={HOTPOTQA.name}: is not here, and the hub can't be asked (HF_HUB_OFFLINE is set); start "
        f"again to go on, or get {PREBUILT[HOTPOTQA.name].url} elsewhere and put it at {archive}"
    )
    archive.write_bytes(packed[:-1])
    with pytest.raises(UserError, match=r"\.tar\.gz is damaged or another file \(MD5\); delete it, and it is fetched"):
        fetched(tmp_path)
    archive.write_bytes(packed)
    assert fetched(tmp_path)[0].is_dir()


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("print('Picked up x'); print('5/9'); raise SystemExit(3)", "Picked up x (exit code 3)"),
        ("print('5/9', flush=True); import os; os.kill(os.getpid(), 9)", "it said nothing (exit code -9)"),
        (
            "import sys; sys.stdout.buffer.write(bytes([233]) + b'\\n5/9\\n'); raise SystemExit(1)",
            "\ufffd (exit code 1)",
        ),
    ],
)
def test_why_titles_cannot_be_read_is_told(
    does: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far it was is no reason."""
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{does}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(titles.sys, "executable", str(tmp_path / "python"))
    seen: list[tuple[int, int]] = []
    with pytest.raises(Fault, match=re.escape(f"its titles can't be read: {told}")):
        keep_names(tmp_path, lambda *how_far: seen.append(how_far))
    assert seen == [(5, 9)]


def test_an_archive_that_is_no_index_is_refused(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    other = out.getvalue()
    changed = replace(PREBUILT[HOTPOTQA.name], md5=hashlib.md5(other, usedforsecurity=False).hexdigest())
    monkeypatch.setitem(PREBUILT, HOTPOTQA.name, replace(changed, size=len(other)))
    there.files[ON_HUB] = other
    with pytest.raises(UserError, match=r"can't be unpacked \(.*outside"):
        fetched(tmp_path)
    assert not (tmp_path / "outside").exists()


def test_another_host_is_asked_plainly(there: Hub, packed: bytes, tmp_path: Path, monkeypatch) -> None:
    elsewhere = replace(PREBUILT[HOTPOTQA.name], place=f"{there.url}/elsewhere")
    there.files[f"elsewhere/{HOTPOTQA.archive}"] = packed
    monkeypatch.setitem(PREBUILT, HOTPOTQA.name, elsewhere)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched(tmp_path)[0].is_dir()
    shutil.rmtree(tmp_path / "indexes")
    monkeypatch.setitem(PREBUILT, HOTPOTQA.name, replace(elsewhere, place="http://127.0.0.1:1"))
    with pytest.raises(UserError, match=r"is not here, and 127\.0\.0\.1 can't be asked \(.*\); start again to go on"):
        fetched(tmp_path)


def test_which_index_fits_which_questions() -> None:
    assert fitting(("flashrag:hotpotqa/train", "flashrag:hotpotqa/dev")) is HOTPOTQA
    assert fitting(("flashrag:hotpotqa/train", "flashrag:musique/dev")) is WIKI_18
    assert fitting(()) is WIKI_18, "one's own"


@pytest.mark.parametrize("name", PREBUILT)
def test_the_table_is_pyserinis(name: str) -> None:
    """Its Python file and its jar are read as they lie there: importing them would start a JVM."""
    spec = find_spec("pyserini")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    (jar,) = (folder / "resources" / "jars").glob("anserini-*-fatjar.jar")
    with zipfile.ZipFile(jar) as files:
        listed = json.loads(files.read("prebuilt-indexes/beir-inverted-flat.json"))
    found = {row["name"]: (row["urls"][0], row["md5"], row["compressed_size"], row["documents"]) for row in listed}
    for node in ast.walk(ast.parse((folder / "prebuilt_index_info.py").read_text())):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Dict):
                    row = ast.literal_eval(value)
                    found.setdefault(
                        name, (row["urls"][0], row["md5"], row["size compressed (bytes)"], row["documents"])
                    )
    ours: Prebuilt = PREBUILT[name]
    assert found[name] == (ours.url, ours.md5, ours.size, ours.documents)
    assert prebuilt.index_of(name, Path("c")).name == f"{name}-{ours.md5[:8]}"
