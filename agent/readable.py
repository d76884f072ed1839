"""JSON from a file or from elsewhere, read so that whatever is wrong with it is a ``ValueError``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from agent.errors import Fault, UserError, refused, shortened


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, for ``json``'s ``object_pairs_hook``, which would take a key's last value.

    Raises ``ValueError`` for a key that is there twice: nothing says which of the two is meant.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)!r} is there twice")
    return found


def json_of(text: str | bytes) -> Any:
    """What ``text`` is. Raises ``ValueError`` for what is no JSON, also for a key that an object has twice and for what
    is nested too deeply to be read.

    >>> json_of('{"a": [1]}')
    {'a': [1]}
    """
    try:
        return json.loads(text, object_pairs_hook=each_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise plain(error) from None


def plain(error: ValueError) -> ValueError:
    """What ``json`` raises, in words for the file: for a number that is too long Python names a setting of its own."""
    return ValueError("a number has more digits than are read") if "int_max_str_digits" in str(error) else error


def named(value: Any) -> str:
    """A value of JSON or Parquet in words, for a message.

    >>> named(None), named([1]), named(7.5)
    ('null', 'a list', 'the number 7.5')
    """
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    if isinstance(value, bytes):
        return "bytes that the file doesn't mark as a text"
    plain = isinstance(value, int | float | Decimal)
    return kinds.get(type(value), f"the number {value}" if plain else f"a value of type {type(value).__name__}")


WRONG = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
"""What code raises that takes a file's content for what it should be."""


@contextmanager
def content_of(what: str) -> Iterator[None]:
    """Makes a ``UserError`` that begins with ``what`` of all that reading its content raises, ``Fault`` aside."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith(what) else UserError(f"{what}: {error}") from error
    except Fault:
        raise
    except OSError as error:
        raise UserError(f"{what} can't be read ({refused(error)})") from error
    except WRONG as error:
        raise UserError(f"{what}: damaged, or another program's ({shortened(error)})") from error
