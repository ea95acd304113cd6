"""FixedList on the CPU, where the reference runs; the Triton kernels: tests/kernels/triton_graph_checks.py."""

import pytest
import torch

from diffmd_fast import InputError
from diffmd_fast.ops import FixedList, neighbor_list
from diffmd_fast.ops.spline_conv import edge_offsets

BOXES = [None, torch.tensor([2.0, 2.2, 2.4]), torch.tensor([[2.0, 0, 0], [0.3, 2.2, 0], [-0.4, 0.2, 2.1]])]
OPERATORS = torch.ops.diffmd_fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("box", BOXES)
def test_the_list_of_neighbor_list_rebuilt_only_where_atoms_moved_too_far(rng, box, dtype):
    x = (2 * torch.rand(3, 60, 3, generator=rng, dtype=torch.float64)).to(dtype)
    kept = FixedList(x, 0.7, 0.2, box)
    for _ in range(8):
        row_ptr, col, offsets = kept.update(x)
        want = neighbor_list(x, 0.7, box=box)
        n_edges = len(want.col)
        assert torch.equal(row_ptr, want.row_ptr) and torch.equal(col[:n_edges], want.col)
        if box is not None:
            rows = (torch.diag(box) if box.dim() == 1 else box).double()
            assert torch.equal(offsets[:n_edges], edge_offsets(want.shift, rows, dtype))
        x = x + 0.02 * torch.randn(x.shape, generator=rng, dtype=torch.float64).to(dtype)
        x[0] = torch.roll(x[0], 1, 0)  # one replica jumps at every step
    assert 8 + 2 <= kept.n_builds < 3 * 8 and not kept.overflows()


def test_lists_without_room_are_empty_until_they_fit(rng):
    x = torch.rand(2, 40, 3, generator=rng)
    kept = FixedList(2 * x, 0.5, 0.1)
    assert kept.update(2 * x)[0][-1] > 0
    assert kept.update(x)[0][-1] == 0 and kept.update(2 * x)[0][-1] == 0 and kept.overflows()
    before = kept.nbytes
    while kept.overflows():
        kept.fit()
        row_ptr, _, _ = kept.update(x)
    assert torch.equal(row_ptr, neighbor_list(x, 0.5).row_ptr) and kept.nbytes > before


def test_atoms_that_are_not_finite_or_too_far_away_have_no_neighbors(rng):
    x, box = torch.rand(1, 30, 3, generator=rng), BOXES[1]
    kept = FixedList(x, 0.9, 0.1, box)
    for bad in (float("nan"), float("inf"), 1e12):
        y = x.clone()
        y[0, 4, 1] = bad
        row_ptr, col, _ = kept.update(y)
        assert row_ptr[4] == row_ptr[5] and 4 not in col[:row_ptr[-1]] and row_ptr[-1] > 0
    assert torch.equal(kept.update(x)[0], neighbor_list(x, 0.9, box=box).row_ptr)


@pytest.mark.parametrize(("changes", "message"), [
    ({"positions": torch.zeros(3, 4)}, "^positions: "), ({"positions": torch.zeros(0, 4, 3)}, "^positions: "),
    ({"cutoff": 0.0}, "^cutoff: "), ({"skin": -0.1}, "^skin: "), ({"cutoff": 1.2, "box": BOXES[1]}, "^cutoff: "),
    ({"box": torch.eye(3).expand(2, 3, 3) * 5}, "^box: expected one for all"), ({"box": torch.zeros(3)}, "^box: ")])
def test_bad_input_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        FixedList(**{"positions": torch.zeros(2, 4, 3), "cutoff": 0.5, "skin": 0.1, **changes})


def arguments_of_pack(rng):
    """Good ones: two atoms near each other."""
    points, box = torch.tensor([[[0.1, 0.1, 0.1], [0.2, 0.1, 0.1]]], dtype=torch.float64), torch.eye(3)[None].double()
    whole = {"dtype": torch.int32}
    return {"points": points, "wraps": torch.zeros(1, 2, 3, **whole), "box": box, "cutoff": 0.4,
            "candidates": torch.tensor([[1], [0]], **whole), "counts": torch.ones(2, **whole),
            "row_ptr": torch.zeros(3, dtype=torch.int64), "col": torch.zeros(2, **whole),
            "offsets": torch.zeros(2, 3)}


@pytest.mark.parametrize(("name", "value"), [
    ("points", torch.zeros(2, 3)), ("wraps", torch.zeros(1, 2, 3)), ("cutoff", float("nan")), ("box", torch.eye(3)),
    ("candidates", torch.full((2, 1), 2, dtype=torch.int32)), ("counts", torch.ones(3, dtype=torch.int32)),
    ("row_ptr", torch.zeros(2, dtype=torch.int64)), ("col", torch.zeros(2)), ("offsets", torch.zeros(1, 3))])
def test_operators_check_what_memory_safety_needs(rng, name, value):
    arguments = arguments_of_pack(rng)
    OPERATORS.pack_candidates_(*arguments.values())
    assert arguments["row_ptr"].tolist() == [0, 1, 2] and arguments["col"].tolist() == [1, 0]
    with pytest.raises(InputError, match=f"^{name}: "):
        OPERATORS.pack_candidates_(*(arguments | {name: value}).values())


def test_opcheck(rng):
    utils = ("test_schema", "test_faketensor")
    arguments = arguments_of_pack(rng)
    torch.library.opcheck(OPERATORS.pack_candidates_, tuple(arguments.values()), test_utils=utils)
    torch.library.opcheck(OPERATORS.list_candidates_, (
        arguments["points"], arguments["box"], 0.4, torch.ones(1, dtype=torch.bool), arguments["candidates"],
        arguments["counts"]), test_utils=utils)
    x, score, clock = torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.tensor([7])
    one = torch.ones(1, dtype=torch.float64)
    torch.library.opcheck(OPERATORS.em_step_at_, (x, score, one, one, 5, 3, clock, 2), test_utils=utils)
    quadruples = torch.tensor([[0, 1, 2, 3]])
    x = torch.randn(2, 4, 3, generator=rng)
    angles = OPERATORS.torsions_unchecked(x, quadruples)
    torch.library.opcheck(OPERATORS.torsions_unchecked, (x, quadruples), test_utils=utils)
    torch.library.opcheck(OPERATORS.torsions_backward_unchecked, (angles, x, quadruples), test_utils=utils)


def test_spline_conv_takes_a_list_with_room_behind_it(rng):
    x = torch.rand(2, 12, 3, generator=rng)
    features, coefficients, grad = (torch.randn(n, 5, generator=rng) for n in (24, 9, 24))
    kept = FixedList(x, 0.5, 0.1)
    row_ptr, col, offsets = kept.update(x)
    exact = neighbor_list(x, 0.5)
    assert len(col) > len(exact.col) > 0
    flat = (features, x.view(-1, 3), coefficients)
    roomy, tight = (*flat, row_ptr, col, offsets, 0.5), (*flat, exact.row_ptr, exact.col, offsets, 0.5)
    assert torch.equal(OPERATORS.spline_conv_unchecked(*roomy), OPERATORS.spline_conv(*tight))
    want = OPERATORS.spline_conv_backward(grad, *tight, True, True, False)
    for got, one in zip(OPERATORS.spline_conv_backward_unchecked(grad, *roomy, True), want):
        assert torch.equal(got, one)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPERATORS.spline_conv_unchecked, roomy, test_utils=utils)
    torch.library.opcheck(OPERATORS.spline_conv_backward_unchecked, (grad, *roomy, True), test_utils=utils)
