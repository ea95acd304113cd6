"""Ctrl-C, or SIGTERM, at a moment of our choosing: a step is finished, never cut in half."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupt:
    """While inside, the first Ctrl-C or SIGTERM (torchrun's, a batch system's) sets ``asked``; a second one acts as
    usual."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                # A process started with a signal ignored keeps ignoring it; None: not Python's to put back.
                if before is not None and before is not signal.SIG_IGN:
                    self._previous[number] = before
                    signal.signal(number, self._ask)
        return self

    def _ask(self, signum, frame) -> None:
        self.asked = True
        self._put_back()

    def _put_back(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def __exit__(self, *exception) -> None:
        self._put_back()
