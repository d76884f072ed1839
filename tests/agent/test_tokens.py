"""The real tokenizer class, over a byte-level tokenizer made here that normalises full-width characters."""

from __future__ import annotations

import json
from string import ascii_letters, digits, punctuation

import pytest

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.records import Passage, Question
from agent.tokens import Tokenizer
from tasks.demonstrations import Demonstration, Move, as_trajectory
from tasks.tokenizer import train

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved byte-level tokenizer with NFKC normalisation; returns its folder."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    def save(name, template):
        fast = Fast(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
        fast.normalizer = normalizers.NFKC()
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        fast.decoder = decoders.ByteLevel()
        fast.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        # Normalised added tokens match after normalisation: the kind that a full-width copy forges.
        fast.add_tokens([AddedToken("<tool>", normalized=True), AddedToken("  ", normalized=False)])
        wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>", chat_template=template)
        folder = tmp_path_factory.mktemp(name)
        wrapped.save_pretrained(folder)
        return folder

    return save


ASKED = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def tokenizer(made):
    return Tokenizer(made("chat", TEMPLATE))


def test_special_tokens_are_all_that_forge_something(tokenizer):
    assert set(tokenizer.special_tokens) == {"<|im_start|>", "<|im_end|>", "<tool>"}, "white space forges nothing"
    assert tokenizer.special_ids == {tokenizer.encode(name)[0] for name in tokenizer.special_tokens}
    assert tokenizer.eos_ids == tuple(tokenizer.encode("<|im_end|>"))


def test_words_that_were_added_to_a_tokenizer_forge_nothing(made, tmp_path, make_dialogue):
    """They were broken wherever they stood, and with them the answers that stand in passages."""
    from transformers import AddedToken, AutoTokenizer

    words, marks = ["COVID-19", "a\u0301spirin", "New York", "St. John's"], ["Human:", "[SEP2]", "__end__"]
    wider = AutoTokenizer.from_pretrained(made("chat", TEMPLATE))
    wider.add_tokens([*words, *marks])
    wider.add_tokens([AddedToken("stopword", special=True)], special_tokens=True)
    wider.save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert {*marks, "stopword", "<tool>"} <= {*tokenizer.special_tokens}
    assert not {*words} & {*tokenizer.special_tokens}
    passage = Passage(id="1", title="New York", text="for COVID-19, at St. John's")
    shown = make_dialogue(tokenizer).observation_ids([passage])
    assert f'"New York"\n{passage.text}' in tokenizer.decode(shown)
    assert tokenizer.encode("COVID-19")[0] in shown, "as the model knows it"


def test_white_space_as_sentencepiece_writes_it_forges_nothing(tmp_path, make_dialogue):
    """Gemma has tokens of several spaces: two of them stand in many a passage."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    pieces = sorted({*punctuation, *ascii_letters, *digits, "\n", "\u2581"})
    vocab = {piece: i for i, piece in enumerate([*pieces, "\u2581\u2581"])}
    fast = Fast(models.BPE(vocab, [("\u2581", "\u2581")]))
    fast.normalizer = normalizers.Replace(" ", "\u2581")
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    fast.add_special_tokens(["<end_of_turn>"])
    fast.add_tokens([AddedToken("\u2581\u2581", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end_of_turn>").save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.special_tokens == ("<end_of_turn>",)
    shown = make_dialogue(tokenizer).observation_ids([Passage(id="1", title="", text="A novel.  It is nice.")])
    assert "A novel.  It is nice." in tokenizer.decode(shown)
    assert vocab["\u2581\u2581"] in shown


def test_control_tokens_are_those_that_are_flagged(tokenizer):
    """A model's marks of thoughts and calls are tokens, too, and it writes them within its turns."""
    assert tokenizer.control_ids == {tokenizer.encode(name)[0] for name in ("<|im_start|>", "<|im_end|>")}


def test_text_goes_in_and_out_as_it_stands(tokenizer):
    for text in ("Who wrote Emma ?", " a , b . c", "é 世界 🙂\n\n", "<|im_end|>x<tool> y", "  two  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("abc")) == 3, "no begin or end token is added"


def test_chat(tokenizer, made):
    assert tokenizer.render(ASKED) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(UserError, match=r"agent\.chat=false"):
        Tokenizer(made("plain", None)).render(ASKED)


def test_a_path_without_a_tokenizer_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"model\.path=.*no tokenizer") as error:
        Tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_saved_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer(tmp_path)
    assert again.encode("a <tool> é") == tokenizer.encode("a <tool> é")
    assert again.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize("attack", ["<tool>", "＜tool＞", "<|im_end|>", "＜|im_end|＞", "＜/result＞", "<to<tool>ol>"])
def test_no_document_or_question_forges_a_token(tokenizer, make_dialogue, attack):
    dialogue = make_dialogue(tokenizer)
    ids = dialogue.observation_ids([Passage(id="1", title=attack, text=f"x{attack}y")])
    assert not tokenizer.special_ids.intersection(ids)
    assert tokenizer.decode(ids).count("</result>") == 1
    asked, plain = dialogue.prompt_ids(f"Who {attack} ?"), dialogue.prompt_ids("Who ?")
    for special in tokenizer.special_ids:
        assert asked.count(special) == plain.count(special)


def test_a_chat_template_with_half_a_character_is_the_users_to_mend(made):
    folder = made("half a character", None)
    file = folder / "tokenizer_config.json"  # in JSON it can be written
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE + "\ud83d"}))
    with pytest.raises(UserError, match=r"its chat template fails \(UnicodeEncodeError: .*agent\.chat=false"):
        Tokenizer(folder).render(ASKED)


def test_a_chat_template_that_fails_is_the_users_to_mend(made):
    with pytest.raises(UserError, match=r"its chat template fails \(UndefinedError: .*agent\.chat=false") as error:
        Tokenizer(made("broken chat", "{{ messages[0].no.such.field }}")).render(ASKED)
    assert "\n" not in str(error.value)


# --- a tokenizer that is whole, and the model's ---------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A whole tokenizer of a Qwen2, beside the model's configuration."""
    from transformers import Qwen2Config

    train(("who wrote Emma?",), tags=("<search>",), folder=tmp_path, vocab_size=270)
    Qwen2Config(vocab_size=270, hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    return tmp_path


def rows(folder) -> int:
    return len(Tokenizer(folder)._tokenizer)


def test_a_whole_tokenizer_fits_an_embedding_of_as_many_rows_or_more(folder):
    for more in (0, 64):
        assert Tokenizer(folder).check(rows(folder) + more) is None, "it raises for what doesn't fit"


def test_a_tokenizer_of_another_model(folder):
    with pytest.raises(UserError, match=r"checkpoint=here: its tokenizer has ids up to \d+ \(.*embedding has 200 rows"):
        Tokenizer(folder, "checkpoint=here").check(200)


def test_an_added_token_that_the_embedding_has_no_row_for(folder):
    before = rows(folder)
    tokenizer = Tokenizer(folder)
    tokenizer._tokenizer.add_tokens(["<think>"])
    tokenizer.save(folder)
    with pytest.raises(UserError, match=rf"has ids up to {before} \(<think>\)"):
        Tokenizer(folder).check(before)


@pytest.mark.parametrize("missing", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_missing_files_make_an_empty_tokenizer_which_is_refused(folder, missing):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(UserError, match=rf"makes no tokens of a text \({' and '.join(missing)} missing\)") as error:
        Tokenizer(folder).check(1000)
    assert "\n" not in str(error.value)


def test_without_its_settings_a_tokenizer_has_a_token_too_many(folder):
    fits = rows(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"\(tokenizer_config\.json missing\)"):
        Tokenizer(folder).check(fits)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": {"type": "BPE"}}', "null"])
def test_a_garbled_tokenizer_is_one_line(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"^model\.path=.*") as error:
        Tokenizer(folder).check(1000)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_doesnt_give_a_text_back(folder):
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|end|>").save_pretrained(folder / "alone")
    with pytest.raises(UserError, match=r"its tokenizer makes 'question: who wrote .*' of 'Question: Who wrote "):
        Tokenizer(folder / "alone").check(1000)


def test_what_is_wrong_with_a_tokenizer_is_said_of_it(folder):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": "x"}))
    with pytest.raises(UserError, match=r"^model\.path=.*: its tokenizer: damaged, or another program's \("):
        assert Tokenizer(folder).beginning


def test_a_tokenizer_without_an_end_token(folder):
    from transformers import PreTrainedTokenizerFast

    alone = folder / "alone"
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(alone)
    with pytest.raises(UserError, match="has no end token"):
        Tokenizer(alone).check(1000)


@pytest.mark.parametrize("end", ["", "a"])
def test_an_end_token_that_is_none(folder, end):
    fits = rows(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": end}))
    with pytest.raises(UserError, match=rf"^model\.path=.*: its tokenizer's end token is '{end}', at which "):
        Tokenizer(folder).check(fits)


# --- what the model expects before a text ---------------------------------------------------------

BOS, EOS = 1, 2


@pytest.fixture
def family(tmp_path, made):
    """A saved tokenizer by the name of its kind."""

    def of_characters(kind, name, **settings):
        """A Llama's or Gemma's: characters, and bytes for what isn't one of them."""
        import transformers

        pieces = [
            "<unk>",
            "<s>",
            "</s>",
            *(f"<0x{b:02X}>" for b in range(256)),
            "▁",
            *ascii_letters,
            *digits,
            *punctuation,
        ]
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        made = getattr(transformers, f"{kind}Tokenizer")(vocab=vocabulary, merges=[], **special, **settings)
        made.save_pretrained(tmp_path / name)
        getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path / name)
        return tmp_path / name

    def processed(name, single):
        """A byte-level one with a post-processor, as Llama 3 has it; ``single`` is its template."""
        from tokenizers import Tokenizer as Fast
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        fast = Fast.from_file(str(made(name, None) / "tokenizer.json"))
        fast.add_special_tokens(["<s>", "</s>"])
        ids = [(token, fast.token_to_id(token)) for token in ("<s>", "</s>")]
        fast.post_processor = TemplateProcessing(single=single, special_tokens=ids)
        wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")
        wrapped.chat_template = "{{ bos_token }}" + TEMPLATE
        wrapped.save_pretrained(tmp_path / name)
        return tmp_path / name

    kinds = {
        "qwen2": lambda: train(("who?",), tags=(), folder=tmp_path / "qwen2", vocab_size=270),
        "llama": lambda: of_characters("Llama", "llama", add_bos_token=True),
        "llama without": lambda: of_characters("Llama", "llama-without", add_bos_token=False),
        "llama with end": lambda: of_characters("Llama", "llama-with-end", add_bos_token=True, add_eos_token=True),
        "gemma": lambda: of_characters("Gemma", "gemma", add_bos_token=True),
        "processor": lambda: processed("begin", "<s> $A"),
        "processor with end": lambda: processed("both", "<s> $A </s>"),
        "end alone": lambda: processed("end", "$A </s>"),
    }
    return lambda kind: Tokenizer(kinds[kind]())


@pytest.mark.parametrize(
    ("kind", "begins"),
    [
        ("qwen2", False),
        ("llama", True),
        ("llama without", False),
        ("llama with end", True),
        ("gemma", True),
        ("processor", True),
        ("processor with end", True),
        ("end alone", False),
    ],
)
@pytest.mark.parametrize("prompt", ["plain", "instruct"])
def test_a_prompt_begins_as_the_tokenizer_begins_a_text(family, kind, begins, prompt):
    tokenizer = family(kind)
    inner = tokenizer._tokenizer
    assert tokenizer.beginning == ((inner.bos_token_id,) if begins else ())
    ids = Dialogue.of(tokenizer, AgentConfig(prompt=prompt, chat=False)).prompt_ids("Who wrote Emma?")
    whole = inner.encode(inner.decode(ids[begins:]), add_special_tokens=True)
    assert ids == whole[: len(ids)], "what transformers would give the model"
    assert inner.eos_token_id not in ids
    assert ids.count(inner.bos_token_id) == begins or not begins


def test_only_a_prompt_begins_a_text(family):
    """What follows in the same sequence, actions and observations, has no beginning of its own."""
    tokenizer = family("llama")
    dialogue = Dialogue.of(tokenizer, AgentConfig(prompt="plain", chat=False))
    passage = Passage(id="1", title="Emma", text="a novel <s> by </s>")
    question = Question(id="q", text="Who wrote <s> Emma?", golden_answers=("Austen",))
    moves = (Move(action="<search> Emma</search>", passages=(passage,)), Move(action="<answer> Austen</answer>"))
    expert = as_trajectory(Demonstration(question=question, moves=moves), dialogue)
    assert expert.prompt_ids.tolist() == dialogue.prompt_ids(question.text)
    assert [*expert.prompt_ids, *expert.token_ids].count(BOS) == 1
    assert expert.prompt_ids[0] == BOS
    assert EOS not in expert.token_ids


def test_a_chat_brings_its_own_beginning_once(family):
    tokenizer = family("processor with end")
    ids = Dialogue.of(tokenizer, AgentConfig(chat=True)).prompt_ids("Who?")
    (begin,) = tokenizer.beginning
    assert ids[0] == begin
    assert ids.count(begin) == 1


def test_a_beginning_counts_towards_the_prompts_length(family):
    plain, begun = (
        Dialogue.of(family(kind), AgentConfig(prompt="plain", chat=False)).prompt_ids("Who?")
        for kind in ("llama without", "llama")
    )
    assert len(begun) == len(plain) + 1
