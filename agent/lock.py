"""A lock that the system frees when its process ends, however that happens."""

from __future__ import annotations

import errno
import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks say."""


def lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed. False where the file system has no locks: it is taken as it is.

    Raises ``BlockingIOError`` if another process holds it, and ``OSError`` for what else the system refuses.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
