"""Targets that do what a fuzz run is there to notice; test_fuzz.py runs them in the place of the real ones."""

import os
import signal
import time

from diffmd_fast import InputError

from .case import Case


def served(case: Case) -> None:
    case.attempt(lambda: 1)


def refused(case: Case) -> None:
    case.ordinary = False

    def call():
        raise InputError("size: expected 1, got 2")

    case.attempt(call)


def valid_refused(case: Case) -> None:
    case.ordinary = True
    refused_anyway = InputError("size: expected 1, got 1")

    def call():
        raise refused_anyway

    case.attempt(call)


def wrong_exception(case: Case) -> None:
    case.attempt(lambda: [][0])


def crashes(case: Case) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(case: Case) -> None:
    time.sleep(3600)


TARGETS = {function.__name__: function for function in (
    served, refused, valid_refused, wrong_exception, crashes, hangs)}
