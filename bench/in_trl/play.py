"""TRL's GRPO trainer on Slingshot's job, run by ``bench/peers.py`` with the Python of TRL's own environment.

    python bench/in_trl/play.py JOB.json

JOB.json says the model's folder, the sizes of a step and the agent's settings as a run of ours has them. A line of JSON
for each step goes to standard output: its seconds, from the end of the step before, and TRL's own metrics.

The trainer, its tool loop, its sampling by transformers and its loss are TRL's. What is ours, since TRL knows one way
of calling a tool, the chat template's:

- the prompt is our text, and a chat template gives it back as it is;
- ``parse_response`` reads our tags, where TRL looks for the template's tool calls;
- ``_get_tool_suffix_ids`` gives the result block, encoded in three parts as ours is: encoded as one text, a token at a
  seam is another one, and a policy this small doesn't know it;
- a turn ends at a closing tag: an end token of the model where the tag is one token, a stop string where it is several.

The search is ``tasks/bm25.py``, in process: a few matrix rows, where ours asks Lucene in another process.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import trl.trainer.grpo_trainer as grpo
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from agent.answers import exact_match
from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.records import Finish
from agent.tokens import Tokenizer
from tasks.bm25 import Bm25
from tasks.world import World

AS_IT_IS = """{% for message in messages %}{{ message.content }}{% for call in message.tool_calls or [] %}
{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"""
"""A chat template that adds nothing to a prompt. TRL refuses one that doesn't show a tool call."""


class Tags:
    """Our dialogue, as TRL's tool loop needs it."""

    def __init__(self, folder: str, agent: AgentConfig, bm25: Bm25) -> None:
        self.dialogue = Dialogue.of(Tokenizer(folder), agent)
        self._bm25, self._top_k = bm25, agent.top_k
        self._blocks: dict[str, list[int]] = {}  # what a search has told -> its tokens

    def search(self, query: str) -> str:
        """Searches for passages.

        Args:
            query: What to search for.

        Returns:
            The passages.
        """
        passages = self._bm25.search(query, self._top_k)
        told = "\n".join(passage.text for passage in passages)
        self._blocks[told] = self.dialogue.observation_ids(passages)
        return told

    def suffix_ids(self, tool_messages: list[dict[str, Any]]) -> list[int]:
        (message,) = tool_messages  # one call a turn
        return self._blocks[message["content"]]

    def parse(self, tokenizer: Any, ids: list[int], prefix: Any = None, tools: Any = None) -> dict[str, Any]:
        """A turn as a message of TRL's: with a tool call if it searches."""
        text = self.dialogue.codec.decode(ids)
        action = self.dialogue.parse(text, Finish.STOP)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if action.query is not None:
            function = {"name": "search", "arguments": {"query": action.query}}
            message["tool_calls"] = [{"type": "function", "function": function}]
        return message

    def reward(self, completions: list[Any], golden: list[list[str]], **_: Any) -> list[float]:
        """Exact match, as ``reward=em`` has it."""
        answers = [self.dialogue.parse(messages[-1]["content"], Finish.STOP).answer for messages in completions]
        return [0.0 if a is None else exact_match(a, tuple(right)) for a, right in zip(answers, golden, strict=True)]


class Trainer(GRPOTrainer):
    """With our result block, and turns that end at a stop string."""

    tags: Tags

    def _get_tool_suffix_ids(self, tool_messages: list[dict[str, Any]]) -> list[int]:
        return self.tags.suffix_ids(tool_messages)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        """Without the end token that pads a row behind its stop string: nothing sampled it."""
        turns, logprobs = super()._generate_single_turn(*args, **kwargs)
        return [self._unpadded(turn) for turn in turns], logprobs

    def _unpadded(self, turn: list[int]) -> list[int]:
        padded = turn[-1] == self._tokenizer.pad_token_id and len(turn) > 1
        stops = self.generation_kwargs.get("stop_strings") or ()
        if padded and any(stop in self.tags.dialogue.codec.decode(turn[:-1]) for stop in stops):
            return turn[:-1]
        return turn


class Clock(TrainerCallback):
    """A line of JSON for each step."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or "reward" not in logs:
            return  # the summary at the end
        now = time.perf_counter()
        row = {"step": state.global_step, "seconds": now - self.last, **logs}
        print(json.dumps(row), flush=True)
        self.last = now


def trainer_of(job: dict[str, Any]) -> Trainer:
    agent, data = AgentConfig(**job["agent"]), job["data"]
    world = World(data["world_seed"])
    tags = Tags(job["model"], agent, Bm25(world.passages))
    grpo.parse_response = tags.parse

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    tokenizer.chat_template, tokenizer.response_template = AS_IT_IS, {}
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    stops = {tag: tags.dialogue.codec.encode(tag) for tag in tags.dialogue.stop}
    generation: dict[str, Any] = {"max_new_tokens": agent.max_new_tokens}
    if all(len(ids) == 1 for ids in stops.values()):
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *(ids[0] for ids in stops.values())]
    else:
        generation["stop_strings"] = [*stops]
        model.generate = partial(model.generate, tokenizer=tokenizer)

    match = data["evidence_match"]
    questions = world.train_questions(data["train_questions"], hop_shares=data["hop_shares"], evidence_match=match)
    rows = []
    for question in questions:
        prompt = [{"role": "user", "content": tags.dialogue.prompt_text(question.text)}]
        ours = tags.dialogue.prompt_ids(question.text)
        theirs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        assert ours == theirs, (ours, theirs)
        rows.append({"prompt": prompt, "golden": [*question.golden_answers]})

    trajectories, microbatch = job["questions"] * job["group_size"], job["microbatch"]
    optimizer = job["optimizer"]
    config = GRPOConfig(
        output_dir=job["folder"],
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=job["seed"],
        max_steps=job["steps"],
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=trajectories // microbatch,
        gradient_checkpointing=False,
        num_generations=job["group_size"],
        max_completion_length=agent.max_response_tokens,
        max_tool_calling_iterations=agent.max_searches,
        generation_kwargs=generation,
        temperature=agent.temperature,
        learning_rate=optimizer["lr"],
        adam_beta1=optimizer["betas"][0],
        adam_beta2=optimizer["betas"][1],
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=optimizer["max_grad_norm"],
        lr_scheduler_type="constant",
    )
    trainer = Trainer(
        model=model,
        reward_funcs=[tags.reward],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        tools=[tags.search],
        callbacks=[Clock()],
    )
    trainer.tags = tags
    trainer.remove_callback(PrinterCallback)  # it writes a line of each step, too
    return trainer


if __name__ == "__main__":
    trainer_of(json.loads(Path(sys.argv[1]).read_text())).train()
