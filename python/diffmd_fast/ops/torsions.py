"""Sine and cosine of torsion angles of given atom quadruples, with first and second derivatives.

Finite and smooth at every geometry, straight chains and coincident atoms included; the formula, its sign
convention and what its two floors change: reference/torsions.py.  Fast paths: csrc/torsions.cpp and
kernels/triton/torsions.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import run_reference
from ..errors import InputError, UnavailableError, check_tensor
from ..reference.torsions import torsions_backward_core, torsions_core, torsions_double_backward_core
from ._library import define, get_num_threads, native, register_autograd


def torsions(positions: Tensor, quadruples: Tensor) -> Tensor:
    """Sine and cosine of the torsion angle of each quadruple, in each replica.

    Args:
        positions: [replicas, atoms, 3] nm, float32 or float64.  A NaN comes out as NaN.
        quadruples: [torsions, 4], int32 or int64: atoms a, b, c, d of each torsion about the bond b-c, four
            different atoms of 0 .. atoms-1.  On the device of ``positions``.

    Returns:
        [replicas, torsions, 2], last axis (sin, cos); IUPAC sign, trans is (0, -1).  For ordinary geometries
        sin^2 + cos^2 = 1 within 1e-5; towards three atoms on one line both go smoothly to 0.  Differentiable
        twice with respect to positions on the native and Triton backends, to any order on the reference.

    Raises:
        InputError: an argument of the wrong shape, dtype or device; a quadruple with an atom out of range or
            twice.
        UnavailableError: a third derivative was asked for outside the reference backend.
    """
    check_tensor(positions, "positions", ("replicas", "atoms", 3))
    check_tensor(quadruples, "quadruples", ("torsions", 4), dtypes=(torch.int64, torch.int32),
                 like=("positions", positions))
    quadruples = quadruples.to(torch.int64)
    if run_reference(positions.device.type, "torsions"):
        _check_quadruples(quadruples, positions.shape[1])
        return torsions_core(positions, quadruples)
    return torch.ops.diffmd_fast.torsions(positions, quadruples)


def _check_quadruples(quadruples: Tensor, n_atoms: int) -> None:
    ordered = quadruples.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    bad = ((ordered[:, 0] < 0) | (ordered[:, 3] >= n_atoms) | twice).nonzero()
    if len(bad):
        _refuse(quadruples, int(bad[0]), n_atoms)


def _refuse(quadruples: Tensor, row: int, n_atoms: int) -> None:
    raise InputError(f"quadruples: expected four different atoms of 0..{n_atoms - 1} in every row, got "
                     f"{quadruples[row].tolist()} in row {row}")


def _checked(positions: Tensor, quadruples: Tensor, grad_output: Tensor | None = None,
             cotangent: Tensor | None = None) -> list[Tensor | None]:
    """The arguments as kernels read them; callers of torch.ops.diffmd_fast have not met the checks above."""
    check_tensor(positions, "positions", ("replicas", "atoms", 3))
    check_tensor(quadruples, "quadruples", ("torsions", 4), dtypes=(torch.int64, torch.int32))
    n_replicas, n_atoms, n_torsions = positions.shape[0], positions.shape[1], quadruples.shape[0]
    arguments = [positions.contiguous(), quadruples.to(torch.int64).contiguous()]
    for argument, value, shape in (("grad_output", grad_output, (n_replicas, n_torsions, 2)),
                                   ("cotangent", cotangent, (n_replicas, n_atoms, 3))):
        if value is not None:
            check_tensor(value, argument, shape, like=("positions", positions))
            value = value.contiguous()
        arguments.append(value)
    return arguments


def _call(name: str, positions: Tensor, quadruples: Tensor, grad_output: Tensor | None = None,
          cotangent: Tensor | None = None, output: Tensor | None = None,
          grad_positions: Tensor | None = None) -> None:
    """Run one native kernel; it checks the quadruples before it writes to the outputs."""
    inputs = _checked(positions, quadruples, grad_output, cotangent)  # alive until the kernel has returned
    addresses = [0 if t is None else t.data_ptr() for t in (*inputs, output, grad_positions)]
    n_replicas, n_atoms, _ = positions.shape
    bad_row = native(name, positions.dtype)(n_replicas, n_atoms, quadruples.shape[0], *addresses, get_num_threads())
    if bad_row >= 0:
        _refuse(quadruples, bad_row, n_atoms)


def _cpu(positions, quadruples):
    output = _fake(positions, quadruples)
    _call("torsions", positions, quadruples, output=output)
    return output


def _fake(positions, quadruples):
    return positions.new_empty(positions.shape[0], quadruples.shape[0], 2)


def _cpu_backward(grad_output, positions, quadruples):
    grad_positions = _fake_backward(grad_output, positions, quadruples)
    _call("torsions_backward", positions, quadruples, grad_output, grad_positions=grad_positions)
    return grad_positions


def _fake_backward(grad_output, positions, quadruples):
    return torch.empty_like(positions, memory_format=torch.contiguous_format)


def _cpu_double_backward(cotangent, grad_output, positions, quadruples):
    outputs = _fake_double_backward(cotangent, grad_output, positions, quadruples)
    _call("torsions_double_backward", positions, quadruples, grad_output, cotangent, *outputs)
    return outputs


def _fake_double_backward(cotangent, grad_output, positions, quadruples):
    return (torch.empty_like(grad_output, memory_format=torch.contiguous_format),
            torch.empty_like(positions, memory_format=torch.contiguous_format))


def _triton(positions, quadruples):
    from ..kernels.triton import torsions as kernels

    positions, quadruples, _, _ = _checked(positions, quadruples)
    _check_quadruples(quadruples, positions.shape[1])
    return kernels.angles(positions, quadruples)


def _within(positions, quadruples):
    """The host does not look at the quadruples of a GPU: what is no atom becomes the first or the last."""
    return quadruples.clamp(0, max(0, positions.shape[1] - 1))


def _triton_unchecked(positions, quadruples):
    from ..kernels.triton import torsions as kernels

    positions, quadruples = _checked(positions, quadruples)[:2]
    return kernels.angles(positions, _within(positions, quadruples))


def _triton_backward_unchecked(grad_output, positions, quadruples):
    from ..kernels.triton import torsions as kernels

    positions, quadruples, grad_output, _ = _checked(positions, quadruples, grad_output)
    return kernels.gradient(grad_output, positions, _within(positions, quadruples))


def _triton_backward(grad_output, positions, quadruples):
    from ..kernels.triton import torsions as kernels

    positions, quadruples, grad_output, _ = _checked(positions, quadruples, grad_output)
    _check_quadruples(quadruples, positions.shape[1])
    return kernels.gradient(grad_output, positions, quadruples)


def _triton_double_backward(cotangent, grad_output, positions, quadruples):
    from ..kernels.triton import torsions as kernels

    positions, quadruples, grad_output, cotangent = _checked(positions, quadruples, grad_output, cotangent)
    _check_quadruples(quadruples, positions.shape[1])
    return (kernels.angles(positions, quadruples, cotangent),
            kernels.gradient(grad_output, positions, quadruples, cotangent))


def _other(positions, quadruples):
    _check_quadruples(quadruples, positions.shape[1])
    return torsions_core(positions, quadruples)


def _other_double_backward(cotangent, grad_output, positions, quadruples):
    return torsions_double_backward_core(cotangent, grad_output, positions, quadruples)[:2]


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_output):
    positions, quadruples = ctx.saved_tensors
    return torch.ops.diffmd_fast.torsions_backward(grad_output, positions, quadruples), None


def _backward_of_backward(ctx, cotangent):
    return *torch.ops.diffmd_fast.torsions_double_backward(cotangent, *ctx.saved_tensors), None


def _third_derivative(ctx, *grads):
    raise UnavailableError("torsions: the third derivative (gradient of torsions_double_backward) is not "
                           "available outside the reference backend: use_backend(\"reference\") has every order")


define("torsions(Tensor positions, Tensor quadruples) -> Tensor", _cpu, _fake, _other, _triton)
define("torsions_backward(Tensor grad_output, Tensor positions, Tensor quadruples) -> Tensor", _cpu_backward,
       _fake_backward, torsions_backward_core, _triton_backward)
define("torsions_double_backward(Tensor cotangent, Tensor grad_output, Tensor positions, Tensor quadruples) "
       "-> (Tensor, Tensor)", _cpu_double_backward, _fake_double_backward, _other_double_backward,
       _triton_double_backward)
# For steps captured in a graph: the same without gradient, and without looking at the quadruples of CUDA tensors.
define("torsions_unchecked(Tensor positions, Tensor quadruples) -> Tensor", _cpu, _fake, triton=_triton_unchecked)
define("torsions_backward_unchecked(Tensor grad_output, Tensor positions, Tensor quadruples) -> Tensor",
       _cpu_backward, _fake_backward, triton=_triton_backward_unchecked)
register_autograd("torsions", _backward, _setup_context)
register_autograd("torsions_backward", _backward_of_backward, _setup_context)
register_autograd("torsions_double_backward", _third_derivative)
