"""Kinetics of chains whose rates are known.  Tolerances are five standard errors (6e-7 each, below 2e-5 in all)."""

import builtins

import numpy as np
import pytest

from diffmd_fast.analysis import (
    hop_rates,
    implied_timescales,
    relaxation_time,
    tica,
    torsion_core,
    vamp2_score,
)
from diffmd_fast.errors import InputError, UnavailableError

from .chains import ornstein_uhlenbeck

TAUS = (40.0, 6.0)
RHOS = np.exp(-1 / np.array(TAUS))


def _slow_and_fast(seed: int, replicas: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([ornstein_uhlenbeck(rng, replicas, frames, rho) for rho in RHOS], axis=2)


def _jumps(seed: int, replicas: int, frames: int, leave: tuple[float, float]) -> np.ndarray:
    """Two-state Markov chain from equilibrium, [replicas, frames]."""
    rng = np.random.default_rng(seed)
    state = np.empty((replicas, frames), dtype=np.int64)
    state[:, 0] = rng.random(replicas) < leave[0] / sum(leave)
    chances = np.array(leave)
    for t in range(1, frames):
        state[:, t] = np.where(rng.random(replicas) < chances[state[:, t - 1]], 1 - state[:, t - 1], state[:, t - 1])
    return state


@pytest.mark.parametrize(("replicas", "frames"), [(40, 2000), (1, 60000), (4, 20000)])
def test_relaxation_time_is_the_slow_one_of_two(replicas, frames):
    both = _slow_and_fast(1, replicas, frames)
    result = relaxation_time(list(both.sum(axis=2)), frame_interval=0.5, lag=24)
    exact = 0.5 * TAUS[0]
    # What is left of the fast part at lag 24, exp(-4) against exp(-0.6), shortens the time by 4 %.
    c = [(RHOS ** (24 * k)).sum() for k in (1, 2)]
    two_point = 0.5 * 24 / np.log(c[0] / c[1])
    assert result.reliable and result.lag == 24 and 0 < result.error < 0.25 * exact
    assert abs(result.time - two_point) < 5 * result.error
    assert two_point == pytest.approx(exact, rel=0.06)


def test_relaxation_time_of_a_jump_process():
    state = _jumps(2, 64, 3000, (0.02, 0.04))
    result = relaxation_time(list(state))
    exact = -1 / np.log(1 - 0.06)
    assert abs(result.time - exact) < 5 * result.error
    assert result.error < 0.1 * exact


def test_the_stated_error_of_a_relaxation_time_is_its_spread():
    found = [relaxation_time(list(_slow_and_fast(100 + k, 1, 12000)[:, :, 1])) for k in range(60)]
    spread = np.std([one.time for one in found], ddof=1)
    assert np.mean([one.error for one in found]) / spread == pytest.approx(1, abs=0.45)


def test_what_never_mixes_is_no_relaxation_time():
    rng = np.random.default_rng(3)
    chain = 0.1 * rng.standard_normal((20, 300)) + rng.choice([-1.0, 1.0], 20)[:, None]
    assert not relaxation_time(list(chain)).reliable


def test_noise_is_no_relaxation_time():
    noise = np.random.default_rng(12).standard_normal((40, 500))
    found = relaxation_time(list(noise), lag=20)
    assert not found.reliable and "does not decay above its noise" in found.reason


def test_cores_of_a_torsion():
    degrees = np.array([180, -161, 200, 159, 60, 45.1, 85.1, -60, -44, 0, 300])
    assert torsion_core(np.radians(degrees)).tolist() == [0, 0, 0, -1, 1, 1, -1, 2, -1, -1, 2]


def test_hops_by_hand():
    result = hop_rates([np.array([-1, 0, -1, 0, -1, 1, 1, -1, 0]), np.array([-1, -1]), np.array([1])], 0.5)
    # 0 for frames 1 to 4, 1 for 5 to 7, then 0: the last frame has no interval behind it.
    assert result.counts.tolist() == [[0, 1], [1, 0]]
    assert result.time.tolist() == [2.0, 1.5]
    assert result.rates[0, 1] == 0.5 and result.errors[0, 1] == 0.5
    assert result.rates[1, 0] == pytest.approx(1 / 1.5) and np.isnan(result.rates[0, 0])
    assert result.total == 2 and result.total_rate == pytest.approx(2 / 3.5)
    still = hop_rates([np.zeros(11, dtype=int)], n_cores=2)
    assert still.rates[0, 1] == 0 and still.errors[0, 1] == pytest.approx(0.1) and np.isnan(still.rates[1, 0])


def test_hop_rates_are_exact_within_their_error():
    leave = (0.004, 0.011)
    result = hop_rates(list(_jumps(4, 50, 4000, leave)), 0.2)
    for i, j in ((0, 1), (1, 0)):
        assert abs(result.rates[i, j] - leave[i] / 0.2) < 5 * result.errors[i, j]
        assert result.errors[i, j] == pytest.approx(result.rates[i, j] / np.sqrt(result.counts[i, j]))


def test_tica_finds_both_processes_in_a_mixture():
    both = _slow_and_fast(5, 40, 2000)
    mixed = list(both @ np.array([[0.3, 1.0], [1.0, 0.4]]) + [10.0, -3.0])
    result = tica(mixed, lag=5, frame_interval=0.5)
    assert result.eigenvalues == pytest.approx(RHOS**5, abs=0.02)
    assert result.timescales == pytest.approx(0.5 * np.array(TAUS), rel=0.2)
    slow = np.concatenate([part[:, 0] for part in result.projections])
    assert abs(np.corrcoef(slow, both[:, :, 0].ravel())[0, 1]) > 0.98
    assert [part.shape for part in tica(mixed, 5, n_processes=1).projections] == [(2000, 1)] * 40


@pytest.mark.parametrize(("replicas", "frames"), [(40, 2000), (2, 40000)])
def test_implied_timescales_within_their_errors(replicas, frames):
    both = _slow_and_fast(6, replicas, frames)
    result = implied_timescales(list(both), [2, 6, 12], frame_interval=0.5, n_processes=2)
    exact = 0.5 * np.array(TAUS)
    assert result.reliable and result.lags.tolist() == [1.0, 3.0, 6.0]
    # The bootstrap of 50 knows its error to 10 %, and the maximum over combinations lies a little above.
    assert (np.abs(result.timescales - exact) < 6 * result.errors).all()
    assert (result.errors < 0.25 * exact).all()


def test_replicas_shorter_than_the_lag_are_left_out():
    both = _slow_and_fast(11, 34, 1500)
    series = [part[:4] if k % 2 else part for k, part in enumerate(both)]
    mixed, whole = implied_timescales(series, [6], n_processes=2), implied_timescales(series[::2], [6], n_processes=2)
    assert mixed.timescales == pytest.approx(whole.timescales) and mixed.units == "34 replicas"
    assert (np.abs(mixed.timescales - TAUS) < 6 * mixed.errors).all() and (mixed.errors < 0.4 * np.array(TAUS)).all()
    # One long replica among many: no other tells its scatter.
    alone = implied_timescales([both[0], *(part[:4] for part in both[1:])], [6], n_processes=1)
    assert np.isfinite(alone.timescales).all() and np.isnan(alone.errors).all()


def test_vamp2_score():
    both = _slow_and_fast(7, 40, 2000)
    result = vamp2_score(list(both), lag=6)
    exact = 1 + (RHOS**12).sum()
    assert abs(result.score - exact) < 5 * result.error and result.error < 0.1
    assert vamp2_score(list(both), lag=6, n_processes=1).score == pytest.approx(1 + RHOS[0] ** 12, abs=0.1)
    noise = np.random.default_rng(8).standard_normal((40, 500, 2))
    assert vamp2_score(list(noise), lag=6).score == pytest.approx(1, abs=0.02)


def test_without_deeptime(monkeypatch):
    there = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("deeptime"):
            raise ImportError(name)
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnavailableError, match=r"pip install 'diffmd-fast\[analysis\]'"):
        tica(list(_slow_and_fast(9, 2, 50)), 1)


CHAIN = list(_slow_and_fast(10, 3, 100))


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: relaxation_time([np.zeros(9)]), "values: expected values that change"),
        (lambda: relaxation_time([np.arange(9.0)], lag=5), "lag: expected less than half"),
        (lambda: relaxation_time([np.arange(9.0)], lag=0), "lag: expected an integer"),
        (lambda: torsion_core([np.nan]), "angles: expected finite"),
        (lambda: hop_rates([np.array([0.5])]), "cores: expected integers"),
        (lambda: hop_rates([np.array([-1, -1])]), "cores: expected at least one frame"),
        (lambda: hop_rates([np.array([-2, 0])]), "cores: expected -1 to 0"),
        (lambda: hop_rates([np.array([3])], n_cores=2), "cores: expected -1 to 1"),
        (lambda: tica(CHAIN, 0), "lag: expected an integer"),
        (lambda: tica(CHAIN, 100), "lag: expected an integer"),
        (lambda: tica(CHAIN, 1, n_processes=3), "n_processes: expected"),
        (lambda: tica([np.zeros(3)], 1), "features: expected arrays [frames, features]"),
        (lambda: tica([np.zeros((9, 2))], 1), "features: expected features that change"),
        (lambda: tica([], 1), "features: expected a list"),
        (lambda: tica([np.full((9, 1), np.nan)], 1), "features: expected finite"),
        (lambda: implied_timescales(CHAIN, []), "lags: expected a list"),
        (lambda: implied_timescales(CHAIN, [1, 99], n_processes=2), "lags: expected lags shorter"),
        (lambda: implied_timescales(CHAIN, [1], n_processes=2, n_bootstrap=2), "n_bootstrap: expected"),
        (lambda: vamp2_score(CHAIN, 1, n_splits=1), "n_splits: expected"),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)


def test_hops_of_butane(shared_data):
    """316 hops in 25 ns as counted by whoever made the trajectory; relaxation of the trans indicator beside it."""
    from diffmd_fast.analysis import dihedral_angles

    data = np.load(shared_data / "butane_traj_brownian_300K.npz")
    angles = dihedral_angles(data["positions"], [[0, 1, 2, 3]])[:, 0]
    result = hop_rates([torsion_core(angles)], float(data["time_between_frames"]), 3)
    assert result.total == 316
    assert 1000 * result.total_rate == pytest.approx(14.1, abs=5 * 0.7)
