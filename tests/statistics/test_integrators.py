"""Every integrator against exact answers in a harmonic well (docs/theory.md sections 3, 4 and 9).

Seeds are fixed.  Every comparison is of a mean over independent samples with its exact standard error, and fails
beyond 5 of them: 5.7e-7 a comparison, under 1e-4 for all that are made here if the seeds were changed.
"""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import f as f_distribution

from diffmd_fast.models.energy import Energy
from diffmd_fast.sampling import Sampler, Spring

LIMIT = 5.0
S2 = 0.01  # nm^2, variance of the density exp(-x^2/(2 S2))
KT0 = 0.00831446261815324 * 300
MASS = 12.0


class Harmonic(Energy):
    def __init__(self, n_atoms):
        super().__init__()
        self.n_atoms = n_atoms

    def energy_and_score(self, positions, noise_level=None):
        return positions.square().sum((1, 2)) / (2 * S2), -positions / S2


def final(name, a, multiplier=1.0, n_steps=60, n_replicas=6000, n_atoms=2, diffusion=0.5, **more):
    """Positions long after a start in the right density, and the run."""
    generator = torch.Generator().manual_seed(1)
    x = (multiplier * S2) ** 0.5 * torch.randn(n_replicas, n_atoms, 3, generator=generator, dtype=torch.float64)
    fastest = max(diffusion) if isinstance(diffusion, list) else diffusion
    sampler = Sampler(Harmonic(n_atoms), Spring.from_time_step(a * S2 / fastest, diffusion), integrator=name, seed=12,
                      temperature=300 * multiplier, **more)
    run = sampler.run(x, n_steps, n_steps)
    return run.final_positions, run


def assert_variance(x, exact):
    x = np.asarray(x).ravel()
    assert abs(np.mean(x**2) / exact - 1) < LIMIT * math.sqrt(2 / x.size)
    assert abs(x.mean()) < LIMIT * math.sqrt(exact / x.size)


@pytest.mark.parametrize("a, multiplier", [(0.5, 1.0), (1.2, 1.0), (0.5, 1.4)])
@pytest.mark.parametrize("name, factor", [
    ("euler-maruyama", lambda a: 1 / (1 - a / 2)),
    ("leimkuhler-matthews", lambda a: 1.0),
    ("heun", lambda a: (2 - a) / (2 - a + a * a / 2)),
    ("metropolis", lambda a: 1.0),
])
def test_variance(name, factor, a, multiplier):
    """36,000 independent values: a standard error of 0.75%, beside inflations of 33% and 150%."""
    x, run = final(name, a, multiplier)
    assert_variance(x, multiplier * S2 * factor(a))
    assert run.stability.inflation == pytest.approx(factor(run.stability.number) - 1, abs=1e-9)
    assert run.stability.number == pytest.approx(a, rel=1e-3)


def test_metropolis_with_diffusion_per_atom():
    """The proposal's and the way back's densities weigh every atom by its own D: with one D this would be off."""
    x, run = final("metropolis", 1.0, diffusion=[0.5, 0.05])
    assert_variance(x[:, 0], S2)
    assert_variance(x[:, 1], S2)
    assert 0.5 < run.acceptance.mean() < 0.999


def test_metropolis_beyond_the_stability_limit():
    """a = 2.5: no drift there is stable, and accepted moves are still exact; nothing has to be forced."""
    x, run = final("metropolis", 2.5, n_steps=400, n_atoms=1)
    assert_variance(x, S2)
    assert 0.05 < run.acceptance.mean() < 0.9


@pytest.mark.parametrize("a", [0.5, 1.5])
def test_metropolis_acceptance(a):
    """In a Gaussian log r = a/4 (|x|^2 - |y|^2) with s = 1, and detailed balance makes <min(1, r)> = 2 P(|y| < |x|).

    |x|^2 - |y|^2 of 3 N such pairs is l1 u^2 - l2 v^2 with l1, -l2 the eigenvalues of cov diag(1, -1), so the
    probability is that of Fisher's F(3 N, 3 N).
    """
    n_atoms = 2
    covariance = np.array([[1, 1 - a], [1 - a, (1 - a) ** 2 + 2 * a]])
    l1, l2 = sorted(np.linalg.eigvals(covariance @ np.diag([1.0, -1.0])).real, reverse=True)
    exact = 2 * f_distribution.cdf(l1 / -l2, 3 * n_atoms, 3 * n_atoms)
    x, run = final("metropolis", a, n_steps=30)
    # Steps of one replica are correlated: the error is that of the replicas' means.
    error = run.acceptance.std(ddof=1) / math.sqrt(len(run.acceptance))
    assert abs(run.acceptance.mean() - exact) < LIMIT * error
    assert error < 0.01


def baoab_covariance(time_step, diffusion, mass, multiplier=1.0):
    """Stationary <x^2>, <v^2> of the chain in this well, from its matrices."""
    speed = KT0 / mass
    c = math.exp(-speed / diffusion * time_step)
    kick = np.array([[1, 0], [-time_step / 2 * speed / S2, 1]])
    drift = np.array([[1, time_step / 2], [0, 1]])
    friction, noise = np.diag([1.0, c]), np.diag([0.0, multiplier * (1 - c * c) * speed])
    step = kick @ drift @ friction @ drift @ kick
    added = (kick @ drift) @ noise @ (kick @ drift).T
    return np.diag(solve_discrete_lyapunov(step, added))


@pytest.mark.parametrize("multiplier", [1.0, 1.4])
def test_baoab_variances(multiplier):
    """Positions exact at any step; velocities by the amount that the chain's own matrices say (here 12% too slow)."""
    diffusion, time_step = 0.1, 0.15
    x2, v2 = baoab_covariance(time_step, diffusion, MASS, multiplier)
    assert x2 == pytest.approx(multiplier * S2, rel=1e-9)
    assert v2 < 0.95 * multiplier * KT0 / MASS
    a = diffusion * time_step / S2
    x, run = final("baoab", a, multiplier, n_steps=200, diffusion=diffusion, masses=MASS)
    assert_variance(x, x2)
    assert_variance(run.final_velocities, v2)
    assert run.kinetic_temperature[-1].mean() == pytest.approx(300 * v2 * MASS / KT0, rel=LIMIT * math.sqrt(2 / x.size))


def test_baoab_diffuses_with_the_spring_s_coefficient():
    """Free atoms: after n steps <x^2>/(2 n dt) is D to the friction time's share; exact sum of the chain below."""
    class Free(Energy):
        n_atoms = 1

        def energy_and_score(self, positions, noise_level=None):
            return positions.sum((1, 2)) * 0, torch.zeros_like(positions)

    diffusion, time_step, n_steps = 0.05, 0.02, 2000
    x = torch.zeros(3000, 1, 3, dtype=torch.float64)
    run = Sampler(Free(), Spring.from_time_step(time_step, diffusion), integrator="baoab", masses=MASS, seed=4).run(
        x, n_steps, n_steps)
    speed = KT0 / MASS
    c = math.exp(-speed / diffusion * time_step)
    # x_n - x_0 = sum of dt/2 (v before + v after the friction's step); the velocities are a stationary chain.
    weights = np.full(n_steps + 1, time_step)
    weights[[0, -1]] = time_step / 2
    lags = np.abs(np.subtract.outer(np.arange(n_steps + 1), np.arange(n_steps + 1)))
    exact = speed * weights @ c**lags @ weights
    assert exact / (2 * n_steps * time_step) == pytest.approx(diffusion, rel=0.1)
    assert_variance(run.final_positions, exact)


def test_leimkuhler_matthews_keeps_its_noise_over_steps():
    """x' - x - D dt s of neighbouring steps have correlation 1/2, of others none: each shares half its noise."""
    generator = torch.Generator().manual_seed(3)
    x = S2**0.5 * torch.randn(3000, 1, 3, generator=generator, dtype=torch.float64)
    a = 0.5
    spring = Spring.from_time_step(a * S2 / 0.5, 0.5)
    frames = Sampler(Harmonic(1), spring, integrator="leimkuhler-matthews", seed=2).run(x, 4, 1).positions
    noise = (frames[1:] - (1 - a) * frames[:-1]) / math.sqrt(2 * a * S2)
    count = noise[0].size
    assert abs((noise**2).mean() - 0.5) < LIMIT * 0.5 * math.sqrt(2 / count)
    assert abs((noise[0] * noise[1]).mean() - 0.25) < LIMIT * math.sqrt((0.25 + 0.0625) / count)
    assert abs((noise[0] * noise[2]).mean()) < LIMIT * 0.5 / math.sqrt(count)
