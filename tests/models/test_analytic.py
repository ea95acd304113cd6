"""Analytic energies: values known from elsewhere, scores by finite differences, exact statistics, bad input."""

import math

import pytest
import torch

from diffmd_fast import InputError
from diffmd_fast.models import DoubleWell, EnergyModel, Harmonic, LennardJonesCluster, MullerBrown, TraPPEAlkane

MODELS = {
    "harmonic": lambda: Harmonic(3, stiffness=torch.tensor([50.0, 100.0, 200.0], dtype=torch.float64)),
    "double well": DoubleWell,
    "Muller-Brown": MullerBrown,
    "Lennard-Jones": lambda: LennardJonesCluster(5, length=0.3),
    "butane": TraPPEAlkane.butane,
}


def near_something_sensible(name, model, rng, n=4):
    """Positions where the energy is of order 1 to 10 kT0."""
    if name == "butane":
        return model.sample(n, seed=3)
    if name == "Lennard-Jones":
        corners = torch.tensor([[0, 0, 0], [1, 0, 0], [0.5, 0.87, 0], [0.5, 0.29, 0.82], [0.5, 0.29, -0.82]])
        return 0.3 * (corners.double() + 0.03 * torch.randn(n, 5, 3, generator=rng, dtype=torch.float64))
    return 0.1 * torch.randn(n, model.n_atoms, 3, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_is_an_energy_model_with_a_consistent_score(rng, name):
    model = MODELS[name]()
    assert isinstance(model, EnergyModel)
    assert model.temperature == 300.0 and model.noise_level == 0.0
    positions = near_something_sensible(name, model, rng).requires_grad_()
    assert torch.autograd.gradcheck(model.energy, (positions,), eps=1e-7, rtol=1e-5)
    energy, score = model.energy_and_score(positions.detach())
    assert energy.shape == (4,) and score.shape == (4, model.n_atoms, 3)
    (gradient,) = torch.autograd.grad(model.energy(positions).sum(), positions)
    torch.testing.assert_close(score, -gradient)
    single = model.energy(positions.detach().float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), energy, rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match="^positions:"):
        model.energy(torch.zeros(2, model.n_atoms + 1, 3))


@pytest.mark.parametrize("name", [n for n in MODELS if n != "harmonic"])
def test_refuses_a_blurred_density_that_it_does_not_know(rng, name):
    model = MODELS[name]()
    positions = near_something_sensible(name, model, rng)
    torch.testing.assert_close(model.energy(positions, 0.0), model.energy(positions))
    with pytest.raises(InputError, match="^noise_level:") as error:
        model.score(positions.repeat(2000, 1, 1), 0.01)
    assert "\n" not in str(error.value)


def test_harmonic_is_the_log_of_a_gaussian(rng):
    centre = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    deviation = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    model = Harmonic(3, standard_deviation=deviation, centre=centre)
    torch.testing.assert_close(model.variance, deviation**2)
    torch.testing.assert_close(model.stiffness, 1 / deviation**2)
    torch.testing.assert_close(Harmonic(3, stiffness=4.0).variance, torch.full((3,), 0.25, dtype=torch.float64))
    positions = torch.randn(4, 3, 3, generator=rng, dtype=torch.float64)
    for sigma in (0.0, 0.15):
        spread = torch.sqrt(deviation**2 + sigma**2)[:, None]
        log_p = torch.distributions.Normal(centre, spread).log_prob(positions).sum((1, 2))
        energy = model.energy(positions, sigma)
        torch.testing.assert_close(energy - energy[0], log_p[0] - log_p)


def test_double_well_marginal_is_normalized():
    special = pytest.importorskip("scipy.special")
    for barrier in (0.5, 4.0, 30.0):
        model = DoubleWell(barrier=barrier, half_distance=0.2, stiffness=100.0)
        # integral of exp(-h (u^2 - 1)^2) = pi/2 exp(-h/2) [I_1/4(h/2) + I_-1/4(h/2)]
        integral = 0.2 * math.pi / 2 * (special.ive(0.25, barrier / 2) + special.ive(-0.25, barrier / 2))
        x = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)
        positions = torch.zeros(11, 1, 3, dtype=torch.float64)
        positions[:, 0, 0] = x
        torch.testing.assert_close(model.marginal(x), torch.exp(-model.energy(positions)) / integral, rtol=1e-12,
                                   atol=0)
    wells = torch.tensor([[[0.2, 0, 0]], [[-0.2, 0, 0]], [[0.0, 0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(model.energy(wells), torch.tensor([0.0, 0.0, 30.0], dtype=torch.float64))
    hessian = torch.autograd.functional.hessian(lambda x: model.energy(x).sum(), wells[:1]).reshape(3, 3)
    want = torch.diag(torch.tensor([model.well_stiffness, 100.0, 100.0], dtype=torch.float64))
    torch.testing.assert_close(hessian, want)


def test_muller_brown_stationary_points():
    """Positions and values from the literature, to the digits given there."""
    model = MullerBrown(length_scale=0.1, energy_scale=0.1)
    points = torch.tensor([[-0.558224, 1.441726], [0.623499, 0.028038], [-0.050011, 0.466694],
                           [-0.822002, 0.624313], [0.212487, 0.292988]], dtype=torch.float64)
    values = torch.tensor([-146.6995, -108.1667, -80.7678, -40.6648, -72.2489], dtype=torch.float64)
    positions = torch.zeros(5, 1, 3, dtype=torch.float64)
    positions[:, 0, :2] = 0.1 * points
    energy, score = model.energy_and_score(positions)
    torch.testing.assert_close(energy, 0.1 * values, rtol=0, atol=1e-5)
    assert score.abs().max() < 0.02  # 1/nm; away from these points it is of order 100


def test_lennard_jones_cluster_is_the_shared_density(shared_data):
    numpy = pytest.importorskip("numpy")
    data = numpy.load(shared_data / "lj13_reduced.npz")
    positions = torch.from_numpy(data["positions"][:2000]).double()
    want = torch.from_numpy(data["reduced_energy"][:2000]).double()
    for length in (1.0, 0.4):
        model = LennardJonesCluster(13, length=length)
        torch.testing.assert_close(model.energy(length * positions), want, rtol=1e-6, atol=1e-5)
    virial = -(LennardJonesCluster().score(positions) * positions).sum((1, 2))  # mean 36 = degrees of freedom
    assert abs(virial.mean() - 36) < 5 * virial.std() / math.sqrt(len(virial))


@pytest.mark.parametrize(("model", "argument", "change"), [
    (Harmonic, "stiffness", dict(n_atoms=2)),
    (Harmonic, "stiffness", dict(n_atoms=2, stiffness=1.0, standard_deviation=1.0)),
    (Harmonic, "stiffness", dict(n_atoms=2, stiffness=-1.0)),
    (Harmonic, "stiffness", dict(n_atoms=2, stiffness=torch.ones(3))),
    (Harmonic, "standard_deviation", dict(n_atoms=2, standard_deviation=torch.tensor([1.0, 0.0]))),
    (Harmonic, "centre", dict(n_atoms=2, stiffness=1.0, centre=torch.zeros(3))),
    (Harmonic, "n_atoms", dict(n_atoms=0, stiffness=1.0)),
    (Harmonic, "temperature", dict(n_atoms=2, stiffness=1.0, temperature=0.0)),
    (DoubleWell, "barrier", dict(barrier=0.0)),
    (DoubleWell, "half_distance", dict(half_distance=float("nan"))),
    (MullerBrown, "length_scale", dict(length_scale=-1.0)),
    (LennardJonesCluster, "n_atoms", dict(n_atoms=1)),
    (LennardJonesCluster, "length", dict(length=0.0)),
])
def test_bad_arguments(model, argument, change):
    with pytest.raises(InputError) as error:
        model(**change)
    assert str(error.value).startswith(argument + ":") and "\n" not in str(error.value)
