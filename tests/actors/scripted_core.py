"""Stand-ins for vLLM's ``LLMEngine``, for what the real one doesn't do on demand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any


class FlatLogprobs(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.start_indices)


class ScriptedCore:
    """Stands in for vLLM's ``LLMEngine``: ``script`` says how all requests end in each step, or what it raises.

    ``unscored`` is the end of a completion without log-probabilities.
    """

    def __init__(self, script: Iterator[Any]) -> None:
        self.renderer = SimpleNamespace(tokenizer=SimpleNamespace(get_added_vocab=dict))
        model = SimpleNamespace(config=SimpleNamespace(tie_word_embeddings=False))
        worker = SimpleNamespace(reload_weights=self._reload, get_model=lambda: model)
        self.model_executor = SimpleNamespace(driver_worker=SimpleNamespace(worker=worker))
        self.engine_core = SimpleNamespace(engine_core=self)
        self.batch_queue: Any = None
        self.paused = False
        self._script = script
        self._names: list[str] = []

    def pause_scheduler(self, mode: str, clear_cache: bool) -> None:
        assert mode == "keep", "requests in flight would be lost"
        self.paused = True

    def resume_scheduler(self) -> None:
        assert self.paused
        self.paused = False

    def _reload(self, weights_iterator: Iterator[Any]) -> None:
        assert self.paused, "new weights under a running engine"
        for name, _ in weights_iterator:
            if name == "bad":
                raise KeyError("there is no module or parameter named bad")

    def sleep(self, level: int) -> None:
        assert level == 1, "the weights must be kept: a step that learns nothing publishes none"
        self.asleep = True

    def wake_up(self) -> None:
        assert self.asleep
        self.asleep = False

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        assert reset_running_requests
        return True

    def set_weight_version(self, version: str) -> None:
        self.version = version

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        self._names.append(name)

    def has_unfinished_requests(self) -> bool:
        return bool(self._names)

    def step(self) -> list[Any]:
        reason = next(self._script)
        if isinstance(reason, Exception):
            raise reason
        done, self._names = self._names, []
        logprobs = FlatLogprobs(logprobs=[-0.5], start_indices=[0])
        if reason == "unscored":
            reason, logprobs = "stop", FlatLogprobs(logprobs=[], start_indices=[])
        spans = [SimpleNamespace(version=self.version, start=0, end=1)]
        completion = SimpleNamespace(finish_reason=reason, token_ids=[5], logprobs=logprobs, weight_versions=spans)
        return [
            SimpleNamespace(request_id=name, finished=True, outputs=[completion], num_cached_tokens=0) for name in done
        ]


class PipelinedCore(ScriptedCore):
    """Samples as vLLM does with asynchronous scheduling: a step starts a batch and gives the tokens of the one before.

    A token's id is the version of the weights that sampled it, so that ids and labels can be compared.
    """

    def __init__(self) -> None:
        super().__init__(iter(()))
        self.batch_queue = deque()
        self.playing: dict[str, tuple[int, list[int], list[int]]] = {}
        self.weights = self.stale = 0
        """Updates so far, and those that found a batch in flight."""

    def _reload(self, weights_iterator: Iterator[Any]) -> None:
        super()._reload(weights_iterator)
        self.stale += bool(self.batch_queue)
        self.weights += 1

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        self.playing[name] = (params.max_tokens, [], [])

    def has_unfinished_requests(self) -> bool:
        return bool(self.playing)

    def step(self) -> list[Any]:
        started = False
        if not self.paused and any(len(ids) + len(self.batch_queue) < n for n, ids, _ in self.playing.values()):
            self.batch_queue.appendleft((self.weights, [*self.playing]))
            started = True
        if not self.batch_queue or (started and len(self.batch_queue) < 2):
            return []
        weights, names = self.batch_queue.pop()
        done = []
        for name in names:
            if name not in self.playing:
                continue
            wanted, ids, labels = self.playing[name]
            ids.append(weights)
            labels.append(int(self.version))
            if len(ids) == wanted:
                del self.playing[name]
                completion = self._completion(ids, labels)
                done.append(SimpleNamespace(request_id=name, finished=True, outputs=[completion], num_cached_tokens=0))
        return done

    @staticmethod
    def _completion(ids: list[int], labels: list[int]) -> Any:
        spans = [SimpleNamespace(version=v, start=i, end=i + 1) for i, v in enumerate(labels)]
        logprobs = FlatLogprobs(logprobs=[-0.5] * len(ids), start_indices=range(len(ids)))
        return SimpleNamespace(finish_reason="length", token_ids=ids, logprobs=logprobs, weight_versions=spans)
