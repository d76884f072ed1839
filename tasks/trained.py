"""What a run has trained on, in its folder: so that its checkpoints are not evaluated on it by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.answers import normalise
from agent.records import Question
from retrieval_service.names import among, digests

FILE = "trained_on.npy"


def write_trained(folder: Path, questions: Sequence[Question]) -> None:
    """Records in a run's ``folder`` that it trains on ``questions``: 8 bytes for each text."""
    np.save(folder / FILE, digests(normalise(q.text) for q in questions))


def trained_on(checkpoint: Path, questions: Sequence[Question]) -> set[str] | None:
    """Ids of those of ``questions`` whose text the run of ``checkpoint`` (``RUN/checkpoints/step-…``) has trained on.

    None where nothing is recorded: for a model that no run of ours has made, or a checkpoint out of its run's folder.
    """
    places = (checkpoint.absolute(), checkpoint.resolve())  # a link to a checkpoint is one, too
    files = (place.parent.parent / FILE for place in places if place.parent.name == "checkpoints")
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    texts = {q.id: normalise(q.text) for q in questions}
    known = among(set(texts.values()), np.load(file))
    return {name for name, text in texts.items() if text in known}
