"""What a command line names and a network has to bring: which files, how large, to where. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.plan.architecture import architecture
from agent.hub import kept_in
from conf.schema import INFERENCE, OF_A_CHECKPOINT, RunConfig
from learner.model_folder import to_fetch
from retrieval_service import prebuilt
from retrieval_service.download import most_begun, size_text
from retrieval_service.rankers import models_of
from retrieval_service.wikipedia import PREBUILT
from tasks.named import named

PUBLISHED = 2
"""Bytes of a weight as models are published: bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """One file, or the files of a model."""

    what: str
    to: Path
    size: int | None
    """Bytes that are still to come; None where only the hub knows."""
    exact: bool = False
    """Whether the size is known and not estimated."""
    room: int = 0
    """Bytes of disk that it takes from now on, if known."""

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        size = "the hub knows how large" if self.size is None else f"{about}{size_text(self.size)}"
        unpacked = f", about {size_text(self.room - (self.size or 0))} unpacked" if self.room > (self.size or 0) else ""
        return f"{self.what}: {size}{unpacked}, to {self.to}"


def downloads(config: RunConfig) -> tuple[Download, ...]:
    """What ``config`` names and this machine doesn't have. Raises ``UserError`` for a named set that is none."""
    return (*_questions(config), *_index(config), *_rankers(config), *_model(config))


def room(config: RunConfig) -> int:
    """Bytes that the cache needs for them, as far as they are known; a model has the hub's cache."""
    return sum(each.room for each in (*_questions(config), *_index(config)))


def _questions(config: RunConfig) -> Iterator[Download]:
    if config.data.source != "jsonl":
        return
    for each in named(config.data, config.cache, config.mode):
        if not each.path.is_file():
            size = None if each.about is None else max(0, each.about - most_begun(each.path))
            yield Download(what=each.given, to=each.path, size=size, exact=each.known is not None, room=size or 0)


def _index(config: RunConfig) -> Iterator[Download]:
    name = config.retrieval.prebuilt
    if name is None or not (takes := prebuilt.room_for(name, config.cache)):
        return
    yield Download(
        what=f"the index {name} ({PREBUILT[name].documents:,} passages)",
        to=prebuilt.index_of(name, config.cache),
        size=prebuilt.to_fetch(name, config.cache),
        exact=True,
        room=takes,
    )


def _rankers(config: RunConfig) -> Iterator[Download]:
    for key, path in models_of(config.retrieval):
        if to_fetch(path):
            yield Download(what=f"{key}={path}", to=kept_in(path), size=None)


def _model(config: RunConfig) -> Iterator[Download]:
    sizes = config.model.architecture  # of a model that is given by its path alone nobody knows them yet
    size = architecture(config.model).parameters * PUBLISHED if sizes else None
    for _, path in models(config):
        if to_fetch(path):
            yield Download(what=f"the model {path}", to=kept_in(path), size=size, room=size or 0)


def models(config: RunConfig) -> list[tuple[str, str]]:
    """Key and path of the models that ``config.mode`` plays or trains, each once; of ``mode=fetch`` all that are named.

    Weights of a checkpoint are its own: what plays it doesn't read ``model.path``.
    """
    if config.mode in ("index", "serve"):
        return []
    played = config.checkpoint if config.mode in OF_A_CHECKPOINT else None
    trained = config.model.path if config.mode not in INFERENCE else None
    found = [("checkpoint", played), ("model.path", trained if trained != played else None)]
    return [(key, path) for key, path in found if path]
