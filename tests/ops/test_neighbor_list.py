"""neighbor_list: the same list from every path, against the reference and independent searches; bad input."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import cKDTree

from diffmd_fast import _C, InputError, ops, reference, set_num_threads
from diffmd_fast.reference.neighbor_list import edge_vectors, inverse_boxes, neighbor_list_core

from .common import SIMD_LEVELS, assert_float64_rule, opcheck, simd_level

INF = math.inf
NO_BOX = torch.zeros(0, 3, 3, dtype=torch.float64)
TRICLINIC = torch.tensor([[3.0, 0.0, 0.0], [1.3, 2.8, 0.0], [-1.1, 0.9, 2.6]], dtype=torch.float64)
TURNED = torch.tensor([[0.5, 2.9, 0.4], [-3.0, 0.6, -0.7], [0.3, -1.0, 2.7]], dtype=torch.float64)  # full matrix
FIELDS = ("row_ptr", "col", "shift", "reverse")


def fluid(rng, n_replicas, n_atoms, box=None, spread=1.0, dtype=torch.float64):
    """Uniform atoms: in `spread` copies of the box to each side, or in a cube at 0.8 atoms per volume."""
    unit = torch.rand(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    if box is None:
        return (unit * (n_atoms / 0.8) ** (1 / 3)).to(dtype)
    return ((unit * 2 * spread - spread) @ box).to(dtype)


def flat(positions, box, reach, method="auto"):
    return torch.ops.diffmd_fast.neighbor_list(positions, box, reach, method)


def assert_same(got, want, what=""):
    for name, a, b in zip(FIELDS, got, want):
        assert a.dtype == b.dtype and torch.equal(a, b), f"{what}: {name} differs"


def pairs(neighbors):
    return list(zip(neighbors.rows().tolist(), neighbors.col.tolist(), map(tuple, neighbors.shift.tolist())))


def all_images(positions, box, reach):
    """Written once more, in numpy: every pair of one replica, every image up to two boxes away of wrapped atoms."""
    x, box = positions.double().numpy(), box.numpy()
    wraps = np.floor(x @ np.linalg.inv(box)).astype(int)
    y = x - wraps @ box
    found = {}
    for image in itertools.product(range(-2, 3), repeat=3):
        d = np.linalg.norm(y[None] + np.array(image) @ box - y[:, None], axis=2)
        for i, j in zip(*np.nonzero(d < reach)):
            if i != j:
                shift = tuple(int(s) for s in np.array(image) + wraps[i] - wraps[j])
                found[int(i), int(j), shift] = d[i, j]
    return found


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["brute_force", "cell_list"])
def test_open_systems_equal_reference(rng, level, dtype, method):
    cases = (((1, 1), 1.0), ((3, 2), 1.0), ((7, 22), 1.2), ((2, 300), 1.5), ((2, 300), 50.0), ((1, 700), 0.1))
    for shape, reach in cases:
        positions = fluid(rng, *shape, dtype=dtype)
        with simd_level(level):
            got = flat(positions, NO_BOX, reach, method)
        assert_same(got, neighbor_list_core(positions, NO_BOX, reach), f"{shape} {reach}")


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["brute_force", "cell_list"])
def test_periodic_systems_equal_reference(rng, level, dtype, method):
    orthorhombic = torch.diag(torch.tensor([2.5, 3.0, 4.7], dtype=torch.float64))
    for box in (orthorhombic, TRICLINIC, TURNED):
        for reach in (0.25, 0.6, 0.9, 1.1):  # many cells, four, two, one along an axis
            positions = fluid(rng, 2, 300, box, spread=3.0, dtype=dtype)
            boxes = torch.stack([box, 1.1 * box])
            with simd_level(level):
                got = flat(positions, boxes, reach, method)
            assert_same(got, neighbor_list_core(positions, boxes, reach), f"reach {reach}")


def test_all_pairs(rng):
    positions = fluid(rng, 5, 7)
    got = ops.neighbor_list(positions, None)
    assert_same(got, neighbor_list_core(positions, NO_BOX, INF))
    assert got.col.numel() == 5 * 7 * 6 and got.shift.shape == (0, 3)
    assert_same(got, reference.neighbor_list(positions, None))
    assert_same(ops.neighbor_list(positions, 1e9), got, "a cutoff beyond everything")
    far = torch.tensor([[[0.0, 0, 0], [1e200, 0, 0]]], dtype=torch.float64)
    assert ops.neighbor_list(far, None).col.tolist() == [1, 0]


@pytest.mark.parametrize("box", [TRICLINIC, TURNED, 3 * torch.eye(3, dtype=torch.float64)])
@pytest.mark.parametrize("n_atoms", [40, 210])
def test_against_all_images(rng, box, n_atoms):
    """Also for atoms up to four boxes away, where only the shift tells the right image."""
    positions = fluid(rng, 1, n_atoms, box, spread=4.0)
    got = ops.neighbor_list(positions, 0.9, box=box, skin=0.1, return_distances=True, return_vectors=True)
    want = all_images(positions[0], box, 1.0)
    assert min(abs(d - 1.0) for d in want.values()) > 1e-9, "a pair at the cutoff itself: choose another seed"
    assert pairs(got) == sorted(want)
    torch.testing.assert_close(got.distances.tolist(), [want[p] for p in pairs(got)], rtol=1e-12, atol=1e-12)
    x = positions[0]
    vectors = x[got.col.long()] + got.shift.double() @ box - x[got.rows()]
    torch.testing.assert_close(got.vectors, vectors, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.distances, vectors.norm(dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("box_length", [None, 9.0])
def test_against_kd_tree(rng, box_length):
    """An own fluid of 1,000 atoms, so that the cells are tested where ../shared is absent."""
    length = box_length or 9.0
    positions = torch.rand(1, 1000, 3, generator=rng, dtype=torch.float64) * length
    box = None if box_length is None else torch.full((3,), length)
    got = ops.neighbor_list(positions, 1.3, box=box)
    want = cKDTree(positions[0].numpy(), boxsize=box_length).query_pairs(1.3, output_type="ndarray")
    both = np.concatenate([want, want[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    assert np.array_equal(np.stack([got.rows().numpy(), got.col.numpy()], 1), both)


@pytest.mark.parametrize("n_atoms", [1000, 8000])
def test_pair_counts_of_the_lennard_jones_fluid(shared_data, n_atoms):
    """Exact pair counts of a k-d tree; float32 may decide a pair at the cutoff itself differently."""
    with np.load(shared_data / f"lj_fluid_n{n_atoms}.npz") as data:
        positions, length = torch.from_numpy(data["positions"][:3]), float(data["box_length"])
        cutoffs, counts = data["pair_cutoffs"], data["pair_counts"][:3]
    box = torch.full((3,), length, dtype=torch.float64)
    for k, cutoff in enumerate(cutoffs):
        row_ptr = ops.neighbor_list(positions, float(cutoff), box=box).row_ptr
        got = (row_ptr[n_atoms::n_atoms] - row_ptr[:-1:n_atoms]).numpy()
        assert np.abs(got - 2 * counts[:, k]).max() <= 4


def test_same_list_for_any_threads_and_levels(rng):
    positions = torch.cat([fluid(rng, 1, 1500, TURNED), fluid(rng, 1, 1500, TURNED, spread=2)])
    lists = []
    try:
        for threads, level, method in itertools.product((1, 2), SIMD_LEVELS, ("brute_force", "cell_list")):
            set_num_threads(threads)
            with simd_level(level):
                lists.append(flat(positions, TURNED[None], 0.5, method))
                lists.append(flat(positions.float().double(), TURNED[None], 0.5, method))
                lists.append(flat(positions.float(), TURNED[None], 0.5, method))
    finally:
        set_num_threads(None)
    assert lists[0][1].numel() > 10_000
    for k, other in enumerate(lists):
        assert_same(other, lists[0 if k % 3 == 0 else 1])  # float32 positions: the list of the same float64 ones


@pytest.mark.parametrize(("box", "cutoff", "shape"), [
    (TRICLINIC, 0.8, (3, 60)), (TURNED, 0.3, (1, 2000)), (None, 1.3, (4, 30)), (None, 0.9, (2, 900)),
    (None, None, (3, 9))])
def test_reverse_and_order(rng, box, cutoff, shape):
    positions = fluid(rng, *shape, box)
    got = ops.neighbor_list(positions, cutoff, box=box)
    row, edges = got.rows(), torch.arange(got.col.numel())
    assert len(edges) > 20
    assert torch.equal(got.reverse[got.reverse], edges)
    assert torch.equal(got.col.long()[got.reverse], row) and torch.equal(row[got.reverse], got.col.long())
    if box is not None:
        assert torch.equal(got.shift[got.reverse], -got.shift)
    assert (row // shape[1] == got.col // shape[1]).all() and (row != got.col).all()
    key = row * positions[..., 0].numel() + got.col
    assert (key[1:] > key[:-1]).all()


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, 7, 8, 9, 15, 16, 17, 22, 31, 32, 33, 48, 49, 63, 64, 65, 80, 129])
def test_every_number_of_registers(rng, level, dtype, n_atoms):
    """Molecules around the sizes where the native code takes one more register, full, half full and nearly empty."""
    positions = fluid(rng, 3, n_atoms, dtype=dtype)
    with simd_level(level):
        for reach in (0.6, 1.3, 1e3):
            got = torch.ops.diffmd_fast.neighbor_list_and_vectors(positions, NO_BOX, reach, "auto", True, True)
            assert_same(got, neighbor_list_core(positions, NO_BOX, reach), f"reach {reach}")
            vectors, distances = torch.ops.diffmd_fast.neighbor_vectors(positions, NO_BOX, *got[:3])
            assert torch.equal(got[4], vectors) and torch.equal(got[5], distances)


@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_pairs_at_the_cutoff_itself(level):
    """A lattice with thousands of pairs at exactly the cutoff, and one rounding to either side of it."""
    axis = torch.arange(8, dtype=torch.float32) * 0.25
    lattice = torch.cartesian_prod(axis, axis, axis)[None]
    open_space = torch.cat([lattice[:, :50], lattice[:, 50:100]])
    box = torch.full((3,), 2.0, dtype=torch.float64)
    with simd_level(level):
        for cutoff in (0.5, math.nextafter(0.5, 0), math.nextafter(0.5, 1), 1.0):
            for positions, boxes, method in ((lattice, torch.diag(box)[None], "cell_list"),
                                             (lattice + 0.125, torch.diag(box)[None], "brute_force"),
                                             (lattice, NO_BOX, "cell_list"), (open_space, NO_BOX, "brute_force")):
                assert_same(flat(positions, boxes, cutoff, method), neighbor_list_core(positions, boxes, cutoff))
    assert flat(lattice, NO_BOX, 0.5)[1].numel() < flat(lattice, NO_BOX, math.nextafter(0.5, 1))[1].numel()


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("box", [None, TRICLINIC, 6.0 * torch.eye(3, dtype=torch.float64)])
def test_long_rows(rng, level, box):
    """Rows of up to 700 atoms, crowded into few cells."""
    crowd = 0.35 * torch.randn(1, 700, 3, generator=rng, dtype=torch.float64)
    positions = torch.cat([crowd, fluid(rng, 1, 60, box)], dim=1)
    boxes = NO_BOX if box is None else box[None]
    with simd_level(level):
        got = flat(positions, boxes, 1.1, "cell_list")
    assert (got[0][1:] - got[0][:-1]).max() > 500
    assert_same(got, neighbor_list_core(positions, boxes, 1.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 5000), (7, 900), (300, 22)])
@pytest.mark.parametrize("box", [None, TRICLINIC])
def test_bitwise_for_any_threads(rng, dtype, shape, box):
    """One large replica is shared among threads: sorted, counted, filled, mirrored."""
    scale = None if box is None else box * (shape[1] / 20) ** (1 / 3)
    positions, results = fluid(rng, *shape, scale, dtype=dtype), []
    boxes = NO_BOX if scale is None else scale[None]
    try:
        for threads, level in itertools.product((1, 2, 3), SIMD_LEVELS):
            set_num_threads(threads)
            with simd_level(level):
                results.append(torch.ops.diffmd_fast.neighbor_list_and_vectors(
                    positions, boxes, 1.2, "auto", True, True))
    finally:
        set_num_threads(None)
    assert results[0][1].numel() > 10_000
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    edges = torch.arange(results[0][1].numel())
    assert torch.equal(results[0][3][results[0][3]], edges)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "box"), [
    ((3, 30), None), ((2, 500), None), ((3, 30), TRICLINIC), ((2, 400), TURNED)])
def test_distances_obey_the_float64_rule(rng, dtype, shape, box):
    """Whether the search or neighbor_vectors measures them, they are the same bits."""
    positions = fluid(rng, *shape, box, spread=2.0, dtype=dtype)
    boxes = NO_BOX if box is None else box[None]
    got = ops.neighbor_list(positions, 0.9, box=box, return_distances=True, return_vectors=True)
    with_gradient = ops.neighbor_list(positions.requires_grad_(), 0.9, box=box, return_distances=True,
                                      return_vectors=True)
    assert torch.equal(got.distances, with_gradient.distances) and torch.equal(got.vectors, with_gradient.vectors)
    positions = positions.detach()
    rows = (boxes, got.row_ptr, got.col, got.shift)
    for mine, plain, exact in zip((got.vectors, got.distances), edge_vectors(positions, *rows),
                                  edge_vectors(positions.double(), *rows)):
        assert_float64_rule(mine, plain, exact)


def test_only_what_is_asked_for(rng):
    for box, n_atoms in ((None, 20), (TRICLINIC, 20), (TRICLINIC, 300), (None, 450)):
        positions = fluid(rng, 2, n_atoms, box)
        for requires_grad in (False, True):
            whole = ops.neighbor_list(positions.requires_grad_(requires_grad), 0.9, box=box, return_distances=True,
                                      return_vectors=True)
            for what in ("distances", "vectors"):
                one = ops.neighbor_list(positions, 0.9, box=box, **{f"return_{what}": True})
                assert torch.equal(getattr(one, what), getattr(whole, what))
                assert getattr(one, "vectors" if what == "distances" else "distances") is None
                if requires_grad:
                    (gradient,) = torch.autograd.grad(getattr(one, what).sum(), positions)
                    (want,) = torch.autograd.grad(getattr(whole, what).sum(), positions, retain_graph=True)
                    torch.testing.assert_close(gradient, want)
            positions = positions.detach()


def test_boxes_are_inverted_as_in_the_reference(rng):
    boxes = torch.cat([torch.randn(500, 3, 3, generator=rng, dtype=torch.float64), TRICLINIC[None], TURNED[None]])
    inverse, volume, widths = inverse_boxes(boxes)
    native = torch.empty_like(boxes)
    for level in SIMD_LEVELS:
        with simd_level(level):
            bad, _ = _C.inverse_boxes(len(boxes), boxes.data_ptr(), native.data_ptr())
        assert torch.equal(native, inverse) and bad == int(torch.nonzero(volume <= 0)[0])
    right = boxes[volume > 0.1].contiguous()
    assert _C.inverse_boxes(len(right), right.data_ptr(), 0) == (-1, widths[volume > 0.1].min().item())


# Positions on a grid of 1/64 in a box of 4: every sum below is exact, so invariance holds to the last pair.
GRID = hnp.arrays(np.int64, st.tuples(st.integers(1, 40), st.just(3)), elements=st.integers(-512, 511))


@settings(max_examples=60, deadline=None)
@given(GRID, st.tuples(*[st.integers(-300, 300)] * 3),
       st.sampled_from([NO_BOX, 4 * torch.eye(3, dtype=torch.float64)[None]]),
       st.sampled_from(["brute_force", "cell_list"]), st.randoms(use_true_random=False))
def test_translation_and_permutation(grid, move, boxes, method, random):
    x = torch.from_numpy(grid).double()[None] / 64
    want = ops.NeighborList(*flat(x, boxes, 1.7, "brute_force"))
    moved = ops.NeighborList(*flat(x + torch.tensor(move) / 64, boxes, 1.7, method))
    assert_same(moved, want)  # the shift refers to the positions as they are, so it does not change either
    order = list(range(len(grid)))
    random.shuffle(order)
    other = ops.NeighborList(*flat(x[:, order], boxes, 1.7, method))
    renamed = sorted((order[i], order[j]) for i, j in zip(other.rows().tolist(), other.col.tolist()))
    assert renamed == list(zip(want.rows().tolist(), want.col.tolist()))


def test_half_the_box_is_allowed_and_unambiguous(rng):
    """At the limit a pair exactly half a box apart has two images at the cutoff; strict `<` lists neither."""
    box = torch.full((3,), 0.3, dtype=torch.float32)
    positions = torch.tensor([[[0.0, 0, 0], [0.15, 0, 0], [0.1, 0.0, 0.0]]])
    got = ops.neighbor_list(positions, 0.5 * float(box[0]), box=box)
    assert list(zip(got.rows().tolist(), got.col.tolist())) == [(0, 2), (1, 2), (2, 0), (2, 1)]
    for width in (0.3, 1.7, 21.544346900318832):
        positions = fluid(rng, 1, 40, width * torch.eye(3, dtype=torch.float64))
        ops.neighbor_list(positions, width / 2, box=[width] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("box", [None, TRICLINIC])
def test_distances_and_vectors_equal_reference(rng, dtype, box):
    positions = fluid(rng, 4, 50, box, spread=2.0, dtype=dtype)
    boxes = None if box is None else torch.stack([box * s for s in (1.0, 1.1, 1.2, 1.3)])
    arguments = dict(box=boxes, return_distances=True, return_vectors=True)
    got, want = (f(positions, 0.9, **arguments) for f in (ops.neighbor_list, reference.neighbor_list))
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    assert got.vectors.dtype == dtype and got.distances.numel() > 100
    torch.testing.assert_close(got.vectors, want.vectors, rtol=0, atol=tolerance)
    torch.testing.assert_close(got.distances, want.distances, rtol=0, atol=tolerance)
    bare = ops.neighbor_list(positions, 0.9, box=boxes)
    assert bare.distances is None and bare.vectors is None
    assert ops.neighbor_list(positions, 0.9, box=boxes, return_distances=True).vectors is None


@pytest.mark.parametrize("box", [None, TRICLINIC])
def test_gradients(rng, box):
    positions = fluid(rng, 2, 5, box, spread=1.0)
    positions.requires_grad_()

    def measure(x):
        neighbors = ops.neighbor_list(x, 1.15, box=box, return_distances=True, return_vectors=True)
        return neighbors.distances, neighbors.vectors

    assert measure(positions)[0].numel() >= 4
    assert torch.autograd.gradcheck(measure, positions)
    assert torch.autograd.gradgradcheck(measure, positions)


def test_gradient_at_zero_distance():
    positions = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    for operator in (ops.neighbor_list, reference.neighbor_list):
        distances = operator(positions, 1.0, return_distances=True).distances
        assert distances.tolist() == [0.0, 0.0]
        (gradient,) = torch.autograd.grad(distances.sum(), positions, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), positions, allow_unused=True)
        assert torch.equal(gradient, torch.zeros_like(gradient)) and (second is None or not second.any())


def test_opcheck(rng):
    for positions, boxes, reach in ((fluid(rng, 3, 6), NO_BOX, INF), (fluid(rng, 2, 30, TURNED), TURNED[None], 0.5)):
        opcheck(torch.ops.diffmd_fast.neighbor_list, (positions, boxes, reach, "auto"))
        row_ptr, col, shift, _ = flat(positions, boxes, reach)
        opcheck(torch.ops.diffmd_fast.neighbor_list_and_vectors, (positions, boxes, reach, "auto", True, False))
        opcheck(torch.ops.diffmd_fast.neighbor_vectors, (positions.requires_grad_(), boxes, row_ptr, col, shift))
        opcheck(torch.ops.diffmd_fast.neighbor_vectors, (positions, boxes, row_ptr, col, shift, False, True))


def test_empty_and_strided(rng):
    for shape in ((0, 4), (3, 0), (0, 0), (3, 1)):
        for cutoff, box in ((None, None), (1.0, None), (1.0, TRICLINIC)):
            for operator in (ops.neighbor_list, reference.neighbor_list):
                got = operator(torch.zeros(*shape, 3), cutoff, box=box, return_distances=True, return_vectors=True)
                assert got.row_ptr.tolist() == [0] * (shape[0] * shape[1] + 1)
                assert got.col.shape == got.reverse.shape == got.distances.shape == (0,)
                assert got.shift.shape == got.vectors.shape == (0, 3)
    positions = fluid(rng, 3, 40)
    strided = positions.repeat(1, 2, 1)[:, ::2]
    assert_same(ops.neighbor_list(strided, 1.0), ops.neighbor_list(strided.contiguous(), 1.0))


def test_absurd_spread_needs_no_memory(rng):
    """The number of cells is bounded by the number of atoms, wherever these are."""
    near = fluid(rng, 1, 500)
    for far in (1e30, -1e30, 3e38):
        positions = torch.cat([near, torch.tensor([[[far, 0.0, 1.0], [far, 0.5, 1.0]]])], dim=1)
        got = flat(positions, NO_BOX, 1.0, "cell_list")
        assert_same(got, flat(positions, NO_BOX, 1.0, "brute_force"))
        assert got[1][-2:].tolist() == [501, 500]
    huge = near.clone()
    huge[0, 0], huge[0, 1] = 1.7e308, -1.7e308
    assert_same(flat(huge, NO_BOX, 1.0, "cell_list"), flat(huge, NO_BOX, 1.0, "brute_force"))
    for reach in (1e-300, 1e300):
        assert_same(flat(near, NO_BOX, reach, "cell_list"), neighbor_list_core(near, NO_BOX, reach))


def spoiled(value, replica=1, atom=2):
    positions = torch.rand(2, 4, 3, dtype=torch.float64)
    positions[replica, atom, 1] = value
    return positions


BAD = [
    ("positions", dict(positions=torch.zeros(3, 3))),
    ("positions", dict(positions=torch.zeros(2, 3, 2))),
    ("positions", dict(positions=torch.zeros(2, 3, 3, dtype=torch.float16))),
    ("positions", dict(positions=np.zeros((2, 3, 3)))),
    ("positions", dict(positions=spoiled(float("nan")))),
    ("positions", dict(positions=spoiled(float("inf")))),
    ("positions", dict(positions=spoiled(float("nan")), box=None)),
    ("positions", dict(positions=spoiled(float("-inf")), cutoff=None, box=None)),
    ("positions", dict(positions=spoiled(1e15))),
    ("positions", dict(positions=spoiled(-1e300))),
    ("cutoff", dict(cutoff=0.0)),
    ("cutoff", dict(cutoff=-1.0)),
    ("cutoff", dict(cutoff=float("nan"))),
    ("cutoff", dict(cutoff=float("inf"))),
    ("cutoff", dict(cutoff="1 nm")),
    ("cutoff", dict(cutoff=1.51)),
    ("cutoff", dict(cutoff=1.3, box=TRICLINIC)),
    ("cutoff", dict(cutoff=1.2, skin=0.31)),
    ("skin", dict(skin=-0.1)),
    ("skin", dict(skin=float("nan"))),
    ("skin", dict(skin=0.1, cutoff=None, box=None)),
    ("skin", dict(cutoff=1.5e308, skin=1.5e308, box=None)),
    ("box", dict(cutoff=None)),
    ("box", dict(box=torch.zeros(2))),
    ("box", dict(box=torch.eye(3).expand(3, 3, 3))),
    ("box", dict(box="cubic")),
    ("box", dict(box=torch.tensor([3.0, 0.0, 3.0]))),
    ("box", dict(box=torch.tensor([3.0, -3.0, 3.0]))),
    ("box", dict(box=torch.tensor([3.0, float("nan"), 3.0]))),
    ("box", dict(box=torch.tensor([3.0, float("inf"), 3.0]))),
    ("box", dict(box=TRICLINIC[[1, 0, 2]])),
    ("box", dict(box=torch.tensor([[3.0, 0, 0], [3.0, 1e-9, 0], [0, 0, 3.0]]))),
    ("box", dict(box=torch.ones(3, requires_grad=True))),
    ("box", dict(box=torch.full((3,), 3.0, device="meta"))),
]


@pytest.mark.parametrize("operator", [ops.neighbor_list, reference.neighbor_list])
@pytest.mark.parametrize(("argument", "change"), BAD)
def test_bad_input_is_one_clear_error(operator, argument, change):
    arguments = dict(positions=torch.rand(2, 4, 3, dtype=torch.float64), cutoff=1.0, box=torch.full((3,), 3.0))
    with pytest.raises(InputError) as error:
        operator(**{**arguments, **change})
    message = str(error.value)
    assert message.startswith(argument + ":") and "\n" not in message
    if argument == "positions" and "positions" in change and tuple(change["positions"].shape) == (2, 4, 3):
        assert "replica 1, atom 2" in message


def test_all_pairs_have_a_shape_without_values():
    got = ops.neighbor_list(torch.zeros(3, 5, 3, device="meta"), None)
    assert got.row_ptr.shape == (16,) and got.col.shape == got.reverse.shape == (60,) and got.shift.shape == (0, 3)


def test_cutoff_message_has_the_numbers():
    with pytest.raises(InputError, match=r"^cutoff: .*1\.5 nm.*1\.2 \+ 0\.4 = 1\.6 nm"):
        ops.neighbor_list(torch.zeros(1, 2, 3), 1.2, skin=0.4, box=[3.0, 4.0, 5.0])


def test_flat_operators_stay_inside_memory():
    """Callers of torch.ops.diffmd_fast.* have not met the checks of ops.neighbor_list."""
    x = torch.rand(1, 4, 3)
    with pytest.raises(InputError, match="^reach"):
        flat(x, NO_BOX, float("nan"))
    with pytest.raises(InputError, match="^box"):
        flat(x, NO_BOX.float(), 1.0)
    with pytest.raises(InputError, match="^method"):
        flat(x, NO_BOX, 1.0, "magic")
    for box in (torch.zeros(1, 3, 3), torch.full((1, 3, 3), float("nan")), -torch.eye(3)[None] * 3):
        with pytest.raises(InputError, match="^box: .*right-handed"):
            flat(x, box.double(), 1.0)
    with pytest.raises(InputError, match="^reach: .*1.5 nm.*1.6"):
        flat(x, 3 * torch.eye(3, dtype=torch.float64)[None], 1.6)
    row_ptr, col, shift, _ = flat(x, NO_BOX, INF)
    vectors = torch.ops.diffmd_fast.neighbor_vectors
    short = row_ptr.clone()
    short[-1] -= 1
    late = row_ptr.clone()
    late[0] += 1
    for bad_ptr, bad_col in ((row_ptr, col + 1), (row_ptr, col - 1), (row_ptr + 1, col), (-row_ptr, col),
                             (short, col), (late, col)):
        with pytest.raises(InputError, match="^col"):
            vectors(x, NO_BOX, bad_ptr, bad_col, shift)
    with pytest.raises(InputError, match="^box: .*without gradient"):
        vectors(x, TRICLINIC[None].clone().requires_grad_(), row_ptr, col, torch.zeros(12, 3, dtype=torch.int32))
    torch.testing.assert_close(vectors(x, NO_BOX, row_ptr, col, shift), edge_vectors(x, NO_BOX, row_ptr, col, shift))
