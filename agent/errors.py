"""The two kinds of things that go wrong, and who has to act on them."""

from __future__ import annotations

import difflib
import re
import signal
from collections import Counter
from collections.abc import Iterable, Sequence

_FEW = 3
"""Names that are told all, rather than the one that may be meant."""
LONGEST_LINE = 1500
"""Characters of a message; what is quoted of a wrong file may be all of it."""


class UserError(ValueError):
    """The user's input is wrong. The message is one line: what is wrong, where, and the fix.

    ``launch.py`` prints the message and exits 2; no traceback is shown unless ``debug=true``. Ends of lines in what the
    message quotes are blanks in it, and its middle is left out where it is very long.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(part.strip() for part in message.splitlines()) if "\n" in message else message
        if len(line) > LONGEST_LINE:
            line = f"{line[: LONGEST_LINE - 500]} […] {line[-400:]}"
        super().__init__(line)


def all_of(problems: Sequence[str]) -> str:
    """Several problems as the one line of a ``UserError``.

    >>> all_of(["no GPU; add one"]), all_of(["no GPU; add one", "no disk; buy one"])
    ('no GPU; add one', '2 problems: (1) no GPU; add one (2) no disk; buy one')
    """
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems: " + " ".join(f"({n}) {problem}" for n, problem in enumerate(problems, 1))


class Fault(RuntimeError):
    """Something broke that the user didn't ask for. ``launch.py`` exits 1 and says where it broke."""


class Final(Fault):
    """The run can't go on. Code that waits for what may come back must not wait after this fault."""


class ActorLost(Fault):
    """An actor is of no use any more, though its process lives and may answer: it is to be replaced as if it had died.

    ``why`` names it.
    """

    def __init__(self, actor: str, why: str) -> None:
        super().__init__(actor, why)  # as they are given: it crosses processes
        self.actor = actor

    def __str__(self) -> str:
        return str(self.args[1])


class Unusable(ActorLost):
    """What an actor gave is damaged. It is lost with it, whether it goes on or not: it would give the same again."""

    def __str__(self) -> str:
        return f"what the {self.actor} gave can't be used: {self.args[1]}"


class ToolError(Fault):
    """A tool could not answer. It excludes the trajectory from its group."""


class RetrievalError(ToolError):
    """A search could not be answered. It excludes the trajectory; it is never an empty result."""


class RewardError(Fault):
    """An outcome could not be told. It excludes the trajectory; it is never an outcome of 0."""


class NoRoom(RuntimeError):
    """The context has no room for another turn, and only the engine knows how long it is. This is no fault."""


class GenerationError(Fault):
    """The engine could not finish a completion. It excludes the trajectory from its group."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run. ``launch.py`` says so and exits with 128 and its number, as shells report it."""

    def __init__(self, number: signal.Signals, how: str = "") -> None:
        self.by = f"stopped by {number.name}"
        super().__init__(self.by + how)
        self.code = 128 + number


def commonest(faults: Sequence[str]) -> str:
    """The fault that occurs most often among ``faults`` and how often that is, to end an error message with.

    >>> commonest(["the engine is gone", "timeout", "the engine is gone"])
    'the engine is gone (2 of 3)'
    """
    ((fault, count),) = Counter(faults).most_common(1)
    return f"{fault} ({count} of {len(faults)})" if count < len(faults) else fault


def last_line(page: str) -> str:
    """What was raised, from a page that ends with a traceback; nothing if it is empty."""
    return next((line.strip() for line in reversed(page.splitlines()) if line.strip()), "")


def shortened(error: BaseException, limit: int = 300) -> str:
    """What ``error`` says, in one line of at most ``limit`` characters; its type if it says nothing.

    >>> shortened(ValueError("1 error:\\n  no such layer"))
    '1 error: no such layer'
    """
    try:
        text = " ".join(str(error).split()) or type(error).__name__
    except Exception:  # what a class of the user's own says of itself may be broken, too
        text = type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def refused(error: BaseException) -> str:
    """What an error says; of the system's, what it refused and of which file."""
    if not isinstance(error, OSError):
        return str(error)
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what


def nearest(name: str, valid: Iterable[str]) -> str:
    """A phrase naming the closest valid spelling of ``name``, to end an error message with; all of them where it is
    like none, or where they are few and it isn't much like one.

    >>> nearest("rul", ["rule", "lease_s"])
    "did you mean 'rule'?"
    >>> nearest("gpu", ["cuda", "cpu"])
    'valid names: cpu, cuda'
    """
    options = sorted(set(valid))
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.75 if len(options) <= _FEW else 0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "valid names: " + (", ".join(options) or "none")


_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
"""An import path whose last point should be a colon."""


def one_of(name: str, valid: Iterable[str], what: str) -> None:
    """Raises ``UserError`` unless ``name`` is one of ``valid``; ``what`` is the config key."""
    options = sorted(set(valid))
    if name not in options:
        own = "; code of your own is named package.module:name" if _DOTTED.fullmatch(name) else ""
        raise UserError(f"{what}={name} is not known; {nearest(name, options)}{own}")
