"""Which checkpoint ``resume=`` means, whether its run is still the same, and which of its rows are kept."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_writing import write_checkpoint

from actors import run_state
from actors.provenance import Provenance, asked
from actors.resume import carry_best, carry_metrics, find, resumed, rewind
from actors.start import _check_reuse
from agent.config import AgentConfig
from agent.errors import UserError
from agent.pool import saved
from agent.pool.query_pool import QueryPool
from agent.pool.rules.dynamic import Rule as Dynamic
from agent.pool.rules.recycle import Rule as Recycle
from agent.records import Question
from conf import as_trained
from conf.command_line import Request
from conf.evaluation import EvalConfig
from conf.schema import CheckpointConfig, RunConfig
from conf.topology import ClusterConfig
from learner.checkpoint import set_best
from learner.config import AlgorithmConfig, ModelConfig, OptimizerConfig
from learner.manifest import Files, listed
from retrieval_service.config import RetrievalConfig
from retrieval_service.names import digests
from tasks.load import Task
from tracking.metrics import MetricsLog, read, replace

IDS = [f"q{i}" for i in range(4)]


def checkpoint(
    run: Path,
    step: int,
    pool: dict[str, Any] | None = None,
    made_with: Provenance | None = None,
    best: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint of ``run``, as the supervisor writes it."""
    state = run_state.RunState(
        step=step,
        rollouts=8 * step,
        generated_tokens=100 * step,
        first_eval={"step": 0, "em": 0.1},
        last_eval=None,
        best=best,
    )

    def write(folder: Path) -> Files:
        run_state.save(folder, state, digests(()))
        saved.save(folder / "training", pool or {"weight": np.ones(2), "released": step})
        for name in ("config.json", "model.safetensors", "training/learner.pt"):
            (folder / name).write_text("{}")
        if made_with is not None:
            made_with.save(folder)
        return listed(folder)

    return write_checkpoint(run / "checkpoints", step, write)


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else a[k] == b[k]
        for k in a
    )


# --- load ------------------------------------------------------------------------------------------


def test_a_pools_state_comes_back_as_it_was(tmp_path: Path) -> None:
    pool = QueryPool(IDS, Recycle(batch_questions=2, group_size=2), seed=1)
    claimed = pool.claim("w", now=0.0, limit=2)
    pool.worker_lost("w")
    state = pool.state()
    assert len(claimed) == 2
    assert state["books"]["groups"]["returned"] == {"worker_lost": 2}
    path = checkpoint(tmp_path, 3, state)
    loaded, pool_state = run_state.load(path), saved.load(path / "training")
    assert loaded.step == 3
    assert (loaded.rollouts, loaded.generated_tokens) == (24, 300)
    assert (loaded.first_eval, loaded.last_eval) == ({"step": 0, "em": 0.1}, None)
    assert equal(pool_state, state)
    again = QueryPool(IDS, Recycle(batch_questions=2, group_size=2), seed=1)
    again.load_state(pool_state)
    assert equal(again.state(), state)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is missing; is this a checkpoint's folder\?"):
        run_state.check(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "pool.json", "pool.npz", "learner.pt"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = checkpoint(tmp_path, 3)
    file = path / "training" / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=rf"training/{name} is damaged; resume from another checkpoint"):
        run_state.check(path)
    file.unlink()
    with pytest.raises(UserError, match=rf"training/{name} is missing; resume from another checkpoint"):
        run_state.check(path)


def test_a_checkpoint_without_a_training_state_cannot_be_resumed(tmp_path: Path) -> None:
    def write(folder: Path) -> Files:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text("{}")
        return listed(folder)

    path = write_checkpoint(tmp_path, 1, write)
    with pytest.raises(UserError, match=r"step-000001: training/run\.json is missing, so no run can go on from it; "):
        run_state.check(path)


def test_a_checkpoint_of_an_earlier_version_cannot_be_resumed(tmp_path: Path) -> None:
    def write(folder: Path) -> Files:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text("{}")
        (folder / "training").mkdir()
        (folder / "training" / "run.json").write_text(json.dumps({"step": 1, "pool": {"released": 1}}))
        np.savez(folder / "training" / "pool.npz", weight=np.ones(2))
        return listed(folder)

    path = write_checkpoint(tmp_path, 1, write)
    with pytest.raises(UserError, match=r"training/pool\.json is missing.* may be an earlier version's"):
        run_state.check(path)


# --- find ------------------------------------------------------------------------------------------


def run_config(**settings: Any) -> RunConfig:
    return RunConfig(**({"pool": Recycle()} | settings))


SETTINGS = asked(run_config())
MADE_WITH = Provenance(settings=SETTINGS, data={})


def test_auto_is_the_last_checkpoint_of_the_run_that_wrote_last(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    old, new = outputs / "2026-01-02" / "10-00-00", outputs / "2026-01-01" / "09-00-00"
    checkpoint(old, 900, made_with=MADE_WITH)
    checkpoint(new, 20, made_with=MADE_WITH)
    checkpoint(new, 100, made_with=MADE_WITH)
    (outputs / "2026-01-03" / "08-00-00" / "checkpoints").mkdir(parents=True)  # started, and saved nothing yet
    os.utime(old / "checkpoints", (1000, 1000))
    os.utime(new / "checkpoints", (2000, 2000))
    assert find("auto", outputs, tmp_path, SETTINGS).path == new / "checkpoints" / "step-000100"
    os.utime(old / "checkpoints", (3000, 3000))
    assert find("auto", outputs, tmp_path, SETTINGS).path == old / "checkpoints" / "step-000900"


def test_auto_looks_at_runs_of_the_same_experiment_alone(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    mine, other = outputs / "mine", outputs / "other"
    harmless = run_config(
        output_dir="elsewhere", evaluation=EvalConfig(every=3), cluster=ClusterConfig(dashboard=False)
    )
    checkpoint(mine, 1, made_with=Provenance(settings=asked(harmless), data={}))
    checkpoint(other, 2, made_with=Provenance(settings=asked(run_config(seed=5)), data={}))
    os.utime(mine / "checkpoints", (1000, 1000))
    assert find("auto", outputs, tmp_path, SETTINGS).path == mine / "checkpoints" / "step-000001"
    with pytest.raises(
        UserError, match=r"is this experiment; the newest, .*other.*, has other settings \(seed=7 \(was 5"
    ):
        find("auto", outputs, tmp_path, asked(run_config(seed=7)))


def test_auto_leaves_a_run_of_another_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same architecture: only its path tells it from ours, or its name."""
    outputs, models = tmp_path / "outputs", tmp_path / "models"
    mine = run_config(model=ModelConfig(path=str(models / "a"), name=""))
    saved = checkpoint(outputs / "one", 1, made_with=Provenance(settings=asked(mine), data={}))
    monkeypatch.chdir(models.parent)
    for same in (str(models / "a"), "models/a", "models/../models/a"):
        settings = asked(run_config(model=ModelConfig(path=same, name="")))
        assert find("auto", outputs, tmp_path, settings).path == saved
    for path, name in ((str(models / "b"), ""), (str(models / "b" / "a"), "a"), ("someone/a", "a")):
        with pytest.raises(UserError, match=r"has other settings \((model\.name=b \(was a\), )?model\.path=.* \(was "):
            find("auto", outputs, tmp_path, asked(run_config(model=ModelConfig(path=path, name=name))))


def test_auto_takes_the_checkpoint_before_one_whose_settings_are_damaged(tmp_path: Path) -> None:
    """And not another run's."""
    outputs = tmp_path / "outputs"
    mine, older = outputs / "mine", outputs / "older"
    checkpoint(older, 20, made_with=MADE_WITH)
    checkpoint(mine, 20, made_with=MADE_WITH)
    newest = checkpoint(mine, 40, made_with=MADE_WITH)
    settings = newest / as_trained.MADE_WITH
    settings.write_text(settings.read_text()[:100])
    os.utime(older / "checkpoints", (1000, 1000))
    os.utime(mine / "checkpoints", (2000, 2000))
    found = find("auto", outputs, tmp_path, SETTINGS)
    assert found.path == mine / "checkpoints" / "step-000020"
    assert len(found.refused) == 1


@pytest.mark.parametrize("exists", [True, False])
def test_auto_without_any_checkpoint_says_so(tmp_path: Path, exists: bool) -> None:
    outputs = tmp_path / "outputs"
    if exists:
        (outputs / "2026-01-01" / "10-00-00" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^resume=auto: no run under .*outputs has a checkpoint$"):
        find("auto", outputs, tmp_path, SETTINGS)


def test_auto_goes_on_in_the_folder_of_the_newest_run_and_in_no_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model's own configuration sets isn't known yet where a command's folder is looked at."""
    monkeypatch.chdir(tmp_path)
    outputs = Path("outputs")
    settled = run_config(agent=AgentConfig(max_response_tokens=3072))
    settled.resume = "auto"
    made_with = Provenance.of(settled, task(tmp_path))
    older, newest = (checkpoint(outputs / run, 1, made_with=made_with) for run in ("older", "newest"))
    os.utime(older.parent, (1000, 1000))

    def goes_on(run: str) -> Path | None:
        as_typed = dataclasses.replace(settled, agent=AgentConfig(max_response_tokens=0))
        _check_reuse(Request(configs=(as_typed,), folder=outputs / run), outputs / run, "checkpoints")
        return resumed(settled, outputs / run, outputs, made_with, lambda text, style: None)

    assert goes_on("newest") == newest
    with pytest.raises(
        UserError, match=r"^output_dir=outputs/older: holds a run, and resume=auto goes on from .*newest"
    ):
        goes_on("older")


def test_a_runs_folder_means_its_last_checkpoint_and_a_checkpoint_itself(tmp_path: Path) -> None:
    first, last = checkpoint(tmp_path, 99), checkpoint(tmp_path, 100)
    assert find(str(tmp_path), tmp_path / "elsewhere", tmp_path, SETTINGS).path == last
    assert find(str(first), tmp_path / "elsewhere", tmp_path, SETTINGS).path == first
    set_best(first)
    assert find(str(tmp_path / "checkpoints" / "best"), tmp_path, tmp_path, SETTINGS).path == first.resolve()


@pytest.mark.parametrize("resume", ["auto", "if_any", "run", "run/checkpoints/step-000100", "run/checkpoints/best"])
def test_a_checkpoint_that_a_kill_left_without_its_name_is_gone_on_from(tmp_path: Path, resume: str) -> None:
    run = tmp_path / "run"
    last = checkpoint(run, 100, made_with=MADE_WITH)
    set_best(last)
    last.rename(last.with_name(f".tmp-replaced-{last.name}"))
    named = resume if resume in ("auto", "if_any") else str(tmp_path / resume)
    assert find(named, tmp_path, run, SETTINGS).path == last


@pytest.mark.parametrize("name", ["Fragen über alles.jsonl", "質問.jsonl", "caf\udce9.jsonl"])
def test_a_checkpoint_says_what_it_was_made_with_whatever_the_names_and_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """``\\udce9`` is a byte of a path that isn't UTF-8, as Python has it. The locale is Latin-1 here."""
    monkeypatch.setattr("io.text_encoding", lambda encoding, stacklevel=2: encoding or "latin-1")
    made = Provenance(settings={"data": {"questions": name}}, data={"train": "1"})
    made.save(tmp_path)
    assert Provenance.load(tmp_path) == made


def test_a_damaged_one_gives_way_to_the_one_before_unless_it_is_named(tmp_path: Path) -> None:
    first, last = checkpoint(tmp_path, 99), checkpoint(tmp_path, 100)
    (last / "training" / "pool.json").write_text("{}")
    found = find(str(tmp_path), tmp_path, tmp_path, SETTINGS)
    assert found.path == first
    assert found.refused == (f"checkpoint {last}: training/pool.json is damaged; resume from another checkpoint",)
    with pytest.raises(UserError, match=r"training/pool\.json is damaged"):
        find(str(last), tmp_path, tmp_path, SETTINGS)
    (first / "config.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint of .* is whole: .*step-000100.*; .*step-000099.*"):
        find(str(tmp_path), tmp_path, tmp_path, SETTINGS)
    with pytest.raises(UserError, match=r"^resume=if_any: no checkpoint of .* is whole"):
        find("if_any", tmp_path, tmp_path, SETTINGS)


def test_if_any_is_the_run_in_the_folder_or_none(tmp_path: Path) -> None:
    assert find("if_any", tmp_path, tmp_path / "run", SETTINGS).path is None
    path = checkpoint(tmp_path / "run", 4)
    assert find("if_any", tmp_path, tmp_path / "run", SETTINGS).path == path


def test_the_users_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = checkpoint(tmp_path / "run", 1)
    assert find("~/run", tmp_path, tmp_path, SETTINGS).path == path


@pytest.mark.parametrize("folder", ["nothing", "empty", "started"])
def test_any_other_folder_is_refused_with_an_example(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "started" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^resume=.*{folder}: neither a checkpoint nor a run with one; .*step-000100"):
        find(str(tmp_path / folder), tmp_path, tmp_path, SETTINGS)


# --- what has changed ------------------------------------------------------------------------------


def task(tmp_path: Path, **changed: Any) -> Task:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "d", "contents": "text"}\n')
    question = Question(id="q", text="who?", golden_answers=("she",))
    held_out = Question(id="e", text="when?", golden_answers=("then",))
    made: Any = {"name": "t", "train": (question,), "eval": (held_out,), "corpus": corpus, "config": run_config().data}
    return Task(**(made | changed))


Go = Callable[[RunConfig, Task], list[str]]


@pytest.fixture
def go_on(tmp_path: Path) -> Go:
    """Goes on with a run of ``SETTINGS`` and ``task`` under another configuration; what is said."""
    checkpoint(tmp_path / "old", 4, made_with=Provenance.of(run_config(), task(tmp_path)))

    def go(config: RunConfig, asked_task: Task) -> list[str]:
        said: list[str] = []
        config.resume = str(tmp_path / "old")
        now = Provenance.of(config, asked_task)
        path = resumed(config, tmp_path / "new", tmp_path, now, lambda text, style: said.append(text))
        assert path == tmp_path / "old" / "checkpoints" / "step-000004"
        return said

    return go


def test_a_folder_in_the_place_of_the_best_checkpoints_link_holds_nothing_up(go_on: Go, tmp_path: Path) -> None:
    """As a copy of a run that follows links has one; and some file systems have no links."""
    (tmp_path / "new" / "checkpoints" / "best").mkdir(parents=True)
    said = go_on(run_config(), task(tmp_path))
    assert said[-1].startswith("checkpoints/best doesn't lead to the best one: ")


def test_a_prompt_of_ones_own_is_saved_and_listed(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("{tools} {question}")
    config = run_config(agent=AgentConfig(prompt=str(tmp_path / "own.txt")))
    (tmp_path / "own.txt").write_text("{tools} {question} edited")
    made_with = Provenance.of(config, task(tmp_path))
    saved_at = checkpoint(tmp_path / "run", 4, made_with=made_with)
    assert (saved_at / as_trained.PROMPT).read_text() == "{tools} {question}"
    assert set(made_with.save(saved_at)) == {"training/made_with.json", "training/prompt.txt"}
    again = Provenance.load(saved_at)
    assert again is not None
    assert (again.settings, again.data) == (made_with.settings, made_with.data)
    shipped = Provenance.of(run_config(), task(tmp_path))
    (tmp_path / "shipped").mkdir()
    assert set(shipped.save(tmp_path / "shipped")) == {"training/made_with.json"}


def test_the_same_run_says_nothing(go_on: Go, tmp_path: Path) -> None:
    assert go_on(run_config(), task(tmp_path)) == []


def test_what_changes_nothing_that_is_learned_is_listed_and_taken(go_on: Go, tmp_path: Path) -> None:
    config = run_config(
        evaluation=EvalConfig(every=3),
        checkpoints=CheckpointConfig(keep=7),
        retrieval=RetrievalConfig(outage_s=60.0),
        algorithm=AlgorithmConfig(steps=900, token_budget=5),
    )
    asked_about = dataclasses.replace(task(tmp_path).eval[0], text="where?")
    assert go_on(config, task(tmp_path, eval=(asked_about,))) == [
        "other settings from here on: algorithm.steps=900 (was 100), algorithm.token_budget=5 (was 0), "
        "checkpoints.keep=7 (was 2), evaluation.every=3 (was 10), retrieval.outage_s=60.0 (was 600.0), "
        "held-out questions: not the same"
    ]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 1}, r"seed=1 \(was 0\)"),
        ({"pool": Recycle(batch_questions=4)}, r"pool\.batch_questions=4 \(was 24\)"),
        ({"pool": Recycle(group_size=4)}, r"pool\.group_size=4 \(was 8\)"),
        ({"pool": Recycle(max_staleness=1)}, r"pool\.max_staleness=1 \(was 0\)"),
        ({"pool": Dynamic()}, r"pool\.name=dynamic \(was recycle\)"),
        (
            {"algorithm": AlgorithmConfig(optimizer=OptimizerConfig(betas=[0.9, 0.95], lr=1e-5))},
            r"algorithm\.optimizer\.betas=\[0\.9, 0\.95\] \(was \[0\.9, 0\.999\]\), algorithm\.optimizer\.lr=1e-05",
        ),
        ({"cluster": ClusterConfig(in_flight_updates=False)}, r"cluster\.in_flight_updates=False \(was True\)"),
    ],
)
def test_what_decides_what_is_learned_has_to_be_allowed(
    go_on: Go, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(
        UserError, match=rf"made with other settings or data: .*{named}.*; set them back, or resume_allow_changes=true"
    ):
        go_on(run_config(**settings), task(tmp_path))
    (said,) = go_on(run_config(**settings, resume_allow_changes=True), task(tmp_path))[-1:]
    assert said.startswith("what is learned changes from here on: ")


def test_other_texts_under_the_same_ids_are_found(go_on: Go, tmp_path: Path) -> None:
    question = dataclasses.replace(task(tmp_path).train[0], golden_answers=("he",))
    with pytest.raises(UserError, match="made with other settings or data: training questions: not the same; set"):
        go_on(run_config(), task(tmp_path, train=(question,)))
    corpus = tmp_path / "other.jsonl"
    corpus.write_text('{"id": "d", "contents": "texts"}\n')
    with pytest.raises(UserError, match="made with other settings or data: corpus: not the same; set"):
        go_on(run_config(), task(tmp_path, corpus=corpus))


def test_the_steps_decide_what_is_learned_where_the_learning_rate_decays_over_them(go_on: Go, tmp_path: Path) -> None:
    decaying = OptimizerConfig(schedule="linear")
    with pytest.raises(UserError, match=r"algorithm\.optimizer\.schedule=linear .*, algorithm\.steps=900"):
        go_on(run_config(algorithm=AlgorithmConfig(steps=900, optimizer=decaying)), task(tmp_path))


def test_if_any_starts_where_nothing_was_saved_and_forgets_what_was_begun(tmp_path: Path) -> None:
    run = tmp_path / "run"
    MetricsLog(run / "metrics.jsonl").write("step", {"step": 1})
    config = run_config(resume="if_any")
    said: list[str] = []
    now = Provenance.of(config, task(tmp_path))
    assert resumed(config, run, tmp_path, now, lambda text, style: said.append(text)) is None
    assert said == [f"resume=if_any: {run} has no checkpoint, the run starts"]
    assert not (run / "metrics.jsonl").exists()


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_word(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "old", 4)
    config = run_config(resume=str(path))
    said: list[str] = []
    now = Provenance.of(config, task(tmp_path))
    assert resumed(config, tmp_path / "new", tmp_path, now, lambda text, style: said.append(text)) == path
    assert said == [f"{path} doesn't say what it was made with: nothing can be compared"]


# --- metrics ---------------------------------------------------------------------------------------


def old_run(run: Path) -> Path:
    """A run of four steps, saved after the second; the checkpoint."""
    log = MetricsLog(run / "metrics.jsonl")
    log.write("event", {"event": "about"})
    log.write("event", {"event": "seeding", "step": 9})
    log.write("event", {"event": "worker_lost", "worker": "rollout-0"})
    log.write("eval", {"step": 0, "em": 0.1})
    for step in range(1, 5):
        log.write("step", {"step": step, "reward/mean": step / 10})
    log.write("eval", {"step": 2, "em": 0.2})
    log.write("event", {"event": "checkpoint", "step": 2})
    log.write("eval", {"step": 4, "em": 0.4})
    log.write("event", {"event": "alarm", "step": 4})
    log.write("event", {"event": "fault", "why": "the engine died"})
    log.write("event", {"event": "failed", "message": "the engine died"})
    log.write("summary", {"step": 4})
    return checkpoint(run, 2)


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint_and_what_happened(tmp_path: Path) -> None:
    path = old_run(tmp_path / "old")
    carry_metrics(path, tmp_path / "new")
    assert read(tmp_path / "new" / "metrics.jsonl") == [
        {"kind": "event", "event": "seeding", "step": 9},
        {"kind": "event", "event": "worker_lost", "worker": "rollout-0"},
        {"kind": "eval", "step": 0, "em": 0.1},
        {"kind": "step", "step": 1, "reward/mean": 0.1},
        {"kind": "step", "step": 2, "reward/mean": 0.2},
        {"kind": "eval", "step": 2, "em": 0.2},
        {"kind": "event", "event": "checkpoint", "step": 2},
        {"kind": "event", "event": "resumed", "step": 2, "path": str(path)},
    ]


def test_the_best_checkpoint_so_far_is_found_in_a_new_folder_too(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    first = checkpoint(old, 1)
    carry_best(first, new)
    assert not (new / "checkpoints").exists(), "there was no evaluation"
    for path in (checkpoint(old, 2, best={"step": 1, "em": 0.9}), checkpoint(old, 3, best={"step": 1, "em": 0.9})):
        carry_best(path, new)
        assert (new / "checkpoints" / "best").resolve() == first.resolve()
    carry_best(checkpoint(new, 4, best={"step": 1, "em": 0.9}), new)
    assert (new / "checkpoints" / "best").resolve() == first.resolve(), "it needn't lie where the run goes on"
    carry_best(new / "checkpoints" / "step-000004", tmp_path / "newer")
    assert (tmp_path / "newer" / "checkpoints" / "best").resolve() == first.resolve()
    own = checkpoint(new, 5)
    set_best(own)
    assert (new / "checkpoints" / "best").resolve() == own.resolve()
    assert first.is_dir()


@pytest.mark.parametrize(("best", "there"), [(None, False), (20, True), (30, False)])
def test_a_run_that_goes_back_has_the_best_checkpoint_of_what_it_goes_back_to(
    tmp_path: Path, best: int | None, there: bool
) -> None:
    """Not one that came after it. Where that one is gone, there is none."""
    for step in (20, 80):
        set_best(checkpoint(tmp_path, step))
    path = checkpoint(tmp_path, 40, best=best and {"step": best, "em": 0.5})
    config = run_config(resume=str(path))
    resumed(config, tmp_path, tmp_path, Provenance.of(config, task(tmp_path)), lambda text, style: None)
    link = tmp_path / "checkpoints" / "best"
    assert link.is_symlink() == there
    assert not there or link.resolve() == tmp_path / "checkpoints" / "step-000020"


def test_a_run_that_went_back_and_was_killed_before_its_next_checkpoint_goes_on_from_where_it_went_back_to(
    tmp_path: Path,
) -> None:
    """What it has forgotten in its logs it isn't to take up again."""
    old, newer = checkpoint(tmp_path, 40), checkpoint(tmp_path, 100)

    def goes_on(resume: str, run_dir: Path) -> Path | None:
        config = run_config(resume=resume)
        return resumed(config, run_dir, tmp_path, Provenance.of(config, task(tmp_path)), lambda text, style: None)

    assert goes_on(str(old), tmp_path / "another") == old
    assert goes_on("if_any", tmp_path) == newer, "another folder's run is nothing to this one"
    assert goes_on(str(old), tmp_path) == old
    assert goes_on("if_any", tmp_path) == old


SKIPPED = [
    {"kind": "event", "event": "untrainable_batch", "step": step, "batch": batch}
    for step, batch in ((0, 0), (0, 7), (1, 1), (3, 3), (3, 4))
]
"""The seeding's, whose batches have numbers of their own; one before the checkpoint's second step; two after it."""


def test_batches_that_are_played_again_have_cost_something_once(tmp_path: Path) -> None:
    """The second of those after the checkpoint's step was still released in it: the run was stopped there."""
    old = tmp_path / "old"
    path = checkpoint(old, 2, {"weight": np.ones(2), "released": 4})
    log = MetricsLog(old / "metrics.jsonl")
    for row in (*SKIPPED, {"event": "untrainable_batch", "step": 3}, {"event": "seeding", "step": 9}):
        log.write("event", {k: v for k, v in row.items() if k != "kind"})
    log.write("event", {"event": "worker_lost", "worker": "w"})
    carry_metrics(path, tmp_path / "new")
    rewind(old, path)
    held = [*SKIPPED[:4], {"kind": "event", "event": "seeding", "step": 9}]
    lost = {"kind": "event", "event": "worker_lost", "worker": "w"}
    assert read(tmp_path / "new" / "metrics.jsonl")[:-1] == [*held, lost]
    assert read(old / "metrics.jsonl") == [*held, lost]
    rewind(old, None)
    assert read(old / "metrics.jsonl") == [lost], "the seeding, too, is played again"


def test_a_run_that_goes_on_in_its_own_folder_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = old_run(run)
    played = [{"batch": batch, "question": "wer\u2028?"} for batch in (0, 0, 1, 2, 3)]
    replace(run / "trajectories.jsonl", played)
    for times in (1, 2):  # it may be interrupted again before its next checkpoint
        carry_metrics(path, run)
        rows = read(run / "metrics.jsonl")
        assert [(r["kind"], r["step"]) for r in rows if r["kind"] != "event"] == [
            ("eval", 0),
            ("step", 1),
            ("step", 2),
            ("eval", 2),
        ]
        assert [r["event"] for r in rows if r["kind"] == "event"] == [
            *("seeding", "worker_lost", "checkpoint"),
            *["resumed"] * times,
        ]
        assert read(run / "trajectories.jsonl") == played[:3]
        MetricsLog(run / "metrics.jsonl").write("step", {"step": 3})


def test_trajectories_go_by_batches_of_which_not_each_is_a_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = checkpoint(run, 2, {"weight": np.ones(2), "released": 3})
    MetricsLog(run / "metrics.jsonl").write("step", {"step": 1})
    replace(run / "trajectories.jsonl", [{"batch": batch} for batch in range(5)])
    carry_metrics(path, run)
    assert read(run / "trajectories.jsonl") == [{"batch": batch} for batch in range(3)]


def test_a_row_that_was_never_finished_is_left_behind(tmp_path: Path) -> None:
    path = old_run(tmp_path / "old")
    with (tmp_path / "old" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    carry_metrics(path, tmp_path / "new")
    assert len(read(tmp_path / "new" / "metrics.jsonl", "step")) == 2


def test_a_checkpoint_that_was_copied_alone_carries_no_rows(tmp_path: Path) -> None:
    carry_metrics(checkpoint(tmp_path / "old", 2), tmp_path / "new")
    assert not (tmp_path / "new" / "metrics.jsonl").exists()
