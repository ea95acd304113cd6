"""Histograms of dihedral angles, free energies, basin populations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import check_integer, require

# Basins of the (phi, psi) map of alanine dipeptide.
RAMACHANDRAN_BASINS = ("left-handed", "alphaR", "beta/PPII")
TORSION_BASINS = ("trans", "gauche+", "gauche-")


def check_angles(angles: np.ndarray, argument: str = "angles") -> np.ndarray:
    """``angles`` as float64 [frames, 1 or 2] in radians, finite and not empty, or `InputError`."""
    array = np.asarray(angles, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    require(
        array.ndim == 2 and array.shape[1] in (1, 2),
        argument,
        "angles [frames] or [frames, 2]",
        f"shape {list(array.shape)}",
    )
    require(array.shape[0] > 0, argument, "at least one frame", "none")
    require(bool(np.isfinite(array).all()), argument, "finite angles", "a NaN or an infinity")
    return array


def bin_coordinates(angles: np.ndarray, bins: int) -> np.ndarray:
    """Angles [..., d] in units of bins: 0 at -pi, ``bins`` at pi; not wrapped."""
    return (angles * (0.5 / np.pi) + 0.5) * bins


def count(coordinates: np.ndarray, bins: int) -> np.ndarray:
    """Flat histogram [bins**d] of coordinates [n, d] in units of bins, wrapped periodically."""
    index = np.floor(coordinates).astype(np.int64) % bins
    flat = index[:, 0]
    for k in range(1, coordinates.shape[1]):
        flat = flat * bins + index[:, k]
    return np.bincount(flat, minlength=bins ** coordinates.shape[1])


def periodic_histogram(angles: np.ndarray, bins: int = 64) -> np.ndarray:
    """Counts of one or two angles on a periodic grid over [-pi, pi).

    angles: [frames] or [frames, 2], radians, any multiple of 2 pi.  bins: per angle, default 64.
    Returns int64 [bins] or [bins, bins] (first angle first).  Their sum is the number of frames.
    """
    bins = check_integer(bins, "bins", minimum=1)
    array = check_angles(angles)
    return count(bin_coordinates(array, bins), bins).reshape((bins,) * array.shape[1])


def bin_centers(bins: int) -> np.ndarray:
    """Centres of the bins of `periodic_histogram`, radians."""
    return (np.arange(bins) + 0.5) * (2 * np.pi / bins) - np.pi


def free_energy(histogram: np.ndarray) -> np.ndarray:
    """-log(count / largest count) in kT: its minimum is 0, empty bins are nan.  Keeps the shape."""
    counts = np.asarray(histogram, dtype=np.float64)
    require(
        counts.size > 0 and bool((counts >= 0).all()) and counts.max() > 0,
        "histogram",
        "counts that are not negative, one of them positive",
        f"{counts.size} bins summing to {counts.sum():g}",
    )
    with np.errstate(divide="ignore"):
        energy = -np.log(counts / counts.max())
    return np.where(counts > 0, energy + 0.0, np.nan)


def smooth_periodic(histogram: np.ndarray, width: float = 1.0) -> np.ndarray:
    """A histogram convolved with a periodic Gaussian of ``width`` bins, for display; the sum is unchanged."""
    result = np.asarray(histogram, dtype=np.float64)
    for axis, bins in enumerate(result.shape):
        offset = np.minimum(np.arange(bins), bins - np.arange(bins))
        kernel = np.exp(-0.5 * (offset / width) ** 2)
        transfer = np.fft.fft(kernel / kernel.sum())
        shape = [1] * result.ndim
        shape[axis] = bins
        result = np.fft.ifft(np.fft.fft(result, axis=axis) * transfer.reshape(shape), axis=axis).real
    return np.maximum(result, 0.0)


def ramachandran_basin(angles: np.ndarray) -> np.ndarray:
    """Basin of each (phi, psi) [frames, 2] as an index into `RAMACHANDRAN_BASINS`.

    left-handed: 0 <= phi < 135 degrees; alphaR: the rest with -120 <= psi < 60; beta/PPII: the remainder.
    """
    phi, psi = np.degrees(np.mod(check_angles(angles) + np.pi, 2 * np.pi) - np.pi).T
    left = (phi >= 0) & (phi < 135)
    return np.where(left, 0, np.where((psi >= -120) & (psi < 60), 1, 2))


def torsion_basin(angles: np.ndarray) -> np.ndarray:
    """Basin of each torsion [frames] as an index into `TORSION_BASINS`; trans means more than 120 degrees."""
    degrees = np.degrees(np.mod(np.asarray(angles) + np.pi, 2 * np.pi) - np.pi)
    return np.where(np.abs(degrees) > 120, 0, np.where(degrees >= 0, 1, 2))


@dataclass(frozen=True)
class Population:
    """Share of one basin in the run and in the reference, with standard errors from resampling units."""

    name: str
    run: float
    run_error: float
    reference: float
    reference_error: float


def shares(index: np.ndarray, lengths: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of each bin, and its standard error from the scatter between units (ratio estimator), [n_bins] each.

    index: bin of each frame, unit after unit, [frames]; frames with -1 count for nothing.
    lengths: frames in each unit, [units], fewer than two of them give nan for the errors.
    """
    kept = index >= 0
    unit = np.repeat(np.arange(len(lengths)), lengths)[kept]
    total = np.bincount(unit, minlength=len(lengths)).astype(np.float64)
    share = np.bincount(index[kept], minlength=n_bins) / total.sum()
    if len(lengths) < 2:
        return share, np.full(n_bins, np.nan)
    # sum_u (count_u - share total_u)^2, where most counts are zero: no table [units, bins] is made.
    pairs, counts = np.unique(unit * n_bins + index[kept], return_counts=True)
    of_unit, of_bin = np.divmod(pairs, n_bins)
    residual = (counts - share[of_bin] * total[of_unit]) ** 2 - (share[of_bin] * total[of_unit]) ** 2
    scatter = np.bincount(of_bin, residual, n_bins) + share**2 * (total**2).sum()
    return share, np.sqrt(len(lengths) / (len(lengths) - 1) * np.maximum(scatter, 0.0)) / total.sum()


def shares_of_units(units: Sequence[np.ndarray], n_bins: int) -> list[tuple[float, float]]:
    """(share, standard error) of each bin, of units given one by one."""
    share, error = shares(np.concatenate(units), np.array([len(unit) for unit in units]), n_bins)
    return list(zip(share.tolist(), error.tolist()))


def basin_populations(
    run: Sequence[np.ndarray], reference: Sequence[np.ndarray], names: Sequence[str]
) -> list[Population]:
    """Population of each basin.

    run, reference: basin index per frame, one array for each unit that counts as independent (a replica, a
    block longer than the correlation time, a single frame).  names: of the basins, by index.
    """
    ours, theirs = shares_of_units(run, len(names)), shares_of_units(reference, len(names))
    return [Population(name, *mine, *other) for name, mine, other in zip(names, ours, theirs)]
