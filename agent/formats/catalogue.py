"""Which format ``agent.format`` names, checked before anything starts."""

from __future__ import annotations

from agent import formats
from agent.formats.base import Format
from agent.own import check_class
from agent.shipped import module_of, own_class

KEY = "agent.format"


def format_class(name: str) -> type[Format]:
    """The format of that name: the one subclass of ``Format`` in ``agent/formats/NAME.py``.

    Raises ``UserError`` for a file that can't be imported, or has none, several or an unfinished one.
    """
    found = own_class(module_of(formats.__name__, name, KEY), Format, f"{KEY}={name}")
    check_class(found, Format, f"{KEY}={name}: {found.__name__}")
    return found
