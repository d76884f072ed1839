"""What the garbage collector costs an actor as it starts: processor time of its imports without it and with it.

    python bench/imports.py [--quick]

A process each, by turns; the ratio is the median of pairs. Below 1: ``agent/collector.py`` is worth having.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CASES = {"learner": "actors.learner, learner.policy, learner.update", "rollout worker": "actors.vllm_adapter"}
PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
import gc
{first}
started = time.process_time()
import {modules}
print("took", time.process_time() - started)
"""


def seconds(modules: str, *, collector: bool) -> float:
    """Processor seconds of importing ``modules`` in a process of their own."""
    first = "" if collector else "gc.disable()"
    program = PROGRAM.format(root=str(ROOT), first=first, modules=modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"import {modules}: {done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 pairs each instead of 5")
    pairs = 2 if parser.parse_args().quick else 5
    rows: list[dict[str, Any]] = []
    for case, modules in CASES.items():
        seconds(modules, collector=True)  # from disk, and compiled
        took = [(seconds(modules, collector=False), seconds(modules, collector=True)) for _ in range(pairs)]
        without, with_it = (round(statistics.median(side), 2) for side in zip(*took, strict=True))
        ratio = round(statistics.median(a / b for a, b in took), 3)
        rows.append({"case": case, "value": without, "baseline_value": with_it, "ratio": ratio})
    print(json.dumps({"bench": "imports", "unit": "s", "baseline": "with the collector", "rows": rows}))
    if any(row["ratio"] > 1 for row in rows):
        sys.exit("imports are slower without the collector")


if __name__ == "__main__":
    main()
