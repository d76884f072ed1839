"""``mode=view view=terminal``: the episodes of a run in a console, for a machine that is reached by ssh.

``Viewer`` is what a key does and what is on the screen, and knows no terminal; ``browse`` connects it to one.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
import termios
import tty
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.control import Control
from rich.text import Text

from agent.errors import Stopped, UserError
from tracking.console import Console
from tracking.view import in_lines
from tracking.view.episode_list import Filters, in_range, read_entries, read_episode
from tracking.view.episodes import find_evaluations
from tracking.view.in_lines import one_line
from tracking.view.lines import Notices
from tracking.view.run import facts

IN_LIST = "q leave  ↑↓ Enter  / text  r reward  s end  f faults  u use  c all  : question  i run  R reread"
INSIDE = "q back  ↑↓ space scroll  n p next, previous  a all episodes of the question"
_ALIKE = {
    "up": ("\x1b[A", "\x1bOA", "k"),
    "down": ("\x1b[B", "\x1bOB", "j"),
    "page up": ("\x1b[5~", "b"),
    "page down": ("\x1b[6~", " "),
    "home": ("\x1b[H", "\x1bOH", "\x1b[1~", "g"),
    "end": ("\x1b[F", "\x1bOF", "\x1b[4~", "G"),
    "enter": ("\r", "\n"),
    "back": ("\x1b", "q", "\x7f", "\x08"),
}
_NAMES = {key: name for name, keys in _ALIKE.items() for key in keys}
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.DOTALL)


class Viewer:
    """A list of episodes, and inside it one of them, or the run. ``folder`` is the run's, ``show`` are the ids of the
    questions to begin with."""

    def __init__(self, folder: Path, show: Collection[str] = ()) -> None:
        self.busy: Callable[[str], None] = lambda text: None
        """Is told what takes long."""
        self._folder = folder
        self._filters = Filters(questions=frozenset(show))
        self._at = 0
        self._inside: Callable[[], Iterator[Text]] | None = None
        """What is shown in the place of the list."""
        self._top = 0
        """The first line of it on the screen."""
        self._asking: tuple[str, Callable[[str], None]] | None = None
        self._typed = ""
        self._said = ""
        self._height, self._length = 24, 0
        self._wrapped: tuple[Callable[[], Iterator[Text]] | None, int, list[Text]] = (None, 0, [])
        self._read()

    def _read(self) -> None:
        self.busy("reading the run …")
        notices = Notices()
        self._entries = read_entries(self._folder, notices)
        self._facts = facts(self._folder, notices, find_evaluations(self._folder, notices))
        self._notices = notices.texts
        self._list()

    def _list(self) -> None:
        try:
            self._listed = self._filters.chosen(self._entries, self._looked)
        except Stopped:
            raise
        except KeyboardInterrupt:
            self._filters.text, self._said = "", "the search was stopped"
            self._listed = self._filters.chosen(self._entries)
        self._at = max(0, min(self._at, len(self._listed) - 1))

    def _looked(self, done: int, total: int) -> None:
        if done % 200 == 0:
            self.busy(f"searching {done}/{total} episodes … Ctrl-C stops it")

    # --- keys --------------------------------------------------------------------------------------

    def key(self, key: str) -> bool:
        """Does what ``key`` asks for; whether there is more to see."""
        self._said = ""
        if self._asking is not None:
            self._type(key)
            return True
        name = _NAMES.get(key, key)
        if self._inside is not None:
            self._key_inside(name)
            return True
        if name == "back":
            return False
        self._key_in_list(name)
        return True

    def _type(self, key: str) -> None:
        assert self._asking is not None
        if key in ("\r", "\n"):
            _, answer = self._asking
            self._asking = None
            answer(self._typed.strip())
            self._list()
        elif key == "\x1b":
            self._asking = None
        elif key in ("\x7f", "\x08"):
            self._typed = self._typed[:-1]
        elif key.isprintable() and len(key) == 1:
            self._typed += key

    def _ask(self, what: str, answer: Callable[[str], None]) -> None:
        self._asking, self._typed = (what, answer), ""

    def _key_in_list(self, name: str) -> None:
        page = max(1, self._height - 4)
        moves = {"up": -1, "down": 1, "page up": -page, "page down": page, "home": -len(self._listed)}
        moves["end"] = len(self._listed)
        if name in moves:
            self._at = max(0, min(len(self._listed) - 1, self._at + moves[name]))
        elif name == "enter" and self._listed:
            self._open(self._at)
        elif name == "/":
            self._ask("text, in any part of an episode", lambda typed: self._set(text=typed))
        elif name == "r":
            self._ask("reward, or EM of an evaluation: <0.5, >=1, =1, 0.2..0.6", self._set_score)
        elif name == ":":
            self._ask("id of a question, or a part of it", self._set_question)
        elif name == "s":
            ends = ["", *sorted({entry.stop for entry in self._entries})]
            at = ends.index(self._filters.stop) if self._filters.stop in ends else 0
            self._set(stop=ends[(at + 1) % len(ends)])
        elif name == "f":
            self._set(faults=not self._filters.faults)
        elif name == "u":
            self._set(use={"": "training", "training": "held out", "held out": ""}[self._filters.use])
        elif name == "c":
            self._filters = Filters()
            self._list()
        elif name == "i":
            self._show(lambda: in_lines.run(self._facts, self._notices))
        elif name == "R":
            self._read()

    def _set(self, **filters: object) -> None:
        for name, value in filters.items():
            setattr(self._filters, name, value)
        self._list()

    def _set_score(self, typed: str) -> None:
        try:
            if typed:
                in_range(typed)
        except ValueError as error:
            self._said = str(error)
        else:
            self._set(score=typed)

    def _set_question(self, typed: str) -> None:
        ids = {entry.question_id for entry in self._entries}
        meant = ids & {typed} or {name for name in ids if typed and typed in name}
        if typed and not meant:
            self._said = f"no episode of a question {typed!r} is logged"
        else:
            self._set(questions=frozenset(meant))

    def _key_inside(self, name: str) -> None:
        page = max(1, self._height - 3)
        moves = {"up": -1, "down": 1, "page up": -page, "page down": page, "home": -self._length, "end": self._length}
        if name in moves:
            self._top = max(0, min(self._length - page, self._top + moves[name]))
        elif name == "back":
            self._inside = None
        elif name in ("n", "p") and self._listed:
            self._open(max(0, min(len(self._listed) - 1, self._at + (1 if name == "n" else -1))))
        elif name == "a" and self._listed:
            self._inside, entry = None, self._listed[self._at]
            self._filters = Filters(questions=frozenset([entry.question_id]))
            self._list()
            self._at = self._listed.index(entry)

    def _open(self, at: int) -> None:
        self._at, entry = at, self._listed[at]
        self._show(lambda: in_lines.episode(entry, read_episode(entry)))

    def _show(self, inside: Callable[[], Iterator[Text]]) -> None:
        self._inside, self._top = inside, 0

    # --- the screen --------------------------------------------------------------------------------

    def lines(self, width: int, height: int) -> list[Text]:
        """What is on a screen of this size: at most ``height`` lines."""
        self._height = height
        shown = self._lines_inside(width, height) if self._inside else self._lines_of_list(width, height)
        if self._asking is not None:
            foot = one_line(_end(f"{self._asking[0]}: {self._typed}▏", width), "bold")
        else:
            foot = one_line(self._said or (INSIDE if self._inside else IN_LIST), "yellow" if self._said else "dim")
        return [*shown[: height - 1], *[Text()] * (height - 1 - len(shown)), foot]

    def _lines_of_list(self, width: int, height: int) -> list[Text]:
        room = max(1, height - 4)
        first = max(0, min(self._at - room // 2, len(self._listed) - room))
        alarms = len(self._facts["alarms"])
        # First, since the end of the line may not fit.
        more = f"{alarms} {'alarm' if alarms == 1 else 'alarms'}, i shows them. " if alarms else ""
        title = one_line(f"{self._facts['name']}: {more}{self._facts['end']}", "bold")
        at = f"{self._at + 1 if self._listed else 0} of {len(self._listed):,} ({len(self._entries):,} logged)"
        count = one_line(f"{at}: {self._filters}", "" if self._listed else "yellow")
        rows = [
            in_lines.row(entry, width, here=first + n == self._at)
            for n, entry in enumerate(self._listed[first : first + room])
        ]
        return [title, count, in_lines.head(width), *rows]

    def _lines_inside(self, width: int, height: int) -> list[Text]:
        assert self._inside is not None
        if self._wrapped[:2] != (self._inside, width):
            self._wrapped = (self._inside, width, in_lines.wrapped(self._inside(), width))
        lines = self._wrapped[2]
        self._length, room = len(lines), max(1, height - 2)
        self._top = max(0, min(self._top, self._length - room))
        last = min(self._length, self._top + room)
        place = one_line(f"lines {self._top + 1} to {last} of {self._length}", "dim")
        return [place, *lines[self._top : last]]


def _end(text: str, width: int) -> str:
    """As much of a line's end as ``width`` cells hold: where the next letter is typed."""
    while cell_len(text) > width:
        text = text[1:]
    return text


def browse(folder: Path, show: Collection[str], console: Console) -> None:
    """Shows the run in ``folder`` until its reader leaves. Raises ``UserError`` without a terminal to do it in. What is
    raised meanwhile, by a signal's handler too, leaves the terminal as it was."""
    rich = RichConsole(highlight=False)
    instead = "without view=terminal, report.html is written"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(f"view=terminal needs a terminal, and its input or output is a file or a pipe; {instead}")
    if rich.is_dumb_terminal:
        raise UserError(f"view=terminal can't draw on a terminal of TERM={os.environ.get('TERM', '')}; {instead}")
    with console.phase("reading the run"):
        viewer = Viewer(folder, show)
    with _by_key(sys.stdin.fileno()) as keys, rich.screen(hide_cursor=True) as screen:

        def draw(*lines: Text) -> None:
            rich.control(Control.home())  # where the picture before began
            screen.update(*lines)

        viewer.busy = lambda what: draw(one_line(what))
        size = None
        try:
            for key in keys:
                if key and not viewer.key(key):
                    return
                if key or rich.size != size:
                    size = rich.size
                    draw(*viewer.lines(*size))
        except Stopped:
            raise
        except KeyboardInterrupt:
            return


@contextmanager
def _by_key(terminal: int) -> Iterator[Iterator[str]]:
    """The keys of a terminal as they are pressed, and an empty one now and then, at the beginning too."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    without = termios.tcgetattr(terminal)
    without[6][termios.VSUSP] = b"\x00"  # a view that is put to sleep would leave its screen behind
    termios.tcsetattr(terminal, termios.TCSANOW, without)
    try:
        yield _keys(terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _keys(terminal: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        yield ""  # the terminal may have another size now
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        read = os.read(terminal, 4096)
        if not read:
            return  # nobody is there any more
        while read[-1:] in (b"\x1b", b"[", b"O") and select.select([terminal], [], [], 0.05)[0]:
            read += os.read(terminal, 4096)  # the rest of a key that arrives in parts
        yield from _KEY.findall(decoder.decode(read))
