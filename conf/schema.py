"""The whole configuration as one typed tree. ``DictConfig`` ends here.

Each room owns the dataclass of its settings and their defaults; a YAML file says only what differs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent.config import AgentConfig, ExitConfig, GroupConfig, RewardConfig, SearchLimitConfig, SelectivityConfig
from agent.errors import UserError, one_of, shortened
from agent.formats.tags import tags_of
from agent.inference.infer import Inference
from agent.pool.rules.base import PoolRule
from agent.pool.search_limits import SearchLimits
from agent.prompts import read_once
from agent.rewards.scorer import Scorer
from agent.settings import KIND, PATH, SENTENCE, bounded, check_bounds
from agent.simulation.policies import SimulationConfig
from agent.strategies import STRATEGIES
from conf import of_files
from conf.evaluation import EvalConfig
from conf.searches import check_searches
from conf.topology import ClusterConfig
from conf.tree import check_tree
from learner.config import AlgorithmConfig, ModelConfig
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import own_settings, settings_of
from retrieval_service.server.config import ServeConfig
from retrieval_service.wikipedia import AUTO as FITTING
from retrieval_service.wikipedia import fitting
from tasks.config import NO_DEVELOPMENT, DataConfig
from tasks.making.config import AUTO, ExpertsConfig, check_played
from tracking.config import ReportConfig, TrackerConfig
from tracking.experiments.sweep import folder_name

IF_ANY = "if_any"
"""``resume=if_any``."""
MODES = (
    "train",
    "eval",
    "calibrate",
    "ask",
    "experts",
    "index",
    "fetch",
    "serve",
    "compare",
    "plan",
    "doctor",
    "simulate",
    "report",
    "view",
)
VIEWS = ("page", "terminal")
INFERENCE = ("eval", "calibrate", "ask")
"""Those that play a checkpoint."""
PLAYS_ON = ("eval", "calibrate")
"""Those that go on in their folder with the questions that are missing."""
OF_A_CHECKPOINT = (*INFERENCE, "fetch")
"""Those that have a use for one."""


@dataclass
class CheckpointConfig:
    """When the run is saved; a last checkpoint is always written."""

    every: int = bounded(20, "at least 0")
    """Steps between checkpoints; 0: none by steps."""
    every_minutes: float = bounded(20.0, "at least 0")
    """Minutes after which the next release is saved, however few steps they were; 0: by steps alone."""
    keep: int = bounded(2, "at least 0")
    """Checkpoints that stay, those written last; 0 keeps all."""
    best: bool = True
    """Also save after an evaluation with the highest held-out EM so far; ``checkpoints/best`` leads there, and it
    stays."""

    def __post_init__(self) -> None:
        check_bounds(self, "checkpoints")


@dataclass
class RunConfig:
    """Everything that a run is told."""

    mode: str = "train"
    seed: int = bounded(0, "in [0, 9223372036854775807]")
    debug: bool = False
    """Show tracebacks and the actors' output."""
    resume: str | None = field(default=None, metadata=PATH)
    """A run's folder or a checkpoint's; ``auto``, the newest run of this experiment under ``outputs/``; ``if_any``, the
    run in ``output_dir`` if it has a checkpoint, else a new one: one command starts it and goes on with it. In
    ``mode=eval`` and ``calibrate`` only ``if_any``: what is played in ``output_dir``, if there is something."""
    resume_allow_changes: bool = False
    """Go on although settings or data have changed that decide what is learned; its questions have to be the same."""
    checkpoint: str | None = field(default=None, metadata=PATH)
    """Checkpoint to evaluate, to calibrate or to ask; a checkpoint's folder or a model's."""
    question: str | None = field(default=None, metadata=SENTENCE)
    """The question of ``mode=ask``."""
    run: str | None = field(default=None, metadata=PATH)
    """Folder of the run that ``mode=view`` shows, or of the evaluation that ``mode=compare`` compares."""
    compare: str | None = field(default=None, metadata=PATH)
    """Folder of another run or evaluation to compare it with: in ``mode=view``, ``mode=compare`` and ``mode=eval``."""
    show: list[str] = field(default_factory=list)
    """Ids of questions whose episodes ``mode=view`` takes in before all others."""
    view: str = "page"
    """How ``mode=view`` shows a run: ``page`` writes report.html, ``terminal`` shows its episodes in the console."""
    cache_dir: str = field(default="~/.cache/slingshot", metadata=PATH)
    """Indexes and warm starts that later runs can reuse."""
    output_dir: str = field(default="outputs", metadata=PATH)
    """The run's folder; set by Hydra."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    pool: PoolRule = MISSING
    group: GroupConfig = field(default_factory=GroupConfig)
    search_limit: SearchLimitConfig = field(default_factory=SearchLimitConfig)
    exit: ExitConfig = field(default_factory=ExitConfig)
    selectivity: SelectivityConfig = field(default_factory=SelectivityConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        check_bounds(self, "")
        one_of(self.mode, MODES, "mode")
        one_of(self.view, VIEWS, "view")
        if self.model.dtype == "auto":
            self.model = replace(self.model, dtype="float32" if self.cluster.device == "cpu" else "bfloat16")
        self.algorithm.check_old_logprobs(self.model.dtype)
        self.agent.prompt = read_once(self.agent)  # knows its prompts
        one_of(self.group.strategy, STRATEGIES, "group.strategy")
        scorer = Scorer(self.reward, tags_of(self.agent))  # knows its outcomes and gates
        if scorer.groupwise and self.group.strategy == "continuation":
            raise UserError(
                f"reward.outcome={self.reward.outcome} judges the trajectories of a group by one another, and "
                "group=continuation compares two groups; use group=plain, or a function of (question, trajectory)"
            )
        SearchLimits(self.search_limit, self.agent.max_searches)  # knows its rules and what fits the agent
        check_searches(self.agent, self.reward, self.search_limit, self.selectivity)
        if self.mode not in INFERENCE:
            self.cluster.check_chosen("learners")
        if self.cluster.colocated and self.pool.max_staleness:
            raise UserError(
                f"cluster.colocated=true needs pool.max_staleness=0, not {self.pool.max_staleness}: no episode is "
                "played while the learner learns"
            )
        if type(self.retrieval) is not settings_of(self.retrieval.backend):
            raise UserError(
                f"retrieval.backend={self.retrieval.backend} has settings of its own: write "
                f"retrieval={self.retrieval.backend}, whose file has `defaults: [{self.retrieval.backend}_settings]`"
            )
        if self.data.source == "jsonl":
            self._check_files()
        if self.retrieval.prebuilt == FITTING:
            self.retrieval = replace(self.retrieval, prebuilt=fitting(self.data.named).name)
        self._check_mode()

    def _check_mode(self) -> None:
        """What the mode needs, and what it has no use for."""
        if self.checkpoint and self.mode not in OF_A_CHECKPOINT:
            raise UserError(
                f"checkpoint={self.checkpoint} is for mode=eval, ask, calibrate and fetch; resume=FOLDER goes on with "
                f"a run, and model.path={self.checkpoint} is a model to begin with"
            )
        if self.mode == "train":
            self._check_experts()
            self._check_evaluation()
        if self.mode == "experts" or (self.mode == "train" and self.data.experts == AUTO):
            self.experts.teacher.check()
        if self.mode == "calibrate" and self.exit.on:
            raise UserError("mode=calibrate finds the threshold: leave exit.threshold and exit.calibration out")
        if self.mode == "eval" and self.exit.calibration is not None and self.evaluation.temperature:
            raise UserError(
                f"exit.calibration={self.exit.calibration} holds for greedy episodes, as mode=calibrate plays them: "
                f"set evaluation.temperature=0, not {self.evaluation.temperature:g}, or exit.threshold"
            )
        if self.mode == "index" and self.retrieval.url is not None:
            raise UserError(
                f"mode=index builds an index, and retrieval={self.retrieval.backend} has none; use retrieval=bm25"
            )
        if self.mode == "index" and (there := self.retrieval.prebuilt or self.retrieval.index):
            raise UserError(
                f"mode=index builds an index, and {there} is one already: leave retrieval.prebuilt and retrieval.index "
                "out (mode=fetch brings a prebuilt one)"
            )
        if self.mode == "ask" and not (self.question or "").strip():
            raise UserError('mode=ask needs question="…"')
        if self.mode == "eval" and (self.evaluation.endpoint.url is not None or self.evaluation.endpoint.model):
            self._check_endpoint()
        elif self.mode in INFERENCE and not self.checkpoint:
            raise UserError(
                f"mode={self.mode} needs checkpoint=FOLDER (a run's checkpoints/step-…, a model's folder, or a model's "
                "name on the hub)"
            )
        if self.mode == "report" and not self.report.sweep:
            raise UserError("mode=report needs report.sweep=FOLDER (a sweep's, multirun/…)")
        if self.mode in PLAYS_ON and self.resume not in (None, IF_ANY):
            raise UserError(f"mode={self.mode} resume={self.resume}: goes on with resume={IF_ANY} output_dir=FOLDER")
        if self.mode == "compare" and not (self.run and self.compare):
            raise UserError("mode=compare needs run=FOLDER and compare=FOLDER (of two evaluations, outputs/…)")
        if self.mode == "view" and not self.run:
            raise UserError("mode=view needs run=FOLDER (a run's, outputs/…)")
        if self.mode == "view" and self.view == "terminal" and self.compare:
            raise UserError("view=terminal shows one run; compare=FOLDER is for the page: leave one of them out")

    def _check_files(self) -> None:
        """Each mode needs other files of the user's; passages all that have to do with data."""
        data = self.data
        self._check_corpus()
        self._check_passages()
        if self.mode in ("train", "experts") and data.questions is None:
            given = f"{data.eval_questions} is for evaluation alone (mode=eval)"
            only = f"{given}; mode={self.mode} needs questions to train on, " if data.eval_questions else ""
            raise UserError(f"{only or 'data=jsonl needs '}data.questions=FILE")
        if self.mode == "eval" and data.questions is None and data.eval_questions is None:
            raise UserError("mode=eval data=jsonl needs data.eval_questions=FILE")
        if self.mode == "calibrate" and data.dev_questions is None:
            if not data.dev_share:
                raise UserError(NO_DEVELOPMENT)
            if data.questions is None:
                raise UserError(f"data.dev_share={data.dev_share} is a share of data.questions=FILE, which is missing")

    def _check_corpus(self) -> None:
        data = self.data
        if data.corpus:
            return
        if self.mode == "index":
            raise UserError("mode=index builds the index of data.corpus=FILE, or data.corpus=wiki-18; name one")
        if not self.retrieval.elsewhere:
            if data.named:
                raise UserError(
                    f"{', '.join(data.named)} are questions without passages: set retrieval=wikipedia or "
                    "data.corpus=FILE"
                )
            played = self.mode not in ("ask", "serve")
            missing = "data.questions=FILE and " if played and not (data.questions or data.eval_questions) else ""
            raise UserError(f"data=jsonl needs {missing}data.corpus=FILE, or retrieval=wikipedia")
        if self.mode == "train" and self.model.path is None:
            raise UserError(
                f"model={self.model.name} is made from scratch, with a tokenizer that is trained on data.corpus=FILE, "
                "which is missing; take a pretrained model (model=smollm2-135m)"
            )
        if self._titled:
            raise UserError("data.evidence_match=id: experts are made with the titles of data.corpus=FILE; name it")

    def _check_passages(self) -> None:
        """A corpus beside an index or a server is read for its words and titles alone; nobody would search it."""
        data, place = self.data, self.retrieval.place
        scratch = self.mode in ("train", "plan") and self.model.path is None
        # A run goes on as it was asked for; mode=index says of a place what it is there.
        others = bool(self.resume) or self.mode in ("fetch", "index")
        if data.corpus and place and not (scratch or self._titled or others):
            raise UserError(
                f"data.corpus={data.corpus} and {self.retrieval.place_key}={place} both say where passages come from; "
                "leave one out (retrieval=bm25 searches the corpus)"
            )

    @property
    def _titled(self) -> bool:
        """Whether experts are made of documents that are named by id: their titles are taken from the corpus."""
        return self.data.evidence_match == "id" and (self.mode == "experts" or self.data.experts == AUTO)

    def _check_endpoint(self) -> None:
        self.evaluation.endpoint.check()
        check_played(self.agent, "evaluation.endpoint")
        if self.checkpoint:
            raise UserError("checkpoint and evaluation.endpoint.url both say what is evaluated; leave one out")
        if self.exit.on or self.selectivity.on:
            raise UserError("evaluation.endpoint plays full episodes: leave exit and selectivity out")

    def _check_experts(self) -> None:
        seeding, experts = self.algorithm.seeding.steps, self.data.experts
        played = seeding * self.algorithm.seeding.experts * self.pool.group_size
        if 0 < self.algorithm.rollout_budget <= played:
            raise UserError(
                f"algorithm.rollout_budget={self.algorithm.rollout_budget} is used up by the expert seeding, which "
                f"plays {played} trajectories; raise it, or lower algorithm.seeding.steps"
            )
        if experts is not None and not (seeding or self.algorithm.warm_start.steps):
            raise UserError(
                "data.experts is given, but nothing uses it; set algorithm.seeding.steps or algorithm.warm_start.steps"
            )
        if seeding and experts is None and self.data.source != "world":
            raise UserError(f"algorithm.seeding.steps={seeding} needs expert trajectories: data.experts=FILE or auto")
        imitation = self.algorithm.warm_start.steps
        if not imitation or experts is not None or self.data.source == "world" or self.resume not in (None, IF_ANY):
            return
        if self.model.path is None:
            raise UserError(
                f"model={self.model.name} is made from scratch, and data=jsonl brings nothing that it could learn to "
                "write from: take a pretrained model (model=smollm2-135m, or model.path=FOLDER) or give "
                "data.experts=FILE; algorithm.warm_start.steps=0 trains it from random weights"
            )
        raise UserError(
            f"algorithm.warm_start.steps={imitation} needs expert trajectories: data.experts=FILE or auto; or set "
            "algorithm.warm_start.steps=0"
        )

    def _check_evaluation(self) -> None:
        """What only inference uses must be asked for, and be at hand, in a training run."""
        given = self.exit.on or self.selectivity.on
        if given and not self.evaluation.saving:
            raise UserError(
                "exit and selectivity are for mode=eval and mode=ask; a training run's evaluations use them with "
                "evaluation.saving=true"
            )
        if self.evaluation.saving and not given:
            raise UserError("evaluation.saving=true needs something to use: exit=early or selectivity=query")
        if self.exit.calibration is not None:
            raise UserError("exit.calibration holds for one checkpoint; a training run needs exit.threshold")

    @property
    def evaluation_inference(self) -> Inference:
        """How a training run's evaluations play."""
        if not self.evaluation.saving:
            return Inference()
        return Inference(exit=self.exit if self.exit.on else None, selectivity=self.selectivity)

    @property
    def cache(self) -> Path:
        """Raises ``UserError`` without a home for it."""
        try:
            return Path(self.cache_dir).expanduser()
        except RuntimeError as error:
            raise UserError(
                f"cache_dir={self.cache_dir}: the home folder is unknown here; set cache_dir=FOLDER"
            ) from error


def register() -> None:
    """Puts the schema where Hydra finds it: ``run_schema`` at the root, and what files of code bring (``of_files.py``).

    And the two resolvers that ``config.yaml`` names a sweep's folders with.
    """
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    of_files.store()
    OmegaConf.register_new_resolver("either", lambda one, other: one or other, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def typed(config: DictConfig) -> RunConfig:
    """The typed configuration of a composed one. Raises ``UserError`` for a wrong key, type or value."""
    if OmegaConf.get_type(config, "pool") is PoolRule:
        raise UserError(of_files.NO_RULE)
    check_tree(config)
    model, played = config.model, config.checkpoint or (config.mode != "fetch" and config.evaluation.endpoint.model)
    if config.mode in OF_A_CHECKPOINT and played and model.path is None and model.architecture is None:
        config = config.copy()
        config.model.path = played  # in a sweep, each job's own
    try:
        _check_own(config)
        run = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise UserError(where + str(error).splitlines()[0]) from error
    if not isinstance(run, RunConfig):
        raise TypeError(f"the composed configuration is a {type(run).__name__}, not a RunConfig")
    return run


def _check_own(config: DictConfig) -> None:
    """Raises ``UserError`` for what the settings of a rule, or a ranker, of the user's own raise of what is given."""
    for group, name in (("pool", config.pool.name), ("retrieval", config.retrieval.backend)):
        try:
            OmegaConf.to_object(config[group])
        except (UserError, OmegaConfBaseException):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {shortened(error)}"
            raise UserError(f"{group}={name}: its settings can't be made ({what})") from error


def taken_as(kind: Any = RunConfig, prefix: str = "") -> dict[str, str]:
    """The settings that are taken as they are typed, by dotted key, and what each is (``agent/settings.py``)."""
    found: dict[str, str] = {}
    for f in fields(kind):
        if KIND in f.metadata:
            found[f"{prefix}{f.name}"] = f.metadata[KIND]
        elif f.default_factory is not dataclasses.MISSING and is_dataclass(part := f.default_factory()):
            found |= taken_as(part, f"{prefix}{f.name}.")
    if kind is RunConfig:
        for settings in own_settings().values():
            found |= taken_as(settings, "retrieval.")
    return found
