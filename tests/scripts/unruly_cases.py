"""Cases as they must not be, for test_gpu_check.py: what the runner does about each."""

import os
import signal
import time

from scripts.gpu_check.cases import Case, Skipped, Wrong


def wrong(device):
    raise Wrong("off by 3")


def skipped(device):
    raise Skipped("not here")


def error(device):
    raise ValueError("no such thing")


def crash(device):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(device):
    time.sleep(600)


CASES = [Case("good", lambda device: {"device": device}), Case("wrong", wrong), Case("crash", crash),
         Case("skipped", skipped), Case("hang", hang), Case("error", error), Case("good again", lambda device: {})]
