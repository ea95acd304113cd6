"""What holds for the Triton torsions wherever they run; see triton_em_step_checks.py."""

import importlib

import pytest
import torch

from diffmd_fast import InputError, UnavailableError, ops, reference, use_backend

from ..ops.common import assert_float64_rule
from ..ops.test_torsions import ONE, degenerate, derivatives, make, tangents
from .common import DEVICE, on_triton

kernels = importlib.import_module("diffmd_fast.kernels.triton.torsions")
# One torsion; atoms without torsions, several blocks of sites and torsions; as many lanes as there are atoms.
SHAPES = [(1, 4, 1), (5, 33, 7), (2, 64, 70), (0, 9, 3)]


def arguments_of(rng, *shape, dtype=torch.float64):
    positions, quadruples = make(rng, *shape, dtype=dtype)
    return [t.to(DEVICE) for t in (positions, quadruples, *tangents(rng, positions, quadruples))]


@pytest.mark.parametrize("shape", SHAPES)
def test_float64_equals_reference(rng, shape):
    arguments = arguments_of(rng, *shape)
    got, want = on_triton(derivatives, ops.torsions, *arguments), derivatives(reference.torsions, *arguments)
    for a, b in zip(got, want):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * (b.abs().max().item() if b.numel() else 1))


def test_no_torsions(rng):
    positions, quadruples, grad, cotangent = arguments_of(rng, 2, 6, 1)
    got = on_triton(derivatives, ops.torsions, positions, quadruples[:0], grad[:, :0], cotangent)
    assert [list(t.shape) for t in got] == [[2, 0, 2], [2, 6, 3], [2, 6, 3], [2, 0, 2]]
    assert not got[1].any() and not got[2].any()


def test_float32_within_twice_the_reference_error(rng):
    positions, quadruples, *rest = arguments_of(rng, 8, 16, 16, dtype=torch.float32)
    got = on_triton(derivatives, ops.torsions, positions, quadruples, *rest)
    want32 = derivatives(reference.torsions, positions, quadruples, *rest)
    want64 = derivatives(reference.torsions, positions.double(), quadruples, *(t.double() for t in rest))
    for name, a, b, c in zip(("value", "gradient", "second", "jvp"), got, want32, want64):
        assert_float64_rule(a, b, c, name)


@pytest.mark.parametrize("case", degenerate())
def test_degenerate_geometries(rng, case):
    positions, quadruples = degenerate()[case].to(DEVICE), ONE.to(DEVICE)
    tangent = [t.to(DEVICE) for t in tangents(rng, positions, quadruples)]
    got = on_triton(derivatives, ops.torsions, positions, quadruples, *tangent)
    for a, b in zip(got, derivatives(reference.torsions, positions, quadruples, *tangent)):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))


def test_third_derivative_and_opcheck(rng):
    positions, quadruples, grad, cotangent = arguments_of(rng, 2, 6, 4)
    x = positions.requires_grad_()
    with use_backend("triton"):
        (first,) = torch.autograd.grad(ops.torsions(x, quadruples).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * cotangent).sum(), x, create_graph=True)
        with pytest.raises(UnavailableError, match="torsions: the third derivative"):
            second.sum().backward()
        for operator, tensors in (("torsions", (x, quadruples)), ("torsions_backward", (grad, x, quadruples)),
                                  ("torsions_double_backward", (cotangent, grad, x, quadruples))):
            torch.library.opcheck(getattr(torch.ops.diffmd_fast, operator), tuple(t.detach() for t in tensors),
                                  test_utils=("test_schema", "test_faketensor"))


def test_index_width_repeats_and_strides(rng):
    positions, quadruples, grad, cotangent = arguments_of(rng, 3, 9, 7, dtype=torch.float32)
    narrow, wide = (kernels.gradient(grad, positions, quadruples, cotangent, wide=w) for w in (False, True))
    assert torch.equal(narrow, wide)
    assert torch.equal(*(kernels.angles(positions, quadruples, wide=w) for w in (False, True)))
    strided = positions.repeat(1, 2, 1)[:, ::2].clone().transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    got = on_triton(derivatives, ops.torsions, strided, quadruples.int(), grad, cotangent)
    want = on_triton(derivatives, ops.torsions, strided.contiguous(), quadruples, grad, cotangent)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("row", [[0, 1, 2, 6], [0, 1, 1, 3], [-1, 1, 2, 3]])
def test_bad_quadruples_are_refused(rng, row):
    positions, _, grad, cotangent = arguments_of(rng, 2, 6, 4)
    q = torch.tensor([[0, 1, 2, 3], row], device=DEVICE)
    calls = (lambda: ops.torsions(positions, q),
             lambda: torch.ops.diffmd_fast.torsions_backward(grad[:, :2], positions, q),
             lambda: torch.ops.diffmd_fast.torsions_double_backward(cotangent, grad[:, :2], positions, q))
    for call in calls:
        with pytest.raises(InputError, match="quadruples: expected four different atoms of 0..5 .* in row 1"):
            on_triton(call)
