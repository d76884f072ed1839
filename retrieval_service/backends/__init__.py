"""Rankers, one file each.

``NAME.py`` has a class ``Backend`` and what belongs to it (``retrieval_service/backend.py`` is the interface), and
``retrieval.backend=NAME`` finds it.
"""

from __future__ import annotations

from typing import Any

from agent.errors import UserError
from agent.own import check_function, check_methods
from agent.shipped import file_of, member_of, module_names, module_of
from retrieval_service.backend import Backend, Parted

KEY = "retrieval.backend"
_ENSURE = ("corpus", "config", "cache", "watch")


def backend_names() -> list[str]:
    """The rankers that there are."""
    return module_names(__path__)


def backend_module(name: str) -> Any:
    """The module of that ranker. Raises ``UserError`` for a file that can't be imported, or lacks what is needed."""
    module = module_of(__name__, name, KEY)
    needs = "a class `Backend`; see retrieval_service/backend.py"
    found = member_of(__name__, name, "Backend", KEY, needs, base=Backend)
    where = f"{KEY}={name}: Backend of {file_of(__name__, name)}"
    if not isinstance(found, type):
        raise UserError(f"{where} must be a class")
    for interface in (Backend, Parted) if hasattr(found, "begin_batch") else (Backend,):
        wanted = [method for method in vars(interface) if not method.startswith("_")]
        if missing := [method for method in wanted if not hasattr(found, method)]:
            raise UserError(f"{where} lacks {', '.join(missing)}; see retrieval_service/backend.py")
        check_methods(found, interface, where)
    if not getattr(module, "REMOTE", False):
        needs = f"a function `ensure({', '.join(_ENSURE)})`, which builds its index, or REMOTE = True"
        ensure = member_of(__name__, name, "ensure", KEY, needs)
        check_function(ensure, f"{KEY}={name}: ensure of {file_of(__name__, name)}", (_ENSURE,))
    return module


def is_remote(name: str) -> bool:
    """Whether that ranker asks a service, at ``retrieval.url``, and has no index."""
    return bool(getattr(backend_module(name), "REMOTE", False))
