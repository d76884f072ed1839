"""Named sets of questions: fetched from the hub, kept, and found damaged. The hub is a server on this machine."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hub import COMMIT, Hub, serving
from huggingface_hub import constants

from agent.errors import UserError
from retrieval_service import download
from retrieval_service.corpus import read_corpus
from retrieval_service.download import Progress, Source
from tasks import named
from tasks.config import DataConfig
from tasks.load import load
from tasks.named import REPOSITORY, fetched

FILE = f"{REPOSITORY}/hotpotqa/train.jsonl"
ROWS = [
    {"id": f"train_{i}", "question": f"who wrote book {i}?", "golden_answers": ["a"], "metadata": {}} for i in range(40)
]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub({FILE: CONTENT, f"{REPOSITORY}/nq/train.jsonl": CONTENT})) as there:
        point_to(there.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(download, "sleep", lambda seconds: None)  # before it asks once more
        yield there


def config(questions: str = "flashrag:hotpotqa/train", **settings: object) -> DataConfig:
    return DataConfig(source="jsonl", corpus="corpus.jsonl", questions=questions, **settings)


def test_a_set_is_fetched_once_and_what_it_is_is_said_before(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    found = fetched(config(), tmp_path, "train", said.append)
    path = tmp_path / "questions" / "flashrag" / "hotpotqa-train.jsonl"
    assert found.questions == str(path)
    assert path.read_bytes() == CONTENT
    size = f"{len(CONTENT) / 1e6:.1f} MB"
    about = f"{REPOSITORY} (revision main, commit 0123456)"
    assert said == [f"fetching hotpotqa/train.jsonl of {about}: {size}, to {path}"]
    note = json.loads(path.with_suffix(".source.json").read_text())
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert note == {"sha256": sha256, "size": len(CONTENT), "revision": "main", "commit": COMMIT}
    requests = len(hub.asked)
    assert fetched(config(), tmp_path, "train", said.append) == found
    assert (len(hub.asked), len(said)) == (requests, 1), "nobody is asked again"
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".jsonl", ".lock"]


def test_what_was_verified_by_sha_256_is_not_read_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    digest = download._digest
    monkeypatch.setattr(download, "_digest", lambda path, kind: read.append(path) or digest(path, kind))
    hub.etags[FILE] = hashlib.sha256(CONTENT).hexdigest()
    fetched(config(), tmp_path, "train", lambda text: None)
    assert len(read) == 1
    fetched(config(), tmp_path, "train", lambda text: None)
    assert len(read) == 2, "the next start compares it"


def test_a_run_reads_it_by_its_name(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "d", "contents": "x"}\n')
    data = config("[flashrag:hotpotqa/train,flashrag:nq/train]", shares=[1.0, 0.5])
    data.corpus = str(tmp_path / "corpus.jsonl")
    task = load(data, 0, tmp_path)
    assert task.name == "hotpotqa-train+nq-train"
    assert {q.kind for q in task.train} == {"hotpotqa-train", "nq-train"}
    assert len(task.train) + len(task.eval) == 60
    assert load(replace(data, questions="flashrag:hotpotqa/train", shares=[]), 0, tmp_path).name == "hotpotqa-train"


def test_only_what_a_mode_reads_is_fetched(hub: Hub, tmp_path: Path) -> None:
    data = config("flashrag:hotpotqa/train", eval_questions="own.jsonl")
    for mode in ("ask", "index", "serve", "eval"):
        assert fetched(data, tmp_path, mode, lambda text: None) == data
    assert not hub.asked


def test_another_revision_is_fetched_anew_beside_the_first(hub: Hub, tmp_path: Path) -> None:
    path = Path(str(fetched(config(), tmp_path, "train", lambda text: None).questions))
    hub.files[FILE], hub.commit = CONTENT[: CONTENT.index(b"\n") + 1], "f" * 40
    fetched(config(), tmp_path, "train", lambda text: None)
    assert path.read_bytes() == CONTENT, "a branch that has moved is what it was"
    other = Path(str(fetched(config(revision="v2"), tmp_path, "train", lambda text: None).questions))
    assert other.read_bytes() == hub.files[FILE]
    assert (other, path.name) == (path.parent / "@v2" / path.name, other.name), "the set is called as before"
    requests = len(hub.asked)
    for revision in ("main", "v2"):
        fetched(config(revision=revision), tmp_path, "train", lambda text: None)
    assert len(hub.asked) == requests
    assert path.read_bytes() == CONTENT, "neither takes the other's place"


@pytest.mark.parametrize(("revision", "folder"), [("..", "@.."), ("refs/pr/1", "@refs%2Fpr%2F1"), ("/x", "@%2Fx")])
def test_a_revision_is_a_folder_of_the_cache_whatever_it_is_called(tmp_path: Path, revision: str, folder: str) -> None:
    (found,) = named.named(config(revision=revision), tmp_path, "train")
    assert found.path == tmp_path / "questions" / "flashrag" / folder / "hotpotqa-train.jsonl"


@pytest.mark.parametrize(
    ("questions", "revision", "told"),
    [
        ("flashrag:nq/train", "v" * 255, "data.revision=vvv"),
        ("flashrag:nq/train", "é" * 43, "data.revision=ééé"),  # six bytes each, as it is kept
        (f"flashrag:{'n' * 240}/train", "main", "data.questions=flashrag:nnn"),
    ],
)
def test_what_is_too_long_for_a_files_name_is_told_with_its_key(
    tmp_path: Path, questions: str, revision: str, told: str
) -> None:
    with pytest.raises(
        UserError, match=rf"^{told}.*…: is too long: .* whose name has \d+ bytes, and file systems take"
    ):
        named.named(config(questions, revision=revision), tmp_path, "train")


def test_a_file_system_without_locks_will_do(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, what: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):  # it is fetched, and is there
        assert Path(str(fetched(config(), tmp_path, "train", lambda text: None).questions)).read_bytes() == CONTENT


def test_a_download_that_was_interrupted_goes_on(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.breaks_after = 1000
    with pytest.raises(UserError, match=r"^data\.questions=flashrag:hotpotqa/train: is not here, and the hub can't be"):
        fetched(config(), tmp_path, "train", lambda text: None)
    hub.breaks_after, said = None, []
    path = Path(str(fetched(config(), tmp_path, "train", said.append).questions))
    assert path.read_bytes() == CONTENT
    assert hub.asked[-1][2] == "bytes=1000-"
    assert "of which 0.0 MB are here already" in said[0]


def test_a_connection_that_breaks_is_made_anew_by_itself(hub: Hub, tmp_path: Path) -> None:
    hub.breaks_after, hub.mends = 1000, True
    seen: list[tuple[int, int]] = []

    @contextmanager
    def show(title: str) -> Iterator[Progress]:
        assert title == "fetching hotpotqa/train.jsonl"
        yield lambda done, total: seen.append((done, total))

    path = Path(str(fetched(config(), tmp_path, "train", lambda text: None, show).questions))
    assert path.read_bytes() == CONTENT
    assert hub.got() == [None, "bytes=1000-"]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def parts_of(cache: Path) -> list[bytes]:
    """What there is of a download that isn't whole."""
    return [part.read_bytes() for part in cache.glob("questions/flashrag/**/.*.part")]


def test_a_server_that_cannot_go_on_in_the_middle_sends_all_of_it_again(hub: Hub, tmp_path: Path) -> None:
    hub.breaks_after, hub.ranges = 1000, False
    with pytest.raises(UserError, match="is not here"):
        fetched(config(), tmp_path, "train", lambda text: None)
    hub.breaks_after = 500
    with pytest.raises(UserError, match="is not here"):
        fetched(config(), tmp_path, "train", lambda text: None)
    assert parts_of(tmp_path) == [CONTENT[:1000]], "one that breaks earlier costs nothing of what was there"
    hub.breaks_after = None
    path = Path(str(fetched(config(), tmp_path, "train", lambda text: None).questions))
    assert path.read_bytes() == CONTENT


def test_an_answer_that_ends_early_without_an_error_broke_off(hub: Hub, tmp_path: Path) -> None:
    file, whole = hub.files[FILE], f"{len(CONTENT):,}"
    hub.etags[FILE], hub.lengths = hashlib.sha256(CONTENT).hexdigest(), False
    hub.breaks_after, hub.mends = 1000, True
    assert Path(str(fetched(config(), tmp_path, "train", lambda text: None).questions)).read_bytes() == CONTENT
    hub.breaks_after, hub.mends = 1000, False
    with pytest.raises(UserError, match="answers 500"):
        fetched(config(revision="v2"), tmp_path / "b", "train", lambda text: None)
    hub.breaks_after = None
    hub.instead = "text/plain", b""  # again and again
    with pytest.raises(UserError, match=rf"can't be asked \(it broke off after 1,000 of {whole} bytes\); start again"):
        fetched(config(revision="v2"), tmp_path / "b", "train", lambda text: None)
    assert parts_of(tmp_path / "b") == [file[:1000]]


@pytest.mark.parametrize(("said", "waits"), [(None, [1, 2, 4, 8]), ("5", [5, 5, 5, 8]), ("9999", [120] * 4)])
def test_a_server_that_says_when_to_ask_again_is_asked_then(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, waits: list[float]
) -> None:
    hub.breaks_after, hub.retry_after = 0, said
    slept: list[float] = []
    monkeypatch.setattr(download, "sleep", slept.append)
    with pytest.raises(UserError, match="is not here"):
        fetched(config(), tmp_path, "train", lambda text: None)
    assert slept == waits


@pytest.mark.parametrize("have", [pytest.param(0, marks=pytest.mark.slow), 1000])
@pytest.mark.parametrize(
    ("kind", "body", "lengths", "reason"),
    [
        ("text/html; charset=utf-8", b"<p>Please log in", True, "it sends a web page in place of the file"),
        ("text/html", b"<p>Please log in", False, "it sends a web page in place of the file"),
        ("text/plain", b"x" * 50, True, f"it sends a file of 50 bytes, not the one of {len(CONTENT):,}"),
        ("text/plain", b"x" * 9000, False, f"it sends more than {len(CONTENT):,} bytes"),
    ],
)
def test_what_comes_in_place_of_the_file_costs_nothing_of_what_is_there(
    hub: Hub, tmp_path: Path, have: int, kind: str, body: bytes, lengths: bool, reason: str
) -> None:
    hub.breaks_after = have
    with pytest.raises(UserError, match="is not here"):
        fetched(config(), tmp_path, "train", lambda text: None)
    hub.breaks_after, hub.instead, hub.lengths = None, (kind, body), lengths
    with pytest.raises(UserError, match=rf"the hub can't be asked \({reason}.*; start again to go on"):
        fetched(config(), tmp_path, "train", lambda text: None)
    assert parts_of(tmp_path) == [CONTENT[:have]]
    hub.instead, hub.lengths = None, True
    path = Path(str(fetched(config(), tmp_path, "train", lambda text: None).questions))
    assert path.read_bytes() == CONTENT
    assert hub.got()[-1] == (f"bytes={have}-" if have else None)


@pytest.mark.parametrize("git", [False, True], ids=["sha256", "git"])
def test_what_comes_damaged_is_refused(hub: Hub, tmp_path: Path, git: bool) -> None:
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT, usedforsecurity=False).hexdigest()
    hub.etags[FILE] = blob if git else hashlib.sha256(CONTENT).hexdigest()
    hub.files[FILE] = CONTENT.replace(b"book 7", b"book 8")
    with pytest.raises(
        UserError, match=r"/hotpotqa/train\.jsonl came damaged \(its checksum is another\); start again"
    ):
        fetched(config(), tmp_path, "train", lambda text: None)
    hub.files[FILE] = CONTENT
    assert Path(str(fetched(config(), tmp_path, "train", lambda text: None).questions)).read_bytes() == CONTENT


def test_what_was_changed_later_is_refused(hub: Hub, tmp_path: Path) -> None:
    path = Path(str(fetched(config(), tmp_path, "train", lambda text: None).questions))
    path.write_bytes(CONTENT.replace(b"book 7", b"book 8"))
    with pytest.raises(UserError, match=rf"{path} is not what it was when it came \(SHA-256\); delete it"):
        fetched(config(), tmp_path, "train", lambda text: None)
    path.with_suffix(".source.json").write_text("{")
    with pytest.raises(
        UserError, match=r"hotpotqa-train\.source\.json can't be read; delete it and hotpotqa-train\.jsonl$"
    ):
        fetched(config(), tmp_path, "train", lambda text: None)


def test_a_folder_in_the_files_place_is_told_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "questions" / "flashrag" / "hotpotqa-train.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^data\.questions=.*hotpotqa-train\.jsonl is a folder, not the file"):
        fetched(config(), tmp_path, "train", lambda text: None)
    assert hub.asked == []


def test_a_note_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "questions" / "flashrag" / "hotpotqa-train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("retrieval_service.whole.settle", full)
        with pytest.raises(OSError, match="No space left"):
            fetched(config(), tmp_path, "train", lambda text: None)
    assert [file.name for file in path.parent.iterdir() if "source" in file.name] == []
    assert fetched(config(), tmp_path, "train", lambda text: None).questions == str(path)


def test_without_a_network_the_line_says_what_to_put_where(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        fetched(config(), tmp_path, "train", lambda text: None)
    path = tmp_path / "questions" / "flashrag" / "hotpotqa-train.jsonl"
    said = str(caught.value)
    assert said.startswith(
        "data.questions=flashrag:hotpotqa/train: is not here, and the hub can't be asked (HF_HUB_OFF"
    )
    assert said.endswith(f"/resolve/main/hotpotqa/train.jsonl elsewhere and put it at {path}")
    assert "\n" not in said
    path.write_bytes(CONTENT)
    assert fetched(config(), tmp_path, "train", lambda text: None).questions == str(path)
    assert json.loads(path.with_suffix(".source.json").read_text())["commit"] is None
    path.unlink()
    with pytest.raises(UserError, match="is not here"):
        fetched(config(), tmp_path, "train", lambda text: None)
    path.write_bytes(CONTENT.replace(b"book 7", b"book 8"))
    fetched(config(), tmp_path, "train", lambda text: None)  # another one in the place of one that was deleted
    path.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"is not what it was when it came .* or delete hotpotqa-train\.source\.json beside it if you"
    ):
        fetched(config(), tmp_path, "train", lambda text: None)


def test_a_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:1", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"is not here, and the hub can't be asked \(.*\); start again") as caught:
        fetched(config(), tmp_path, "train", lambda text: None)
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_too_small_is_said_before(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(1, 1, len(CONTENT) - 1))
    with pytest.raises(UserError, match=r"needs 0\.0 MB in .*/questions/flashrag, where 0\.0 MB are free; make room"):
        fetched(config(), tmp_path, "train", lambda text: None)
    assert [method for method, *_ in hub.asked] == ["HEAD"]
    assert shutil.disk_usage is download.shutil.disk_usage


@pytest.mark.parametrize(
    ("questions", "revision", "message"),
    [
        ("flashrag:hotpotqa", "main", "a named set is written flashrag:SET/SPLIT, such as flashrag:hotpotqa/train"),
        ("flashrag:../train", "main", "a named set is written flashrag:SET/SPLIT"),
        ("github:x", "main", "is none of the sets that are read from GitHub, github:bamtwoogle, github:antileak"),
        ("flashrag:hotpotq/train", "main", f"{REPOSITORY} has no hotpotq/train.jsonl at revision main"),
        ("flashrag:hotpotqa/train", "v9", rf"the hub has no revision v9 of {REPOSITORY} \(data\.revision\)"),
    ],
)
def test_a_name_that_is_none(hub: Hub, tmp_path: Path, questions: str, revision: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^data.questions={questions}: {message}"):
        fetched(config(questions, revision=revision), tmp_path, "train", lambda text: None)


@pytest.mark.parametrize("known", [True, False])
def test_a_set_that_its_authors_publish_is_fetched_from_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    content = b"question,answer\nWho?,Ed\n"
    checksum = hashlib.sha256(content).hexdigest()
    url = f"{hub.url.replace('127.0.0.1', 'localhost')}/bamtwoogle.csv"
    there = Source(url=url, size=len(content), checksum=checksum if known else "", commit="c" * 40)
    monkeypatch.setitem(named.ON_GITHUB, "bamtwoogle.csv", there)
    data = config(eval_questions="github:bamtwoogle", revision="v2")
    path = tmp_path / "questions" / "github" / "bamtwoogle.csv"
    with pytest.raises(
        UserError, match=rf"^data\.eval_questions=github:bamtwoogle: .* {url} elsewhere and put it at {path}$"
    ):
        fetched(data, tmp_path, "eval", lambda text: None)
    hub.files["bamtwoogle.csv"], said = content + b"When?,1821\n", []
    with pytest.raises(UserError, match="localhost can't be asked \\(it sends a file of 35 bytes, not the one of 24"):
        fetched(data, tmp_path, "eval", lambda text: None)
    hub.files["bamtwoogle.csv"] = content
    assert fetched(data, tmp_path, "eval", said.append).eval_questions == str(path)
    assert said == [f"fetching bamtwoogle.csv from {url}: 0.0 MB, to {path}"]
    assert path.read_bytes() == content
    note = json.loads(path.with_suffix(".source.json").read_text())
    assert note == {"sha256": checksum, "size": len(content), "revision": "c" * 40, "commit": "c" * 40}
    requests = len(hub.asked)
    fetched(data, tmp_path, "eval", said.append)
    path.write_bytes(content.replace(b"Ed", b"Al"))
    with pytest.raises(UserError, match=r"is not what it was when it came \(SHA-256\)"):
        fetched(data, tmp_path, "eval", said.append)
    path.with_suffix(".source.json").unlink()
    if known:
        with pytest.raises(UserError, match=r"is another file \(SHA-256\); delete it, and it is fetched"):
            fetched(data, tmp_path, "eval", said.append)
    else:
        fetched(data, tmp_path, "eval", said.append)
    assert (len(hub.asked), len(said)) == (requests, 1)


def test_the_corpus_of_the_papers_by_its_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(b'{"id": "0", "contents": "\\"Emma\\"\\nA novel."}\n')
    hub.files[f"{REPOSITORY}/{named.CORPUS}"] = content
    hub.branches += (named.CORPUS_COMMIT,)
    monkeypatch.setattr(named, "CORPUS_SIZE", len(content))
    monkeypatch.setattr(named, "CORPUS_SHA256", hashlib.sha256(content).hexdigest())
    task = load(DataConfig(source="jsonl", corpus="wiki-18"), 0, tmp_path, mode="serve")
    assert task.corpus == tmp_path / "corpora" / "wiki-18.jsonl.gz"
    assert [passage.title for passage in read_corpus(task.corpus)] == ["Emma"]
    assert [method for method, *_ in hub.asked] == ["GET"], "what it has to be is known"
    task.corpus.with_suffix(".source.json").unlink()
    task.corpus.write_bytes(b"another file")
    with pytest.raises(UserError, match=r"^data\.corpus=wiki-18: .*wiki-18\.jsonl\.gz is another file \(SHA-256\)"):
        load(DataConfig(source="jsonl", corpus="wiki-18"), 0, tmp_path, mode="serve")
    assert not task.corpus.with_suffix(".source.json").exists(), "it isn't taken the next time either"
