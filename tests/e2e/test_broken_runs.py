"""Runs that are broken on purpose: an alarm names the cause of each, on the console, in the report, in the tracker."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BREAKING = Path(__file__).parent / "breaking"
PAYS = """
def judge(question, trajectory):
    return min(1.0, trajectory.action_tokens / 60)
"""


def alarms(run, name: str) -> list[dict]:
    """The alarms of that name, which the console, the report and the tracker's rows have, too."""
    assert run.code == 0, run.output
    found = [row for row in run.rows("event") if row["event"] == "alarm" and row["name"] == name]
    if found:
        assert f"alarm: {name}: {found[0]['what']}; look at " in run.output
        assert any(row.get(f"alarms/{name}") == 1 for row in run.rows("step"))
        page = (run.folder / "report.html").read_text(encoding="utf-8")
        told = json.loads(re.search(r'id="r0-run">(.*?)</script>', page)[1])
        assert name in [alarm["name"] for alarm in told["alarms"]]
    return found


@pytest.mark.parametrize("broken", ["stale", "mask"])
def test_stale_weights_and_a_shifted_mask_are_a_mismatch(launch, small, monkeypatch, broken: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BREAKING), prepend=os.pathsep)
    monkeypatch.setenv("BREAK", broken)
    run = launch(broken, *small, "algorithm.steps=4", "algorithm.mismatch_limit=0")
    (alarm,) = alarms(run, "train–inference mismatch")
    # Weights are stale once there are newer ones; a mask is wrong from the first step.
    assert alarm["step"] == 1 if broken == "mask" else alarm["step"] > 1
    assert ("most fit the token before or after" in alarm["what"]) == (broken == "mask")


def test_a_shifted_mask_ends_a_run_before_it_trains_on_it(launch, small, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BREAKING), prepend=os.pathsep)
    monkeypatch.setenv("BREAK", "mask")
    run = launch("mask-stopped", *small, "algorithm.steps=4")
    assert run.code == 1
    assert "the mask or the tokens are shifted by one" in run.output
    assert "algorithm.mismatch_limit is 0.001. This step has changed nothing." in run.output
    assert run.rows("step") == []
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    end = json.loads(re.search(r'id="r0-run">(.*?)</script>', page)[1])["end"]
    assert end.startswith("The run broke after step 0: ")
    assert "algorithm.mismatch_limit" in end


class Nothing(BaseHTTPRequestHandler):
    """Search-R1's server over an index of nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"result": [[] for _ in asked["queries"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def nothing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_retrieval_that_finds_nothing_is_named(launch, small, nothing) -> None:
    run = launch(
        "nothing", *small, "algorithm.steps=6", "retrieval=http", f"retrieval.url={nothing}",
        "retrieval.dialect=search_r1",
    )  # fmt: skip
    (alarm,) = alarms(run, "searches find nothing")
    assert (alarm["step"], alarm["what"]) == (1, "100% of the searches found no passage")


def test_a_reward_that_pays_for_length_is_named(launch, small, tmp_path, monkeypatch) -> None:
    (tmp_path / "paying.py").write_text(PAYS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    run = launch(
        "paying", *small, "algorithm.steps=30", "pool.batch_questions=12", "pool=epoch", "agent.max_searches=8",
        "reward.outcome=paying:judge", "reward.evidence_weight=0", "evaluation.every=10",
    )  # fmt: skip
    found = [name for name in ("episodes get longer", "reward up, held-out EM down") if alarms(run, name)]
    assert "episodes get longer" in found
