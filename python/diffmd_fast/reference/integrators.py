"""Plain PyTorch truth for what integrators do besides em_step: Metropolis' decision, and BAOAB's move."""

from __future__ import annotations

import torch
from torch import Tensor

from .em_step import philox_words


def metropolis_core(before: Tensor, score_before: Tensor, energy_before: Tensor, proposal: Tensor, score: Tensor,
                    energy: Tensor, diffusion_time: Tensor, variance: Tensor, seed: int, first_replica: int,
                    step: int | Tensor, domain: int) -> Tensor:
    """Which proposals are accepted, bool [replicas] (docs/theory.md section 3).

    log a = -(E(y) - E(x))/v - (|x - m(y)|^2 - |y - m(x)|^2)/(4 D dt v) with m(x) = x + D dt s(x); all positions and
    scores [replicas, atoms, 3], energies [replicas] in kT0, ``diffusion_time`` D dt [1] or [atoms], ``variance`` v [1].
    """
    x, s, y, t = (each.double() for each in (before, score_before, proposal, score))
    d = diffusion_time[None, :, None]
    back, forth = x - y - d * t, y - x - d * s
    log_ratio = -((back**2 - forth**2) / (4 * d * variance)).sum((1, 2))
    log_ratio = log_ratio - (energy.double() - energy_before.double()) / variance
    replica = first_replica + torch.arange(len(x), device=x.device)
    word = philox_words(seed, replica, step, torch.zeros_like(replica), domain)[0]
    return torch.log(((word >> 8) + 1).double() * 2.0**-24) <= log_ratio  # False where NaN


def langevin_move_core(positions: Tensor, velocities: Tensor, score: Tensor, noise: Tensor, half_step: float,
                       kick: Tensor, decay: Tensor, amplitude: Tensor) -> None:
    """v += kick s; x += dt/2 v; v = decay v + amplitude xi; x += dt/2 v, in place; constants float64 [atoms]."""
    kick, decay, amplitude = (each.to(positions.dtype)[:, None] for each in (kick, decay, amplitude))
    velocities += kick * score
    positions += half_step * velocities
    velocities.mul_(decay).add_(amplitude * noise)
    positions += half_step * velocities
