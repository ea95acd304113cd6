"""Models with known answers, and a small SchNet of random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffmd_fast.models import SchNet
from diffmd_fast.models.energy import Energy


class Well(Energy):
    """E = stiffness/2 |x|^2 for every atom; stiffness in 1/nm^2."""

    def __init__(self, n_atoms: int = 4, stiffness: float = 100.0):
        super().__init__()
        self.n_atoms, self.stiffness = n_atoms, stiffness

    def energy_and_score(self, positions, noise_level=None):
        return 0.5 * self.stiffness * positions.square().sum((1, 2)), -self.stiffness * positions


class Breaks(Well):
    """A well whose score is NaN for a replica whose first coordinate exceeds ``edge``."""

    def __init__(self, edge: float, **arguments):
        super().__init__(**arguments)
        self.edge = edge

    def energy_and_score(self, positions, noise_level=None):
        energy, score = super().energy_and_score(positions)
        broken = positions[:, 0, 0] > self.edge
        return energy, torch.where(broken[:, None, None], float("nan"), score)


class ScoreOnly(nn.Module):
    """The score of a Gaussian, as a module with parameters and nothing but ``score(positions)``."""

    def __init__(self, stiffness: float = 100.0):
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(stiffness))

    def score(self, positions: Tensor) -> Tensor:
        return -self.stiffness * positions


class Gaussian(Energy):
    """N(0, variance) per coordinate, smoothed by a noise level: score -x/(variance + sigma^2)."""

    def __init__(self, n_atoms: int = 5, variance: float = 0.01, noise_levels=(0.005, 0.5)):
        super().__init__()
        self.n_atoms, self.variance = n_atoms, variance
        self.noise_levels, self.noise_level = noise_levels, noise_levels[0]

    def energy_and_score(self, positions, noise_level=None):
        total = self.variance + (self.noise_level if noise_level is None else noise_level) ** 2
        return positions.square().sum((1, 2)) / (2 * total), -positions / total


BONDS = [(0, 1), (1, 2), (2, 3), (3, 4)]


def small_schnet(seed: int = 3) -> SchNet:
    """Five beads, random weights; springs hold the bonds, bends the angles."""
    torch.manual_seed(seed)
    springs = {"pairs": BONDS, "mean": [0.15] * 4, "variance": [1e-5] * 4}
    bends = {"triples": [(0, 1, 2), (1, 2, 3), (2, 3, 4)], "mean": [-0.4] * 3, "variance": [2e-2] * 3,
             "slope": [120.0] * 3}
    model = SchNet(n_atoms=5, n_features=16, n_blocks=2, bonds=BONDS, springs=springs, bends=bends, spread=0.02,
                   n_harmonics=3)
    with torch.no_grad():
        model.readout_out.normal_()
        model.torsion_series.normal_()
    return model.requires_grad_(False)


def chain_positions(n_replicas: int) -> Tensor:
    """A bent, twisted chain of bonds near 0.15 nm with some noise, [n_replicas, 5, 3]."""
    base = torch.tensor([[0.0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.21, 0.18, 0.144], [0.33, 0.25, 0.2]])
    generator = torch.Generator().manual_seed(1)
    return base + 0.002 * torch.randn(n_replicas, 5, 3, generator=generator)


def start(n_replicas: int, n_atoms: int = 4, width: float = 0.1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return width * torch.randn(n_replicas, n_atoms, 3, generator=generator)
