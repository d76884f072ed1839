"""Fetching what a command line names, before anything is started with it: data sets, an index, a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from actors.plan.downloads import downloads, models, room
from agent.formats.tags import tags_of
from agent.paths import at_home
from conf.schema import RunConfig
from learner.hub import local_folder
from learner.model_folder import to_fetch
from retrieval_service.download import Progress, Show, check_disk, size_text
from retrieval_service.encoder import encoder_folder
from retrieval_service.prebuilt import ensure_prebuilt
from retrieval_service.prebuilt import to_fetch as bytes_to_fetch
from retrieval_service.rankers import models_of
from tasks.experts import read_experts
from tasks.making.config import AUTO, EndpointConfig
from tasks.making.teacher import check_answers
from tasks.named import ensure, fetched, named
from tasks.paths import read_by
from tasks.several import read_sets
from tracking.console import Console


def fetch(config: RunConfig, console: Console) -> bool:
    """Fetches what isn't here, and says before what that is; returns whether there was anything.

    On another machine's Ray cluster the index is the nodes' own matter. Raises ``UserError`` where something can't be
    fetched or kept.
    """
    wanted = downloads(config)
    if wanted and (endpoint := _endpoint(config)) is not None:  # before gigabytes are fetched for one that isn't there
        with console.phase("asking the endpoint"):
            check_answers(endpoint, config.agent)
    known = sum(each.size or 0 for each in wanted)
    if len(wanted) > 1:
        console.say(f"{len(wanted)} downloads are needed, about {size_text(known)} in all")
    for each in wanted:
        console.say(f"to be fetched: {each}")
    if wanted and config.cluster.address is None:  # all of it, before the first byte
        config.cache.mkdir(parents=True, exist_ok=True)
        check_disk(config.cache, room(config), "what is to be fetched")
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
    # What is largest comes last, and its name is known here. Before it is told whatever may be wrong: a misspelt set or
    # model, one behind a licence, a bad line in the questions.
    corpora = [file for file in files if file.key == "corpus"]
    index = config.retrieval.prebuilt if config.cluster.address is None else None
    if any(not file.path.is_file() for file in corpora) or (index and bytes_to_fetch(index, config.cache)):
        with console.phase("reading the questions"):
            _check_questions(config)
    for file in corpora:
        ensure(file, console.say, show)
    if index is not None:
        ensure_prebuilt(index, config.cache, console.say, show)
    return bool(wanted)


def _endpoint(config: RunConfig) -> EndpointConfig | None:
    """The endpoint that ``config.mode`` is going to ask; ``mode=fetch`` asks none."""
    if config.mode == "eval":
        return config.evaluation.endpoint if config.evaluation.endpoint.url else None
    making = config.mode == "experts" or (config.mode == "train" and config.data.experts == AUTO)
    return config.experts.teacher if making and config.experts.teacher.url else None


def _check_questions(config: RunConfig) -> None:
    """Raises ``UserError`` for what is wrong with the files of questions, which are all here, and of experts."""
    data = fetched(replace(config.data, corpus=None), config.cache, config.mode, lambda text: None)
    for key in read_by(config.mode, data.eval_questions):
        if value := getattr(data, key):
            read_sets(value, key=f"data.{key}", evidence_match=data.evidence_match, strict=data.strict, notices=None)
    if config.mode in ("train", "fetch") and data.experts not in (None, AUTO):
        read_experts(
            at_home(str(data.experts)),
            tags_of(config.agent),
            key="data.experts",
            evidence_match=data.evidence_match,
            strict=data.strict,
        )


def shown(console: Console) -> Show:
    """Downloads as phases of the console, counted in megabytes, and readings in passages."""

    @contextmanager
    def show(title: str) -> Iterator[Progress]:
        with console.phase(title) as phase:
            unit, one = ("passages", 1) if title.startswith("reading") else ("MB", 10**6)
            count = phase.counting(unit)
            yield lambda done, total: count(done // one, total // one)

    return show
