"""What holds for the Triton spline_conv wherever it runs; see triton_em_step_checks.py."""

import importlib

import pytest
import torch

from diffmd_fast import InputError, UnavailableError, ops, reference, use_backend
from diffmd_fast.ops import NeighborList

from ..ops.common import assert_float64_rule
from ..ops.test_spline_conv import CUTOFF, everything, make, symmetric_list
from .common import DEVICE, on_triton

kernels = importlib.import_module("diffmd_fast.kernels.triton.spline_conv")
rows = importlib.import_module("diffmd_fast.kernels.triton.rows")
OPERATORS = torch.ops.diffmd_fast


def on_device(h, x, c, neighbors):
    lists = NeighborList(*(t.to(DEVICE) for t in neighbors[:4]), None, None)
    return h.to(DEVICE), x.to(DEVICE), c.to(DEVICE), lists


def assert_same(got, want, tolerance=1e-13):
    for name in want:
        scale = want[name].abs().max().item() if want[name].numel() else 0
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=tolerance * scale,
                                   msg=lambda m, n=name: f"{n}: {m}")


# One feature, part of a block of features, two blocks; the fewest knots; rows of several tiles of edges; empty rows.
@pytest.mark.parametrize(("n_atoms", "n_features", "n_knots", "lonely"),
                         [(5, 1, 4, 1), (6, 17, 30, 5), (6, 129, 9, None)])
def test_float64_equals_reference(rng, n_atoms, n_features, n_knots, lonely):
    h, x, c, _ = make(rng, 1, n_atoms, n_features, n_knots)
    pairs = [(i, j) for j in range(n_atoms) for i in range(j) if lonely not in (i, j)]
    arguments = on_device(h, x, c, symmetric_list(n_atoms, pairs))
    assert_same(on_triton(everything, ops.spline_conv, *arguments), everything(reference.spline_conv, *arguments))


def test_float32_within_twice_the_reference_error(rng):
    h, x, c, neighbors = on_device(*make(rng, 1, 9, 64, 30, dtype=torch.float32))
    want64 = everything(reference.spline_conv, h.double(), x.double(), c.double(), neighbors)
    want32 = everything(reference.spline_conv, h, x, c, neighbors)
    got = on_triton(everything, ops.spline_conv, h, x, c, neighbors)
    for name in got:
        assert_float64_rule(got[name], want32[name], want64[name], name)


def test_in_a_box(rng):
    h, x, c, _ = make(rng, 2, 4, 6, 9)
    for box in (torch.tensor([2.1, 2.2, 2.3]), torch.diag_embed(torch.tensor([[2.1, 2.2, 2.3], [2.6, 2.4, 2.5]]))):
        neighbors = ops.neighbor_list(2 * x, CUTOFF, box=box)
        assert neighbors.shift.any()
        h, y, c, lists = on_device(h, 2 * x, c, neighbors)
        got = on_triton(everything, ops.spline_conv, h, y, c, lists, box=box.to(DEVICE))
        assert_same(got, everything(reference.spline_conv, h, y, c, lists, box=box.to(DEVICE)))


def test_only_what_is_asked_for(rng):
    """Every subset of first derivatives, and of what is given and wanted in the double backward."""
    h, x, c, neighbors = on_device(*make(rng, 1, 5, 6, 8))
    graph = (h[0], x[0], c, neighbors.row_ptr, neighbors.col, x.new_empty(0, 3), CUTOFF)
    g, *along = (torch.randn(t.shape, generator=rng, dtype=torch.float64).to(DEVICE) for t in (h[0], h[0], x[0], c))
    with use_backend("triton"):
        whole = OPERATORS.spline_conv_backward(g, *graph, True, True, True)
        for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, True, True)):
            for got, want, asked in zip(OPERATORS.spline_conv_backward(g, *graph, *wanted), whole, wanted):
                assert torch.equal(got, want) if asked else got.numel() == 0
        whole = OPERATORS.spline_conv_double_backward(*along, g, *graph, True, True)
        parts = [OPERATORS.spline_conv_double_backward(*(a if k == m else None for k, a in enumerate(along)), g, *graph,
                                                       True, True) for m in range(3)]
        for want, *shares in zip(whole, *parts):  # it is linear in the three directions
            torch.testing.assert_close(sum(shares), want, rtol=0, atol=1e-13 * want.abs().max().item())
        scores = OPERATORS.spline_conv_double_backward(*along, g, *graph, False, False)
        assert torch.equal(scores[0], whole[0]) and [t.numel() for t in scores[2:]] == [0, 0]


def test_coincident_and_far_atoms_and_nan(rng):
    """Atoms in one place, at the cutoff, infinitely far, and NaN: as the reference has it, or nothing at all."""
    x = torch.zeros(1, 6, 3, dtype=torch.float64)
    x[0, 2:, 0] = torch.tensor([0.3, CUTOFF, 3.0, float("inf")])
    h, c = torch.randn(1, 6, 4, generator=rng, dtype=x.dtype), torch.randn(8, 4, generator=rng, dtype=x.dtype)
    near = symmetric_list(6, [(i, j) for i in range(5) for j in range(i)])
    got = on_triton(everything, ops.spline_conv, *on_device(h, x, c, near))
    assert_same(got, everything(reference.spline_conv, *on_device(h, x, c, near)))
    with_far = symmetric_list(6, [(i, j) for i in range(6) for j in range(i)])
    far = on_triton(everything, ops.spline_conv, *on_device(h, x, c, with_far))
    assert torch.equal(far["m"][:, :5], got["m"][:, :5]) and not far["m"][:, 5].any()
    assert all(torch.isfinite(t).all() for t in far.values())
    x[0, 2, 1] = float("nan")
    h, x, c, near = on_device(h, x, c, near)
    m = on_triton(ops.spline_conv, h, x, c, near, CUTOFF)
    assert torch.isnan(m[0, :5]).all() and not torch.isnan(m[0, 5]).any()


def test_third_derivative_and_opcheck(rng):
    h, x, c, neighbors = on_device(*make(rng, 1, 3, 3, 6))
    x.requires_grad_()
    with use_backend("triton"):
        value = ops.spline_conv(h, x, c, neighbors, CUTOFF)
        (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        with pytest.raises(UnavailableError, match="spline_conv: the third derivative"):
            second.sum().backward()
        graph = (h[0], x.detach()[0], c, neighbors.row_ptr, neighbors.col, x.new_empty(0, 3), CUTOFF)
        for operator, arguments in (
                (OPERATORS.spline_conv, graph),
                (OPERATORS.spline_conv_backward, (h[0], *graph, True, True, False)),
                (OPERATORS.spline_conv_double_backward, (h[0], None, c, h[0], *graph, True, True))):
            torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_parts_of_an_interval_add_up(rng, monkeypatch):
    h, x, c, neighbors = on_device(*make(rng, 2, 6, 3, 5))
    arguments = (h.flatten(0, 1), h.flatten(0, 1), x.flatten(0, 1), c, neighbors.row_ptr, neighbors.col,
                 x.new_empty(0, 3), CUTOFF, False, False, True)
    with use_backend("triton"):
        want = OPERATORS.spline_conv_backward(*arguments)[2]
        monkeypatch.setattr(kernels, "EDGES_OF_PARTIAL_SUM", 3)
        got = OPERATORS.spline_conv_backward(*arguments)[2]
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    assert not torch.equal(got, want)  # in another order: the parts were used


def test_empty(rng):
    h, x, c, _ = make(rng, 2, 3, 4, 6)
    none = symmetric_list(6, [])
    assert_same(on_triton(everything, ops.spline_conv, *on_device(h, x, c, none)),
                everything(reference.spline_conv, *on_device(h, x, c, none)))
    nobody = on_device(h[:0], x[:0], c, symmetric_list(0, []))
    assert [list(t.shape) for t in on_triton(everything, ops.spline_conv, *nobody).values()][:4] == [
        [0, 3, 4], [0, 3, 4], [0, 3, 3], [6, 4]]


def changed(tensor, at, value):
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


def test_bad_lists_are_found():
    good = symmetric_list(200, [(i, j) for i in range(200) for j in range(i + 1, min(i + 3, 200))])  # two programs
    row_ptr, col = good.row_ptr.to(DEVICE), good.col.to(DEVICE)
    n = len(col)
    assert rows.check(row_ptr, col, symmetric=True) == rows.FINE
    for at, value in ((150, n + 7), (0, -2**40), (0, 1), (-1, n - 1), (20, 0)):
        assert rows.check(changed(row_ptr, at, value), col, symmetric=False) == rows.BAD_ROWS
    for at, value in ((n - 1, 200), (0, -1), (5, 2**31 - 1)):
        assert rows.check(row_ptr, changed(col, at, value), symmetric=False) == rows.BAD_COLUMNS
    for at in (0, 1, 300, n - 1):
        lopsided = changed(col, at, (int(col[at]) + 7) % 200)
        assert rows.check(row_ptr, lopsided, symmetric=False) == rows.FINE
        assert rows.check(row_ptr, lopsided, symmetric=True) == rows.ASYMMETRIC


def test_bad_lists_are_refused(rng):
    h, x, c, good = on_device(*make(rng, 1, 3, 2, 6))
    for wanted, bad in (("row_ptr that starts at 0", good._replace(row_ptr=changed(good.row_ptr, 1, 99))),
                        ("col between 0", good._replace(col=changed(good.col, 0, 3)))):
        with pytest.raises(InputError, match=f"neighbors: expected {wanted}"):
            on_triton(ops.spline_conv, h, x, c, bad, CUTOFF)
    with pytest.raises(InputError, match="symmetric list"):
        on_triton(everything, ops.spline_conv, h, x, c, good._replace(col=changed(good.col, 3, 1)))
