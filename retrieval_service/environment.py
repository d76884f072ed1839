"""How a server is reached, as far as the environment says: known by which certificates, through which proxy."""

from __future__ import annotations

import os
import ssl
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from agent.errors import UserError, refused, shortened

PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Environment variables of proxies, which may be in small letters, too."""


def trusted(url: str) -> ssl.SSLContext | bool:
    """The certificates by which a server is known: those of SSL_CERT_FILE or SSL_CERT_DIR, else certifi's.

    Raises ``UserError`` for a file that can't be read. Over http there is nothing to verify, and none is read.
    """
    if not url.lower().startswith("https:"):
        return False
    import httpx

    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise UserError(
            f"SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE')}: can't be read as certificates ({refused(error)}); name "
            "a file of them in PEM, or unset it"
        ) from error


def reached(url: str) -> dict[str, Any]:
    """What a client of httpx is made with that asks ``url``: a proxy only for other machines, which alone it can reach.

    Raises ``UserError`` for certificates or proxies that can't be used.
    """
    import httpx

    made: dict[str, Any] = {"verify": trusted(url), "trust_env": not _is_here(url)}
    try:
        httpx.Client(**made | {"verify": False}).close()
    except (ValueError, ImportError, httpx.InvalidURL) as error:  # as for socks://…, or an address range in NO_PROXY
        given = [name for known in PROXIES for name in (known, known.lower()) if os.environ.get(name)]
        raise UserError(
            f"the environment's proxies ({', '.join(given)}) can't be used: {shortened(error)}; correct or unset them"
        ) from error
    return made


def _is_here(url: str) -> bool:
    """Whether ``url`` is on this machine, by its name."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
