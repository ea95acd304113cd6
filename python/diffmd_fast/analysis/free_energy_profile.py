"""Free energy along a coordinate or over two dihedrals, bin by bin, with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import check_integer, require
from .autocorrelation import autocorrelation, check_replicas, dihedral_autocorrelation
from .divergence import Units, independent_units
from .free_energy import bin_centers, bin_coordinates, check_angles, free_energy, shares


@dataclass(frozen=True)
class FreeEnergyProfile:
    """A free energy over bins: arrays [bins], or [bins, bins] over two dihedrals (first angle first).

    centers: [bins], of the bins, in the unit of the coordinate; radians for dihedrals, where both share them.
    probability, probability_error: share of each bin, with standard error.
    free_energy: kT, -log of the share, 0 in the fullest bin, nan in an empty one.
    error: kT, probability_error / probability: of -log(share), before the shift to 0.
    units: what counted as independent.  reliable: whether long and many enough; ``reason`` if not.
    """

    centers: np.ndarray
    probability: np.ndarray
    probability_error: np.ndarray
    free_energy: np.ndarray
    error: np.ndarray
    units: str
    reliable: bool
    reason: str


def free_energy_profile(values: Sequence[np.ndarray], edges: np.ndarray) -> FreeEnergyProfile:
    """Free energy over the bins of a number.

    values: one array [frames] per replica, in time order; what lies outside the edges counts for nothing.
    edges: [bins + 1], ascending, in the unit of values.  A bin holds its lower edge; the last one both.

    The shares are of frames inside the edges, their errors from the scatter between replicas, or blocks of ten
    correlation times.  Bins of unequal width have the free energy of their shares, not of the density.
    Raises `InputError` for values that are not finite, edges that do not ascend, or no frame inside.
    """
    series = check_replicas(values)
    borders = np.asarray(edges, dtype=np.float64)
    ascending = borders.ndim == 1 and len(borders) > 1 and bool(np.isfinite(borders).all())
    require(ascending and bool((np.diff(borders) > 0).all()), "edges", "two or more ascending numbers", edges)
    units = independent_units(series, [autocorrelation(series)])
    bins = np.searchsorted(borders, units.values, side="right") - 1
    bins[units.values == borders[-1]] = len(borders) - 2
    inside = (bins >= 0) & (bins < len(borders) - 1)
    require(bool(inside.any()), "values", f"a frame between {borders[0]:g} and {borders[-1]:g}", "none")
    return _profile(np.where(inside, bins, -1), units, 0.5 * (borders[1:] + borders[:-1]))


def dihedral_free_energy_profile(angles: Sequence[np.ndarray], bins: int = 64) -> FreeEnergyProfile:
    """Free energy over even bins of a dihedral, the bins of `periodic_histogram`.

    angles: one array [frames] in radians per replica, in time order, any multiple of 2 pi.  bins: default 64.
    Errors as in `free_energy_profile`.
    """
    series = check_replicas(angles, "angles")
    bins = check_integer(bins, "bins", minimum=1)
    units = independent_units(series, [dihedral_autocorrelation(series)])
    index = np.floor(bin_coordinates(units.values, bins)).astype(np.int64) % bins
    return _profile(index, units, bin_centers(bins))


def dihedral_free_energy_surface(angles: Sequence[np.ndarray], bins: int = 64) -> FreeEnergyProfile:
    """Free energy over two dihedrals, on the grid of `periodic_histogram`, with an error in every bin.

    angles: one array [frames, 2] in radians per replica, in time order, any multiple of 2 pi.  bins: per angle,
    default 64.  The arrays of the result are [bins, bins].

    The slower of the two angles says what counts as independent.  A bin that few independent pieces have visited knows
    its own error badly, and an empty one, nan, not at all: with fewer bins there is more to see.
    Raises `InputError` for angles of a wrong shape or not finite, and for bins below 1.
    """
    require(
        hasattr(angles, "__len__") and len(angles) > 0,
        "angles",
        "a list of arrays [frames, 2], one per replica",
        angles,
    )
    series = [check_angles(part) for part in angles]
    for number, part in enumerate(series):
        require(part.shape[1] == 2, "angles", "an array [frames, 2] per replica", f"one angle in replica {number}")
    bins = check_integer(bins, "bins", minimum=1)
    units = independent_units(series, [dihedral_autocorrelation([part[:, k] for part in series]) for k in (0, 1)])
    cells = np.floor(bin_coordinates(units.values, bins)).astype(np.int64) % bins
    return _profile(cells[:, 0] * bins + cells[:, 1], units, bin_centers(bins), (bins, bins))


def _profile(index: np.ndarray, units: Units, centers: np.ndarray, shape: tuple[int, ...] = (-1,)) -> FreeEnergyProfile:
    n_bins = len(centers) ** len(shape)
    probability, probability_error = (part.reshape(shape) for part in shares(index, units.lengths, n_bins))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(probability > 0, probability_error / probability, np.nan)
    return FreeEnergyProfile(
        centers,
        probability,
        probability_error,
        free_energy(probability),
        error,
        units.description,
        units.reliable,
        units.reason,
    )
