"""Denoising score matching: which noise, and the loss.  docs/theory.md section 2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Snapshots [frames, atoms, 3] nm of one step, their noise xi of the same shape and noise levels [frames] nm.

    Those from ``n_drawn`` on have the smallest level, at which a force field tells the score.
    """

    positions: Tensor
    noise: Tensor
    noise_level: Tensor
    n_drawn: int


def draw_batch(frames: Tensor, batch_size: int, n_smallest: int, levels: tuple[float, float],
               generator: torch.Generator) -> Batch:
    """``batch_size`` of the snapshots ``frames``, the last ``n_smallest`` of them with the smallest noise."""
    n_drawn = batch_size - n_smallest
    index = torch.randint(len(frames), (batch_size,), generator=generator)
    level = torch.cat([draw_noise_levels(n_drawn, levels, generator), torch.full((n_smallest,), levels[0])])
    positions = frames[index]
    return Batch(positions, draw_noise(positions.shape, generator), level, n_drawn)


def draw_noise_levels(n: int, levels: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Noise levels [n] in nm for one batch, stratified so that every batch covers the range.

    log sigma has a density that falls linearly from the smallest to the largest level: dynamics runs at the
    smallest one, so accuracy is wanted there; the large ones serve reverse diffusion only.
    """
    low, high = math.log(levels[0]), math.log(levels[1])
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return torch.exp(low + (high - low) * (1 - torch.sqrt(1 - u)))


def draw_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Standard normal noise [frames, atoms, 3] without its translation.

    The energy does not see the position of the molecule's centre, so noise on it could not be predicted: taking
    it out removes that much variance from the loss and changes nothing else.  Rotations need no such care: the
    energy is invariant under them, and noise in that direction is part of the density that is learned.
    """
    noise = torch.randn(shape, generator=generator)
    return noise - noise.mean(1, keepdim=True)


def denoising_loss(model, positions: Tensor, noise: Tensor, noise_level: Tensor, create_graph: bool = True) -> Tensor:
    """|sigma s(x + sigma xi, sigma) + xi|^2 per degree of freedom, for each frame [frames].

    ``positions`` [frames, atoms, 3] nm, ``noise`` xi of the same shape, ``noise_level`` sigma [frames] nm.
    """
    score = energy_and_score(model, noised(positions, noise, noise_level), noise_level, create_graph)[1]
    return denoising_error(score, noise, noise_level)


def noised(positions: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """x + sigma xi [frames, atoms, 3]."""
    return positions + noise_level[:, None, None] * noise


def energy_and_score(model, moved: Tensor, noise_level: Tensor, create_graph: bool = True) -> tuple[Tensor, Tensor]:
    """Energies [frames] in kT0 and scores [frames, atoms, 3] in 1/nm of frames moved by noise [frames, atoms, 3] nm.

    Noise levels are [frames] nm.  The score is minus the gradient of the model's energy, so the drift is conservative.
    """
    moved = moved.detach().requires_grad_()
    with torch.enable_grad():
        energy = model(moved, noise_level)
        (gradient,) = torch.autograd.grad(energy.sum(), moved, create_graph=create_graph)
    return energy, -gradient


def denoising_error(score: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """|sigma s + xi|^2 per degree of freedom [frames], of a score [frames, atoms, 3] taken at x + sigma xi."""
    degrees_of_freedom = 3 * max(score.shape[1] - 1, 1)
    return (noise + noise_level[:, None, None] * score).square().sum((1, 2)) / degrees_of_freedom


def relative_error(score: Tensor, told: Tensor, square: Tensor) -> Tensor:
    """|score - told|^2 over ``square``, the mean of |told|^2, for each frame [frames] of scores [frames, atoms, 3]."""
    return (score - told).square().sum((1, 2)) / square
