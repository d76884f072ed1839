"""Where a model is: a folder, or a name on the Hugging Face hub, whose files are fetched where they aren't here yet."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.errors import UserError, shortened
from agent.paths import at_home

CONFIG = "config.json"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
"""Configuration, weights, tokenizer. Pickles are never fetched, since they are never loaded."""
LEFT_OUT = ["consolidated*", "*/*"]
"""The same weights once more, in other formats."""


Fetched = Callable[[int, int], None]
"""Is told how many megabytes of how many have been fetched."""


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
    return _snapshot(str(path), given, fetched=fetched)


def is_hub_name(path: str) -> bool:
    """Whether ``path`` can only be meant as a hub's name: there is no folder here that it, or its beginning, names."""
    return bool(HUB_NAME.fullmatch(path)) and not Path(path).exists() and not Path(path).parent.exists()


def kept_in(name: str) -> Path:
    """Where the hub's client keeps the model ``name``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def config_file(path: str, given: str) -> Path:
    """``config.json`` of the model ``path``; of a hub's model nothing else is fetched. Raises as ``local_folder``."""
    if at_home(path).exists() or not HUB_NAME.fullmatch(path):
        file = local_folder(path, given) / CONFIG
        if not file.is_file():
            raise UserError(f"{given}: {CONFIG} is missing; name a folder with a model in Hugging Face format")
        return file
    return _snapshot(path, given, [CONFIG]) / CONFIG


def _snapshot(name: str, given: str, files: Sequence[str] = FETCHED, *, fetched: Fetched | None = None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        bars = {} if fetched is None else {"tqdm_class": _bar(fetched)}
        return Path(snapshot_download(name, allow_patterns=list(files), ignore_patterns=LEFT_OUT, **bars))
    except GatedRepoError as error:
        raise UserError(
            f"{given}: the hub gives it only to who has accepted its licence; do so at "
            f"{constants.ENDPOINT}/{name}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{given}: no such folder here and no such model on the hub; if it is a private one, log in with "
            "`hf auth login`"
        ) from error
    except Exception as error:  # whatever its client and the network raise
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else shortened(error)
        raise UserError(
            f"{given}: no such folder here, no whole copy in this machine's cache, and the hub can't be asked "
            f"({reason}); where there is a network, `hf download {name} --local-dir FOLDER`, then model.path=FOLDER"
        ) from error


def _bar(fetched: Fetched) -> Any:
    """A bar of the hub's client that draws nothing, and tells ``fetched`` of the bytes that have arrived."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            if self.unit == "B" and self.total:
                fetched(round(self.n / 1e6), round(self.total / 1e6))
            return drawn

    return Bar
