"""Findings about the data that don't stop a run: counted, said in one line, and listed in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import UserError
from agent.visible import json_line
from agent.writing import write_text

FILE = "data_notices.jsonl"
"""The list of all questions that notices are about, in a run's folder."""
SHOWN = 3
"""Names that a line gives as examples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One line, and the questions that it is about."""

    kind: str
    """``left_out`` (questions that are not played), ``evidence`` (supporting documents that are not named or not
    there), ``answers`` (how they are compared, that they contradict each other, or that an earlier hop's is among
    them), ``trained_on`` (by the checkpoint that plays them), ``calibrated_on`` (its early exit), ``unread`` (fields of
    a file) or ``format`` (how this model's episodes are written)."""
    text: str
    items: tuple[tuple[str, str], ...] = ()
    """A question's id, and why it is here."""


def left_out(text: str, items: Iterable[tuple[str, str]], *, strict: bool) -> Notice:
    """The notice of questions that are left out; with ``strict`` (``data.strict``) a ``UserError`` in its place."""
    notice = Notice(kind="left_out", text=f"{text}, and left out", items=tuple(items))
    if strict:
        raise UserError(f"{text}; data.strict=true allows none: correct the file, or set data.strict=false")
    return notice


def some(names: Sequence[str]) -> str:
    """The first few of ``names``, for a line.

    >>> some(["a", "b", "c", "d"])
    'a, b, c, …'
    """
    return ", ".join([*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])])


def write_notices(folder: Path, notices: Iterable[Notice]) -> None:
    """Lists the questions of ``notices`` in ``folder``; writes nothing where there are none."""
    lines = [
        json_line({"kind": notice.kind, "id": name, "why": why}) for notice in notices for name, why in notice.items
    ]
    if lines:
        write_text(folder / FILE, "".join(lines))
