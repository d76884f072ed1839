"""What it is worth that rollouts go on while the learner learns: the whole loop in simulated time.

    python bench/pipeline.py [--run FOLDER] [--save FILE] [--quick]

The latencies are those of a finished synchronous run (``tracking/experiments/latencies.py``), of the CPU demo unless
``--run`` names another; ``agent/simulation/pipeline.py`` simulates. Learner and engines have a device each here, as on
a box of GPUs: on the two cores of the demo they would take them from each other.

What should be seen, and why. Let R be the time of a batch's rollouts, L that of the learner, its publication and the
driver's work.

- Synchronous, a step takes R + L, and one of the two is idle at any time.
- Asynchronous, it takes at least max(R', L), where R' <= R is what the engine needs for a batch's tokens when there
  is always a next group to play: a batch's last, long episodes no longer play alone. The gain is at most
  1 + min(R, L) / max(R, L), so two, plus that of the tail; and most where R is about L.
- A staleness of 1 would give all of that if every batch took as long as every other. More only evens out: a learner
  that is faster for once finds the next batch ready. So 2 gives a little more than 1, and 3 and 4 hardly anything.
- More workers divide R, and not L: the gain grows until R = L and falls behind it. The learner is then
  idle only while weights are published and the driver works, and the engines wait for it.
- The learner's idle share can't fall below what publication and driver take of L.

Targets: for at least one number of workers, with a staleness of at most 2, 1.6 times the synchronous steps per hour and
a learner that is idle for at most 10 % of the time; and a simulated synchronous step within 10 % of the run's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.errors import UserError  # noqa: E402
from agent.simulation.pipeline import Latencies, Layout, Overlap, simulate  # noqa: E402
from tracking.experiments.latencies import Calibration, calibrate  # noqa: E402

DEMO = Path(__file__).with_name("pipeline_demo.json")
"""The CPU demo: ``--save`` of a run of ``python launch.py tracker=none`` with seed 0, on two cores."""
HALF, RECOMPUTE = 17.7, 2.6
"""The tiny model's engine, by ``python bench/rollout.py --curve`` on the same two cores."""
WORKERS, STALENESS = (1, 2, 3), range(5)
RATIOS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
SPEED_UP, IDLE, TOLERANCE = 1.6, 0.10, 0.10


@dataclass(frozen=True, slots=True)
class Point:
    """One layout, and the synchronous one with as many workers."""

    layout: Layout
    found: Overlap
    synchronous: Overlap

    @property
    def speed_up(self) -> float:
        return self.synchronous.step_s / self.found.step_s

    @property
    def good(self) -> bool:
        return self.layout.max_staleness <= 2 and self.speed_up >= SPEED_UP and self.found.learner_idle <= IDLE

    def row(self) -> dict[str, Any]:
        return {
            "workers": self.layout.rollout_workers,
            "max_staleness": self.layout.max_staleness,
            "steps_per_hour": round(self.found.steps_per_hour),
            "speed_up": round(self.speed_up, 3),
            "learner_idle": round(self.found.learner_idle, 3),
            "engine_idle": round(self.found.engine_idle, 3),
            "staleness": round(self.found.staleness, 2),
        }


def points(latencies: Latencies, layout: Layout, bounds: Any, steps: int) -> list[Point]:
    """``layout`` at each staleness bound, of which the first is 0."""
    layouts = [replace(layout, max_staleness=bound) for bound in bounds]
    found = [simulate(latencies, each, steps=steps, seed=0) for each in layouts]
    return [Point(each, overlap, found[0]) for each, overlap in zip(layouts, found, strict=True)]


def other_side(latencies: Latencies) -> float:
    """Seconds of a step in which a synchronous engine has nothing to do."""
    return statistics.mean(latencies.learner) + latencies.publish + latencies.driver


def at_ratio(latencies: Latencies, rollout_s: float, ratio: float) -> Latencies:
    """The learner's side faster or slower, so that the rollouts take ``ratio`` times as long as it."""
    factor = rollout_s / ratio / other_side(latencies)
    return replace(
        latencies,
        learner=tuple(factor * s for s in latencies.learner),
        publish=factor * latencies.publish,
        driver=factor * latencies.driver,
    )


def load(path: Path) -> Calibration:
    """What ``save`` wrote."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    latencies = {k: _tuples(v) for k, v in kept["latencies"].items()}
    return Calibration(
        latencies=Latencies(**latencies),
        layout=Layout(**kept["layout"]),
        step_s=kept["step_s"],
        rollout_s=kept["rollout_s"],
    )


def save(path: Path, calibration: Calibration) -> None:
    path.write_text(json.dumps(_short(asdict(calibration))) + "\n", encoding="utf-8")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _short(value: Any) -> Any:
    """With four digits of each number: what was measured has no more."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def report(calibration: Calibration, steps: int) -> list[str]:
    """Prints everything; what is not as it should be."""
    latencies, layout = calibration.latencies, calibration.layout
    simulated = simulate(latencies, replace(layout, max_staleness=0), steps=steps, seed=1)
    error = simulated.step_s / calibration.step_s - 1
    episodes = latencies.episodes
    print(
        f"calibrated: {layout.batch_questions} x {layout.group_size} episodes of "
        f"{statistics.mean(map(len, episodes)):.2f} turns and {statistics.mean(map(sum, episodes)):.1f} tokens; "
        f"learner {statistics.mean(latencies.learner):.3f} s, publish {latencies.publish:.3f} s, "
        f"driver {latencies.driver:.3f} s, search {1e3 * statistics.mean(latencies.searches):.1f} ms, "
        f"engine {1 / latencies.token:,.0f} tok/s at most, half of them with {latencies.half:g} sequences"
    )
    print(
        f"a synchronous step: simulated {simulated.step_s:.3f} s, real {calibration.step_s:.3f} s over the steps that "
        f"nothing was fitted to ({error:+.1%})"
    )
    wrong = []
    if abs(error) > TOLERANCE:
        wrong.append(f"the simulated synchronous step is off by {error:+.1%}, more than {TOLERANCE:.0%}")
    print("\nworkers  R / L  staleness  steps/h  speed-up  learner idle  engine idle  mean staleness")
    table = []
    for workers in WORKERS:
        for point in points(latencies, replace(layout, rollout_workers=workers), STALENESS, steps):
            table.append(point)
            found, ratio = point.found, point.synchronous.rollout_s / other_side(latencies)
            print(
                f"{workers:>7}  {ratio:>5.2f}  {point.layout.max_staleness:>9}  {found.steps_per_hour:>7,.0f}  "
                f"{point.speed_up:>8.2f}  {found.learner_idle:>12.1%}  {found.engine_idle:>11.1%}  "
                f"{found.staleness:>14.2f}{'  *' if point.good else ''}"
            )
    if not any(point.good for point in table):
        wrong.append(f"no layout with a staleness of at most 2 is {SPEED_UP} times as fast with {IDLE:.0%} idle")
    print("\nthe learner's side scaled, one worker:")
    print("R / L  speed-up at 1, 2, 4  learner idle at 1, 2, 4")
    scaled = []
    rollout_s = simulated.rollout_s if layout.rollout_workers == 1 else table[0].synchronous.rollout_s
    for ratio in RATIOS:
        side = at_ratio(latencies, rollout_s, ratio)
        overlapped = points(side, replace(layout, rollout_workers=1), (0, 1, 2, 4), steps)[1:]
        scaled.append({"ratio": ratio, "rows": [p.row() for p in overlapped]})
        speeds = "  ".join(f"{p.speed_up:.2f}" for p in overlapped)
        idle = "  ".join(f"{p.found.learner_idle:6.1%}" for p in overlapped)
        print(f"{ratio:>5.2f}  {speeds:>19}  {idle:>23}")
    best = max((p for p in table if p.layout.max_staleness <= 2), key=lambda p: (p.good, p.speed_up))
    print(
        json.dumps(
            {
                "bench": "pipeline",
                "value": round(best.found.steps_per_hour),
                "unit": "steps per hour",
                "baseline": f"synchronous, {best.layout.rollout_workers} workers",
                "baseline_value": round(best.synchronous.steps_per_hour),
                "ratio": round(best.speed_up, 3),
                "learner_idle": round(best.found.learner_idle, 3),
                "step_error": round(error, 4),
                "rows": [p.row() for p in table],
                "scaled": scaled,
            }
        )
    )
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a synchronous run, outputs/…; without it, the CPU demo")
    parser.add_argument("--half", type=float, default=HALF, help="sequences at half speed (bench/rollout.py --curve)")
    parser.add_argument("--recompute", type=float, default=RECOMPUTE, help="tokens that an update costs an episode")
    parser.add_argument("--save", type=Path, help="writes the run's latencies to this file")
    parser.add_argument("--quick", action="store_true", help="40 steps of each instead of 100")
    given = parser.parse_args()
    try:
        if given.run is None:
            calibration = load(DEMO)
        else:
            calibration = calibrate(given.run, half=given.half, recompute=given.recompute, seed=0)
    except UserError as error:
        sys.exit(str(error))
    if given.save is not None:
        save(given.save, calibration)
    if wrong := report(calibration, 40 if given.quick else 100):
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
