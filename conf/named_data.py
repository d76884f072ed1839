"""``data=[hotpotqa,musique]``: several named sets are one list of files for training, and one for evaluating.

Hydra by itself would take the last of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from agent.errors import UserError, shortened
from tasks.paths import is_named, listed

_DATA = Path(__file__).parent / "data"
_SEVERAL = re.compile(r"data=\[([^\[\]]*)\]")
_KEYS = ("questions", "eval_questions")


def sets_together(settings: Sequence[str]) -> tuple[str, ...]:
    """``settings`` with the lists of files in place of a list of named sets. They come first, so that settings beside
    the list win.

    Raises ``UserError`` for a list that holds anything else.
    """
    lists = [setting for setting in settings if setting.startswith("data=") and "[" in setting]
    files = [line for setting in lists for line in _lines(setting)]
    return (*files, *(setting for setting in settings if setting not in lists))


def _lines(setting: str) -> list[str]:
    match = _SEVERAL.fullmatch(setting)
    names = [name.strip(" '\"") for name in match[1].split(",")] if match else []
    if not names or len({*names}) < len(names):
        raise UserError(f"{setting}: several named sets are written data=[hotpotqa,musique], each once and without -m")
    found = [_named(name, setting) for name in names]
    lists = {key: [files[key] for files in found if key in files] for key in _KEYS}
    return ["data=jsonl", *(f"data.{key}={listed(files)}" for key, files in lists.items() if files)]


def _named(name: str, setting: str) -> dict[str, str]:
    """The files of a named set, by the setting that takes them."""
    known = {file.stem: _values(file) for file in sorted(_DATA.glob("*.yaml"))}
    sets = {choice: values for choice, values in known.items() if is_named(values.get("eval_questions", ""))}
    if name not in sets:
        raise UserError(
            f"{setting}: {name or 'nothing'} is none of the named sets {', '.join(sets)}; files are several with "
            "data=jsonl data.questions=[A,B]"
        )
    return {key: sets[name][key] for key in _KEYS if key in sets[name]}


def _values(file: Path) -> dict[str, str]:
    try:
        values: dict[str, str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: is not YAML in UTF-8 ({shortened(error)})") from error
    return values
