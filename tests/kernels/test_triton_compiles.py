"""The Triton kernels compiled for every target, without a GPU: what ptxas says of registers is recorded and gated."""

import functools
import itertools
import os
import re

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are not compiled", allow_module_level=True)

from diffmd_fast.kernels.triton import (  # noqa: E402
    em_step,
    fixed_list,
    neighbor_cells,
    neighbor_list,
    rows,
    spline_conv,
    torsions,
    tuning,
    verlet_list,
)
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Per kernel: its constants, its launch options, and the most registers a thread may have. 64 let a multiprocessor hold
# half of its 2048 threads, 128 a quarter, 168 three programs of 128 threads.
STEP = dict(DIFFUSION_PER_ATOM=True, VARIANCE_PER_REPLICA=True, WITH_NOISE=True, WIDE=False, BLOCK=em_step.BLOCK)
KERNELS = {"em_step": (em_step.em_step_kernel, STEP | {"clock": None}, em_step.LAUNCH, 64),
           "em_step, step on the device": (em_step.em_step_kernel, STEP, em_step.LAUNCH, 64),
           "check rows": (rows.check_kernel, dict(ROWS=rows.ROWS), rows.LAUNCH, 64)}
for slope, most in ((False, 96), (True, 128)):
    constants = dict(SLOPE=slope, WIDE=False, BLOCK=torsions.BLOCK)
    KERNELS[f"torsions, {slope=}"] = (torsions.angles_kernel, constants, torsions.LAUNCH, most)
    KERNELS[f"torsions gradient, {slope=}"] = (torsions.gradient_kernel, constants, torsions.LAUNCH, most)
ALL = dict(FOR_FEATURES=True, FOR_POSITIONS=True, ALONG_FEATURES=True, ALONG_POSITIONS=True, ALONG_COEFFICIENTS=True)
for step, numbers, most in (("forward", spline_conv.FORWARD, 128), ("backward", spline_conv.BACKWARD, 168),
                            ("double_backward", spline_conv.DOUBLE_BACKWARD, 168),
                            ("coefficients", spline_conv.COEFFICIENTS, 96)):
    kernel = getattr(spline_conv, f"{step}_kernel")
    constants = {k: v for k, v in dict(ALL, IN_BOX=True, SLOPE=True).items() if k in kernel.arg_names}
    of_size = functools.partial(spline_conv.tile_of, 128, numbers=numbers)
    KERNELS[f"spline_conv {step}"] = (kernel, lambda size, c=constants, tile=of_size: c | tile(size),
                                      spline_conv.LAUNCH, most)
KERNELS["spline_conv intervals"] = (spline_conv.interval_kernel, dict(IN_BOX=True, EDGES=32),
                                    spline_conv.LAUNCH | {"num_warps": 1}, 64)
TILE = dict(ROWS=neighbor_list.PAIRS // 64, COLUMNS=64, IN_BOX=True, BOX_PER_REPLICA=True)
KERNELS["neighbor_list count"] = (neighbor_list.count_kernel, TILE, neighbor_list.LAUNCH, 128)
KERNELS["neighbor_list fill"] = (neighbor_list.fill_kernel, TILE | dict(ALL_PAIRS=False), neighbor_list.LAUNCH, 168)
KERNELS["neighbor_list edges"] = (neighbor_list.edges_kernel, dict(
    IN_BOX=True, BOX_PER_REPLICA=True, REVERSE=True, VECTORS=True, DISTANCES=True, EDGES=neighbor_list.EDGES),
    neighbor_list.LAUNCH | {"num_warps": 1}, 96)
CELLS = dict(IN_BOX=True, BOX_PER_REPLICA=True, ROWS=neighbor_cells.ROWS, COLUMNS=neighbor_cells.COLUMNS)
for step, flags in (("count", dict(FILL=False, row_ptr=None, unordered=None)), ("fill", dict(FILL=True, counts=None))):
    KERNELS[f"neighbor_cells {step}"] = (neighbor_cells.rows_kernel, CELLS | flags, neighbor_cells.LAUNCH, 128)
KERNELS["neighbor_cells order"] = (neighbor_cells.order_kernel, dict(IN_BOX=True, EDGES=neighbor_cells.EDGES),
                                   neighbor_cells.LAUNCH | {"num_warps": 1}, 128)
KERNELS["verlet_list moves"] = (verlet_list.moves_kernel, dict(MOVED_BOX=True, PIECE=verlet_list.PIECE,
                                                               ATOMS=verlet_list.ATOMS), verlet_list.LAUNCH, 128)
KERNELS["verlet_list splice"] = (verlet_list.splice_kernel, dict(IN_BOX=True, EDGES=verlet_list.EDGES),
                                 verlet_list.LAUNCH | {"num_warps": 1}, 64)
SLOTS = dict(IN_BOX=True, ROWS=fixed_list.SLOT_ROWS, SLOTS=fixed_list.SLOTS)
KERNELS["fixed_list candidates"] = (fixed_list.candidates_kernel, dict(ROWS=neighbor_list.PAIRS // 64, COLUMNS=64,
                                                                      IN_BOX=True), fixed_list.LAUNCH, 168)
KERNELS["fixed_list count"] = (fixed_list.count_kernel, SLOTS, fixed_list.LAUNCH, 168)
KERNELS["fixed_list fill"] = (fixed_list.fill_kernel, SLOTS, fixed_list.LAUNCH, 168)

INTEGERS_64 = {"quadruples", "row_ptr", "incidence", "found", "order", "interval_ptr", "counts", "reverse", "listed",
               "clock", "grid", "per_replica", "source", "kept_ptr", "fresh_ptr", "kept_reverse", "fresh_reverse"}
INTEGERS_32 = {"col", "rows", "intervals", "wraps", "shift", "stale", "candidates", "held", "node", "first",
               "unordered", "kept_col", "kept_shift", "fresh_col", "fresh_shift"}
SCALARS_64 = {"cutoff", "per_spacing", "reach"}  # the bits of float64 numbers
SCALARS_32 = ("n_", "first_replica", "seed_", "step_")
FLOATS_64 = {"diffusion_time", "variance", "box", "points", "transform", "moves"}


def type_of(argument: str, element: str) -> str:
    """Of a kernel's argument, by its name, which means the same in every kernel."""
    for names, kind in ((INTEGERS_64, "*i64"), (INTEGERS_32, "*i32"), (FLOATS_64, "*fp64"), (SCALARS_64, "i64")):
        if argument in names:
            return kind
    return "i32" if argument.startswith(SCALARS_32) else f"*{element}"


def compiled_kernel(kernel, constants, launch, capability, element, aligned=True):
    """As a launch does it: torch's memory is aligned to 16 bytes and more, and so are rows of 128 features."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else type_of(n, element) for n in names}
    divisible = [(i,) for i, n in enumerate(names) if signature[n].startswith("*") or (n == "n_features" and aligned)]
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()},
                       {i: [["tt.divisibility", 16]] for i in divisible})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)


@pytest.fixture
def fresh_compiler(tmp_path, monkeypatch):
    """Really compile, leave the user's cache alone, and show what ptxas says."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)


@pytest.mark.parametrize(("capability", "element"), [(80, "fp32"), (90, "fp32"), (100, "fp32"),
                                                       pytest.param(90, "fp64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_a_gpu(name, capability, element, fresh_compiler, capfd, record_testsuite_property):
    """A cubin comes out, registers do not spill, and nothing was fused into multiply-adds."""
    kernel, constants, launch, most_registers = KERNELS[name]
    if callable(constants):
        constants = constants(4 if element == "fp32" else 8)
    compiled = compiled_kernel(kernel, constants, launch, capability, element)

    log = capfd.readouterr().out
    registers = int(re.search(r"Used (\d+) registers", log).group(1))
    record_testsuite_property(f"registers: {name}, sm_{capability}, {element}", registers)
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    assert registers <= most_registers
    assert launch["enable_fp_fusion"] is False and "fma." not in compiled.asm["ptx"]


# Bytes a thread. ptxas holds some rarer variants to fewer registers than they would fill and spills a few numbers;
# the variants of test_compiles_without_a_gpu spill none.
MOST_SPILLED = 32


def variants():
    """Other ways a launch can come out: flags, missing arrays, tiles, sizes of one."""
    nothing = dict(cotangent=None, SLOPE=False)
    for name in ("torsions, slope=False", "torsions gradient, slope=False"):
        kernel, constants, launch, _ = KERNELS[name]
        for one in ({}, {"n_torsions": 1}):
            yield f"{name} {one}", kernel, constants | nothing | one, launch, True
    for step in ("forward", "backward", "double_backward", "coefficients"):
        kernel, tile, launch, _ = KERNELS[f"spline_conv {step}"]
        numbers = getattr(spline_conv, step.upper())
        for size, n_features, in_box in itertools.product((4, 8), (1, 20, 32, 64, 300), (False, True)):
            own = tile(size) | {"IN_BOX": in_box} | spline_conv.tile_of(n_features, size, numbers)
            flags = [k for k in own if k.startswith(("FOR_", "ALONG_"))]
            for off in (None, *flags):
                given = own | ({off: False} if off else {})
                given |= {k.lower(): None for k in flags if k.startswith("ALONG_") and not given[k]}
                given |= {"n_features": 1} if n_features == 1 else {}
                yield (f"spline_conv {step} {size} {n_features} {in_box} {off}", kernel,
                       {k: v for k, v in given.items() if k in kernel.arg_names}, launch, n_features % 16 == 0)
    for name in ("count", "fill", "edges"):
        kernel, constants, launch, _ = KERNELS[f"neighbor_list {name}"]
        for columns, in_box, all_pairs in itertools.product((16, 32, 64), (False, True), (False, True)):
            tile = {"ROWS": neighbor_list.PAIRS // columns, "COLUMNS": columns, "IN_BOX": in_box,
                    "ALL_PAIRS": all_pairs, "BOX_PER_REPLICA": False}
            if not in_box:
                tile["wraps"] = None
            yield (f"neighbor_list {name} {columns} {in_box} {all_pairs}", kernel,
                   constants | {k: v for k, v in tile.items() if k in kernel.arg_names}, launch, True)
    for name in ("count", "fill", "order"):
        kernel, constants, launch, _ = KERNELS[f"neighbor_cells {name}"]
        missing = {k: None for k in ("wraps",) if k in kernel.arg_names}
        yield f"neighbor_cells {name}, open", kernel, constants | missing | {"IN_BOX": False}, launch, True
    yield from candidates()


def candidates():
    """The launch options that tuning tries, on the kernels of 128 features or 64 atoms."""
    names = {"em_step": ["em_step"], "torsions": ["torsions, slope=False", "torsions, slope=True"],
             "torsions_gradient": ["torsions gradient, slope=False", "torsions gradient, slope=True"],
             "neighbor_pairs": ["neighbor_list count", "neighbor_list fill"],
             "neighbor_cells": ["neighbor_cells count", "neighbor_cells fill"]}
    for tuned, tries in tuning.CANDIDATES.items():
        for name in names.get(tuned, [tuned.replace("conv_", "conv ")]):
            kernel, constants, launch, _ = KERNELS[name]
            for options in tries:
                own = dict(options)
                if "NUMBERS" in own:
                    own |= constants(4) | spline_conv.tile_of(128, 4, own.pop("NUMBERS"))
                else:
                    own = constants | ({"ROWS": own.pop("PAIRS") // 64} if "PAIRS" in own else {}) | own
                warps = own.pop("num_warps")
                yield f"{name} {options}", kernel, own, launch | {"num_warps": warps}, True


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_variant_compiles_and_hardly_spills(capability, fresh_compiler, capfd):
    seen = set()
    for name, kernel, constants, launch, aligned in variants():
        element = "fp64" if " 8 " in name else "fp32"
        key = (kernel.__name__, element, aligned, *sorted((k, str(v)) for k, v in (constants | launch).items()))
        if key in seen:
            continue
        seen.add(key)
        try:
            compiled_kernel(kernel, constants, launch, capability, element, aligned)
        except Exception as error:
            raise AssertionError(f"{name} does not compile") from error
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", capfd.readouterr().out).groups()
        assert max(map(int, spilled)) <= MOST_SPILLED, f"{name}: {spilled} bytes"
    assert len(seen) > 100
