"""The tokenizer of the built-in world, made once: its text alone takes two seconds, and is the same in every world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from agent.protocol import TagProtocol
from tasks.load import Task
from tasks.tokenizer import train

_text = Task.tokenizer_text
_texts: dict[tuple[TagProtocol, int], tuple[str, ...]] = {}
_trained: dict[tuple[tuple[str, ...], tuple[str, ...], int], dict[str, bytes]] = {}
"""The files, by all that they are made of."""


def remember(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone. Nothing is replaced: what was made the first time is given out again."""
    patch.setattr(Task, "tokenizer_text", _text_once)
    patch.setattr("actors.prepare.train", _train_once)


def _text_once(self: Task, protocol: TagProtocol, top_k: int) -> Iterator[str]:
    if self.config.source != "world":
        return _text(self, protocol, top_k)
    if (protocol, top_k) not in _texts:
        _texts[protocol, top_k] = tuple(_text(self, protocol, top_k))
    return iter(_texts[protocol, top_k])


def _train_once(texts: Iterable[str], *, tags: Sequence[str], folder: Path, vocab_size: int = 1024) -> Path:
    key = (tuple(texts), tuple(tags), vocab_size)
    if key not in _trained:
        train(key[0], tags=tags, folder=folder, vocab_size=vocab_size)
        _trained[key] = {file.name: file.read_bytes() for file in folder.iterdir()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _trained[key].items():
        (folder / name).write_bytes(content)
    return folder
