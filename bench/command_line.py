"""How long the command line takes to answer without a GPU: a plan (limit 3 s) and a refusal (limit 10 s).

python bench/command_line.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BOX = ["cluster=4x3090", "model=qwen1.5b"]
CASES = {"plan": (["mode=plan", *BOX], 0, 3.0), "refusal": (BOX, 2, 10.0)}
"""Arguments, the exit code of a machine without a GPU, and the limit in seconds."""


def seconds(arguments: list[str], code: int, folder: str) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, ROOT / "launch.py", *arguments], cwd=folder, capture_output=True)
    if done.returncode != code:
        sys.exit(f"{' '.join(arguments)} exited {done.returncode}, not {code}: {done.stderr.decode()}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 calls each instead of 9")
    calls = 3 if parser.parse_args().quick else 9
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (arguments, code, limit) in CASES.items():
            took = statistics.median(seconds(arguments, code, folder) for _ in range(calls))
            rows.append(
                {"case": name, "value": round(took, 3), "baseline_value": limit, "ratio": round(took / limit, 3)}
            )
    print(json.dumps({"bench": "command_line", "unit": "s", "baseline": "limit", "rows": rows}))
    if any(row["ratio"] > 1 for row in rows):
        sys.exit("a call took longer than its limit")


if __name__ == "__main__":
    main()
