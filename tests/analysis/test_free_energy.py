"""Histograms, free energies, basins."""

import numpy as np
import pytest

from diffmd_fast.analysis import (
    basin_populations,
    find_replicas,
    free_energy,
    periodic_histogram,
    ramachandran_basin,
    torsion_basin,
)
from diffmd_fast.analysis.free_energy import bin_centers, smooth_periodic
from diffmd_fast.errors import InputError


def test_histogram_places_and_wraps():
    centers = bin_centers(8)
    angles = np.array([[centers[1], centers[6]], [centers[1] + 2 * np.pi, centers[6] - 4 * np.pi]])
    counts = periodic_histogram(angles, 8)
    assert counts[1, 6] == 2 and counts.sum() == 2
    # pi and -pi are the same angle.
    np.testing.assert_array_equal(periodic_histogram([np.pi], 8), periodic_histogram([-np.pi], 8))


def test_histogram_equals_numpy():
    angles = np.random.default_rng(1).uniform(-np.pi, np.pi, (3000, 2))
    edges = np.linspace(-np.pi, np.pi, 17)
    np.testing.assert_array_equal(periodic_histogram(angles, 16), np.histogram2d(*angles.T, [edges, edges])[0])


def test_free_energy_by_hand():
    energy = free_energy(np.array([[8, 4], [0, 1]]))
    np.testing.assert_allclose(energy, [[0, np.log(2)], [np.nan, np.log(8)]], equal_nan=True)


def test_smoothing_keeps_the_sum_and_crosses_the_boundary():
    counts = np.zeros((12, 12))
    counts[0, 5] = 10
    smooth = smooth_periodic(counts, 1.0)
    assert smooth.sum() == pytest.approx(10)
    assert smooth[11, 5] == pytest.approx(smooth[1, 5]) and smooth[11, 5] > 0.5


def test_basins():
    degrees = np.array([[60, 30], [60, -170], [-70, -40], [-70, 150], [150, 0], [-70, -130], [0, 0]])
    assert ramachandran_basin(np.radians(degrees)).tolist() == [0, 0, 1, 2, 1, 2, 0]
    assert torsion_basin(np.radians([180, -179, 60, -60, 119, 121, 420])).tolist() == [0, 0, 1, 2, 1, 0, 1]


def test_population_error_is_between_units():
    """Replicas that sit in one basin each: the binomial error of their number, not of their frames."""
    units = [np.full(100, k < 4, dtype=int) for k in range(16)]
    reference = [np.array([1])] * 250 + [np.array([0])] * 750
    share = basin_populations(units, reference, ("other", "here"))[1]
    assert share.run == 0.25 and share.run_error == pytest.approx(np.sqrt(0.25 * 0.75 / 15))
    assert share.reference == 0.25 and share.reference_error == pytest.approx(np.sqrt(0.25 * 0.75 / 999))


def test_replicas_from_numbers_and_from_time():
    time = np.array([0.0, 0.5, 1.0, 0.0, 0.5])
    by_time = find_replicas(5, None, time)
    assert [index.tolist() for index in by_time.indices] == [[0, 1, 2], [3, 4]]
    assert by_time.frame_interval == 0.5
    interleaved = find_replicas(4, np.array([7, 2, 7, 2]), None)
    assert interleaved.labels == (2, 7)
    assert [index.tolist() for index in interleaved.indices] == [[1, 3], [0, 2]]
    assert interleaved.frame_interval is None


def test_replicas_stopped_early_are_those_shorter_than_most():
    numbers = np.repeat([0, 1, 2, 3], [10, 10, 6, 10])
    assert find_replicas(36, numbers, None).n_short == 1
    assert find_replicas(18, np.repeat([0, 1, 2], [5, 6, 7]), None).n_short == 0


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: periodic_histogram([0.1], 0), "bins: expected"),
        (lambda: periodic_histogram([0.1], 2.5), "bins: expected"),
        (lambda: periodic_histogram(np.zeros((0, 2))), "angles: expected at least one frame"),
        (lambda: periodic_histogram(np.zeros((4, 3))), "angles: expected"),
        (lambda: periodic_histogram([np.inf]), "angles: expected finite"),
        (lambda: free_energy(np.zeros(3)), "histogram: expected"),
        (lambda: free_energy(np.array([1.0, -1.0])), "histogram: expected"),
        (lambda: find_replicas(0, None, None), "trajectory: expected at least one frame"),
        (lambda: find_replicas(3, np.zeros(2, int), None), "trajectory: expected replica of shape [3]"),
        (
            lambda: find_replicas(4, None, np.array([0, 1, 2, 5.0])),
            "trajectory: expected frames evenly spaced",
        ),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)
