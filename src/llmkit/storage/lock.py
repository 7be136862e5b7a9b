"""An exclusive lock for files that only one process may write at a time."""

from __future__ import annotations

import fcntl
from typing import IO, Any


def try_lock(file: IO[Any]) -> bool:
    """Tries to lock an open file for this process; False if another process holds the lock.

    The system releases the lock when the file is closed or the process ends, however it ends.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
