"""How an episode is written down as tokens, one file per format.

``NAME.py`` has one subclass of ``Format`` (``base.py``), and ``agent.format=NAME`` finds it.
"""

from __future__ import annotations

import pkgutil

_HELPERS = ("base", "calls", "chat_template")


def format_names() -> list[str]:
    """The formats that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _HELPERS)
