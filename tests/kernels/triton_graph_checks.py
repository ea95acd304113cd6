"""What holds for the step of a CUDA graph on the Triton kernels wherever they run (see triton_em_step_checks.py)."""

import pytest
import torch

from diffmd_fast import ops, use_backend
from diffmd_fast.models.static import StaticSchNet
from diffmd_fast.ops.spline_conv import edge_offsets

from ..models import test_schnet_periodic as large
from ..no_host import NoHost
from .common import DEVICE, on_triton

BOXES = [None, large.LENGTHS, large.TRICLINIC]


@pytest.mark.parametrize(("box", "dtype"), [*zip(BOXES, (torch.float32, torch.float64, torch.float32))])
def test_the_list_is_that_of_neighbor_list_as_atoms_move(rng, box, dtype):
    """Rows of several tiles and of none, replicas that are stale alone, and programs with rows of two replicas."""
    x = large.place(rng, 3, 37, box or large.LENGTHS, dtype).to(DEVICE)
    x[1, 0] = 50.0
    vectors = None if box is None else torch.tensor(box, dtype=torch.float64, device=DEVICE)
    kept = ops.FixedList(x, 0.9, 0.1, vectors)
    for moved in (None, 1, 2, None):
        if moved is not None:
            x[moved] += 0.1 * torch.randn(x.shape[1:], generator=rng, dtype=torch.float64).to(x)
        row_ptr, col, offsets = (each.cpu() for each in on_triton(kept.update, x))
        want = ops.neighbor_list(x.cpu(), 0.9, box=None if box is None else vectors.cpu())
        n_edges = len(want.col)
        assert torch.equal(row_ptr, want.row_ptr) and torch.equal(col[:n_edges], want.col)
        if box is not None:
            rows = (torch.diag(vectors) if vectors.dim() == 1 else vectors).cpu()
            assert torch.equal(offsets[:n_edges], edge_offsets(want.shift, rows, dtype))
    assert not kept.overflows() and kept.n_builds.item() == 3 + 2


def test_lists_without_room_are_empty_and_grow(rng):
    x = large.place(rng, 2, 30, large.LENGTHS, torch.float32).to(DEVICE)
    kept = ops.FixedList(2 * x, 0.5, 0.1)
    counts = [on_triton(kept.update, scale * x)[0][-1].item() for scale in (2, 1, 2)]
    assert counts[0] > 0 and counts[1:] == [0, 0] and kept.overflows()
    while kept.overflows():
        kept.fit()
        row_ptr = on_triton(kept.update, x)[0].cpu()
    assert torch.equal(row_ptr, ops.neighbor_list(x.cpu(), 0.5).row_ptr)


def test_a_step_from_a_clock_on_the_device_has_the_bits_of_one_from_an_integer(rng):
    x, score = (torch.randn(37, 17, 3, generator=rng).to(DEVICE) for _ in range(2))
    half, one = (torch.tensor([v], dtype=torch.float64, device=DEVICE) for v in (0.5, 1.0))
    step = 2**33 + 17
    for got in (x, x.repeat(1, 2, 1)[:, ::2]):  # in place, and where that cannot be
        want, clock = got.cpu().contiguous().clone(), torch.tensor([step], device=DEVICE)
        on_triton(torch.ops.diffmd_fast.em_step_at_, got, score, half, one, -5, 3, clock, 2)
        torch.ops.diffmd_fast.em_step_at_(want, score.cpu(), half.cpu(), one.cpu(), -5, 3, torch.tensor([step]), 2)
        assert torch.equal(got.cpu(), want)


def test_static_schnet_equals_the_reference_and_never_waits_for_the_gpu(rng):
    model = large.make(rng, 30, large.LENGTHS, True, n_features=8, n_blocks=1)
    x = large.place(rng, 1, 30, large.LENGTHS)
    want = large.reference(model, x)
    model, x = model.to(DEVICE), x.to(DEVICE)
    static = StaticSchNet(model, None, x)
    key = torch._C.DispatchKey.CUDA if DEVICE == "cuda" else torch._C.DispatchKey.CPU
    mode = NoHost(inside=key)
    with torch.no_grad(), use_backend("triton"), mode:
        got = static(x)
    assert {"aten.cumsum.out", "aten.searchsorted.Tensor"} <= mode.seen  # of the Triton rooms
    for a, b in zip(got, want):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-10 * b.abs().max().item())
