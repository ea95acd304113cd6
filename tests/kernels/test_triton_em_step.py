"""The Triton em_step: run in the interpreter and on a GPU where there is one, compiled for every target without."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

CHECKS = Path(__file__).with_name("triton_em_step_checks.py")


def run_checks(interpret: bool) -> None:
    environment = dict(os.environ, TRITON_INTERPRET="1" if interpret else "0", OMP_NUM_THREADS="1")
    child = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
                           cwd=CHECKS.parents[2], env=environment, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]


def test_in_the_interpreter():
    run_checks(interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_on_the_gpu():
    run_checks(interpret=False)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: kernels are not compiled")
@pytest.mark.parametrize(("capability", "element"), [(80, "fp32"), (90, "fp32"), (100, "fp32"), (90, "fp64")])
def test_compiles_without_a_gpu(capability, element, tmp_path, monkeypatch, capfd, record_property):
    """A cubin comes out, registers do not spill, and nothing was fused into multiply-adds."""
    kernels = importlib.import_module("diffmd_fast.kernels.triton.em_step")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # really compile, and leave the user's cache alone
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
    constants = dict(DIFFUSION_PER_ATOM=True, VARIANCE_PER_REPLICA=True, WITH_NOISE=True, WIDE=False,
                     BLOCK=kernels.BLOCK)
    arrays = dict.fromkeys(("positions", "score", "new_positions", "noise"), f"*{element}")
    arrays.update(diffusion_time="*fp64", variance="*fp64")
    names = kernels.em_step_kernel.arg_names
    signature = {name: arrays.get(name, "constexpr" if name in constants else "i32") for name in names}
    source = ASTSource(kernels.em_step_kernel, signature, {(names.index(k),): v for k, v in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=kernels.LAUNCH)

    log = capfd.readouterr().out
    registers = int(re.search(r"Used (\d+) registers", log).group(1))
    record_property("registers", registers)
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    assert registers <= 64, "over 64 registers a multiprocessor holds fewer than half of its threads"
    assert f"mul.rn.{element.replace('fp', 'f')}" in compiled.asm["ptx"] and "fma." not in compiled.asm["ptx"]
