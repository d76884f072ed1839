"""An engine that can't start: what its worker says of it. The worker's actor is used as the plain class that it is."""

from __future__ import annotations

import asyncio
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import HANG_S

from actors import rollout as rollout_module
from actors.process import WIDTH, last_lines
from actors.rollout import RolloutWorker
from agent.config import AgentConfig
from agent.errors import Fault, UserError
from agent.tools.search import Search


class Unfit(ValueError):
    """Pages long, and it can't be pickled, as some of vLLM's are."""

    def __init__(self) -> None:
        super().__init__(f"1 validation error\n  head size 16 is not supported: {[*range(9999)]}")
        self.lock = threading.Lock()


def worker_with(engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker that makes ``engine`` when it starts."""
    monkeypatch.setattr(rollout_module, "log_to", lambda *_: None)
    monkeypatch.setattr(rollout_module, "Tokenizer", lambda path: None)
    monkeypatch.setattr(rollout_module, "Dialogue", SimpleNamespace(of=lambda *_: None))
    monkeypatch.setattr(rollout_module, "Engine", engine)
    here = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(rollout_module.ray, "get_runtime_context", lambda: here)
    settings = SimpleNamespace(
        model_path="",
        engine=None,
        device="cpu",
        dtype="float32",
        seed=0,
        colocated=False,
        transfers=False,
        run_dir=Path(),
        retrieval_timeout_s=1.0,
    )
    settings.agent = AgentConfig()
    return RolloutWorker.__ray_metadata__.modified_class("w", settings, Path(), {})  # type: ignore[attr-defined]


def test_the_fault_is_one_line_that_can_leave_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Unfit

    worker = worker_with(refuse, monkeypatch)
    with pytest.raises(Fault, match=r"^vLLM can't start: Unfit: 1 validation error head size 16 is not supp") as error:
        asyncio.run(worker.start())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert "9998]" in capsys.readouterr().err, "the log has all of it"


def test_an_engine_of_another_device_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("cluster.device=cpu: this environment's vLLM runs on cuda; use another")

    with pytest.raises(UserError, match=r"^cluster\.device=cpu: "):
        asyncio.run(worker_with(refuse, monkeypatch).start())


class Keyless(Search):
    """A tool of the user's own that lacks something."""

    def __init__(self, config: AgentConfig, searcher: Any) -> None:
        raise RuntimeError("no key")


def test_a_tool_that_cannot_be_made_is_the_users_mistake_before_the_engine_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = worker_with(lambda *_, **__: pytest.fail("the engine was started"), monkeypatch)
    worker._settings.agent = AgentConfig(tools=[f"{__name__}:Keyless"])
    with pytest.raises(UserError, match=r"Keyless: __init__\(\) raised RuntimeError: no key$"):
        asyncio.run(worker.start())


ASKED = threading.Event()
"""Something else ran on the actor's event loop."""


class Slow(Search):
    """A tool of the user's own that loads something when it is made."""

    def __init__(self, config: AgentConfig, searcher: Any) -> None:
        wait_until_asked()


def wait_until_asked(*_: Any, **__: Any) -> None:
    assert ASKED.wait(HANG_S if threading.current_thread() is not threading.main_thread() else 0.0)
    raise Unfit


@pytest.mark.parametrize(("tool", "error"), [("search", Fault), (f"{__name__}:Slow", UserError)])
def test_the_actor_answers_while_its_engine_or_a_tool_is_made(
    tool: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    ASKED.clear()
    worker = worker_with(wait_until_asked, monkeypatch)
    worker._settings.agent = AgentConfig(tools=[tool])

    async def start_and_ask() -> None:
        starting = asyncio.ensure_future(worker.start())
        await asyncio.sleep(0.01)
        ASKED.set()
        await starting

    with pytest.raises(error, match="Unfit"):
        asyncio.run(start_and_ask())


def test_a_message_shows_no_line_of_a_log_in_full_that_is_pages_long(tmp_path: Path) -> None:
    (tmp_path / "rollout-0.log").write_text("first\n" + "x" * 5000 + "\nlast\n")
    assert last_lines(tmp_path, "rollout-0").splitlines() == ["first", "x" * WIDTH, "last"]
    assert last_lines(tmp_path, "rollout-0", 1) == "last"
    assert last_lines(tmp_path, "rollout-1") == ""
