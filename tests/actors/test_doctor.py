"""``mode=doctor``: what it makes of its measurements. The measurements themselves, on a CPU, are the slow test."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from patience import run
from settings import composed

import launch
from actors import doctor
from actors.apart import Apart, together
from actors.plan import measured
from actors.plan.cards import GIB
from actors.plan.layouts import chosen
from actors.plan.learner import learner_memory
from actors.plan.machine import Gpu
from actors.plan.roofline import ASSUMED, step
from actors.plan.table import table
from actors.training import learner_environment
from agent.errors import Fault, UserError
from conf.schema import RunConfig
from learner import update
from learner.packing import PackedRow, pack_rows
from tracking.console import Console

ROOT = Path(__file__).parents[2]


@pytest.fixture
def box(tmp_path: Path) -> RunConfig:
    return replace(composed("cluster=4x3090", "model=qwen1.5b"), cache_dir=str(tmp_path))


def device(**changed: Any) -> dict[str, Any]:
    return {"index": 0, "name": "RTX 3090", "tflops": 66.0, "gb_per_s": 850.0, "from_cpu_gb_per_s": 24.0, **changed}


def healthy(**changed: Any) -> dict[str, Any]:
    """What the doctor finds on a box that is as the plan assumes."""
    gap = {"mean": 0.004, "median": 0.002, "p90": 0.01, "p99": 0.03, "max": 0.2, "tokens": 1024}
    return {
        "format": measured.FORMAT,
        "host": "box",
        "made": "2026-11-27T04:00",
        "about": "cluster=4x3090 model=qwen1.5b bfloat16",
        "failed": [],
        "devices": [device()] * 4,
        "peers": [{"pair": [0, 1], "peer_to_peer": True, "gb_per_s": 24.0}],
        "broadcast_gb_per_s": 10.0,
        "engine": {
            "start_s": 60.0,
            "prefill_tokens_per_s": 9000.0,
            "decode_tokens_per_s": 3500.0,
            "decode_together": 32,
            "publication_s": 2.0,
        },
        "learner": {
            "rows": [{"row": 9216, "sequence": 9216, "tokens_per_s": 4000.0, "peak_gib": 13.0, "planned_gib": 14.2}],
            "gap": gap,
        },
        "ratios": {"decode": 1.0, "prefill": 1.0, "learner": 1.0},
        **changed,
    }


def test_a_box_that_is_as_assumed_has_nothing_off(box: RunConfig) -> None:
    assert doctor.findings(box, healthy()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"devices": [device(tflops=30.0)]},
            "GPU 0 (RTX 3090) multiplies at 30 TFLOP/s, and cluster.card=rtx3090 stands",
        ),
        ({"devices": [device(index=3, gb_per_s=300.0)]}, "GPU 3 (RTX 3090) moves 0.3 TB/s, and cluster.card=rtx3090"),
        ({"devices": [device(from_cpu_gb_per_s=6.0)]}, "GPU 0 (RTX 3090) gets from the CPU 0.006 TB/s"),
        ({"peers": [{"pair": [0, 2], "peer_to_peer": False}]}, "GPUs 0-2 copy through the CPU's memory"),
        (
            {"ratios": {"decode": 0.5}},
            "the engine writes at 50% of what the plan assumes: mode=plan now counts with that",
        ),
        ({"ratios": {"learner": 0.4}}, "the learner trains at 40% of what the plan assumes"),
        (
            {"learner": {"rows": [{"row": 99, "tokens_per_s": 1.0, "peak_gib": 15.2, "planned_gib": 14.0}]}},
            "the learner took 15.20 GiB in rows of 99 and the plan says 14.00 and 1.00 in reserve: lower algorithm.mi",
        ),
        ({"learner": {"rows": [], "gap": {"mean": 0.3}}}, "engine and learner differ by 0.3 nats on average (0.02 is"),
        (
            {"learner_otherwise": {"compiled": True, "rows": [{"row": 9216, "tokens_per_s": 4400.0}]}},
            "the learner trains 4,400 tokens/s with algorithm.compile=true, and 4,000 as it is set: set that",
        ),
        ({"failed": ["engine died with code -11"]}, "engine died with code -11"),
    ],
)
def test_what_is_off_is_said_with_what_to_do(box: RunConfig, changed: dict[str, Any], said: str) -> None:
    (line,) = doctor.findings(box, healthy(**changed))
    assert line.startswith(said)


def test_the_plan_says_of_what_was_measured_what_was_measured(box: RunConfig) -> None:
    found = healthy()
    ratios = doctor.ratios(box, found)
    assumed = measured.adjusted(ratios)
    engine, (row,) = found["engine"], found["learner"]["rows"]
    count, tokens = engine["decode_together"], doctor.measuring.GENERATED
    seconds = measured.decode_seconds(box, count, doctor.measuring.PROMPT, tokens, assumed)
    assert count * tokens / seconds == pytest.approx(engine["decode_tokens_per_s"], rel=0.01)
    longest = box.agent.max_prompt_tokens
    seconds = measured.prefill_seconds(box, 2, longest, assumed)
    assert 2 * longest / seconds == pytest.approx(engine["prefill_tokens_per_s"], rel=0.01)
    weights = 1.543714304 * 2
    assert weights / 25 + 3 * weights / assumed.host_bandwidth == pytest.approx(engine["publication_s"], rel=0.01)
    alone = measured.alone(box, chosen(box))
    one = measured._situation(alone, assumed, count=2, prompt=1, response=row["row"] - 1, sampled=1.0)
    assert one.learning.tokens_per_s == pytest.approx(row["tokens_per_s"], rel=0.01)


def test_the_learner_is_measured_in_the_rows_that_the_plan_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def packed(*args: Any, **kwargs: Any) -> list[PackedRow]:
        rows = pack_rows(*args, **kwargs)
        seen.append([len(row.token_ids) for row in rows])
        return rows

    monkeypatch.setattr(update, "pack_rows", packed)
    small = [f"agent.{key}=32" for key in ("max_prompt_tokens", "max_response_tokens")]
    small.append("model.architecture.num_hidden_layers=1")
    config = composed("model=tiny", "algorithm.microbatch_tokens=150", "algorithm.epochs=2", *small)
    alone = measured.alone(config, chosen(config))
    folder = doctor.random_model(config, tmp_path / "model")
    sampled = [{"prompt": [1, 2], "tokens": [3, 4], "logprobs": [-1.0, -2.0]}]
    threads = torch.get_num_threads()
    try:
        rows = doctor.measuring.learner_speed(alone, folder, sampled)["rows"]
    finally:
        torch.set_num_threads(threads)
    assert [(row["row"], row["sequence"]) for row in rows] == [(37, 37), (74, 37), (150, 50)]
    assert seen[1:] == [[row["row"]] * 2 for row in rows for _ in range(2)]
    longest = composed("cluster=4x3090", "model=qwen1.5b", "algorithm.microbatch_tokens=4096")
    assert doctor.measuring.learner_rows(longest)[-1] == (longest.agent.longest_episode,) * 2


def test_what_is_not_measured_is_not_projected(box: RunConfig) -> None:
    """A KL term of the seeding alone: the main part needs no scores of a reference."""
    seeding = replace(box.algorithm.seeding, steps=5, kl="k2")
    seeded = replace(box, algorithm=replace(box.algorithm, reference="cpu", seeding=seeding))
    assert doctor.ratios(seeded, healthy()) == doctor.ratios(box, healthy())


def test_the_plan_says_what_torch_allocates_for_one_learner(box: RunConfig) -> None:
    asked = replace(chosen(box).optimizer, shard=True)
    algorithm = replace(chosen(box), optimizer=asked)
    two = replace(box, cluster=replace(box.cluster, learners=2), algorithm=algorithm)
    memory = learner_memory(box)
    for config in (box, two):
        planned = doctor.planned_gib(measured.alone(config, chosen(config)), memory.row)
        assert planned == pytest.approx((memory.peak - memory.context - memory.reserve) / GIB)


@pytest.mark.parametrize(
    "error", [UserError("model.path=it: no model"), OSError(28, "No space left on device", "model")]
)
def test_without_a_model_what_was_measured_before_stays(
    box: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(config: RunConfig, folder: Path) -> Path:
        raise error

    monkeypatch.setattr(doctor, "random_model", fails)
    found: dict[str, Any] = {"failed": []}
    doctor._Doctor(box, tmp_path, Console(quiet=True), found, []).engine_and_learner()
    (line,) = found["failed"]
    assert line in ("model.path=it: no model", "making a model of random weights: model: No space left on device")


def test_the_plan_takes_what_was_measured_and_says_so(box: RunConfig) -> None:
    assert measured.assumptions(box) == ASSUMED
    assert "a projection that was never run" in table(box)
    file = measured.place(box)
    file.parent.mkdir()
    file.write_text(json.dumps(healthy(ratios={"learner": 0.5, "prefill": 1.0, "decode": 1.0})))
    slower = table(box)
    assert "a step by the roofline, with what was measured here:" in slower
    assert "measured by mode=doctor on box, 2026-11-27T04:00 (cluster=4x3090 model=qwen1.5b bfloat16):" in slower
    assert "learner at 20% of the matrix peak" in slower
    assert step(box, measured.assumptions(box)).learning.seconds > 1.8 * step(box).learning.seconds
    file.write_text(json.dumps(healthy(format=measured.FORMAT + 1)))
    assert measured.assumptions(box) == ASSUMED, "of another doctor's kind"
    assert f"not counted with: {file}, of another version of mode=doctor; run it again" in table(box)
    where = r"rtx3090-qwen1\.5b-\d+-bfloat16\.json: can't be read"
    for damaged, why in (
        ("{", ".*"),
        ("[]", "no JSON object"),
        (json.dumps({"format": measured.FORMAT}), "no 'host'"),
        (json.dumps(healthy(ratios={"decode": 0})), "ratios.decode is 0, and not a number above 0"),
        (json.dumps(healthy(ratios=["x"])), ".*"),
        (json.dumps(healthy(engine={"start_s": "x"})), ".*"),
    ):
        file.write_text(damaged)
        with pytest.raises(UserError, match=rf"{where} \({why}\); delete it, or run mode=doctor again$"):
            table(box)


def test_models_of_one_name_and_two_sizes_have_a_measurement_each(box: RunConfig) -> None:
    """As any two checkpoints have: step-000040."""
    assert box.model.architecture is not None
    smaller = replace(box.model, architecture={**box.model.architecture, "num_hidden_layers": 2})
    assert measured.place(replace(box, model=smaller)) != measured.place(box)


def test_a_machine_without_the_clusters_gpus_has_nothing_to_measure(
    box: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said: list[str] = []

    class Console:
        def say(self, text: str, style: str = "") -> None:
            said.append(text)

    console: Any = Console()
    with pytest.raises(
        UserError, match=r"^cluster=4x3090 runs on GPUs and this machine shows none: nothing to measure$"
    ):
        doctor.examine(box, tmp_path, console)
    assert any("needs 4 CUDA GPUs of 24 GiB" in line for line in said)


@pytest.fixture
def nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("devices", "ways", "engine_and_learner"):
        monkeypatch.setattr(doctor._Doctor, part, lambda self: self._found["failed"].append("a part broke"))


@pytest.mark.usefixtures("nothing_to_measure")
def test_what_was_found_is_said_where_it_cant_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk shows after minutes of measuring; half a file would keep the plan from counting at all."""

    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    said: list[str] = []
    console: Any = SimpleNamespace(say=lambda text, style="": said.append(text))
    monkeypatch.setattr(doctor, "written", full)
    local = composed(f"cache_dir={tmp_path / 'cache'}")
    with pytest.raises(OSError, match="No space left"):
        doctor.examine(local, tmp_path, console)
    assert "a part broke" in said
    assert not measured.place(local).exists()


@pytest.mark.usefixtures("nothing_to_measure")
def test_a_cache_that_nothing_can_be_kept_in_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cache_dir=.*file: .*; name another with cache_dir=FOLDER$"):
        doctor.examine(composed(f"cache_dir={tmp_path / 'file'}"), tmp_path, Console(quiet=True))


def test_it_measures_the_cards_that_a_run_would_take(
    box: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the slots, and not a screen's; the learner with the allocator that training has."""
    found = tuple(Gpu(total=2.0 if i == 1 else 23.6, index=i) for i in range(6))
    monkeypatch.setattr(doctor, "gpus", lambda: (found, "580.1"))
    shown: list[tuple[str, dict[str, str]]] = []

    class Seen:
        def __init__(self, name: str, *_: Any, env: dict[str, str], **__: Any) -> None:
            shown.append((name, env))

        def result(self, timeout_s: float) -> Any:
            raise Fault("no card here")

    monkeypatch.setattr(doctor, "Apart", Seen)
    examined: Any = doctor._Doctor(box, tmp_path, Console(quiet=True), {"failed": []}, doctor._cards(box))
    examined.devices()
    examined._apart("peers", None, len)
    cards = [(name, env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) for name, env in shown]
    assert cards == [
        *((f"device-{card}", card, "PCI_BUS_ID") for card in "0234"),
        ("peers", "0,2,3,4", "PCI_BUS_ID"),
    ]
    assert learner_environment(box)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_on_a_gpu_the_learner_is_measured_compiled_and_not(
    box: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is compiled is kept in the cache."""
    monkeypatch.setattr(doctor, "gpus", lambda: (tuple(Gpu(total=23.6, index=i) for i in range(4)), "580.1"))
    monkeypatch.setattr(doctor, "random_model", lambda config, folder: folder)
    caches = []

    class Scripted:
        def __init__(
            self, name: str, function: Any, config: RunConfig, *_: Any, env: dict[str, str], **__: Any
        ) -> None:
            self.name, self.compiled = name, config.algorithm.compile
            caches.append(env.get("TORCHINDUCTOR_CACHE_DIR"))

        def result(self, timeout_s: float) -> Any:
            if self.name == "engine":
                return {**healthy()["engine"], "sampled": [1]}
            row = {"row": 9216, "sequence": 9216, "tokens_per_s": 4400.0 if self.compiled else 4000.0, "peak_gib": 13.0}
            return {"rows": [row], "compiled": self.compiled}

    monkeypatch.setattr(doctor, "Apart", Scripted)
    examined: Any = doctor._Doctor(box, tmp_path, Console(quiet=True), {"failed": []}, doctor._cards(box))
    examined.engine_and_learner()
    assert caches == [None, None, str(tmp_path / "compiled")]
    found = {**healthy(), **{name: examined._found[name] for name in measured.LEARNERS}}
    assert [line.partition(" in ")[0] for line in measured.lines(found) if "learner" in line[:12]] == [
        "  learner: 4,000 tokens/s",
        "  learner, compiled: 4,400 tokens/s",
    ]
    (said,) = doctor.findings(box, found)
    assert said.endswith("4,400 tokens/s with algorithm.compile=true, and 4,000 as it is set: set that")


def test_a_card_is_called_by_its_number_whatever_becomes_of_the_others(
    box: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Card 1 is a screen's, and card 0 can't be measured."""
    found = tuple(Gpu(total=2.0 if i == 1 else 23.6, index=i) for i in range(5))
    monkeypatch.setattr(doctor, "gpus", lambda: (found, "580.1"))

    class Scripted:
        def __init__(self, name: str, *_: Any, **__: Any) -> None:
            self.name = name

        def result(self, timeout_s: float) -> Any:
            if self.name == "device-0":
                raise Fault("device-0: gone")
            if self.name == "peers":
                return [{"pair": [1, 3], "peer_to_peer": False, "gb_per_s": 9.0}]
            slow = {"tflops": 30.0} if self.name == "device-3" else {}
            return {k: v for k, v in device(**slow).items() if k != "index"}

    monkeypatch.setattr(doctor, "Apart", Scripted)
    monkeypatch.setattr(doctor, "together", lambda ranks, timeout_s: [10.0])
    examined: Any = doctor._Doctor(box, tmp_path, Console(quiet=True), {"failed": []}, doctor._cards(box))
    examined.devices()
    examined.ways()
    slow, copies, gone = doctor.findings(box, examined._found)
    assert slow.startswith("GPU 3 (RTX 3090) multiplies at 30 TFLOP/s")
    assert copies.startswith("GPUs 2-4 copy through the CPU's memory")
    assert gone == "device-0: gone"
    lines = [*measured.lines({"host": "box", "made": "now", "about": "it"} | examined._found)]
    assert [line[:10] for line in lines if "device" in line] == ["  device 2", "  device 3", "  device 4"]


def test_of_cluster_auto_it_measures_this_machines_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.plan.layouts.gpus", lambda: ((Gpu(total=79.6, name="NVIDIA H100 80GB HBM3"),), "580.1"))
    seen: list[RunConfig] = []
    monkeypatch.setattr(doctor, "examine", lambda config, run_dir, console: seen.append(config))
    launch.doctor(composed("cluster=auto", "model=qwen1.5b"), tmp_path, Console(quiet=True))
    assert [(c.cluster.card, c.cluster.gpus, c.cluster.rollout_workers) for c in seen] == [("h100", 1, 1)]


def test_a_part_has_a_process_of_its_own(tmp_path: Path) -> None:
    def apart(function: Any, *arguments: Any) -> Apart:
        return Apart("part", function, *arguments, env={"SLINGSHOT_PART": "here"}, folder=tmp_path)

    started = [apart(os.getenv, "SLINGSHOT_PART"), apart(math.sqrt, -1.0), apart(os._exit, 3), apart(time.sleep, 1e6)]
    assert started[0].result(600.0) == "here"
    with pytest.raises(Fault, match=r"^part: ValueError: "):
        started[1].result(600.0)
    with pytest.raises(Fault, match=r"^part died with code 3; its last lines:\n"):
        started[2].result(600.0)
    with pytest.raises(Fault, match=r"^part took longer than 0 s$"):
        started[3].result(0.0)
    assert "SLINGSHOT_PART" not in os.environ
    with pytest.raises(Fault, match=r"ValueError"):
        together([apart(time.sleep, 1e6), apart(math.sqrt, -1.0)], 600.0)
    with pytest.raises(Fault, match=r"^part, part took longer than 0 s$"):
        together([apart(time.sleep, 1e6), apart(time.sleep, 1e6)], 0.0)


@pytest.mark.slow
def test_on_a_cpu_it_measures_what_there_is(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "RAY_", "OMP_"))}
    shared = [sys.executable, str(ROOT / "launch.py"), f"cache_dir={tmp_path / 'cache'}"]
    done = run([*shared, "mode=doctor", f"output_dir={tmp_path / 'doctor'}"], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "doctor" / "doctor.json").read_text())
    assert found["failed"] == []
    assert found["devices"][0]["tflops"] > 0
    assert found["devices"][0]["gb_per_s"] > 0
    assert found["broadcast_gb_per_s"] > 0
    assert found["engine"]["prefill_tokens_per_s"] > 0
    assert found["engine"]["decode_tokens_per_s"] > 0
    assert [row["row"] for row in found["learner"]["rows"]] == [128, 256, 512]
    assert found["learner"]["gap"]["mean"] < 1e-5
    assert found["learner"]["gap"]["tokens"] > 500
    planned = run([*shared, "mode=plan", f"output_dir={tmp_path / 'plan'}"], cwd=tmp_path, env=env)
    assert "measured by mode=doctor on " in planned.stdout
