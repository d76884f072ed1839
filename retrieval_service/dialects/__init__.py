"""Programs' ways of asking a search service over HTTP, one file each.

``NAME.py`` has a class ``Dialect`` made from ``base.Dialect``. The server (``retrieval_service/server/``) answers all
of them, and ``retrieval.dialect=NAME`` asks in one of them (``retrieval_service/backends/http.py``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agent.errors import UserError
from agent.own import check_class
from agent.shipped import file_of, member_of, module_names

if TYPE_CHECKING:
    from retrieval_service.dialects.base import Dialect

KEY = "retrieval.dialect"


def dialect_names() -> list[str]:
    """The dialects that there are."""
    return module_names(__path__, "base")


def dialect(name: str) -> Dialect:
    """The dialect of that name. Raises ``UserError`` for a file that can't be imported, or whose dialect is none."""
    base: type[Dialect] = importlib.import_module(f"{__name__}.base").Dialect  # needs what few commands do
    needs = "a class `Dialect`, made from retrieval_service.dialects.base.Dialect"
    found = member_of(__name__, name, "Dialect", KEY, needs, base=base)
    check_class(found, base, f"{KEY}={name}: Dialect of {file_of(__name__, name)}")
    made: Dialect = found()
    return made


def spoken() -> tuple[list[Dialect], list[UserError]]:
    """All dialects that can be spoken, and what is wrong with the files of the others."""
    found, wrong = [], []
    for name in dialect_names():
        try:
            found.append(dialect(name))
        except UserError as error:
            wrong.append(error)
    return found, wrong
