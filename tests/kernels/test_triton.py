"""The Triton kernels: run in the interpreter and on a GPU where there is one, compiled for every target without."""

import os
import re
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


if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are not compiled", allow_module_level=True)

from diffmd_fast.kernels.triton import em_step, torsions  # noqa: E402

# Per kernel: its arrays of other types than the element's, its constants, its launch options, and the most registers
# a thread may have. 64 let a multiprocessor hold half of its 2048 threads, 128 a quarter.
KERNELS = {
    "em_step": (em_step.em_step_kernel, dict(diffusion_time="*fp64", variance="*fp64"),
                dict(DIFFUSION_PER_ATOM=True, VARIANCE_PER_REPLICA=True, WITH_NOISE=True, WIDE=False,
                     BLOCK=em_step.BLOCK), em_step.LAUNCH, 64),
}
INTEGERS = dict(quadruples="*i64", row_ptr="*i64", incidence="*i64")
for slope, most in ((False, 96), (True, 128)):
    constants = dict(SLOPE=slope, WIDE=False, BLOCK=torsions.BLOCK)
    KERNELS[f"torsions, {slope=}"] = (torsions.angles_kernel, INTEGERS, constants, torsions.LAUNCH, most)
    KERNELS[f"torsions gradient, {slope=}"] = (torsions.gradient_kernel, INTEGERS, constants, torsions.LAUNCH, most)
FLOATS = {"positions", "score", "new_positions", "noise", "cotangent", "grad_output", "output"}


@pytest.mark.parametrize(("capability", "element"), [(80, "fp32"), (90, "fp32"), (100, "fp32"), (90, "fp64")])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_a_gpu(name, capability, element, tmp_path, monkeypatch, capfd, record_property):
    """A cubin comes out, registers do not spill, and nothing was fused into multiply-adds."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arrays, constants, launch, most_registers = KERNELS[name]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # really compile, and leave the user's cache alone
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
    names = kernel.arg_names
    signature = {
        n: "constexpr" if n in constants else arrays.get(n, f"*{element}" if n in FLOATS else "i32") for n in names
    }
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)

    log = capfd.readouterr().out
    registers = int(re.search(r"Used (\d+) registers", log).group(1))
    record_property("registers", registers)
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    assert registers <= most_registers
    assert "mul.rn.f" in compiled.asm["ptx"] and "fma." not in compiled.asm["ptx"]
