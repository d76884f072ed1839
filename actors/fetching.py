"""Fetching what a command line names, before anything is started with it: data sets, an index, a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from actors.plan.downloads import downloads, models
from conf.schema import RunConfig
from learner.hub import local_folder
from learner.model_folder import to_fetch
from retrieval_service.download import Progress, Show, size_text
from retrieval_service.encoder import encoder_folder
from retrieval_service.prebuilt import ensure_prebuilt
from retrieval_service.rankers import models_of
from tasks.named import ensure, named
from tracking.console import Console


def fetch(config: RunConfig, console: Console) -> bool:
    """Fetches what isn't here, and says before what that is; returns whether there was anything.

    On another machine's Ray cluster the index is the nodes' own matter. Raises ``UserError`` where something can't be
    fetched or kept.
    """
    wanted = downloads(config)
    known = sum(each.size or 0 for each in wanted)
    if len(wanted) > 1:
        console.say(f"{len(wanted)} downloads are needed, about {size_text(known)} in all")
    for each in wanted:
        console.say(f"to be fetched: {each}")
    show = shown(console)
    files = named(config.data, config.cache, config.mode) if config.data.source == "jsonl" else []
    for file in (file for file in files if file.key != "corpus"):
        ensure(file, console.say, show)
    for setting, ranker in models_of(config.retrieval):
        if to_fetch(ranker):
            with console.phase(f"fetching {ranker}"):
                encoder_folder(ranker, setting)
    for key, path in models(config):
        if to_fetch(path):
            with console.phase(f"fetching the model {path}") as phase:
                local_folder(path, f"{key}={path}", fetched=phase.counting("MB"))
    # What is largest comes last, and its name is known here: a misspelt set or model, or one behind a licence, is told
    # before it.
    for file in (file for file in files if file.key == "corpus"):
        ensure(file, console.say, show)
    if config.retrieval.prebuilt is not None and config.cluster.address is None:
        ensure_prebuilt(config.retrieval.prebuilt, config.cache, console.say, show)
    return bool(wanted)


def shown(console: Console) -> Show:
    """Downloads as phases of the console, counted in megabytes, and readings in passages."""

    @contextmanager
    def show(title: str) -> Iterator[Progress]:
        with console.phase(title) as phase:
            unit, one = ("passages", 1) if title.startswith("reading") else ("MB", 10**6)
            count = phase.counting(unit)
            yield lambda done, total: count(done // one, total // one)

    return show
