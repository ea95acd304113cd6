"""Means over frames and their standard errors, from the pieces of a run that count as independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .autocorrelation import dihedral_autocorrelation
from .budget_result import Estimate
from .divergence import Units, resampling_units


def thinned(indices: Sequence[np.ndarray], max_frames: int) -> list[np.ndarray]:
    """At most max_frames frame numbers, evenly spaced, one array per replica that has any."""
    stride = -(-sum(map(len, indices)) // max_frames)
    offset, pieces = 0, []
    for index in indices:
        pieces.append(index[-offset % stride :: stride])
        offset += len(index)
    return [piece for piece in pieces if len(piece)]


def gyration(frames: Tensor) -> np.ndarray:
    """Radius of gyration (equal masses) of each frame [frames] in nm; frames [frames, atoms, 3]."""
    return (frames - frames.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt().cpu().numpy()


def frame_units(pieces: Sequence[np.ndarray], series: Sequence[np.ndarray]) -> Units:
    """Frame numbers cut into pieces that count as independent, by the longest correlation time of the series.

    pieces: frame numbers of each replica, in time order; series: numbers [frames], replica after replica.  The
    correlation time of a number is taken from its rank, laid on half a circle so that the code for dihedrals serves:
    a monotone function of it, in which single outliers have no weight.
    """
    cuts = np.cumsum([len(piece) for piece in pieces])
    longest, resolved = 0.5, True
    for values in series:
        if np.ptp(values) <= 1e-9 * np.abs(values).max():
            continue  # the same at every frame, as in a harmonic well: no error to be correlated
        rank = np.argsort(np.argsort(values, kind="stable"))
        angles = np.pi * ((rank + 0.5) / len(values) - 0.5)
        found = dihedral_autocorrelation(np.split(angles, cuts[:-1]))
        longest, resolved = max(longest, found.integrated_time), resolved and found.resolved
    return resampling_units(np.split(np.arange(cuts[-1]), cuts[:-1]), longest, resolved)


def estimate_mean(units: Units, values: np.ndarray) -> Estimate:
    """Mean over frames, and its standard error from the scatter of the units' sums about it (ratio estimator)."""
    mean = float(values.mean())
    sums = np.array([piece.sum() for piece in units.with_values(values - mean).pieces()])
    return Estimate(mean, float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values)))


def estimate_ratio(units: Units, values: np.ndarray, others: np.ndarray) -> Estimate:
    """Mean of ``values`` over that of ``others``, and its standard error at leading order."""
    ratio = float(values.mean() / others.mean())
    return Estimate(ratio, estimate_mean(units, values - ratio * others).error / abs(float(others.mean())))
