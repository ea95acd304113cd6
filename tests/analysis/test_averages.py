"""Averages against AR(1) chains, whose error of the mean is known in closed form.

Tolerances in units of the exact error are 5 or more (two-sided false alarm 6e-7 each, below 1e-5 for the file).
"""

import numpy as np
import pytest

from diffmd_fast.analysis import autocorrelation, average, circular_average, dihedral_autocorrelation
from diffmd_fast.errors import InputError

from .chains import ornstein_uhlenbeck

RHO = np.exp(-1 / 8)


def _exact_error(replicas: int, frames: int) -> float:
    """Standard error of the mean of AR(1) chains of unit variance, finite length included."""
    lags = np.arange(1, frames)
    return np.sqrt((1 + 2 * ((1 - lags / frames) * RHO**lags).sum()) / (replicas * frames))


@pytest.mark.parametrize(("replicas", "frames"), [(64, 1000), (1, 40000), (3, 15000)])
def test_mean_and_error_of_a_chain(replicas, frames):
    chain = 5.0 + 0.3 * ornstein_uhlenbeck(np.random.default_rng(1), replicas, frames, RHO)[:, :, 0]
    result = average(list(chain), frame_interval=0.5)
    exact = 0.3 * _exact_error(replicas, frames)
    assert abs(result.mean - 5.0) < 5 * exact
    # The integrated time is known to 10 % at worst here (Madras-Sokal), the error to half of that.
    assert result.error == pytest.approx(exact, rel=0.25)
    assert result.standard_deviation == pytest.approx(0.3, rel=0.1)
    tau = 0.5 * (1 + RHO) / (1 - RHO)
    found = result.autocorrelation
    assert result.resolved and result.reason == ""
    assert abs(found.integrated_time - tau) < 5 * found.integrated_time_error + 0.01 * tau
    assert found.integrated_time_ps == pytest.approx(0.5 * found.integrated_time)
    assert found.statistical_inefficiency == pytest.approx(2 * found.integrated_time)
    assert result.effective_sample_size == pytest.approx(replicas * frames / (2 * found.integrated_time))


def test_the_stated_error_is_the_spread_over_repetitions():
    rng = np.random.default_rng(2)
    found = [average(list(ornstein_uhlenbeck(rng, 4, 1500, RHO)[:, :, 0])) for _ in range(200)]
    deviations = np.array([result.mean / result.error for result in found])
    # Variance of 200 standard normals: 1 with standard error 0.1.
    assert (deviations**2).mean() == pytest.approx(1, abs=0.5)


def test_units_do_not_matter():
    chain = list(ornstein_uhlenbeck(np.random.default_rng(3), 10, 500, RHO)[:, :, 0])
    one, other = average(chain), average([1e-9 * values + 1e-7 for values in chain])
    assert other.error == pytest.approx(1e-9 * one.error, rel=1e-6)
    assert other.effective_sample_size == pytest.approx(one.effective_sample_size, rel=1e-6)


def test_replicas_that_never_mix_are_noticed():
    rng = np.random.default_rng(4)
    chain = 0.1 * ornstein_uhlenbeck(rng, 50, 400, RHO)[:, :, 0] + rng.choice([-1.0, 1.0], 50)[:, None]
    result = average(list(chain))
    assert not result.resolved and result.reason
    assert result.error == pytest.approx(chain.mean(axis=1).std(ddof=1) / np.sqrt(50), rel=0.1)


def test_angles_and_numbers_share_one_estimator():
    # A narrow angle is a number: exp(iq) moves along a straight line.
    chain = 1e-4 * ornstein_uhlenbeck(np.random.default_rng(5), 12, 800, RHO)[:, :, 0]
    one, other = autocorrelation(list(chain)), dihedral_autocorrelation(list(chain + 3.1))
    assert other.integrated_time == pytest.approx(one.integrated_time, rel=1e-5)
    assert other.connected == pytest.approx(one.connected, abs=1e-5)
    assert other.effective_sample_size == pytest.approx(one.effective_sample_size, rel=1e-5)


def test_mean_direction_across_the_cut():
    chain = 0.4 * ornstein_uhlenbeck(np.random.default_rng(6), 16, 2000, RHO)[:, :, 0]
    angles = np.mod(chain + np.pi + np.pi, 2 * np.pi) - np.pi  # around pi
    result = circular_average(list(angles))
    exact = 0.4 * _exact_error(16, 2000)
    assert abs(np.angle(np.exp(1j * (result.mean - np.pi)))) < 6 * exact
    assert result.error == pytest.approx(exact, rel=0.3)
    assert result.standard_deviation == pytest.approx(0.4, rel=0.1)


def test_one_value_knows_no_error():
    assert np.isnan(average([np.array([2.0])]).error)
    frozen = average([np.full(20, 3.0)] * 4)
    assert frozen.mean == 3.0 and np.isnan(frozen.error) and frozen.standard_deviation == 0
    assert not frozen.resolved


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: average([]), "values: expected at least one replica"),
        (lambda: average(3.0), "values: expected a list of arrays"),
        (lambda: average([np.zeros((3, 2))]), "values: expected an array [frames] per replica"),
        (lambda: average([np.array(["a", "b"])]), "values: expected an array [frames] per replica"),
        (
            lambda: average([np.zeros(2), np.array([1.0, np.inf])]),
            "values: expected finite values, got a NaN or infinity in replica 1, frame 1",
        ),
        (lambda: average([np.zeros(3)], frame_interval=-1), "frame_interval: expected"),
        (lambda: circular_average([np.zeros(0)]), "angles: expected an array [frames] per replica"),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)
