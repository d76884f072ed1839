"""Whether a row's question has an answer: the full MuSiQue marks those that have none."""

from __future__ import annotations

from agent.errors import UserError
from tasks.fields import anywhere
from tasks.rows import Row, named

_SAID = {"true": True, "1": True, "false": False, "0": False}
"""As JSON and tables have it."""


def is_answerable(row: Row, where: str) -> bool:
    """What ``answerable`` says, in the row or its metadata; True if nothing does. Raises ``UserError`` for what is
    neither true nor false."""
    found = True
    for name, value in anywhere(row, "answerable"):
        said = _SAID.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
        if said is None:
            shown = f"'{value}'" if isinstance(value, str) else named(value)
            raise UserError(f"{where}: '{name}' must be true or false, not {shown}")
        found = found and said
    return found
