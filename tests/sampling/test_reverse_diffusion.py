"""Reverse diffusion of a density whose score is known, its independence of batches, redrawn frames."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from diffmd_fast import InputError
from diffmd_fast.analysis import bond_lengths, dihedral_angles
from diffmd_fast.io import Molecule
from diffmd_fast.models import Energy, SchNet, TraPPEAlkane
from diffmd_fast.models.turns import rotatable_bonds
from diffmd_fast.sampling import Sampler, Spring, reverse_diffusion
from diffmd_fast.sampling.evaluation import Evaluator
from diffmd_fast.sampling.integrators import REVERSE_DIFFUSION, move
from diffmd_fast.sampling.reverse_diffusion import _exchange

from .common import Gaussian, ScoreOnly, Well, small_schnet


def chain(n: int) -> Molecule:
    return Molecule(tuple(f"C{i}" for i in range(n)), (6,) * n, ("X",) * n, (0,) * n, tuple(zip(range(n), range(1, n))))


def chain_variance(model: Gaussian, n_steps: int) -> float:
    """Variance at the end of the discrete chain, exactly: x' = (1 - gap/(v + s^2)) x + noise."""
    high, low = model.noise_levels[1], model.noise_levels[0]
    levels = [high * (low / high) ** (i / n_steps) for i in range(n_steps + 1)]
    variance = high**2
    for s, t in zip(levels, levels[1:]):
        gap = s**2 - t**2
        variance = (1 - gap / (model.variance + s**2)) ** 2 * variance + gap * t**2 / s**2
    return variance


@pytest.mark.parametrize("n_steps", [20, 400])
def test_gaussian_has_the_right_variance(n_steps):
    """5 standard errors of a sample variance: a false alarm in 2 million (seed fixed)."""
    model = Gaussian()
    x = reverse_diffusion(model, 2000, seed=5, n_steps=n_steps)
    exact = chain_variance(model, n_steps)
    if n_steps == 400:  # the default is fine enough for the density itself
        assert exact == pytest.approx(model.variance + model.noise_level**2, rel=0.02)
    assert abs(x.var().item() / exact - 1) < 5 * (2 / x.numel()) ** 0.5
    assert abs(x.mean().item()) < 5 * (exact / x.numel()) ** 0.5


def test_frames_depend_on_seed_and_replica_only():
    model = small_schnet()
    whole = reverse_diffusion(model, 6, seed=2, n_steps=20)
    assert torch.equal(whole, reverse_diffusion(model, 6, seed=2, n_steps=20, batch_size=4))
    assert torch.equal(whole[2:], reverse_diffusion(model, 4, seed=2, n_steps=20, first_replica=2))
    assert not torch.equal(whole, reverse_diffusion(model, 6, seed=3, n_steps=20))


def test_noise_is_not_the_samplers():
    """The same seed must not give a run the noise that made its starting frames."""
    model = Gaussian(noise_levels=(1e-6, 1.0))
    frames = reverse_diffusion(model, 50, seed=4, n_steps=1)
    moved = Sampler(model, Spring.from_time_step(1e-12, 1.0), seed=4).run(torch.zeros(50, 5, 3), 1, 1).final_positions
    a, b = frames.flatten(), torch.from_numpy(moved).flatten()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / len(a) ** 0.5


def test_frames_outside_the_support_are_drawn_again():
    model = Gaussian(n_atoms=2)
    free = reverse_diffusion(model, 40, seed=1, n_steps=30)
    r = (free[:, 0] - free[:, 1]).norm(dim=-1)
    middle = r.median().item()
    # kept is what lies within the range, its own width and 6 noise levels on both sides
    model.noise_levels = (0.005, 0.5)
    model.support = {"pairs": [[0, 1]], "lowest": [0.7 * middle], "highest": [0.9 * middle], "energy": [0, 1e9]}
    margin = 0.2 * middle + 6 * 0.005
    low, high = 0.7 * middle - margin, 0.9 * middle + margin
    kept = (r >= low) & (r <= high)
    assert 0 < kept.sum() < 40
    with pytest.warns(UserWarning, match=r"drawn again \(the last: distance 0-1 is .* training range"):
        x = reverse_diffusion(model, 40, seed=1, n_steps=30, max_attempts=50)
    again = (x[:, 0] - x[:, 1]).norm(dim=-1)
    assert bool(((again >= low) & (again <= high)).all())
    assert torch.equal(x[kept], free[kept])  # a good frame is the same whatever the others did


def test_a_model_that_never_reaches_its_support_is_refused():
    model = Gaussian(n_atoms=2)
    model.support = {"pairs": [[0, 1]], "lowest": [5.0], "highest": [5.1], "energy": [0, 1e9]}
    with pytest.raises(InputError, match="^model: expected frames inside .* 3 of 3 outside after 2 attempts"):
        reverse_diffusion(model, 3, n_steps=10, max_attempts=2)


def test_frames_that_become_nan_are_drawn_again_and_harm_no_other():
    class Fragile(Gaussian):
        def energy_and_score(self, positions, noise_level=None):
            energy, score = super().energy_and_score(positions, noise_level)
            return energy, torch.where((positions[:, 0, 0] > 0.5)[:, None, None], float("nan"), score)

    whole = reverse_diffusion(Gaussian(), 60, seed=9, n_steps=30)
    with pytest.warns(UserWarning, match="drawn again .*not finite"):
        x = reverse_diffusion(Fragile(), 60, seed=9, n_steps=30)
    same = (x == whole).flatten(1).all(1)
    assert bool(torch.isfinite(x).all()) and 35 < same.sum() < 60


@pytest.mark.parametrize(
    "model, arguments, name",
    [
        (Well(), {}, "model"),
        (ScoreOnly(), {}, "model"),
        (Gaussian(), {"n_replicas": 0}, "n_replicas"),
        (Gaussian(), {"n_steps": 0}, "n_steps"),
        (Gaussian(), {"seed": -1}, "seed"),
        (Gaussian(), {"batch_size": 0}, "batch_size"),
        (Gaussian(), {"dtype": torch.float16}, "dtype"),
        (Gaussian(noise_levels=(0.5, 0.5)), {}, "model.noise_levels"),
    ],
)
def test_bad_input(model, arguments, name):
    with pytest.raises(InputError, match=rf"^{name}: expected [^\n]*$"):
        reverse_diffusion(model, **{"n_replicas": 2, **arguments})


def test_a_model_in_a_periodic_box_is_refused():
    model = SchNet(4, n_features=8, n_blocks=1, cutoff=0.5, box=[2.0, 2.0, 2.0])
    with pytest.raises(InputError, match="^model: .*box"):
        reverse_diffusion(model, 2)


class Handed(Energy):
    """A shape at small noise, that or its mirror image at large noise: a model that sees handedness late."""

    noise_levels, noise_level, n_atoms, spread = (0.002, 0.5), 0.002, 4, None
    shape = 0.1 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])

    def forward(self, positions, noise_level):
        x = positions - positions.mean(1, keepdim=True)
        wrong = torch.where(noise_level < 0.05, -30.0, 0.0)
        squares = [(x - sign * self.shape.to(x)).square().sum((1, 2)) for sign in (1, -1)]
        width = 2 * (0.01**2 + noise_level**2)
        return -torch.logsumexp(torch.stack([-squares[0] / width, wrong - squares[1] / width]), 0)


def test_frames_have_the_handedness_of_small_noise():
    """Below 0.05 nm the mirror image is down by 30 kT and 0.14 nm away: nothing but the mirror move gets there."""
    x = reverse_diffusion(Handed(), 200, seed=1, n_steps=100)
    assert bool(((x - x.mean(1, keepdim=True) - Handed.shape).flatten(1).norm(dim=1) < 0.1).all())
    assert torch.equal(x[30:40], reverse_diffusion(Handed(), 10, seed=1, n_steps=100, first_replica=30))


def test_turns_bring_exact_populations():
    """Butane, all trans at first, and moved by nothing but the exchanges of one level: torsions in 24 bins against
    quadrature (chi-square, false alarm 1e-4), bonds and 1-3 distances as they were."""
    model = TraPPEAlkane.butane()
    x = model.sample(4000, seed=1)
    x = x[np.abs(dihedral_angles(x.numpy(), [(0, 1, 2, 3)])[:, 0]) > 2.5]
    start, evaluate = x.clone(), Evaluator(model)
    energy, score = evaluate(x)

    def noisy(score, diffusion_time, variance, step, normal):
        d, v = (torch.tensor([value], dtype=torch.float64) for value in (diffusion_time, variance))
        move(normal, score, d, v, 7, 0, step, REVERSE_DIFFUSION)

    bonds = rotatable_bonds(chain(4))
    for step in range(60):
        _exchange(evaluate, x, energy, score, bonds, noisy, step)
    assert torch.equal(energy, evaluate(x)[0]) and torch.equal(score, evaluate(x)[1])
    pairs = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
    np.testing.assert_allclose(bond_lengths(x.numpy(), pairs), bond_lengths(start.numpy(), pairs), rtol=1e-9)
    edges = np.linspace(-np.pi, np.pi, 25)
    counts = np.histogram(dihedral_angles(x.numpy(), [(0, 1, 2, 3)])[:, 0], edges)[0]
    fine = torch.linspace(-np.pi, np.pi, 24 * 1000 + 1, dtype=torch.float64)[:-1]
    share = torch.exp(-model.torsion_energy(fine.cos()) / model.kilojoules).reshape(24, -1).sum(1).numpy()
    expected = share / share.sum() * counts.sum()
    common = expected > 5
    observed, expected = (np.append(v[common], v[~common].sum()) for v in (counts, expected))
    assert chisquare(observed, expected).pvalue > 1e-4


def test_turned_frames_depend_on_seed_and_replica_only():
    model = small_schnet()
    model.molecule = chain(5)
    whole = reverse_diffusion(model, 9, seed=2, n_steps=40)
    assert torch.equal(whole, reverse_diffusion(model, 9, seed=2, n_steps=40, batch_size=4))
    model.molecule = None
    assert not torch.equal(whole, reverse_diffusion(model, 9, seed=2, n_steps=40))
