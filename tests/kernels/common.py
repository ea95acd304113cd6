"""What the check files of the Triton kernels share; imported in a process of its own (test_triton.py)."""

import importlib

from diffmd_fast import use_backend

DEVICE = "cpu" if importlib.import_module("diffmd_fast.kernels.triton").INTERPRETED else "cuda"


def on_triton(operation, *arguments, **options):
    with use_backend("triton"):
        return operation(*arguments, **options)
