"""What holds for the Triton part of VerletList wherever it runs; see triton_em_step_checks.py."""

import importlib

import pytest
import torch

from diffmd_fast import ops
from diffmd_fast.ops import NeighborList
from diffmd_fast.ops.verlet_list import _largest_moves, _splice

from ..ops.common import simd_level
from ..ops.test_neighbor_list import assert_same
from ..ops.test_verlet_list import CUBE, FIELDS, TRICLINIC, walk
from .common import DEVICE, on_triton

kernels = importlib.import_module("diffmd_fast.kernels.triton.verlet_list")


# One atom, two, a part of a program, three programs; the largest two in one lane, in one program, and apart.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, 700, 9000])
def test_moves_are_the_native_ones_to_the_bit(rng, dtype, n_atoms):
    before = torch.rand(3, n_atoms, 3, generator=rng, dtype=torch.float64).to(dtype)
    now = before + 0.1 * torch.randn(before.shape, generator=rng, dtype=torch.float64).to(dtype)
    if n_atoms > kernels.ATOMS:
        now[0, 5] += 3.0
        now[0, kernels.ATOMS + 5] += 2.0
        now[1, -1] += 2.0
    transform = torch.eye(3, dtype=torch.float64) + 0.1 * torch.rand(3, 3, 3, generator=rng, dtype=torch.float64)
    for box in (None, transform):
        got = kernels.largest_moves(now.to(DEVICE), before.to(DEVICE), None if box is None else box.to(DEVICE))
        with simd_level("baseline"):  # the others fuse multiply-adds
            assert torch.equal(got.cpu(), _largest_moves(now, before, box))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_atom_that_is_nowhere_has_moved_too_far(rng, value):
    before = torch.rand(2, 5000, 3, generator=rng).to(DEVICE)
    now = before.clone()
    now[1, 4500, 2] = value
    assert torch.isnan(kernels.largest_moves(now, before, None)).tolist() == [False, True]
    assert kernels.largest_moves(before[:, :0], before[:, :0], None).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("box", [None, TRICLINIC])
def test_splices_are_the_native_ones(rng, box):
    """Rows without edges, of one tile, and of several."""
    before = walk(rng, 3, 40, box)
    before[0] *= 10.0
    kept = ops.neighbor_list(before, 1.2, box=box)
    fresh = ops.neighbor_list(before[1:].flip(0), 1.2, box=box)
    assert kept.row_ptr.diff().min() == 0 or box is not None
    assert kept.row_ptr.diff().max() > kernels.EDGES or box is not None
    on_device = [NeighborList(*(t.to(DEVICE) for t in lists[:4])) for lists in (kept, fresh)]
    for source in ([-1, 1, 0], [0, -1, -1]):
        got = kernels.splice(*on_device, torch.tensor(source, device=DEVICE), 40)
        assert_same([t.cpu() for t in got[:4]], _splice(kept, fresh, torch.tensor(source), 40), f"{source}")


@pytest.mark.parametrize("box", [None, CUBE])
def test_the_kept_list_is_the_native_one(rng, box):
    """One replica moves and is listed anew, then nothing, then all."""
    positions, lists, native = walk(rng, 3, 12, box), ops.VerletList(0.9, 0.3), ops.VerletList(0.9, 0.3)
    away = torch.zeros(3, 1, 1)
    away[1] = 0.2
    for moved in (positions, positions + away, positions + away + 0.01, 1.05 * positions):
        x, own = moved.to(DEVICE), None if box is None else box.to(DEVICE)
        got = on_triton(lists.update, x, own, return_vectors=True)
        want = native.update(moved, box, return_vectors=True)
        assert_same([getattr(got, name).cpu() for name in FIELDS], [getattr(want, name) for name in FIELDS])
        torch.testing.assert_close(got.vectors.cpu(), want.vectors, rtol=1e-13, atol=1e-13)
        assert lists.n_builds == native.n_builds
    assert lists.n_builds > 4
