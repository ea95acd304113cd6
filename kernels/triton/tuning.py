"""Block sizes and warps that were measured best on a card, by kernel and shape class.

What the kernels' own files say is the default, with which they are tested.  A table of a card, ``tuned/<card>.json``,
replaces it on that card; one is made, on a machine that has the card, by

    python -m diffmd_fast.kernels.triton.tuning

Tables are part of the package: commit one, and it is shipped.  Triton's own autotuner does not do that: it measures in
the midst of a user's run, which cannot be while a CUDA graph is captured, and its cache belongs to one version of
Triton and of the kernel's source, and to an architecture instead of a card.

Results do not depend on the table, with one exception: ``spline_conv`` adds the edges of a row in the order of its
tiles, so its last bits may.
"""

import functools
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import triton

from ...backend import unavailable
from ...errors import InputError
from . import INTERPRETED

FOLDER = Path(__file__).with_name("tuned")
GAIN = 0.97  # of the default's time: a choice has to take less, or the default stays


def blocks(name: str, per_thread: tuple[int, ...], warps: tuple[int, ...]) -> list[dict[str, int]]:
    return [{name: 32 * w * n, "num_warps": w} for w in warps for n in per_thread]


# What is measured, and compiled in the slow tests, which gate its registers. The defaults are among them.
CANDIDATES = {
    "em_step": blocks("BLOCK", (1, 2, 4), (2, 4, 8)),
    "torsions": blocks("BLOCK", (1,), (1, 2, 4, 8)),
    "torsions_gradient": blocks("BLOCK", (1,), (1, 2, 4, 8)),
    "neighbor_pairs": blocks("PAIRS", (2, 4), (2, 4, 8)),
    "neighbor_cells": [{"ROWS": rows, "COLUMNS": pairs // rows, "num_warps": pairs // 128}
                       for pairs in (256, 512, 1024) for rows in (8, 16)],
    "spline_conv_forward": blocks("NUMBERS", (8, 16), (2, 4, 8)),
    "spline_conv_backward": blocks("NUMBERS", (4, 8), (2, 4, 8)),
    "spline_conv_double_backward": blocks("NUMBERS", (2, 4), (2, 4, 8)),
    "spline_conv_coefficients": blocks("NUMBERS", (2, 4), (2, 4, 8)),
}
_forced: dict[str, dict[str, int]] = {}
_asked: dict[str, str] = {}  # kernel: the shape class of its last launch


def tuned(kernel: str, shape: str, device: torch.device) -> dict[str, int]:
    """Launch options of ``kernel`` to put in the place of the defaults; empty where nothing was measured."""
    _asked[kernel] = shape
    if kernel in _forced:
        return _forced[kernel]
    return _table(card_of(device.index)).get(kernel, {}).get(shape, {}) if device.type == "cuda" else {}


@functools.cache
def card_of(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def path_of(card: str) -> Path:
    """The file of a card's table: "NVIDIA H200" has nvidia_h200.json."""
    return FOLDER / (re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") + ".json")


@functools.cache
def _table(card: str) -> dict[str, dict[str, dict[str, int]]]:
    path = path_of(card)
    return read_table(path) if path.exists() else {}


def read_table(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    """{kernel: {shape class: launch options}}.

    Raises:
        InputError: not such a file, or options that are not among the candidates.
    """
    try:
        table = json.loads(path.read_text())["kernels"]
        wrong = [f"{kernel}, {shape}: {options}" for kernel, shapes in table.items()
                 for shape, options in shapes.items() if options not in CANDIDATES.get(kernel, [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        raise InputError(f"{path}: expected launch options that diffmd_fast.kernels.triton.tuning would try, got "
                         f"{wrong[0]}; delete the file, or make it anew with python -m {__spec__.name}")
    return table


@contextmanager
def forced(kernel: str, options: dict[str, int]):
    """``kernel`` runs with these options, whatever the table says; for tests and measurements, in one thread."""
    _forced[kernel] = options
    try:
        yield
    finally:
        del _forced[kernel]


def tune(measure, cases) -> tuple[dict, dict]:
    """({kernel: {shape class: best options}}, {"kernel, shape class": (default, best) time}).

    Args:
        measure: the time that a call of its argument takes.
        cases: pairs of a kernel's name and a function that launches it.
    """
    table: dict[str, dict] = {}
    times = {}
    for kernel, call in cases:
        with forced(kernel, {}):
            default, found = measure(call), []
        shape = _asked[kernel]
        for options in CANDIDATES[kernel]:
            with forced(kernel, options):
                found.append(measure(call))
        best = min(found)
        times[f"{kernel}, {shape}"] = (default, best)
        if best < GAIN * default:
            table.setdefault(kernel, {})[shape] = CANDIDATES[kernel][found.index(best)]
    return table, times


def cases(device: torch.device, n_atoms: int) -> Iterator[tuple]:
    """(kernel, function that launches it) for every shape class that is worth a choice, at about ``n_atoms`` atoms."""
    from . import em_step, neighbor_list, spline_conv, torsions

    rng = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype=torch.float32) -> torch.Tensor:
        return torch.rand(shape, generator=rng, dtype=dtype).to(device)

    one = torch.ones(1, dtype=torch.float64, device=device)
    no_box, no_offsets = one.new_empty(0, 3, 3), torch.empty(0, 3, device=device)
    for dtype in (torch.float32, torch.float64):
        x = random(max(1, n_atoms // 64), 64, 3, dtype=dtype)
        yield "em_step", functools.partial(em_step.em_step, x, x, 1e-3 * one, one, 0, 0, 0, with_noise=False)
        x = random(max(1, n_atoms // 22), 22, 3, dtype=dtype)
        quadruples = torch.arange(19, device=device)[:, None] + torch.arange(4, device=device)
        yield "torsions", functools.partial(torsions.angles, x, quadruples)
        grad = torsions.angles(x, quadruples)
        yield "torsions_gradient", functools.partial(torsions.gradient, grad, x, quadruples)
    for size in (12, 22, 64):
        x = random(max(1, n_atoms // size), size, 3)
        yield "neighbor_pairs", neighbor_list.Pairs(x, no_box, None, 0.5).count
    x = random(1, n_atoms, 3) * (n_atoms / 100) ** (1 / 3)  # 100 atoms/nm^3: 52 neighbors within 0.5 nm
    yield "neighbor_cells", neighbor_list.Cells(x, torch.zeros_like(x[..., 0], dtype=bool), no_box, None, 0.5).count
    n_nodes = n_atoms // 16
    x = x[:, :n_nodes] * 16 ** (-1 / 3)
    row_ptr, col, _, _ = neighbor_list.search(x, no_box, None, 0.5, n_nodes > 4096)
    for n_features in (32, 64, 128):
        h, c = random(n_nodes, n_features), random(30, n_features)
        graph = (h, x[0], c, row_ptr, col, no_offsets, 0.5)
        yield "spline_conv_forward", functools.partial(spline_conv.forward, *graph)
        yield "spline_conv_backward", functools.partial(spline_conv.backward, h, *graph, True, True, False)
        yield "spline_conv_coefficients", functools.partial(spline_conv.backward, h, *graph, False, False, True)
        yield "spline_conv_double_backward", functools.partial(spline_conv.double_backward, h, x[0], c, h, *graph,
                                                               True, False)


def milliseconds(call) -> float:
    """Median on the current card; infinite where the card cannot hold such a program."""
    try:
        return triton.testing.do_bench(call, return_mode="median")
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
        return float("inf")


def main() -> int:
    """Measure on the current card, and write its table into the package."""
    reason = "TRITON_INTERPRET=1 is set" if INTERPRETED else unavailable("triton")
    if reason is not None:
        print(f"tuning needs a GPU to measure on: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    card = card_of(device.index)
    table, times = tune(milliseconds, cases(device, 2**20))
    FOLDER.mkdir(exist_ok=True)
    path_of(card).write_text(json.dumps(
        {"card": card, "torch": torch.__version__, "triton": triton.__version__, "kernels": table,
         "milliseconds (default, best)": times}, indent=1) + "\n")
    for name, (default, best) in times.items():
        print(f"{name}: {default:.4f} ms by default, {best:.4f} at best")
    print(f"written: {path_of(card)}")
    return 0


if __name__ == "__main__":
    from diffmd_fast.kernels.triton import tuning  # the module that the kernels ask, of which this is a copy

    sys.exit(tuning.main())
