"""Ray actors, each a thin shell around something pure. With launch.py the only place that imports ray."""

import os

SIGNALS = {"RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}
"""Ray leaves SIGSEGV to the JVM, which uses it for itself, for null pointers say: with Ray's handler in its place the
process would die. Python's handler writes down the crash of a process without a JVM."""

UNTRACKED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""No library reports usage or looks for updates unless its user asks for it."""

# Ray and the hub's client read them as they are imported: here it is before any of our code can do that, in every mode.
os.environ.update(SIGNALS | UNTRACKED)
