"""Addresses of servers that settings name, and those that servers name."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

MOST_SHOWN = 200
"""Characters of an address that a server names."""


def is_askable(url: str) -> bool:
    """Whether ``url`` is one of http or https with a host that can be looked up, and a port that can be asked.

    Else httpx and the system's resolver raise, each in its own way, where nobody thinks of a setting any more.
    """
    import httpx  # a command that names no server starts without it

    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or " " in parts.netloc or parts.port == 0:
            return False
        asked = httpx.URL(url)
        bool(asked.host)  # is decoded where it is read
        asked.raw_host.decode("ascii").encode("idna")  # as the resolver has it: no empty label, none above 63
    except (ValueError, httpx.InvalidURL):
        return False
    return True


def sent_on(headers: Mapping[str, str]) -> str:
    """Where a redirect sends on to, in words to follow a refusal; empty without one.

    What follows a question mark is left out: it may be a secret of who is asked to log in.
    """
    place = headers.get("Location", "").partition("?")[0]
    shown = "".join(char for char in place if char.isprintable())[:MOST_SHOWN]
    return f" (it sends on to {shown})" if shown else ""
