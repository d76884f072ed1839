"""Fakes for the agent: a byte-level tokenizer, an engine and a retriever that follow a script, groups made to order."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import play
from agent.errors import GenerationError
from agent.groups import Group
from agent.protocol import PROTOCOLS, TagProtocol
from agent.records import (
    SEARCH,
    Call,
    Completion,
    Finish,
    Passage,
    Question,
    Score,
    ScoredTrajectory,
    StopReason,
    Trajectory,
    Turn,
)
from agent.tickets import Ticket

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers: importlib mode adds no folder by itself


class ByteCodec:
    """256 bytes, three special tokens, and tokens of several bytes, some of which end in mid-tag.

    ``normal_form="NFKC"`` normalises all text before it is split, as some tokenizers do.
    """

    beginning: tuple[int, ...] = ()
    eos_ids = (257,)
    SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    EOS = 257
    LONGER = (
        *("</", "</search", "search", "<search>", "h>x", "ch>", ">\n", "> ", ">x", "r>\n\n", "answer", "</answer>"),
        *("<answer>", "end_search", "</end_search", "<begin_", "xed{", "\\boxed{", "}\n", "}}", "<result>", "result"),
        *(" the", "\n\n", "Result 1", "é", "世界", "<|", "|>", "im_end"),
    )

    def __init__(self, normal_form: str | None = None) -> None:
        self.normal_form = normal_form
        self.pieces = [bytes([b]) for b in range(256)] + [t.encode() for t in (*self.SPECIAL, *self.LONGER)]
        self._id = {piece: i for i, piece in enumerate(self.pieces)}
        special = b"|".join(re.escape(t.encode()) for t in self.SPECIAL)
        longer = b"|".join(re.escape(t.encode()) for t in sorted(self.LONGER, key=len, reverse=True))
        self._split = re.compile(special + b"|" + longer + b"|.", re.DOTALL)
        self._starting: dict[int, list[int]] = {}
        for token in range(259, len(self.pieces)):
            self._starting.setdefault(self.pieces[token][0], []).append(token)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.SPECIAL

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset((256, 257, 258))

    def encode(self, text: str) -> list[int]:
        if self.normal_form is not None:
            text = unicodedata.normalize(self.normal_form, text)
        return [self._id[piece] for piece in self._split.findall(text.encode())]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join([self.pieces[i] for i in ids]).decode("utf-8", "replace")

    @property
    def has_template(self) -> bool:
        return True

    def render(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> str:
        said = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return f"{said}<|im_start|>assistant\n"

    def one_way_to_write(self, text: str, rng: random.Random) -> list[int]:
        """Some ids of ``text``, seldom those that ``encode`` gives: a policy samples what it likes."""
        data, at, ids = text.encode(), 0, []
        while at < len(data):
            fitting = [t for t in self._starting.get(data[at], ()) if data.startswith(self.pieces[t], at)]
            token = rng.choice(fitting) if fitting and rng.random() < 0.6 else data[at]
            ids.append(token)
            at += len(self.pieces[token])
        return ids


@dataclass
class Asked:
    prompt_ids: list[int]
    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float
    seed: int


@dataclass
class Engine:
    """Plays a script as an engine would, and fails the test when it is asked for nonsense.

    One entry of the script is what the policy would write in one turn if nothing stopped it: token
    ids, a text, or an exception. The completion ends with the token that completes a stop string,
    with the end token, or at the limit; a script that runs dry ends its turn with the end token.
    """

    codec: ByteCodec
    script: Iterable[Sequence[int] | str | Exception]
    expected_stop: tuple[str, ...]
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    version: int = 0
    update_chance: float = 0.0
    calls: list[Asked] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turns: Iterator[Sequence[int] | str | Exception] = iter(self.script)

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop: tuple[str, ...], temperature: float, seed: int
    ) -> Completion:
        assert max_new_tokens > 0
        assert type(stop) is tuple
        assert stop == self.expected_stop
        assert type(seed) is int
        assert 0 <= seed < 2**63
        assert temperature >= 0
        prompt = list(prompt_ids)
        if self.calls:
            seen = [*self.calls[-1].prompt_ids, *self.completions[-1].token_ids]
            assert prompt[: len(seen)] == seen, "the prompt is not what the engine read and wrote, token for token"
            assert len(prompt) > len(seen), "a further turn without an observation"
        self.calls.append(Asked(prompt, max_new_tokens, stop, temperature, seed))
        turn = next(self._turns)
        if isinstance(turn, Exception):
            raise turn
        wanted = self.codec.encode(turn) if isinstance(turn, str) else list(turn)
        completion = self._write([*wanted, self.codec.EOS], max_new_tokens, [s.encode() for s in stop])
        self.completions.append(completion)
        return completion

    def _write(self, wanted: list[int], limit: int, stops: list[bytes]) -> Completion:
        longest = max(map(len, stops))
        ids: list[int] = []
        versions: list[int] = []
        text = b""
        finish = Finish.LENGTH
        for token in wanted[:limit]:
            ids.append(token)
            if self.update_chance and self.rng.random() < self.update_chance:
                self.version += 1
            versions.append(self.version)
            piece = self.codec.pieces[token]
            text += piece
            new = text[-len(piece) - longest :]
            if token == self.codec.EOS or any(stop in new for stop in stops):
                finish = Finish.STOP
                break
        logprobs = tuple(-self.rng.random() for _ in ids)
        return Completion(token_ids=tuple(ids), logprobs=logprobs, versions=tuple(versions), finish=finish)


@dataclass
class Library:
    """A retriever that answers the queries in turn with what it was given: passages or an exception."""

    answers: Iterable[Sequence[Passage] | Exception] = ()
    queries: list[str] = field(default_factory=list)
    given: list[tuple[Passage, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._answers = iter(self.answers)

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        assert query
        assert query == query.strip()
        assert k > 0
        self.queries.append(query)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        self.given.append(tuple(answer)[:k])
        return self.given[-1]


@dataclass
class Played:
    trajectory: Trajectory
    engine: Engine
    library: Library
    dialogue: Dialogue
    codec: ByteCodec

    @property
    def text(self) -> str:
        return self.codec.decode(self.trajectory.token_ids)


EMMA = Question(id="q", text="Who wrote Emma?", golden_answers=("Jane Austen",), supporting=("Emma (novel)",))
AUSTEN = Passage(id="d1", title="Emma (novel)", text="Emma is a novel by Jane Austen.")


@pytest.fixture
def emma() -> Question:
    return EMMA


@pytest.fixture
def austen() -> Passage:
    return AUSTEN


@pytest.fixture
def codec() -> ByteCodec:
    return ByteCodec()


@pytest.fixture
def nfkc_codec() -> ByteCodec:
    return ByteCodec("NFKC")


@pytest.fixture
def make_dialogue() -> Callable[..., Dialogue]:
    def make(codec: ByteCodec, protocol: str = "search", **changed) -> Dialogue:
        return Dialogue.of(codec, AgentConfig(protocol=protocol, **changed))

    return make


@pytest.fixture
def make_engine() -> type[Engine]:
    return Engine


@pytest.fixture
def make_library() -> type[Library]:
    return Library


@pytest.fixture
def play_script(make_dialogue) -> Callable[..., Played]:
    """Plays one episode by script; keyword arguments besides those named change the ``AgentConfig``."""

    def run(
        script,
        answers=(),
        *,
        question=EMMA,
        protocol="search",
        codec=None,
        temperature=0.6,
        seed=7,
        library=None,
        **changed,
    ) -> Played:
        codec = codec or ByteCodec()
        config = AgentConfig(protocol=protocol, **changed)
        dialogue = Dialogue.of(codec, config)
        engine = Engine(codec, script, dialogue.stop)
        library = library or Library(answers)
        trajectory = asyncio.run(
            play(
                question,
                dialogue=dialogue,
                config=config,
                generator=engine,
                environment=Environment.of(config, library),
                temperature=temperature,
                seed=seed,
            )
        )
        return Played(trajectory, engine, library, dialogue, codec)

    return run


@pytest.fixture
def search_protocol() -> TagProtocol:
    return PROTOCOLS["search"]


@pytest.fixture
def make_trajectory() -> Callable[..., Trajectory]:
    """A trajectory of hand-written turns, one token for each action and one for each observation.

    A turn is a text, or a dictionary: ``text``, ``query``, ``answer``, ``found`` (pairs of id and
    title), ``observed`` (default: whether there is a query), ``refused``.
    """

    def make(*turns, question_id="q", stop_reason=StopReason.ANSWERED, versions=None, fault="") -> Trajectory:
        made, ids, mask, at = [], [], [], 0
        for turn in turns:
            turn = {"text": turn} if isinstance(turn, str) else turn
            query, found = turn.get("query"), turn.get("found", ())
            observed = turn.get("observed", query is not None)
            made.append(
                Turn(
                    action_start=at,
                    action_end=at + 1,
                    observation_end=at + 1 + observed,
                    text=turn["text"],
                    answer=turn.get("answer"),
                    calls=() if query is None else (search_call(query, found, refused=turn.get("refused", False)),),
                )
            )
            ids += [1, 2][: 1 + observed]
            mask += [True, False][: 1 + observed]
            at += 1 + observed
        ages = iter(versions or [0] * len(made))
        return Trajectory(
            question_id=question_id,
            prompt_ids=[0],
            token_ids=ids,
            action_mask=mask,
            logprobs=[-0.5 if m else 0.0 for m in mask],
            versions=[next(ages) if m else -1 for m in mask],
            turns=tuple(made),
            stop_reason=stop_reason,
            fault=fault or ("it broke" if stop_reason.is_fault else ""),
        )

    return make


def search_call(query: str, found: Sequence[tuple[str, str]], **more) -> Call:
    """A search that found documents, each an id and a title."""
    ids, titles = tuple(d for d, _ in found), tuple(t for _, t in found)
    return Call(tool=SEARCH, argument=query, document_ids=ids, titles=titles, **more)


@dataclass
class GroupMaker:
    """Groups made to order; trajectories that are alike are made once."""

    tokens: int = 3
    _cache: dict[tuple, Trajectory] = field(default_factory=dict)

    def trajectory(self, question: Question, version: int, stop: StopReason = StopReason.ANSWERED) -> Trajectory:
        key = (question.id, version, stop)
        if key not in self._cache:
            n = self.tokens
            self._cache[key] = Trajectory(
                question_id=question.id,
                prompt_ids=[0],
                token_ids=[1] * n,
                action_mask=[True] * n,
                logprobs=[-1.0] * n,
                versions=[version] * n,
                turns=(Turn(action_start=0, action_end=n, observation_end=n, text="a", answer="a"),),
                stop_reason=stop,
                fault="it broke" if stop.is_fault else "",
            )
        return self._cache[key]

    def __call__(
        self,
        question: Question,
        ticket: Ticket,
        rewards: Sequence[float],
        *,
        version: int = 0,
        versions: Sequence[int] = (),
        faults: int = 0,
        fault: StopReason = StopReason.GENERATION_FAILED,
    ) -> Group:
        """One member per reward, all of ``version`` or each of its own; ``faults`` more are excluded by ``fault``."""
        versions = versions or [version] * len(rewards)
        return Group(
            question=question,
            ticket=ticket,
            members=tuple(
                ScoredTrajectory(
                    trajectory=self.trajectory(question, v), score=Score(reward=r, outcome=r, evidence=None)
                )
                for r, v in zip(rewards, versions, strict=True)
            ),
            excluded=(self.trajectory(question, version, fault),) * faults,
        )


@pytest.fixture
def make_group() -> GroupMaker:
    return GroupMaker()


@pytest.fixture
def make_questions() -> Callable[[int], list[Question]]:
    def make(n: int) -> list[Question]:
        return [Question(id=f"q{i}", text=f"question {i}?", golden_answers=("yes",)) for i in range(n)]

    return make


@pytest.fixture
def engine_error() -> GenerationError:
    return GenerationError("the engine is gone")
