"""A name for questions: equal for equal ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

from agent.records import Question


def digest_of(questions: Iterable[Question]) -> str:
    """Of all that a run knows of its questions, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for question in questions:
        digest.update(json.dumps(asdict(question), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
