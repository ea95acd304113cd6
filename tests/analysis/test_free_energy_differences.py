"""Free energies of Gaussian works and harmonic wells, which are known exactly.

A work of mean dF + s^2/2 and variance s^2 obeys Jarzynski and Crooks.  Energies that follow AR(1) chains have known
correlation.  Tolerances are five standard errors (6e-7 each) and an allowance for the bias where it is named.
"""

import importlib
import logging

import numpy as np
import pytest
from scipy.stats import norm

from diffmd_fast.analysis import (
    bennett,
    dihedral_free_energy_profile,
    dihedral_free_energy_surface,
    free_energy_profile,
    jarzynski,
    mbar,
    zwanzig,
)
from diffmd_fast.analysis.free_energy import shares
from diffmd_fast.errors import InputError, UnavailableError

from .chains import ornstein_uhlenbeck

TRUE, WIDTH = 1.7, 0.9
RHO = np.exp(-1 / 8)


def _works(seed: int, replicas: int, frames: int, sign: float = 1.0, rho: float = RHO) -> list[np.ndarray]:
    chain = ornstein_uhlenbeck(np.random.default_rng(seed), replicas, frames, rho)[:, :, 0]
    return list(sign * TRUE + 0.5 * WIDTH**2 + WIDTH * chain)


def _exponential_time() -> float:
    """Integrated time of exp(-W) along the chain: correlation (exp(s^2 rho^l) - 1) / (exp(s^2) - 1)."""
    lags = np.arange(1, 300)
    return 0.5 + (np.expm1(WIDTH**2 * RHO**lags) / np.expm1(WIDTH**2)).sum()


@pytest.mark.parametrize(("replicas", "frames"), [(32, 2000), (1, 60000)])
def test_zwanzig(replicas, frames):
    result = zwanzig(_works(1, replicas, frames))
    exact_error = np.sqrt(np.expm1(WIDTH**2) * 2 * _exponential_time() / (replicas * frames))
    assert abs(result.difference - TRUE) < 5 * exact_error
    assert result.error == pytest.approx(exact_error, rel=0.35)
    assert result.reliable and result.carried_by[0] > 1000


def test_jarzynski():
    work = _works(2, 1, 20000, rho=0.0)[0]
    result = jarzynski(work)
    exact_error = np.sqrt(np.expm1(WIDTH**2) / 20000)
    assert abs(result.difference - TRUE) < 5 * exact_error
    assert result.error == pytest.approx(exact_error, rel=0.2)
    assert result.effective_sample_sizes == (20000,)


def test_bennett_is_right_and_better_than_one_side():
    forward, backward = _works(3, 16, 2000), _works(4, 16, 1000, -1.0)
    result = bennett(forward, backward)
    assert abs(result.difference - TRUE) < 5 * result.error
    assert result.error < zwanzig(forward).error
    assert result.reliable and len(result.effective_sample_sizes) == 2


def test_the_stated_errors_are_the_spread_over_repetitions():
    deviations = []
    for k in range(100):
        forward, backward = _works(1000 + k, 4, 1500), _works(2000 + k, 4, 1500, -1.0)
        for result in (zwanzig(forward), bennett(forward, backward)):
            deviations.append((result.difference - TRUE) / result.error)
    spread = (np.array(deviations).reshape(-1, 2) ** 2).mean(axis=0)
    # Variance of 100 standard normals: 1 with standard error 0.14.
    assert spread == pytest.approx([1, 1], abs=0.7)


def _harmonic_states(seed: int, rho: float) -> list[list[np.ndarray]]:
    """Wells of stiffness 1, 2 and 5 sampled by chains: F = log(k) / 2; energies in all three, state by state."""
    stiffness = np.array([1.0, 2.0, 5.0])
    rng = np.random.default_rng(seed)
    states = []
    for k in stiffness:
        x = ornstein_uhlenbeck(rng, 8, 1000, rho)[:, :, 0] / np.sqrt(k)
        states.append(list(0.5 * stiffness * x[:, :, None] ** 2))
    return states


def test_mbar_of_harmonic_wells():
    result = mbar(_harmonic_states(5, RHO))
    exact = 0.5 * np.log([1.0, 2.0, 5.0])
    exact = exact[None, :] - exact[:, None]
    upper = np.triu_indices(3, 1)
    assert (np.abs(result.differences - exact)[upper] < 5 * result.errors[upper]).all()
    # x^2 of an AR(1) chain has correlation rho^(2 l): statistical inefficiency (1 + rho^2) / (1 - rho^2) = 8.04.
    assert result.statistical_inefficiencies == pytest.approx((1 + RHO**2) / (1 - RHO**2), rel=0.4)
    independent = mbar(_harmonic_states(6, 0.0))
    # Errors grow with the root of the inefficiency, and thinning by whole frames rounds it up.
    assert result.errors[0, 2] / independent.errors[0, 2] == pytest.approx(np.sqrt(8), rel=0.4)
    assert result.reliable


def _pulls(rng: np.random.Generator, stiffness: np.ndarray, n: int) -> np.ndarray:
    """Works of changing a well's stiffness in jumps, with exact overdamped motion (D = 1) for 0.1 after each."""
    x = rng.standard_normal(n) / np.sqrt(stiffness[0])
    work = np.zeros(n)
    for before, after in zip(stiffness[:-1], stiffness[1:]):
        work += 0.5 * (after - before) * x**2
        kept = np.exp(-0.1 * after)
        x = kept * x + np.sqrt((1 - kept**2) / after) * rng.standard_normal(n)
    return work


def test_every_estimator_on_one_pair_of_harmonic_wells():
    """Stiffness 1 and 4 in units of kT: F = log(4) / 2, whatever the way there."""
    exact = 0.5 * np.log(4)
    rng = np.random.default_rng(14)
    soft, stiff = (ornstein_uhlenbeck(rng, 16, 4000, RHO)[:, :, 0] / width for width in (1, 2))
    ahead, back = list(1.5 * soft**2), list(-1.5 * stiff**2)
    path = np.linspace(1, 4, 13)
    forward, backward = _pulls(rng, path, 8000), _pulls(rng, path[::-1], 8000)
    found = {
        "zwanzig": zwanzig(ahead),
        "bennett": bennett(ahead, back),
        "jarzynski": jarzynski(forward),
        "crooks": bennett([forward], [backward]),
    }
    for name, result in found.items():
        assert abs(result.difference - exact) < 5 * result.error, name
        assert result.reliable and 0.001 < result.error < 0.03, name
    # Slow pulls do less work than the jump, and more than the free energy.
    assert exact < forward.mean() < 1.5
    assert -jarzynski(backward).difference == pytest.approx(exact, abs=5 * jarzynski(backward).error)


def test_few_frames_that_carry_all_are_noticed():
    work = 12 + np.sqrt(24) * np.random.default_rng(7).standard_normal(2000)
    assert not jarzynski(work).reliable and "carry" in jarzynski(work).reason
    assert not zwanzig([work]).reliable


def test_works_that_do_not_overlap():
    far = np.linspace(2000, 2001, 50)
    with pytest.raises(InputError, match="backward: expected works that overlap"):
        bennett([far], [far])


def test_equal_states_are_known_exactly():
    result = zwanzig([np.full(50, 2.5)])
    assert result.difference == pytest.approx(2.5) and result.error == 0 and result.reliable


def test_numpy_and_logging_are_left_as_they_were(caplog):
    before = np.geterr(), logging.getLogger("pymbar").level
    bennett(_works(8, 2, 200), _works(9, 2, 200, -1.0))
    assert (np.geterr(), logging.getLogger("pymbar").level) == before
    assert "JAX" not in caplog.text


# ---- profiles --------------------------------------------------------------------------------------


def test_profile_of_a_gaussian_chain_within_its_errors():
    chain = ornstein_uhlenbeck(np.random.default_rng(10), 40, 2000, RHO)[:, :, 0]
    edges = np.linspace(-2, 2, 9)
    result = free_energy_profile(list(chain), edges)
    exact = np.diff(norm.cdf(edges))
    exact /= exact.sum()
    # Errors from 40 replicas are t distributed: 6 instead of 5 for the same rate.
    assert (np.abs(result.probability - exact) < 6 * result.probability_error).all()
    assert (np.abs(result.free_energy + np.log(exact / exact.max())) < 0.15).all()
    assert result.error == pytest.approx(result.probability_error / result.probability)
    assert np.nanmin(result.free_energy) == 0 and result.reliable


def test_dihedral_profile_and_blocks():
    chain = 0.5 * ornstein_uhlenbeck(np.random.default_rng(11), 1, 50000, RHO)[:, :, 0] + np.pi
    result = dihedral_free_energy_profile(list(chain), 16)
    assert result.units.endswith("frames") and "blocks" in result.units and result.reliable
    assert result.probability.sum() == pytest.approx(1)
    edges = np.linspace(-np.pi, np.pi, 17)
    exact = norm.cdf(edges[1:], [[-np.pi], [np.pi]], 0.5) - norm.cdf(edges[:-1], [[-np.pi], [np.pi]], 0.5)
    filled = result.probability > 0.02
    assert filled.sum() == 6
    assert (np.abs(result.probability - exact.sum(axis=0)) < 5 * result.probability_error)[filled].all()
    assert np.isnan(result.free_energy[8]) and np.isnan(result.error[8])


@pytest.mark.parametrize(("replicas", "frames"), [(40, 2000), (2, 40000)])
def test_surface_of_two_dihedrals_within_its_errors(replicas, frames):
    chain = 0.5 * ornstein_uhlenbeck(np.random.default_rng(13), replicas, frames, RHO, 2) + np.pi
    result = dihedral_free_energy_surface(list(chain), 16)
    edges = np.linspace(-np.pi, np.pi, 17)
    one = (norm.cdf(edges[1:], [[-np.pi], [np.pi]], 0.5) - norm.cdf(edges[:-1], [[-np.pi], [np.pi]], 0.5)).sum(axis=0)
    exact = np.outer(one, one)
    filled = exact > 0.002
    assert result.probability.shape == (16, 16) and filled.sum() == 44 and result.reliable
    assert (np.abs(result.probability - exact) < 6 * result.probability_error)[filled].all()
    assert result.error[filled] == pytest.approx(result.probability_error[filled] / result.probability[filled])
    # Right on average: the mean of 44 squares of normals leaves 0.3 to 2.3 once in 100,000 times.
    assert 0.3 < (((result.probability - exact)[filled] / result.probability_error[filled]) ** 2).mean() < 2.3
    assert result.probability.sum() == pytest.approx(1) and np.nanmin(result.free_energy) == 0
    assert np.isnan(result.error[8, 8])
    swapped = dihedral_free_energy_surface([part[:, ::-1] for part in chain], 16)
    assert (swapped.probability == result.probability.T).all()


def test_shares_equal_the_table():
    rng = np.random.default_rng(12)
    lengths = np.array([5, 1, 9, 4])
    index = rng.integers(-1, 4, lengths.sum())
    share, error = shares(index, lengths, 5)
    units = np.split(index, np.cumsum(lengths)[:-1])
    counts = np.array([[(unit == k).sum() for k in range(5)] for unit in units])
    total = counts.sum(axis=1)
    assert share == pytest.approx(counts.sum(axis=0) / total.sum())
    residual = counts - share * total[:, None]
    assert error == pytest.approx(np.sqrt(4 / 3 * (residual**2).sum(axis=0)) / total.sum())


def test_without_pymbar(monkeypatch):
    def refuse(name, *args):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UnavailableError, match=r"pip install 'diffmd-fast\[analysis\]'"):
        zwanzig([np.zeros(3)])


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: zwanzig([]), "energy_difference: expected at least one replica"),
        (lambda: zwanzig([np.array([np.nan])]), "energy_difference: expected finite"),
        (lambda: zwanzig([np.zeros(3)], frame_interval=0), "frame_interval: expected"),
        (lambda: jarzynski(np.zeros((2, 2))), "work: expected an array [pulls]"),
        (lambda: jarzynski(np.zeros(1)), "work: expected two pulls"),
        (lambda: bennett([np.zeros(3)], [np.zeros((3, 2))]), "backward: expected an array"),
        (lambda: mbar([[np.zeros((3, 1))]]), "energies: expected two states"),
        (lambda: mbar([[np.zeros((3, 2))], []]), "energies: expected at least one replica"),
        (lambda: mbar([[np.zeros((3, 2))], [np.zeros((3, 3))]]), "energies: expected arrays [frames, 2]"),
        (lambda: mbar([[np.zeros((3, 2))], [np.full((3, 2), np.inf)]]), "energies: expected finite"),
        (lambda: free_energy_profile([np.zeros(3)], [1.0, 0.0]), "edges: expected"),
        (lambda: free_energy_profile([np.zeros(3)], [1.0, 2.0]), "values: expected a frame between"),
        (lambda: dihedral_free_energy_profile([np.zeros(3)], 0), "bins: expected"),
        (lambda: dihedral_free_energy_surface([]), "angles: expected a list"),
        (lambda: dihedral_free_energy_surface([np.zeros(3)]), "angles: expected an array [frames, 2]"),
        (lambda: dihedral_free_energy_surface([np.full((3, 2), np.nan)]), "angles: expected finite"),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)
