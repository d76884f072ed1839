"""A sweep from its command line to its exit code, with a training run that only writes metrics."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conf_runs import Command, Training
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from settings import dictionary

import launch
from agent.errors import Fault, Stopped, UserError
from agent.inference.evaluation import EvalRow
from conf.command_line import Sweep
from conf.inputs import stamps
from conf.jobs import job
from conf.schema import IF_ANY, RunConfig, typed
from tracking.evals.result import note_sources, result
from tracking.evals.rows import EvalRows
from tracking.experiments import sweep
from tracking.metrics import read


def sweep_of(*arguments: str) -> Sweep:
    """The sweep that a command line asks for."""
    asked = launch.check_overrides(list(arguments)).sweep
    assert asked is not None
    return asked


def names(asked: Sweep) -> list[str]:
    return [job.name for job in asked.plan.jobs]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- what is asked for -----------------------------------------------------------------------------


def test_an_experiment_is_a_sweep_by_itself() -> None:
    asked = sweep_of("experiment=recycling")
    rules = ("epoch", "dynamic", "recycle", "recycle-2x", "adaptive")
    assert names(asked) == [f"condition={rule},seed={seed}" for rule in rules for seed in range(5)]
    assert [job.seed for job in asked.plan.jobs] == 5 * [*range(5)]
    assert {job.condition for job in asked.plan.jobs} == set(rules)
    assert (asked.folder, asked.mode) == (Path("multirun/recycling"), "train")
    assert asked.plan.report.baseline == "recycle"


@pytest.mark.slow
def test_what_an_experiment_gives_to_all_jobs_is_in_no_name(training: Training, command: Command) -> None:
    """Its settings that no condition may replace are parameters of its sweep, each of one value."""
    for name in ("questions", "eval_questions", "corpus"):
        Path(name).touch()
    real = ["experiment=real_mini", *(f"data.{name}={name}" for name in ("questions", "eval_questions", "corpus"))]
    real += ["model.path=org/model", "seed=1"]
    asked = sweep_of(*real, "condition=david", "algorithm.seeding.steps=0,4")
    assert names(asked) == [f"algorithm.seeding.steps={steps},condition=david,seed=1" for steps in (0, 4)]
    assert command(*real, "condition=david,outcome")[0] == 0
    assert training.played == [("condition=david,seed=1", 1), ("condition=outcome,seed=1", 1)]
    told = json.loads(Path("multirun/real_mini/sweep.json").read_text())
    assert [c["name"] for c in told["conditions"]] == ["david", "outcome"]
    assert [c["condition"] for c in told["comparisons"]] == ["david"], "against outcome"


def test_the_budget_of_the_experiment_has_the_papers_proportions() -> None:
    from hydra import compose, initialize_config_module

    from conf.schema import typed

    with initialize_config_module("conf", version_base=None):
        config = typed(compose("config", overrides=["experiment=recycling", "condition=epoch", "output_dir=here"]))
    assert config.algorithm.rollout_budget == 8.45 * config.data.train_questions
    assert config.pool.group_size == 4
    assert config.tracker.names == ()
    assert config.algorithm.steps * config.pool.group_size * config.pool.batch_questions > 5070


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        # jobs of the whole sweep, by their names there
        (["condition=epoch,recycle", "seed=3"], ["condition=epoch,seed=3", "condition=recycle,seed=3"]),
        (["seed=3,4", "condition=epoch"], ["condition=epoch,seed=3", "condition=epoch,seed=4"]),
        (["condition=epoch", "seed=0", "cluster.dashboard=false"], ["condition=epoch,seed=0"]),
        (
            ["condition=epoch", "seed=0", "algorithm.kl=k1,k2"],
            [f"algorithm.kl={kl},condition=epoch,seed=0" for kl in ("k1", "k2")],
        ),
        (
            ["~hydra.sweeper.params.condition", "pool=epoch,recycle", "seed=0"],
            ["pool=epoch,seed=0", "pool=recycle,seed=0"],
        ),
        (["hydra.sweeper.params.seed='1,2'", "condition=epoch"], ["condition=epoch,seed=1", "condition=epoch,seed=2"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_the_command_line_goes_before_the_experiment(arguments: list[str], jobs: list[str]) -> None:
    assert names(sweep_of("experiment=recycling", *arguments)) == jobs


@pytest.mark.slow
def test_a_sweep_of_the_command_line_is_named_by_what_it_varies() -> None:
    asked = sweep_of("-m", "pool=epoch,recycle", "seed=7", "mode=plan", "report.sweep=here")
    assert names(asked) == ["pool=epoch", "pool=recycle"]
    assert [job.seed for job in asked.plan.jobs] == [7, 7]
    assert (asked.folder, asked.mode) == (Path("here"), "plan")
    assert names(sweep_of("-m", "seed=1")) == ["all"]
    asked = sweep_of("-m", "model=glob([llama1b*,tiny], exclude=[*-base])")
    assert names(asked) == ["model=llama1b", "model=tiny"]


@pytest.mark.one_in(8)
@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=recycling", "hydra.mode=RUN", "condition=epoch"],
        ["experiment=recycling", "--cfg", "job"],
        ["experiment=recycling", "mode=report"],
        ["mode=report", "report.sweep=multirun/recycling"],
    ],
    ids=" ".join,
)
def test_what_is_no_sweep(arguments: list[str]) -> None:
    assert launch.check_overrides(arguments).sweep is None


def test_the_report_of_an_experiment_runs_once() -> None:
    asked = launch.check_overrides(["experiment=recycling", "mode=report"])
    assert asked.sweep is None
    assert asked.composed is not None
    assert (asked.composed.mode, list(asked.composed.hydra.overrides.task)) == (
        "report",
        ["experiment=recycling", "mode=report"],
    )


def test_what_is_composed_and_checked_is_what_runs(training: Training, command: Command) -> None:
    """Hydra doesn't compose it once more: that would be a sixth of a command's start."""
    composed: list[list[str]] = []
    real = ConfigLoaderImpl.load_configuration

    def watched(loader: ConfigLoaderImpl, config_name: Any, overrides: list[str], *others: Any, **named: Any) -> Any:
        composed.append(overrides)
        return real(loader, config_name, overrides, *others, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ConfigLoaderImpl, "load_configuration", watched)
        assert command("output_dir=run", "seed=7")[0] == 0
    assert [name for name, _ in training.played] == ["run"]
    assert composed == [["output_dir=run", "seed=7"]]
    kept = OmegaConf.load(Path("run/.hydra/hydra.yaml")).hydra
    assert (kept.run.dir, kept.mode, kept.job.name) == ("run", RunMode.RUN.name, "launch")
    assert kept.runtime.output_dir == str(Path("run").absolute())
    assert OmegaConf.load(Path("run/.hydra/config.yaml")).seed == 7
    assert list(OmegaConf.load(Path("run/.hydra/overrides.yaml"))) == ["output_dir=run", "seed=7"]


class Heard(Callback):
    """What Hydra tells of a run."""

    told: ClassVar[list[str]] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.told.append(f"start of seed {config.seed}")

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.told.append(f"end: {kwargs['job_return'].status.name}")


def test_callbacks_of_hydras_hear_of_a_run(training: Training, command: Command) -> None:
    assert command("seed=7", f"+hydra.callbacks.mine._target_={__name__}.Heard")[0] == 0
    assert Heard.told == ["start of seed 7", "end: COMPLETED"]


MISTAKES = [
    (["experiment=recycling", "seed=1,x"], "seed=x: Value 'x' "),
    (
        ["experiment=recycling", "hydra.sweeper.params.condition='epoch,recycl'"],
        "condition=recycl: no such condition; did ",
    ),
    (["experiment=recycling", "hydra.sweeper.params.seed='range(0,'"], "seed=range(0,: can't be read; "),
    (["experiment=recycling", "+hydra.sweeper.params.sed='1,2'"], "sed is not a setting; did you mean 'seed'?"),
    (["experiment=recycling", "pool.stop_early=true"], "pool.stop_early is not a setting; "),  # of the epoch rule
    (["experiment=recycling", "pool=epoch"], "pool=epoch: does not go with the other choices: In 'condition/dynamic'"),
    (["experiment=recycling", "condition=recycel"], "condition=recycel: no such condition; did you mean 'recycle'?"),
    (["experiment=recyclin"], "experiment=recyclin: no such experiment; did you mean 'recycling'?"),
    (["experiment=recycling", "resume=auto"], "resume=auto: is for one run; a sweep that is started again resumes"),
    (["experiment=recycling", "seed=1,1"], "condition=epoch,seed=1: two jobs of the sweep have this name"),
    (["-m", "seed=interval(0,1)"], "seed=interval(0,1): has no list of values to run; "),
    (["-m", "mode=simulate", "seed=shuffle(range(0,3))"], "seed=shuffle(range(0,3)): shuffle() draws another order at"),
    (["-m", "mode=simulate", "pool=shuffle(epoch,recycle)"], "pool=shuffle(epoch,recycle): shuffle() draws another"),
    (["-m", "mode=simulate", "seed=range(0,0)"], "seed=range(0,0): has no value to run; range(start,stop,step) leaves"),
    (["-m", "seed=0,1", "hydra.output_subdir=null"], "hydra.output_subdir=null: a run's settings are kept in .hydra,"),
    (["-m", "seed=0,1", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: a job's folder is named by what the sweep"),
    (
        ["-m", "experiment=recycling,david_mini"],
        "experiment=recycling,david_mini: experiment=recycling is a sweep by itself; run such experiments one by one",
    ),
    (["-m", "pool=epoch,recycle", "report.baseline=epoch"], "report.baseline=epoch is no condition of this sweep: "),
    (["mode=report"], "mode=report needs report.sweep=FOLDER"),
    (["-m", "mode=report", "report.sweep=a,b"], "mode=report reads one sweep: run it without -m"),
    (["report.target_em=2"], "report.target_em=2.0 must lie in (0, 1]"),
]


@pytest.mark.one_in(9)
@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_in_a_sweep_gets_one_line_before_anything_runs(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        launch.check_overrides(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# --- what comes of it ------------------------------------------------------------------------------


SWEEP = ("experiment=recycling", "condition=epoch,recycle", "seed=0")
JOBS = ["condition=epoch,seed=0", "condition=recycle,seed=0"]
FOLDER = Path("multirun/recycling")


def states(folder: Path = FOLDER) -> dict[str, str]:
    return {job["name"]: job["status"] for job in json.loads((folder / "sweep.json").read_text())["jobs"]}


def test_a_sweep_runs_all_and_ends_with_its_report(training: Training, command: Command) -> None:
    code, out, err = command(*SWEEP)
    assert (code, err) == (0, "")
    assert training.played == [(name, 1) for name in JOBS]
    assert states() == dict.fromkeys(JOBS, "finished")
    assert "Query pool rules at a matched number of rollouts" in out
    assert {path.name for path in FOLDER.iterdir()} >= {*JOBS, "plan.json", "sweep.json", "table.md"}
    assert "![a picture](drawn.png)" in (FOLDER / "table.md").read_text()


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(training: Training, command: Command) -> None:
    command("experiment=recycling", "condition=epoch", "seed=0")
    training.played.clear()
    assert command(*SWEEP, "tracker.project=other")[0] == 0  # which changes nothing in what was learnt
    assert training.played == [(name, 1) for name in JOBS[1:]]
    assert states() == dict.fromkeys(JOBS, "finished")


@pytest.mark.slow
def test_a_failed_job_stops_no_other_and_is_named_at_the_end(training: Training, command: Command) -> None:
    sweep = ("-m", "seed=range(0,4)", "report.sweep=here")
    training.fate = {"seed=0": Fault("rollout-0 died"), "seed=2": UserError("bad data"), "seed=3": KeyError("a bug")}
    code, _, err = command(*sweep)
    assert code == 1
    assert err.splitlines()[-1] == (
        "slingshot: 3 of 4 jobs failed: seed=0: rollout-0 died; seed=2: bad data; seed=3: KeyError: 'a bug'"
    )
    assert err.count("Traceback") == 1  # of what nobody has foreseen
    ends = {"seed=0": "failed", "seed=1": "finished", "seed=2": "failed", "seed=3": "failed"}
    assert states(Path("here")) == ends
    training.played.clear()
    assert command(*sweep)[0] == 0
    assert training.played == [("seed=0", 1), ("seed=2", 1), ("seed=3", 1)]  # none had a checkpoint
    assert [row["step"] for row in read(Path("here/seed=0/metrics.jsonl"), "step")] == [1, 2, 3, 4]
    assert states(Path("here")) == dict.fromkeys(ends, "finished")


def test_a_failure_that_a_full_disk_keeps_from_being_noted_is_a_fault_of_the_sweep(
    training: Training, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, message: str) -> None:
        raise OSError(28, "No space left on device", str(folder / "metrics.jsonl"))

    training.fate = {JOBS[0]: Fault("rollout-0 died")}
    monkeypatch.setattr(sweep, "record_failure", full)
    code, _, err = command(*SWEEP)
    assert (code, training.played) == (1, [(name, 1) for name in JOBS])
    assert err.splitlines()[-1] == (
        f"slingshot: fault: {FOLDER.absolute()}/{JOBS[0]}/metrics.jsonl: No space left on device; the same command "
        "goes on"
    )


def test_ctrl_c_ends_the_sweep_and_the_same_command_goes_on(
    training: Training, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(launch, "tell", told.update)
    training.fate = {JOBS[1]: "Ctrl-C"}
    code, out, err = command(*SWEEP)
    assert told["goes_on"] == "the same command goes on", "what the launcher says for a driver that was killed"
    assert (code, err) == (130, "slingshot: stopped; the same command goes on\n")
    assert states() == dict(zip(JOBS, ("finished", "unfinished"), strict=True))
    assert "unfinished" in out
    training.played.clear()
    assert command(*SWEEP)[0] == 0
    assert training.played == [(JOBS[1], 3)]
    assert [row["step"] for row in read(FOLDER / JOBS[1] / "metrics.jsonl", "step")] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_sweep_with_its_code(training: Training, command: Command, number: signal.Signals) -> None:
    """By it a scheduler tells that it has taken the machine away."""
    training.fate = {JOBS[0]: Stopped(number, " after step 2; resume with resume=…")}
    code, _, err = command(*SWEEP)
    assert (code, err) == (128 + number, f"slingshot: stopped by {number.name}; the same command goes on\n")


@pytest.mark.slow
def test_ctrl_c_in_a_jobs_last_step_ends_the_sweep_too(training: Training, command: Command) -> None:
    training.fate = {JOBS[0]: "Ctrl-C at the end"}
    assert command(*SWEEP)[0] == 130
    assert states()[JOBS[0]] == "finished"
    assert len(training.played) == 1
    assert command(*SWEEP)[0] == 0
    assert len(training.played) == 2


@pytest.mark.slow
def test_ctrl_c_twice_ends_the_sweep_at_once(training: Training, command: Command) -> None:
    training.fate = {JOBS[0]: KeyboardInterrupt()}
    assert command(*SWEEP)[0] == 130
    assert states() == dict(zip(JOBS, ("unfinished", "waiting"), strict=True))


@pytest.mark.slow
def test_a_killed_job_without_a_checkpoint_starts_over_also_with_other_settings(
    training: Training, command: Command
) -> None:
    training.fate = {JOBS[0]: KeyboardInterrupt()}
    command(*SWEEP)
    training.played.clear()
    assert command(*SWEEP, "algorithm.optimizer.lr=3e-4")[0] == 0
    assert training.played == [(name, 1) for name in JOBS]
    assert [row["step"] for row in read(FOLDER / JOBS[0] / "metrics.jsonl", "step")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_job_of_other_settings_is_refused_before_anything_runs(training: Training, command: Command) -> None:
    training.fate = {JOBS[1]: "Ctrl-C"}
    command(*SWEEP)
    kept = (FOLDER / JOBS[1] / "metrics.jsonl").read_text()
    training.played.clear()
    code, out, err = command(*SWEEP, "algorithm.optimizer.lr=3e-4")
    assert (code, out) == (2, "")
    assert err == (
        f"slingshot: {FOLDER}/{JOBS[0]} holds a run with algorithm.optimizer.lr=1.4e-05, not 0.0003; "
        "set it back, delete that folder, or put the sweep elsewhere with report.sweep=FOLDER\n"
    )
    assert "holds a run with mode=train, not index" in command(*SWEEP, "mode=index")[2]
    assert (training.played, (FOLDER / JOBS[1] / "metrics.jsonl").read_text()) == ([], kept)
    assert command(*SWEEP, "algorithm.optimizer.lr=3e-4", "report.sweep=multirun/other")[0] == 0
    assert states(Path("multirun/other")) == dict.fromkeys(JOBS, "finished")


@pytest.mark.slow
def test_an_ordinary_sweep_has_a_folder_by_the_time_and_the_same_report(training: Training, command: Command) -> None:
    training.fate = {"seed=1": "Ctrl-C"}
    code, _, err = command("-m", "seed=0,1")
    (folder,) = Path("multirun").glob("*/*")
    assert (code, err) == (130, f"slingshot: stopped; the same command with report.sweep={folder} goes on\n")
    assert states(folder) == {"seed=0": "finished", "seed=1": "unfinished"}
    assert command("-m", "seed=0,1", f"report.sweep={folder}")[0] == 0
    assert training.played == [("seed=0", 1), ("seed=1", 1), ("seed=1", 3)]
    assert states(folder) == {"seed=0": "finished", "seed=1": "finished"}


@pytest.mark.slow
def test_a_report_at_any_time(training: Training, command: Command) -> None:
    command(*SWEEP)
    (FOLDER / "sweep.json").unlink()
    code, out, err = command("mode=report", f"report.sweep={FOLDER}", "report.title=Anew")
    assert (code, err) == (0, "")
    content = json.loads((FOLDER / "sweep.json").read_text())
    assert (content["title"], content["baseline"], content["target_em"]) == ("Anew", "recycle", 0.8)
    assert "Anew" in out
    assert command("experiment=recycling", "mode=report", "report.target_em=0.3")[0] == 0
    content = json.loads((FOLDER / "sweep.json").read_text())
    (epoch, _) = content["conditions"]
    assert epoch["measures"]["rollouts_to_target"]["mean"] == pytest.approx(120)
    assert len(training.played) == 2


def test_a_report_of_no_sweep_is_refused(command: Command) -> None:
    Path("a-folder").mkdir()
    assert command("mode=report", "report.sweep=a-folder") == (
        *(2, ""),
        "slingshot: report.sweep=a-folder: no plan.json there; name a sweep's folder (multirun/…)\n",
    )
    code, _, err = command("mode=report", "report.sweep=nowhere")
    assert (code, err) == (
        2,
        f"slingshot: report.sweep=nowhere: no such file or folder; {Path.cwd()} has no 'nowhere'\n",
    )


@pytest.mark.slow
def test_simulated_runs_are_a_sweep_too(command: Command) -> None:
    small = ("simulation.queries=200", "simulation.rollouts_per_query=8", "pool.batch_questions=8")
    code, out, err = command("-m", "mode=simulate", "pool=recycle,adaptive", "report.sweep=sim", *small)
    assert (code, err) == (0, "")
    assert "rollouts per signal-bearing group" in out
    assert states(Path("sim")) == {"pool=recycle": "finished", "pool=adaptive": "finished"}


def test_a_job_that_writes_no_rows_has_not_failed_once_it_is_done(tmp_path: Path) -> None:
    """A calibration, say, for which the search service was down the first time."""
    fate: list[Exception] = [Fault("no search was answered")]

    def calibrate(config: RunConfig, folder: Path, console: object) -> None:
        (folder / "rows").touch()
        if fate:
            raise fate.pop()

    folder = tmp_path / "seed=0"
    folder.mkdir()
    composed = dictionary("mode=calibrate", "checkpoint=c", "data.dev_questions=q", "data=jsonl", "data.corpus=c")
    job(composed, folder, calibrate)
    assert sweep.status(folder) == (sweep.Status.FAILED, "no search was answered")
    job(composed, folder, calibrate)
    assert sweep.status(folder)[0] is not sweep.Status.FAILED
    assert (folder / "rows").exists(), "what it goes on with"


# --- evaluations -----------------------------------------------------------------------------------


def test_an_evaluation_that_has_ended_is_skipped_and_one_that_has_not_goes_on(tmp_path: Path) -> None:
    """What was played stays in both."""
    asked: list[str | None] = []

    def evaluate(config: RunConfig, folder: Path, console: object) -> None:
        asked.append(config.resume)

    folder = tmp_path / "seed=0"
    folder.mkdir()
    (folder / "eval_rows.jsonl").write_text("{}\n")
    composed = dictionary("mode=eval", "checkpoint=somewhere", "data.eval_questions=q", "data=jsonl", "data.corpus=c")
    job(composed, folder, evaluate)
    assert asked == [IF_ANY]
    assert (folder / "eval_rows.jsonl").is_file()
    (folder / "eval.json").write_text('{"slices": [')
    note_sources(folder, stamps(typed(composed)))
    job(composed, folder, evaluate)
    assert asked == [IF_ANY] * 2, "its result is damaged"
    asked.clear()
    (folder / "eval.json").write_text('{"slices": []}')
    job(composed, folder, evaluate)
    assert asked == [], "it has ended"
    assert sweep.status(folder)[0] is sweep.Status.FINISHED


@pytest.mark.parametrize(
    "changed", ["q", "weights", "id_aliases.json", "prompt.txt", "encoder/model.safetensors", "reranker/config.json"]
)
def test_an_evaluation_of_files_that_have_changed_is_looked_at_again(tmp_path: Path, changed: str) -> None:
    """Or have come, as the names of 2WikiMultihopQA's answers do once a notice has asked for them. It says itself
    whether that makes another one of it; then its numbers are no result of this sweep."""
    asked = []

    def evaluate(config: RunConfig, folder: Path, console: object) -> None:
        asked.append(folder.name)
        raise UserError("holds another evaluation")

    folder = tmp_path / "seed=0"
    folder.mkdir()
    for name in ("somewhere", "encoder", "reranker"):
        (tmp_path / name).mkdir()
    for name in ("q", "c", "weights"):
        (tmp_path / name).write_text("before")
    (tmp_path / "prompt.txt").write_text("{tools} {question}")
    (tmp_path / "somewhere" / "model.safetensors").symlink_to(tmp_path / "weights")
    ranker = ("retrieval=dense", "retrieval.encoder=encoder", "retrieval.reranker=reranker")
    own = ("data.eval_questions=q", "data=jsonl", "data.corpus=c", "agent.prompt=prompt.txt")
    composed = dictionary("mode=eval", "checkpoint=somewhere", *own, *ranker)
    (folder / "eval.json").write_text('{"slices": []}')
    note_sources(folder, stamps(typed(composed)))
    job(composed, folder, evaluate)
    assert asked == [], "nothing has changed"
    (tmp_path / changed).write_text("{tools} {question} after, and longer")
    job(composed, folder, evaluate)
    assert asked == ["seed=0"]
    assert sweep.status(folder) == (sweep.Status.FAILED, "holds another evaluation")


def test_an_evaluation_that_has_ended_is_compared_with_what_is_asked_for_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(config: RunConfig, folder: Path, console: object) -> None:
        raise AssertionError("it has ended")

    own = ("mode=eval", "checkpoint=somewhere", "data.eval_questions=q", "data=jsonl", "data.corpus=c")
    for name, em in (("seed=0", 1.0), ("other", 0.0)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            EvalRow(
                question_id=question,
                kind="",
                answer="x",
                em=em,
                f1=em,
                evidence=None,
                searches=1,
                action_tokens=1,
                stop_reason="answered",
                fault=False,
            )
            for question in "ab"
        ]
        EvalRows(folder).write(rows)
        setting = {"checkpoint": name, "data": {"name": "q"}, "played": {"samples": 1}}
        found = result(rows, setting, samples=1, seed=0, max_fault_share=0.0)
        (folder / "eval.json").write_text(json.dumps(found))
        note_sources(folder, stamps(typed(dictionary(*own))))
    job(dictionary(*own, "compare=other"), tmp_path / "seed=0", evaluate)
    assert "seed=0: finished before" in (out := capsys.readouterr().out)
    assert "EM: better on 2, worse on 0, alike on 0 questions" in out
    assert json.loads((tmp_path / "seed=0" / "comparison.json").read_text())["other"] == "other (other)"
    assert sweep.status(tmp_path / "seed=0")[0] is sweep.Status.FINISHED


# --- more of a sweep -------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_conditions_join_only_with_the_settings_of_those_that_are_there(
    training: Training, command: Command
) -> None:
    """They are compared: what differs between them is in their names."""
    first = ("-m", "pool=epoch,dynamic", "seed=0", "report.sweep=here", "report.title=mine")
    assert command(*first)[0] == 0
    more = ("-m", "pool=recycle", "seed=0", "report.sweep=here")
    code, _, err = command(*more, "algorithm.steps=7")
    assert (code, training.played[2:]) == (2, [])
    assert re.match(r"slingshot: here/\S+ holds a run with algorithm\.steps=\d+, not 7; set it back", err), err
    code, _, err = command(*more, "report.baseline=nothing")
    assert (code, err) == (
        2,
        "slingshot: report.baseline=nothing is no condition of this sweep: pool=dynamic, pool=epoch, pool=recycle\n",
    )
    # No other rule has that setting, so it can't be said of the jobs that are there.
    assert command(*more, "pool.when_dry=reset", "report.baseline=pool=epoch")[0] == 0
    assert [name for name, _ in training.played[2:]] == ["pool=recycle"]
    told = json.loads(Path("here/sweep.json").read_text())
    assert (told["title"], [c["condition"] for c in told["comparisons"]]) == ("mine", ["pool=recycle", "pool=dynamic"])


@pytest.mark.slow
def test_a_run_under_another_name_is_not_run_again(training: Training, command: Command) -> None:
    assert command("-m", "pool=epoch,recycle", "report.sweep=here")[0] == 0
    code, _, err = command("-m", "pool=epoch,recycle", "seed=0,1", "report.sweep=here")
    assert (code, len(training.played)) == (2, 2)
    assert err.startswith("slingshot: here/pool=epoch holds the run of seed 0 that is now named pool=epoch,seed=0; ")
