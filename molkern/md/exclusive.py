"""What one thread at a time may use."""

from __future__ import annotations

import threading
from typing import Any


class Exclusive:
    """A context that a second thread may not enter meanwhile: an error, not a wait.

    A thread may enter it again within. Copies, also in other processes, are free.

    Args:
        what: who is busy, and what to do instead, for the message.
    """

    def __init__(self, what: str):
        self._what, self._lock = what, threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"{self._what}, but another thread is using this one")

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Exclusive, (self._what,)
