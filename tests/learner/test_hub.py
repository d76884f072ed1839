"""Where a model's name leads: to a folder, to the hub's cache on this machine, or to one line that says what to do."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from agent.errors import UserError
from agent.hub import HUB_NAME
from learner.hub import config_file, local_folder

COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, on a machine that must not ask the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "org" / "name", "org/name", "./org/name", "~/org/name"):
        assert local_folder(path, "model.path=it") == tmp_path / "org" / "name"


def test_what_stands_in_the_place_of_a_configuration_is_said(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(UserError, match=r"^model\.path=it: config\.json is missing; name a folder"):
        config_file(str(tmp_path), "model.path=it")
    file.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"^model\.path=it: config\.json is a link to a file that is missing; name a"):
        config_file(str(tmp_path), "model.path=it")
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"^model\.path=it: config\.json is a folder, and a file is needed; name a"):
        config_file(str(tmp_path), "model.path=it")


@pytest.mark.parametrize(
    "path",
    [
        *("/nowhere/at/all", "a/b/c", "name", "./org/name", "../org/name", "~/org/name", "-x/y"),
        *(
            "org/na--me",
            "org/name.",
            "org-/name",
            "org/a..b",
            "org/name.git",
            f"org/{'n' * 97}",
            "org/name\n",
            "org/n me",
        ),
    ],
)
def test_what_is_neither_a_folder_nor_a_hubs_name(cache: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"^model\.path=it: no such folder, and not a hub's name \(org/name\)"):
        local_folder(path, "model.path=it")


def test_a_name_that_is_taken_is_one_that_the_hubs_client_takes() -> None:
    parts = ["name", "a-b", "a--b", "a.b", "a..b", "a_b", "_a", "a-", "a.", ".a", "a_", "name.git", "n" * 96, "n" * 97]
    for name in ("/".join(both) for both in product(parts, parts)):
        if HUB_NAME.fullmatch(name):
            validate_repo_id(name)
    assert all(HUB_NAME.fullmatch(name) for name in ("a/b", "Qwen/Qwen2.5-0.5B-Instruct", "a_b/c.d-e_f", "0/1_"))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(UserError, match=rf"^checkpoint=it: is a file; name the model's folder, {tmp_path}$"):
        local_folder(tmp_path / "model.safetensors", "checkpoint=it")


def test_a_checkpoint_is_a_folder(cache: Path) -> None:
    with pytest.raises(UserError, match=r"^checkpoint=it: no such folder; name a folder"):
        local_folder("org/name", "checkpoint=it", hub=False)


def test_a_name_that_the_cache_holds(cache: Path) -> None:
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cache / "models--org--name" / "refs").mkdir()
    (cache / "models--org--name" / "refs" / "main").write_text(COMMIT)
    assert local_folder("org/name", "model.path=it") == snapshot


def test_a_name_without_a_network(cache: Path) -> None:
    with pytest.raises(UserError) as error:
        local_folder("org/name", "model.path=it")
    message = str(error.value)
    assert "\n" not in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "`hf download org/name --local-dir FOLDER`, then model.path=FOLDER" in message


def test_a_hub_that_doesnt_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def broken(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("[Errno -2] Name or service not known\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(
        UserError, match=r"can't be asked \(\[Errno -2\] Name or service not known and more lines\)"
    ) as error:
        local_folder("org/name", "model.path=it")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, "accepted its licence.*org/name.*hf auth login"),
        (RepositoryNotFoundError, "no such model on the hub"),
    ],
)
def test_what_the_hub_refuses(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], said: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        request = httpx.Request("GET", "https://huggingface.co/api/models/org/name")
        raise kind("no", response=httpx.Response(403, request=request))  # type: ignore[call-arg]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=said):
        local_folder("org/name", "model.path=it")


def test_pickles_are_never_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how) or "/snapshot")
    assert local_folder("org/name", "model.path=it") == Path("/snapshot")
    files = ["config.json", "model.safetensors", "tokenizer.model", "pytorch_model.bin", "original/a.json", "x.pth"]
    chosen = huggingface_hub.utils.filter_repo_objects(files, **asked)
    assert list(chosen) == ["config.json", "model.safetensors", "tokenizer.model"]


def test_what_is_fetched_is_told_in_megabytes_and_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def snapshot(name: str, *, tqdm_class: Any, **how: Any) -> str:
        files = tqdm_class(total=3, desc="Fetching 3 files", disable=None)
        arrived = tqdm_class(total=0, initial=0, unit="B", unit_scale=True, disable=None)
        for total, more in ((4_000_000, 1_000_000), (93_600_000, 41_000_000), (93_600_000, 51_500_000)):
            arrived.total = total  # as files are found
            arrived.update(more)
        files.update(3)
        files.close()
        arrived.close()
        return "/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    told: list[tuple[int, int]] = []
    assert local_folder("org/name", "model.path=org/name", fetched=lambda *far: told.append(far)) == Path("/snapshot")
    assert told == [(1, 4), (42, 94), (94, 94)]
    assert capfd.readouterr() == ("", "")
