"""Prompts of the user's own: what is filled in, and what is wrong with a file."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import chat_templates
import pytest

from agent import formats
from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.formats.tags import tags_of
from agent.prompts import fill, prompt_digest, prompt_text, read_once
from agent.records import Finish
from agent.tools.base import Result


@pytest.fixture
def prompt(tmp_path: Path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "prompt.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def text_of(codec, question="Who {tools}?", **settings) -> str:
    return codec.decode(Dialogue.of(codec, AgentConfig(**settings)).prompt_ids(question))


def test_the_tools_and_the_question_are_filled_in(codec, prompt):
    file = prompt('Tools:\n{tools}\nAnswer as {answer_open}x{answer_close}, {"not": {"a": 1}}, {X}.\n{question}')
    text = text_of(codec, prompt=file, chat=False, tools=["search", "open"])
    assert text == (
        "Tools:\n<search> query </search>: Searches a document collection and returns the passages that match the "
        "query best.\n<open> document </open>: Reads on in a document that a search has found: shows the passages that "
        'follow.\nAnswer as <answer>x</answer>, {"not": {"a": 1}}, {X}.\nWho {tools}?'
    )
    assert text_of(codec, prompt=file).startswith("<|im_start|>user\nTools:\n<search> query </search>: ")


def test_a_word_in_braces_of_ones_own(codec, prompt, tmp_path):
    """A question and a tool's description are texts, not templates."""
    own = r"In \boxed{{answer}} or {{question}}. {tools} {question}"
    asked = "What is {{x}} {question}?"
    text = text_of(codec, asked, prompt=prompt(own), chat=False)
    assert text.startswith(r"In \boxed{answer} or {question}. <search> query </search>")
    assert text.endswith(f" {asked}")
    for template in (chat_templates.PLAIN, chat_templates.QWEN25):
        model = chat_templates.small_tokenizer(tmp_path / str(len(template)), template)
        assert r"In \boxed{answer} or {question}." in text_of(model, asked, prompt=prompt(own), format="tools")
        own_system = prompt(r"In \boxed{{answer}} or {{question}}. {tools}")
        text = text_of(model, asked, prompt=own_system, format="tools")
        assert r"In \boxed{answer} or {question}." in text
        assert f"<|im_start|>user\n{asked}<|im_end|>" in text


def test_with_tools_a_file_is_the_system_prompt(prompt, tmp_path):
    file = prompt("Be brief.")
    native = chat_templates.small_tokenizer(tmp_path / "native", chat_templates.QWEN25)
    text = text_of(native, prompt=file, format="tools")
    assert text.startswith("<|im_start|>system\nBe brief.\n\nTools:\n{")
    assert "<|im_start|>user\nWho {tools}?<|im_end|>" in text
    plain = chat_templates.small_tokenizer(tmp_path / "plain", chat_templates.PLAIN)
    with pytest.raises(UserError, match=r"prompt\.txt: the placeholder \{tools\} is missing, and this model's"):
        text_of(plain, prompt=file, format="tools")
    text = text_of(plain, prompt=prompt("Be brief.\n{tools}"), format="tools")
    assert text.startswith("<|im_start|>system\nBe brief.\nThese tools are there:\n<tools>\n{")
    text = text_of(plain, prompt=prompt("{tools}\nQ: {question}"), format="tools")
    assert "<tool_response>\nQ: Who {tools}?" not in text
    assert text.endswith("\nQ: Who {tools}?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("{tools}", "tags", r"prompt\.txt: the placeholder \{question\} is missing"),
        ("{question}", "tags", r"prompt\.txt: the placeholder \{tools\} is missing"),
        ("{question} {tools} {tolls}", "tags", r"prompt\.txt: there is no placeholder \{tolls\}; did you mean 'tools'"),
        (
            "{question} {tools} {word}",
            "tags",
            r"no placeholder \{word\}; .* \(the text \{word\} itself is written \{\{word\}\}\)",
        ),
        ("{{question}} {tools}", "tags", r"prompt\.txt: the placeholder \{question\} is missing"),
        ("{question} {tools} {search_open}", "tools", r"prompt\.txt: there is no placeholder \{search_open\}"),
        (" \n", "tags", r"prompt\.txt: the file is empty"),
        (b"\xff\xfe", "tags", r"prompt\.txt: can't be read \(it is no UTF-8 text\)"),
    ],
)
def test_a_wrong_file_is_one_clear_line(prompt, text, format, message):
    with pytest.raises(UserError, match=message) as error:
        prompt_text(AgentConfig(prompt=prompt(text), format=format))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plane", r"agent\.prompt=plane is not known; did you mean 'plain'"),
        ("plane.txt", r"agent\.prompt=plane\.txt: can't be read \(No such file"),
        ("no/plane", r"agent\.prompt=no/plane: can't be read \(No such file"),
        (".", r"agent\.prompt=\.: can't be read \(Is a directory"),
    ],
)
def test_a_prompt_that_is_not_there(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        prompt_text(AgentConfig(prompt=name))


def test_a_run_reads_its_prompt_once(prompt, codec):
    """Its workers, on other machines, too, play the same from the first to the last."""
    config = AgentConfig(prompt=prompt("{tools} First: {question}"), chat=False)
    config.prompt = read_once(config)
    there = pickle.loads(pickle.dumps(config))
    prompt("{tools} Then: {question}")
    assert (there, there.prompt) == (config, str(config.prompt))
    assert codec.decode(Dialogue.of(codec, there).prompt_ids("Who?")).endswith(" First: Who?")
    assert (read_once(there).text, prompt_digest(there)) == (prompt_text(config), prompt_digest(config))
    assert prompt_text(AgentConfig(prompt=str(config.prompt))) == "{tools} Then: {question}"
    shipped = AgentConfig()
    assert type(read_once(shipped)) is str
    with pytest.raises(UserError, match=r"there is no placeholder \{tolls\}"):
        read_once(AgentConfig(prompt=prompt("{tolls}")))


def test_what_is_filled_in_is_not_filled_again():
    assert fill("{a}{b}{c}", {"a": "{b}", "b": "{a}"}) == "{b}{a}{c}"


# --- formats of one's own ----------------------------------------------------------------------------


@pytest.fixture
def plainish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds a format that is made from the tags, with ``body`` as what it has of its own."""

    def add(body: str) -> None:
        text = f"from agent.formats.tags import TagFormat\n\nclass Plainish(TagFormat):\n    {body}\n"
        (tmp_path / "plainish.py").write_text(text)
        monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, "agent.formats.plainish", raising=False)

    return add


@pytest.mark.parametrize("name", ["instruct", "plain"])
def test_a_format_that_is_made_from_the_tags_is_in_tags(codec, plainish, name):
    """What a name can't say: the prompt with its question, a second tool's tags, those that gates count."""
    plainish("pass")
    own, shipped = (
        AgentConfig(format=format, prompt=name, tools=["search", "open"]) for format in ("plainish", "tags")
    )
    asked = Dialogue.of(codec, own)
    assert asked.prompt_ids("Who?") == Dialogue.of(codec, shipped).prompt_ids("Who?")
    assert asked.protocol == tags_of(own) == tags_of(shipped)
    assert "<open>" in tags_of(own).tags


def test_a_file_of_its_prompt_has_the_placeholders_of_tags(plainish, prompt):
    plainish("pass")
    with pytest.raises(UserError, match=r"the placeholder \{tools\} is missing"):
        prompt_text(AgentConfig(format="plainish", prompt=prompt("{question} {search_open}")))


def test_a_format_that_leaves_the_question_out_is_refused(codec, plainish):
    plainish('def prompt(self, question):\n        return "Question:"')
    with pytest.raises(UserError, match=r"^agent\.format=plainish: its prompt lacks the question$"):
        Dialogue.of(codec, AgentConfig(format="plainish"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def __init__(self, codec, config, tools):\n        pass",
            r"its __init__\(\) sets no protocol, stop, marks; see ",
        ),
        ("def prompt(self, question):\n        return {}[question]", r"prompt\(\) raised KeyError: 'Who wrote Emma\?'"),
        ("def prompt(self, question):\n        pass", r"prompt\(\) returned NoneType, and a text is needed$"),
        ("stop = property(lambda self: '</search>', lambda *_: None)", "its 'stop' must be a tuple of texts"),
        ("marks = property(lambda self: ('<a>', ''), lambda *_: None)", "its 'marks' must be a tuple of texts"),
        (
            "def parse(self, text, finish):\n        pass",
            r"parse\(\) returned NoneType, and an agent\.proto",
        ),
        (
            "def observation(self, shown, last):\n        return []",
            r"observation\(\) returned list, and a list of",
        ),
        (
            "def observation(self, shown, last):\n        pass",
            r"observation\(\) returned NoneType, and a list",
        ),
        (
            "def observation(self, shown, last):\n        return [1.5]",
            r"observation\(\) returned list, and a list of",
        ),
        (
            "def observation(self, shown, last):\n        return '</a>'",
            r"observation\(\) returned str, and a list of",
        ),
    ],
)
def test_a_format_that_is_not_whole_is_named_at_the_start(codec, plainish, body, message):
    plainish(body)
    with pytest.raises(UserError, match=rf"^agent\.format=plainish: {message}"):
        Dialogue.of(codec, AgentConfig(format="plainish", chat=False))


@pytest.mark.parametrize(
    ("method", "ask"),
    [
        ("parse(self, text, finish)", lambda dialogue: dialogue.parse("x", Finish.STOP)),
        ("observation(self, shown, last)", lambda dialogue: dialogue.results_ids([Result(text="x")])),
        ("written(self, action, *, last)", lambda dialogue: dialogue.action_ids("x")),
    ],
)
def test_what_a_format_raises_names_its_method(codec, plainish, method, ask):
    plainish(f"def {method}:\n        raise IndexError('far off')")
    name = method.partition("(")[0]
    with pytest.raises(UserError, match=rf"^agent\.format=plainish: {name}\(\) raised IndexError: far off$"):
        ask(Dialogue.of(codec, AgentConfig(format="plainish")))


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ("Action(answer=3)", "raised TypeError: an Action's answer must be a text or None"),
        ("Action(malformed=None)", "raised TypeError: an Action's answer must be a text or None, and malformed a text"),
        ("Action(requests=None)", "raised TypeError: an Action's requests must be a tuple of"),
        ("Action(requests=({},))", "raised TypeError: an Action's requests must be a tuple of"),
        ("Action(requests=(Request(tool='search', arguments={'query': print}),))", "raised TypeError: .* JSON"),
        ("(Action(),)", "returned tuple, and an agent.protocol.Action is needed"),
    ],
)
def test_what_a_format_takes_for_an_action_is_one(codec, plainish, returned, why):
    """The worker that played it was lost instead, and the next one."""
    plainish(
        "def parse(self, text, finish):\n"
        "        from agent.protocol import Action\n"
        "        from agent.tools.base import Request\n"
        f"        return {returned} if text else Action()"
    )
    dialogue = Dialogue.of(codec, AgentConfig(format="plainish"))
    with pytest.raises(UserError, match=rf"^agent\.format=plainish: parse\(\) {why}"):
        dialogue.parse("x", Finish.STOP)


def test_ids_that_a_format_gives_are_plain(codec, plainish):
    plainish(
        "def observation(self, shown, last):\n"
        "        import numpy\n"
        "        return numpy.array(super().observation(shown, last))"
    )
    own, shipped = (Dialogue.of(codec, AgentConfig(format=format)) for format in ("plainish", "tags"))
    ids = own.results_ids([Result(text="x")])
    assert ids == shipped.results_ids([Result(text="x")])
    assert {*map(type, ids)} == {int}
