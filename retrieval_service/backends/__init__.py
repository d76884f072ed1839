"""Rankers, one file each.

``NAME.py`` has a class ``Backend`` (``retrieval_service/backend.py`` is the interface) that is made from an index's
folder and the settings, and ``retrieval.backend=NAME`` finds it.
"""

from __future__ import annotations

import pkgutil


def backend_names() -> list[str]:
    """The rankers that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
