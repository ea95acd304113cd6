"""What the validation measures by, where it can be wrong without a run showing it."""

from __future__ import annotations

import numpy as np
import pytest
from validation.dynamics import LAGS, short_time_curve


@pytest.mark.parametrize(("name", "there", "bins", "limit"), [
    ("phi", (-155.0, 145.0), (2, 32), 2 * 0.25 * 0.75),  # both in beta, phi 90 degrees apart
    ("psi", (-65.0, -35.0), (11, 14), 2 * 0.75),  # the other in alpha R, psi 180 degrees apart
])
def test_curves_of_a_run_that_was_mostly_on_one_side_are_those_of_equilibrium(name, there, bins, limit):
    """A place in beta that has a quarter of equilibrium, and another with three quarters, where all replicas start.

    From equilibrium 1 - <cos> at lag t is its limit times 1 - r^t, r = 1 - leave - come back.  Asked:
    within 5 standard errors at each of 36 lags, false alarm 2e-5 a case.
    """
    interval, leave, back, replicas, frames = 0.1, 0.001, 0.003, 800, 400
    rng = np.random.default_rng(1)
    here = np.zeros((frames, replicas), bool)
    for t in range(1, frames):
        here[t] = np.where(here[t - 1], rng.random(replicas) >= back, rng.random(replicas) < leave)
    angles = np.radians(np.where(here[..., None], (-65.0, 145.0), there))
    histogram = np.zeros((36, 36))
    histogram[11, 32], histogram[bins] = 0.25, 0.75
    values, errors = short_time_curve(angles, "beta_PPII", name, interval, histogram)
    expected = limit * (1 - (1 - leave - back) ** np.rint(LAGS / interval))
    assert values[0] == errors[0] == 0
    assert (np.abs(values - expected)[1:] < 5 * errors[1:]).all()
    assert errors[-1] < 0.08 * expected[-1]


def test_a_basin_that_was_never_visited_is_named():
    angles = np.full((200, 3, 2), np.radians(145.0)) * [-1, 1]
    with pytest.raises(ValueError, match="expected frames in alphaR, got none in 200 frames of 3 replicas"):
        short_time_curve(angles, "alphaR", "phi", 0.1, np.full((36, 36), 1 / 36**2))
