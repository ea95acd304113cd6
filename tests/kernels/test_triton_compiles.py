"""The Triton kernels compiled for every target, without a GPU: what ptxas says of registers is recorded and gated."""

import functools
import os
import re

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are not compiled", allow_module_level=True)

from diffmd_fast.kernels.triton import em_step, rows, spline_conv, torsions  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Per kernel: its constants, its launch options, and the most registers a thread may have. 64 let a multiprocessor hold
# half of its 2048 threads, 128 a quarter, 255 two programs of 128 threads.
KERNELS = {"em_step": (em_step.em_step_kernel, dict(DIFFUSION_PER_ATOM=True, VARIANCE_PER_REPLICA=True, WITH_NOISE=True,
                                                    WIDE=False, BLOCK=em_step.BLOCK), em_step.LAUNCH, 64),
           "check rows": (rows.check_kernel, dict(ROWS=rows.ROWS), rows.LAUNCH, 64)}
for slope, most in ((False, 96), (True, 128)):
    constants = dict(SLOPE=slope, WIDE=False, BLOCK=torsions.BLOCK)
    KERNELS[f"torsions, {slope=}"] = (torsions.angles_kernel, constants, torsions.LAUNCH, most)
    KERNELS[f"torsions gradient, {slope=}"] = (torsions.gradient_kernel, constants, torsions.LAUNCH, most)
ALL = dict(FOR_FEATURES=True, FOR_POSITIONS=True, ALONG_FEATURES=True, ALONG_POSITIONS=True, ALONG_COEFFICIENTS=True)
for step, numbers, most in (("forward", spline_conv.FORWARD, 128), ("backward", spline_conv.BACKWARD, 224),
                            ("double_backward", spline_conv.DOUBLE_BACKWARD, 224),
                            ("coefficients", spline_conv.COEFFICIENTS, 128)):
    kernel = getattr(spline_conv, f"{step}_kernel")
    constants = {k: v for k, v in dict(ALL, IN_BOX=True, SLOPE=True).items() if k in kernel.arg_names}
    of_size = functools.partial(spline_conv.tile_of, 128, numbers=numbers)
    KERNELS[f"spline_conv {step}"] = (kernel, lambda size, c=constants, tile=of_size: c | tile(size),
                                      spline_conv.LAUNCH, most)
KERNELS["spline_conv intervals"] = (spline_conv.interval_kernel, dict(IN_BOX=True, EDGES=32), spline_conv.LAUNCH, 64)

INTEGERS_64 = {"quadruples", "row_ptr", "incidence", "found", "order", "interval_ptr"}
INTEGERS_32 = {"col", "rows", "intervals"}
SCALARS_64 = {"cutoff", "per_spacing"}  # the bits of float64 numbers
SCALARS_32 = ("n_", "first_replica", "seed_", "step_")
FLOATS_64 = {"diffusion_time", "variance"}


def type_of(argument: str, element: str) -> str:
    """Of a kernel's argument, by its name, which means the same in every kernel."""
    for names, kind in ((INTEGERS_64, "*i64"), (INTEGERS_32, "*i32"), (FLOATS_64, "*fp64"), (SCALARS_64, "i64")):
        if argument in names:
            return kind
    return "i32" if argument.startswith(SCALARS_32) else f"*{element}"


@pytest.mark.parametrize(("capability", "element"), [(80, "fp32"), (90, "fp32"), (100, "fp32"),
                                                       pytest.param(90, "fp64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_a_gpu(name, capability, element, tmp_path, monkeypatch, capfd, record_testsuite_property):
    """A cubin comes out, registers do not spill, and nothing was fused into multiply-adds."""
    kernel, constants, launch, most_registers = KERNELS[name]
    if callable(constants):
        constants = constants(4 if element == "fp32" else 8)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # really compile, and leave the user's cache alone
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else type_of(n, element) for n in names}
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)

    log = capfd.readouterr().out
    registers = int(re.search(r"Used (\d+) registers", log).group(1))
    record_testsuite_property(f"registers: {name}, sm_{capability}, {element}", registers)
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    assert registers <= most_registers
    assert launch["enable_fp_fusion"] is False and "fma." not in compiled.asm["ptx"]
