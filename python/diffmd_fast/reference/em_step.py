"""Plain PyTorch truth for em_step: Philox in integers, Box-Muller, one line of dynamics."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def philox_words(seed: int, replica: Tensor, step: int | Tensor, atom: Tensor, domain: int = 0) -> list[Tensor]:
    """The four 32-bit words (as int64) of Philox4x32-10 for each (replica, atom); Salmon et al., SC 2011.

    ``replica`` and ``atom`` are int64 and broadcast; key = seed, counter = (atom, replica, step low,
    step high | domain << 24).  ``step``: an integer, or int64 [1].
    """
    atom, replica = torch.broadcast_tensors(atom & MASK, replica & MASK)
    c0, c1 = atom, replica
    c2 = torch.zeros_like(c0) + (step & MASK)
    c3 = torch.zeros_like(c0) + (((step >> 32) & 0xFFFFFF) | (domain << 24))
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of constant * word; int64 would overflow, so the word is taken in halves."""
    low_product = constant * (word & 0xFFFF)
    high_product = constant * (word >> 16) + (low_product >> 16)
    return high_product >> 16, ((high_product << 16) | (low_product & 0xFFFF)) & MASK


def normals(seed: int, replica: Tensor, step: int | Tensor, atom: Tensor, dtype: torch.dtype,
            domain: int = 0) -> Tensor:
    """Standard normals [..., 3] from the words: u = ((w >> 8) + 1) / 2^24 is the radius, w >> 8 the angle in turns."""
    w = philox_words(seed, replica, step, atom, domain)
    scale = 2.0**-24
    radius = [torch.sqrt(-2.0 * torch.log(((w[i] >> 8) + 1).to(dtype) * scale)) for i in (0, 2)]
    angle = [(w[i] >> 8).to(dtype) * (scale * 2.0 * math.pi) for i in (1, 3)]
    return torch.stack([radius[0] * torch.cos(angle[0]), radius[0] * torch.sin(angle[0]),
                        radius[1] * torch.cos(angle[1])], dim=-1)


class EmStepResult(NamedTuple):
    """What :func:`em_step` returns when the noise or the log density was asked for; None for what was not."""

    positions: Tensor
    noise: Tensor | None
    log_density: Tensor | None


def em_step_core(positions: Tensor, score: Tensor, diffusion_time: Tensor, variance: Tensor, seed: int,
                 first_replica: int, step: int | Tensor, domain: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(new positions, noise, log density); ``diffusion_time`` = D * time step in nm^2, [1] or [atoms]."""
    n_replicas, n_atoms, _ = positions.shape
    replica = first_replica + torch.arange(n_replicas, device=positions.device)[:, None]
    atom = torch.arange(n_atoms, device=positions.device)[None, :]
    noise = normals(seed, replica, step, atom, positions.dtype, domain)
    d = diffusion_time.to(torch.float64)[None, :, None]
    v = variance.to(torch.float64)[:, None, None]
    amplitude = torch.sqrt(2.0 * d * v).to(positions.dtype)
    moved = positions + (d.to(positions.dtype) * score + amplitude * noise)
    return moved, noise, log_density_of(noise, diffusion_time, variance)


def log_density_of(noise: Tensor, diffusion_time: Tensor, variance: Tensor) -> Tensor:
    """log p(x'|x) [replicas] of the step that drew ``noise`` [replicas, atoms, 3]."""
    spread = 4.0 * math.pi * diffusion_time.to(torch.float64)[None, :, None] * variance.to(torch.float64)[:, None, None]
    normalization = torch.log(spread).expand(noise.shape).sum((1, 2))
    return (-0.5 * (noise.double() ** 2).sum((1, 2)) - 0.5 * normalization).to(noise.dtype)
