"""Ray's start, with an end: a cluster on this machine, or the connection to one that runs already.

Ray waits 30 seconds for its own processes, too short for a slow machine, and waits them out when a process has
already died. Here it waits as long as ``cluster.start_timeout_s``, and sees that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors import launcher
from actors.plan.host import object_store_bytes
from actors.plan.machine import VISIBLE, cards_of, gpus
from actors.plan.ray_address import reach
from actors.process import QUIET
from agent.errors import Fault, UserError
from conf.schema import RunConfig
from tracking.run_folder import unwritable

ATTEMPTS = 3
"""Starts that are tried. A raylet gives its own agents 15 seconds: they may need the first to get into memory."""
_POLL_S = 0.1
ROOT = str(Path(__file__).resolve().parents[1])
"""The folder of this code's packages."""


class _Ended(Exception):
    """One of Ray's processes ended while it started. No ``Fault``: Ray catches every ``RuntimeError`` as it waits."""


def start_ray(config: RunConfig, namespace: str) -> str:
    """Connects to ``cluster.address``, or starts Ray on this machine; the dashboard's address, or nothing.

    Raises ``UserError`` if it can't connect, and ``Fault`` if Ray doesn't start within ``cluster.start_timeout_s``;
    then none of its processes is left.
    """
    cluster = config.cluster
    launcher.tell(logs=str(_log_dir(config)))
    os.environ.update(QUIET)
    if cluster.address is None:
        os.environ["RAY_worker_niceness"] = str(cluster.niceness)  # noqa: SIM112 (Ray spells its settings so)
        for name, value in of_a_local_cluster(cluster.start_timeout_s).items():
            os.environ.setdefault(name, value)
    # Ray protects a local cluster with a token by default, and warns its user that it does.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    common: dict[str, Any] = {
        "namespace": namespace,
        "log_to_driver": config.debug,
        "logging_level": "WARNING" if config.debug else "CRITICAL",  # what goes wrong is said in one line, below
        "runtime_env": {"env_vars": QUIET},
        "job_config": _our_code_first(),
    }
    try:
        with _sigterm_kept():
            return _connect(config, common) if cluster.address is not None else _start(config, common)
    finally:
        logging.getLogger("ray").setLevel(logging.WARNING)


def _our_code_first() -> Any:
    """Where workers look for modules: first where this code is, whatever lies in the folder that the user is in.

    Ray puts that folder before all, and one with an ``agent`` or a ``tasks.py`` of the user's own is likely.
    """
    from ray.job_config import JobConfig

    class OurCodeFirst(JobConfig):
        def _get_proto_job_config(self) -> Any:
            others = [place for place in self._py_driver_sys_path if place != ROOT]
            self._py_driver_sys_path = [*others, ROOT]  # a worker puts one after the other to the front
            return super()._get_proto_job_config()

    return OurCodeFirst()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Meanwhile Ray installs no handler of SIGTERM: its own end the process without a word, with code 1 or 15."""
    from ray._private import utils

    theirs = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs


def _connect(config: RunConfig, common: dict[str, Any]) -> str:
    address = str(config.cluster.address)
    reach(address, config.cluster.start_timeout_s)
    import ray

    log = Path(config.output_dir, "logs", "ray.log")
    try:
        with contextlib.nullcontext() if config.debug else _errors_into(log):
            return ray.init(address=address, **common).dashboard_url or ""
    except Exception as error:  # of a dozen kinds: no node here, other versions, no token
        ray.shutdown()
        raise UserError(f"cluster.address={address}: can't join the Ray cluster there ({_reason(error)})") from error


def _start(config: RunConfig, common: dict[str, Any]) -> str:
    _provide_token()
    limit = config.cluster.start_timeout_s
    deadline = time.monotonic() + limit
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _attempt(config, common, deadline)
        except _Ended as error:
            if attempt == ATTEMPTS:
                raise Fault(f"{error}, {ATTEMPTS} times; Ray's logs are in {_logs(config)}") from error
        except TimeoutError as error:
            raise Fault(
                f"Ray didn't start within cluster.start_timeout_s={limit:g}; raise that if the machine is slow (Ray's "
                f"logs are in {_logs(config)})"
            ) from error
    raise AssertionError("unreachable")


def _attempt(config: RunConfig, common: dict[str, Any], deadline: float) -> str:
    """One start. Raises ``_Ended``, ``TimeoutError`` or ``Fault``, each with all of Ray's processes gone."""
    import ray

    before = _processes() | {*children()}

    def check() -> None:
        """Raises unless there is time, and all that has been started lives."""
        if time.monotonic() > deadline:
            raise TimeoutError
        check_alive(before)

    try:
        with _cards_shown(config), waiting(check, deadline):
            context = ray.init(
                address="local",
                include_dashboard=config.cluster.dashboard,
                object_store_memory=object_store_bytes(config),
                **common,
            )
        if time.monotonic() > deadline:
            raise TimeoutError
    except BaseException as error:
        ray.shutdown()
        _end(_processes() - before)
        if isinstance(error, Exception) and not isinstance(error, (_Ended, TimeoutError)):
            raise Fault(f"Ray can't be started: {_reason(error)}; its logs are in {_logs(config)}") from error
        raise
    _tell_launcher(config)
    return (context.dashboard_url or "") if config.cluster.dashboard else ""


def check_alive(before: Collection[int]) -> None:
    """Raises ``_Ended`` if one of Ray's processes has ended that isn't one of ``before``."""
    for process in children():
        if process not in before and (name := _ended(process)) in ("raylet", "gcs_server"):
            raise _Ended(f"Ray's {name} ended while it started")


@contextmanager
def _cards_shown(config: RunConfig) -> Iterator[None]:
    """Meanwhile CUDA is shown the cards that the check of the machine has counted on: Ray gives out the first ones of
    those that it saw at its start, be they too small or another program's."""
    cluster, before = config.cluster, os.environ.get(VISIBLE)
    if cluster.device == "cuda":
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA's own puts the fastest first
        found, _ = gpus()
        taken = cards_of(cluster, found)
        if cluster.gpus <= len(taken) < len(found):
            os.environ[VISIBLE] = ",".join(str(gpu.index) for gpu in taken)
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        if before is not None:
            os.environ[VISIBLE] = before


def stop_ray() -> None:
    """Ends Ray, or leaves the cluster that runs elsewhere."""
    import ray

    launcher.tell(leaving=True)
    ray.shutdown()


def _tell_launcher(config: RunConfig) -> None:
    """Which of Ray's processes the run can't do without, and where its logs are."""
    from ray._private import ray_constants, worker

    node: Any = worker._global_node
    head = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
    pids = {name: node.all_processes[name][0].process.pid for name in head}
    launcher.tell(head=pids, session=node.get_session_dir_path(), logs=str(_log_dir(config)), leaving=False)


def of_a_local_cluster(timeout_s: float) -> dict[str, str]:
    """Ray's settings of a cluster whose processes may take ``timeout_s`` to start."""
    whole = math.ceil(timeout_s)
    return {
        "RAY_prestart_worker_first_driver": "0",  # a process for each core, none of which an actor of ours would use
        "RAY_worker_register_timeout_seconds": str(whole),
        "RAY_agent_register_timeout_ms": str(1000 * whole),
    }


@contextmanager
def waiting(check: Callable[[], None], deadline: float) -> Iterator[None]:
    """Calls ``check`` while Ray waits for its server's port and for its node, whose ends are numbers in its source."""
    from ray._private import node, ray_constants, services, state

    wait_for_port, get_node = node.wait_for_persisted_port, services.get_node
    dashboard_s = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S

    def port(session_dir: str, node_id: str, port_name: str, **limit: int) -> int:
        while not Path(session_dir, node.get_port_filename(node_id, port_name)).exists():
            check()
            time.sleep(_POLL_S)
        return wait_for_port(session_dir, node_id, port_name, **limit)

    def registered(gcs_address: str, node_id: str) -> dict[str, Any]:
        nodes = state.GlobalState()
        nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
        while node_id not in {entry["NodeID"] for entry in nodes.node_table()}:
            check()
            time.sleep(_POLL_S)
        return get_node(gcs_address, node_id)

    node.wait_for_persisted_port, services.get_node = port, registered
    ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = max(0.0, deadline - time.monotonic())
    try:
        yield
    finally:
        node.wait_for_persisted_port, services.get_node = wait_for_port, get_node
        ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = dashboard_s


@contextmanager
def _errors_into(log: Path) -> Iterator[None]:
    """Sends standard error to a file, also that of Ray's C++, which reports each of its tries to connect."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    kept = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


# --- Ray's processes -------------------------------------------------------------------------------


def children() -> list[Any]:
    import psutil

    return psutil.Process().children()


def _processes() -> set[Any]:
    """All processes below this one that Ray started, and those below them."""
    import psutil
    import ray

    home, found = str(Path(ray.__file__).parent), set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(home in part for part in process.cmdline()) or process.name() in ("raylet", "gcs_server"):
                found |= {process, *process.children(recursive=True)}
    return found


def _ended(process: Any) -> str | None:
    """The name of a process that has ended and that nobody has asked for its exit code yet."""
    import psutil

    try:
        return process.name() if process.status() == psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _end(processes: set[Any]) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _provide_token() -> None:
    """Ray guards a cluster of its own by a token in ``~/.ray``; without a home to write to, by one for this run."""
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        file = Path.home() / ".ray" / "auth_token"
        kept = os.access(file, os.R_OK) or unwritable(file.parent) is None
    except (OSError, RuntimeError):  # nobody knows the home
        kept = False
    if not kept:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _log_dir(config: RunConfig) -> Path:
    """Of the run."""
    return Path(config.output_dir, "logs").absolute()


def _logs(config: RunConfig) -> Path:
    """Where the newest start's logs are to be found: the launcher takes them into the run's folder."""
    from ray._common.utils import get_default_ray_temp_dir

    if launcher.has_launcher():
        return _log_dir(config) / "ray"
    return Path(get_default_ray_temp_dir()) / "session_latest" / "logs"


def _reason(error: BaseException) -> str:
    """One line of what Ray says: the first, or the last where a traceback is in it."""
    inner = error.__cause__ or error
    lines = (str(inner) or str(error)).strip().splitlines() or [type(inner).__name__]
    return lines[-1 if any(line.endswith("Traceback (most recent call last):") for line in lines) else 0]
