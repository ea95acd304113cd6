"""Denoising score matching: which noise, and the loss.  docs/theory.md section 2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_KNOWN = 0.02  # of the noise, for `pair_weight`: without bonds the energy that training begins with knows nothing


@dataclass(frozen=True)
class Batch:
    """Snapshots [frames, atoms, 3] nm of one step, their noise xi of the same shape and noise levels [frames] nm.

    The last ``2 n_pairs`` are pairs: the same snapshots twice, with xi and with -xi, at the smallest level.
    """

    positions: Tensor
    noise: Tensor
    noise_level: Tensor
    n_pairs: int

    @property
    def n_single(self) -> int:
        return len(self.positions) - 2 * self.n_pairs


def draw_batch(frames: Tensor, batch_size: int, n_pairs: int, levels: tuple[float, float],
               generator: torch.Generator) -> Batch:
    """``batch_size`` of the snapshots ``frames``, ``n_pairs`` of them twice (:class:`Batch`)."""
    n_single = batch_size - 2 * n_pairs
    index = torch.randint(len(frames), (n_single + n_pairs,), generator=generator)
    level = torch.cat([draw_noise_levels(n_single, levels, generator), torch.full((2 * n_pairs,), levels[0])])
    positions = frames[index]
    noise = draw_noise(positions.shape, generator)
    return Batch(torch.cat([positions, positions[n_single:]]), torch.cat([noise, -noise[n_single:]]), level, n_pairs)


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


def pair_weight(model, frames: Tensor, noise_level: float) -> float:
    """One over sigma^2 <|s|^2> per degree of freedom, s the score of ``model`` at frames [frames, atoms, 3] nm.

    At small noise nearly all of xi is chance that no score can know, and the least loss is 1 - sigma^2 <|s|^2>: 0.97
    at 0.0005 nm for a molecule with hydrogens.  With this weight the loss is the error of the score relative to it.
    """
    score = model.score(frames, noise_level)
    known = denoising_error(score, torch.zeros_like(score), score.new_full((len(score),), noise_level))
    return 1 / max(known.mean().item(), LEAST_KNOWN)


def pair_loss(losses: Tensor, noise: Tensor, weight: float) -> Tensor:
    """weight (|sigma s + xi|^2 - |xi|^2) for each frame of pairs, [frames], from its denoising loss.

    With `pair_weight` its mean over frames is the mean square of what is wrong with the score, relative to the score,
    up to a constant.  What a step learns from one frame is 2 s xi/sigma, of which nearly all is chance at small sigma;
    in the sum over xi and -xi the chance cancels and xi (ds/dx) xi is left, as in sliced score matching (Song et al.,
    UAI 2019, arXiv 1905.07088).
    """
    return weight * (losses - denoising_error(torch.zeros_like(noise), noise, noise.new_zeros(len(noise))))
