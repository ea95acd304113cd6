"""Averages over replicas, with the standard error that the run's own autocorrelation gives them.

Frames close in time say nearly the same, so the variance of a mean is var(x) / n_eff, not var(x) / n_frames, where
n_eff is the effective sample size that `autocorrelation` finds.  `Average.resolved` says whether the run is long
enough to show it; where it is not, the error comes from the scatter of the replicas' means and is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .autocorrelation import Autocorrelation, autocorrelation, check_replicas, dihedral_autocorrelation


@dataclass(frozen=True)
class Average:
    """A mean and its standard error, in the unit of the quantity.

    mean: over all frames of all replicas.  error: its standard error; nan where the run holds no more than one
    independent value, which knows nothing of its own spread.
    standard_deviation: of the quantity itself, not of its mean.
    autocorrelation: where the error comes from.
    """

    mean: float
    error: float
    standard_deviation: float
    autocorrelation: Autocorrelation

    @property
    def effective_sample_size(self) -> float:
        """Independent frames that would give the mean with the same error."""
        return self.autocorrelation.effective_sample_size

    @property
    def resolved(self) -> bool:
        """Whether the replicas are long enough to show the correlation time."""
        return self.autocorrelation.resolved

    @property
    def reason(self) -> str:
        """Why not, where not resolved; else empty."""
        return self.autocorrelation.reason


def average(values: Sequence[np.ndarray], frame_interval: float | None = None, window_factor: float = 5.0) -> Average:
    """Mean of a number over all replicas, with its standard error.

    values: one array [frames] per replica, any unit, in time order; lengths may differ.
    frame_interval: ps between frames; None gives times in frames.
    window_factor: of the automatic window, as in `autocorrelation`, default 5.

    error^2 = var / (n_eff - 1): the variance about the sample's own mean is too small by 1 - 1/n_eff.
    Raises `InputError` as `autocorrelation` does.
    """
    found = autocorrelation(values, frame_interval, window_factor)
    return Average(float(found.mean), _standard_error(found.variance, found), float(np.sqrt(found.variance)), found)


def circular_average(
    angles: Sequence[np.ndarray], frame_interval: float | None = None, window_factor: float = 5.0
) -> Average:
    """Mean direction of an angle over all replicas, radians in (-pi, pi], with its standard error.

    angles: one array [frames] in radians per replica; other arguments and errors as in `average`.

    The mean direction is arg <exp(iq)>; to first order it moves by <sin(q - mean)> / R with R = |<exp(iq)>|, whose
    error is found like that of any number (Fisher, Statistical analysis of circular data (1993), section 4.4).
    standard_deviation is sqrt(-2 log R).  Where R is near zero there is no mean direction, and the error says so.
    ``autocorrelation`` is that of exp(iq), as `dihedral_autocorrelation` finds it.
    """
    found = dihedral_autocorrelation(angles, frame_interval, window_factor)
    length, direction = abs(found.mean), float(np.angle(found.mean))
    across = autocorrelation(
        [np.sin(values - direction) for values in check_replicas(angles, "angles")], frame_interval, window_factor
    )
    with np.errstate(divide="ignore"):
        error = np.divide(_standard_error(across.variance, across), length)
        spread = np.sqrt(np.maximum(-2 * np.log(length), 0.0))
    return Average(direction, float(error), float(spread), found)


def _standard_error(variance: float, found: Autocorrelation) -> float:
    size = found.effective_sample_size
    return float(np.sqrt(variance / (size - 1))) if size > 1 else float("nan")
