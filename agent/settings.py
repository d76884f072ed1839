"""Marks of settings whose values the command line takes as they are typed (``conf/arguments.py``).

A dataclass of settings gives a field one of them as its ``metadata``.
"""

from __future__ import annotations

from typing import Any

KIND = "taken_as"
"""The key of the mark in a field's metadata."""
PATH: dict[str, Any] = {KIND: "path"}
"""A file or a folder: any character may be in it, ``~`` is the user's home."""
TEXT: dict[str, Any] = {KIND: "text"}
"""A name or an address: any character may be in it."""
SENTENCE: dict[str, Any] = {KIND: "sentence"}
"""The same, and nothing in it stands for something else."""
