"""spline_conv: value, backward, double backward against the reference, autograd and scipy; bad input."""

from unittest import mock

import numpy as np
import pytest
import torch

from diffmd_fast import InputError, UnavailableError, ops, reference, set_num_threads, use_backend
from diffmd_fast.ops import NeighborList

from .common import SIMD_LEVELS, assert_float64_rule, opcheck, simd_level

CUTOFF = 1.0


def symmetric_list(n_nodes: int, pairs) -> NeighborList:
    """A full list from pairs (i, j), i < j, written here apart from ops.neighbor_list."""
    edges = sorted({(i, j) for i, j in pairs} | {(j, i) for i, j in pairs})
    counts = np.bincount([i for i, _ in edges], minlength=n_nodes)
    place = {edge: e for e, edge in enumerate(edges)}
    return NeighborList(torch.tensor([0, *np.cumsum(counts)]),
                        torch.tensor([j for _, j in edges], dtype=torch.int32),
                        torch.zeros(0, 3, dtype=torch.int32),
                        torch.tensor([place[j, i] for i, j in edges], dtype=torch.int64), None, None)


def make(rng, n_replicas=2, n_atoms=5, n_features=6, n_knots=12, dtype=torch.float64, sparse=1.0):
    """Features, positions, coefficients and a random list; atoms are spread about as wide as the cutoff."""
    h = torch.randn(n_replicas, n_atoms, n_features, generator=rng, dtype=torch.float64)
    x = 0.4 * torch.randn(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    c = torch.randn(n_knots, n_features, generator=rng, dtype=torch.float64)
    keep = torch.rand(n_replicas, n_atoms, n_atoms, generator=rng) < sparse
    pairs = [(r * n_atoms + i, r * n_atoms + j) for r in range(n_replicas) for i in range(n_atoms)
             for j in range(i + 1, n_atoms) if keep[r, i, j]]
    return h.to(dtype), x.to(dtype), c.to(dtype), symmetric_list(n_replicas * n_atoms, pairs)


def everything(operator, h, x, c, neighbors, seed=3, box=None):
    """Value, all first derivatives and all derivatives of a random combination of those."""
    draw = torch.Generator().manual_seed(seed)
    h, x, c = (t.detach().clone().requires_grad_() for t in (h, x, c))

    def like(t):
        return torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t.dtype)

    value = operator(h, x, c, neighbors, CUTOFF, box)
    g = like(value).requires_grad_()
    first = torch.autograd.grad(value, (h, x, c), g, create_graph=True)
    second = torch.autograd.grad(first, (g, h, x, c), [like(t) for t in first])
    names = ("m", "grad_h", "grad_x", "grad_C", "d_g", "d_h", "d_x", "d_C")
    return dict(zip(names, (value.detach(), *(t.detach() for t in first), *second)))


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize(("n_features", "n_knots"), [(1, 4), (3, 7), (17, 30), (32, 20), (64, 100), (128, 9)])
def test_native_float64_equals_reference(rng, level, n_features, n_knots):
    arguments = make(rng, 3, 9, n_features, n_knots, sparse=0.7)
    want = everything(reference.spline_conv, *arguments)
    with simd_level(level):
        got = everything(ops.spline_conv, *arguments)
    for name in want:
        scale = want[name].abs().max().item()
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-13 * scale,
                                   msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("n_features", [20, 64])
def test_float32_within_twice_the_reference_error(rng, level, n_features):
    h, x, c, neighbors = make(rng, 16, 12, n_features, 100, dtype=torch.float32)
    want64 = everything(reference.spline_conv, h.double(), x.double(), c.double(), neighbors)
    want32 = everything(reference.spline_conv, h, x, c, neighbors)
    with simd_level(level):
        got = everything(ops.spline_conv, h, x, c, neighbors)
    for name in got:
        assert_float64_rule(got[name], want32[name], want64[name], name)


def test_filter_is_scipys_spline():
    """One pair at a known distance shows W(r); B_k is the cubic B-spline on knots (k-3)h .. (k+1)h."""
    interpolate = pytest.importorskip("scipy.interpolate")
    n_knots, n_features = 23, 2
    c = torch.randn(n_knots, n_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spacing = CUTOFF / (n_knots - 3)
    spline = interpolate.BSpline(np.arange(-3, n_knots + 1) * spacing, c.numpy(), 3)
    r = torch.linspace(0, CUTOFF * (1 - 1e-12), 401, dtype=torch.float64)
    x = torch.zeros(401, 2, 3, dtype=torch.float64)
    x[:, 1, 1] = r
    neighbors = symmetric_list(802, [(2 * i, 2 * i + 1) for i in range(401)])
    for operator in (ops.spline_conv, reference.spline_conv):
        m = operator(torch.ones(401, 2, n_features, dtype=torch.float64), x, c, neighbors, CUTOFF)
        np.testing.assert_allclose(m[:, 0], spline(r.numpy()), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(m[:, 0], m[:, 1], rtol=0, atol=0)


@pytest.mark.parametrize("box", [None, [1.3, 1.4, 1.5], [[1.4, 0, 0], [0.2, 1.5, 0], [0.1, 0.3, 1.3]]])
def test_gradcheck_and_gradgradcheck(rng, box):
    h, x, c, neighbors = make(rng, 2, 4, 3, 8)
    cutoff = CUTOFF
    if box is not None:
        cutoff, x = 0.6, x + 0.5
        box = torch.tensor(box, dtype=torch.float64)
        neighbors = ops.neighbor_list(x, cutoff, box=box)
        assert neighbors.shift.any()
    inputs = tuple(t.requires_grad_() for t in (h, x, c))

    def run(*args):
        return ops.spline_conv(*args, neighbors, cutoff, box)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_one_box_per_replica(rng):
    h, x, c, _ = make(rng, 2, 6, 5, 9)
    boxes = torch.diag_embed(torch.tensor([[2.1, 2.2, 2.3], [2.6, 2.4, 2.5]]))
    neighbors = ops.neighbor_list(x, CUTOFF, box=boxes)
    whole = ops.spline_conv(h, x, c, neighbors, CUTOFF, boxes)
    for r in range(2):
        lengths = boxes[r].diagonal().tolist()
        alone = ops.neighbor_list(x[r:r + 1], CUTOFF, box=lengths)
        part = ops.spline_conv(h[r:r + 1], x[r:r + 1], c, alone, CUTOFF, lengths)
        torch.testing.assert_close(whole[r:r + 1], part, rtol=1e-13, atol=1e-13)
    moved = x + torch.stack([boxes[0, 0], boxes[1, 2]])[:, None]
    again = ops.spline_conv(h, moved, c, ops.neighbor_list(moved, CUTOFF, box=boxes), CUTOFF, boxes)
    torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-6)


def test_bitwise_the_same_for_any_number_of_threads(rng):
    arguments = make(rng, 64, 10, 64, 50, dtype=torch.float32)
    runs = []
    try:
        for n in (1, 2, 3, 2):
            set_num_threads(n)
            runs.append(everything(ops.spline_conv, *arguments))
    finally:
        set_num_threads(None)
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_atoms_may_be_listed_in_any_order(rng):
    h, x, c, neighbors = make(rng, 1, 9, 8, 20, sparse=0.6)
    order = torch.randperm(9, generator=rng)
    place = torch.argsort(order).tolist()
    rows = torch.repeat_interleave(torch.arange(9), neighbors.row_ptr.diff()).tolist()
    pairs = [tuple(sorted((place[i], place[j]))) for i, j in zip(rows, neighbors.col.tolist())]
    a = everything(ops.spline_conv, h, x, c, neighbors)
    b = everything(ops.spline_conv, h[:, order], x[:, order], c, symmetric_list(9, pairs))
    torch.testing.assert_close(b["m"], a["m"][:, order], rtol=1e-12, atol=1e-12)


def test_atoms_in_one_place_and_beyond_the_cutoff():
    x = torch.zeros(1, 5, 3, dtype=torch.float64)
    x[0, 2, 0], x[0, 3, 0], x[0, 4, 0] = CUTOFF, -1.5 * CUTOFF, 0.3
    h = torch.arange(1.0, 6, dtype=torch.float64).reshape(1, 5, 1).repeat(1, 1, 2)
    c = torch.full((8, 2), 7.0, dtype=torch.float64)  # a constant filter, not zero at the cutoff
    neighbors = symmetric_list(5, [(0, 1), (0, 2), (0, 3)])
    got, want = (everything(o, h, x, c, neighbors) for o in (ops.spline_conv, reference.spline_conv))
    torch.testing.assert_close(got["m"][0, :, 0], torch.tensor([14.0, 7, 0, 0, 0], dtype=torch.float64))
    assert not got["grad_x"].any() and not got["d_x"].any()
    for name in got:
        assert got[name].isfinite().all()
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-12)


def test_only_what_is_asked_for_is_computed(rng):
    """A score asks for positions alone: the gradient of the coefficients must not be worked out for it."""
    h, x, c, neighbors = make(rng, 2, 5, 4, 9)
    asked = []
    real = torch.ops.diffmd_fast.spline_conv_backward

    def spy(*args):
        asked.append(args[-3:])
        return real(*args)

    for t in (h, x, c):
        t.requires_grad_()
    energy = ops.spline_conv(2 * h, 1 * x, 3 * c, neighbors, CUTOFF).square().sum()
    want = torch.autograd.grad(energy, (h, x, c), retain_graph=True)
    with mock.patch.object(torch.ops.diffmd_fast, "spline_conv_backward", spy):
        for i, t in enumerate((h, x, c)):
            torch.testing.assert_close(torch.autograd.grad(energy, t, retain_graph=True)[0], want[i])
            assert asked[-1] == tuple(k == i for k in range(3))
    frozen = ops.spline_conv(h.detach(), x, c.detach(), neighbors, CUTOFF).sum()
    assert torch.autograd.grad(frozen, x)[0].shape == x.shape


@pytest.mark.parametrize("frozen", ["h", "x", "c", "hc", "xc"])
def test_training_step_equals_reference(rng, frozen):
    """The loss of a score: undefined cotangents and inputs without gradient take their own ways."""
    h, x, c, neighbors = make(rng, 2, 6, 32, 20)
    w = torch.randn(h.shape, generator=rng, dtype=torch.float64)

    def gradients(backend):
        leaves = {name: t.detach().clone() for name, t in (("h", h), ("x", x), ("c", c))}
        for name, t in leaves.items():
            t.requires_grad_(name not in frozen or name == "x")
        with use_backend(backend):
            m = ops.spline_conv(leaves["h"], leaves["x"], leaves["c"], neighbors, CUTOFF)
            m = ops.spline_conv(torch.tanh(m), leaves["x"], leaves["c"], neighbors, CUTOFF)
            (s,) = torch.autograd.grad((m * w).sum(), leaves["x"], create_graph=True)
            s.square().mean().backward()
        return [t.grad for t in leaves.values() if t.requires_grad]

    for a, b in zip(gradients("native"), gradients("reference")):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_third_derivative_is_refused_by_name(rng):
    h, x, c, neighbors = make(rng)
    x.requires_grad_()
    value = ops.spline_conv(h, x, c, neighbors, CUTOFF).square().sum()
    for _ in range(2):
        value = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
    with pytest.raises(UnavailableError, match="spline_conv_double_backward"):
        torch.autograd.grad(value, x)
    value = reference.spline_conv(h, x, c, neighbors, CUTOFF).square().sum()
    for _ in range(3):
        value = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
    assert value.isfinite()


def test_opcheck(rng):
    h, x, c, neighbors = make(rng, dtype=torch.float32)
    graph = (h.reshape(10, -1), x.reshape(10, 3), c, neighbors.row_ptr, neighbors.col, torch.empty(0, 3))
    learned = tuple(t.requires_grad_() if t.dtype.is_floating_point and t.numel() else t for t in graph)
    g = torch.randn(graph[0].shape, generator=rng)
    opcheck(torch.ops.diffmd_fast.spline_conv, (*learned, CUTOFF))
    for wanted in ((True, True, True), (False, True, False)):
        grad = g.clone().requires_grad_()
        opcheck(torch.ops.diffmd_fast.spline_conv_backward, (grad, *learned, CUTOFF, *wanted))
    plain = tuple(t.detach() for t in graph)
    for along in ((g, plain[1], plain[2]), (None, plain[1], None)):
        for wanted in ((True, True), (False, False)):
            opcheck(torch.ops.diffmd_fast.spline_conv_double_backward, (*along, g, *plain, CUTOFF, *wanted))


def test_empty_and_non_contiguous(rng):
    h, x, c, neighbors = make(rng, 3, 4, 5, 9, sparse=0.3)
    want = everything(ops.spline_conv, h, x, c, neighbors)
    wide = [t.repeat_interleave(2, dim=-1)[..., ::2] for t in (h, x, c)]
    assert not any(t.is_contiguous() for t in wide)
    got = ops.spline_conv(*wide, neighbors, CUTOFF)
    assert torch.equal(got, want["m"])
    alone = everything(ops.spline_conv, h, x, c, symmetric_list(12, []))
    assert not any(t.any() for t in alone.values())
    nothing = everything(ops.spline_conv, h[:0], x[:0], c, symmetric_list(0, []))
    assert nothing["m"].shape == (0, 4, 5) and not nothing["grad_C"].any()
    meta = NeighborList(*(t if t is None else t.to("meta") for t in neighbors))
    assert ops.spline_conv(*(t.to("meta") for t in (h, x, c)), meta, CUTOFF).shape == h.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_a_number_stays_and_touches_its_neighbors_only(rng, dtype):
    h, x, c, neighbors = make(rng, 3, 5, 7, 12, dtype=dtype)
    x[1, 2, 1] = float("nan")
    got, want = (everything(o, h, x, c, neighbors) for o in (ops.spline_conv, reference.spline_conv))
    assert got["m"][1].isnan().all() and got["m"][[0, 2]].isfinite().all()
    assert got["grad_x"][1].isnan().all() and got["grad_x"][[0, 2]].isfinite().all()
    assert torch.equal(got["m"].isnan(), want["m"].isnan())
    x[1, 2, 1] = float("inf")
    assert ops.spline_conv(h, x, c, neighbors, CUTOFF).isfinite().all()  # infinitely far away


def test_compiles(rng):
    h, x, c, neighbors = make(rng, dtype=torch.float32)

    def run(h, x, c):
        return ops.spline_conv(h, x, c, neighbors, CUTOFF).sin()

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(h, x, c), run(h, x, c))


BAD = [
    ("features", dict(features=torch.zeros(2, 3))),
    ("features", dict(features=torch.zeros(1, 3, 0), coefficients=torch.zeros(5, 0))),
    ("features", dict(features=torch.zeros(1, 3, 2, dtype=torch.float16))),
    ("positions", dict(positions=torch.zeros(1, 4, 3))),
    ("positions", dict(positions=torch.zeros(1, 3, 3, dtype=torch.float64))),
    ("coefficients", dict(coefficients=torch.zeros(3, 2))),
    ("coefficients", dict(coefficients=torch.zeros(5, 3))),
    ("coefficients", dict(coefficients=torch.zeros(5, 2, device="meta"))),
    ("cutoff", dict(cutoff=0.0)),
    ("cutoff", dict(cutoff=float("nan"))),
    ("cutoff", dict(cutoff="far")),
    ("neighbors", dict(neighbors=None)),
    ("neighbors.row_ptr", dict(row_ptr=torch.tensor([0, 2, 6]))),
    ("neighbors.row_ptr", dict(row_ptr=torch.tensor([0, 2, 4, 6], dtype=torch.int32))),
    ("neighbors", dict(row_ptr=torch.tensor([0, 2, 4, 5]))),
    ("neighbors", dict(row_ptr=torch.tensor([0, 4, 2, 6]))),
    ("neighbors", dict(row_ptr=torch.tensor([1, 2, 4, 6]))),
    ("neighbors", dict(row_ptr=torch.tensor([0, 2**62, 4, 6]))),
    ("neighbors.col", dict(col=torch.tensor([1, 2, 0, 2, 0, 1]))),
    ("neighbors", dict(col=torch.tensor([1, 2, 0, 3, 0, 1], dtype=torch.int32))),
    ("neighbors", dict(col=torch.tensor([1, 2, 0, -1, 0, 1], dtype=torch.int32))),
    ("neighbors.shift", dict(shift=torch.zeros(5, 3, dtype=torch.int32))),
    ("box", dict(shift=torch.zeros(6, 3, dtype=torch.int32))),
    ("box", dict(box=[3.0, 3.0, 3.0])),
    ("neighbors", dict(col=torch.tensor([1, 2, 0, 9, 0, 1], dtype=torch.int32), box=3 * torch.eye(3)[None],
                       shift=torch.zeros(6, 3, dtype=torch.int32))),
    ("box", dict(shift=torch.zeros(6, 3, dtype=torch.int32), box=torch.ones(2))),
    ("box", dict(shift=torch.zeros(6, 3, dtype=torch.int32), box="cubic")),
    ("box", dict(shift=torch.zeros(6, 3, dtype=torch.int32), box=torch.ones(3, requires_grad=True))),
]


@pytest.mark.parametrize("operator", [ops.spline_conv, reference.spline_conv])
@pytest.mark.parametrize(("argument", "change"), BAD)
def test_bad_input_is_one_clear_error(operator, argument, change):
    neighbors = symmetric_list(3, [(0, 1), (0, 2), (1, 2)])
    parts = {name: change[name] for name in ("row_ptr", "col", "shift") if name in change}
    arguments = dict(features=torch.zeros(1, 3, 2), positions=torch.zeros(1, 3, 3),
                     coefficients=torch.zeros(5, 2), neighbors=neighbors._replace(**parts), cutoff=CUTOFF)
    arguments |= {name: value for name, value in change.items() if name not in parts}
    with pytest.raises(InputError) as error:
        operator(**arguments)
    assert str(error.value).startswith(argument + ":") and "\n" not in str(error.value)


def test_one_sided_list_is_refused_by_the_backward(rng):
    h, x, c, neighbors = make(rng, 1, 3)
    x.requires_grad_()
    for row_ptr, col in (([0, 1, 1, 1], [1]), ([0, 1, 2, 3], [1, 2, 0])):
        lame = neighbors._replace(row_ptr=torch.tensor(row_ptr), col=torch.tensor(col, dtype=torch.int32))
        with pytest.raises(InputError, match="neighbors: expected a symmetric list"):
            ops.spline_conv(h, x, c, lame, CUTOFF).sum().backward()


def test_flat_operators_check_their_shapes(rng):
    """torch.ops is open to anyone: a wrong shape must not read beyond a tensor."""
    h, x, c, neighbors = make(rng, dtype=torch.float32)
    graph = [h.reshape(10, -1), x.reshape(10, 3), c, neighbors.row_ptr, neighbors.col, torch.empty(0, 3)]
    for at, bad in ((0, h[0]), (1, x[0]), (2, c[:, :2]), (3, neighbors.row_ptr[:-1]), (5, torch.zeros(2, 3)),
                    (4, neighbors.col.long())):
        with pytest.raises(InputError):
            torch.ops.diffmd_fast.spline_conv(*graph[:at], bad, *graph[at + 1:], CUTOFF)
    for at, bad in ((0, h.sum()), (2, c.sum())):
        with pytest.raises(InputError, match="^features:"):
            torch.ops.diffmd_fast.spline_conv(*graph[:at], bad, *graph[at + 1:], CUTOFF)
    offsets = torch.zeros(neighbors.col.numel(), 3, requires_grad=True)
    with pytest.raises(InputError, match="^offsets: .*without gradient"):
        torch.ops.diffmd_fast.spline_conv(*graph[:5], offsets, CUTOFF)
    with pytest.raises(InputError, match="grad:"):
        torch.ops.diffmd_fast.spline_conv_backward(graph[0][:3], *graph, CUTOFF, True, True, True)
    with pytest.raises(InputError, match="along_positions:"):
        torch.ops.diffmd_fast.spline_conv_double_backward(None, x[0], None, graph[0], *graph, CUTOFF,
                                                          True, True)
