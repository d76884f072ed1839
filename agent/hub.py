"""Names on the Hugging Face hub, and the snapshots that its client keeps of them on this machine."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.errors import UserError, shortened

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
HUB_NAME = re.compile(rf"(?!.*(?:--|\.\.|\.git\Z)){_PART}/{_PART}", re.ASCII)
"""``org/name``, as the hub gives names: its client takes no other ones."""

Fetched = Callable[[int, int], None]
"""Is told how many megabytes of how many have been fetched."""


def kept_in(name: str) -> Path:
    """Where the hub's client keeps the model ``name``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def snapshot(
    name: str, given: str, files: Sequence[str], left_out: Sequence[str], *, fetched: Fetched | None = None
) -> Path:
    """The folder with those ``files`` of the model ``name`` (patterns, less those that are ``left_out``), fetched where
    they aren't here yet.

    ``fetched`` is told how far that is; without it the hub's own bars are shown. Raises ``UserError`` that starts with
    ``given`` (``model.path=…``) where the hub gives them to nobody, or not to us, or can't be asked.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        bars = {} if fetched is None else {"tqdm_class": _bar(fetched)}
        return Path(snapshot_download(name, allow_patterns=list(files), ignore_patterns=list(left_out), **bars))
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
            f"({reason}); where there is a network, `hf download {name} --local-dir FOLDER`, then "
            f"{given.partition('=')[0]}=FOLDER"
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
