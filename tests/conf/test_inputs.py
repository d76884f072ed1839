"""What a run reads is looked for before anything starts."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from conf_runs import Command, Training

import launch
from agent.errors import UserError
from conf.inputs import check_inputs, missing
from tracking.trackers import several

OWN = ("data=jsonl", "data.questions=questions.jsonl", "data.corpus=corpus.jsonl", "model=qwen0.5b")
EXPERTS = {key: ["data.experts=corpus.jsonl"] for key in ("data.eval_questions", "data.dev_questions")} | {
    "data.experts": []
}
"""What else a training run with each of these files needs."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(*arguments: str) -> str | None:
    """The line with which what is asked for is refused; None if all is there."""
    (config,) = launch.check_overrides(list(arguments)).configs
    try:
        check_inputs(config)
    except UserError as error:
        return str(error)
    return None


def test_what_is_there_is_not_complained_of(tmp_path: Path) -> None:
    Path("é").mkdir()
    for path in (".", "é", str(tmp_path), f"{tmp_path}/é/../é"):
        assert missing(path) is None


def test_the_nearest_thing_that_exists_is_named(tmp_path: Path) -> None:
    Path("data/one").mkdir(parents=True)
    Path("data/questions.jsonl").touch()
    no = "no such file or folder; "
    assert missing("data/question.jsonl") == f"{no}did you mean {tmp_path}/data/questions.jsonl?"
    assert missing("dta/questions.jsonl") == f"{no}did you mean {tmp_path}/data/questions.jsonl?"
    assert missing("data/one/x/y") == f"{no}{tmp_path}/data/one has no 'x'"
    assert missing("/nowhere/at/all") == f"{no}/ has no 'nowhere'"
    assert missing("data/questions.jsonl/x") == f"{no}{tmp_path}/data/questions.jsonl is a file"
    Path("link").symlink_to("gone")
    assert missing("link") == f"{no}it is a link to gone, which doesn't exist"
    assert (
        missing("a.jsonl,b.jsonl") == f"{no}several files of questions are written [A,B], and values of a sweep need -m"
    )
    Path("seen.jsonl").touch()
    assert missing("é.jsonl") == f"{no}{tmp_path} has no 'é.jsonl'", "a suffix alone is no likeness"
    assert missing("x" * 300) == "can't be looked at (File name too long)"


def test_a_name_that_begins_with_a_tilde_and_is_nobodys_home_is_a_name(tmp_path: Path) -> None:
    Path("~draft.jsonl").write_text('{"question": "who?", "golden_answers": ["she"]}\n')
    Path("c.jsonl").touch()
    assert missing("~draft.jsonl") is None
    given = ("mode=experts", "data=jsonl", "model=tiny")
    assert refusal(*given, "data.questions=~draft.jsonl", "data.corpus=c.jsonl") is None
    assert refusal(*given, "data.questions=~draft.jsonl", "data.corpus=~nobodyhere/c.jsonl") == (
        f"data.corpus=~nobodyhere/c.jsonl: no such file or folder; {tmp_path} has no '~nobodyhere'"
    )
    assert str(refusal("mode=view", "run=~x")).startswith("run=~x: no such file or folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):  # one more where several processes share the tests
        folder.chmod(folder.stat().st_mode | 0o055)
    Path("closed").mkdir(mode=0o700)
    Path("secret").touch(mode=0o600)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        found = [missing(path) for path in ("closed/x", "secret")]
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert found[0] == "can't be looked at (Permission denied)"
    assert found[1] == "you have no right to read it"


@pytest.mark.one_in(8)
@pytest.mark.parametrize("mode", ["train", "eval", "calibrate", "index"])
def test_data_is_looked_for_by_the_modes_that_read_it(mode: str) -> None:
    Path("model").mkdir()
    asked = [*OWN, f"mode={mode}", *(["checkpoint=model"] if mode in ("eval", "calibrate") else [])]
    share = ["data.dev_share=0.1"] if mode == "calibrate" else []
    if mode != "index":
        assert str(refusal(*asked, *share)).startswith("data.questions=questions.jsonl: no such file or folder; ")
    Path("questions.jsonl").touch()
    assert str(refusal(*asked, *share)).startswith("data.corpus=corpus.jsonl: no such file or folder; ")
    Path("corpus.jsonl").touch()
    assert refusal(*asked, *share) is None
    read = {"index": (), "eval": ("data.eval_questions",)}.get(mode, ("data.eval_questions", "data.dev_questions"))
    for key in ("data.experts", *read):
        other = share if key != "data.dev_questions" else []
        line = str(refusal(*asked, *other, "algorithm.seeding.steps=1", f"{key}=none", *EXPERTS[key]))
        assert line.startswith(f"{key}=none: no such file or folder; ")


@pytest.mark.parametrize(
    ("mode", "told"), [("train", True), pytest.param("eval", True, marks=pytest.mark.slow), ("plan", False)]
)
def test_a_tracker_is_looked_for_by_the_modes_that_tell_one(
    monkeypatch: pytest.MonkeyPatch, mode: str, told: bool
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(several, "version", version)
    Path("model").mkdir()
    found = refusal(f"mode={mode}", "tracker=trackio", *(["checkpoint=model"] if mode == "eval" else []))
    assert (found or "").startswith("tracker=trackio: the package trackio isn't installed") is told


def test_a_plan_needs_no_file() -> None:
    assert refusal(*OWN, "mode=plan", "model.path=/nowhere") is None
    assert refusal(*OWN, "mode=plan", "data.corpus=null", "retrieval.index=y") is None


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resume=run"], "resume=run: no such file or folder; "),
        (["resume=file"], "resume=file: is a file, and a folder is needed"),
        (["mode=eval", "checkpoint=run"], "checkpoint=run: no such file or folder; "),
        (["mode=eval", "checkpoint=file/step-3"], "checkpoint=file/step-3: no such file or folder; "),
        (["mode=fetch", "checkpoint=file/step-3"], "checkpoint=file/step-3: no such file or folder; "),
        (["mode=ask", "question=q", "checkpoint=file"], "checkpoint=file: is a file, and a folder is needed"),
        (["mode=eval", "checkpoint=.", "exit.calibration=c.json"], "exit.calibration=c.json: no such file or folder; "),
        (["retrieval.index=index"], "retrieval.index=index: no such file or folder; "),
        (["model.path=./model"], "model.path=./model: no such file or folder; "),
        (["model.path=/nowhere/model"], "model.path=/nowhere/model: no such file or folder; / has no 'nowhere'"),
        (["mode=report", "report.sweep=multirun/x"], "report.sweep=multirun/x: no such file or folder; "),
        (["mode=eval", "checkpoint=.", "compare=other"], "compare=other: no such file or folder; "),
        (["mode=compare", "run=file", "compare=."], "run=file: is a file, and a folder is needed"),
        (["mode=report", "report.sweep=file"], "report.sweep=file: is a file, and a folder is needed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_path_that_is_not_there_is_named(arguments: list[str], line: str) -> None:
    Path("file").touch()
    assert str(refusal(*arguments)).startswith(line)


def test_a_pipe_is_no_file_but_of_a_token() -> None:
    os.mkfifo("pipe")
    line = "data.corpus=pipe: is a pipe or a device, and is read more than once; write it into a file"
    assert refusal("mode=index", "data.corpus=pipe") == line
    assert refusal("mode=serve", "data=world", "serve.token_file=pipe") is None


@pytest.mark.one_in(10)
@pytest.mark.parametrize(
    "arguments",
    [
        ["resume=auto"],
        ["model.path=org/name"],
        ["model.path=name"],
        ["cache_dir=new"],
        ["mode=eval", "checkpoint=org/name"],
        ["mode=fetch", "checkpoint=org/name"],
        ["mode=eval", "evaluation.endpoint.url=http://there/v1", "evaluation.endpoint.model=m"],
    ],
)
def test_what_is_no_path_or_is_yet_to_be_made_passes(arguments: list[str]) -> None:
    assert refusal(*arguments) is None


def test_paths_are_relative_to_the_folder_that_one_starts_in(training: Training, command: Command) -> None:
    for name in ("questions.jsonl", "corpus.jsonl"):
        Path(name).touch()
    assert command(*OWN, "hydra.run.dir=deep/down") == (0, "", "")
    code, out, err = command(*OWN, "data.questions=question.jsonl", "hydra.run.dir=other")
    assert (code, out) == (2, "")
    meant = Path.cwd() / "questions.jsonl"
    assert err == f"slingshot: data.questions=question.jsonl: no such file or folder; did you mean {meant}?\n"
    assert not Path("other").exists(), "nothing has been made"


def test_each_value_of_a_sweep_is_looked_for(training: Training, command: Command) -> None:
    for name in ("a.jsonl", "corpus.jsonl"):
        Path(name).touch()
    code, _, err = command("-m", *OWN, "data.questions=a.jsonl,b,c.jsonl")
    assert (code, training.played) == (2, [])
    assert err.startswith("slingshot: data.questions=b: no such file or folder; ")
