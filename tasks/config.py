"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.errors import UserError, one_of
from agent.settings import PATH

NO_DEVELOPMENT = (
    "there are no development questions; set data.dev_questions=FILE, or use the same data.dev_share in "
    "training and calibration"
)


@dataclass
class Novice:
    """The built-in world's novice, whose episodes a warm start imitates. With the defaults it is laziest."""

    hop_shares: list[float] = field(default_factory=lambda: [0.74, 0.17, 0.09])
    """Proportions of 1-, 2- and 3-hop questions."""
    answers_early: float = 0.75
    """Share of its 2- and 3-hop questions that it answers with what the first search found."""
    omits_keyword: float = 0.15
    """Share of its searches that name the entity and not the relation."""
    double_checks: float = 0.0
    """Share of the questions on which it repeats its last search before it answers, though it has found everything."""

    def __post_init__(self) -> None:
        _check_hop_shares(self.hop_shares, "data.novice.hop_shares")
        for key in ("answers_early", "omits_keyword", "double_checks"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"data.novice.{key}={getattr(self, key)} must lie in [0, 1]")


@dataclass
class DataConfig:
    """Questions and corpus: the built-in ``world``, or the user's files with ``jsonl``."""

    source: str = "world"
    questions: str | None = field(default=None, metadata=PATH)
    """File of training questions (``source: jsonl``): JSONL, a JSON list or Parquet (``tasks/files.py``). Without
    ``eval_questions``, ``mode=eval`` plays all of it, less what the checkpoint's run has trained on."""
    eval_questions: str | None = field(default=None, metadata=PATH)
    """File of held-out questions; None holds out ``eval_share`` of ``questions``. ``mode=eval`` plays all of it."""
    dev_questions: str | None = field(default=None, metadata=PATH)
    """File of development questions, for ``mode=calibrate`` (``source: jsonl``)."""
    corpus: str | None = field(default=None, metadata=PATH)
    """JSONL file of passages, ``id`` and ``contents``, or ``title`` and ``text`` (``source: jsonl``)."""
    evidence_match: str = "title"
    """What questions name their supporting documents by: ``title``, compared normalised, or ``id``."""
    strict: bool = False
    """Refuse what is otherwise left out with a notice: training questions that are held out, too; questions whose
    prompt is longer than ``agent.max_prompt_tokens``; rows that are marked as unanswerable."""
    experts: str | None = field(default=None, metadata=PATH)
    """JSONL file of expert trajectories (``tasks/experts.py``) for the supervised warm start and for expert seeding
    (``source: jsonl``; the world has experts of its own). ``auto`` makes them of the training questions before the
    start, as ``mode=experts`` does with the settings of ``experts``."""
    eval_share: float = 0.2
    dev_share: float = 0.0
    """Share of the training questions that is held back for ``mode=calibrate`` and never trained on (``source:
    jsonl``). Use the same value in training and in calibration."""
    world_seed: int = 0
    """Seed of the built-in world: its entities, relations and questions."""
    train_questions: int = 1440
    """Training questions of the built-in world."""
    hop_shares: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    """Proportions of 1-, 2- and 3-hop questions among them."""
    eval_questions_per_hop: int = 150
    dev_questions_per_hop: int = 300
    """Development questions of the world, for ``mode=calibrate``: those that follow the held-out ones."""
    demonstrations: int = 6000
    """Expert trajectories for the warm start, from eight other worlds. A tiny model memorises 2,000."""
    novice: Novice = field(default_factory=Novice)

    def __post_init__(self) -> None:
        one_of(self.source, ("world", "jsonl"), "data")
        one_of(self.evidence_match, ("title", "id"), "data.evidence_match")
        if self.source == "jsonl":
            if not self.corpus:
                missing = "data.questions=FILE and " if not (self.questions or self.eval_questions) else ""
                raise UserError(f"data=jsonl needs {missing}data.corpus=FILE")
        elif self.experts is not None:
            raise UserError(
                "data.experts: data=world makes its own expert trajectories; leave it out, or use data=jsonl"
            )
        if not 0 < self.eval_share < 1:
            raise UserError(f"data.eval_share={self.eval_share} must lie in (0, 1)")
        if not 0 <= self.dev_share < 1:
            raise UserError(f"data.dev_share={self.dev_share} must lie in [0, 1)")
        if self.source == "world" and (self.dev_share or self.dev_questions is not None):
            raise UserError(
                "data.dev_share and data.dev_questions are for data=jsonl; data=world makes its own development "
                "questions (data.dev_questions_per_hop)"
            )
        if self.dev_share and self.dev_questions is not None:
            raise UserError("data.dev_share and data.dev_questions both give development questions; leave one out")
        for key in ("train_questions", "eval_questions_per_hop", "dev_questions_per_hop", "demonstrations"):
            if getattr(self, key) < 1:
                raise UserError(f"data.{key}={getattr(self, key)} must be at least 1")
        _check_hop_shares(self.hop_shares, "data.hop_shares")


def _check_hop_shares(shares: list[float], key: str) -> None:
    if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
        raise UserError(f"{key}={shares} must be three numbers >= 0, not all 0")
