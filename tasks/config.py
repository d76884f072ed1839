"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.errors import UserError, one_of
from agent.settings import PATH, TEXT, bounded, check_bounds
from tasks.paths import KEYS, files_of, is_named

NO_DEVELOPMENT = (
    "there are no development questions; set data.dev_questions=FILE, or use the same data.dev_share in "
    "training and calibration"
)


@dataclass
class Novice:
    """The built-in world's novice, whose episodes a warm start imitates. By default it is lazy."""

    hop_shares: list[float] = bounded([0.74, 0.17, 0.09], "at least 0")
    """Proportions of 1-, 2- and 3-hop questions."""
    answers_early: float = bounded(0.75, "in [0, 1]")
    """Share of its 2- and 3-hop questions that it answers with what the first search found."""
    omits_keyword: float = bounded(0.15, "in [0, 1]")
    """Share of its searches that name the entity and not the relation."""
    double_checks: float = bounded(0.0, "in [0, 1]")
    """Share of the questions on which it repeats its last search before it answers, though it has found everything."""

    def __post_init__(self) -> None:
        check_bounds(self, "data.novice")
        check_three(self.hop_shares, "data.novice.hop_shares")


@dataclass
class DataConfig:
    """Questions and corpus: the built-in ``world``, or the user's files with ``jsonl``."""

    source: str = "world"
    questions: str | None = field(default=None, metadata=PATH)
    """File of training questions (``source: jsonl``): JSONL, a JSON list, CSV, TSV or Parquet (``tasks/files.py``);
    several, ``[A,B]`` (``tasks/several.py``); or ``flashrag:SET/SPLIT``, which is fetched (``tasks/named.py``). Without
    ``eval_questions``, ``mode=eval`` plays all of it, less what the checkpoint's run has trained on."""
    revision: str = field(default="main", metadata=TEXT)
    """Of the hub's repository that ``flashrag:SET/SPLIT`` is fetched from (``tasks/named.py``): a branch, or a commit.
    What a branch was when it was fetched stays."""
    shares: list[float] = bounded([], "above 0")
    """Of several files of ``questions`` how much each is of what is used of them: ``[0.7,0.3]``. The one that is
    shortest for its share is used whole. Empty takes all of all."""
    eval_questions: str | None = field(default=None, metadata=PATH)
    """File of held-out questions, or several; None holds out ``eval_share`` of ``questions``. ``mode=eval`` plays all
    of them."""
    dev_questions: str | None = field(default=None, metadata=PATH)
    """File of development questions, for ``mode=calibrate`` (``source: jsonl``)."""
    corpus: str | None = field(default=None, metadata=PATH)
    """File of passages in JSON or Parquet, ``id`` and ``contents``, or ``title`` and ``text`` (``source: jsonl``); a
    folder of documents (``retrieval_service/documents``); or ``wiki-18``, which is fetched (``tasks/named.py``). Not
    needed with an index that is named, or a server."""
    passage_words: int = bounded(120, "at least 10")
    """Most words of a passage that is cut out of a document of a folder (``retrieval_service/documents/chunks.py``)."""
    overlap_words: int = bounded(30, "at least 0")
    """Words at its beginning that are the last ones of the passage before."""
    evidence_match: str = "title"
    """What questions name their supporting documents by: ``title``, compared normalised, or ``id``."""
    require_evidence: bool = False
    """Leave out questions that name supporting documents which the corpus lacks. They are counted in any case."""
    strict: bool = False
    """Refuse what is otherwise left out with a notice: training questions that are held out, too; questions whose
    prompt is longer than ``agent.max_prompt_tokens``; rows that are marked as unanswerable."""
    experts: str | None = field(default=None, metadata=PATH)
    """JSONL file of expert trajectories (``tasks/experts.py``) for the supervised warm start and for expert seeding
    (``source: jsonl``; the world has experts of its own). ``auto`` makes them of the training questions before the
    start, as ``mode=experts`` does with the settings of ``experts``: this key says which experts are used, those say
    how they are made."""
    eval_share: float = bounded(0.2, "in (0, 1)")
    """Share of the questions that is held out for evaluation where no ``eval_questions`` are given."""
    dev_share: float = bounded(0.0, "in [0, 1)")
    """Share of the training questions that is held back for ``mode=calibrate`` and never trained on (``source:
    jsonl``). Use the same value in training and in calibration."""
    split_seed: int | None = bounded(None, "in [0, 9223372036854775807]")
    """Seed of what ``eval_share``, ``dev_share`` and ``shares`` choose of the questions. None: the run's seed; in
    ``mode=eval`` and ``calibrate`` that of the run which wrote the checkpoint."""
    world_seed: int = bounded(0, "in [0, 9223372036854775807]")
    """Seed of the built-in world: its entities, relations and questions."""
    train_questions: int = bounded(1440, "at least 1")
    """Training questions of the built-in world."""
    hop_shares: list[float] = bounded([1.0, 1.0, 1.0], "at least 0")
    """Proportions of 1-, 2- and 3-hop questions among them."""
    eval_questions_per_hop: int = bounded(150, "at least 1")
    dev_questions_per_hop: int = bounded(300, "at least 1")
    """Development questions of the world, for ``mode=calibrate``: those that follow the held-out ones."""
    demonstrations: int = bounded(6000, "at least 1")
    """Expert trajectories for the warm start, from eight other worlds. A tiny model memorises 2,000."""
    novice: Novice = field(default_factory=Novice)

    def __post_init__(self) -> None:
        check_bounds(self, "data")
        one_of(self.source, ("world", "jsonl"), "data")
        one_of(self.evidence_match, ("title", "id"), "data.evidence_match")
        given = (key for key in ("questions", "eval_questions", "corpus") if getattr(self, key) is not None)
        if self.source == "world" and (key := next(given, None)):
            raise UserError(f"data.{key} is for data=jsonl; data=world makes its own questions and passages")
        if self.source == "world" and self.experts is not None:
            raise UserError(
                "data.experts: data=world makes its own expert trajectories; leave it out, or use data=jsonl"
            )
        if self.source == "world" and (self.dev_share or self.dev_questions is not None):
            raise UserError(
                "data.dev_share and data.dev_questions are for data=jsonl; data=world makes its own development "
                "questions (data.dev_questions_per_hop)"
            )
        self._check_shares()
        if self.overlap_words >= self.passage_words:
            raise UserError(
                f"data.overlap_words={self.overlap_words} must be below data.passage_words={self.passage_words}"
            )
        if self.dev_share and self.dev_questions is not None:
            raise UserError("data.dev_share and data.dev_questions both give development questions; leave one out")
        check_three(self.hop_shares, "data.hop_shares")

    @property
    def named(self) -> tuple[str, ...]:
        """The named sets among the questions; none where a file of the user's is among them."""
        files = [f for key in KEYS if (value := getattr(self, key)) for f in files_of(value, f"data.{key}")]
        return tuple(files) if all(map(is_named, files)) else ()

    def _check_shares(self) -> None:
        if not self.shares:
            return
        files = files_of(self.questions, "data.questions") if self.questions else ()
        if len(files) != len(self.shares):
            raise UserError(
                f"data.shares={self.shares} needs as many files in data.questions=[A,B], which names {len(files)}"
            )


def check_three(shares: list[float], key: str) -> None:
    """Raises ``UserError`` unless these are proportions of three parts."""
    if len(shares) != 3 or sum(shares) <= 0:
        raise UserError(f"{key}={shares} must be three numbers, not all 0")
