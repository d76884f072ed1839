"""The token that a search service may ask for: from a file, or from the environment. It is never printed."""

from __future__ import annotations

import os

from agent.errors import UserError
from agent.paths import at_home

VARIABLE = "SLINGSHOT_RETRIEVAL_TOKEN"
"""What holds it where no file is named; on the server's side and on the client's."""


def read_token(file: str | None, key: str) -> str | None:
    """The token that ``file`` holds, the value of the setting ``key``; without a file, that of ``VARIABLE`` or None.

    Raises ``UserError`` for a file that can't be read, or what can't be a token: it is one word of ASCII.
    """
    if file is None:
        where, token = VARIABLE, os.environ.get(VARIABLE)
        if token is None:
            return None
    else:
        where = f"{key}={file}"
        try:
            token = at_home(file).read_text(encoding="utf-8-sig")  # as an editor may write it
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{where}: can't be read as text ({type(error).__name__}); write one token into it"
            ) from None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"{where}: a token is one word of ASCII characters, such as `openssl rand -hex 32` prints")
    return token
