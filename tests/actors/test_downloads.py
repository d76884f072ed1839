"""What a command line has to fetch: named in the plan, and looked for on the disk before it is fetched."""

from __future__ import annotations

import gzip
import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

import launch
from actors import fetching
from actors.fetching import fetch
from actors.plan.downloads import downloads, room
from actors.plan.host import DISK_MARGIN
from actors.plan.machine import Disk, Machine, missing
from actors.plan.table import table
from agent.errors import UserError
from conf.schema import RunConfig
from learner.model_folder import to_fetch
from retrieval_service.wikipedia import HOTPOTQA, WIKI_18
from tracking.console import Console

BOX = ("cluster=4x3090", "model=qwen1.5b")
Usage = namedtuple("Usage", "total used free")


def asked(cache: Path, *arguments: str) -> RunConfig:
    (config,) = launch.check_overrides([*arguments, f"cache_dir={cache}", f"output_dir={cache / 'run'}"]).configs
    return config


def in_the_hubs_cache(cache: Path, name: str, *files: str) -> Path:
    """A snapshot with empty ``files``, as the hub's client notes it."""
    kept = cache / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = kept / "snapshots" / "c"
    snapshot.mkdir(parents=True, exist_ok=True)
    (kept / "refs").mkdir(exist_ok=True)
    (kept / "refs" / "main").write_text("c")
    for file in files:
        (snapshot / file).touch()
    return snapshot


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, 10**12))


def test_the_plan_of_the_box_names_data_index_downloads_memory_and_disk(tmp_path: Path) -> None:
    lines = table(asked(tmp_path, "mode=plan", *BOX)).splitlines()
    said = "\n".join(lines[lines.index("data and index") :])
    assert "questions: flashrag:hotpotqa/train to train on, flashrag:hotpotqa/dev held out" in said
    assert f"index: {HOTPOTQA.name}, 5,233,329 passages: " in said
    assert "Lucene maps 3.03 GB or less into memory: what is free beside the actors' 34.1 GiB" in said
    assert f"data.questions=flashrag:hotpotqa/train: about 566.0 MB, to {tmp_path}/questions/" in said
    assert f"2.02 GB, about 3.03 GB unpacked, to {tmp_path}/indexes/{HOTPOTQA.folder}" in said
    assert f"the model Qwen/Qwen2.5-1.5B-Instruct: about 3.09 GB, to {tmp_path}/hub/models--Qwen--Qwen2.5-1.5B" in said
    assert f"  disk: 34.9 GiB in {tmp_path}/run, 5.5 GiB in {tmp_path}" in said


@pytest.mark.slow
def test_what_is_here_is_not_fetched(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / "questions" / "flashrag").mkdir(parents=True, exist_ok=True)
        (tmp_path / "questions" / "flashrag" / f"hotpotqa-{split}.jsonl").touch()
    (tmp_path / "indexes" / HOTPOTQA.folder).mkdir(parents=True)
    in_the_hubs_cache(tmp_path, "Qwen/Qwen2.5-1.5B-Instruct", "config.json", "model.safetensors")
    config = asked(tmp_path, "mode=plan", *BOX)
    assert (downloads(config), room(config)) == ((), 0)
    assert "everything is here" in table(config)
    assert downloads(asked(tmp_path, "mode=plan")) == (), "the world is made here"
    pinned = downloads(asked(tmp_path, "mode=plan", *BOX, "data.revision=v2"))
    assert [each.to.parent.name for each in pinned] == ["@v2"] * 2, "another revision isn't"


SHARDS = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")


@pytest.mark.parametrize(
    ("files", "index", "whole"),
    [
        (("config.json", "model.safetensors"), None, True),
        (("config.json", *SHARDS), SHARDS, True),
        (("config.json", SHARDS[0]), SHARDS, False),
        (("config.json",), SHARDS, False),
        (("config.json", *SHARDS), None, False),
        (("config.json", *SHARDS), (), False),
        (("config.json", "adapter_model.safetensors"), None, False),
        (("config.json",), None, False),
        (("model.safetensors",), None, False),
    ],
)
def test_a_model_of_which_a_part_is_here_is_fetched(
    tmp_path: Path, files: tuple[str, ...], index: tuple[str, ...] | None, whole: bool
) -> None:
    snapshot = in_the_hubs_cache(tmp_path, "org/name", *files)
    if index is not None:
        named = {"weight_map": {f"tensor-{n}": file for n, file in enumerate(index)}}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps(named))
    assert to_fetch("org/name") is not whole
    (snapshot.parents[1] / "refs" / "main").write_text("another, of which nothing is here yet")
    assert to_fetch("org/name")


def test_a_checkpoint_that_is_a_hubs_name_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the questions and the passages that evaluating it would take."""
    with_it, eval_too = (asked(tmp_path, f"mode={mode}", "checkpoint=org/name") for mode in ("fetch", "eval"))
    assert with_it.model.path == eval_too.model.path == "org/name"
    assert with_it.retrieval.prebuilt == eval_too.retrieval.prebuilt == HOTPOTQA.name
    assert {each.what for each in downloads(eval_too)} <= {each.what for each in downloads(with_it)}
    both = asked(tmp_path, "mode=fetch", "model=qwen0.5b", "checkpoint=org/name", "data=world", "retrieval=bm25")
    assert [each.what for each in downloads(both)] == [
        "the model org/name",
        "the model Qwen/Qwen2.5-0.5B-Instruct",
    ]
    taken: list[tuple[str, str]] = []
    monkeypatch.setattr(fetching, "local_folder", lambda path, given, fetched: taken.append((path, given)))
    assert fetch(both, Console(quiet=True))
    qwen = "Qwen/Qwen2.5-0.5B-Instruct"
    assert taken == [("org/name", "checkpoint=org/name"), (qwen, f"model.path={qwen}")]


@pytest.mark.parametrize("passages", ["retrieval=wikipedia", "data.corpus=wiki-18"])
def test_what_is_largest_is_fetched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passages: str) -> None:
    """A name that nobody has, or a bad line of the questions, is told before hours of downloading."""
    taken: list[str] = []

    def refuse(path: str, given: str, fetched: object) -> None:
        raise UserError(f"{given}: the hub has no such model")

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "who?", "answer": "Ed"}\n{"question": "when?"}')
    monkeypatch.setattr(fetching, "ensure", lambda file, say, show: taken.append(file.name))
    monkeypatch.setattr(fetching, "ensure_prebuilt", lambda name, *told: taken.append(name))
    monkeypatch.setattr(fetching, "local_folder", refuse)
    questions = f"data.eval_questions={rows}"
    config = asked(tmp_path, "mode=fetch", "data=jsonl", questions, "checkpoint=org/nmae", passages)
    with pytest.raises(UserError, match=r"^checkpoint=org/nmae: the hub has no such model"):
        fetch(config, Console(quiet=True))
    monkeypatch.setattr(fetching, "local_folder", lambda path, given, fetched: taken.append(path))
    with pytest.raises(UserError, match=r"^data\.eval_questions=.*rows\.jsonl, line 2: has no 'golden_answers'"):
        fetch(config, Console(quiet=True))
    assert taken == ["org/nmae"]
    rows.write_text('{"question": "who?", "answer": "Ed"}')
    config.data.experts = str(rows)
    with pytest.raises(UserError, match=r"^data\.experts=.*rows\.jsonl, line 1, .*: has no 'trajectory'"):
        fetch(config, Console(quiet=True))
    assert {*taken} == {"org/nmae"}
    config.data.experts = None
    fetch(config, Console(quiet=True))
    assert taken[-1] == (config.retrieval.prebuilt or "wiki-18")


def test_what_an_earlier_attempt_has_fetched_needs_no_more_room(tmp_path: Path) -> None:
    config = asked(tmp_path, "mode=index", "data=jsonl", "data.corpus=wiki-18")
    whole = room(config)
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / ".wiki-18.jsonl.gz.0123456789abcdef.part").write_bytes(bytes(1000))
    assert room(config) == whole - 1000


def test_a_disk_that_is_too_small_for_all_is_told_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked(tmp_path / "new", *BOX)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, room(config) - 1))
    monkeypatch.setattr(fetching, "ensure", lambda *told: pytest.fail("fetched"))
    with pytest.raises(
        UserError, match=r"^what is to be fetched: needs 5\.\d\d GB in .*new, where 5\.\d\d GB are free;"
    ):
        fetch(config, Console(quiet=True))


def test_each_mode_has_what_it_reads(tmp_path: Path) -> None:
    def what(*arguments: str) -> list[str]:
        return [each.what for each in downloads(asked(tmp_path, *arguments))]

    index = f"the index {HOTPOTQA.name} (5,233,329 passages)"
    assert what("mode=ask", "question=who?", "checkpoint=org/name") == [index, "the model org/name"]
    assert what("mode=eval", "checkpoint=.", "data=nq") == [
        "data.eval_questions=flashrag:nq/test",
        f"the index {WIKI_18.name} (21,015,324 passages)",
    ]
    assert what("mode=index", "data=jsonl", "data.corpus=wiki-18") == ["data.corpus=wiki-18"]


def test_a_disk_that_is_too_small_for_them_stops_the_start(tmp_path: Path) -> None:
    config = asked(tmp_path, "model=smollm2-135m")
    needed = DISK_MARGIN + room(config)
    disks = {"outputs": Disk(device=1, free=10**12), "ray": Disk(device=2, free=10**12)}
    machine = Machine(gpus=(), driver=None, memory=10**12, shared_memory=10**12, ray_folder="/tmp", disks={})
    found = {
        free: list(missing(config, replace(machine, disks=disks | {"cache": Disk(device=3, free=free)})))
        for free in (needed - 1, needed)
    }
    assert found[needed] == []
    assert found[needed - 1][0].startswith(
        f"{tmp_path} need 5.5 GiB of disk and 5.5 are free; make room, or set cache_"
    )


def test_what_cannot_be_fetched_ends_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.questions=flashrag:hotpotqa/train: is not here, and the hub can't be"):
        fetch(asked(tmp_path, *BOX), Console(quiet=True))
    corpus = tmp_path / "corpora" / "wiki-18.jsonl.gz"
    corpus.parent.mkdir()
    corpus.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UserError, match=rf"^data\.corpus=wiki-18: {corpus} is another file \(SHA-256\); delete it"):
        fetch(asked(tmp_path, "mode=index", "data=jsonl", "data.corpus=wiki-18"), Console(quiet=True))
