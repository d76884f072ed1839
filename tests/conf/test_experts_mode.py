"""``mode=experts`` as a command, on the real Lucene, and the process of its own that ``data.experts=auto`` uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conf_runs import Command
from patience import finished, until

from actors import experts
from actors.experts import Order, made_apart, own_experts
from agent.config import AgentConfig
from agent.errors import UserError
from conf.command_line import check_overrides
from conf.schema import RunConfig
from retrieval_service.config import RetrievalConfig
from tasks.config import DataConfig
from tasks.load import Task, load
from tasks.making.config import ExpertsConfig
from tasks.making.made import Expert, Made, Selection, whole

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


def test_what_there_is_to_say_of_a_folder_of_documents_is_said(
    command: Command, files: list[str], tmp_path: Path
) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for title, writer in WRITERS.items():
        (pages / f"{title}.txt").write_text(f"{title}\n\nA novel by {writer}.", "cp1252")
    (pages / "notes.odt").touch()
    mine = [f"data.corpus={pages}" if each.startswith("data.corpus=") else each for each in files]
    code, out, err = command("mode=experts", *mine, "output_dir=made")
    assert (code, err) == (0, "")
    assert "3 expert trajectories of 3 questions tried" in out
    assert f"{pages}: 1 files are no text, Markdown, HTML and PDF and are left out (1 .odt)" in out
    assert f"{pages}: 1 files are not UTF-8 and are read as Windows-1252, such as Villette.txt" in out


def test_nothing_that_can_be_made_is_the_users_mistake(command: Command, files: list[str]) -> None:
    code, _, err = command("mode=experts", *files, "agent.max_passage_chars=5")
    assert code == 2
    assert err.startswith("slingshot: no expert trajectory could be made of the 3 training questions: 3 questions gave")


def test_the_mode_needs_questions_and_reads_no_file_called_auto(command: Command, files: list[str]) -> None:
    code, _, err = command("mode=experts", *files, "data.questions=null")
    assert (code, err.endswith("; mode=experts needs questions to train on, data.questions=FILE\n")) == (2, True)
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
    file, said = own_experts(_unread(), task, now, None, resumed, {}, lambda done, total: None)
    assert (file, file.read_text()) == (now / "experts.jsonl", "the same\n")
    assert said == [f"expert trajectories: those of {before / 'experts.jsonl'}"]


def test_a_signal_that_comes_once_all_is_made_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(offered=0, selection=Selection(0, None))

    class Closing:
        def __init__(self, *_: object) -> None: ...

        async def start(self) -> None: ...

        async def close(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    async def making(*_: object) -> Made:
        return made

    monkeypatch.setattr(experts, "RetrievalService", Closing)
    monkeypatch.setattr(experts, "_making", making)
    monkeypatch.setattr(experts, "searched_names", lambda *_: None)
    assert experts.made_here(order(tmp_path), lambda done, total: None) is made
    assert made.stopped == signal.SIGTERM


def test_only_a_making_that_gave_something_and_came_to_its_end_is_kept(tmp_path: Path) -> None:
    made = Made(offered=1, selection=Selection(0, None), faults=["HTTP 503"])
    made.write(tmp_path, "these")
    assert not whole(tmp_path, "these")
    row: Any = SimpleNamespace(row={"id": "Emma"})
    made.experts.append(Expert(written=row, searches=1, closed=False))
    made.write(tmp_path, "these")
    assert whole(tmp_path, "these")
    for cut in (replace(made, broken="20 faults in a row"), replace(made, stopped=signal.SIGTERM)):
        cut.write(tmp_path, "these")
        assert not whole(tmp_path, "these")


SLOW = """
import sys
import actors.experts
from tasks.making import make

class Slow(make.FromEvidence):
    async def attempt(self, question):
        if question.id == "Middlemarch":
            print("waits", flush=True)
            await make.asyncio.sleep(600)
        return await super().attempt(question)

make.FromEvidence, make.CHUNK, make.choose = Slow, 1, lambda questions, seed: list(questions)
"""
"""Makes one and doesn't get on with the second."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_making_that_a_signal_ends_keeps_what_there_is(
    number: signal.Signals, files: list[str], tmp_path: Path
) -> None:
    ordinary = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # the tests may run under nohup
    asked = ["mode=experts", *files, "output_dir=made"]
    program = f"{ordinary}\n{SLOW}\nimport launch\nsys.argv[1:] = {asked}\nlaunch.main()"
    code, output = _stopped(["-c", program], number, tmp_path)
    written = tmp_path / "made" / "experts.jsonl"
    assert (code, [json.loads(row)["id"] for row in written.read_text().splitlines()]) == (128 + number, ["Emma"])
    assert f"slingshot: stopped by {number.name}; 1 expert trajectories are in {written}" in output


@pytest.mark.slow
def test_so_does_one_in_a_process_of_its_own(tmp_path: Path, files: list[str]) -> None:
    """The child is to end at once, and only once it has handed over what it has."""
    (tmp_path / "slow.py").write_text(SLOW)
    program = f"""
import slow  # the child imports this module, and so makes as slowly

if __name__ == "__main__":
    import launch
    from pathlib import Path
    from actors import experts
    from conf.command_line import check_overrides
    from tasks.load import load

    (config,) = check_overrides({["mode=experts", *files]}).configs
    task = load(config.data, config.seed, config.cache)
    experts.own_experts(config, task, Path("."), None, None, {{}}, lambda done, total: None)
"""
    (tmp_path / "run.py").write_text(program)
    _, output = _stopped(["run.py"], signal.SIGTERM, tmp_path)
    assert [json.loads(row)["id"] for row in (tmp_path / "experts.jsonl").read_text().splitlines()] == ["Emma"]
    assert "Stopped: stopped by SIGTERM; 1 expert trajectories are in experts.jsonl" in output
    assert not whole(tmp_path, "anything")


def _stopped(program: list[str], number: signal.Signals, folder: Path) -> tuple[int, str]:
    """Exit code and output of a Python program that gets a signal once it waits."""
    root = Path(__file__).parents[2]
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *program],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        until(lambda: "waits" in (folder / "output").read_text(), process)
        process.send_signal(number)
        finished(process, output)
    return process.returncode, (folder / "output").read_text()


def test_experts_that_were_made_before_the_first_checkpoint_are_made_once(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = check_overrides(["mode=experts", *files]).configs
    task = load(config.data, config.seed, config.cache)
    monkeypatch.setattr(experts, "made_apart", experts.made_here)
    data = {"training questions": "as they are"}

    def own(config: RunConfig = config, data: dict[str, str] = data) -> tuple[Path, list[str]]:
        return own_experts(config, task, tmp_path, None, None, data, lambda done, total: None)

    file, _ = own()
    rows = file.read_text()
    with monkeypatch.context() as unmade:
        unmade.delattr(experts, "made_apart")
        assert own() == (file, [f"expert trajectories: those of {file}, made with the same settings"])
    for other in (
        {"data": data | {"corpus": "another"}},
        {"config": replace(config, experts=ExpertsConfig(thoughts=["I look for {query}."]))},
    ):
        assert "expert trajectories of 3 questions tried" in own(**other)[1][0]
    own()
    file.write_text(rows + "\n")
    assert "expert trajectories of 3 questions tried" in own()[1][0], "somebody has changed the file"
    assert file.read_text() == rows


def _unread() -> RunConfig:
    """A configuration that nothing may be read of: nothing is made."""
    return object()  # type: ignore[return-value]
