"""Settings of the search agent, of its reward, of its groups and of its search limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.confidences import CONFIDENCES
from agent.errors import UserError, one_of
from agent.formats import format_names
from agent.settings import PATH, bounded, check_bounds

LONGEST_RESPONSE = 8192
"""Tokens of a response, where nothing sets another limit."""


@dataclass
class AgentConfig:
    """How an episode is played."""

    format: str = "tags"
    """``tags``, or ``tools``: the model's own tool-calling format, through its chat template."""
    protocol: str = "search"
    """Tag set: ``search``, ``search_r1`` or ``autocoa``. With ``format=tools`` its answer tags count, and experts write
    the others."""
    prompt: str = field(default="instruct", metadata=PATH)
    """``instruct`` explains the tools and tags, ``plain`` does not; or a file of your own (``agent/prompts.py``)."""
    tools: list[str] = field(default_factory=lambda: ["search"])
    """What the policy may call: files of ``agent/tools/``, or import paths of your own, ``my_package.tools:MyTool``."""
    max_parallel: int = bounded(1, "in [1, 254]")
    """Most calls in one turn; above 1 a tag holds one query per line."""
    chat: bool | None = None
    """Wrap the prompt in the tokenizer's chat template; null does where it has one, as a base model's may not."""
    thinking: bool | None = None
    """``enable_thinking`` of the chat template (Qwen3); null leaves it to the template."""
    malformed: str = "stop"
    """What a malformed call does: ``stop`` ends the episode, ``notice`` says what is wrong with it."""
    top_k: int = bounded(3, "in [1, 1000]")
    """Passages per search."""
    max_searches: int = bounded(10, "in [1, 254]")
    """Searches of an episode that are answered; one more gets a notice, and after that one ends the episode."""
    max_new_tokens_first: int = bounded(2048, "at least 1")
    """Token limit of the first turn."""
    max_new_tokens: int = bounded(1024, "at least 1")
    """Token limit of every later turn."""
    max_prompt_tokens: int = bounded(1024, "at least 1")
    """Questions with a longer prompt are left out, or refused (``data.strict``)."""
    max_response_tokens: int = bounded(LONGEST_RESPONSE, "at least 0")
    """Actions and observations together; 0 takes what the model's context leaves, 8192 at most."""
    max_passage_chars: int = bounded(2000, "at least 1")
    """A longer passage is cut, so that one document can't fill the context."""
    temperature: float = bounded(0.6, "at least 0.01 and at most 10")
    """Sampling temperature in training, which needs a distribution (below 0.01 vLLM samples at 0.01); evaluation has
    ``evaluation.temperature``."""

    @property
    def longest_episode(self) -> int:
        """Most tokens that prompt and response can have together."""
        return self.max_prompt_tokens + self.max_response_tokens

    def __post_init__(self) -> None:
        check_bounds(self, "agent")
        one_of(self.format, format_names(), "agent.format")
        one_of(self.malformed, ("stop", "notice"), "agent.malformed")
        if self.format == "tools" and self.chat is False:
            raise UserError("agent.format=tools is a chat: set agent.chat=true, or agent.format=tags")


@dataclass
class RewardConfig:
    """What a trajectory is worth: r = w * evidence + (1 - w) * outcome, less its costs.

    The scale is [0, 1]: 1 is a right answer with all of the evidence at no cost, and costs take away only what was
    earned. So they make one success better than another, and never make it better not to try.
    """

    outcome: str = "em"
    """``em`` (0/1), ``em_soft``, ``f1``, ``cover_em`` or ``cover_words`` (``agent/rewards/outcomes``); or a function of
    your own: ``package.module:function``, of ``(question, trajectory)`` or ``(question, trajectories)``."""
    evidence_weight: float = bounded(0.0, "in [0, 1]")
    """w, the share of evidence recall."""
    gates: list[str] = field(default_factory=list)
    """Any of ``no_answer``, ``no_search``, ``unbalanced``, ``search_after_answer``, ``duplicate_query``."""
    search_cost: float = bounded(0.0, "in [0, 1]")
    """Taken off for each search that was answered; 0.05 makes five searches cost a quarter of the full reward."""
    token_cost: float = bounded(0.0, "in [0, 1]")
    """Taken off for each action token, such as 1e-4."""
    redundant_cost: float = bounded(0.0, "in [0, 1]")
    """Taken off for each redundant search: its query repeats an earlier one, or it retrieved nothing new."""

    def __post_init__(self) -> None:
        check_bounds(self, "reward")


@dataclass
class GroupConfig:
    """How the K trajectories of one question come about."""

    strategy: str = "plain"
    """``plain`` (K independent episodes) or ``continuation`` (DAVID-GRPO: and up to one of them replaced)."""


CALIBRATING = ("risk", "delta", "fit_share")
"""Settings of ``ExitConfig`` that only ``mode=calibrate`` reads: what the threshold has to keep."""


@dataclass
class ExitConfig:
    """Early exit, at inference: after each observation a short probe answer is made, and taken if it is confident.

    Off, unless ``threshold`` or ``calibration`` is given.
    """

    threshold: float | None = bounded(None, "in (0, 1]")
    """Confidence in (0, 1] from which on a probe's answer is taken."""
    calibration: str | None = field(default=None, metadata=PATH)
    """File that ``mode=calibrate`` wrote for this checkpoint; brings its threshold."""
    confidence: str = "product"
    """``product`` of the probabilities of the probe's tokens, their geometric ``mean``, or ``decision``: the product
    times the probability that the policy answers at this point at all."""
    max_tokens: int = bounded(32, "at least 1")
    """Token limit of a probe; one that doesn't close its answer within it has no confidence."""
    before_first_search: bool = False
    """Probe before the first search, too."""
    fit_share: float = bounded(1 / 3, "in [0, 1)")
    """``mode=calibrate``: share of the development questions that tells what a confidence is worth after each number
    of searches (``agent/inference/scaling.py``); the others find the threshold. 0 takes confidences as they are."""
    risk: float = bounded(0.01, "in [0.000001, 1)")
    """``mode=calibrate``: most that the share of questions may be that an exit loses."""
    delta: float = bounded(0.05, "in (0, 1)")
    """``mode=calibrate``: chance that the risk is higher all the same."""

    def __post_init__(self) -> None:
        check_bounds(self, "exit")
        one_of(self.confidence, CONFIDENCES, "exit.confidence")
        if self.threshold is not None and self.calibration is not None:
            raise UserError("exit.threshold and exit.calibration both give a threshold; leave one of them out")

    @property
    def probing(self) -> dict[str, Any]:
        """The settings that decide what a probe is like, by name; a threshold only reads what it says."""
        return {name: getattr(self, name) for name in ("confidence", "max_tokens", "before_first_search")}

    @property
    def on(self) -> bool:
        """Whether episodes may end early."""
        return self.threshold is not None or self.calibration is not None


@dataclass
class SelectivityConfig:
    """Query selectivity, at inference: a search that would repeat what is there is answered by a short notice.

    It uses up one of ``agent.max_searches`` all the same, or a policy that repeats itself would never end.
    """

    queries: bool = False
    """Don't search again for a query that equals an earlier one, both normalised."""
    evidence: bool = False
    """Don't show passages again if all that a search found has been shown before."""

    @property
    def on(self) -> bool:
        """Whether any search may be answered by a notice."""
        return self.queries or self.evidence


@dataclass
class SearchLimitConfig:
    """The limit of searches of a training episode. It never exceeds ``agent.max_searches``, which is also the limit
    wherever the policy is evaluated; null stands for that."""

    rule: str = "fixed"
    """``fixed`` (``agent.max_searches``), ``anneal`` or ``adaptive``."""
    start: int | None = bounded(None, "in [1, 254]")
    """``anneal``: the limit of the first batch."""
    end: int | None = bounded(None, "in [1, 254]")
    """``anneal``: the limit of batch ``steps`` and of all later ones."""
    steps: int = bounded(100, "at least 1")
    """``anneal``: batches over which the limit goes from ``start`` to ``end``, linearly and rounded."""
    fewest: int = bounded(1, "in [1, 254]")
    """``adaptive``: the smallest limit."""
    most: int | None = bounded(None, "in [1, 254]")
    """``adaptive``: the largest limit, and that of a query that was never solved."""
    spare: int = bounded(1, "in [0, 254]")
    """``adaptive``: searches beyond those that the query was last solved with."""
    widen: int = bounded(2, "in [0, 254]")
    """``adaptive``: searches more for each draw since then that nobody solved."""

    def __post_init__(self) -> None:
        check_bounds(self, "search_limit")
