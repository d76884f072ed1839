"""Chat templates of our own with the features of each family, and a small tokenizer to render them with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from agent.tokens import Tokenizer

_TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_START = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
_SIGNATURES = "{% for t in tools %}{{ t | tojson }}{{ '\\n' }}{% endfor %}"
_CALLS = (
    '{% if m.tool_calls %}{% for c in m.tool_calls %}{{ \'<tool_call>\\n{"name": "\' + c.function.name }}'
    "{{ '\", \"arguments\": ' }}{{ c.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{% endif %}"
)
_RESULT = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
)

PLAIN = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}" + _TURN + "{% endfor %}" + _START + "{% endif %}"
)
"""ChatML with a system prompt of its own, and no tools."""
QWEN25 = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% else %}{{ 'You help.' }}{% endif %}{{ '\\n\\nTools:\\n' }}" + _SIGNATURES + "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% if not tools %}" + _TURN + "{% endif %}"
    "{% elif m.role == 'tool' %}" + _RESULT + "{% else %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content }}" + _CALLS + "{{ '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}" + _START + "{% endif %}"
)
"""ChatML with tools in the system prompt and results in a user's turn."""
QWEN3 = QWEN25.replace(
    "{{ '<|im_start|>assistant\\n' }}",
    "{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
)
"""The same, and a thinking block that is begun and ended where thinking is off: in the last turn only."""
LLAMA = (
    "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' }}"
    "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
    "{% if messages[0].role == 'system' %}{{ '\\n' + messages[0].content | trim }}{% endif %}{{ '<|eot_id|>' }}"
    "{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson) + '<|eot_id|>' }}"
    '{% elif m.tool_calls %}{{ \'<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "\' }}'
    '{{ m.tool_calls[0].function.name + \'", "parameters": \' }}{{ m.tool_calls[0].function.arguments | tojson }}'
    "{{ '}<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{% if m.role == 'user' and tools and loop.index0 < 2 %}{{ 'Functions:\\n' }}" + _SIGNATURES + "{% endif %}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""Headers, a date, results as JSON strings by the role ipython."""
LFM = QWEN25.replace(_CALLS, "")
"""Tools in the system prompt, and calls that stand in the content alone: in a form of the model's own."""
GRANITE = QWEN25.replace(
    _CALLS,
    "{% if m.tool_calls %}{{ '<|tool_call|>[' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
    "{{ ']' }}{% endif %}",
)
"""A list of calls behind a mark."""
XML = QWEN25.replace(
    _CALLS,
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '<tool_call>\\n<function=' + c.function.name + '>' }}"
    "{% for name, value in c.function.arguments.items() %}"
    "{{ '\\n<parameter=' + name + '>\\n' + value + '\\n</parameter>' }}{% endfor %}"
    "{{ '\\n</function>\\n</tool_call>' }}{% endfor %}{% endif %}",
)
"""XML between Qwen's tags, as Qwen3-Coder has it."""
REFUSING = QWEN25.replace(_CALLS, "{% if m.tool_calls %}{{ raise_exception('a call needs an id') }}{% endif %}")
"""One whose calls need what we don't have, as Mistral's do."""
NO_TOOLS = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + PLAIN
"""One that fails for any tool."""
NO_RESULTS = QWEN25.replace(_RESULT, "{{ raise_exception('a result needs the id of its call') }}")
"""One that fails for results, as Mistral's does."""
R1 = QWEN25.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}")
"""One that opens a thought itself, as those of DeepSeek-R1's distilled models and of Qwen3-Thinking do."""
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    + _TURN
    + "{% endfor %}"
    + _START
    + "{% endif %}"
)

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
)
TEXT = (
    'Question: who wrote Emma? user assistant system tool response \n\n\n Result 1: "Emma (novel)"\n Emma is a novel '
    "by Jane Austen. search query name arguments parameters answer passages the the the\n"
)


WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Words as Qwen's and Llama's tokenizers see them: line ends stay together, and join what stands before them."""


def small_tokenizer(folder: Path, template: str, *, family: str = "chatml", eos: str | None = None) -> Tokenizer:
    """A byte-level BPE tokenizer with merges across line ends, and ``template`` as its chat template; its end token is
    ``eos``, or what ends a turn."""
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    llama = family == "llama"
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=Fast.from_str(_trained()),
        eos_token=eos or ("<|eot_id|>" if llama else "<|im_end|>"),
        bos_token="<|begin_of_text|>" if llama else None,
        chat_template=template,
    )
    wrapped.save_pretrained(str(folder))
    return Tokenizer(folder)


@cache
def _trained() -> str:
    """The tokenizer itself, which is the same with every template."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Fast

    made = Fast(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    made.train_from_iterator([TEXT] * 20, trainer)
    return made.to_str()
