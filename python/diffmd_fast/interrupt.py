"""Ctrl-C at a moment of our choosing: a step is finished, never cut in half."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupt:
    """While inside, the first Ctrl-C sets ``asked`` and the second one interrupts as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        before = signal.getsignal(signal.SIGINT)
        # Only the main thread may set handlers, and a process started with Ctrl-C ignored keeps ignoring it.
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._previous = before
            signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, signum, frame) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._previous)

    def __exit__(self, *exception) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
