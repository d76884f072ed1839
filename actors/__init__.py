"""Ray actors, each a thin shell around something pure. With launch.py the only place that imports ray."""

import os

SIGNALS = {"RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}
"""Ray leaves SIGSEGV to the JVM, which uses it for itself, for null pointers say: with Ray's handler in its place the
process would die. Python's handler writes down the crash of a process without a JVM."""

# Ray reads it as it is imported.
os.environ.update(SIGNALS)
