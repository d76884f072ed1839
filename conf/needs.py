"""What each setting needs that would do nothing otherwise, since another one turns off what it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from agent.config import CALIBRATING, ExitConfig, SelectivityConfig
from agent.paths import at_home
from agent.pool.rules.base import ACCEPTED, rule_class, rule_names
from agent.pool.search_limits import OF_RULES
from agent.simulation.policies import SimulationConfig
from agent.tickets import QueryState
from conf.evaluation import EvalConfig
from conf.implied import OF_WORLD
from conf.schema import INFERENCE, MODES, PLAYS_ON, CheckpointConfig
from learner.config import SeedingConfig, WarmStartConfig
from retrieval_service.server.config import ServeConfig
from retrieval_service.vectors import LISTED, vectors_of
from tasks.config import Novice
from tasks.making.config import AUTO, EndpointConfig, ExpertsConfig, TeacherConfig
from tasks.paths import KEYS, WIKI_18
from tracking.config import TRACKERS, TrackerConfig

_THRESHOLDS = ("threshold", "calibration")
_SELECTIVE = fields(SelectivityConfig)
Composed = Callable[[str], Any]
"""What a key is set to in the end; None if there is no such key."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a setting needs to have an effect."""

    key: str
    ruled_by: tuple[str, ...]
    """The settings that decide."""
    idle: Callable[[Composed], bool]
    """Whether the setting does nothing with the others."""
    why: str
    switched: bool = True
    """Whether it may be given together with one of ``ruled_by``: a script that turns the thing on and off by that one
    setting leaves the others as they are."""
    modes: tuple[str, ...] = ("train", "plan")
    """Where it is asked about: in others it may have been left in a command."""


def _kl(part: str, name: str) -> Need:
    why = f"there is no KL term; set {part}.kl=k1, k2 or k3, too"
    return Need(f"{part}.{name}", (f"{part}.kl",), lambda of: of(f"{part}.kl") == "none", why)


def _no_zero_variance(of: Composed) -> bool:
    """Whether no group without variance comes to a KL term: the pool's rule returns it, and the seeding, which trains
    on all groups, has no such term."""
    name = of("pool.name")
    seeded = of("algorithm.seeding.steps") and of("algorithm.seeding.kl") != "none"
    if of("algorithm.kl_zero_variance") is not True or seeded or name not in rule_names():
        return False
    return rule_class(name)().verdicts([QueryState.TOO_EASY]) != [ACCEPTED]


def _steps(part: str, name: str, what: str) -> Need:
    steps = f"{part}.steps"
    why = f"there is no {what} with {steps}=0; set that above 0, or leave it out"
    return Need(f"{part}.{name}", (steps,), lambda of: of(steps) == 0, why)


def _warm_up(part: str, steps: str) -> Need:
    key = f"{part}.warmup_steps"
    why = f"the warm-up is longer than {steps}, so that the learning rate is never reached; lower it"
    return Need(key, (), lambda of: 0 < of(steps) < of(key), why, switched=False)


def _of_a_limit(name: str) -> Need:
    rules = [rule for rule, names in OF_RULES.items() if name in names]
    why = f"it is of search_limit={' and '.join(rules)}; set that, too, or leave it out"
    ruled = ("search_limit", "search_limit.rule")
    return Need(f"search_limit.{name}", ruled, lambda of: of("search_limit.rule") not in rules, why, switched=False)


def _wide(of: Composed) -> bool:
    """Whether the weights are in float32."""
    return of("model.dtype") == "float32" or (of("model.dtype") == "auto" and of("cluster.device") == "cpu")


def _no_exact_master(of: Composed) -> bool:
    eight_bit = of("algorithm.optimizer.kind") == "adamw8bit"
    return of("algorithm.optimizer.exact_master") is True and (_wide(of) or not eight_bit)


def _evaluates(name: str, default: Any, why: str) -> Need:
    key = f"evaluation.{name}"
    return Need(key, (), lambda of: of(key) != default, why, modes=_all_but("eval"))


def _calibrates(name: str) -> Need:
    key, default = f"exit.{name}", next(f.default for f in fields(ExitConfig) if f.name == name)
    why = f"{name} is of mode=calibrate, which finds the threshold; exit.calibration=FILE brings it"
    return Need(key, (), lambda of: of(key) != default, why, modes=_all_but("calibrate"))


def _endpoint(key: str) -> Need:
    why = "the limits of an episode's tokens are the endpoint's own; agent.max_new_tokens limits a turn"
    return Need(key, (), lambda of: of("evaluation.endpoint.url") is not None, why, modes=("eval",))


def _with(key: str, source: str, why: str) -> Need:
    """A setting of the data that isn't read with this ``source``. Null and false ask for nothing, and may be given."""
    return Need(
        key, ("data",), lambda of: of("data.source") == source and of(key) not in (None, False), why, switched=False
    )


def _of_making(name: str) -> Need:
    why = "experts are made with data.experts=auto, or by mode=experts; set the one, or leave it out"
    ruled = ("data.experts",)
    return Need(f"experts.{name}", ruled, lambda of: of("data.experts") != AUTO, why, switched=False)


def _of_a_teacher(name: str) -> Need:
    url = "experts.teacher.url"
    why = f"there is no teacher; set {url}, too, or leave it out"
    return Need(f"experts.teacher.{name}", (url,), lambda of: of(url) is None, why, modes=("train", "experts"))


def _without_a_teacher(name: str) -> Need:
    url, why = "experts.teacher.url", "a teacher thinks and asks for itself; leave it out, or experts.teacher.url"
    return Need(f"experts.{name}", (), lambda of: of(url) is not None, why, modes=("train", "experts"))


def _of_an_endpoint(name: str) -> Need:
    url = "evaluation.endpoint.url"
    why = f"nothing is behind an endpoint; set {url}, too, or leave it out"
    return Need(f"evaluation.endpoint.{name}", (url,), lambda of: of(url) is None, why, modes=("train", *INFERENCE))


def _of_an_exit(name: str) -> Need:
    places = tuple(f"exit.{name}" for name in _THRESHOLDS)
    why = "there is no early exit; set exit=early, exit.threshold or exit.calibration, too"
    modes = ("train", "eval", "ask")
    return Need(f"exit.{name}", ("exit", *places), lambda of: all(of(p) is None for p in places), why, modes=modes)


def _of_modes(
    key: str,
    unset: Any,
    modes: Sequence[str],
    idle: Callable[[Composed], bool] | None = None,
    *,
    taken: Sequence[str] = (),
) -> Need:
    """A setting that only ``modes`` read, and that is ``taken`` in others, too."""
    named = " and ".join(filter(None, (", ".join(modes[:-1]), modes[-1])))
    why = f"it is for mode={named}; leave it out"
    return Need(key, (), idle or (lambda of: of(key) != unset), why, modes=_all_but(*modes, *taken))


def _all_but(*modes: str) -> tuple[str, ...]:
    """Those that prepare others take any command as it is."""
    return tuple(mode for mode in MODES if mode not in (*modes, *PREPARING))


def _part_of_modes(part: str, settings: Any, modes: Sequence[str], *, taken: Sequence[str] = ()) -> Iterator[Need]:
    """All settings of a dataclass, as ``_of_modes``, and of those that are in it."""
    for f in fields(settings):
        key, unset = f"{part}.{f.name}", getattr(settings, f.name)
        if is_dataclass(unset):
            yield from _part_of_modes(key, unset, modes, taken=taken)
        else:
            yield _of_modes(key, unset, modes, taken=taken)


def _searching(key: str, ruled_by: Sequence[str], idle: Callable[[Composed], bool], why: str) -> Need:
    """A setting of the passages, which all modes read that search or build an index."""
    return Need(key, tuple(ruled_by), idle, why, switched=False, modes=SEARCHING)


def _of_bm25(name: str) -> Need:
    why = "it is of BM25, which this ranker hasn't; leave it out, or set retrieval=bm25 or hybrid"
    return _searching(
        f"retrieval.{name}", _RANKER, lambda of: of("retrieval.backend") in ("dense", "splade", "http"), why
    )


def _of_a_server(name: str) -> Need:
    why = "it is for a server that is asked; set retrieval=http retrieval.url=http://HOST:PORT, too"
    return _searching(f"retrieval.{name}", (*_RANKER, "retrieval.url"), lambda of: of("retrieval.url") is None, why)


def _of_vectors(name: str, kinds: Sequence[str]) -> tuple[Need, Need]:
    key, named = f"retrieval.{name}", " and ".join(kinds)
    return (
        _searching(
            key,
            (*_RANKER, "retrieval.vectors", "retrieval.index"),
            lambda of: _is_dense(of) and of("retrieval.vectors") not in kinds and of("retrieval.index") is None,
            f"it is for retrieval.vectors={named}; set that, too",
        ),
        _searching(
            key,
            (*_RANKER, "retrieval.index"),
            lambda of: _vectors_of_index(of) not in (None, *kinds),
            f"it is for an index of retrieval.vectors={named}, and the one that is named keeps its own otherwise; "
            "leave it out",
        ),
    )


def _is_dense(of: Composed) -> bool:
    """Whether the settings of vectors are those of dense retrieval: a ranker of the user's own may name its own so."""
    return of("retrieval.backend") in ("dense", "hybrid")


def _vectors_of_index(of: Composed) -> str | None:
    index = of("retrieval.index") if _is_dense(of) else None
    return None if index is None else vectors_of(at_home(str(index)))


def _of_building(name: str) -> Need:
    return _searching(
        f"retrieval.{name}",
        ("retrieval.index",),
        lambda of: _is_dense(of) and of("retrieval.index") is not None,
        "an index that is named says how its vectors are kept; leave it out",
    )


def _of_a_folder(name: str) -> Need:
    why = "documents of a folder are cut by it; data.corpus=FILE and an index have their passages already"
    return _searching(f"data.{name}", ("data", "data.corpus"), _no_documents, why)


def _no_documents(of: Composed) -> bool:
    corpus = of("data.corpus")
    return of("data.source") == "jsonl" and (corpus in (None, WIKI_18) or at_home(str(corpus)).is_file())


PREPARING = ("plan", "fetch", "doctor")
"""Modes that are put before the command of another one."""
TRACKING = ("train", "eval")
EVALUATING = ("train", "eval", "calibrate")
"""Those that play questions of a file, or of the world, greedily."""
EXITING = ("train", *INFERENCE)
MAKING = ("train", "experts")
SEARCHING = ("train", "plan", "eval", "calibrate", "ask", "experts", "index", "serve")
_RANKER = ("retrieval", "retrieval.backend")
WORLDS = (*OF_WORLD, *(f"data.novice.{f.name}" for f in fields(Novice)))
"""Settings that are the built-in world's alone."""
_FILES = ("revision", "eval_share", "split_seed", "require_evidence", "passage_words", "overlap_words")
_OF_EVALUATIONS = ("questions", "max_fault_share")
FILES = tuple(f"data.{name}" for name in _FILES)
"""Those that are the files' alone, and that nothing else refuses with ``data=world``."""

NEEDS = (
    *(_with(key, "jsonl", "it is of data=world, which makes its questions; leave it out") for key in WORLDS),
    *(_with(key, "world", "it is of data=jsonl; data=world makes its own questions and passages") for key in FILES),
    Need(
        "data.eval_share",
        ("data.eval_questions", "data"),
        lambda of: of("data.eval_questions") is not None,
        "data.eval_questions are what is held out; leave one of them out (data.eval_questions=null)",
        switched=False,
    ),
    *(_of_a_folder(name) for name in ("passage_words", "overlap_words")),
    _searching(
        "data.revision",
        ("data", *(f"data.{key}" for key in KEYS)),
        lambda of: of("data.source") == "jsonl" and not any("flashrag:" in str(of(f"data.{key}")) for key in KEYS),
        "it is of questions that are fetched by name, flashrag:SET/SPLIT; leave it out",
    ),
    *(_of_bm25(name) for name in ("analyser", "k1", "b")),
    *(_of_a_server(name) for name in ("dialect", "retries", "token_file")),
    _searching(
        "retrieval.rerank_depth",
        ("retrieval.reranker",),
        lambda of: of("retrieval.reranker") is None,
        "it is how much a cross-encoder reads; set retrieval.reranker=FOLDER, too",
    ),
    *map(_of_building, ("vectors", "lists")),
    *_of_vectors("beam", ("hnsw",)),
    *(need for name in ("lists", "probes") for need in _of_vectors(name, LISTED)),
    *(_of_making(f.name) for f in fields(ExpertsConfig) if f.name != "teacher"),
    *(_of_making(f"teacher.{f.name}") for f in fields(TeacherConfig)),
    *(_of_a_teacher(f.name) for f in fields(TeacherConfig) if f.name not in ("url", "model")),
    *(_without_a_teacher(name) for name in ("guess_titles", "thoughts", "answer_thoughts")),
    *(_of_an_endpoint(f.name) for f in fields(EndpointConfig) if f.name not in ("url", "model")),
    *(_of_an_exit(name) for name in ExitConfig().probing),
    *(_steps("algorithm.warm_start", f.name, "warm start") for f in fields(WarmStartConfig) if f.name != "steps"),
    *(_steps("algorithm.seeding", f.name, "seeding") for f in fields(SeedingConfig) if f.name != "steps"),
    _warm_up("algorithm.optimizer", "algorithm.steps"),
    _warm_up("algorithm.warm_start", "algorithm.warm_start.steps"),
    *(_of_a_limit(name) for name in dict.fromkeys(name for names in OF_RULES.values() for name in names)),
    *(_kl("algorithm", name) for name in ("kl_coefficient", "kl_zero_variance")),
    _kl("algorithm.seeding", "kl_coefficient"),
    Need(
        "algorithm.kl_zero_variance",
        ("pool", "algorithm.seeding.steps", "algorithm.seeding.kl"),
        _no_zero_variance,
        "the pool's rule trains on no group without variance; set pool=epoch, which does, or leave it out",
        switched=False,
    ),
    Need(
        "algorithm.reference",
        ("algorithm.kl", "algorithm.seeding.kl"),
        lambda of: (
            of("algorithm.reference") == "cpu"
            and of("algorithm.kl") == "none"
            and (of("algorithm.seeding.kl") == "none" or of("algorithm.seeding.steps") == 0)
        ),
        "there is no KL term, and so no reference; set algorithm.kl=k1, k2 or k3, too",
    ),
    Need(
        "algorithm.whole_layers",
        ("algorithm.gradient_checkpointing",),
        lambda of: (
            of("algorithm.whole_layers") != 0 and of("algorithm.gradient_checkpointing") in ("auto", "layers", "none")
        ),
        "it is part of algorithm.gradient_checkpointing=mlp, and auto chooses its own; set that, too",
        switched=False,
    ),
    Need(
        "algorithm.importance_cap",
        ("algorithm.old_logprobs",),
        lambda of: of("algorithm.importance_cap") != 0 and of("algorithm.old_logprobs") == "engine",
        "there is no weight to truncate where algorithm.old_logprobs=engine: set that to learner, or leave it out",
    ),
    Need(
        "algorithm.optimizer.exact_master",
        ("algorithm.optimizer.kind", "model.dtype"),
        _no_exact_master,
        "exact masters are for bfloat16 weights under algorithm.optimizer.kind=adamw8bit; leave it out",
        switched=False,
    ),
    Need(
        "algorithm.optimizer.shard",
        ("cluster", "cluster.learners"),
        lambda of: of("algorithm.optimizer.shard") is True and of("cluster.learners") == 1,
        "one learner has all states; it is for cluster.learners of 2 or more",
        switched=False,
    ),
    Need(
        "algorithm.optimizer.float32_gradients",
        ("cluster", "model", "model.dtype", "model.lora_rank"),
        lambda of: of("algorithm.optimizer.float32_gradients") is True and (_wide(of) or of("model.lora_rank") > 0),
        "gradients of float32 weights, as adapters are, are in float32 as they are; leave it out",
        switched=False,
    ),
    *(
        _evaluates(name, default, f"{name} is of mode=eval; {other}")
        for name, default, other in (
            ("samples", 1, "elsewhere a question is played once"),
            ("temperature", 0, "elsewhere held-out questions are played greedily"),
        )
    ),
    *(_of_modes(f"evaluation.{name}", getattr(EvalConfig(), name), EVALUATING) for name in _OF_EVALUATIONS),
    # A checkpoint is played by the command that trained it, with another mode behind it: what trains is taken there.
    *(
        _of_modes(f"evaluation.{name}", getattr(EvalConfig(), name), ("train",), taken=INFERENCE)
        for name in ("every", "saving")
    ),
    *(_calibrates(name) for name in CALIBRATING),
    *(
        _evaluates(f"endpoint.{name}", None, "a model behind an endpoint is played by mode=eval")
        for name in ("url", "model")
    ),
    Need(
        "cluster.cards",
        ("cluster",),
        lambda of: of("cluster.name") != "auto" and of("cluster.cards") != 0,
        "it is for cluster=auto; elsewhere cluster.learners and cluster.rollout_workers say how many cards there are",
        switched=False,
    ),
    # ``tracker=none`` may be said everywhere.
    _of_modes("tracker", None, TRACKING, lambda of: any(of(f"tracker.{name}") for name in TRACKERS)),
    *(_of_modes(f"tracker.{name}", False, TRACKING) for name in TRACKERS),
    *_part_of_modes("tracker", TrackerConfig(), TRACKING, taken=INFERENCE),
    *_part_of_modes("checkpoints", CheckpointConfig(), ("train",), taken=INFERENCE),
    *_part_of_modes("experts", ExpertsConfig(), MAKING, taken=INFERENCE),
    _of_modes("exit", None, EXITING, lambda of: any(of(f"exit.{name}") is not None for name in _THRESHOLDS)),
    *_part_of_modes("exit", ExitConfig(), EXITING),
    _of_modes("selectivity", None, EXITING, lambda of: any(of(f"selectivity.{f.name}") for f in _SELECTIVE)),
    *_part_of_modes("selectivity", SelectivityConfig(), EXITING),
    _of_modes("simulation", None, ("simulate",)),
    *_part_of_modes("simulation", SimulationConfig(), ("simulate",)),
    *_part_of_modes("serve", ServeConfig(), ("serve",)),
    _of_modes("question", None, ("ask",)),
    _of_modes("resume", None, ("train", *PLAYS_ON)),
    _of_modes("resume_allow_changes", False, ("train",)),
    _of_modes("run", None, ("view", "compare")),
    _of_modes("compare", None, ("view", "compare", "eval")),
    _of_modes("show", [], ("view",)),
    _of_modes("view", "page", ("view",)),
    *(_endpoint(f"agent.{name}") for name in ("max_response_tokens", "max_prompt_tokens")),
)
