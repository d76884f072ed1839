"""What all tests share."""

from __future__ import annotations

import signal

# A shell that starts a job in the background has it ignore Ctrl-C, and its children inherit that; here are tests
# of what a Ctrl-C does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
