"""How an episode is written down as tokens, one file per format.

``NAME.py`` has one subclass of ``Format`` (``base.py``), and ``agent.format=NAME`` finds it.
"""

from __future__ import annotations

from agent.shipped import module_names


def format_names() -> list[str]:
    """The formats that there are."""
    return module_names(__path__, "base", "calls", "catalogue", "chat_template")
