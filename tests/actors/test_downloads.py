"""What a command line has to fetch: named in the plan, and looked for on the disk before it is fetched."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

import launch
from actors.fetching import fetch
from actors.plan.downloads import downloads, room
from actors.plan.host import DISK_MARGIN
from actors.plan.machine import Disk, Machine, missing
from actors.plan.table import table
from agent.errors import UserError
from conf.schema import RunConfig
from retrieval_service.wikipedia import HOTPOTQA, WIKI_18
from tracking.console import Console

BOX = ("cluster=4x3090", "model=qwen1.5b")


def asked(cache: Path, *arguments: str) -> RunConfig:
    (config,) = launch.check_overrides([*arguments, f"cache_dir={cache}", f"output_dir={cache / 'run'}"]).configs
    return config


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


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


def test_what_is_here_is_not_fetched(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / "questions" / "flashrag").mkdir(parents=True, exist_ok=True)
        (tmp_path / "questions" / "flashrag" / f"hotpotqa-{split}.jsonl").touch()
    (tmp_path / "indexes" / HOTPOTQA.folder).mkdir(parents=True)
    model = tmp_path / "hub" / "models--Qwen--Qwen2.5-1.5B-Instruct" / "snapshots" / "c"
    model.mkdir(parents=True)
    (model / "model.safetensors").touch()
    config = asked(tmp_path, "mode=plan", *BOX)
    assert (downloads(config), room(config)) == ((), 0)
    assert "everything is here" in table(config)
    assert downloads(asked(tmp_path, "mode=plan")) == (), "the world is made here"


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
