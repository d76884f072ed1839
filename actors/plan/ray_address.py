"""Whether a Ray cluster answers at an address.

Ray itself waits for ever for a head that is gone, and can't be interrupted by Ctrl-C then.
"""

from __future__ import annotations

import os
import socket

from agent.errors import UserError
from conf.topology import check_address

ANSWER_S = 10.0
"""Longest that a head may take to answer."""
_SERVING = b"\x08\x01"
"""The answer of a healthy server."""


def reach(address: str, patience_s: float) -> None:
    """Returns once a Ray cluster has answered at ``address``. Takes at most two ``ANSWER_S``, or two ``patience_s``.

    Raises ``UserError`` if none does.
    """
    found = _of_this_machine() if address == "auto" else address
    check_address(found)
    host, port = found.removeprefix("ray://").rsplit(":", 1)
    patience_s = min(patience_s, ANSWER_S)
    try:
        socket.create_connection((host.strip("[]"), int(port)), patience_s).close()
    except OSError as error:  # also a host name that can't be resolved
        reason = "it took too long" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise _silent(address, found, reason) from error
    if os.environ.get("RAY_USE_TLS", "0") in ("", "0") and not _healthy(found, patience_s):
        raise _silent(address, found, "what listens there is no Ray head, or doesn't respond")


def _silent(address: str, found: str, reason: str) -> UserError:
    where = "" if found == address else f" ({found})"
    return UserError(
        f"cluster.address={address}{where}: no Ray cluster answers there: {reason}; start one with `ray start --head`, "
        "or leave the address out to start Ray on this machine"
    )


def _of_this_machine() -> str:
    """The address behind ``auto``: RAY_ADDRESS, or the cluster that runs here."""
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError, OSError) as error:
        raise _silent("auto", "auto", "none runs on this machine") from error
    assert found is not None
    return found


def _healthy(target: str, patience_s: float) -> bool:
    """Whether a Ray head says so, by gRPC's own health check; of a Ray Client's server, whether it speaks gRPC."""
    import grpc

    client = target.startswith("ray://")
    with grpc.insecure_channel(target.removeprefix("ray://")) as channel:
        try:
            if client:
                grpc.channel_ready_future(channel).result(timeout=patience_s)
                return True
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
            )
            return check(b"", timeout=patience_s, wait_for_ready=True) == _SERVING
        except (grpc.FutureTimeoutError, grpc.RpcError):
            return False
