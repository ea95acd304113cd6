"""Autocorrelation against chains for which everything is known in closed form.

Gaussian angle of variance s^2 with correlation rho^l:  <cos(q(l)-q(0))> = exp(-s^2 (1 - rho^l)), and, without
its mean and normalized, (exp(s^2 rho^l) - 1) / (exp(s^2) - 1).  Tolerances are five standard errors or more,
where two-sided false alarms have probability 6e-7; seeds are fixed besides.
"""

import numpy as np
import pytest

from diffmd_fast.analysis import circular_autocorrelation, dihedral_autocorrelation
from diffmd_fast.errors import InputError

from .chains import ornstein_uhlenbeck, two_angles

TAU = 8.0
RHO = np.exp(-1 / TAU)


def _exact_time(width: float) -> float:
    lags = np.arange(1, 400)
    return 0.5 + (np.expm1(width**2 * RHO**lags) / np.expm1(width**2)).sum()


def _angles(seed: int, replicas: int, frames: int, width: float = 1.0) -> list[np.ndarray]:
    chain = ornstein_uhlenbeck(np.random.default_rng(seed), replicas, frames, RHO)
    return list(width * chain[:, :, 0] + 3.0)  # centred near the cut at pi


@pytest.mark.parametrize(("replicas", "frames"), [(64, 1000), (1, 40000), (3, 15000)])
def test_integrated_time_is_exact_within_its_error(replicas, frames):
    result = dihedral_autocorrelation(_angles(1, replicas, frames), frame_interval=0.2)
    assert result.resolved and result.reason == ""
    exact = _exact_time(1.0)
    # The window cuts exp(-5) of the sum off.
    assert abs(result.integrated_time - exact) < 5 * result.integrated_time_error + 0.01 * exact
    assert 0.01 < result.integrated_time_error / exact < 0.15
    assert result.integrated_time_ps == pytest.approx(0.2 * result.integrated_time)
    assert result.effective_sample_size == pytest.approx(replicas * frames / (2 * result.integrated_time))
    assert result.lag[:3] == pytest.approx([0, 0.2, 0.4])


def test_the_stated_error_is_the_spread_over_repetitions():
    found = [dihedral_autocorrelation(_angles(seed, 32, 500)) for seed in range(60)]
    spread = np.std([result.integrated_time for result in found], ddof=1)
    stated = np.mean([result.integrated_time_error for result in found])
    # A standard deviation of 60 values is known to 9 %, the mean of jackknife errors of 32 replicas better.
    assert stated / spread == pytest.approx(1, abs=0.45)


def test_circular_and_connected_functions_are_exact():
    angles = _angles(2, 400, 300)
    result = dihedral_autocorrelation(angles)
    lags = np.arange(40)
    exact = np.exp(-(1 - RHO**lags))
    each = np.array([circular_autocorrelation([values], 39) for values in angles])
    error = each.std(axis=0, ddof=1) / np.sqrt(len(angles))
    assert (np.abs(result.circular[:40] - exact) <= 5.5 * error + 1e-12).all()
    connected = np.expm1(RHO**lags) / np.expm1(1.0)
    assert (np.abs(result.connected[:40] - connected) <= 5.5 * result.connected_error[:40] + 2e-3).all()
    assert result.connected[0] == 1 and result.connected_error[0] == 0


def test_equals_the_plain_double_loop_for_unequal_replicas():
    rng = np.random.default_rng(3)
    angles = [rng.uniform(-np.pi, np.pi, n) for n in (7, 1, 12)]
    for lag, value in enumerate(circular_autocorrelation(angles)):
        terms = [np.cos(q[t + lag] - q[t]) for q in angles for t in range(len(q) - lag)]
        assert value == pytest.approx(np.mean(terms), abs=1e-12)


def test_independent_frames_count_fully():
    rng = np.random.default_rng(4)
    result = dihedral_autocorrelation([rng.uniform(-np.pi, np.pi, 5000)])
    assert result.resolved
    assert 0.5 <= result.integrated_time < 0.75
    assert 3300 < result.effective_sample_size <= 5000


def test_replicas_that_never_mix_count_about_once_each():
    chain = two_angles(np.random.default_rng(5), 64, 500, 5.0, 0.0)
    psi = dihedral_autocorrelation(list(chain[:, :, 1]))
    assert not psi.resolved and psi.reason
    # Two basins hold most of the variance of exp(i psi), so each replica is worth a little over one value.
    assert 64 * 0.5 < psi.effective_sample_size < 64 * 2.5
    assert psi.integrated_time >= 500 / 5
    # The very same frames around each replica's own mean would look well mixed: that is the trap.
    alone = [dihedral_autocorrelation([values]).integrated_time for values in chain[:, :, 1]]
    assert np.median(alone) < 20


def test_two_replicas_in_two_basins_are_worth_two():
    rng = np.random.default_rng(6)
    still = [0.1 * rng.standard_normal(300), 2.0 + 0.1 * rng.standard_normal(300)]
    result = dihedral_autocorrelation(still)
    assert not result.resolved
    assert result.effective_sample_size <= 2


def test_a_slow_exchange_hidden_from_the_window_is_noticed():
    # A tenth of the replicas sits elsewhere for good; the fast motion decays long before.
    rng = np.random.default_rng(7)
    fast = 0.5 * ornstein_uhlenbeck(rng, 100, 2000, np.exp(-1 / 3))[:, :, 0]
    fast[:3] += 1.5
    result = dihedral_autocorrelation(list(fast))
    assert not result.resolved
    assert "scatter" in result.reason
    assert result.effective_sample_size < 0.2 * 100 * 2000 / (2 * 3)


def test_mixed_replicas_are_not_called_unmixed():
    # Five standard errors of a chi-square with 63 degrees of freedom or more: 1.9e-5 each, 1e-4 for all.
    for seed in range(5):
        assert dihedral_autocorrelation(_angles(100 + seed, 64, 400)).resolved


def test_frozen_and_single_frames():
    frozen = dihedral_autocorrelation([np.full(10, 1.0)] * 3)
    assert not frozen.resolved and frozen.effective_sample_size == 1
    single = dihedral_autocorrelation([np.array([0.3])])
    assert not single.resolved and single.effective_sample_size == 1
    many = dihedral_autocorrelation(list(np.random.default_rng(8).uniform(-3, 3, (50, 1))))
    assert not many.resolved and 30 < many.effective_sample_size <= 50


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: dihedral_autocorrelation([]), "angles: expected at least one replica"),
        (lambda: dihedral_autocorrelation([np.zeros(0)]), "angles: expected an array [frames] per replica"),
        (
            lambda: dihedral_autocorrelation([np.zeros((3, 2))]),
            "angles: expected an array [frames] per replica",
        ),
        (lambda: dihedral_autocorrelation([np.array([0.0, np.nan])]), "angles: expected finite"),
        (lambda: dihedral_autocorrelation([np.zeros(3)], frame_interval=0.0), "frame_interval: expected"),
        (lambda: dihedral_autocorrelation([np.zeros(3)], window_factor=-1), "window_factor: expected"),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)
