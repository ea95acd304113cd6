"""One spring-tied denoising step, which is one Euler-Maruyama step.

arXiv 2511.17741, in the form settled in docs/theory.md section 1:

    x' = x + D dt s(x) + sqrt(2 D dt v) xi,    k = 1/(2 D dt),    v = T/T0

Fast paths: csrc/em_step.cpp and kernels/triton/em_step.py.  Truth: reference/em_step.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import run_reference
from ..errors import InputError, check_integer, check_number, check_tensor, require
from ..reference.em_step import EmStepResult, em_step_core, log_density_of
from ._library import LIBRARY, NATIVE_DTYPES, define, get_num_threads, native, refuse_gradient, register_autograd

MAX_ATOMS = 2**31 - 32  # csrc/normals.hpp counts atoms in signed 32 bits, a register ahead


def em_step(positions: Tensor, score: Tensor, *, diffusion: float | Tensor, time_step: float | None = None,
            stiffness: float | Tensor | None = None, variance: float | Tensor = 1.0, seed: int = 0,
            first_replica: int = 0, step: int = 0, return_noise: bool = False,
            return_log_density: bool = False, out: Tensor | None = None) -> Tensor | EmStepResult:
    """Advance every replica by one step.

    Args:
        positions: [replicas, atoms, 3] nm, float32 or float64.
        score: [replicas, atoms, 3] 1/nm, the gradient of log p at ``positions``.
        diffusion: D in nm^2/ps, a number or one per atom [atoms].
        time_step: ps.  Give either this or ``stiffness``.
        stiffness: k = 1/(2 D dt) in 1/nm^2, a number or one per atom [atoms].
        variance: T/T0, a number or one per replica [replicas]; scales the noise and leaves the drift.
        seed: 0 .. 2^64-1.
        first_replica: number of the batch's first replica; replica r draws the noise of first_replica + r, so a
            batch may be cut anywhere without changing a trajectory.
        step: number of the step, 0 .. 2^56-1.
        return_noise: also return xi [replicas, atoms, 3].
        return_log_density: also return log p(x'|x) [replicas], of the Gaussian in (spring).
        out: write the new positions into this contiguous tensor like ``positions``, and return it.  ``positions``
            itself makes the step in place, on a CPU without memory of its own unless noise or log density are asked
            for; any other tensor saves the caller a copy, no memory.  Not with gradients.

    Returns:
        The new positions, or an :class:`EmStepResult` when noise or log density was asked for.  Differentiable
        to any order with respect to positions and score (the log density does not depend on them: its
        gradient is zero); not with respect to diffusion, variance, time_step or stiffness.

    Raises:
        InputError: an argument of the wrong shape, dtype, device or range; the message names it.
    """
    diffusion_time, variance = _check(positions, score, diffusion, time_step, stiffness, variance, seed,
                                      first_replica, step)
    if out is not None:
        _check_out(out, positions, score)
    signed = seed - 2**64 if seed >= 2**63 else seed  # a schema's int is signed; the bits are the same
    by_reference = run_reference(positions.device.type, "em_step")
    if out is positions and not (by_reference or return_noise or return_log_density):
        torch.ops.diffmd_fast.em_step_(positions, score, diffusion_time, variance, signed, first_replica, step)
        return positions
    if by_reference:
        outputs = em_step_core(positions, score, diffusion_time, variance, seed, first_replica, step)
    else:
        outputs = torch.ops.diffmd_fast.em_step(positions, score, diffusion_time, variance, signed, first_replica,
                                                step, return_noise or return_log_density, return_log_density)
    moved = outputs[0] if out is None else out.copy_(outputs[0])
    if not (return_noise or return_log_density):
        return moved
    return EmStepResult(moved, outputs[1] if return_noise else None,
                        outputs[2] if return_log_density else None)


def _check(positions, score, diffusion, time_step, stiffness, variance, seed, first_replica, step):
    check_tensor(positions, "positions", ("replicas", "atoms", 3))
    n_replicas, n_atoms, _ = positions.shape
    check_tensor(score, "score", tuple(positions.shape), like=("positions", positions))
    check_integer(seed, "seed", minimum=0, maximum=2**64 - 1)
    check_integer(first_replica, "first_replica", minimum=0, maximum=2**32 - 1 - n_replicas)
    check_integer(step, "step", minimum=0, maximum=2**56 - 1)
    require((time_step is None) != (stiffness is None), "time_step", "either time_step or stiffness",
            "both" if time_step is not None else "neither")
    d = _per("diffusion", diffusion, n_atoms, positions.device, "nm^2/ps", above_zero=True)
    if time_step is not None:
        diffusion_time = d * check_number(time_step, "time_step", above=0, unit="ps")
    else:
        k = _per("stiffness", stiffness, n_atoms, positions.device, "1/nm^2", above_zero=True)
        diffusion_time = (0.5 / k).expand(d.shape) if d.numel() > k.numel() else 0.5 / k
    v = _per("variance", variance, n_replicas, positions.device, "", above_zero=False, each="replicas")
    return diffusion_time.contiguous(), v


def _check_out(out, positions, score) -> None:
    check_tensor(out, "out", tuple(positions.shape), like=("positions", positions))
    require(out.is_contiguous(), "out", "a contiguous tensor", f"strides {list(out.stride())}")
    tracked = torch.is_grad_enabled() and (out.requires_grad or positions.requires_grad or score.requires_grad)
    require(not tracked, "out", "no gradients (no derivative goes through out)", "requires_grad=True")


def _per(name: str, value, n: int, device, unit: str, above_zero: bool, each: str = "atoms") -> Tensor:
    """A float64 tensor [1] or [n] from a number or a tensor of one per atom (or replica), checked."""
    if not isinstance(value, Tensor):
        bound = {"above": 0} if above_zero else {"minimum": 0}
        return torch.tensor([check_number(value, name, unit=unit, **bound)], dtype=torch.float64, device=device)
    if value.requires_grad:
        raise InputError(f"{name}: expected a tensor without gradient (em_step is not differentiable with respect "
                         f"to {name}), got requires_grad=True")
    require(value.dim() <= 1 and value.numel() in (1, n), name, f"a number or shape [{n}] (one for each of the {each})",
            f"shape {list(value.shape)}")
    require(value.device == device, name, f"the device of positions ({device})", value.device)
    value = value.to(torch.float64).reshape(-1).contiguous()  # kernels read it through its address
    good = torch.isfinite(value) & (value > 0 if above_zero else value >= 0)
    require(bool(good.all()), name, f"finite values {'above' if above_zero else 'of at least'} 0 {unit}".rstrip(),
            f"{value[~good][:1].tolist()} among them")
    return value


def _check_call(positions, score, diffusion_time, variance, first_replica, step) -> None:
    """What memory safety needs: callers of torch.ops.diffmd_fast.em_step have not met the checks above.

    One condition for all, so that the sampler's calls, which have, pay next to nothing.
    """
    if (positions.dim() == 3 and positions.shape[2] == 3 and positions.dtype in NATIVE_DTYPES
            and score.shape == positions.shape and score.dtype == positions.dtype
            and diffusion_time.shape in ((1,), positions.shape[1:2]) and variance.shape in ((1,), positions.shape[:1])
            and diffusion_time.dtype == variance.dtype == torch.float64
            and positions.shape[1] <= MAX_ATOMS and 0 <= first_replica <= 2**32 - 1 and 0 <= step < 2**56):
        return
    check_tensor(positions, "positions", ("replicas", "atoms", 3))
    require(positions.shape[1] <= MAX_ATOMS, "positions", f"at most {MAX_ATOMS} atoms", positions.shape[1])
    check_tensor(score, "score", tuple(positions.shape), like=("positions", positions))
    for name, value, n in (("diffusion_time", diffusion_time, positions.shape[1]),
                           ("variance", variance, positions.shape[0])):
        check_tensor(value, name, (n if value.numel() != 1 else 1,), dtypes=(torch.float64,))
    check_integer(first_replica, "first_replica", minimum=0, maximum=2**32 - 1)
    check_integer(step, "step", minimum=0, maximum=2**56 - 1)


def _cpu(positions, score, diffusion_time, variance, seed, first_replica, step, with_noise, with_log_density):
    _check_call(positions, score, diffusion_time, variance, first_replica, step)
    positions, score, diffusion_time, variance = (t.contiguous() for t in (positions, score, diffusion_time, variance))
    moved = torch.empty_like(positions)
    noise = torch.empty_like(positions) if with_noise or with_log_density else positions.new_empty(0)
    log_density = positions.new_empty(positions.shape[0] if with_log_density else 0)
    _native(positions, score, diffusion_time, variance, seed, first_replica, step, moved,
            noise.data_ptr() if noise.numel() else 0, log_density.data_ptr() if with_log_density else 0)
    return moved, noise, log_density


def _native(positions, score, diffusion_time, variance, seed, first_replica, step, moved, noise=0, log_density=0,
            domain=0):
    native("em_step", positions.dtype)(
        positions.shape[0], positions.shape[1], positions.data_ptr(), score.data_ptr(), diffusion_time.data_ptr(),
        diffusion_time.numel() > 1, variance.data_ptr(), variance.numel() > 1, seed & (2**64 - 1), first_replica, step,
        domain, moved.data_ptr(), noise, log_density, get_num_threads())


def _triton(positions, score, diffusion_time, variance, seed, first_replica, step, with_noise, with_log_density):
    from ..kernels.triton.em_step import em_step as kernel

    _check_call(positions, score, diffusion_time, variance, first_replica, step)
    moved, noise = kernel(positions, score, diffusion_time, variance, seed, first_replica, step,
                          with_noise=with_noise or with_log_density)
    return moved, noise, log_density_of(noise, diffusion_time, variance) if with_log_density else noise.new_empty(0)


def _other(positions, score, diffusion_time, variance, seed, first_replica, step, with_noise, with_log_density):
    _check_call(positions, score, diffusion_time, variance, first_replica, step)
    moved, noise, log_density = em_step_core(positions, score, diffusion_time, variance, seed & (2**64 - 1),
                                             first_replica, step)
    return (moved, noise if with_noise or with_log_density else positions.new_empty(0),
            log_density if with_log_density else positions.new_empty(0))


def _fake(positions, score, diffusion_time, variance, seed, first_replica, step, with_noise, with_log_density):
    return (torch.empty_like(positions, memory_format=torch.contiguous_format),
            torch.empty_like(positions, memory_format=torch.contiguous_format) if with_noise or with_log_density
            else positions.new_empty(0),
            positions.new_empty(positions.shape[0] if with_log_density else 0))


def _cpu_in_place(positions, score, diffusion_time, variance, seed, first_replica, step, domain=0):
    _check_call(positions, score, diffusion_time, variance, first_replica, step)
    if not positions.is_contiguous():
        kept = positions.contiguous()
        _cpu_in_place(kept, score, diffusion_time, variance, seed, first_replica, step, domain)
        positions.copy_(kept)
        return
    score, diffusion_time, variance = (t.contiguous() for t in (score, diffusion_time, variance))
    apart = abs(positions.data_ptr() - score.data_ptr())
    require(apart == 0 or apart >= positions.nbytes, "score", "memory apart from that of positions, which are "
            "overwritten", "an overlap")
    _native(positions, score, diffusion_time, variance, seed, first_replica, step, positions, domain=domain)


def _triton_in_place(positions, *arguments):
    positions.copy_(_triton(positions, *arguments, False, False)[0])


def _other_in_place(positions, *arguments):
    positions.copy_(_other(positions, *arguments, False, False)[0])


def _fake_in_place(positions, score, diffusion_time, variance, seed, first_replica, step):
    return None


def _no_gradient_in_place(positions, score, diffusion_time, variance, seed, first_replica, step):
    tensors = {"positions": positions, "score": score, "diffusion_time": diffusion_time, "variance": variance}
    for name, tensor in tensors.items():
        require(not (torch.is_grad_enabled() and tensor.requires_grad), name, "a tensor without gradient (em_step_ "
                "overwrites positions and is not differentiable)", "requires_grad=True")
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.diffmd_fast.em_step_(positions, score, diffusion_time, variance, seed, first_replica, step)


def _check_clock(positions, score, diffusion_time, variance, seed, first_replica, clock, domain) -> None:
    """What the host can know of a step whose number it does not look at."""
    _check_call(positions, score, diffusion_time, variance, first_replica, 0)
    check_tensor(clock, "step", (1,), dtypes=(torch.int64,), like=("positions", positions))
    check_integer(domain, "domain", minimum=0, maximum=255)


def _cpu_at(positions, *arguments):
    _check_clock(positions, *arguments)
    *given, clock, domain = arguments
    _cpu_in_place(positions, *given, check_integer(clock.item(), "step", minimum=0, maximum=2**56 - 1), domain)


def _triton_at(positions, *arguments):
    from ..kernels.triton.em_step import em_step as kernel

    _check_clock(positions, *arguments)
    moved = positions if positions.is_contiguous() else None
    moved, _ = kernel(positions, *arguments, with_noise=False, moved=moved)
    if moved is not positions:
        positions.copy_(moved)


def _other_at(positions, score, diffusion_time, variance, seed, first_replica, clock, domain):
    _check_clock(positions, score, diffusion_time, variance, seed, first_replica, clock, domain)
    positions.copy_(em_step_core(positions, score, diffusion_time, variance, seed & (2**64 - 1), first_replica, clock,
                                 domain)[0])


def _fake_at(positions, score, diffusion_time, variance, seed, first_replica, clock, domain):
    return None


def _setup_context(ctx, inputs, output):
    refuse_gradient(ctx, "em_step", {2: "diffusion_time", 3: "variance"})
    ctx.save_for_backward(inputs[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx, grad_moved, grad_noise, grad_log_density):
    """x' is linear in positions and score, so plain torch operations give every higher derivative."""
    (diffusion_time,) = ctx.saved_tensors
    grad_score = grad_moved * diffusion_time.to(grad_moved.dtype)[None, :, None]
    return grad_moved, grad_score, None, None, None, None, None, None, None


define("em_step(Tensor positions, Tensor score, Tensor diffusion_time, Tensor variance, int seed, "
       "int first_replica, int step, bool with_noise, bool with_log_density) -> (Tensor, Tensor, Tensor)",
       _cpu, _fake, _other, _triton)
register_autograd("em_step", _backward, _setup_context)

# A second operator and not an argument of the first: a schema says once for all what is overwritten.
define("em_step_(Tensor(a!) positions, Tensor score, Tensor diffusion_time, Tensor variance, int seed, "
       "int first_replica, int step) -> ()", _cpu_in_place, _fake_in_place, _other_in_place, _triton_in_place)
LIBRARY.impl("em_step_", _no_gradient_in_place, "Autograd")

# The step of a captured CUDA graph: its number stands on the device, so that replays go on counting. No gradients.
define("em_step_at_(Tensor(a!) positions, Tensor score, Tensor diffusion_time, Tensor variance, int seed, "
       "int first_replica, Tensor step, int domain) -> ()", _cpu_at, _fake_at, _other_at, _triton_at)
