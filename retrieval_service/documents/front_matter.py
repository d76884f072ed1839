"""What stands before a Markdown document: YAML between ``---`` and ``---`` or ``...``, TOML between two ``+++``."""

from __future__ import annotations

import re
import tomllib

NULL = "tag:yaml.org,2002:null"
"""What YAML calls a value that is empty, ``~`` or ``null``."""
_KEY = r"[\w\"'.-]+[ \t]*:(?=\s)"
_YAML = re.compile(
    rf"---[ \t\r]*\n((?:[ \t]*#.*\n)*[ \t]*{_KEY}(?:.*\n)*?)(?:---|\.\.\.)[ \t\r]*(?:\n|\Z)",
)
"""It begins with a key, comments aside; without one the first line is a rule."""
_TOML = re.compile(r"\+\+\+[ \t\r]*\n((?:.*\n)*?)\+\+\+[ \t\r]*(?:\n|\Z)")
_LINE = re.compile(rf"\s*\Z|\s+\S|#|-\s|{_KEY}|[\]}}]")
"""A line that YAML may have: empty, indented, a comment, an item, a key, the end of a list. Prose has others."""


def front_matter(text: str) -> tuple[str, str]:
    """``(title, rest)`` of a document; the title is empty where front matter names none, or there is none.

    Prose between two rules is a part of the document, as is what no reader of TOML can read. YAML with a mistake in it
    is front matter.
    """
    if front := _TOML.match(text):
        try:
            title = tomllib.loads(front[1].replace("\r\n", "\n")).get("title")
        except (ValueError, RecursionError):  # of its mistakes, and of numbers of thousands of digits
            return "", text
        return " ".join(title.split()) if isinstance(title, str) else "", text[front.end() :]
    if front := _YAML.match(text):
        title, read = _yaml_title(front[1])
        if read or all(map(_LINE.match, front[1].splitlines())):
            return title, text[front.end() :]
    return "", text


def _yaml_title(front: str) -> tuple[str, bool]:
    """The ``title`` in YAML, empty where there is none; and whether it is an object of YAML at all."""
    import yaml

    try:
        said = yaml.compose(front, Loader=yaml.SafeLoader)  # no objects are made: 007 and 2024-01-01 stay as written
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # "\\U99999999" is no character
        return "", False
    if not isinstance(said, yaml.MappingNode):
        return "", False
    for key, value in said.value:
        if key.value == "title" and isinstance(value, yaml.ScalarNode) and value.tag != NULL:
            return " ".join(value.value.split()), True
    return "", True
