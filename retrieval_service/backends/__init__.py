"""Rankers, one file each.

``NAME.py`` has a class ``Backend`` (``retrieval_service/backend.py`` is the interface) that is made from an index's
folder and the settings, and ``retrieval.backend=NAME`` finds it.
"""

from __future__ import annotations

from agent.shipped import module_names


def backend_names() -> list[str]:
    """The rankers that there are."""
    return module_names(__path__)
