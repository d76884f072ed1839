"""Ray's dashboard: where it is, and how a person gets in."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def entrance(address: str, environment: Mapping[str, str] = os.environ) -> str:
    """The line that a run prints about the dashboard at ``address`` (host:port), once Ray has been started.

    A Ray that was started here protects itself with a token: whoever can talk to a Ray cluster can run code on it.
    """
    line = f"Ray's dashboard: http://{address}"
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return line
    return f"{line} (it asks once for a token, which `{Path(sys.executable).parent / 'ray'} get-auth-token` prints)"
