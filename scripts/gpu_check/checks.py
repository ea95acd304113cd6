"""How results are judged: the float64 rule, equal bits, and derivatives to second order of any operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Wrong


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Wrong(message)


def same_bits(what: str, got: Tensor, wanted: Tensor) -> None:
    got, wanted = got.detach().cpu(), wanted.detach().cpu()
    require(got.shape == wanted.shape and got.dtype == wanted.dtype,
            f"{what}: {got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}")
    if not torch.equal(got, wanted):
        count, most = (got != wanted).sum().item(), (got - wanted).abs().max().item()
        raise Wrong(f"{what}: {count} of {got.numel()} numbers differ, by {most:.3g} at most")


def error_ratio(what: str, got: Tensor, reference32: Tensor, reference64: Tensor) -> float:
    """Error over what is allowed: twice the float32 reference's, both root mean squares against float64.

    At least one float32 rounding of the largest number is allowed (tests/ops/common.py has the same rule).
    """
    truth = reference64.detach().cpu()
    if truth.numel() == 0:
        return 0.0
    scale = truth.abs().max().item() or 1.0
    error, allowed = ((t.detach().cpu().double() - truth).square().mean().sqrt().item() for t in (got, reference32))
    allowed = max(2 * allowed, scale * torch.finfo(torch.float32).eps)
    require(error <= allowed, f"{what}: rms error {error:.3e}, allowed {allowed:.3e}")  # a NaN is not
    return error / allowed


def derivatives(function: Callable[..., Tensor], *inputs: Tensor, seed: int = 3) -> dict[str, Tensor]:
    """Value, gradient along a random cotangent, and the gradient of a random combination of both."""
    draw = torch.Generator().manual_seed(seed)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=draw, dtype=torch.float64).to(tensor)

    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    value = function(*inputs)
    along = like(value).requires_grad_()
    first = torch.autograd.grad(value, inputs, along, create_graph=True)
    second = torch.autograd.grad(first, (along, *inputs), [like(tensor) for tensor in first], allow_unused=True)
    found = {"value": value.detach()}
    found |= {f"first derivative {i}": tensor.detach() for i, tensor in enumerate(first)}
    return found | {f"second derivative {i}": tensor for i, tensor in enumerate(second) if tensor is not None}


def check_operator(device: str, fast: Callable[..., Tensor], plain: Callable[..., Tensor],
                   *inputs: Tensor) -> dict[str, Any]:
    """``fast`` on the device twice, the same bits; within the rule of ``plain`` on the CPU, all derivatives.

    ``inputs`` are float32, on the CPU; ``plain`` works on the CPU in float32 and float64.
    """
    there = [tensor.to(device) for tensor in inputs]
    got, again = derivatives(fast, *there), derivatives(fast, *there)
    wanted32, wanted64 = derivatives(plain, *inputs), derivatives(plain, *(tensor.double() for tensor in inputs))
    require(got.keys() == wanted64.keys(), f"derivatives {sorted(got)} instead of {sorted(wanted64)}")
    for name in got:
        same_bits(f"{name}, computed twice", again[name], got[name])
    ratios = {name: error_ratio(name, got[name], wanted32[name], wanted64[name]) for name in got}
    worst = max(ratios, key=ratios.get)
    return {"error over allowed": round(ratios[worst], 3), "of": worst, "compared": len(ratios)}
