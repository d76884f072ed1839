"""The vocabulary: what flows through the system, one frozen type per stage.

    Question ── play ──► Trajectory ── score ──► ScoredTrajectory ── K of them ──► Group

Each record checks itself when it is made, so that a wrong mask or a missing version fails where
it was produced and not three actors later. Nothing is filled in afterwards: a later stage is a
later type. Token arrays cover the *response* (all that follows the prompt); ``R`` is its length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

MAX_REWARD = 1.0
"""The most that a trajectory can earn; an expert's is worth exactly this."""

SEARCH = "search"
"""The name of the search tool, whose calls are counted as searches."""

NO_VERSION = -1
"""Policy version of a token that the policy did not sample (an observation, or an expert's action)."""


class StopReason(StrEnum):
    """Why an episode ended. ``is_fault`` separates what the policy did from what broke."""

    ANSWERED = "answered"
    """The policy closed an answer tag, or, in a format in which that is an answer (``tools``), called nothing."""
    NO_ACTION = "no_action"
    """The policy ended its turn (end-of-sequence) with neither a search nor an answer."""
    MALFORMED = "malformed"
    """The policy closed an action it never opened, or searched for nothing."""
    TURN_TOKENS = "turn_tokens"
    """The turn's token limit was reached before an action was closed."""
    RESPONSE_TOKENS = "response_tokens"
    """The response (actions and observations together) reached its token limit."""
    SEARCH_LIMIT = "search_limit"
    """The policy asked for another search after the notice that none are left."""
    EARLY_EXIT = "early_exit"
    """At inference: a probe answer was confident enough, and is the answer (``agent/inference/early_exit.py``)."""
    RETRIEVAL_FAILED = "retrieval_failed"
    """Fault: a search, or an ``open``, failed or timed out in the retrieval."""
    TOOL_FAILED = "tool_failed"
    """Fault: a tool failed by itself, not by the retrieval."""
    GENERATION_FAILED = "generation_failed"
    """Fault: the engine failed, or its token stream ended without a finish reason."""
    REWARD_FAILED = "reward_failed"
    """Fault: the episode is whole, and its outcome can't be told (a judge that didn't answer)."""

    @property
    def is_fault(self) -> bool:
        """A fault says nothing about the policy: its trajectory is excluded from the group."""
        return self.is_selective or self is StopReason.GENERATION_FAILED

    @property
    def is_selective(self) -> bool:
        """A fault that only strikes an episode that acts, or that answers: a judge is asked of an answer alone. Those
        that are left of its group are no fair sample."""
        return self.is_tool_failure or self is StopReason.REWARD_FAILED

    @property
    def is_tool_failure(self) -> bool:
        """A search or a tool failed, which may answer again later."""
        return self in (StopReason.RETRIEVAL_FAILED, StopReason.TOOL_FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One training or evaluation item.

    >>> Question(id="q1", text="Who wrote Emma?", golden_answers=("Jane Austen",)).supporting
    ()
    """

    id: str
    text: str
    golden_answers: tuple[str, ...]
    supporting: tuple[str, ...] = ()
    """Names of the supporting documents; empty when they are not known."""
    evidence_match: str = "title"
    """What they are named by, and found by: ``title`` or ``id``."""
    kind: str = ""
    """Slice that evaluations report on its own, such as ``2-hop`` or ``bridge``."""
    needed: tuple[str, ...] = ()
    """Where all of several answers are needed: those, which the golden answers name together."""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a question needs an id")
        if not self.text.strip():
            raise ValueError(f"question {self.id}: the text is empty")
        if not self.golden_answers or not all(a.strip() for a in self.golden_answers):
            raise ValueError(f"question {self.id}: needs at least one non-empty golden answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A document as the retriever returns it; ``title`` may be empty, ``id`` never is."""

    id: str
    title: str
    text: str
    score: float | None = None
    """None where nobody tells one: a document that is opened, or the passage of a server that gives none."""


def document_name(passage_id: str, title: str) -> str:
    """What the document of a passage is called: by its title, or without one by its id before the last ``#``."""
    return title or passage_id.rpartition("#")[0] or passage_id


class Finish(StrEnum):
    """Why the engine stopped generating."""

    STOP = "stop"
    """A stop string or the end-of-sequence token."""
    LENGTH = "length"
    """``max_new_tokens``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What the engine sampled in one call: ``n`` tokens, each with the version that sampled it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each sampled token under the engine's policy, at the sampling temperature."""
    versions: tuple[int, ...]
    finish: Finish
    full: bool = False
    """Whether an engine's context ended it, whose length the engine alone knows."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if len(self.logprobs) != n or len(self.versions) != n:
            raise ValueError(
                f"completion of {n} tokens with {len(self.logprobs)} log-probabilities "
                f"and {len(self.versions)} versions"
            )
        if not all(map(math.isfinite, self.logprobs)):
            raise ValueError("a sampled token has a log-probability that isn't finite")
        if any(v < 0 for v in self.versions):
            raise ValueError("every sampled token needs the policy version that sampled it")


class Repeat(StrEnum):
    """What a search would have repeated, so that a short notice answered it (query selectivity, at inference)."""

    QUERY = "query"
    """An earlier query, normalised alike: the retriever wasn't asked."""
    EVIDENCE = "evidence"
    """Passages that had all been shown: the retriever was asked, and nothing shown again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a tool by the policy, and what became of it."""

    tool: str
    argument: str
    """What it was called with: a search's query; JSON where a tool takes several arguments."""
    document_ids: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    refused: bool = False
    """It came after the tool's limit: what answers it, if anything, is the notice that none is left."""
    repeat: Repeat | None = None
    """A notice that the search repeats what is there answered it."""

    def __post_init__(self) -> None:
        if len(self.document_ids) != len(self.titles):
            raise ValueError("a call needs one title per document id")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One action of the policy and the observation that answered it, as spans of the response.

    ``[action_start, action_end)`` are the policy's tokens, ``[action_end, observation_end)`` the
    environment's. The last turn of an episode has an empty observation, unless the engine failed
    or an early exit ended it after that.
    """

    action_start: int
    action_end: int
    observation_end: int
    text: str
    """The action as text, for people and metrics; never encoded again."""
    answer: str | None = None
    calls: tuple[Call, ...] = ()
    """What the turn asks of tools, in the order in which it is answered."""

    def __post_init__(self) -> None:
        if not 0 <= self.action_start <= self.action_end <= self.observation_end:
            raise ValueError(f"turn spans out of order: {self.action_start}, {self.action_end}, {self.observation_end}")

    @property
    def observed(self) -> bool:
        """Whether the environment answered the turn, be it with a notice."""
        return self.observation_end > self.action_end

    @property
    def queries(self) -> tuple[str, ...]:
        """What the turn searches for."""
        return tuple(call.argument for call in self.calls if call.tool == SEARCH)

    @property
    def query(self) -> str | None:
        """The first of ``queries``, or None."""
        return next(iter(self.queries), None)

    @property
    def answered(self) -> tuple[Call, ...]:
        """The calls that their tool was asked for and the environment answered."""
        asked = (c for c in self.calls if not c.refused and c.repeat is not Repeat.QUERY)
        return tuple(asked) if self.observed else ()

    @property
    def searches(self) -> int:
        """How many of these are searches."""
        return sum(call.tool == SEARCH for call in self.answered)

    @property
    def document_ids(self) -> tuple[str, ...]:
        """What all calls of the turn retrieved."""
        return tuple(d for call in self.calls for d in call.document_ids)

    @property
    def titles(self) -> tuple[str, ...]:
        """The titles of ``document_ids``."""
        return tuple(t for call in self.calls for t in call.titles)

    @property
    def refused(self) -> bool:
        """Whether a call came after its tool's limit."""
        return any(call.refused for call in self.calls)


def _frozen(array: npt.NDArray, dtype: type) -> npt.NDArray:
    """``array`` as a read-only 1-D array of ``dtype``."""
    out: npt.NDArray = np.asarray(array, dtype=dtype)
    if out.ndim != 1:
        raise ValueError(f"expected one dimension, got shape {out.shape}")
    if out.flags.writeable:
        out = out.copy()
        out.flags.writeable = False
    return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trajectory:
    """One attempt at a question, token for token as the policy saw and produced it.

    A response of two action tokens, one observation token and one action token has
    ``action_mask == [True, True, False, True]``, ``logprobs[2] == 0`` and ``versions[2] == -1``.

    An expert's trajectory was written, not sampled: its action tokens have no version and no
    log-probability, and the learner takes its own as the old ones.

    Raises ``ValueError`` when the arrays differ in length, when an action token lacks a version (or an
    expert's has one), or when the turns do not tile the response with mask-true actions and mask-false
    observations.
    """

    question_id: str
    prompt_ids: IntArray
    """(P,) tokens of the prompt."""
    token_ids: IntArray
    """(R,) response tokens, actions and observations."""
    action_mask: BoolArray
    """(R,) true where the policy (or the expert) acts: the only tokens that are trained."""
    logprobs: FloatArray
    """(R,) the engine's log-probabilities; 0 at observation tokens, and everywhere in an expert's trajectory."""
    versions: IntArray
    """(R,) policy version that sampled the token; ``NO_VERSION`` at observation tokens, and everywhere in an expert's
    trajectory."""
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    fault: str = ""
    """What broke, when ``stop_reason.is_fault``."""
    expert: bool = False
    """No engine sampled it (DAVID-GRPO's expert seeding): it costs no rollout and has no staleness."""
    inherited: int = 0
    """Leading response tokens that were taken over from another trajectory (DAVID-GRPO's continuation): trained
    like the rest, but generated once."""

    def __post_init__(self) -> None:
        for name, dtype in (
            ("prompt_ids", np.int32),
            ("token_ids", np.int32),
            ("action_mask", np.bool_),
            ("logprobs", np.float32),
            ("versions", np.int32),
        ):
            object.__setattr__(self, name, _frozen(getattr(self, name), dtype))
        n = len(self.token_ids)
        if not len(self.action_mask) == len(self.logprobs) == len(self.versions) == n:
            raise ValueError(
                f"trajectory of {self.question_id}: {n} tokens, mask {len(self.action_mask)}, "
                f"log-probabilities {len(self.logprobs)}, versions {len(self.versions)}"
            )
        if len(self.prompt_ids) == 0:
            raise ValueError(f"trajectory of {self.question_id}: empty prompt")
        if self.expert:
            if (self.versions != NO_VERSION).any() or self.logprobs.any():
                raise ValueError(
                    f"trajectory of {self.question_id}: an expert has neither versions nor log-probabilities"
                )
        elif not np.array_equal(self.versions >= 0, self.action_mask):
            raise ValueError(f"trajectory of {self.question_id}: versions must be >= 0 exactly where the mask is true")
        if self.inherited not in (0, *(turn.observation_end for turn in self.turns)):
            raise ValueError(f"trajectory of {self.question_id}: {self.inherited} inherited tokens end in mid-turn")
        end = 0
        for turn in self.turns:
            if turn.action_start != end:
                raise ValueError(f"trajectory of {self.question_id}: a turn starts at {turn.action_start}, not {end}")
            if not self.action_mask[turn.action_start : turn.action_end].all():
                raise ValueError(f"trajectory of {self.question_id}: an action token is masked")
            if self.action_mask[turn.action_end : turn.observation_end].any():
                raise ValueError(f"trajectory of {self.question_id}: an observation token is not masked")
            end = turn.observation_end
        if end != n:
            raise ValueError(f"trajectory of {self.question_id}: the turns cover {end} of {n} tokens")

    @property
    def answer(self) -> str | None:
        """The final answer's text, or None when the episode ended without one."""
        return self.turns[-1].answer if self.turns else None

    @property
    def searches(self) -> int:
        """Searches that the environment answered."""
        return sum(turn.searches for turn in self.turns)

    def repeats(self, what: Repeat) -> int:
        """Searches that a notice answered, by what they would have repeated."""
        return sum(call.repeat is what for turn in self.turns for call in turn.calls)

    @property
    def action_tokens(self) -> int:
        """Tokens of the policy's (or the expert's) actions."""
        return int(self.action_mask.sum())

    @property
    def generated_tokens(self) -> int:
        """Tokens that an engine generated for this trajectory: what it cost, less what it inherited."""
        return 0 if self.expert else int(self.action_mask[self.inherited :].sum())

    @property
    def oldest_version(self) -> int:
        """Oldest policy version among the action tokens; ``NO_VERSION`` without any, or of an expert."""
        return int(self.versions[self.action_mask].min()) if self.action_mask.any() else NO_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A trajectory's reward and the parts that made it."""

    reward: float
    """In [0, ``MAX_REWARD``]."""
    outcome: float
    """r_o in [0, 1]."""
    evidence: float | None
    """r_g in [0, 1]; None when the question names no supporting documents."""
    gate: str | None = None
    """The gate that set the reward to 0, if one did."""
    cost: float = 0.0
    """What the cost terms took off; ``reward + cost`` was earned."""

    @property
    def perfect(self) -> bool:
        """Whether all was earned that can be: the right answer and all of the evidence, whatever they cost."""
        return self.reward >= MAX_REWARD - self.cost


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredTrajectory:
    """A viable trajectory with its score. A faulted trajectory cannot be scored."""

    trajectory: Trajectory
    score: Score

    def __post_init__(self) -> None:
        if self.trajectory.stop_reason.is_fault:
            raise ValueError(f"a faulted trajectory has no score: {self.trajectory.fault}")
