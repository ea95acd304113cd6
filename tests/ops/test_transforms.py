"""torch.func and forward-mode derivatives: registered operators have no rule for them, so the reference must run."""

import pytest
import torch
from torch.autograd import forward_ad

from diffmd_fast import ops

QUADRUPLES = torch.tensor([[0, 1, 2, 3]])


def spline(x):
    neighbors = ops.neighbor_list(x.detach(), None)
    features = torch.linspace(-1, 1, 24, dtype=x.dtype).reshape(2, 4, 3)
    coefficients = torch.linspace(0, 1, 21, dtype=x.dtype).reshape(7, 3) ** 2
    return ops.spline_conv(features, x, coefficients, neighbors, 3.0)


OPERATORS = {
    "em_step": lambda x: ops.em_step(x, x.sin(), diffusion=0.1, time_step=0.1),
    "neighbor_list": lambda x: ops.neighbor_list(x, None, return_distances=True).distances,
    "spline_conv": spline,
    "torsions": lambda x: ops.torsions(x, QUADRUPLES),
}


@pytest.fixture(autouse=True)
def quiet():
    import warnings

    with warnings.catch_warnings():  # the fallback says so once a process
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", OPERATORS)
def test_directional_derivatives_are_not_silently_zero(rng, name):
    """torch drops the tangent at an operator without a forward-mode rule; both ways in, against differences."""
    operator = OPERATORS[name]
    x, v = (torch.randn(2, 4, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    want = (operator(x + 1e-6 * v) - operator(x - 1e-6 * v)) / 2e-6
    assert want.abs().max() > 0.1
    torch.testing.assert_close(torch.func.jvp(operator, (x,), (v,))[1], want, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(operator(forward_ad.make_dual(x, v))).tangent
    torch.testing.assert_close(tangent, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_reverse_transforms(rng, name):
    operator = OPERATORS[name]
    x = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(operator(leaf).square().sum(), leaf)
    got = torch.func.grad(lambda y: operator(y).square().sum())(x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
