"""What Hydra makes of a command line, each part of it once: these tests compose far more often than they differ.

Nothing is replaced. Hydra's own functions make each part the first time; what they made is remembered by all that it
was made of, files and rules of a test's own by their content, and given out as a copy. What raises is made each time.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, Overrides, create_defaults_list
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf

from conf import of_files

_find, _merge = create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
_parse = OverridesParser.parse_rule
_found: dict[Any, DefaultsList] = {}
"""Which files choices lead to."""
_merged: dict[Any, bytes] = {}
"""What they make, before the values of the command line; pickled, since nothing is copied sooner."""
_parsed: dict[tuple[str, str], Any] = {}
"""What a line, or a value, is in Hydra's grammar."""
_read: dict[str, bytes] = {}
"""The project's files."""
_nodes: dict[int, tuple[ConfigNode, tuple[Any, ...]]] = {}
"""What rules and rankers bring to the store, by its place in memory, which is nothing else's as long as it is here."""


def remember(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone."""
    kinds: dict[str, Any] = {kind.scheme(): kind for kind in Plugins.instance().discover(ConfigSource)}
    read = kinds["pkg"]._read_config

    def read_once(self: Any, resource: Any) -> Any:
        if str(resource) not in _read:
            _read[str(resource)] = pickle.dumps(read(self, resource))
        return pickle.loads(_read[str(resource)])

    patch.setattr(kinds["pkg"], "_read_config", read_once)
    # Each composition, and each question for a group's choices, copies the sources, and with them all of the store.
    patch.setattr(kinds["structured"], "__deepcopy__", lambda self, _: copy.copy(self), raising=False)
    patch.setattr(config_loader_impl, "create_defaults_list", _find_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merge_once)
    patch.setattr(OverridesParser, "parse_rule", _parse_once)


def _place(repo: Any) -> tuple[Any, ...]:
    """All that ``repo`` finds what it composes in: by content, since a test's own files lie in a folder of its own, and
    what rules and rankers bring is stored anew where a test adds one."""
    store = ConfigStore.instance().repo
    brought = (node for group in of_files.BROUGHT for node in store[group].values())
    return (*map(_content, repo.get_sources()), *map(_node, brought))


def _content(source: ConfigSource) -> Any:
    if source.scheme() != "file":
        return source.scheme(), source.path
    folder = Path(source.path)
    return tuple((str(file.relative_to(folder)), file.read_bytes()) for file in sorted(folder.rglob("*.yaml")))


def _node(stored: ConfigNode) -> tuple[Any, ...]:
    if id(stored) not in _nodes:
        kind = OmegaConf.get_type(stored.node)
        _nodes[id(stored)] = (stored, (stored.group, stored.name, kind, pickle.dumps(stored.node)))
    return _nodes[id(stored)][1]


def _find_once(
    repo: Any, config_name: str | None, overrides_list: list[Override], prepend_hydra: bool, skip_missing: bool
) -> DefaultsList:
    values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
    chosen = tuple(str(o.input_line) for o in overrides_list if not any(o is value for value in values))
    key = (_place(repo), config_name, chosen, prepend_hydra, skip_missing)
    if key not in _found:
        _found[key] = _find(repo, config_name, overrides_list, prepend_hydra, skip_missing)
    return replace(_found[key], config_overrides=values)


def _merge_once(self: ConfigLoaderImpl, defaults: Sequence[ResultDefault], repo: Any) -> DictConfig:
    key = (_place(repo), tuple(astuple(default) for default in defaults))
    if key not in _merged:
        _merged[key] = pickle.dumps(_merge(self, defaults=[*defaults], repo=repo))
    found = pickle.loads(_merged[key])
    assert isinstance(found, DictConfig)
    return found


def _parse_once(self: OverridesParser, s: str, rule_name: str) -> Any:
    if (s, rule_name) not in _parsed:
        _parsed[s, rule_name] = _parse(self, s, rule_name)
    return copy.deepcopy(_parsed[s, rule_name])
