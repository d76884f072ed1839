"""Programs' ways of asking a search service over HTTP, one file each.

``NAME.py`` has a class ``Dialect`` made from ``base.Dialect``. The server (``retrieval_service/server/``) answers all
of them, and ``retrieval.dialect=NAME`` asks in one of them (``retrieval_service/backends/http.py``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agent.shipped import module_names

if TYPE_CHECKING:
    from retrieval_service.dialects.base import Dialect


def dialect_names() -> list[str]:
    """The dialects that there are."""
    return module_names(__path__, "base")


def dialect(name: str) -> Dialect:
    """The dialect of that name."""
    made: Dialect = importlib.import_module(f"retrieval_service.dialects.{name}").Dialect()
    return made
