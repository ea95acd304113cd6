"""What holds for the Triton neighbor_list wherever it runs; see triton_em_step_checks.py."""

import importlib
import math

import pytest
import torch

from diffmd_fast import InputError, ops, reference, use_backend
from diffmd_fast.reference.neighbor_list import inverse_boxes, neighbor_list_core

from ..ops.common import assert_float64_rule
from ..ops.test_neighbor_list import NO_BOX, TRICLINIC, TURNED, assert_same, fluid
from .common import DEVICE, on_triton

kernels = importlib.import_module("diffmd_fast.kernels.triton.neighbor_list")
cells = importlib.import_module("diffmd_fast.kernels.triton.neighbor_cells")
OPERATORS = torch.ops.diffmd_fast


def flat(positions, box, reach, method="auto"):
    return on_triton(OPERATORS.neighbor_list, positions.to(DEVICE), box.to(DEVICE), reach, method)


def reference_list(positions, box, reach):
    return [t.to(DEVICE) for t in neighbor_list_core(positions, box, reach)]


# One atom; empty rows; rows of two replicas in one program; atoms over two tiles of columns.
@pytest.mark.parametrize(("shape", "reach", "dtype"), [((1, 1), 1.0, torch.float64), ((3, 2), 0.5, torch.float64),
                                                       ((3, 22), 1.2, torch.float32), ((1, 70), 1.5, torch.float64)])
def test_open_systems_equal_reference(rng, shape, reach, dtype):
    positions = fluid(rng, *shape, dtype=dtype)
    assert_same(flat(positions, NO_BOX, reach), reference_list(positions, NO_BOX, reach))


@pytest.mark.parametrize("box", [torch.diag(torch.tensor([2.5, 3.0, 4.7], dtype=torch.float64)), TRICLINIC, TURNED])
def test_periodic_systems_equal_reference(rng, box):
    """Atoms up to three boxes away, a box per replica and one for all; the list, vectors and distances."""
    positions, boxes = fluid(rng, 2, 20, box, spread=3.0), torch.stack([box, 1.1 * box])
    assert_same(flat(positions, boxes, 1.1), reference_list(positions, boxes, 1.1))
    x = positions[:1].to(DEVICE)
    got, want = (operator(x, 1.0, box=box.to(DEVICE), skin=0.1, return_vectors=True, return_distances=True)
                 for operator in (lambda *a, **k: on_triton(ops.neighbor_list, *a, **k), reference.neighbor_list))
    assert got.shift.any()
    assert_same(got, want)
    torch.testing.assert_close(got.vectors, want.vectors, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got.distances, want.distances, rtol=1e-13, atol=1e-13)


# One atom; grids of different size, empty cells, programs that take several cells; 70 atoms in one cell: rows and
# candidates of several tiles.
@pytest.mark.parametrize(("shape", "reach", "dtype"), [((1, 1), 1.0, torch.float64), ((2, 19), 0.9, torch.float32),
                                                       ((1, 70), 3.0, torch.float64)])
def test_cells_of_open_systems_equal_reference(rng, shape, reach, dtype):
    positions = fluid(rng, *shape, dtype=dtype)
    positions[-1] *= 1.5
    positions[-1, :, 0] -= 2.0
    assert_same(flat(positions, NO_BOX, reach, "cell_list"), reference_list(positions, NO_BOX, reach))


# One, two, three and more cells along an axis (one with a cutoff of half the box); one box for all, or each its own.
@pytest.mark.parametrize(("box", "reach", "n_replicas", "n_boxes"), [
    (torch.diag(torch.tensor([2.5, 3.0, 4.7], dtype=torch.float64)), 0.8, 1, 1), (TRICLINIC, 0.6, 1, 1),
    (TURNED, 1.1, 2, 2), (2.0 * torch.eye(3, dtype=torch.float64), 1.0, 2, 1)])
def test_cells_of_periodic_systems_equal_reference(rng, box, reach, n_replicas, n_boxes):
    positions = fluid(rng, n_replicas, 24, box, spread=3.0)
    boxes = torch.stack([box, 1.3 * box])[:n_boxes]
    got = flat(positions, boxes, reach, "cell_list")
    assert_same(got, reference_list(positions, boxes, reach))
    assert got[2].any()


def test_cells_with_atoms_on_borders():
    """On a lattice atoms lie on faces of the box and of cells, a little outside of them, and at the cutoff itself."""
    axis = torch.tensor([-1e-18, 1.0, 2.0, 4.0 - 1e-15], dtype=torch.float64)
    lattice = torch.cartesian_prod(axis[:3], axis[:3], axis)[None]
    box = torch.diag(torch.tensor([3.0, 3.0, 4.0], dtype=torch.float64))[None]
    for reach in (1.0, 1.0 + 1e-12):
        assert_same(flat(lattice, box, reach, "cell_list"), reference_list(lattice, box, reach), f"{reach}")


def test_grids_hold_all_and_are_not_too_fine(rng):
    """Cells at least as wide as the reach, no more of them than atoms, however far the atoms are apart."""
    for extent in ([0.0, 0.0, 0.0], [9.0, 0.0, 1e3], [1e200, 1.0, 1e200], [9.0, 8.0, 7.0], [1e200, 1e200, 1e200]):
        points = torch.rand(2, 40, 3, generator=rng, dtype=torch.float64) * torch.tensor(extent, dtype=torch.float64)
        n, low, per_length = cells.choose_grids(points.to(DEVICE), None, 1.0)
        assert (n >= 1).all() and (n.prod(1) <= 40).all()
        assert torch.equal(low.cpu(), points.amin(1))
        assert ((per_length.cpu() <= 1.0) | (n.cpu() == 1)).all()
    inverse, _, widths = inverse_boxes(10.5 * TRICLINIC[None].to(DEVICE))
    for n_atoms, most, least in ((1000, 1000, 600), (100, 100, 50)):
        n, _, _ = cells.choose_grids(torch.zeros(1, n_atoms, 3, dtype=torch.float64, device=DEVICE), inverse, 3.0)
        assert least <= int(n.prod()) <= most and (widths >= 3.0 * n).all()


def test_auto_takes_cells_for_many_atoms(rng, monkeypatch):
    taken = []
    for name in ("Pairs", "Cells"):
        kind = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, kind=kind, name=name: taken.append(name) or kind(*a))
    monkeypatch.setattr(importlib.import_module("diffmd_fast.ops.neighbor_list"), "CELLS_FROM_ON_GPU", 5)
    for n_atoms, reach, method in ((4, 1.0, "auto"), (5, 1.0, "auto"), (5, 1.0, "brute_force"), (5, math.inf, "auto")):
        flat(fluid(rng, 1, n_atoms), NO_BOX, reach, method)
    assert taken == ["Pairs", "Cells", "Pairs", "Pairs"]


def test_all_pairs(rng):
    for shape in ((3, 7), (2, 1)):
        positions = fluid(rng, *shape)
        assert_same(flat(positions, NO_BOX, math.inf), reference_list(positions, NO_BOX, math.inf))
    far = torch.tensor([[[0.0, 0, 0], [1e200, 0, 0]]], dtype=torch.float64)
    assert flat(far, NO_BOX, math.inf)[1].tolist() == [1, 0]


def test_pairs_at_the_cutoff_itself():
    """On a grid most distances are square roots of integers: near is what float64 says, the cutoff itself is not."""
    axis = torch.arange(3, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis)[None]
    for reach in (1.0, math.sqrt(2)):
        got = flat(grid, NO_BOX, reach)
        assert_same(got, reference_list(grid, NO_BOX, reach), f"{reach}")
    assert 0 < len(got[1]) < 27 * 26


def test_vectors_of_a_list_and_gradients(rng):
    """float32: vectors and distances from the search, from neighbor_vectors, and the native ones, bit for bit."""
    box = torch.diag(torch.tensor([2.5, 3.0, 4.7], dtype=torch.float64))
    positions = fluid(rng, 1, 24, box, spread=1.0, dtype=torch.float32)
    x = positions.to(DEVICE)
    options = dict(box=box.to(DEVICE), return_vectors=True, return_distances=True)
    got = on_triton(ops.neighbor_list, x, 0.9, **options)
    native = ops.neighbor_list(positions, 0.9, **dict(options, box=box))
    assert_same([t.cpu() for t in got[:4]], native)
    assert torch.equal(got.vectors.cpu(), native.vectors) and torch.equal(got.distances.cpu(), native.distances)
    x.requires_grad_()
    again = on_triton(ops.neighbor_list, x, 0.9, **options)
    assert torch.equal(again.vectors, got.vectors) and torch.equal(again.distances, got.distances)
    want = reference.neighbor_list(x, 0.9, **options)
    want64 = reference.neighbor_list(x.double(), 0.9, **options)
    for name in ("vectors", "distances"):
        assert_float64_rule(*(getattr(t, name).detach() for t in (again, want, want64)), name)
    weight = torch.randn(got.vectors.shape, generator=rng).to(DEVICE)
    grads = [torch.autograd.grad((n.vectors * weight).sum() + n.distances.square().sum(), x)[0] for n in (again, want)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5 * grads[1].abs().max().item())


def test_only_what_is_asked_for_and_opcheck(rng):
    positions = fluid(rng, 1, 6).to(DEVICE)
    with use_backend("triton"):
        for vectors, distances in ((False, True), (True, False), (False, False)):
            *_, along, apart = OPERATORS.neighbor_list_and_vectors(positions, NO_BOX.to(DEVICE), 1.5, "auto", vectors,
                                                                   distances)
            assert (len(along) > 0) == vectors and (len(apart) > 0) == distances
        lists = OPERATORS.neighbor_list(positions, NO_BOX.to(DEVICE), 1.5, "auto")
        torch.library.opcheck(OPERATORS.neighbor_vectors, (positions, NO_BOX.to(DEVICE), *lists[:3]),
                              test_utils=("test_schema", "test_faketensor"))
        wrong = lists[1].clone()
        wrong[0] = 6
        with pytest.raises(InputError, match="col: expected a neighbor list of these positions"):
            OPERATORS.neighbor_vectors(positions, NO_BOX.to(DEVICE), lists[0], wrong, lists[2])


def test_empty_and_strided(rng):
    for shape in ((0, 5, 3), (4, 0, 3)):
        got = flat(torch.zeros(shape), NO_BOX, 1.0)
        assert_same(got, reference_list(torch.zeros(shape), NO_BOX, 1.0))
    positions = fluid(rng, 8, 2).transpose(0, 1)
    assert_same(flat(positions, NO_BOX, 1.0), reference_list(positions.contiguous(), NO_BOX, 1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e12])
def test_positions_that_cannot_be_listed_are_named(rng, value):
    positions = fluid(rng, 2, 5).to(DEVICE)
    positions[1, 3, 2] = value
    box = 4 * torch.eye(3, dtype=torch.float64, device=DEVICE)
    with pytest.raises(InputError, match="positions: expected .* at replica 1, atom 3"):
        on_triton(ops.neighbor_list, positions, 1.0, box=box)
    for boxes in (box[None], NO_BOX.to(DEVICE)):
        if len(boxes) or not math.isfinite(value):
            with pytest.raises(InputError, match="positions: expected .* at replica 1, atom 3"):
                flat(positions, boxes, 1.0, "cell_list")
    if not math.isfinite(value):
        with pytest.raises(InputError, match="positions: expected finite values, got .* at replica 1, atom 3"):
            on_triton(ops.neighbor_list, positions, None)
