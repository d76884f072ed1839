"""``mode=experts`` as a command, on the real Lucene, and the process of its own that ``data.experts=auto`` uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conf_runs import Command

from actors.experts import Order, made_apart, own_experts
from agent.config import AgentConfig
from agent.errors import UserError
from conf.schema import RunConfig
from retrieval_service.config import RetrievalConfig
from tasks.config import DataConfig
from tasks.load import Task
from tasks.making.config import ExpertsConfig

pytestmark = pytest.mark.jvm

WRITERS = {"Emma": "Jane Austen", "Middlemarch": "George Eliot", "Villette": "Charlotte Brontë"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rows = [
        {
            "id": title,
            "question": f"Who wrote {title}?",
            "golden_answers": [writer],
            "metadata": {"supporting_titles": [title]},
        }
        for title, writer in WRITERS.items()
    ]
    passages = [{"id": t, "title": t, "text": f"A novel by {w}."} for t, w in WRITERS.items() if t != "Villette"]
    passages.append({"id": "v", "title": "Villette", "text": "A novel of 1853."})
    held_out = [{**rows[0], "id": "e", "question": "Who wrote it?"}]
    paths = []
    for name, content in (("questions", rows), ("corpus", passages), ("eval_questions", held_out)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        paths.append(f"data.{name}={path}")
    return ["data=jsonl", "tracker=none", f"cache_dir={tmp_path / 'cache'}", *paths]


def test_the_mode_writes_a_file_and_says_what_it_couldnt_do(command: Command, files: list[str], tmp_path: Path) -> None:
    code, out, err = command("mode=experts", *files, "output_dir=made")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "made" / "experts.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"Emma", "Middlemarch"}
    report = json.loads((tmp_path / "made" / "experts_report.json").read_text())
    assert report["left_out_questions"] == {
        "the answer isn't in the supporting documents as they are shown": [["Villette", "Charlotte Brontë"]]
    }
    assert "2 expert trajectories of 3 questions tried, 2 of which gave one (3 there are)" in out
    assert "1 questions gave none: the answer isn't in the supporting documents as they are shown (Villette)" in out
    assert f"data.experts={tmp_path / 'made' / 'experts.jsonl'}" in out


def test_nothing_that_can_be_made_is_the_users_mistake(command: Command, files: list[str]) -> None:
    code, _, err = command("mode=experts", *files, "agent.max_passage_chars=5")
    assert code == 2
    assert err.startswith("slingshot: no expert trajectory could be made of the 3 training questions: 3 questions gave")


def test_the_mode_needs_questions_and_reads_no_file_called_auto(command: Command, files: list[str]) -> None:
    code, _, err = command("mode=experts", *files, "data.questions=null")
    assert (code, err.startswith("slingshot: data=jsonl needs data.questions=FILE; ")) == (2, True)
    code, _, err = command("mode=experts", *files, "experts.teacher.url=http://x/v1")
    assert (code, "needs experts.teacher.model=NAME" in err) == (2, True)
    code, _, err = command("mode=train", *files, "data.experts=auto", "algorithm.warm_start.steps=0")
    assert (code, "nothing uses it" in err) == (2, True)
    code, _, err = command("mode=train", *files, "data.experts=autos")
    assert (code, "data.experts=autos: no such file" in err) == (2, True)


def order(tmp_path: Path) -> Order:
    return Order(
        questions=(),
        corpus=tmp_path / "corpus.jsonl",
        cache=tmp_path / "cache",
        agent=AgentConfig(),
        retrieval=RetrievalConfig(),
        experts=ExpertsConfig(),
        seed=0,
        model=None,
    )


def test_what_goes_wrong_in_a_process_of_its_own_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("no json\n")
    with pytest.raises(UserError, match=r"corpus\.jsonl.* line 1"):
        made_apart(order(tmp_path), lambda done, total: None)


def test_a_run_that_goes_on_keeps_its_experts(tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    (before / "checkpoints" / "step-000002").mkdir(parents=True)
    now.mkdir()
    (before / "experts.jsonl").write_text("the same\n")
    task = Task(name="t", train=(), eval=(), corpus=tmp_path / "none", config=DataConfig())
    resumed = before / "checkpoints" / "step-000002"
    file, said = own_experts(_unread(), task, now, None, resumed, lambda done, total: None)
    assert (file, file.read_text()) == (now / "experts.jsonl", "the same\n")
    assert said == [f"expert trajectories: those of {before / 'experts.jsonl'}"]


def _unread() -> RunConfig:
    """A configuration that nothing may be read of: nothing is made."""
    return object()  # type: ignore[return-value]
