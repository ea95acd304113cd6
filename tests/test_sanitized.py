"""Which build the tests have before them, and that the sanitizers of the sanitized one are awake."""

import os
import subprocess
import sys

import pytest

from diffmd_fast import _C

SANITIZED = os.environ.get("DIFFMD_SANITIZED") == "1"  # set by scripts/sanitized.py


def test_the_build_is_the_one_asked_for():
    """`make test-sanitize` must not pass by testing the usual build, nor `make test` by testing the other."""
    assert _C.build_info()["sanitized"] == SANITIZED


OUT_OF_BOUNDS = """
x, q = torch.zeros(1, 4, 3), torch.arange(4)[None]
out = torch.zeros(2, 1, 2)
_C.torsions_float32(2, 4, 1, x.data_ptr(), q.data_ptr(), 0, 0, out.data_ptr(), 0, 1)  # two replicas of one
"""
OVERFLOW = """
row_ptr = torch.zeros(1, dtype=torch.int64)
_C.neighbor_list_all_pairs(2**62, 2, row_ptr.data_ptr(), 0, 0, 1)  # 2^63 nodes
"""


@pytest.mark.skipif(not SANITIZED, reason="needs the sanitized build: make test-sanitize")
@pytest.mark.parametrize(("code", "report"), [(OUT_OF_BOUNDS, "AddressSanitizer: heap-buffer-overflow"),
                                              (OVERFLOW, "runtime error: signed integer overflow")])
@pytest.mark.parametrize("level", _C.build_info()["simd_usable"])
def test_a_mistake_ends_the_process(code, report, level):
    """Sizes that the memory behind them does not have, at every SIMD level."""
    program = f"import torch\nfrom diffmd_fast import _C\n_C.set_simd_level({level!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0 and report in done.stderr, done.stderr[-2000:]
