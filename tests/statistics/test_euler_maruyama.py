"""Euler-Maruyama against exact answers (docs/theory.md section 9).

Seeds are fixed.  Every comparison is of a mean over independent samples with its exact standard error, and fails
beyond 4.5 of them: 6.8e-6 a comparison, so under 1e-4 for the dozen made here if the seed were changed.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from diffmd_fast.models.energy import Energy
from diffmd_fast.sampling import Sampler, Spring

LIMIT = 4.5
S2 = 0.01  # nm^2, variance of the density exp(-x^2/(2 S2))


class Harmonic(Energy):
    n_atoms = 16

    def energy_and_score(self, positions, noise_level=None):
        return positions.square().sum((1, 2)) / (2 * S2), -positions / S2


class TiltedDoubleWell(Energy):
    """Along x: B ((x/W)^2 - 1)^2 + C x/W per atom; y and z free wells."""

    n_atoms = 16
    B, C, W = 1.5, 0.3, 0.1

    @classmethod
    def along_x(cls, u):
        return cls.B * (u * u - 1) ** 2 + cls.C * u

    def energy_and_score(self, positions, noise_level=None):
        score = -100 * positions
        u = positions[..., 0] / self.W
        score[..., 0] = -(4 * self.B * u * (u * u - 1) + self.C) / self.W
        return self.along_x(u).sum(1) + 50 * positions[..., 1:].square().sum((1, 2)), score


def stationary_run(a, multiplier=1.0, n_replicas=512, n_steps=4):
    """A chain started from its own stationary Gaussian, [n_steps + 1, n_samples], and that Gaussian's variance."""
    variance = multiplier * S2 / (1 - a / 2)
    generator = torch.Generator().manual_seed(1)
    x = variance**0.5 * torch.randn(n_replicas, 16, 3, generator=generator, dtype=torch.float64)
    sampler = Sampler(Harmonic(), Spring.from_time_step(a * S2 / 0.5, 0.5), temperature=300 * multiplier, seed=8)
    return sampler.run(x, n_steps, 1).positions.reshape(n_steps + 1, -1), variance


@pytest.mark.parametrize("a", [0.05, 0.5, 1.5])
def test_harmonic_autocorrelation(a):
    """<x_0 x_n> = V (1 - a)^n; the mean of the product of two normals of correlation c has variance (1 + c^2)/N."""
    x, variance = stationary_run(a)
    for n in (1, 4):
        c = (1 - a) ** n
        estimate = (x[0] * x[n]).mean() / variance
        assert abs(estimate - c) < LIMIT * math.sqrt((1 + c * c) / x.shape[1])


@pytest.mark.parametrize("a, multiplier", [(0.25, 1.0), (1.0, 1.0), (0.25, 1.5)])
def test_harmonic_variance_reached_from_a_point(a, multiplier):
    """From x = 0 the variance after n steps is V (1 - (1 - a)^(2n)), V = T/T0 s^2/(1 - a/2)."""
    n_steps = 40
    sampler = Sampler(Harmonic(), Spring.from_time_step(a * S2 / 0.5, 0.5), temperature=300 * multiplier, seed=9)
    x = sampler.run(torch.zeros(512, 16, 3, dtype=torch.float64), n_steps, n_steps).final_positions
    exact = multiplier * S2 / (1 - a / 2) * (1 - (1 - a) ** (2 * n_steps))
    assert abs((x**2).mean() / exact - 1) < LIMIT * math.sqrt(2 / x.size)
    assert abs(x.mean()) < LIMIT * math.sqrt(exact / x.size)


def test_double_well_populations():
    """All start in the left well; after eight relaxation times the right one holds what quadrature says.

    The step's own bias at a = 0.05 is below half a percentage point, the statistical limit 3.4.
    """
    well = TiltedDoubleWell

    def weight(low, high):
        return quad(lambda u: math.exp(-well.along_x(u)), low, high)[0]

    right = weight(0, 3) / weight(-3, 3)
    curvature = 8 * well.B / well.W**2
    spring = Spring.from_time_step(0.05 / curvature, 1.0)
    x = torch.zeros(256, 16, 3)
    x[..., 0] = -well.W
    final = Sampler(TiltedDoubleWell(), spring, seed=10).run(x, 6400, 6400).final_positions[..., 0]
    assert 0.2 < right < 0.45
    assert abs(np.mean(final > 0) - right) < LIMIT * math.sqrt(right * (1 - right) / final.size)
