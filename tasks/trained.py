"""What a run has trained on, in its checkpoints: so that they are not evaluated on it by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.answers import normalise_question
from agent.errors import UserError
from agent.records import Question
from retrieval_service.names import Digests, among, digests

FILE = "training/trained_on.npy"
"""In a checkpoint: 8 bytes for each question's text."""


def trained_texts(questions: Sequence[Question], begun_from: Path) -> Digests:
    """Digests of the texts that a run trains on, with those of the checkpoint that it has ``begun_from``, if it is one.

    Raises ``UserError`` if that one's record is damaged.
    """
    before, texts = _recorded(begun_from), digests_of(questions)
    return texts if before is None else np.union1d(before, texts)


def digests_of(questions: Sequence[Question]) -> Digests:
    """By which their texts are known again, sorted."""
    return digests(normalise_question(q.text) for q in questions)


def write_trained(checkpoint: Path, texts: Digests) -> None:
    """Records them in ``checkpoint``."""
    (checkpoint / FILE).parent.mkdir(exist_ok=True)
    np.save(checkpoint / FILE, texts)


def trained_on(checkpoint: Path, questions: Sequence[Question]) -> set[str] | None:
    """Ids of those of ``questions`` whose text the run of ``checkpoint``, or one that it went on from, has trained on.

    None where nothing is recorded: for a model that no run of ours has made. Raises ``UserError`` for a damaged record.
    """
    recorded = _recorded(checkpoint)
    return None if recorded is None else ids_among(questions, recorded)


def ids_among(questions: Sequence[Question], recorded: Digests) -> set[str]:
    """Ids of those of ``questions`` whose text is among those that were ``recorded``."""
    texts = {q.id: normalise_question(q.text) for q in questions}
    known = among(set(texts.values()), recorded)
    return {name for name, text in texts.items() if text in known}


def _recorded(checkpoint: Path) -> Digests | None:
    file = checkpoint / FILE
    if not file.is_file():
        file = checkpoint.resolve().parent.parent / Path(FILE).name  # where runs of an earlier version have it
        if not file.is_file() or checkpoint.resolve().parent.name != "checkpoints":
            return None
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: is damaged ({error}); take another checkpoint") from error
    if found.dtype != np.uint64 or found.ndim != 1:
        raise UserError(f"{file}: is damaged (not a list of digests); take another checkpoint")
    return np.sort(found)
