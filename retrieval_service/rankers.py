"""Which ranker a configuration names: its settings, its index, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from agent.errors import UserError
from agent.paths import at_home
from agent.settings import check_settings
from agent.shipped import file_of
from retrieval_service import backends
from retrieval_service.backend import Backend
from retrieval_service.backends import backend_module, backend_names
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import read_manifest
from retrieval_service.prebuilt import ensure_prebuilt
from retrieval_service.rerank import Reranked
from retrieval_service.watch import SILENT, Watch


def settings_of(name: str) -> type[RetrievalConfig]:
    """The settings of a ranker: a class ``Settings`` of its own, or those that all have.

    Raises ``UserError`` for a file that can't be imported, or lacks something.
    """
    settings = getattr(backend_module(name), "Settings", RetrievalConfig)
    where = f"{backends.KEY}={name}: Settings of {file_of(backends.__name__, name)}"
    if not (isinstance(settings, type) and issubclass(settings, RetrievalConfig)):
        raise UserError(f"{where} must be a class made from retrieval_service.config.RetrievalConfig")
    check_settings(settings, where)
    return settings


def own_settings() -> dict[str, type[RetrievalConfig]]:
    """The rankers that have settings of their own, with these; without those whose file is wrong."""
    found = {}
    for name in backend_names():
        with suppress(UserError):  # said where it is chosen
            found[name] = settings_of(name)
    return {name: kind for name, kind in found.items() if kind is not RetrievalConfig}


def models_of(config: RetrievalConfig) -> list[tuple[str, str]]:
    """Key and name of the models that rank passages. Of an index that is named the encoder is the one that made it.

    Raises ``UserError`` for an index whose manifest is damaged.
    """
    found = {key: getattr(config, key, None) for key in ("encoder", "reranker")}
    if hasattr(config, "encoder") and config.encoder is None and config.index is not None:
        found["encoder"] = _encoder_of(at_home(config.index))
    return [(f"retrieval.{key}", name) for key, name in found.items() if name]


def _encoder_of(index: Path) -> str | None:
    for folder in (index, index / "dense"):  # a hybrid one has it in a part
        manifest = read_manifest(folder)
        if manifest is not None and isinstance(name := manifest.made_with.get("encoder"), str):
            return name
    return None


def open_backend(config: RetrievalConfig, index: Path | None, top_k: int = 1) -> Backend:
    """The ranker that ``config.backend`` names, over ``index``; call it in the thread that will search.

    Raises ``UserError`` if ``index`` is not an index that this ranker can use, or the server doesn't answer, or not a
    search for ``agent.top_k`` passages.
    """
    backend: Backend = backend_module(config.backend).Backend(index, config)
    try:
        _check_depth(backend, config, top_k)
        return backend if config.reranker is None else Reranked(backend, config)
    except BaseException:
        backend.close()
        raise


def _check_depth(backend: Backend, config: RetrievalConfig, top_k: int) -> None:
    """Another's server may give fewer passages of a search than will be asked for."""
    depths = {"agent.top_k": top_k}
    if config.reranker is not None:
        depths["retrieval.rerank_depth"] = config.rerank_depth
    setting = max(depths, key=lambda key: depths[key])
    if depths[setting] > 1 and (check := getattr(backend, "check_depth", None)) is not None:
        check(depths[setting], setting)


def index_for(corpus: Path | None, config: RetrievalConfig, cache: Path, watch: Watch = SILENT) -> Path:
    """The index of ``corpus`` for the ranker that ``config.backend`` names, built below ``cache`` if it isn't there.

    Raises ``UserError`` for a bad corpus or a damaged index, and without a corpus; ``Fault`` if building fails.
    """
    if corpus is None:
        raise UserError(
            "there is nothing to search: set data.corpus=FILE, retrieval.index=FOLDER for a built index, or "
            "retrieval=wikipedia"
        )
    index: Path = backend_module(config.backend).ensure(corpus, config, cache, watch)
    return index


def opener(
    corpus: Path | None, config: RetrievalConfig, cache: Path, watch: Watch = SILENT, top_k: int = 1
) -> Callable[[], Backend]:
    """What opens the ranker over the server or the index that ``config`` names, else over the index of ``corpus``;
    ``top_k`` is how many passages of a search will be asked for, as far as that is known.

    That is built below ``cache`` if it isn't there, and a published one is fetched, by the first call alone: whoever
    opens one more searches the same, whatever has become of the corpus. A call raises ``UserError`` for a bad corpus or
    index, or a server that doesn't answer.
    """
    index = lru_cache(lambda: _found(corpus, config, cache, watch))
    return lambda: open_backend(config, index(), top_k)


def _found(corpus: Path | None, config: RetrievalConfig, cache: Path, watch: Watch) -> Path | None:
    """The index to open; None for a server."""
    if config.url is not None:
        return None
    if config.index is not None:
        return at_home(config.index)
    if config.prebuilt is not None:
        return ensure_prebuilt(config.prebuilt, cache, watch.say)
    return index_for(corpus, config, cache, watch)
