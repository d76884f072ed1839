"""Slingshot beside TRL's GRPO trainer on the same job: seconds a step, tokens a second, processor time, peak memory.

    python bench/peers.py --install                    # once: TRL into .venv-trl, 1.5 GB from the package index
    python bench/peers.py [--quick]                    # the tiny model of the demo
    python bench/peers.py [--quick] --model FOLDER     # a pretrained one, such as SmolLM2-135M-Instruct

``make bench`` leaves this one out, since it needs what ``--install`` fetches.

Both start from the same checkpoint: the tiny model after ten steps of the demo, or the pretrained one after a short
supervised start on the built-in world, for it has to know the tags. Both then play the world's questions by the same
prompt, tags, limits and reward, as many trajectories a step, and make one update of each batch, with the same learning
rate, by DAPO's loss and without a KL term. TRL samples with transformers, the one way that it has without a GPU;
``bench/in_trl/play.py`` says what of its tool loop is replaced so that it plays our tags. Neither recomputes the
log-probabilities of before the update, and neither recomputes activations.

Expected (written before it was measured): TRL's sampling recomputes the context at each of an episode's three turns,
pads all contexts to the longest, and each turn waits for the slowest of all episodes; its update pads rows to the
longest and trains on groups whose rewards are equal, too, which ours leaves out. Against that ours pays for Ray, for
Lucene in another process and for publishing the weights, about half a second a step whatever the model: much for the
tiny model, nothing for the pretrained one. So 0.6 to 0.7 of TRL's seconds on the tiny model, and below 0.5 on the
pretrained one.

Ours runs a third time with ``pool.max_staleness=1``, where the engine plays the next batch while the learner computes
its update: TRL has no such mode without a GPU, so the limit is for the synchronous run.

A round is a run of each, in turns; the first step of a run pays for what is set up once, and isn't counted. Ratios are
of medians over all rounds. The machine may be busy with other things: so the ratio of processor time, which counts all
processes of a run, is printed beside that of the clock. Memory is the highest sum of the processes' proportional set
sizes (PSS), which count a shared page once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import install  # noqa: E402

TRL = "1.16.0"
"""The newest release when this was written. Another one may have other seams: see ``bench/in_trl/play.py``."""
VENV = ROOT / ".venv-trl"
LOOK_S = 0.25
"""Between two looks at the processes of a run."""
QUIET = ["tracker=none", "cluster.dashboard=false", "evaluation.every=0", "evaluation.questions=1"]


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained, by both."""

    start: tuple[str, ...]
    """Settings of the run of ours that makes the policy that both start from."""
    settings: tuple[str, ...]
    """Settings of ours in the rounds."""
    questions: int
    group_size: int
    microbatch: int
    """Trajectories of one of TRL's forward passes; ours counts tokens."""
    steps: int
    """Of a run in a round; the first isn't counted."""
    limit: float
    """Most of TRL's seconds a step that ours may take."""


SAME = ("pool=epoch", "algorithm=dapo", "algorithm.old_logprobs=engine", "algorithm.gradient_checkpointing=none")
AHEAD = ("pool.max_staleness=1", "cluster.learner_threads=1")
"""Of the run whose engine plays ahead: with two threads of the learner beside it there would be three on two cores."""
TINY = Job(("algorithm.steps=10",), SAME, 24, 8, 192, 6, 0.6)
WORLD = (  # the built-in world for a pretrained model: short turns, since the novice that it imitates is short
    *("agent.prompt=plain", "agent.chat=false", "agent.top_k=2", "agent.max_searches=5"),
    *("agent.max_new_tokens_first=32", "agent.max_new_tokens=32", "agent.max_prompt_tokens=64"),
    *("agent.max_response_tokens=512", "agent.temperature=1.0", "algorithm.optimizer.lr=1e-5"),
)
PRETRAINED = Job(
    (
        *("algorithm.steps=1", "pool=epoch", "pool.batch_questions=4", "pool.group_size=4"),
        *("algorithm.warm_start.steps=40", "algorithm.warm_start.batch_size=4", "algorithm.warm_start.lr=5e-5"),
        *("algorithm.warm_start.context_weight=0", "data.demonstrations=200"),
    ),
    (*SAME, "algorithm.microbatch_tokens=2048"),
    *(6, 4, 4, 3, 0.5),
)


@dataclass(frozen=True, slots=True)
class Step:
    seconds: float
    tokens: float
    """Sampled by the policy."""
    reward: float
    searches: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run's steps but the first, with the processor's seconds a step and the peak of memory."""

    steps: list[Step]
    processor_s: float
    peak_gib: float


class Watch:
    """Processor time and memory of a process and all that it starts, until it ends."""

    def __init__(self, process: subprocess.Popen[bytes], lines: Path) -> None:
        self._process, self._lines = process, lines
        self._used: dict[tuple[int, float], float] = {}  # (pid, start) -> processor seconds
        self.peak_gib = 0.0
        self.at: list[float] = []
        """Processor seconds used when so many steps were done: the first is for step 1."""
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        looks = 0
        while self._process.poll() is None:
            pss, measured = 0, looks % 8 == 0  # every two seconds: the kernel walks all page tables for it
            with suppress(psutil.Error):
                root = psutil.Process(self._process.pid)
                for process in [root, *root.children(recursive=True)]:
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        self._used[process.pid, process.create_time()] = times.user + times.system
                        pss += process.memory_full_info().pss if measured else 0
            self.peak_gib = max(self.peak_gib, pss / 2**30)
            self._count()
            looks += 1
            time.sleep(LOOK_S)
        self._count()  # the last step, if the process has ended right after it

    def _count(self) -> None:
        done, used = len(steps_of(self._lines)), sum(self._used.values())
        self.at += [used] * (done - len(self.at))

    def per_step(self) -> float:
        """Processor seconds from the end of the first step to that of the last one, by step."""
        self._thread.join()
        return (self.at[-1] - self.at[0]) / (len(self.at) - 1)


def steps_of(lines: Path) -> list[dict[str, Any]]:
    """The steps of a run of ours (``metrics.jsonl``) or of TRL's (its standard output)."""
    if not lines.exists():
        return []
    whole = lines.read_text(errors="replace").rpartition("\n")[0]
    rows = [json.loads(line) for line in whole.splitlines() if line.startswith('{"')]
    return [row for row in rows if "step" in row and ("reward" in row or row.get("kind") == "step")]


def watched(command: Sequence[str | Path], lines: Path, log: Path, stdout: Path) -> Watch:
    """Runs ``command`` to its end. Exits with its last words if it fails."""
    with log.open("wb") as errors, stdout.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=log.parent)
        watch = Watch(process, lines)
        code = process.wait()
    if code:
        said = (stdout.read_text(errors="replace") + log.read_text(errors="replace")).strip().splitlines()
        sys.exit("\n".join([f"{command[1]} ended with {code}:", *said[-8:]]))
    return watch


class Bench:
    """Both programs on one job, in a folder for what they write."""

    def __init__(self, folder: Path, job: Job, model: Path | None) -> None:
        self._folder, self._job = folder, job
        own = ["model=tiny"] if model is None else ["model=smollm2-135m", f"model.name={model.name}", *WORLD]
        given = [] if model is None else [f"model.path={model.absolute()}"]
        self._model = [*own, "data=world"]
        started = self._ours("start", [*self._model, *given, *job.start])
        (self._start,) = (started / "checkpoints").glob("step-*")
        self._settings: Any = OmegaConf.to_container(OmegaConf.load(started / ".hydra" / "config.yaml"))

    def _ours(self, name: str, settings: Sequence[str]) -> Path:
        run, log = self._folder / name, self._folder / f"{name}.log"
        self._watch = watched(
            [sys.executable, str(ROOT / "launch.py"), *QUIET, *settings, f"output_dir={run}"],
            *(run / "metrics.jsonl", log, self._folder / f"{name}.out"),
        )
        return run

    def ours(self, number: int, steps: int) -> Run:
        return self._played(f"ours-{number}", number, steps, ())

    def ahead(self, number: int, steps: int) -> Run:
        return self._played(f"ahead-{number}", number, steps, AHEAD)

    def _played(self, name: str, number: int, steps: int, more: Sequence[str]) -> Run:
        job = self._job
        run = self._ours(
            name,
            [
                *self._model,
                *job.settings,
                *more,
                *(f"model.path={self._start}", "algorithm.warm_start.steps=0", f"algorithm.steps={steps}"),
                *(f"pool.batch_questions={job.questions}", f"pool.group_size={job.group_size}", f"seed={number}"),
            ],
        )
        rows = steps_of(run / "metrics.jsonl")
        taken = [
            Step(
                row["time_s"] - before["time_s"],
                row["rollout/generated_tokens"],
                row["reward/mean"],
                row["search/mean"],
            )
            for before, row in itertools.pairwise(rows)
        ]
        return Run(taken, self._watch.per_step(), self._watch.peak_gib)

    def trl(self, number: int, steps: int) -> Run:
        job, settings = self._job, self._settings
        folder = self._folder / f"trl-{number}"
        folder.mkdir()
        told = {
            "model": str(self._start),
            "folder": str(folder),
            "steps": steps,
            "seed": number,
            "questions": job.questions,
            "group_size": job.group_size,
            "microbatch": job.microbatch,
            "agent": settings["agent"],
            "data": settings["data"],
            "optimizer": settings["algorithm"]["optimizer"],
        }
        (folder / "job.json").write_text(json.dumps(told))
        lines = folder / "steps.jsonl"
        watch = watched(
            [VENV / "bin" / "python", str(ROOT / "bench" / "in_trl" / "play.py"), str(folder / "job.json")],
            *(lines, folder / "log", lines),
        )
        played = job.questions * job.group_size
        taken = [
            Step(row["seconds"], row["completions/mean_length"] * played, row["reward"], row["tools/call_frequency"])
            for row in steps_of(lines)[1:]
        ]
        return Run(taken, watch.per_step(), watch.peak_gib)


def installed() -> bool:
    """Whether the environment holds the TRL that this file is for."""
    python = VENV / "bin" / "python"
    code = "import importlib.metadata as m; print(m.version('trl'))"
    if not python.exists():
        return False
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip() == TRL


def make_environment() -> None:
    """TRL and all that it needs, with our torch, into ``.venv-trl``."""
    if installed():
        return
    python = install.made(VENV)
    lock = (ROOT / "requirements-cpu.lock").read_text().splitlines()
    torch = next(line for line in lock if line.startswith("torch=="))
    pip = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]
    index = [] if install.finds_torch(pip, [torch]) else ["--extra-index-url", install.TORCH_INDEX]
    print(f"installing TRL {TRL} into {VENV.name}; a few minutes", flush=True)
    subprocess.run([*pip, *index, f"trl=={TRL}", torch], check=True)


def median(runs: Sequence[Run], of: str) -> float:
    return statistics.median(getattr(step, of) for run in runs for step in run.steps)


def report(runs: dict[str, list[Run]]) -> None:
    """The medians, and those of ours as shares of TRL's."""

    def each(what: str, number: Any, digits: int) -> None:
        numbers = {side: number(of) for side, of in runs.items()}
        shares = [f"{numbers[side] / numbers['TRL']:.2f}" if numbers["TRL"] else "–" for side in ("ours", "ahead")]
        print(f"{what:<26}", *(f"{n:>9.{digits}f}" for n in numbers.values()), *(f"{share:>7}" for share in shares))

    print(f"{'':<26}", *(f"{side:>9}" for side in runs), f"{'ours/':>7} {'ahead/':>7}")
    each("seconds a step", lambda runs: median(runs, "seconds"), 2)
    each("processor seconds a step", lambda runs: statistics.median(r.processor_s for r in runs), 2)
    each("sampled tokens a second", speed, 0)
    each("sampled tokens a step", lambda runs: median(runs, "tokens"), 0)
    each("searches a trajectory", lambda runs: median(runs, "searches"), 2)
    each("reward", lambda runs: median(runs, "reward"), 3)
    each("peak memory, GiB (PSS)", lambda runs: max(r.peak_gib for r in runs), 2)


def speed(runs: Sequence[Run]) -> float:
    return statistics.median(step.tokens / step.seconds for run in runs for step in run.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round instead of 5")
    parser.add_argument("--install", action="store_true", help="install TRL into .venv-trl first, and nothing else")
    parser.add_argument("--model", type=Path, help="a pretrained model's folder, instead of the tiny model")
    given = parser.parse_args()
    if given.install:
        make_environment()
        return
    if not installed():
        sys.exit(f"TRL {TRL} is not in {VENV.name}: python bench/peers.py --install")
    job = PRETRAINED if given.model else TINY
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        bench = Bench(folder, job, given.model)
        play = {"ours": bench.ours, "ahead": bench.ahead, "TRL": bench.trl}
        runs: dict[str, list[Run]] = {side: [] for side in play}
        for number in range(1 if given.quick else 5):
            for side in (list(play), list(play)[::-1])[number % 2]:
                runs[side].append(play[side](number, job.steps))
            told = (f"{side} {statistics.median(s.seconds for s in of[-1].steps):.2f}" for side, of in runs.items())
            print(f"round {number + 1}, seconds a step:", *told, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(runs)
    mine, ahead, theirs = (median(of, "seconds") for of in runs.values())
    processor = [statistics.median(r.processor_s for r in runs[side]) for side in ("ours", "TRL")]
    print(
        json.dumps(
            {
                "bench": "peers",
                "model": given.model.name if given.model else "tiny",
                "value": round(mine, 3),
                "unit": "s a step",
                "baseline": f"TRL {TRL}",
                "baseline_value": round(theirs, 3),
                "ratio": round(mine / theirs, 4),
                "ratio_ahead": round(ahead / theirs, 4),
                "processor_ratio": round(processor[0] / processor[1], 4),
                "limit": job.limit,
            }
        )
    )
    if mine / theirs > job.limit:
        sys.exit(f"a step takes {mine / theirs:.2f} of TRL's seconds, more than {job.limit}")


if __name__ == "__main__":
    main()
