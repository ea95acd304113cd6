"""Relaxation rates of overdamped Langevin dynamics in one or two dimensions, by diagonalization on a grid.

For dx = D grad log p dt + sqrt(2 D v) dW with p = exp(-E) at T0 and v = T/T0, the density relaxes as
sum_k c_k exp(-rate_k t).  The stationary density is exp(-E/v) and the diffusion coefficient is D v.

The operator becomes a jump process between the cells of a uniform grid, with the rate over a face

    w(i -> j) = D v / h^2 * sqrt(p_j / p_i)

(the square-root approximation: a finite volume flux with the face's density taken as the geometric mean of its
two cells').  p_i w(i -> j) = p_j w(j -> i) holds exactly, so p is stationary on the grid to rounding, and
sqrt(p_i / p_j) w(i -> j) is symmetric: its eigenvalues are real.  Faces on the rim carry no flux.  Errors are
O(h^2): `relaxation_rates` solves on three grids and removes and checks that term.

Source of the scheme: Lie, Fackeldey and Weber, SIAM J. Matrix Anal. Appl. 34, 738 (2013); the Scharfetter-Gummel
form has other faces and the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnavailableError, check_integer, check_number, require

MAX_ENERGY = 60.0  # kT: exp(-60) is below rounding
MULLER_BROWN_RANGE = ((-1.8, 1.4), (-0.6, 2.3))  # in its own units; E at the rim is far above the saddles


@dataclass(frozen=True)
class RelaxationRates:
    """What `relaxation_rates` finds.

    rates: [n], 1/ps, ascending, the zero of the stationary state left out; extrapolated to h = 0.
    error: [n], 1/ps, the change that the last refinement made to the extrapolated value.
    cells: cells along each axis of the finest grid.
    """

    rates: np.ndarray
    error: np.ndarray
    cells: tuple[int, ...]

    @property
    def times(self) -> np.ndarray:
        """Relaxation times 1 / rates, [n], ps."""
        return 1 / self.rates


def symmetric_operator(energy: np.ndarray, spacing: Sequence[float], diffusion: float) -> Any:
    """Minus the Fokker-Planck operator, symmetrized by sqrt(p), as a scipy sparse matrix [cells, cells] in 1/ps.

    energy: at the cells' centres, one axis per dimension, in units of kT of the run.
    spacing: nm, one per axis.  diffusion: nm^2/ps at the run's temperature (D T/T0).

    Cells more than `MAX_ENERGY` above the lowest are left out, in C order of the rest: their density is below
    rounding, and the ratios there would overflow.  The null vector is exp(-energy/2).
    """
    try:
        from scipy import sparse
    except ImportError:
        raise UnavailableError("fokker_planck needs scipy: pip install 'diffmd-fast[analysis]'") from None
    kept = energy <= energy.min() + MAX_ENERGY
    n_cells = int(kept.sum())
    index = np.full(energy.shape, -1)
    index[kept] = np.arange(n_cells)
    height = energy[kept]
    diagonal = np.zeros(n_cells)
    operator = sparse.csc_matrix((n_cells, n_cells))
    for axis, width in enumerate(spacing):
        low = np.take(index, range(energy.shape[axis] - 1), axis).ravel()
        high = np.take(index, range(1, energy.shape[axis]), axis).ravel()
        inner = (low >= 0) & (high >= 0)
        low, high = low[inner], high[inner]
        base = diffusion / width**2
        half = 0.5 * (height[low] - height[high])
        np.add.at(diagonal, low, base * np.exp(half))
        np.add.at(diagonal, high, base * np.exp(-half))
        one_way = sparse.coo_matrix((np.full(len(low), -base), (low, high)), shape=operator.shape)
        operator = operator + one_way + one_way.T
    return (operator + sparse.diags(diagonal)).tocsc()


def relaxation_rates(
    energy: Callable[..., np.ndarray],
    bounds: Sequence[tuple[float, float]],
    diffusion: float,
    temperature_ratio: float = 1.0,
    n_rates: int = 3,
    cells: int = 80,
    tolerance: float = 0.01,
) -> RelaxationRates:
    """Slowest relaxation rates of one particle on a surface.

    energy: function of the coordinates (nm; one array per axis) in kT0.
    bounds: (low, high) in nm for each of one or two axes; the density must be negligible beyond.
    diffusion: D at T0, nm^2/ps.  temperature_ratio: v = T/T0.
    cells: per axis on the coarsest of three grids, which have 1, 2 and 4 times as many.
    tolerance: largest relative change that the last refinement may make.

    Raises `InputError` for a bad argument or where the grids disagree by more than the tolerance, and
    `UnavailableError` without scipy.
    """
    require(len(bounds) in (1, 2), "bounds", "one or two pairs (low, high)", f"{len(bounds)}")
    for low, high in bounds:
        require(bool(np.isfinite([low, high]).all() and low < high), "bounds", "finite low < high", f"({low}, {high})")
    diffusion = check_number(diffusion, "diffusion", above=0, unit="nm^2/ps")
    ratio = check_number(temperature_ratio, "temperature_ratio", above=0)
    n_rates = check_integer(n_rates, "n_rates", minimum=1)
    cells = check_integer(cells, "cells", minimum=8 + n_rates)
    tolerance = check_number(tolerance, "tolerance", above=0)
    found = [_rates_on_grid(energy, bounds, diffusion * ratio, ratio, n_rates, cells * k) for k in (1, 2, 4)]
    # Richardson: the h^2 term cancels between neighboring grids.
    first, second = ((4 * fine - coarse) / 3 for coarse, fine in zip(found, found[1:]))
    error = np.abs(second - first)
    require(
        bool((error <= tolerance * second).all()),
        "cells",
        f"a grid fine enough for a relative change below {tolerance:g}",
        f"{cells} and a change of {float((error / second).max()):.2g}",
    )
    return RelaxationRates(second, error, (4 * cells,) * len(bounds))


def _rates_on_grid(
    energy: Callable, bounds: Sequence, diffusion: float, ratio: float, n_rates: int, cells: int
) -> np.ndarray:
    axes = [low + (np.arange(cells) + 0.5) * (high - low) / cells for low, high in bounds]
    values = np.asarray(energy(*np.meshgrid(*axes, indexing="ij")), dtype=np.float64) / ratio
    require(
        values.shape == (cells,) * len(bounds) and bool(np.isfinite(values).all()),
        "energy",
        "one finite value per point",
        f"shape {list(values.shape)}, or a NaN or an infinity",
    )
    spacing = [(high - low) / cells for low, high in bounds]
    operator = symmetric_operator(values, spacing, diffusion)
    require(
        operator.shape[0] > n_rates + 1, "cells", f"more than {n_rates + 1} cells that hold density", operator.shape[0]
    )
    from scipy.sparse.linalg import eigsh

    # Shift-invert just below zero: the operator itself is singular.  A fixed start makes it repeatable.
    scale = diffusion / max(high - low for low, high in bounds) ** 2
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    found = eigsh(operator, n_rates + 1, sigma=-1e-3 * scale, which="LM", v0=start, return_eigenvectors=False)
    return np.sort(found)[1:]


def double_well_rates(
    model: Any, diffusion: float, temperature_ratio: float = 1.0, n_rates: int = 3, cells: int = 80
) -> RelaxationRates:
    """Slowest rates (1/ps) along x of `models.analytic.DoubleWell`; y and z are separate and left out.

    model: a DoubleWell.  diffusion: nm^2/ps at T0.  Other arguments and errors: `relaxation_rates`.
    """
    ratio = check_number(temperature_ratio, "temperature_ratio", above=0)
    end = model.half_distance * np.sqrt(1 + np.sqrt(40 * ratio / model.barrier))  # 40 kT above the minima
    return relaxation_rates(
        lambda x: model.barrier * ((x / model.half_distance) ** 2 - 1) ** 2,
        [(-end, end)],
        diffusion,
        ratio,
        n_rates,
        cells,
    )


def muller_brown_rates(
    model: Any, diffusion: float, temperature_ratio: float = 1.0, n_rates: int = 2, cells: int = 80
) -> RelaxationRates:
    """Slowest rates (1/ps) in x and y of `models.analytic.MullerBrown`; z is separate and left out.

    model: a MullerBrown.  diffusion: nm^2/ps at T0.  Other arguments and errors: `relaxation_rates`.
    """

    def energy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x / model.length_scale, y / model.length_scale
        return model.energy_scale * sum(
            height * np.exp(a * (x - x0) ** 2 + b * (x - x0) * (y - y0) + c * (y - y0) ** 2)
            for height, a, b, c, x0, y0 in model.TERMS
        )

    bounds = [(low * model.length_scale, high * model.length_scale) for low, high in MULLER_BROWN_RANGE]
    return relaxation_rates(energy, bounds, diffusion, temperature_ratio, n_rates, cells)
