"""Denoising score matching: which noise, and the loss.  docs/theory.md section 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    """|sigma s(x + sigma xi, sigma) + xi|^2 per degree of freedom, for each frame [frames]; see `energy_and_loss`."""
    return energy_and_loss(model, positions, noise, noise_level, create_graph)[1]


def noised(positions: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """x + sigma xi [frames, atoms, 3]."""
    return positions + noise_level[:, None, None] * noise


def energy_and_loss(model, positions: Tensor, noise: Tensor, noise_level: Tensor,
                    create_graph: bool = True) -> tuple[Tensor, Tensor]:
    """Energies [frames] in kT0 of the noised frames x + sigma xi, and the denoising loss [frames].

    ``positions`` [frames, atoms, 3] nm, ``noise`` xi of the same shape, ``noise_level`` sigma [frames] nm.
    The score is minus the gradient of the model's energy, so the drift is conservative.
    """
    moved = noised(positions, noise, noise_level).requires_grad_()
    with torch.enable_grad():
        energy = model(moved, noise_level)
        (gradient,) = torch.autograd.grad(energy.sum(), moved, create_graph=create_graph)
    return energy, denoising_error(-gradient, noise, noise_level)


def denoising_error(score: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """|sigma s + xi|^2 per degree of freedom [frames], of a score [frames, atoms, 3] taken at x + sigma xi."""
    degrees_of_freedom = 3 * max(score.shape[1] - 1, 1)
    return (noise + noise_level[:, None, None] * score).square().sum((1, 2)) / degrees_of_freedom
