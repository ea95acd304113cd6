"""Rates on the grid against closed forms, and against a long chain of Euler-Maruyama steps."""

import sys

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from diffmd_fast.analysis import compare_relaxation, double_well_rates, muller_brown_rates, relaxation_rates
from diffmd_fast.analysis.fokker_planck import symmetric_operator
from diffmd_fast.errors import InputError, UnavailableError
from diffmd_fast.models.analytic import DoubleWell, MullerBrown

from .chains import ornstein_uhlenbeck

D = 0.002


def test_harmonic_well_has_the_integers():
    # Ornstein-Uhlenbeck: k D n at any temperature.
    found = relaxation_rates(lambda x: 50 * x**2, [(-0.8, 0.8)], D, temperature_ratio=1.5)
    assert found.rates == pytest.approx(100 * D * np.arange(1, 4), rel=3e-6)
    assert found.times == pytest.approx(1 / found.rates)
    assert (found.error < 1e-5 * found.rates).all() and [len(axis) for axis in found.axes] == [320]


def test_two_axes_add_up():
    found = relaxation_rates(lambda x, y: 50 * x**2 + 100 * y**2, [(-0.8, 0.8), (-0.6, 0.6)], D, n_rates=4, cells=40)
    assert found.rates == pytest.approx(D * np.array([100, 200, 200, 300]), rel=1e-4)


def test_free_particle_between_walls():
    found = relaxation_rates(lambda x: 0 * x, [(0, 0.5)], D)
    assert found.rates == pytest.approx(D * (np.pi * np.arange(1, 4) / 0.5) ** 2, rel=1e-6)


def test_detailed_balance_is_exact():
    x = np.linspace(-1, 1, 40)
    energy = 3 * (x[:, None] ** 2 - 0.5) ** 2 + x[:, None] * x**3
    operator, kept = symmetric_operator(energy, [0.1, 0.2], D)
    assert kept.all()
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


@pytest.mark.parametrize(("scale", "ratio"), [(0.1, 1.0), (0.05, 1.6)])
def test_muller_brown_does_not_depend_on_grid_and_rim(scale, ratio):
    model = MullerBrown(energy_scale=scale)
    coarse, fine = (muller_brown_rates(model, D, ratio, cells=cells) for cells in (60, 80))
    assert coarse.rates == pytest.approx(fine.rates, rel=1e-4)
    assert (coarse.error < 1e-3 * coarse.rates).all()

    def energy(x, y):
        positions = torch.from_numpy(np.stack([x, y, 0 * x], axis=-1).reshape(-1, 1, 3))
        return model.energy(positions).numpy().reshape(x.shape)

    wide = relaxation_rates(energy, [(-0.5, 0.3), (-0.3, 0.5)], D, ratio, n_rates=2)
    assert coarse.rates == pytest.approx(wide.rates, rel=1e-4)


def test_slowest_mode_of_a_harmonic_well_is_the_coordinate():
    # Ornstein-Uhlenbeck: the first Hermite polynomial, x / s with s = 0.1 nm, of either sign.
    x = np.linspace(-0.4, 0.4, 17)
    found = relaxation_rates(lambda x: 50 * x**2, [(-0.8, 0.8)], D)
    assert np.abs(found.slow_coordinate(x)) == pytest.approx(np.abs(x) / 0.1, rel=1e-3, abs=1e-6)
    flat = relaxation_rates(lambda x, y: 100 * x**2 + 50 * y**2, [(-0.6, 0.6), (-0.8, 0.8)], D, n_rates=1)
    points = np.stack([x[::-1] / 4, x], axis=1)
    assert np.abs(flat.slow_coordinate(points)) == pytest.approx(np.abs(x) / 0.1, rel=1e-3, abs=1e-6)


def _ornstein_uhlenbeck(seed: int, replicas: int, frames: int, interval: float) -> list[np.ndarray]:
    """Exact paths in the wells of the test above: x of variance 0.01 and rate 0.2 / ps, y of twice the rate."""
    rng = np.random.default_rng(seed)
    slow, fast = (ornstein_uhlenbeck(rng, replicas, frames, np.exp(-rate * interval)) for rate in (0.2, 0.4))
    return list(np.concatenate([0.1 * slow, np.sqrt(0.005) * fast], axis=2))


def test_a_run_against_the_operator_in_one_and_two_dimensions():
    run = _ornstein_uhlenbeck(1, 40, 8000, 0.5)
    line = relaxation_rates(lambda x: 50 * x**2, [(-0.8, 0.8)], D)
    plane = relaxation_rates(lambda x, y: 50 * x**2 + 100 * y**2, [(-0.8, 0.8), (-0.6, 0.6)], D, n_rates=1, cells=40)
    for found in (
        compare_relaxation([part[:, 0] for part in run], line, 0.5),
        compare_relaxation(run, plane, 0.5),
    ):
        assert found.exact == pytest.approx(5.0, rel=1e-4) and found.lag == 1 and found.reliable
        # 32,000 relaxation times: sqrt(3 / 32,000) = 0.01.
        assert 0.006 < found.relative_error < 0.013
        assert abs(found.relative_deviation) < 5 * found.relative_error
        assert f"{100 * found.relative_deviation:+.2f}" in str(found)


def test_a_run_at_another_rate_is_told_apart():
    run = [part[:, 0] for part in _ornstein_uhlenbeck(2, 40, 8000, 0.5)]
    found = compare_relaxation(run, relaxation_rates(lambda x: 50 * x**2, [(-0.8, 0.8)], 1.1 * D), 0.5)
    assert found.relative_deviation == pytest.approx(0.1, abs=5 * found.relative_error)
    assert found.relative_deviation > 5 * found.relative_error


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
    found = compare_relaxation(list(frames.T), double_well_rates(model, D, ratio), step * save)
    assert 0 < found.relative_error < 0.012
    assert abs(found.relative_deviation) < 5 * found.relative_error + 0.02


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UnavailableError, match=r"pip install 'diffmd-fast\[analysis\]'"):
        double_well_rates(DoubleWell(), D)


WELL = relaxation_rates(lambda x: 50 * x**2, [(-0.8, 0.8)], D)


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
        (lambda: compare_relaxation([np.zeros(9)], None, 0.5), "rates: expected the result"),
        (lambda: compare_relaxation([np.zeros(9)], WELL, 2.0), "frame_interval: expected at most"),
        (lambda: compare_relaxation([np.zeros((9, 2))], WELL, 0.5), "coordinates: expected an array [frames, 1]"),
        (lambda: compare_relaxation([np.zeros(0)], WELL, 0.5), "coordinates: expected an array [frames, 1]"),
        (lambda: compare_relaxation([np.array([0.1, 0.79])], WELL, 0.5), "coordinates: expected frames inside"),
        (lambda: compare_relaxation([np.array([0.1, np.nan])], WELL, 0.5), "coordinates: expected frames inside"),
        (lambda: compare_relaxation([0.1 * np.arange(3.0)], WELL, 0.5, lag=2), "lag: expected less than half"),
        (lambda: compare_relaxation([], WELL, 0.5), "coordinates: expected at least one replica"),
        (lambda: double_well_rates(DoubleWell(barrier=40.0), D, n_rates=8, cells=16), "cells: expected a grid"),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)
