"""``mode=eval`` of a model behind an endpoint: a real server in its place, a real index, the real command line."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import launch
from actors import evaluating, fetching
from actors.endpoint import EndpointPlayers
from agent.errors import Fault, Stopped, UserError
from agent.inference.evaluation import EvalRow
from conf.schema import RunConfig
from retrieval_service.wikipedia import HOTPOTQA
from tasks.making import config as settings
from tasks.making.config import TeacherConfig
from tasks.making.endpoint import Endpoint, Reply
from tasks.making.teacher import WORD
from tracking.console import Console
from tracking.metrics import read

pytestmark = pytest.mark.jvm

BOOKS = {"Emma": "Jane Austen", "Ulysses": "James Joyce", "Silas Marner": "George Eliot"}


@dataclass
class Model:
    """Searches for what the question names, then answers with what was found; one book it doesn't know to look for."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    url: str = ""
    down: int = 0
    """Requests that are refused from now on."""
    flagged: str = ""
    """What stands in a prompt that is refused every time."""
    code: int = 503
    holds: int = 1000
    """Messages that fit its context."""
    room: int = 100_000
    """Most tokens that a turn may be asked for there."""
    thinks: dict[str, Any] | None = None
    """The usage of a reply that only thinks, up to its limit."""

    def says(self, messages: list[dict[str, str]]) -> str:
        if messages == [{"role": "user", "content": "Hello."}]:
            return "Hello."
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
        book = next(book for book in BOOKS if book in messages[0]["content"].rpartition("Question")[2])
        if len(messages) == 1 and book != "Ulysses":
            return f"I look. <search>{book} author</search>"
        found = re.search(rf"{book} is a novel by the author ([\w ]+)\.", messages[-1]["content"])
        return f"<answer>{found[1] if found else 'nobody'}</answer>"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    state = Model()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            state.keys.append(self.headers.get("Authorization", ""))
            flagged = bool(state.flagged) and state.flagged in body["messages"][0]["content"]
            if state.down or flagged:
                state.down -= not flagged
                self.send_response(state.code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if len(body["messages"]) > state.holds or body["max_tokens"] > state.room:
                told = b'{"error": {"message": "' + 100 * b" " + b"This model's maximum context length is 9 tokens.\"}}"
                self.send_response(400)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)
                return
            choice = {"message": {"content": state.says(body["messages"])}, "finish_reason": "stop"}
            if state.thinks is not None:
                choice = {"message": {"content": "Hm. Hm."}, "finish_reason": "length"}
            usage = {"completion_tokens": 7} if state.thinks is None else state.thinks
            text = json.dumps({"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        monkeypatch.setenv("ENDPOINT_KEY", "secret")
        monkeypatch.setattr(settings, "Endpoint", functools.partial(Endpoint, pause_s=0.0))
        yield state
        server.shutdown()


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one index of these tests is kept."""
    return tmp_path_factory.mktemp("indexes")


@pytest.fixture
def asked(model: Model, tmp_path: Path, indexes: Path) -> Any:
    rows = [
        {
            "id": book,
            "question": f"Who wrote {book}?",
            "golden_answers": [writer],
            "metadata": {"supporting_titles": [book]},
        }
        for book, writer in BOOKS.items()
    ]
    pages = [{"id": b, "title": b, "text": f"{b} is a novel by the author {w}."} for b, w in BOOKS.items()]
    for name, lines in (("ask", rows), ("corpus", pages)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def config(*more: str) -> RunConfig:
        (found,) = launch.check_overrides(
            [
                "mode=eval",
                *(f"evaluation.endpoint.url={model.url}", "evaluation.endpoint.model=org/some-model"),
                *("data=jsonl", f"data.eval_questions={tmp_path / 'ask.jsonl'}"),
                *(f"data.corpus={tmp_path / 'corpus.jsonl'}", f"cache_dir={indexes}", "tracker=none"),
                *more,
            ]
        ).configs
        return found

    return config


def evaluated(config: RunConfig, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    evaluating.evaluate(config, folder, Console(quiet=True), "n")
    result: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    return result


def test_a_model_behind_an_endpoint_is_evaluated_as_a_checkpoint_is(model: Model, asked: Any, tmp_path: Path) -> None:
    found = evaluated(asked("evaluation.questions=0"), tmp_path / "run")
    whole = found["slices"][0]
    assert (found["checkpoint"], found["weights"]) == (f"org/some-model at {model.url}", "")
    assert (found["index"]["documents"], found["engine"]) == (3, "endpoint")
    assert whole["em"]["mean"] == pytest.approx(2 / 3)
    assert whole["searches"]["mean"] == pytest.approx(2 / 3)
    assert whole["evidence_recall"]["mean"] == pytest.approx(2 / 3)
    assert whole["tokens"]["mean"] == pytest.approx((14 + 14 + 7) / 3), "by the endpoint's count"
    first = next(body for body in model.asked if "Emma" in str(body))
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("org/some-model", 0.0, 2048)
    assert set(model.keys) == {"Bearer secret"}
    episodes = read(tmp_path / "run" / "eval_trajectories.jsonl")
    assert {row["question_id"]: row["answer"] for row in episodes} == {**BOOKS, "Ulysses": "nobody"}
    (emma,) = [row for row in episodes if row["question_id"] == "Emma"]  # they are written as they end
    assert "Emma is a novel by the author Jane Austen." in emma["turns"][0]["observation"]
    assert emma["action_tokens"] == 14


def test_a_question_is_on_disk_when_it_has_ended(
    model: Model, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the process next: its answer is paid for."""
    rows, there, says = tmp_path / "run" / "eval_rows.jsonl", [], Model.says

    def counted(state: Model, messages: list[dict[str, str]]) -> str:
        if len(messages) == 1:
            there.append(len(read(rows)) if rows.is_file() else 0)
        return says(state, messages)

    monkeypatch.setattr(Model, "says", counted)
    evaluated(asked("evaluation.endpoint.parallel=1"), tmp_path / "run")
    assert there == [0, 1, 2]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_it_goes_on_from_there(
    model: Model, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As an evaluation of a checkpoint: what is played is on disk, and the report is written."""

    def nobody(number: int, frame: Any) -> None:
        raise AssertionError("nobody takes the signal")

    config, says, folder = asked("evaluation.endpoint.parallel=1"), Model.says, tmp_path / "run"

    def stops(state: Model, messages: list[dict[str, str]]) -> str:
        if len(state.asked) == 3:  # the second question
            os.kill(os.getpid(), number)
        return says(state, messages)

    before = signal.signal(number, nobody)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Model, "says", stops)
            with pytest.raises(KeyboardInterrupt) as stopped:
                evaluated(config, folder)
        assert signal.getsignal(number) is nobody
    finally:
        signal.signal(number, before)
    assert isinstance(stopped.value, Stopped) == (number != signal.SIGINT)
    assert len(read(folder / "eval_rows.jsonl")) == 1
    assert (folder / "report.html").is_file()
    model.asked.clear()
    found = evaluated(asked("resume=if_any", f"output_dir={folder}"), folder)
    assert found["data"]["questions"] == 3
    assert len({body["messages"][0]["content"] for body in model.asked}) == 2, "two are left to play"


def test_an_episode_that_fills_the_endpoints_context_is_wrong_and_no_fault(
    model: Model, asked: Any, tmp_path: Path
) -> None:
    model.holds = 2
    found = evaluated(asked("evaluation.questions=0"), tmp_path / "run")
    assert (found["faults"], found["slices"][0]["em"]["mean"], found["slices"][0]["em"]["n"]) == (0, 0.0, 3)
    rows = read(tmp_path / "run" / "eval_rows.jsonl")
    assert {row["question_id"]: row["stop_reason"] for row in rows} == {
        **dict.fromkeys(BOOKS, "response_tokens"),
        "Ulysses": "answered",
    }
    model.holds = 0
    with pytest.raises(Fault, match="HTTP 400"):
        evaluated(asked(), tmp_path / "none")


def test_what_there_is_to_say_of_a_folder_of_documents_is_said(
    model: Model, asked: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for book, writer in BOOKS.items():
        (pages / f"{book}.txt").write_text(f"{book}\n\n{book} is a novel by the author {writer}. 5 £.", "cp1252")
    config = asked("evaluation.questions=0")
    config.data.corpus = str(pages)
    (tmp_path / "run").mkdir()
    evaluating.evaluate(config, tmp_path / "run", Console(), "n")
    out = capsys.readouterr().out
    assert f"{pages}: 3 files are not UTF-8 and are read as Windows-1252, such as Emma.txt" in out
    assert f"{pages}: 3 documents are 3 passages, in " in out


def test_samples_and_faults_are_those_of_every_evaluation(model: Model, asked: Any, tmp_path: Path) -> None:
    how = ("evaluation.samples=2", "evaluation.temperature=0.7", "evaluation.endpoint.tries=1")
    model.down = 1  # a fault, whose question is played again
    found = evaluated(asked(*how), tmp_path / "run")
    assert (found["episodes"], found["faults"]) == (6, 0)
    assert "pass@2" in found["slices"][0]
    seeds = {body["seed"] for body in model.asked if len(body["messages"]) == 1}
    assert len(seeds) == 6
    assert {body["temperature"] for body in model.asked} == {0.7}
    requests = len(model.asked)
    again = asked(*how, "resume=if_any", f"output_dir={tmp_path / 'run'}")
    assert evaluated(again, tmp_path / "run") == found
    assert len(model.asked) == requests, "nothing is played again"


def test_an_endpoint_that_refuses_is_a_users_mistake(model: Model, asked: Any, tmp_path: Path) -> None:
    model.down, model.code = 100, 401
    with pytest.raises(
        UserError, match=r"^evaluation\.endpoint\.url=.*, evaluation\.endpoint\.model=org/some-model: .*ENDPOINT_KEY$"
    ):
        evaluated(asked(), tmp_path / "run")


def test_before_gigabytes_are_fetched_the_endpoint_has_to_answer(
    model: Model, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(fetching, "ensure_prebuilt", lambda name, *told: fetched.append(name))
    monkeypatch.setattr(fetching, "local_folder", lambda path, given, fetched: None)
    monkeypatch.setattr(fetching, "check_disk", lambda folder, needed, given: None)
    config = asked("evaluation.endpoint.tries=1")
    config.cache_dir, config.retrieval.prebuilt = str(tmp_path / "empty"), HOTPOTQA.name
    for code, kind, said in ((401, UserError, "ENDPOINT_KEY$"), (503, Fault, "HTTP 503")):
        model.down, model.code = 100, code
        with pytest.raises(kind, match=said):
            fetching.fetch(config, Console(quiet=True))
    assert fetched == []
    model.down, model.asked = 0, []
    fetching.fetch(config, Console(quiet=True))
    assert (fetched, [body["max_tokens"] for body in model.asked]) == ([HOTPOTQA.name], [WORD])
    config.mode, config.evaluation.endpoint.url = "experts", None
    config.experts.teacher = TeacherConfig(url=model.url, model="m")
    fetching.fetch(config, Console(quiet=True))
    assert len(model.asked) == 2, "so has a teacher"
    config.mode = "fetch"
    fetching.fetch(config, Console(quiet=True))
    assert len(model.asked) == 2, "the machine that fetches may be another one"


def test_a_turn_is_as_long_as_the_endpoints_context_has_room(model: Model, asked: Any, tmp_path: Path) -> None:
    """Also the first one, where no more fits: nothing is wrong with the endpoint."""
    model.room = 300
    found = evaluated(asked("evaluation.questions=0"), tmp_path / "run")
    assert found["slices"][0]["em"]["mean"] == pytest.approx(2 / 3)
    assert {body["max_tokens"] for body in model.asked} == {2048, 1024, 512, 256}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("room", "usage", "reason"),
    [
        (100_000, {}, "turn_tokens"),
        (100_000, {"completion_tokens": 2048}, "turn_tokens"),
        (100_000, {"completion_tokens": 900}, "response_tokens"),
        (300, {}, "response_tokens"),
    ],
)
def test_a_turn_at_its_own_limit_is_told_from_a_context_that_is_full(
    model: Model, asked: Any, tmp_path: Path, room: int, usage: dict[str, int], reason: str
) -> None:
    """Less than the turn's limit comes of a full context alone: of fewer tokens asked for, or fewer generated."""
    model.room, model.thinks = room, usage
    evaluated(asked(), tmp_path / "run")
    assert {row["stop_reason"] for row in read(tmp_path / "run" / "eval_rows.jsonl")} == {reason}


@pytest.fixture
def many(asked: Any, tmp_path: Path) -> Any:
    """The questions many times over, one request at a time: what is asked in which order is known."""
    file = tmp_path / "many.jsonl"
    lines = (tmp_path / "ask.jsonl").read_text().splitlines()

    def config(*more: str, count: int = 200) -> RunConfig:
        rows = [json.loads(lines[n % 3]) for n in range(count)]
        named = [row | {"id": f"q{n:03}", "question": f"{n}: {row['question']}"} for n, row in enumerate(rows)]
        file.write_text("".join(json.dumps(row) + "\n" for row in named))
        return asked(
            *(f"data.eval_questions={file}", "evaluation.questions=0"),
            *("evaluation.endpoint.parallel=1", "evaluation.endpoint.tries=1"),
            *more,
        )

    return config


@pytest.mark.one_in(8)
@pytest.mark.parametrize("code", [403, 404])
def test_one_question_that_is_refused_is_a_fault_of_its_own(model: Model, many: Any, tmp_path: Path, code: int) -> None:
    """Some hosts refuse a flagged text with 403: what is asked again is that question alone."""
    model.flagged, model.code = "Question: 50: ", code
    found = evaluated(many(count=100), tmp_path / "run")
    assert (found["episodes"], found["faults"]) == (100, 1)


@pytest.mark.slow
def test_a_question_that_is_refused_at_the_start_of_what_goes_on_is_a_fault(
    model: Model, many: Any, tmp_path: Path
) -> None:
    model.flagged, model.code = "Question: 60: ", 403
    folder = tmp_path / "run"
    evaluated(many(), folder)
    rows = (folder / "eval_rows.jsonl").read_text().splitlines()
    (folder / "eval_rows.jsonl").write_text("".join(f"{row}\n" for row in rows[:64]))  # as it was killed
    found = evaluated(many("resume=if_any", f"output_dir={folder}"), folder)
    assert (found["episodes"], found["faults"]) == (200, 1)


@pytest.mark.slow
def test_an_endpoint_that_is_gone_ends_the_evaluation_soon(model: Model, many: Any, tmp_path: Path) -> None:
    model.down, folder = 1000, tmp_path / "run"
    with pytest.raises(
        Fault, match=r"^nothing but faults came of the last 20 questions: .*HTTP 503.* goes on$"
    ) as caught:
        evaluated(many(), folder)
    assert f"; resume=if_any output_dir={folder} goes on" in str(caught.value)
    assert len(model.asked) == 20
    model.down = 0
    assert evaluated(many("resume=if_any", f"output_dir={folder}"), folder)["faults"] == 0


def test_a_question_that_is_refused_as_often_as_it_is_asked_counts_once(asked: Any, tmp_path: Path) -> None:
    """With many samples one of them would else end the evaluation."""
    config = asked("evaluation.samples=64", "evaluation.temperature=1")
    players = EndpointPlayers(config, tmp_path, stage=None, runner=None)  # type: ignore[arg-type]  # nothing is played
    row = EvalRow(
        question_id="", kind="", answer=None, em=0.0, f1=0.0, evidence=None, searches=0, action_tokens=0,
        stop_reason="generation_failed", fault=True, error="HTTP 403",
    )  # fmt: skip

    def faulty(name: str) -> list[EvalRow]:
        return [replace(row, question_id=name, sample=n) for n in range(64)]

    for n in range(19):
        players._check_alive(faulty(f"q{n}"))
    players._check_alive([*faulty("q19")[1:], replace(row, question_id="q19", fault=False)])
    for n in range(20, 39):
        players._check_alive(faulty(f"q{n}"))
    with pytest.raises(Fault, match=r"^nothing but faults came of the last 20 questions: generation_failed: HTTP"):
        players._check_alive(faulty("q39"))


@pytest.mark.slow
def test_questions_that_were_refused_before_are_no_sign_that_the_endpoint_is_gone(
    model: Model, many: Any, tmp_path: Path
) -> None:
    """They are all that is asked again."""
    model.flagged, model.code = "Ulysses", 403
    found = evaluated(many("evaluation.max_fault_share=0.5"), tmp_path / "run")
    assert found["faults"] == 67


def test_as_many_episodes_are_played_at_a_time_as_are_asked_and_none_waits_for_another(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's reply comes last, and 100 have to be there before any of the others'."""
    now = most = 0
    together, others = asyncio.Event(), asyncio.Event()

    class Client:
        answered = 0

        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, *error: object) -> None: ...

        async def chat(self, messages: list[dict[str, str]], **settings: Any) -> Reply:
            nonlocal now, most
            now += 1
            most = max(most, now)
            if now == 100:
                together.set()
            async with asyncio.timeout(20):
                await (others if "Question: 0: " in messages[0]["content"] else together).wait()
            now -= 1
            self.answered += 1
            if self.answered == 199:
                others.set()
            return Reply(text="<answer>nobody", finish="stop")

    monkeypatch.setattr(settings.EndpointConfig, "client", lambda config: Client())
    evaluated(many("evaluation.endpoint.parallel=100"), tmp_path / "run")
    assert most == 100
    rows = read(tmp_path / "run" / "eval_rows.jsonl")
    assert len({row["question_id"] for row in rows}) == len(rows) == 200
    assert rows[-1]["question_id"] == "q000", "rows are kept as their questions end"


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["checkpoint=x"], "checkpoint and evaluation.endpoint.url both say what is evaluated; leave one out"),
        (
            ["exit=early", "exit.threshold=0.5"],
            "evaluation.endpoint plays full episodes: leave exit and selectivity out",
        ),
        (
            ["agent=reader"],
            "agent.tools=['search', 'open']: a model behind evaluation.endpoint writes one search a turn, in tags; "
            "leave agent.tools out, or take agent=search",
        ),
        (["agent=tools"], "agent.format=tools: a model behind evaluation.endpoint writes one search a turn, in tags; "),
        (["agent.thinking=false"], "agent.thinking=False: a model behind evaluation.endpoint "),
        (["agent.max_parallel=4"], "agent.max_parallel=4: a model behind evaluation.endpoint "),
        (["agent.malformed=notice"], "agent.malformed=notice: a model behind evaluation.endpoint "),
        (["agent.max_response_tokens=100"], "agent.max_response_tokens=100: the limits of an episode's tokens are "),
        (["evaluation.endpoint.url=null"], "evaluation.endpoint.model=org/some-model needs evaluation.endpoint.url="),
        (["evaluation.endpoint.url=here"], "evaluation.endpoint.url=here must start with http:// or https://"),
    ],
)
def test_what_does_not_go_with_an_endpoint_is_refused(asked: Any, more: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        asked(*more)
    assert str(caught.value).startswith(message)
