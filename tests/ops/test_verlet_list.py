"""VerletList: never a pair missing, whatever moves; only what moved is listed anew; bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmd_fast import InputError, ops, set_num_threads, use_backend
from diffmd_fast.ops.verlet_list import _largest_moves, _splice
from diffmd_fast.reference import verlet_list as reference

from .common import SIMD_LEVELS, simd_level

CUBE = 3.0 * torch.eye(3, dtype=torch.float64)
TRICLINIC = torch.tensor([[3.0, 0.0, 0.0], [1.3, 2.8, 0.0], [-1.1, 0.9, 2.6]], dtype=torch.float64)
FIELDS = ("row_ptr", "col", "shift", "reverse")


def edges(neighbors, distances=None, below=None):
    """The set of (row, col, shift), of the edges nearer than ``below`` only where that is given."""
    kept = slice(None) if below is None else distances < below
    shift = neighbors.shift if len(neighbors.shift) else torch.zeros(neighbors.col.numel(), 3, dtype=torch.int32)
    table = torch.cat([neighbors.rows()[:, None], neighbors.col[:, None].long(), shift.long()], 1)[kept]
    return set(map(tuple, table.tolist()))


def assert_complete(verlet, positions, box=None):
    """The list's edges within the cutoff, at its own distances, are those of a list made now."""
    got = verlet.update(positions, box, return_distances=True)
    want = ops.neighbor_list(positions, verlet.cutoff, box=box, return_distances=True)
    assert edges(got, got.distances, verlet.cutoff - 1e-12) <= edges(want)
    missing = edges(want, want.distances, verlet.cutoff - 1e-12) - edges(got)
    assert not missing, f"{len(missing)} pairs are missing, such as {next(iter(missing))}"
    return got


def walk(rng, n_replicas, n_atoms, box=None):
    start = torch.rand(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    return start @ box if box is not None else start * (n_atoms / 40) ** (1 / 3)


@pytest.mark.parametrize("box", [None, CUBE, TRICLINIC])
def test_random_walk_reuses_and_misses_nothing(rng, box):
    positions, verlet = walk(rng, 3, 80, box), ops.VerletList(0.6, 0.25)
    for _ in range(60):
        assert_complete(verlet, positions, box)
        positions = positions + 0.01 * torch.randn(positions.shape, generator=rng, dtype=torch.float64)
    assert verlet.n_updates == 60 and 3 < verlet.n_builds < 60


def test_atoms_that_cross_the_box_keep_their_shifts(rng):
    """A drift through two boxes in steps that need no new list until half the skin is used up."""
    positions, verlet = walk(rng, 1, 60, CUBE), ops.VerletList(0.6, 0.4)
    for _ in range(80):
        assert_complete(verlet, positions, CUBE)
        positions = positions + torch.tensor([0.08, 0.05, -0.02])
    assert 10 < verlet.n_builds < 50
    wrapped = positions - torch.floor(positions / 3.0) * 3.0  # looks like a jump: listed anew, nothing missing
    before = verlet.n_builds
    assert_complete(verlet, wrapped, CUBE)
    assert verlet.n_builds == before + 1


@pytest.mark.parametrize("box", [CUBE, TRICLINIC])
@pytest.mark.parametrize("strain", ["compress", "expand", "shear", "per replica"])
def test_changing_box(rng, box, strain):
    fraction = torch.rand(2, 80, 3, generator=rng, dtype=torch.float64)
    verlet = ops.VerletList(0.6, 0.3)
    for step in range(25):
        change = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
        if strain == "compress":
            change *= 1 - 0.008 * step
        elif strain == "expand":
            change *= 1 + 0.02 * step
        else:
            change[:, 1, 0] = 0.02 * step
        if strain == "per replica":
            change[1] = torch.eye(3) * (1 - 0.004 * step)
        boxes = box @ change
        positions = fraction @ boxes
        shared = strain in ("compress", "expand", "shear")
        assert_complete(verlet, positions, boxes[0] if shared else boxes)
        fraction = fraction + 0.001 * torch.randn(fraction.shape, generator=rng, dtype=torch.float64)
    assert verlet.n_builds < 40


def test_a_box_alone_can_break_a_list():
    """Two atoms just outside of cutoff + skin come within the cutoff because the box shrinks around them."""
    fraction = torch.tensor([[[0.1, 0.1, 0.1], [0.1 + 0.81 / 3, 0.1, 0.1]]], dtype=torch.float64)
    verlet = ops.VerletList(0.6, 0.2)
    assert verlet.update(fraction @ CUBE, CUBE).col.numel() == 0
    assert verlet.update(fraction @ (0.73 * CUBE), 0.73 * CUBE).col.numel() == 2
    assert verlet.n_builds == 2


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, CUBE, TRICLINIC]), st.floats(0.01, 0.5), st.floats(0.001, 0.3),
       st.floats(-0.06, 0.06), st.floats(-0.2, 0.2), st.sampled_from([torch.float32, torch.float64]))
def test_no_pair_is_ever_missing(seed, box, skin, step, squeeze, shear, dtype):
    rng = torch.Generator().manual_seed(seed)
    positions, verlet = walk(rng, 2, 40, box), ops.VerletList(0.5, skin)
    for k in range(6):
        now = None
        if box is not None:
            change = torch.eye(3, dtype=torch.float64) * (1 + squeeze * k / 5)
            change[2, 0] = shear * k / 5
            now = box @ change
        moved = positions if now is None else positions @ torch.linalg.inv(box) @ now
        assert_complete(verlet, moved.to(dtype), now)
        positions = positions + step * torch.rand(2, 1, 1, generator=rng) * torch.randn(
            positions.shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("box", [None, TRICLINIC, "each"])
def test_only_replicas_that_moved_are_listed_anew(rng, box):
    boxes = torch.stack([TRICLINIC * s for s in (1.0, 1.1, 1.2, 1.05)]) if isinstance(box, str) else box
    positions = walk(rng, 4, 50, TRICLINIC)
    verlet = ops.VerletList(0.6, 0.3)
    verlet.update(positions, boxes)
    moved = positions.clone()
    moved[1] += torch.rand(50, 3, generator=rng) * 0.5
    moved[3, 7] += 0.31
    moved[0] += 0.001
    got = verlet.update(moved, boxes)
    assert verlet.n_builds == 4 + 2
    mixed = torch.stack([positions[0], moved[1], positions[2], moved[3]])
    want = ops.neighbor_list(mixed, 0.6, box=boxes, skin=0.3)
    for name in FIELDS:
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    assert_complete(verlet, moved, boxes)
    with use_backend("reference"):
        plain = ops.VerletList(0.6, 0.3)
        plain.update(positions, boxes)
        again = plain.update(moved, boxes)
    assert plain.n_builds == 6
    assert all(torch.equal(getattr(again, name), getattr(got, name)) for name in FIELDS)


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_parts_equal_reference(rng, level, dtype):
    x0 = torch.rand(3, 9000, 3, generator=rng, dtype=torch.float64).to(dtype)
    x = x0 + 0.1 * torch.randn(x0.shape, generator=rng, dtype=torch.float64).to(dtype)
    transform = torch.eye(3, dtype=torch.float64) + 0.1 * torch.rand(3, 3, 3, generator=rng, dtype=torch.float64)
    with simd_level(level):
        for a in (None, transform):
            for n in (1, 2, 9000):
                got = [None, None]
                for threads in (1, 2):
                    set_num_threads(threads)
                    try:
                        got[threads - 1] = _largest_moves(x[:, :n], x0[:, :n].contiguous(), a)
                    finally:
                        set_num_threads(None)
                assert torch.equal(*got)
                want = reference.largest_moves(x[:, :n], x0[:, :n], a)
                assert (got[0] >= want * (1 - 1e-15)).all()
                torch.testing.assert_close(got[0], want, rtol=1e-12, atol=1e-12)
        x[1, 5000, 2] = torch.nan
        assert torch.isnan(_largest_moves(x, x0, transform)).tolist() == [False, True, False]
        kept = ops.neighbor_list(x0[:, :70], 0.2)
        fresh = ops.neighbor_list(x0[1:, 70:140].contiguous(), 0.2)
        for source in ([-1, 1, 0], [1, -1, -1], [-1, -1, -1], [0, 0, 1]):
            source = torch.tensor(source)
            for a, b in zip(_splice(kept, fresh, source, 70), reference.splice(kept, fresh, source, 70)):
                assert a is b is None or (a.dtype == b.dtype and torch.equal(a, b))


def test_distances_are_of_now_and_differentiable(rng):
    positions, verlet = walk(rng, 2, 12, CUBE), ops.VerletList(0.8, 0.3)
    verlet.update(positions, CUBE)
    moved = (positions + 0.01).requires_grad_()

    def measure(x):
        neighbors = verlet.update(x, CUBE, return_distances=True, return_vectors=True)
        return neighbors.distances, neighbors.vectors

    fresh = ops.neighbor_list(positions, 0.8, box=CUBE, skin=0.3, return_distances=True)
    torch.testing.assert_close(measure(moved)[0].detach(), fresh.distances)
    assert torch.autograd.gradcheck(measure, moved)
    assert verlet.n_builds == 2
    only = verlet.update(moved, CUBE, return_vectors=True)
    assert only.distances is None and only.vectors is not None and verlet.update(moved, CUBE).vectors is None


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 1), (1, 1)])
def test_empty_and_single_atoms(shape):
    for box in (None, CUBE):
        verlet = ops.VerletList(0.5, 0.1)
        for k in range(4):
            got = verlet.update(torch.full((*shape, 3), 0.2 * k), box, return_distances=True)
            assert got.row_ptr.tolist() == [0] * (shape[0] * shape[1] + 1) and got.col.numel() == 0


def test_bad_input_leaves_the_list_alone(rng):
    positions = walk(rng, 3, 40, CUBE)
    verlet = ops.VerletList(0.6, 0.2)
    for argument, wrong in (("cutoff", (0.0, 0.1)), ("cutoff", (np.inf, 0.1)), ("skin", (0.5, 0.0)),
                            ("skin", (0.5, float("nan"))), ("skin", (0.5, "thin"))):
        with pytest.raises(InputError, match=f"^{argument}: "):
            ops.VerletList(*wrong)
    with pytest.raises(InputError, match="^cutoff: .*0.6 \\+ 0.2"):
        verlet.update(positions, 0.5 * CUBE)
    kept = verlet.update(positions, CUBE)
    spoiled = positions.clone()
    spoiled[2, 3, 1] = torch.nan
    jumped = positions.clone()
    jumped[1, 2, 0] = 1e15
    for argument, arguments in (
            ("positions: .*replica 2, atom 3", (spoiled, CUBE)), ("positions: .*replica 1, atom 2", (jumped, CUBE)),
            ("positions", (positions[:2], CUBE)), ("positions", (positions[:, :9], CUBE)),
            ("positions", (positions.float(), CUBE)), ("positions", (positions.to("meta"), CUBE.to("meta"))),
            ("positions", (positions[0], CUBE)), ("box", (positions, None)), ("box", (positions, -CUBE)),
            ("cutoff", (positions, 0.3 * CUBE)), ("box", (positions, torch.ones(2)))):
        with pytest.raises(InputError, match=f"^{argument}") as error:
            verlet.update(*arguments)
        assert "\n" not in str(error.value)
    assert verlet.n_builds == 3 and verlet.n_updates == 1
    assert verlet.update(positions, CUBE)[0] is kept[0]
    verlet.reset()
    assert verlet.update(positions[:2, :9].float()).row_ptr.numel() == 19 and verlet.n_builds == 5
