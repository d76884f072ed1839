"""Where a model is: a folder, or a name on the Hugging Face hub, whose files are fetched where they aren't here yet."""

from __future__ import annotations

from pathlib import Path

from agent.errors import UserError
from agent.hub import HUB_NAME, Fetched, snapshot
from agent.paths import at_home

CONFIG = "config.json"
FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
"""Configuration, weights, tokenizer. Pickles are never fetched, since they are never loaded."""
MISSING = "is missing"
"""What ``out_of_place`` says where nothing is."""
LEFT_OUT = ["consolidated*", "*/*"]
"""The same weights once more, in other formats."""


def local_folder(path: str | Path, given: str, *, hub: bool = True, fetched: Fetched | None = None) -> Path:
    """The absolute folder of the model ``path``: itself, or with ``hub`` the hub's snapshot on this machine.

    ``fetched`` is told how far that is; without it the hub's own bars are shown. Raises ``UserError`` that starts with
    ``given`` (``model.path=…``) when there is neither.
    """
    folder = at_home(path)
    if folder.is_dir():
        return folder.absolute()
    if folder.exists():
        raise UserError(f"{given}: is a file; name the model's folder, {folder.parent}")
    if not hub or not HUB_NAME.fullmatch(str(path)):
        neither = ", and not a hub's name (org/name)" if hub else ""
        raise UserError(f"{given}: no such folder{neither}; name a folder with a model in Hugging Face format")
    return snapshot(str(path), given, FETCHED, LEFT_OUT, fetched=fetched)


def is_hub_name(path: str) -> bool:
    """Whether ``path`` can only be meant as a hub's name: there is no folder here that it, or its beginning, names."""
    return bool(HUB_NAME.fullmatch(path)) and not Path(path).exists() and not Path(path).parent.exists()


def out_of_place(file: Path) -> str:
    """What to say behind the name of a ``file`` that isn't there, or isn't one; nothing if it is."""
    if file.is_file():
        return ""
    if file.is_symlink() and not file.exists():
        return "is a link to a file that is missing"
    return "is a folder, and a file is needed" if file.is_dir() else MISSING


def config_file(path: str, given: str) -> Path:
    """``config.json`` of the model ``path``; of a hub's model nothing else is fetched. Raises as ``local_folder``."""
    if at_home(path).exists() or not HUB_NAME.fullmatch(path):
        file = local_folder(path, given) / CONFIG
        if wrong := out_of_place(file):
            raise UserError(f"{given}: {CONFIG} {wrong}; name a folder with a model in Hugging Face format")
        return file
    return snapshot(path, given, [CONFIG], LEFT_OUT) / CONFIG
