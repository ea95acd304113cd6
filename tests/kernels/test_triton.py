"""The Triton kernels run: in the interpreter, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

CHECKS = sorted(Path(__file__).parent.glob("triton_*_checks.py"))


def run_checks(interpret: bool) -> None:
    """All files in one process: most of its time would go into importing torch."""
    environment = dict(os.environ, TRITON_INTERPRET="1" if interpret else "0", OMP_NUM_THREADS="1")
    child = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, CHECKS)],
                           cwd=CHECKS[0].parents[2], env=environment, capture_output=True, text=True, timeout=900)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]


def test_in_the_interpreter():
    run_checks(interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_on_the_gpu():
    run_checks(interpret=False)
