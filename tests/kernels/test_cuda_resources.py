"""What ptxas made of kernels/cuda/ for every target, read from the installed module itself."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from diffmd_fast import _C

TARGETS = [target for target in ("sm_80", "sm_90", "sm_100") if target in _C.build_info()["cuda_compiler"]]
# Registers of a thread: 65,536 a multiprocessor allow 128 to a block of 512 threads. ptxas 13.0 takes 98 to 128.
# Kernels by a part of their mangled names; precision 0 is 3xtf32, 1 is tf32, 2 is fp32.
LIMITS = {"all_words": 32} | {f"resident_blocksILNS_9PrecisionE{precision}E": 128 for precision in range(3)}


def cuobjdump() -> str:
    """The toolkit's, or the one that Triton brings."""
    triton = importlib.util.find_spec("triton")
    places = [] if triton is None else [str(Path(triton.origin).parent / "backends/nvidia/bin")]
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(places))
    if found is None:
        pytest.skip("cuobjdump is not on this machine")
    return found


@pytest.fixture(scope="module")
def usage() -> dict[tuple[str, str], dict[str, int]]:
    """(target, kernel): registers, bytes of stack (spilled registers are there) and of static shared memory."""
    text = subprocess.run([cuobjdump(), "-res-usage", _C.__file__], capture_output=True, text=True, check=True).stdout
    found, target = {}, ""
    for line in text.splitlines():
        if match := re.match(r"arch = (sm_\d+)", line):
            target = match[1]
        elif match := re.search(r"Function (\w+):", line):
            kernel = next((name for name in LIMITS if name in match[1]), match[1])
        elif "REG:" in line:
            found[target, kernel] = {name: int(n) for name, n in re.findall(r"(\w+):(\d+)", line)}
    return found


@pytest.mark.skipif(not TARGETS, reason="this build has no CUDA kernels")
@pytest.mark.parametrize("kernel", LIMITS)
@pytest.mark.parametrize("target", TARGETS or ["none"])
def test_no_register_is_spilled(usage, target, kernel):
    of = usage[target, kernel]
    print(f"{kernel} on {target}: {of}")
    assert of["REG"] <= LIMITS[kernel] and of["STACK"] == of["LOCAL"] == 0


@pytest.mark.skipif(not TARGETS, reason="this build has no CUDA kernels")
def test_every_kernel_has_a_limit(usage):
    assert {kernel for _, kernel in usage} == set(LIMITS)


@pytest.mark.skipif(not TARGETS, reason="this build has no CUDA kernels")
def test_products_are_where_their_precision_says():
    """Instructions of tensor cores in the kernels of the two tf32 precisions, for every target, and in no other."""
    text = subprocess.run([cuobjdump(), "-sass", _C.__file__], capture_output=True, text=True, check=True).stdout
    kernels = re.split(r"Function : (?=\w+)", text)[1:]
    for name in LIMITS:
        of_name = [kernel for kernel in kernels if name in kernel.split(None, 1)[0]]
        wanted = name.endswith(("E0E", "E1E"))
        assert len(of_name) == len(TARGETS)
        assert all(("HMMA.1688.F32.TF32" in kernel) == wanted for kernel in of_name), name
