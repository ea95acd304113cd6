"""Jensen-Shannon divergence by hand, and its sampling floor against fresh samples of a known density."""

import numpy as np
import pytest

from diffmd_fast.analysis import (
    dihedral_autocorrelation,
    jensen_shannon,
    periodic_histogram,
    resampling_units,
    sampling_floor,
)
from diffmd_fast.analysis.divergence import Units, independent_equivalent
from diffmd_fast.analysis.free_energy import bin_coordinates
from diffmd_fast.errors import InputError

from .chains import two_angles


def test_divergence_by_hand():
    assert jensen_shannon([1, 2, 0], [10, 20, 0]) == 0
    assert jensen_shannon([1, 0, 3], [0, 5, 0]) == pytest.approx(np.log(2), abs=1e-15)
    p, q = np.array([0.5, 0.5]), np.array([0.75, 0.25])
    m = (p + q) / 2
    by_hand = 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()
    assert jensen_shannon(p, q) == pytest.approx(by_hand, abs=1e-15)
    assert jensen_shannon(q, p) == pytest.approx(by_hand, abs=1e-15)
    square = np.arange(16.0).reshape(4, 4)
    assert jensen_shannon(square, square.T) == jensen_shannon(square.ravel(), square.T.ravel())


def _units(replicas: np.ndarray) -> Units:
    """Units as `compare` makes them."""
    functions = [dihedral_autocorrelation(list(replicas[:, :, k])) for k in range(replicas.shape[2])]
    return resampling_units(
        list(replicas), max(f.integrated_time for f in functions), all(f.resolved for f in functions)
    )


# run (replicas, frames, tau, exchange), reference, kind of units the run is cut into
CASES = {
    "mixing": ((64, 500, 5.0, 0.05), (1, 4000, 0.0, 1.0), "replicas"),
    "never leaving the basin": ((64, 300, 10.0, 0.0), (1, 4000, 0.0, 1.0), "replicas"),
    "one long replica": ((1, 20000, 10.0, 0.02), (1, 4000, 0.0, 1.0), "blocks"),
    "correlated reference": ((64, 500, 5.0, 0.05), (10, 1000, 4.0, 0.05), "replicas"),
}


@pytest.mark.parametrize("case", CASES)
def test_floor_is_what_fresh_samples_of_one_density_give(case):
    """Mean floor of 5 samples within 20 % of the mean over 24 fresh pairs.

    Measured over 100 pairs and 20 floors: one divergence scatters by 4 to 8 %, one floor by 2 to 7 %, and the
    bias is between -4 and +3 %.  The ratio's standard error is 3.6 % at most, so 20 % is at least 4.3 of them
    away in the worst case (2e-5).
    """
    run, reference, kind = CASES[case]
    rng = np.random.default_rng(20)
    fresh = [
        jensen_shannon(*(periodic_histogram(two_angles(rng, *side).reshape(-1, 2)) for side in (run, reference)))
        for _ in range(24)
    ]
    floors = []
    for seed in range(5):
        units = _units(two_angles(rng, *run))
        assert units.kind == kind and units.reliable
        floors.append(sampling_floor(units, _units(two_angles(rng, *reference)), n_pairs=40, seed=seed))
    assert np.mean([floor.mean for floor in floors]) == pytest.approx(np.mean(fresh), rel=0.2)
    assert all(floor.mean < floor.quantile_95 < floor.mean + 4 * floor.sd for floor in floors)


def test_floor_of_a_trapped_run_exceeds_that_of_independent_frames():
    """16 replicas that never leave their basins: counting frames one by one misses a third of the floor."""
    rng = np.random.default_rng(21)
    replicas = two_angles(rng, 16, 2000, 5.0, 0.0)
    reference = resampling_units([two_angles(rng, 1, 20000, 0.0, 1.0)[0]], 0.5)
    floor = sampling_floor(_units(replicas), reference, n_pairs=60)
    assert floor.mean > 1.5 * floor.naive


def test_a_different_density_is_far_above_the_floor_and_an_equal_one_is_not():
    rng = np.random.default_rng(22)
    run, reference = two_angles(rng, 64, 300, 5.0, 0.05), two_angles(rng, 1, 4000, 0.0, 1.0)
    units = _units(run)
    for shift, different in ((0.0, False), (np.radians(12), True)):
        moved = reference + np.array([shift, 0.0])
        value = jensen_shannon(periodic_histogram(run.reshape(-1, 2)), periodic_histogram(moved[0]))
        floor = sampling_floor(units, _units(moved), divergence=value, n_pairs=100)
        # One divergence of equal densities is above five standard deviations once in a million times.
        assert (value > floor.mean + 5 * floor.sd) == different
        if different:
            assert floor.exceeded_by == pytest.approx(1 / 101)


def test_same_seed_same_floor():
    units = _units(two_angles(np.random.default_rng(23), 40, 100, 3.0, 0.1))
    floors = [sampling_floor(units, units, n_pairs=20, seed=seed).mean for seed in (3, 3, 4)]
    assert floors[0] == floors[1] != floors[2]


def test_one_angle_floor_follows_the_formula_for_many_frames_a_bin():
    """Uniform density, dense bins: JS = (K - 1)/8 (1/n1 + 1/n2), here with a standard error of 2.3 %."""
    rng = np.random.default_rng(24)
    sides = [resampling_units([rng.uniform(-np.pi, np.pi, n)], 0.5) for n in (20000, 10000)]
    floor = sampling_floor(*(side.with_values(side.values[:, None]) for side in sides), bins=36, n_pairs=150)
    assert floor.mean == pytest.approx(35 / 8 * (1 / 20000 + 1 / 10000), rel=0.12)
    assert floor.naive == pytest.approx(floor.mean, rel=0.4)


def test_units_are_cut_as_documented():
    rng = np.random.default_rng(25)
    values = [rng.normal(size=(n, 2)) for n in (100, 130, 90)]
    frames = resampling_units(values, 0.6)
    assert frames.kind == "frames" and len(frames.lengths) == 320
    blocks = resampling_units(values, 2.0)
    assert blocks.kind == "blocks" and blocks.lengths.min() >= 20 and blocks.lengths.sum() == 320
    np.testing.assert_array_equal(np.concatenate(blocks.pieces()), np.concatenate(values))
    assert resampling_units(values * 11, 2.0).kind == "replicas"
    assert not resampling_units(values, 50.0).reliable
    assert not resampling_units(values[:1], 2.0, resolved=False).reliable
    assert resampling_units(values * 3, 2.0, resolved=False).kind == "replicas"


def test_resampling_keeps_pieces_whole():
    units = Units(np.arange(10), np.array([3, 1, 6]), "replicas")
    frames, draw = units.resample(np.random.default_rng(0))
    pieces = {tuple(piece) for piece in units.pieces()}
    assert set(draw) == {0, 1, 2}
    assert all(tuple(units.values[frames[draw == k]]) in pieces for k in range(3))


def test_independent_equivalent_of_repeated_frames():
    """Every frame three times over is worth a third of the frames."""
    rng = np.random.default_rng(26)
    angles = two_angles(rng, 1, 3000, 0.0, 1.0)[0]
    tripled = Units(bin_coordinates(np.repeat(angles, 3, axis=0), 64), np.full(3000, 3), "blocks")
    # Each frame gets the one offset of its piece, so the histogram is that of 3000 frames times three.
    assert independent_equivalent(tripled, 64) == pytest.approx(3000, rel=0.1)


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda u: jensen_shannon([1, 2], [1, 2, 3]), "q: expected the shape of p"),
        (lambda u: jensen_shannon([1, -2], [1, 2]), "p: expected counts"),
        (lambda u: jensen_shannon([1, 2], [0, 0]), "q: expected counts"),
        (lambda u: sampling_floor(u, u, bins=0), "bins: expected"),
        (lambda u: sampling_floor(u, u, n_pairs=2), "n_pairs: expected"),
        (lambda u: sampling_floor(u, u.with_values(u.values[:, :1])), "reference: expected 2 angle(s)"),
        (lambda u: resampling_units([], 1.0), "replicas: expected"),
    ],
)
def test_bad_input(call, start):
    units = resampling_units([np.random.default_rng(0).normal(size=(50, 2))], 0.5)
    with pytest.raises(InputError) as error:
        call(units)
    assert str(error.value).startswith(start)
