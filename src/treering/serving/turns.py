"""Several texts written at once, one at a time at work."""

from __future__ import annotations

import threading
import time
from collections import deque

SLICE = 0.05
"""Seconds for which a text keeps the model while others wait."""


class Turns:
    """The model, which threads hold in turns, in the order of asking. Use as a context: inside, the model is held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()  # the first holds the model
        self._since = 0.0

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._lock:
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.set()
        mine.wait()
        self._since = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._queue.popleft()
            if self._queue:
                self._queue[0].set()

    def over(self) -> bool:
        """Whether the holder should let another have the model."""
        return len(self._queue) > 1 and time.monotonic() - self._since >= SLICE

    def pass_on(self) -> None:
        """Let all others that wait have their turns first."""
        self.__exit__()
        self.__enter__()
