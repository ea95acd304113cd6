"""Rates on the grid against closed forms, and against a long chain of Euler-Maruyama steps."""

import numpy as np
import pytest
from scipy.integrate import quad

from diffmd_fast.analysis import double_well_rates, muller_brown_rates, relaxation_rates, relaxation_time
from diffmd_fast.analysis.fokker_planck import symmetric_operator
from diffmd_fast.errors import InputError
from diffmd_fast.models.analytic import DoubleWell, MullerBrown

D = 0.002


def test_harmonic_well_has_the_integers():
    # Ornstein-Uhlenbeck: k D n at any temperature.
    found = relaxation_rates(lambda x: 50 * x**2, [(-0.8, 0.8)], D, temperature_ratio=1.5)
    assert found.rates == pytest.approx(100 * D * np.arange(1, 4), rel=3e-6)
    assert found.times == pytest.approx(1 / found.rates)
    assert (found.error < 1e-5 * found.rates).all() and found.cells == (320,)


def test_two_axes_add_up():
    found = relaxation_rates(lambda x, y: 50 * x**2 + 100 * y**2, [(-0.8, 0.8), (-0.6, 0.6)], D, n_rates=4, cells=40)
    assert found.rates == pytest.approx(D * np.array([100, 200, 200, 300]), rel=1e-4)


def test_free_particle_between_walls():
    found = relaxation_rates(lambda x: 0 * x, [(0, 0.5)], D)
    assert found.rates == pytest.approx(D * (np.pi * np.arange(1, 4) / 0.5) ** 2, rel=1e-6)


def test_detailed_balance_is_exact():
    x = np.linspace(-1, 1, 40)
    energy = 3 * (x[:, None] ** 2 - 0.5) ** 2 + x[:, None] * x**3
    operator = symmetric_operator(energy, [0.1, 0.2], D)
    assert abs(operator - operator.T).max() == 0
    assert np.abs(operator @ np.exp(-energy / 2).ravel()).max() < 1e-13


def test_high_barrier_follows_kramers_and_the_exact_passage_time():
    model = DoubleWell(barrier=10.0)
    rate = double_well_rates(model, D).rates[0]
    curvature = model.well_stiffness
    kramers = 2 * D / (2 * np.pi) * np.sqrt(curvature * curvature / 2) * np.exp(-model.barrier)
    assert rate == pytest.approx(kramers, rel=0.1)
    # Twice the rate over the top from the mean passage time between the minima, to exp(-10).
    a, h = model.half_distance, model.barrier

    def inner(x: float) -> float:
        return quad(lambda z: np.exp(-h * ((z / a) ** 2 - 1) ** 2), -2.5 * a, x)[0]

    passage = quad(lambda x: np.exp(h * ((x / a) ** 2 - 1) ** 2) * inner(x), -a, a, limit=200)[0] / D
    assert rate == pytest.approx(2 / passage, rel=2e-3)


@pytest.mark.parametrize("ratio", [1.0, 1.6])
def test_muller_brown_does_not_depend_on_the_grid(ratio):
    coarse, fine = (muller_brown_rates(MullerBrown(), D, ratio, cells=cells) for cells in (40, 60))
    assert coarse.rates == pytest.approx(fine.rates, rel=1e-5)
    assert (coarse.error < 1e-3 * coarse.rates).all()


def test_slow_rate_of_a_long_chain():
    """Double well of 2 kT at T = 1.2 T0, Euler-Maruyama with D dt L = 0.016; 5 standard errors and 2 % for the step."""
    model, ratio, step, save = DoubleWell(barrier=2.0), 1.2, 0.005, 200
    rng = np.random.default_rng(1)
    a, h = model.half_distance, model.barrier
    x = rng.choice([-a, a], 1000)
    frames = np.empty((400, len(x)))
    for frame in range(-20, len(frames)):
        for noise in rng.standard_normal((save, len(x))):
            x += -D * step * 4 * h / a * (x / a) * ((x / a) ** 2 - 1) + np.sqrt(2 * D * step * ratio) * noise
        if frame >= 0:
            frames[frame] = x
    found = relaxation_time(list(frames.T), step * save)
    exact = double_well_rates(model, D, ratio).times[0]
    assert 0 < found.error < 0.03 * exact
    assert abs(found.time - exact) < 5 * found.error + 0.02 * exact


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: relaxation_rates(lambda x: x, [], D), "bounds: expected one or two"),
        (lambda: relaxation_rates(lambda x: x, [(1, 0)], D), "bounds: expected finite low < high"),
        (lambda: relaxation_rates(lambda x: x, [(0, 1)], 0.0), "diffusion: expected"),
        (lambda: relaxation_rates(lambda x: x, [(0, 1)], D, -1), "temperature_ratio: expected"),
        (lambda: relaxation_rates(lambda x: x, [(0, 1)], D, cells=3), "cells: expected an integer"),
        (lambda: relaxation_rates(lambda x: np.nan * x, [(0, 1)], D), "energy: expected one finite value"),
        (lambda: relaxation_rates(lambda x: 1e5 * x**2, [(-10, 10)], D), "cells: expected more than"),
        (lambda: double_well_rates(DoubleWell(barrier=40.0), D, n_rates=8, cells=16), "cells: expected a grid"),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)
