"""The episode loop: generate, parse, let the environment respond, append; one attempt at a question.

Token in, token out: the prompt is encoded once, sampled ids are appended as the engine returned
them, observations are appended as their own masked ids. Sampled text is decoded only to read the
action in it. The loop knows no engine: it runs the same over vLLM and over a scripted generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.config import AgentConfig, SelectivityConfig
from agent.dialogue import Dialogue
from agent.environment import Environment, Response
from agent.errors import Fault, GenerationError, NoRoom, UserError
from agent.protocol import Action
from agent.records import NO_VERSION, Completion, Finish, Question, StopReason, Trajectory, Turn
from agent.seeds import derive_seed
from agent.tools.base import Result, Situation

MALFORMED_NOTICE = "This can't be carried out: {why}."


class Generator(Protocol):
    """The engine, as an episode sees it."""

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        """Samples until a stop string, the end token or the limit.

        Raises ``GenerationError``, and ``NoRoom`` where it has a limit of its own that ``prompt_ids`` has reached.
        """

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """Log-probability that ``token_ids`` follow, at temperature 1. Raises ``GenerationError``."""


class Watcher(Protocol):
    """Sees one episode before each of its turns, and may end it (``agent/inference/early_exit.py``)."""

    async def ends(self, context: Sequence[int], turns: Sequence[Turn]) -> bool:
        """Whether the episode is over, given all tokens so far and what they mean. Raises ``GenerationError``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prefix:
    """Where a continuation starts: ``trajectory``, cut after its first ``turns`` turns (0: at the prompt).

    Raises ``ValueError`` for a cut where no episode could go on: beyond the end, or after a turn that the
    environment didn't answer.
    """

    trajectory: Trajectory
    turns: int

    def __post_init__(self) -> None:
        if not 0 <= self.turns <= len(self.trajectory.turns):
            raise ValueError(f"a cut after {self.turns} of {len(self.trajectory.turns)} turns")
        if not all(turn.observed for turn in self.kept):
            raise ValueError(f"a cut after {self.turns} turns, not all of which were answered")

    @property
    def kept(self) -> tuple[Turn, ...]:
        """The turns before the cut."""
        return self.trajectory.turns[: self.turns]

    @property
    def tokens(self) -> int:
        """Response tokens before the cut."""
        return self.kept[-1].observation_end if self.turns else 0


@dataclass
class _Response:
    """The response so far: parallel lists that become the arrays of a ``Trajectory``."""

    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def act(self, completion: Completion) -> tuple[int, int]:
        """Appends what was sampled; where it begins and ends."""
        start = len(self.ids)
        self.ids += completion.token_ids
        self.mask += [True] * len(completion.token_ids)
        self.logprobs += completion.logprobs
        self.versions += completion.versions
        return start, len(self.ids)

    @classmethod
    def of(cls, start: Prefix) -> _Response:
        """The response up to the cut, token for token as it was sampled."""
        kept = slice(0, start.tokens)
        t = start.trajectory
        return cls(
            ids=t.token_ids[kept].tolist(),
            mask=t.action_mask[kept].tolist(),
            logprobs=t.logprobs[kept].tolist(),
            versions=t.versions[kept].tolist(),
        )

    def observe(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.versions += [NO_VERSION] * len(ids)


_End = tuple[StopReason, str]
"""Why an episode is over, and what broke if that is a fault."""


class _Episode:
    """One attempt so far. Each turn says how it ends the episode, or None if that goes on."""

    def __init__(self, question: Question, dialogue: Dialogue, config: AgentConfig, start: Prefix | None) -> None:
        self._question, self._dialogue, self._config = question, dialogue, config
        self._prompt = dialogue.prompt_ids(question.text) if start is None else start.trajectory.prompt_ids.tolist()
        if len(self._prompt) > config.max_prompt_tokens:
            raise UserError(
                f"question {question.id}: its prompt has {len(self._prompt)} tokens, more than "
                f"agent.max_prompt_tokens={config.max_prompt_tokens}; shorten the question or raise the limit"
            )
        self._response = _Response() if start is None else _Response.of(start)
        self._inherited = len(self._response.ids)
        self.turns: list[Turn] = [] if start is None else [*start.kept]

    @property
    def context(self) -> list[int]:
        """All tokens so far."""
        return [*self._prompt, *self._response.ids]

    @property
    def max_new_tokens(self) -> int:
        """The most that the next turn may have."""
        config = self._config
        limit = config.max_new_tokens if self.turns else config.max_new_tokens_first
        return min(limit, config.max_response_tokens - len(self._response.ids))

    def without_request(self, completion: Completion, text: str, action: Action) -> _End | None:
        """A turn without a request: an answer, or no valid action, of which a notice may tell the policy."""
        start, end = self._response.act(completion)
        notice: list[int] = []
        fault = ""
        if action.malformed and self._config.malformed == "notice":
            notice, fault = self._encoded([Result(notice=MALFORMED_NOTICE.format(why=action.malformed))])
            fits = end + len(notice) < self._config.max_response_tokens
            self._response.observe(notice if fits else ())
        at = len(self._response.ids)
        turn = Turn(action_start=start, action_end=end, observation_end=at, text=text, answer=action.answer)
        self.turns.append(turn)
        if fault:
            return StopReason.TOOL_FAILED, fault
        if turn.observed:
            return None
        if notice:
            return StopReason.RESPONSE_TOKENS, ""
        if action.answer is not None:
            return StopReason.ANSWERED, ""
        if completion.finish is Finish.LENGTH:
            full = completion.full or end >= self._config.max_response_tokens
            return StopReason.RESPONSE_TOKENS if full else StopReason.TURN_TOKENS, ""
        return StopReason.MALFORMED if action.malformed else StopReason.NO_ACTION, ""

    def with_requests(self, completion: Completion, text: str, action: Action, given: Response) -> _End | None:
        """A turn with requests, for which the environment has ``given`` the results."""
        start, end = self._response.act(completion)
        results, stop, fault = given.results, given.stop, given.fault
        observation: list[int] = []
        if not stop:
            observation, fault = self._encoded(results)
            if fault:
                stop = StopReason.TOOL_FAILED
            elif end + len(observation) >= self._config.max_response_tokens:
                # No room for one more action: the policy never acts on these results, so they are no evidence.
                stop, observation = StopReason.RESPONSE_TOKENS, []
            if stop:
                results = tuple(result.unseen() for result in results)
        self._response.observe(observation)
        self.turns.append(
            Turn(
                action_start=start,
                action_end=end,
                observation_end=len(self._response.ids),
                text=text,
                calls=tuple(r.call(request) for r, request in zip(results, action.requests, strict=True)),
            )
        )
        return None if stop is None else (stop, fault)

    def _encoded(self, results: Sequence[Result]) -> tuple[list[int], str]:
        """What the policy is shown of ``results``; or none and why: a text that a tokenizer makes a tag of costs its
        trajectory alone."""
        try:
            return self._dialogue.results_ids(results, last=self._response.ids[-1]), ""
        except Fault as error:
            return [], str(error)

    def over(self, reason: StopReason, fault: str = "") -> Trajectory:
        """Its record."""
        response = self._response
        return Trajectory(
            question_id=self._question.id,
            prompt_ids=self._prompt,  # type: ignore[arg-type]  # lists become arrays in the record
            token_ids=response.ids,  # type: ignore[arg-type]
            action_mask=response.mask,  # type: ignore[arg-type]
            logprobs=response.logprobs,  # type: ignore[arg-type]
            versions=response.versions,  # type: ignore[arg-type]
            turns=tuple(self.turns),
            stop_reason=reason,
            fault=fault,
            inherited=self._inherited,
        )


async def play(
    question: Question,
    *,
    dialogue: Dialogue,
    config: AgentConfig,
    generator: Generator,
    environment: Environment,
    temperature: float,
    seed: int,
    start: Prefix | None = None,
    max_searches: int | None = None,
    selectivity: SelectivityConfig | None = None,
    watcher: Watcher | None = None,
) -> Trajectory:
    """Plays one episode and returns it whole, whatever ended it.

    ``max_searches`` takes the place of ``config.max_searches``. With a ``start`` it goes on from there: what
    was sampled before the cut stays as it was (ids, mask, log-probabilities, versions), and its searches and
    tokens count against the limits. With ``selectivity``, a notice may answer a search that repeats what is
    there; a ``watcher`` may end the episode before any of its turns.

    A fault of the engine or of a tool ends the episode with a fault's stop reason and what was sampled so far; so does
    a result that the tokenizer would make a tag of (``StopReason.TOOL_FAILED``). Raises ``UserError`` when the prompt
    is longer than ``config.max_prompt_tokens``.
    """
    episode = _Episode(question, dialogue, config, start)
    search_limit = config.max_searches if max_searches is None else max_searches
    situation = Situation(
        turns=episode.turns, max_searches=search_limit, selectivity=selectivity or SelectivityConfig()
    )
    while True:
        context = episode.context
        try:
            if watcher is not None and await watcher.ends(context, episode.turns):
                return episode.over(StopReason.EARLY_EXIT)
            completion = await generator.generate(
                context,
                max_new_tokens=episode.max_new_tokens,
                stop=dialogue.stop,
                temperature=temperature,
                seed=derive_seed(seed, len(episode.turns)),
            )
        except GenerationError as error:
            return episode.over(StopReason.GENERATION_FAILED, str(error))
        except NoRoom:
            return episode.over(StopReason.RESPONSE_TOKENS)
        text = dialogue.codec.decode(completion.token_ids)
        action = dialogue.parse(text, completion.finish, first=not episode.turns)
        if action.requests:
            end = episode.with_requests(completion, text, action, await environment.respond(action.requests, situation))
        else:
            end = episode.without_request(completion, text, action)
        if end is not None:
            return episode.over(*end)
