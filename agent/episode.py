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
from agent.environment import Environment
from agent.errors import Fault, GenerationError, NoRoom, UserError
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

    def act(self, completion: Completion) -> None:
        self.ids += completion.token_ids
        self.mask += [True] * len(completion.token_ids)
        self.logprobs += completion.logprobs
        self.versions += completion.versions

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


def _encoded(dialogue: Dialogue, results: Sequence[Result], last: int) -> tuple[list[int], str]:
    """``Dialogue.results_ids``, or none and why: a text that a tokenizer makes a tag of costs its trajectory alone."""
    try:
        return dialogue.results_ids(results, last=last), ""
    except Fault as error:
        return [], str(error)


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
    prompt = dialogue.prompt_ids(question.text) if start is None else start.trajectory.prompt_ids.tolist()
    if len(prompt) > config.max_prompt_tokens:
        raise UserError(
            f"question {question.id}: its prompt has {len(prompt)} tokens, more than "
            f"agent.max_prompt_tokens={config.max_prompt_tokens}; shorten the question or raise the limit"
        )
    response = _Response() if start is None else _Response.of(start)
    inherited = len(response.ids)
    turns: list[Turn] = [] if start is None else [*start.kept]
    search_limit = config.max_searches if max_searches is None else max_searches
    selective = selectivity or SelectivityConfig()

    def finish(reason: StopReason, fault: str = "") -> Trajectory:
        return Trajectory(
            question_id=question.id,
            prompt_ids=prompt,  # type: ignore[arg-type]  # lists become arrays in the record
            token_ids=response.ids,  # type: ignore[arg-type]
            action_mask=response.mask,  # type: ignore[arg-type]
            logprobs=response.logprobs,  # type: ignore[arg-type]
            versions=response.versions,  # type: ignore[arg-type]
            turns=tuple(turns),
            stop_reason=reason,
            fault=fault,
            inherited=inherited,
        )

    while True:
        room = config.max_response_tokens - len(response.ids)
        limit = config.max_new_tokens if turns else config.max_new_tokens_first
        context = [*prompt, *response.ids]
        try:
            if watcher is not None and await watcher.ends(context, turns):
                return finish(StopReason.EARLY_EXIT)
            completion = await generator.generate(
                context,
                max_new_tokens=min(limit, room),
                stop=dialogue.stop,
                temperature=temperature,
                seed=derive_seed(seed, len(turns)),
            )
        except GenerationError as error:
            return finish(StopReason.GENERATION_FAILED, str(error))
        except NoRoom:
            return finish(StopReason.RESPONSE_TOKENS)
        begin = len(response.ids)
        response.act(completion)
        end = len(response.ids)
        text = dialogue.codec.decode(completion.token_ids)
        action = dialogue.parse(text, completion.finish, first=not turns)

        if not action.requests:
            notice: list[int] = []
            fault = ""
            if action.malformed and config.malformed == "notice":
                said = Result(notice=MALFORMED_NOTICE.format(why=action.malformed))
                notice, fault = _encoded(dialogue, [said], response.ids[-1])
                fits = end + len(notice) < config.max_response_tokens
                response.observe(notice if fits else ())
            at = len(response.ids)
            turns.append(Turn(action_start=begin, action_end=end, observation_end=at, text=text, answer=action.answer))
            if fault:
                return finish(StopReason.TOOL_FAILED, fault)
            if notice:
                if turns[-1].observed:
                    continue
                return finish(StopReason.RESPONSE_TOKENS)
            if action.answer is not None:
                return finish(StopReason.ANSWERED)
            if completion.finish is Finish.LENGTH:
                full = completion.full or len(response.ids) >= config.max_response_tokens
                return finish(StopReason.RESPONSE_TOKENS if full else StopReason.TURN_TOKENS)
            return finish(StopReason.MALFORMED if action.malformed else StopReason.NO_ACTION)

        given = await environment.respond(
            action.requests, Situation(turns=turns, max_searches=search_limit, selectivity=selective)
        )
        results, stop, fault = given.results, given.stop, given.fault
        observation: list[int] = []
        if not stop:
            observation, fault = _encoded(dialogue, results, response.ids[-1])
            if fault:
                stop, results = StopReason.TOOL_FAILED, tuple(result.unseen() for result in results)
        if not stop and end + len(observation) >= config.max_response_tokens:
            # No room for one more action: the policy never acts on these results, so they are no evidence.
            stop, observation = StopReason.RESPONSE_TOKENS, []
            results = tuple(result.unseen() for result in results)
        response.observe(observation)
        turns.append(
            Turn(
                action_start=begin,
                action_end=end,
                observation_end=len(response.ids),
                text=text,
                calls=tuple(r.call(request) for r, request in zip(results, action.requests, strict=True)),
            )
        )
        if stop is not None:
            return finish(stop, fault)
