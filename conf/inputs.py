"""The files, folders and trackers that a run is going to need, looked for before anything starts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from agent.errors import UserError
from agent.paths import at_home
from agent.settings import KIND, PATH
from conf.schema import IF_ANY, INFERENCE, OF_A_CHECKPOINT, RunConfig
from learner.gguf import is_gguf
from learner.hub import is_hub_name
from tasks.aliases import FILE as ALIASES
from tasks.making.config import AUTO
from tasks.paths import KEYS, WIKI_18, files_of, is_named, read_by
from tracking.trackers.several import check_installed

_FOLDERS = ("checkpoint", "report.sweep", "resume", "retrieval.index", "run", "compare")
_LOCAL = ("/", "./", "../", "~")
"""How a model's folder starts; anything else may be a name on the hub."""


def check_inputs(config: RunConfig) -> None:
    """Raises ``UserError`` for the first path that ``config.mode`` reads and that isn't there or can't be read, or
    for a tracker that isn't installed."""
    for key, path in _read(config):
        if problem := missing(path):
            raise UserError(f"{key}={path}: {problem}")
        if key == "checkpoint" and is_gguf(path):
            continue
        if not (at_home(path).is_file() or at_home(path).is_dir() or key.endswith("token_file")):
            raise UserError(f"{key}={path}: is a pipe or a device, and is read more than once; write it into a file")
        if key in _FOLDERS and not at_home(path).is_dir():
            raise UserError(f"{key}={path}: is a file, and a folder is needed")
    if config.mode in ("train", "eval"):
        check_installed(config.tracker)


def _read(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Key and path of what ``config.mode`` reads."""
    mode, model = config.mode, config.model.path
    if mode == "train" and config.resume not in (None, "", "auto", IF_ANY):
        yield "resume", str(config.resume)
    elif mode in ("train", "experts") and model and (model in (".", "..") or model.startswith(_LOCAL)):
        yield "model.path", model
    if mode in OF_A_CHECKPOINT and config.checkpoint and not is_hub_name(config.checkpoint):
        yield "checkpoint", config.checkpoint
    if mode in INFERENCE and config.exit.calibration:
        yield "exit.calibration", config.exit.calibration
    if mode in (*INFERENCE, "train", "experts", "index", "serve", "fetch") and config.data.source == "jsonl":
        yield from _data_files(config)
    if mode in (*INFERENCE, "train", "experts", "serve"):
        retrieval = {"index": config.retrieval.index, "token_file": config.retrieval.token_file}
        yield from ((f"retrieval.{name}", path) for name, path in retrieval.items() if path)
    if mode == "serve" and config.serve.token_file:
        yield "serve.token_file", config.serve.token_file
    if mode == "report":
        yield "report.sweep", str(config.report.sweep)
    if mode in ("view", "compare"):
        yield "run", str(config.run)
    if mode in ("view", "compare", "eval") and config.compare:
        yield "compare", config.compare


def _data_files(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Those of the settings of the data; what is named and fetched, or made, is none."""
    data = config.data
    unread = {*KEYS} - {*read_by(config.mode, data.eval_questions)}
    for name in (f.name for f in fields(data) if f.metadata.get(KIND) == PATH[KIND] and f.name not in unread):
        path = getattr(data, name)
        if path and (name, path) != ("experts", AUTO):
            files = files_of(path, f"data.{name}") if name in KEYS else (path,)
            yield from ((f"data.{name}", file) for file in files if not is_named(file) and file != WIKI_18)


def _read_if_there(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The same of what is read where it is there: the names beside 2WikiMultihopQA's questions, a prompt that isn't one
    of ours, and models that rank passages, unless they are the hub's."""
    data, retrieval = config.data, config.retrieval
    for key in read_by(config.mode, data.eval_questions):
        files = files_of(value, f"data.{key}") if (value := getattr(data, key)) else ()
        yield from ((f"data.{key}", str(at_home(file).parent / ALIASES)) for file in files if not is_named(file))
    yield "agent.prompt", config.agent.prompt
    for name in ("encoder", "reranker"):
        if path := getattr(retrieval, name, None):
            yield f"retrieval.{name}", path


def stamps(config: RunConfig) -> dict[str, str]:
    """Of each file and folder that ``config.mode`` reads, by its resolved path: its size and when it changed (ns).

    A link to a checkpoint, such as ``checkpoints/best``, is that checkpoint.
    """
    found = {}
    others = ((key, path) for key, path in _read_if_there(config) if os.path.exists(at_home(path)))
    for key, path in (*_read(config), *others):
        if key != "compare" and not key.endswith("token_file"):
            place = at_home(path).resolve()
            files = []
            for file in place.rglob("*") if place.is_dir() else (place,):
                with suppress(FileNotFoundError):  # a run may be pruning its checkpoints
                    files += [file.stat()] if file.is_file() else []
            found[f"{key}={place}"] = (
                f"{sum(f.st_size for f in files)} {max((f.st_mtime_ns for f in files), default=0)}"
            )
    return found


def missing(path: str) -> str | None:
    """Why ``path`` can't be read, and what is there that may be meant; None if it can."""
    wanted = at_home(path).absolute()
    try:
        if wanted.exists():
            readable = os.access(wanted, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
            return None if readable else "you have no right to read it"
        there = next(folder for folder in wanted.parents if folder.exists())
    except OSError as error:
        return f"can't be looked at ({error.strerror})"
    if "," in path and not path.startswith("["):
        return "no such file or folder; several files of questions are written [A,B], and values of a sweep need -m"
    lacking = wanted.relative_to(there).parts[0]
    if not there.is_dir():
        return f"no such file or folder; {there} is a file"
    if wanted.is_symlink():
        return f"no such file or folder; it is a link to {os.readlink(wanted)}, which doesn't exist"
    try:
        close = difflib.get_close_matches(lacking, os.listdir(there), n=1, cutoff=0.6)
    except OSError:
        close = []
    if close and _alike(Path(lacking).stem, Path(close[0]).stem):
        return f"no such file or folder; did you mean {there / close[0] / Path(*wanted.relative_to(there).parts[1:])}?"
    return f"no such file or folder; {there} has no {lacking!r}"


def _alike(one: str, other: str) -> bool:
    """Two names that share no more than a suffix aren't."""
    return difflib.SequenceMatcher(None, one, other).ratio() >= 0.6
