"""The gauges of Ray and the board of Grafana that shows them."""

from __future__ import annotations

import json
import math
import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import run

from actors.ray_metrics import SHOWN, RayMetrics, gauge_name

ROOT = Path(__file__).parents[2]
BOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana.json").read_text())
METRIC = re.compile(r"ray_slingshot_\w+")
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
SET = """
import re, sys, time, urllib.request
import ray
from actors.ray_metrics import SHOWN, RayMetrics
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
(node,) = ray.nodes()
metrics = RayMetrics()
wanted, found, end = set(sys.argv[1:]), set(), time.monotonic() + 600
while not wanted <= found and time.monotonic() < end:
    metrics.set(dict.fromkeys(SHOWN, 1.0) | {"other": 2.0})
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        text = urllib.request.urlopen(address, timeout=10).read().decode()
    except OSError:
        text = ""
    found = set(re.findall(r"^(ray_slingshot_\\w+)\\{.*SessionName=", text, re.MULTILINE))
    time.sleep(0.5)
print(*sorted(found), sep="\\n")
"""


def test_a_number_that_a_step_lacks_leaves_no_other_steps() -> None:
    told: dict[str, float] = {}
    metrics = object.__new__(RayMetrics)
    metrics._gauges = {name: SimpleNamespace(set=partial(told.__setitem__, name)) for name in ("a", "b", "c")}
    metrics.set({"a": 1, "b": 2.0, "c": None})
    metrics.set({"a": math.nan, "b": 3.0})
    assert math.isnan(told["a"])
    assert told["b"] == 3.0
    assert math.isnan(told["c"])


def test_the_board_shows_each_metric_once_and_no_other() -> None:
    shown = [name for query in QUERIES for name in METRIC.findall(query)]
    assert sorted(shown) == sorted(f"ray_{gauge_name(name)}" for name in SHOWN)
    assert all('{SessionName=~"$SessionName"}' in query for query in QUERIES)
    variables = {v["name"]: v for v in BOARD["templating"]["list"]}
    assert {name for query in QUERIES for name in re.findall(r"\$(\w+)", query)} <= set(variables)
    assert METRIC.findall(variables["SessionName"]["definition"])[0] in shown


def test_the_panels_lie_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in pairwise(sorted(places, key=lambda p: (p["y"], p["x"]))):
        assert other["y"] >= one["y"] + one["h"] or other["x"] >= one["x"] + one["w"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(places)


@pytest.mark.slow  # Ray hands its metrics on every ten seconds
def test_ray_exports_what_the_board_asks_for() -> None:
    names = sorted({name for query in QUERIES for name in METRIC.findall(query)})
    done = run([sys.executable, "-c", SET, *names], cwd=ROOT)
    assert (done.returncode, done.stdout.split()) == (0, names), done.stderr
