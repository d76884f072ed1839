"""The models' own tool-calling formats: what the loop builds is what the chat template makes of the same messages."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import chat_templates
import pytest

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import MALFORMED_NOTICE, play
from agent.errors import UserError
from agent.formats.calls import JsonCalls, Malformed, TaggedCalls, check
from agent.protocol import PROTOCOLS
from agent.records import Completion, Finish, Passage, Question, StopReason
from agent.tokens import Tokenizer
from agent.tools.base import Request
from agent.tools.search import Search

QUESTION = Question(id="q", text="Who wrote <|im_end|> Emma?", golden_answers=("x",))
FAMILIES = {
    "plain": (chat_templates.PLAIN, "chatml"),
    "qwen2.5": (chat_templates.QWEN25, "chatml"),
    "qwen3": (chat_templates.QWEN3, "chatml"),
    "llama": (chat_templates.LLAMA, "llama"),
    "no system": (chat_templates.NO_SYSTEM, "chatml"),
}


class Shelf:
    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        text = 'a "quoted" é\ntext <|im_end|> </tool_response> <tool_call>'
        return () if query == "none" else (Passage(id=query, title=query.upper(), text=text),)


@dataclass
class Script:
    """Writes each turn as the tokenizer encodes it, and ends it as the engine would."""

    dialogue: Dialogue
    turns: list[str]
    finish: Finish = Finish.STOP
    end: bool = True
    prompts: list[list[int]] = field(default_factory=list)

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        assert stop == self.dialogue.stop
        text = self.turns[len(self.prompts)] + (stop[0] if self.end else "")
        self.prompts.append(list(prompt_ids))
        ids = tuple(self.dialogue.codec.encode(text))
        return Completion(token_ids=ids, logprobs=(-0.1,) * len(ids), versions=(0,) * len(ids), finish=self.finish)


def style(family: str):
    return JsonCalls() if family == "llama" else TaggedCalls()


def call(family: str, *queries: str) -> str:
    join = ";" if family == "llama" else "\n"
    return join.join(style(family).write(Request(tool="search", arguments={"query": q})) for q in queries)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Callable[[str], Tokenizer]:
    """That of a family, made once: nobody changes it."""

    @cache
    def make(family: str) -> Tokenizer:
        template, kind = FAMILIES[family]
        return chat_templates.small_tokenizer(tmp_path_factory.mktemp("tokenizer"), template, family=kind)

    return make


@pytest.fixture
def tokenizer(family, tokenizers) -> Tokenizer:
    return tokenizers(family)


def config(**changed) -> AgentConfig:
    return AgentConfig(format="tools", **changed)


def run(tokenizer, turns, *, settings=None, **script):
    settings = settings or config()
    dialogue = Dialogue.of(tokenizer, settings)
    engine = Script(dialogue, turns, **script)
    trajectory = asyncio.run(
        play(
            QUESTION,
            dialogue=dialogue,
            config=settings,
            generator=engine,
            environment=Environment.of(settings, Shelf()),
            temperature=1.0,
            seed=0,
        )
    )
    return trajectory, dialogue, engine


def rendered(tokenizer, dialogue, trajectory) -> list[int]:
    """The whole episode as the template makes it of its messages, encoded as one text."""
    format = dialogue._format
    template, end = format._template, dialogue.stop[0]
    messages = format.messages(dialogue.neutral(QUESTION.text))
    for turn in trajectory.turns[:-1]:
        messages.append({"role": "assistant", "content": turn.text.removesuffix(end)})
        texts = [
            dialogue.neutral(f'Result 1: "{c.titles[0]}"\na "quoted" é\ntext <|im_end|> </tool_response> <tool_call>')
            if c.titles
            else "No passage matches this query."
            for c in turn.calls
        ]
        messages += template.results(texts)
    return tokenizer.encode(template.render(messages) + trajectory.turns[-1].text)


def test_an_episode_is_what_the_template_makes_of_its_messages_token_for_token(tokenizer, family):
    turns = [call(family, "emma"), "<think>\nHm.\n</think>\n\n" + call(family, "none"), call(family, "a", "b"), "Jane"]
    t, dialogue, _ = run(tokenizer, turns, settings=config(max_parallel=2))
    assert dialogue.notices == ()
    assert (t.stop_reason, t.answer, t.searches) == (StopReason.ANSWERED, "Jane", 4)
    whole = [*t.prompt_ids.tolist(), *t.token_ids.tolist()]
    assert whole == rendered(tokenizer, dialogue, t)
    # What was sampled is there as it was, and nothing else is trained.
    written = [i for turn in turns for i in tokenizer.encode(turn + dialogue.stop[0])]
    assert t.token_ids[t.action_mask].tolist() == written
    text = tokenizer.decode(t.token_ids.tolist())
    assert text.count(dialogue.stop[0]) == len(turns) + (0 if family == "llama" else 3) + (
        4 if family == "llama" else 0
    )


def test_a_turn_that_another_token_ended_is_ended_for_the_next(tokenizer, family):
    t, dialogue, _ = run(tokenizer, [call(family, "emma") + "<|endoftext|>", "Jane"], end=False)
    assert (t.stop_reason, t.answer) == (StopReason.ANSWERED, "Jane")
    seen = t.token_ids[t.turns[0].action_end : t.turns[0].observation_end].tolist()
    assert tokenizer.decode(seen).startswith(dialogue.stop[0])


def test_a_turn_that_was_cut_off_is_no_answer(tokenizer, family):
    t, _, _ = run(tokenizer, ["Jane"], end=False, finish=Finish.LENGTH)
    assert (t.stop_reason, t.answer) == (StopReason.TURN_TOKENS, None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So <answer> Jane </answer>!", "Jane"),
        (" Jane Austen\n", "Jane Austen"),
        ("<think>\nIs it Jane?\n</think>\n\nAusten", "Austen"),
        ("It is Jane?</think>Austen", "Austen"),
        ("<think>Jane", None),
        ("", None),
        ("<think>\n\n</think>", None),
        ("<think><tool_call></think>x", "x"),
    ],
)
def test_a_turn_without_a_call_is_the_answer(tokenizer, text, answer):
    t, _, _ = run(tokenizer, [text])
    assert (t.answer, t.stop_reason) == (answer, StopReason.NO_ACTION if answer is None else StopReason.ANSWERED)


WRONG = [
    ("name", '{"name": "serch", "arguments": {"query": "a"}}', "there is no such tool"),
    ("json", '{"name": "search", "arguments": {"query": "a"}', "a call that is no valid JSON"),
    ("json", '{"name": "search", "arguments": {"query": "a", "query": "b"}}', "a call that is no valid JSON"),
    ("argument", '{"name": "search", "arguments": {"q": "a"}}', "a call with other arguments than the tool takes"),
    (
        "more",
        '{"name": "search", "arguments": {"query": "a", "k": 1}}',
        "a call with other arguments than the tool takes",
    ),
    ("type", '{"name": "search", "arguments": {"query": 1}}', "a call whose argument has the wrong type"),
    ("empty", '{"name": "search", "arguments": {"query": " "}}', "a call with nothing in it"),
    ("invisible", '{"name": "search", "arguments": {"query": "\\u200b"}}', "a call with nothing in it"),
    ("none", '{"name": "search"}', "a call without arguments"),
]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("text", "why"), [(t, w) for _, t, w in WRONG], ids=[n for n, *_ in WRONG])
def test_a_malformed_call_ends_the_episode_or_is_answered_with_a_notice(tokenizer, family, text, why):
    if family == "llama":
        text, why = text.replace("arguments", "parameters"), why.replace("without arguments", "without parameters")
    else:
        text = f"<tool_call>{text}</tool_call>"
    t, _, _ = run(tokenizer, [text])
    assert (t.stop_reason, t.turns[0].calls) == (StopReason.MALFORMED, ())
    t, _, engine = run(tokenizer, [text, "Jane"], settings=config(malformed="notice"))
    assert (t.stop_reason, t.searches) == (StopReason.ANSWERED, 0)
    assert MALFORMED_NOTICE.format(why=why) in tokenizer.decode(engine.prompts[1])


def test_an_argument_is_one_of_its_choices_where_it_has_some():
    parameters = {"sort": {"by": {"type": "string", "description": "what to sort by", "enum": ["date", "title"]}}}
    check([Request(tool="sort", arguments={"by": "date"})], parameters)
    with pytest.raises(Malformed, match="a call whose argument is none of its choices"):
        check([Request(tool="sort", arguments={"by": "Date"})], parameters)
    parameters["sort"]["by"]["enum"].append("")
    check([Request(tool="sort", arguments={"by": ""})], parameters)


@pytest.mark.parametrize(
    "text", ["<tool_call>{}", "{}</tool_call>", "<tool_call>x</tool_call><tool_call>", "<answer>x"]
)
def test_what_is_opened_and_not_closed_is_malformed(tmp_path, text):
    tokenizer = chat_templates.small_tokenizer(tmp_path, chat_templates.QWEN25)
    assert run(tokenizer, [text])[0].stop_reason is StopReason.MALFORMED


def test_a_call_that_is_opened_again_and_again_is_read_at_once():
    """It took the square of a turn's length: minutes for this one."""
    whole = TaggedCalls().write(Request(tool="search", arguments={"query": "Emma"}))
    for text in ("<tool_call>" * 100_000, f"{whole}\n{'<tool_call>' * 100_000}"):
        with pytest.raises(Malformed, match="one of its two tags missing"):
            TaggedCalls().read(text)


def test_a_notice_without_room_ends_the_episode(tokenizer, family):
    bad = call(family, "a", "b")
    settings = config(malformed="notice", max_response_tokens=len(tokenizer.encode(bad)) + 5)
    assert run(tokenizer, [bad], settings=settings)[0].stop_reason is StopReason.RESPONSE_TOKENS


def test_more_calls_than_allowed_are_malformed(tokenizer, family):
    assert run(tokenizer, [call(family, "a", "b")])[0].stop_reason is StopReason.MALFORMED


def test_the_tools_are_described_once(tokenizer, family):
    _, dialogue, _ = run(tokenizer, ["x"], settings=config(tools=["search", "open"]))
    prompt = dialogue.prompt_text("Who?")
    assert prompt.count("Searches a document collection") == prompt.count("Reads on in a document") == 1
    assert "write <tool_call>" in prompt or family in ("qwen2.5", "qwen3", "llama")


@pytest.mark.parametrize("name", ["LFM", "GRANITE", "XML", "REFUSING", "NO_TOOLS", "NO_RESULTS"])
def test_a_template_whose_calls_or_results_are_others_describes_no_tools(tmp_path, name):
    """Our prompt does, with Qwen's calls: else the model would be told one form, and be read in another."""
    tokenizer = chat_templates.small_tokenizer(tmp_path, getattr(chat_templates, name))
    t, dialogue, _ = run(tokenizer, [call("plain", "emma"), "Jane"])
    prompt = dialogue.prompt_text("Who?")
    assert "write <tool_call>" in prompt
    assert "Tools:" not in prompt
    assert (prompt.count("Searches a document collection"), dialogue.notices) == (1, ())
    assert (t.answer, t.searches) == ("Jane", 1)
    assert [*t.prompt_ids.tolist(), *t.token_ids.tolist()] == rendered(tokenizer, dialogue, t)


def test_a_thought_that_the_template_opens_is_no_answer_before_it_is_closed(tmp_path):
    tokenizer = chat_templates.small_tokenizer(tmp_path, chat_templates.R1)
    t, dialogue, _ = run(tokenizer, ["Hm.\n</think>\n\n" + call("plain", "emma"), "It may be Jane, or"])
    assert dialogue.prompt_text("Who?").endswith("<|im_start|>assistant\n<think>\n")
    assert (t.stop_reason, t.answer, t.searches) == (StopReason.NO_ACTION, None, 1)
    t, _, _ = run(tokenizer, ["I call " + call("plain", "emma")])
    assert (t.stop_reason, t.searches) == (StopReason.NO_ACTION, 0), "a call within a thought is none"
    t, _, _ = run(tokenizer, [call("plain", "emma").join(("</think>", "")), "Hm.</think>Jane"])
    assert (t.answer, t.searches) == ("Jane", 1)
    expert = tokenizer.decode(dialogue.action_ids("I look. <search> emma </search>", first=True))
    assert expert == "\n</think>\n\nI look.\n" + call("plain", "emma") + dialogue.stop[0]
    for first in (True, False):
        said = tokenizer.decode(dialogue.action_ids("<answer> x</answer>", first=first, last=True))
        assert dialogue.parse(said, Finish.STOP, first=first).answer == "x"
    assert t.turns
    for turns in ((), t.turns[:1]):
        probe = tokenizer.decode(dialogue.answer_ids(turns))
        assert dialogue.parse(probe + "x</answer>", Finish.STOP, first=not turns).answer == "x"


def test_an_expert_writes_calls_as_the_model_does(tokenizer, family):
    dialogue = Dialogue.of(tokenizer, config())
    end = dialogue.stop[0]
    searching = tokenizer.decode(dialogue.action_ids("I look. <search> emma </search>"))
    assert searching == ("" if family == "llama" else "I look.\n") + call(family, "emma") + end
    assert tokenizer.decode(dialogue.action_ids("<answer> x</answer>", last=True)) == f"<answer> x</answer>{end}"


def test_an_expert_calls_a_search_of_ones_own_as_it_is_called(tokenizer, family, monkeypatch):
    """Else it would be imitated in what the policy's turns are malformed for."""
    texts = {name: {"type": "string", "description": "A text."} for name in ("text", "place")}
    module = types.ModuleType("a_module_with_searches")
    module.One = type("One", (Search,), {"parameters": {"text": texts["text"]}})
    module.Two = type("Two", (Search,), {"parameters": texts})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    dialogue = Dialogue.of(tokenizer, config(tools=[f"{module.__name__}:One"]))
    said = tokenizer.decode(dialogue.action_ids("<search> emma </search>"))
    assert dialogue.parse(said, Finish.STOP).requests == (Request(tool="search", arguments={"text": "emma"}),)
    for tool in (f"{module.__name__}:Two", "open"):
        dialogue = Dialogue.of(tokenizer, config(tools=[tool]))
        with pytest.raises(UserError, match=r"^agent\.tools has no 'search' that takes one text, as experts call it;"):
            dialogue.action_ids("<search> emma </search>")


@pytest.mark.parametrize("protocol", ["search", "autocoa"])
def test_an_experts_trajectory_reads_like_an_episode(tokenizer, family, protocol):
    from tasks.demonstrations import Demonstration, Move, answer_text, as_trajectory, end_ids, search_text

    settings = config(protocol=protocol)
    dialogue, tags = Dialogue.of(tokenizer, settings), PROTOCOLS[protocol]
    found = asyncio.run(Shelf().search("emma", 1))
    moves = Move(action=search_text(tags, "emma"), passages=found), Move(action=answer_text(tags, "x"))
    expert = as_trajectory(
        Demonstration(question=QUESTION, moves=moves), dialogue, end_ids=end_ids(dialogue, tokenizer)
    )
    played, _, _ = run(tokenizer, [call(family, "emma"), answer_text(tags, "x")], settings=settings)
    assert (expert.answer, played.answer, expert.searches) == ("x", "x", 1)
    assert expert.token_ids.tolist() == played.token_ids.tolist()
    assert expert.action_mask.tolist() == played.action_mask.tolist()
    assert expert.turns[0].calls == played.turns[0].calls


def test_llamas_date_does_not_change_from_day_to_day(tmp_path):
    tokenizer = chat_templates.small_tokenizer(tmp_path, chat_templates.LLAMA, family="llama")
    assert "Today: 26 Jul 2024" in Dialogue.of(tokenizer, config()).prompt_text("Who?")
    assert "Today: 26 Jul 2024" in Dialogue.of(tokenizer, AgentConfig()).prompt_text("Who?"), "with tags, too"
    asking = chat_templates.LLAMA.replace("date_string if date_string is defined else strftime_now", "strftime_now")
    tokenizer = chat_templates.small_tokenizer(tmp_path / "asking", asking, family="llama")
    assert "Today: 26 Jul 2024" in Dialogue.of(tokenizer, AgentConfig()).prompt_text("Who?"), "whatever it asks for"


@pytest.mark.parametrize("thinking", [True, False, None])
def test_thinking_is_switched_by_the_template(tmp_path, thinking):
    tokenizer = chat_templates.small_tokenizer(tmp_path, chat_templates.QWEN3)
    t, dialogue, engine = run(tokenizer, [call("qwen3", "emma"), "x"], settings=config(thinking=thinking))
    off = "<think>\n\n</think>\n\n"
    assert [tokenizer.decode(p).endswith(off) for p in engine.prompts] == [thinking is False] * 2
    assert ["Qwen3's chat template drops" in n for n in dialogue.notices] == ([True] if thinking is False else [])
    assert t.searches == 1


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (chat_templates.PLAIN.replace("{{ '<|im_start|>assistant\\n' }}", ""), "adds '<|im_start|>assistant\\n' to"),
        (
            chat_templates.PLAIN.replace("{{ '<|im_start|>' + m.role", "{{ loop.index ~ '<|im_start|>' + m.role"),
            "rewrites",
        ),
    ],
)
def test_what_a_template_does_to_earlier_turns_is_said(tmp_path, template, what):
    tokenizer = chat_templates.small_tokenizer(tmp_path, template)
    (notice,) = Dialogue.of(tokenizer, config()).notices
    assert f"chat template {what} earlier turns;" in notice


def test_thinking_without_a_switch_is_the_users_mistake(tmp_path):
    tokenizer = chat_templates.small_tokenizer(tmp_path, chat_templates.QWEN25)
    with pytest.raises(UserError, match=r"agent\.thinking=false, but this model's chat template has no switch"):
        Dialogue.of(tokenizer, config(thinking=False))
    with pytest.raises(UserError, match=r"agent\.thinking=false, but this model's chat template has no switch"):
        Dialogue.of(tokenizer, AgentConfig(thinking=False))
    with pytest.raises(UserError, match=r"agent\.thinking=true is a switch of a chat template, and none is used"):
        Dialogue.of(tokenizer, AgentConfig(thinking=True, chat=False))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "shows no turns with results"),
        ("{% for m in messages %}{{ m.content }}{{ '\\n' }}{% endfor %}", "don't end with a special token"),
        ("{{ messages[5].content.x.y }}", "its chat template fails"),
        (
            "{{ messages[0].content }}{% if messages[2] %}{{ raise_exception('one turn') }}{% endif %}",
            r"takes no turns with results \(one turn\); set agent\.format=tags$",
        ),
        (None, "has no chat template"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_line(tmp_path, template, message):
    tokenizer = chat_templates.small_tokenizer(tmp_path, template)
    with pytest.raises(UserError, match=message) as error:
        Dialogue.of(tokenizer, config())
    assert "\n" not in str(error.value)


def test_a_chat_it_must_be():
    with pytest.raises(UserError, match=r"agent\.format=tools is a chat"):
        config(chat=False)
    for name in ("format", "malformed"):
        with pytest.raises(UserError, match=rf"agent\.{name}=x is not known"):
            AgentConfig(**{name: "x"})


def test_json_calls_are_read_with_the_python_tag_too():
    text = "<|python_tag|>" + json.dumps({"name": "search", "parameters": {"query": "a"}})
    assert JsonCalls().read(text) == [Request(tool="search", arguments={"query": "a"})]
    assert JsonCalls().read('{"answer": 1}') == []


CALL = '{"name": "search", "parameters": {"query": "a"}}'


@pytest.mark.parametrize(
    "text",
    [
        '{"parameters": {"query": "a"}, "name": "search"}',
        '{"name": "search", "arguments": {"query": "a"}}',
        '{"type": "function", "name": "search", "parameters": "{\\"query\\": \\"a\\"}"}',
        f"```json\n{CALL}\n```",
        f"I look it up. {CALL}",
        f"I look it up. <|python_tag|>{CALL} ; ",
    ],
)
def test_a_call_is_one_in_whatever_order_its_keys_and_whatever_is_around_it(text):
    assert JsonCalls().read(text) == [Request(tool="search", arguments={"query": "a"})]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"function": "search", "parameters": {"query": "a"}}', "without the name of a tool"),
        ('{"name": "search", "query": "a"}', "without parameters"),
        (f"{CALL} and more", "no valid JSON"),
        ('I call {"name": "search", ', "no valid JSON"),
    ],
)
def test_what_was_meant_as_a_call_is_no_answer(text, why):
    with pytest.raises(Malformed, match=why):
        JsonCalls().read(text)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 400])
def test_a_number_that_is_none_is_the_policys_mistake_and_no_fault_of_the_tool(number):
    """Python's reader takes what JSON doesn't know, and whole numbers that no float holds."""
    (request,) = TaggedCalls().read(f'<tool_call>{{"name": "sum", "arguments": {{"x": {number}}}}}</tool_call>')
    with pytest.raises(Malformed, match="whose number is none"):
        check([request], {"sum": {"x": {"type": "number"}}})


@pytest.mark.parametrize("style", [JsonCalls(), TaggedCalls()])
def test_a_call_that_is_nested_too_deeply_is_malformed(style):
    """A few hundred tokens of a policy; Python's reader of JSON gives up there."""
    deep = '{"name": ' + "[" * 100_000
    with pytest.raises(Malformed, match="no valid JSON"):
        style.read(deep if isinstance(style, JsonCalls) else f"<tool_call>{deep}</tool_call>")


@pytest.mark.parametrize("family", ["qwen25", "llama"])
def test_a_prompt_of_the_users_own_describes_calls_as_the_model_writes_them(tmp_path, family):
    (tmp_path / "prompt.txt").write_text("{tools}\n\nAnswer: {question}")
    template = chat_templates.LLAMA if family == "llama" else chat_templates.QWEN25
    tokenizer = chat_templates.small_tokenizer(tmp_path, template, **({"family": "llama"} if family == "llama" else {}))
    said = Dialogue.of(tokenizer, config(prompt=str(tmp_path / "prompt.txt"))).prompt_text("Who?")
    assert ('"parameters": an object' in said, "write <tool_call>" in said) == (family == "llama", family != "llama")
