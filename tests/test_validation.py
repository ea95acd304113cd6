"""What the validation measures by, where it can be wrong without a run showing it."""

from __future__ import annotations

import numpy as np
import pytest
from validation.dynamics import LAGS, short_time_curve


def test_curves_of_a_run_that_was_mostly_on_one_side_are_those_of_equilibrium():
    """Two places in beta, 90 degrees of phi apart, a quarter and three quarters of it; a run that starts in the first.

    From equilibrium 1 - <cos> at lag t is 2 p (1 - p) (1 - r^t), r = 1 - leave - come back.  Limit: 5 standard errors
    of each of 36 lags, false alarm 2e-5.
    """
    interval, leave, back, replicas, frames = 0.1, 0.003, 0.001, 800, 400
    rng = np.random.default_rng(1)
    there = np.zeros((frames, replicas), bool)
    for t in range(1, frames):
        there[t] = np.where(there[t - 1], rng.random(replicas) >= back, rng.random(replicas) < leave)
    angles = np.empty((frames, replicas, 2))
    angles[..., 0] = np.radians(np.where(there, -65.0, -155.0))
    angles[..., 1] = np.radians(145.0)
    histogram = np.zeros((36, 36))
    histogram[11, 32], histogram[2, 32] = 0.45, 0.15  # bins of -65 and -155; the rest is in alpha R
    histogram[11, 14] = 0.4
    values, errors = short_time_curve(angles, "beta_PPII", "phi", interval, histogram)
    p, lags = 0.75, np.rint(LAGS / interval)
    expected = 2 * p * (1 - p) * (1 - (1 - leave - back) ** lags)
    assert values[0] == errors[0] == 0
    assert (np.abs(values - expected)[1:] < 5 * errors[1:]).all()
    assert errors[-1] < 0.06 * expected[-1]
    share = there[:-100].mean()
    without = np.average(1 - np.cos(angles[100:, :, 0] - angles[:-100, :, 0]))
    assert share < 0.6 and abs(without - expected[-1]) > 5 * errors[-1]  # so the weights are what makes it right


def test_a_basin_that_was_never_visited_is_named():
    angles = np.full((200, 3, 2), np.radians(145.0)) * [-1, 1]
    with pytest.raises(ValueError, match="expected frames in alphaR, got none in 200 frames of 3 replicas"):
        short_time_curve(angles, "alphaR", "phi", 0.1, np.full((36, 36), 1 / 36**2))
