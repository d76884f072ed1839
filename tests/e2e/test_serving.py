"""``mode=serve`` as a command, and a training run that searches through it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from patience import finished, until

PATIENCE_S = 600.0


@contextmanager
def serving(start, folder: Path, *arguments: str) -> Iterator[str]:
    """The URL of a server; at the end it has to have ended well by one Ctrl-C, without a word more."""
    process = start(folder, "mode=serve", "serve.port=0", *arguments)
    output = folder.with_name(f"{folder.name}.output")
    try:
        (url,) = until(
            lambda: re.findall(r"^(http://\S+) serves 3,420 passages of world-0", output.read_text(), re.M), process
        )
        yield url
        process.send_signal(signal.SIGINT)
        with output.open() as file:
            said = finished(process, file)
        assert process.returncode == 0, said
        assert said.endswith("Ctrl-C ends it\n"), said
    finally:
        process.kill()


def test_a_service_is_started_asked_and_ended(start, tmp_path):
    (tmp_path / "token").write_text("t0ken\n")
    with serving(start, tmp_path / "served", f"serve.token_file={tmp_path / 'token'}") as url:
        right = {"Authorization": "Bearer t0ken"}
        told = httpx.get(f"{url}/health", headers=right, timeout=PATIENCE_S).json()["index"]
        assert (told["name"], told["documents"], told["analyser"]) == ("world-0.jsonl", 3420, "porter")
        assert httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code == 401
        passage = httpx.post(f"{url}/search", json={"query": "the"}, headers=right, timeout=PATIENCE_S)
        assert passage.json() == [], "a stop word"
    assert "t0ken" not in (tmp_path / "served.output").read_text()
    assert not any("t0ken" in file.read_text() for file in (tmp_path / "served").rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_run_over_http_earns_what_it_earns_over_its_own_index(start, launch, both, whole, tmp_path):
    """The same seed, the same steps: the passages come from a server in another process, and are the same."""
    with serving(start, tmp_path / "served") as url:
        run = launch(
            "over_http",
            *both,
            "retrieval=http",
            f"retrieval.url={url}",
        )
        counted = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    assert run.code == 0, run.output
    searches = [[row["search/mean"] for row in r.rows("step")] for r in (run, whole)]
    rewards = [[row["reward/mean"] for row in r.rows("step")] for r in (run, whole)]
    assert searches[0] == pytest.approx(searches[1])
    assert rewards[0] == pytest.approx(rewards[1])
    assert float(re.search(r"^slingshot_retrieval_queries_total (\S+)", counted, re.M)[1]) > 0
    assert not re.search(r'status="[45]', counted)
