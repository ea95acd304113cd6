"""What the test file of every operator does: SIMD levels, the float64 rule, opcheck."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from diffmd_fast import _C

SIMD_LEVELS = _C.build_info()["simd_usable"]


@contextmanager
def simd_level(name: str):
    """Run the native kernels at one SIMD level."""
    before = _C.set_simd_level(name)
    try:
        yield
    finally:
        _C.set_simd_level(before)


def assert_float64_rule(fast: torch.Tensor, reference32: torch.Tensor, reference64: torch.Tensor, what: str = ""):
    """A fast path is right when its error against the float64 reference is at most twice float32 reference's.

    Errors are root mean squares over all elements; the floor is one float32 rounding of the largest element.
    """
    scale = reference64.abs().max().item() or 1.0
    error = (fast.double() - reference64).square().mean().sqrt().item()
    allowed = 2 * (reference32.double() - reference64).square().mean().sqrt().item()
    floor = scale * torch.finfo(torch.float32).eps
    assert error <= max(allowed, floor), f"{what}: rms error {error:.3e}, allowed {max(allowed, floor):.3e}"


def opcheck(operator, arguments) -> None:
    """Schema, autograd registration, fake tensor and AOT dispatch of one registered operator."""
    torch.library.opcheck(operator, arguments)
