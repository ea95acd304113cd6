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


def share(units: Sequence[np.ndarray], basin: int) -> tuple[float, float]:
    """Share of a basin and its standard error between units (ratio estimator)."""
    inside = np.array([(unit == basin).sum() for unit in units], dtype=np.float64)
    total = np.array([len(unit) for unit in units], dtype=np.float64)
    share = inside.sum() / total.sum()
    if len(units) < 2:
        return float(share), float("nan")
    residual = inside - share * total
    return float(share), float(np.sqrt(len(units) / (len(units) - 1) * (residual**2).sum()) / total.sum())


def basin_populations(
    run: Sequence[np.ndarray], reference: Sequence[np.ndarray], names: Sequence[str]
) -> list[Population]:
    """Population of each basin.

    run, reference: basin index per frame, one array for each unit that counts as independent (a replica, a
    block longer than the correlation time, a single frame).  names: of the basins, by index.
    """
    return [Population(name, *share(run, basin), *share(reference, basin)) for basin, name in enumerate(names)]
