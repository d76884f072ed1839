"""The environment by hand: who answers what, what counts against the limit, what a fault or a wrong tool does."""

from __future__ import annotations

import asyncio
import pickle
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.config import AgentConfig, SelectivityConfig
from agent.dialogue import Dialogue, format_class
from agent.environment import Environment, _made
from agent.errors import Fault, RetrievalError, ToolError, UserError
from agent.formats.base import Format
from agent.formats.tags import tags_of
from agent.protocol import PROTOCOLS
from agent.records import Call, Finish, Passage, Repeat, StopReason, Turn
from agent.tools.base import Request, Result, Situation, Tool
from agent.tools.catalogue import tool_classes, tool_names
from agent.tools.search import LIMIT_NOTICE, REPEAT_NOTICES

ROOT = Path(__file__).parents[2]


@dataclass
class Shelf:
    """A query finds a document for each of its letters; ``waits`` are the most that were asked at once."""

    queries: list[str] = field(default_factory=list)
    open: int = 0
    most: int = 0

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        self.queries.append(query)
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0)
        self.open -= 1
        if query == "broken":
            raise RetrievalError("timeout")
        return tuple(Passage(id=letter, title=letter.upper(), text="text") for letter in query[:k])


class Count(Tool):
    """A tool of somebody's own."""

    name = "count"
    description = "Counts letters."
    parameters = {"text": {"type": "string", "description": "A text."}}  # noqa: RUF012

    async def call(self, request: Request, situation: Situation) -> Result:
        if request.text == "fail":
            raise ToolError("no counting today")
        if request.text == "bug":
            raise ZeroDivisionError
        return Result(text=f"{len(request.text)} letters, {len(situation.calls('count'))} counts before")


class Unfinished(Tool):
    name = "unfinished"


def ask(*queries: str, tool: str = "search") -> list[Request]:
    return [Request(tool=tool, arguments={"query": query}) for query in queries]


def turn(*calls: Call) -> Turn:
    return Turn(action_start=0, action_end=1, observation_end=2, text="", calls=calls)


def searched(query: str, *documents: str, **more) -> Turn:
    titles = tuple(d.upper() for d in documents)
    return turn(Call(tool="search", argument=query, document_ids=documents, titles=titles, **more))


def respond(requests, *turns, max_searches=3, selectivity=None, tools=("search",)):
    shelf = Shelf()
    environment = Environment.of(AgentConfig(tools=list(tools)), shelf)
    situation = Situation(
        turns=turns, max_searches=max_searches, selectivity=selectivity or SelectivityConfig(queries=False)
    )
    return asyncio.run(environment.respond(requests, situation)), shelf


def test_the_searches_of_a_turn_run_together_and_are_answered_in_order():
    response, shelf = respond(ask("ab", "c", "d"))
    assert [[p.id for p in r.passages] for r in response.results] == [["a", "b"], ["c"], ["d"]]
    assert (shelf.queries, shelf.most) == (["ab", "c", "d"], 3)
    assert response.stop is None


def test_each_search_of_a_turn_counts_against_the_limit():
    response, shelf = respond(ask("b", "c", "d"), searched("a"), max_searches=3)
    assert shelf.queries == ["b", "c"]
    assert [r.refused for r in response.results] == [False, False, True]
    assert response.results[2].notice == LIMIT_NOTICE
    assert response.stop is None, "the turn that goes beyond the limit is told so"


def test_a_search_after_the_notice_ends_the_episode_and_nothing_of_its_turn_is_shown():
    response, shelf = respond(ask("c"), searched("a"), searched("b", refused=True), max_searches=1)
    assert (response.stop, shelf.queries) == (StopReason.SEARCH_LIMIT, [])
    both = [*ask("c"), *ask("x", tool="count")]
    response, _ = respond(both, searched("b", refused=True), tools=("search", f"{__name__}:Count"))
    assert response.stop is StopReason.SEARCH_LIMIT
    assert [r.passages for r in response.results] == [(), ()]


def test_a_fault_of_one_call_is_a_fault_of_the_turn():
    response, shelf = respond(ask("a", "broken", "b"))
    assert (response.stop, response.fault) == (StopReason.RETRIEVAL_FAILED, "timeout")
    assert shelf.queries == ["a", "broken", "b"]
    assert all(r == Result() for r in response.results), "what is never shown is no evidence"
    response, _ = respond(ask("fail", tool="count"), tools=(f"{__name__}:Count",))
    assert (response.stop, response.fault) == (StopReason.TOOL_FAILED, "no counting today")


def test_a_query_twice_in_one_turn_is_a_repeat_where_that_is_asked_for():
    response, shelf = respond(ask("ab", "The AB!"), selectivity=SelectivityConfig(queries=True))
    assert shelf.queries == ["ab"]
    assert [r.repeat for r in response.results] == [None, Repeat.QUERY]
    assert response.results[1].notice == REPEAT_NOTICES[Repeat.QUERY]


def test_a_tool_sees_its_own_earlier_calls():
    before = turn(Call(tool="count", argument="x")), searched("a")
    response, _ = respond(ask("four", tool="count"), *before, tools=("search", f"{__name__}:Count"))
    assert response.results[0].text == "4 letters, 1 counts before"


# --- a tool of somebody's own, as the docs have it ----------------------------------------------------


@pytest.mark.parametrize("call", ["<years>1775-1817</years>", "<years>long</years>"])
def test_the_docs_tool_works_from_a_package_of_ones_own(call, tmp_path, monkeypatch, play_script):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "agent.md").read_text(), re.DOTALL)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "tools.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    played = play_script([call, "<answer>42</answer>"], tools=["search", "my_package.tools:Years"])
    t = played.trajectory
    assert (t.answer, t.searches, [c.tool for c in t.turns[0].calls]) == ("42", 0, ["years"])
    shown = "Write two years, such as 1775-1817." if "long" in call else "42 years"
    assert f"\n<result>\n{shown}\n</result>\n" in played.text
    assert "<years> span </years>: Says how many years" in played.codec.decode(t.prompt_ids)


def test_a_tool_whose_arguments_no_tag_can_hold_needs_the_other_format(codec, monkeypatch):
    module = types.ModuleType("a_module_with_two_arguments")
    two = {name: {"type": "string", "description": name} for name in ("one", "two")}
    module.Two = type("Two", (Count,), {"name": "two", "parameters": two})
    module.Answer = type("Answer", (Count,), {"name": "answer"})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(UserError, match=r"'two' takes other arguments than one text.*agent\.format=tools"):
        Dialogue.of(codec, AgentConfig(tools=[f"{module.__name__}:Two"]))
    with pytest.raises(UserError, match="the tags of 'answer' have another meaning"):
        Dialogue.of(codec, AgentConfig(tools=[f"{module.__name__}:Answer"]))


@pytest.mark.parametrize(
    ("protocol", "taken"),
    [
        ("search", ("think", "result", "answer")),
        ("search_r1", ("think", "information", "answer")),
        ("autocoa", ("think", "begin_search", "end_search", "search_result")),
    ],
)
def test_a_tool_is_called_like_no_tag_of_the_protocol(protocol: str, taken: tuple[str, ...]) -> None:
    for name in taken:
        with pytest.raises(
            UserError, match=rf"the tags of '{name}' have another meaning in agent\.protocol={protocol}"
        ):
            PROTOCOLS[protocol].with_tools([type("Own", (Count,), {"name": name})])
    PROTOCOLS[protocol].with_tools([Count])


# --- which tools there are ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This file, which pytest imports under a name of its own, as a module that an import path can name."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or types.ModuleType(__name__))
    for name in ("Count", "Unfinished", "ask"):
        monkeypatch.setattr(sys.modules[__name__], name, globals()[name], raising=False)


def test_the_shipped_tools_are_the_files_of_their_folder():
    assert "search" in tool_names()
    assert [tool.name for tool in tool_classes(tool_names())] == tool_names()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"agent\.tools is empty; name at least one of: .*search"),
        (["serch"], r"agent\.tools=serch is not known; did you mean 'search'\?"),
        (["base"], r"agent\.tools=base is not known"),
        (["search", "search"], "two tools are called 'search'"),
        (
            ["no_such_package.tools:Mine"],
            r"agent\.tools=no_such_package\.tools:Mine: there is no module no_such_package; set PYTHONPATH",
        ),
        (
            ["agent.tools.search:Serch"],
            r"agent\.tools=agent\.tools\.search:Serch: agent\.tools\.search has no Serch; did you mean 'Search'\?",
        ),
        ([f"{__name__}:ask"], "is no tool; it has to be one subclass"),
        ([f"{__name__}:Unfinished"], "is no tool; it has to be one subclass"),
    ],
)
def test_wrong_tools_are_the_users_mistake(names, message):
    with pytest.raises(UserError, match=message) as error:
        tool_classes(names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("does", "fault"),
    [
        (lambda: "three", "agent.tools: count returned a str, and no agent.tools.base.Result"),
        (lambda: 1 / 0, "agent.tools: count raised ZeroDivisionError: division by zero"),
        (lambda: Result(text=3), "agent.tools: count returned a Result with a int in the place of a text"),
        (lambda: Result(notice=None), "agent.tools: count returned a Result with a NoneType in the place of a text"),
        (
            lambda: Result(passages=(Passage(id="d", title=None, text="x"),)),
            "agent.tools: count returned a Result with a NoneType in the place of a text",
        ),
        (
            lambda: Result(passages=({"id": "d"},)),
            "agent.tools: count returned a Result whose passages are no agent.records.Passage",
        ),
        (
            lambda: Result(stop="answered"),
            "agent.tools: count returned a Result whose stop is 'answered', and no reason of a tool's",
        ),
        (
            lambda: Result(stop=StopReason.EARLY_EXIT),
            f"agent.tools: count returned a Result whose stop is {StopReason.EARLY_EXIT!r}, and no reason of a tool's",
        ),
        (
            lambda: Result(stop=StopReason.ANSWERED),
            f"agent.tools: count returned a Result whose stop is {StopReason.ANSWERED!r}, and no reason of a tool's",
        ),
        (
            lambda: Result(stop=StopReason.TOOL_FAILED),
            f"agent.tools: count returned a Result whose stop is {StopReason.TOOL_FAILED!r}; where something broke, it "
            "has to raise ToolError",
        ),
        (lambda: sys.exit("usage: count"), "agent.tools: count raised SystemExit: usage: count"),
        (lambda: Result(refused=None), "agent.tools: count returned a Result whose repeat is None and refused None"),
        (
            lambda: Result(repeat="query"),
            "agent.tools: count returned a Result whose repeat is 'query' and refused False",
        ),
        (
            lambda: Result(passages=None),
            "agent.tools: count returned a Result whose passages are no agent.records.Passage",
        ),
    ],
)
def test_a_defect_of_a_tool_costs_its_trajectory_alone(does, fault: str) -> None:
    """And not the worker with its engine, whose questions would be suspected next."""

    class Broken(Count):
        async def call(self, request: Request, situation: Situation) -> Result:
            return does()

    environment = Environment([Broken(AgentConfig(), Shelf())])  # type: ignore[arg-type]
    request = Request(tool=Broken.name, arguments={"text": "x"})
    response = asyncio.run(environment.respond([request], Situation(turns=(), max_searches=1)))
    assert (response.stop, response.fault) == (StopReason.TOOL_FAILED, fault)
    assert response.stop.is_fault


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no key"), r"__init__\(\) raised RuntimeError: no key$"),
        (Fault("no server"), r"__init__\(\) raised Fault: no server$"),
        (UserError("set COUNT_KEY"), r"set COUNT_KEY$"),
        (SystemExit("usage: count"), r"__init__\(\) raised SystemExit: usage: count$"),
    ],
)
def test_a_tool_that_cannot_be_made_is_named(error, said: str, monkeypatch) -> None:
    def fails(self, config, searcher):
        raise error

    monkeypatch.setattr(Count, "__init__", fails)
    with pytest.raises(UserError, match=rf"^agent\.tools={__name__}:Count: {said}"):
        Environment.of(AgentConfig(tools=[f"{__name__}:Count"]), Shelf())  # type: ignore[arg-type]


def test_a_format_that_cannot_be_made_is_named(codec, monkeypatch) -> None:
    def fails(self, codec, config, tools):
        raise RuntimeError("no tags")

    monkeypatch.setattr(format_class("tags"), "__init__", fails)
    with pytest.raises(UserError, match=r"^agent\.format=tags: __init__\(\) raised RuntimeError: no tags$"):
        Dialogue.of(codec, AgentConfig())


@pytest.mark.parametrize("error", [UserError, Fault])
def test_a_tool_ends_no_run(error) -> None:
    class Broken(Count):
        async def call(self, request: Request, situation: Situation) -> Result:
            raise error("it would end the run")

    environment = Environment([Broken(AgentConfig(), Shelf())])  # type: ignore[arg-type]
    request = Request(tool=Broken.name, arguments={"text": "x"})
    response = asyncio.run(environment.respond([request], Situation(turns=(), max_searches=1)))
    assert response.stop is StopReason.TOOL_FAILED
    assert response.fault == f"agent.tools: count raised {error.__name__}: it would end the run"


def test_what_a_tool_tells_can_be_encoded() -> None:
    class Half(Count):
        async def call(self, request: Request, situation: Situation) -> Result:
            passage = Passage(id="d\ud800", title="t\ud800", text="p\ud800")
            return Result(text="x\ud83d", notice="n\udc00", passages=(passage,))

    environment = Environment([Half(AgentConfig(), Shelf())])  # type: ignore[arg-type]
    request = Request(tool=Half.name, arguments={"text": "x"})
    (result,) = asyncio.run(environment.respond([request], Situation(turns=(), max_searches=1))).results
    assert (result.text, result.notice, result.passages) == ("x?", "n?", (Passage(id="d?", title="t?", text="p?"),))


def test_a_cancellation_that_nobody_asked_for_is_the_tools_failure() -> None:
    """As a client raises whose connection is gone; an episode that is given up ends all the same."""
    entered = asyncio.Event()

    class Cancelled(Count):
        async def call(self, request: Request, situation: Situation) -> Result:
            if request.text == "waits":
                entered.set()
                await asyncio.Event().wait()
            raise asyncio.CancelledError

    environment = Environment([Cancelled(AgentConfig(), Shelf())])  # type: ignore[arg-type]

    async def asked(text: str):
        request = Request(tool=Cancelled.name, arguments={"text": text})
        return await environment.respond([request], Situation(turns=(), max_searches=1))

    async def given_up() -> None:
        episode = asyncio.ensure_future(asked("waits"))
        await entered.wait()
        episode.cancel()
        await episode

    response = asyncio.run(asked("x"))
    assert response.stop is StopReason.TOOL_FAILED
    assert response.fault == "agent.tools: count raised CancelledError: CancelledError"
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(given_up())


def test_what_a_tool_does_to_its_arguments_is_not_on_record() -> None:
    """It isn't told to others of the turn either, and what it makes of them may be no JSON."""
    seen = []

    class Changing(Count):
        async def call(self, request: Request, situation: Situation) -> Result:
            seen.append([other.text for other in situation.before])
            for each in (*situation.before, request):
                each.arguments.update(text=object(), more=1)  # type: ignore[attr-defined]
            return Result(text="x")

    environment = Environment([Changing(AgentConfig(), Shelf())])  # type: ignore[arg-type]
    requests = [Request(tool=Changing.name, arguments={"text": text}) for text in "ab"]
    given = asyncio.run(environment.respond(requests, Situation(turns=(), max_searches=1)))
    assert [r.call(request).argument for r, request in zip(given.results, requests, strict=True)] == ["a", "b"]
    assert seen == [[], ["a"]]


def test_what_a_tool_does_to_the_episode_or_the_settings_is_its_own() -> None:
    class Changing(Count):
        def __init__(self, config, searcher):
            config.top_k = 9
            super().__init__(config, searcher)

        async def call(self, request: Request, situation: Situation) -> Result:
            situation.turns.clear()  # type: ignore[attr-defined]
            return Result(text="x")

    config, turns = AgentConfig(top_k=3, tools=["search", f"{__name__}:Count"]), [searched("a", "b")]
    tool = _made("mine", Changing, config, Shelf())  # type: ignore[arg-type]
    assert (tool.config.top_k, config.top_k) == (9, 3)
    request = Request(tool=Changing.name, arguments={"text": "x"})
    given = asyncio.run(Environment([tool]).respond([request], Situation(turns=turns, max_searches=1)))
    assert given.fault == "agent.tools: count raised AttributeError: 'tuple' object has no attribute 'clear'"
    assert len(turns) == 1


class Parsed(str):
    """A text of a page's parser, which keeps the page: it can't be pickled, and isn't equal to itself."""

    def __new__(cls, text: str) -> Parsed:
        made = super().__new__(cls, text)
        made.page = lambda: text  # type: ignore[attr-defined]
        return made

    def encode(self, *_):
        raise TypeError("which encoding?")

    def __eq__(self, other):
        return False

    __hash__ = str.__hash__


def test_what_a_tool_tells_is_plain_text() -> None:
    class Reader(Count):
        async def call(self, request: Request, situation: Situation) -> Result:
            passage = Passage(id=Parsed("d"), title=Parsed("t"), text=Parsed("p"))
            return Result(text=Parsed("x"), notice=Parsed("n"), passages=[passage])  # type: ignore[arg-type]

    environment = Environment([Reader(AgentConfig(), Shelf())])  # type: ignore[arg-type]
    request = Request(tool=Reader.name, arguments={"text": "x"})
    (result,) = asyncio.run(environment.respond([request], Situation(turns=(), max_searches=1))).results
    assert pickle.loads(pickle.dumps(result)) == result
    assert (result.text, result.notice, result.passages) == ("x", "n", (Passage(id="d", title="t", text="p"),))


def test_the_search_may_be_a_tool_of_ones_own() -> None:
    """Its one text is called as its parameters say; several make no tag."""
    own = type("Own", (Count,), {"name": "search", "parameters": {"text": {"type": "string"}}})
    (request,) = PROTOCOLS["search"].with_tools([own]).parse("<search>emma</search>").requests
    assert request.arguments == {"text": "emma"}
    several = type("Own", (Count,), {"name": "search", "parameters": {n: {"type": "string"} for n in "ab"}})
    with pytest.raises(UserError, match="'search' takes other arguments than one text"):
        PROTOCOLS["search"].with_tools([several])


def test_the_shipped_prompt_tells_of_a_search() -> None:
    with pytest.raises(UserError, match=r"agent\.prompt=instruct tells of a search, and agent\.tools has none"):
        tags_of(AgentConfig(prompt="instruct", tools=["open"]))
    tags_of(AgentConfig(prompt="instruct", tools=["open"], format="tools"))
    tags_of(AgentConfig(prompt="plain", tools=["open"]))


@pytest.mark.parametrize(("classes", "has"), [((), "none"), (("A", "B"), "A, B")])
def test_a_file_without_exactly_one_tool_or_format_is_named(classes, has, monkeypatch):
    from agent.tools import catalogue

    tools, formats = types.ModuleType("agent.tools.mine"), types.ModuleType("agent.formats.mine")
    for module, base in ((tools, Tool), (formats, Format)):
        module.__file__ = "mine.py"
        for name in classes:
            setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(catalogue, "tool_names", lambda: ["mine"])
    with pytest.raises(
        UserError, match=rf"^agent\.tools=mine: mine\.py has to have one subclass of Tool, and has {has}$"
    ):
        tool_classes(["mine"])
    with pytest.raises(UserError, match=rf"^agent\.format=mine: mine\.py .*one subclass of Format, and has {has}$"):
        format_class("mine")


async def _takes_text(self, text):
    return Result()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "My Tool"}, "the tool's name 'My Tool' must be"),
        ({"description": ""}, "the tool has no 'description'"),
        ({"description": " "}, "the tool's 'description', which the policy reads, must be a text"),
        ({"description": ["Counts."]}, "the tool's 'description', which the policy reads, must be a text"),
        (
            {"parameters": {"n": {"type": "string", "description": "a word", "enum": "ab"}}},
            "the 'enum' of its parameter 'n' must be a list of the values it takes",
        ),
        (
            {"parameters": {"n": {"type": "integer", "description": "a number", "enum": [1, "2"]}}},
            "the 'enum' of its parameter 'n' has '2', which is no integer",
        ),
        (
            {"parameters": {"n": {"type": "integer", "description": "a number", "enum": [1, True]}}},
            "the 'enum' of its parameter 'n' has True, which is no integer",
        ),
        (
            {"parameters": {"n": {"type": "integer", "description": "a number", "default": print}}},
            "the schema of its parameter 'n' is no JSON",
        ),
        ({"parameters": {"n": {"type": "text"}}}, "the type of its parameter 'n' must be one of"),
        ({"parameters": {"n": {"type": "string"}}}, "its parameter 'n' needs a 'description', which the policy reads"),
        ({"parameters": {"n": {"type": "string", "description": " "}}}, "its parameter 'n' needs a 'description'"),
        ({"parameters": {"n": "string"}}, "the type of its parameter 'n' must be one of"),
        ({"parameters": {"n": {"type": ["string"]}}}, "the type of its parameter 'n' must be one of"),
        ({"parameters": None}, "the tool has no 'parameters'"),
        ({"parameters": ["n"]}, "its 'parameters' must be JSON schemas by the arguments' names"),
        ({"name": 5}, "the tool's name '5' must be"),
        ({"call": lambda self, request, situation: Result()}, "its method 'call' must be async"),
        ({"__init__": lambda self: None}, r"__init__ must take \(self, config, searcher\), as Tool's does"),
        ({"call": _takes_text}, r"call must take \(self, request, situation\), as Tool's does"),
    ],
)
def test_a_tool_says_what_it_is(changed, message, monkeypatch):
    module = types.ModuleType("a_module_with_a_tool")
    module.Mine = type("Mine", (Count,), changed)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    from agent.tools import catalogue

    catalogue._tool_class.cache_clear()
    with pytest.raises(UserError, match=message):
        tool_classes(["a_module_with_a_tool:Mine"])


def test_a_tool_may_take_nothing_where_no_tag_has_to_hold_it(monkeypatch, codec):
    module = types.ModuleType("a_module_with_a_tool_that_takes_nothing")
    module.Mine = type("Mine", (Count,), {"parameters": {}})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    tools = ["search", f"{module.__name__}:Mine"]
    dialogue = Dialogue.of(codec, AgentConfig(format="tools", tools=tools))
    called = '<tool_call>{"name": "count", "arguments": {}}</tool_call>'
    assert dialogue.parse(called, Finish.STOP).requests == (Request(tool="count", arguments={}),)
    with pytest.raises(UserError, match=r"'count' takes other arguments than one text, .*set agent\.format=tools"):
        Dialogue.of(codec, AgentConfig(tools=tools))


def test_an_expert_calls_no_tool_that_isnt_there(codec):
    dialogue = Dialogue.of(codec, AgentConfig(tools=["open"], prompt="plain"))
    assert dialogue.action_ids("<answer>x</answer>")
    with pytest.raises(UserError, match=r"^agent\.tools has no 'search', which experts and the world's demonstrations"):
        dialogue.action_ids("<search>x</search>")


def test_what_stands_in_a_tag_is_one_of_the_choices_of_its_argument(monkeypatch, codec):
    module = types.ModuleType("a_module_with_a_tool_that_sorts")
    by = {"type": "string", "description": "what to sort by", "enum": ["date", "title"]}
    module.Mine = type("Mine", (Count,), {"parameters": {"by": by}})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    dialogue = Dialogue.of(codec, AgentConfig(tools=["search", f"{module.__name__}:Mine"], max_parallel=2))
    action = dialogue.parse("<count>date\ntitle</count>", Finish.STOP)
    assert [request.arguments for request in action.requests] == [{"by": "date"}, {"by": "title"}]
    action = dialogue.parse("<count>date\nDate</count>", Finish.STOP)
    assert (action.requests, action.malformed) == ((), "a call whose argument is none of its choices")
