"""Relaxation rates of overdamped Langevin dynamics in one or two dimensions, by diagonalization on a grid.

For dx = D grad log p dt + sqrt(2 D v) dW with p = exp(-E) at T0 and v = T/T0, the density relaxes as
sum_k c_k exp(-rate_k t).  The stationary density is exp(-E/v) and the diffusion coefficient is D v.

The operator becomes a jump process between the cells of a uniform grid, with the rate over a face

    w(i -> j) = D v / h^2 * sqrt(p_j / p_i)

(the square-root approximation: a finite volume flux with the face's density taken as the geometric mean of its
two cells').  p_i w(i -> j) = p_j w(j -> i) holds exactly, so p is stationary on the grid to rounding, and
sqrt(p_i / p_j) w(i -> j) is symmetric: its eigenvalues are real.  Faces on the rim carry no flux.  Errors are
O(h^2): `relaxation_rates` solves on three grids and removes and checks that term.

The eigenfunction of the slowest rate is the one number of a frame whose autocorrelation is a single exponential.
`compare_relaxation` follows it along a run: the time found is the run's own (a wrong eigenfunction would mix in faster
parts, to second order in its error), and it is known three times better than from the coordinate at the lags where
faster parts of that have died out.

Source of the scheme: Lie, Fackeldey and Weber, SIAM J. Matrix Anal. Appl. 34, 738 (2013); the Scharfetter-Gummel
form has other faces and the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnavailableError, check_integer, check_number, require
from .kinetics import relaxation_time

MAX_ENERGY = 60.0  # kT: exp(-60) is below rounding
MODE_ENERGY = 30.0  # kT: beyond, the eigenfunction is rounding divided by sqrt(p), and no frame gets there
RIM_ENERGY = 40.0  # kT above the minimum: where grids end
MULLER_BROWN_MINIMA = ((-1.2, 1.0), (-0.1, 1.9))  # a box around the three minima, in units of its length scale


@dataclass(frozen=True)
class RelaxationRates:
    """What `relaxation_rates` finds.

    rates: [n], 1/ps, ascending, the zero of the stationary state left out; extrapolated to h = 0.
    error: [n], 1/ps, the change that the last refinement made to the extrapolated value.
    axes: centres of the cells of the finest grid along each axis, nm, [cells] each.
    slow_mode: eigenfunction of the slowest rate at those centres, [cells] or [cells, cells]: mean 0 and variance 1 in
    the stationary density; nan where the energy is more than `MODE_ENERGY` above its minimum.
    """

    rates: np.ndarray
    error: np.ndarray
    axes: tuple[np.ndarray, ...]
    slow_mode: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """Relaxation times 1 / rates, [n], ps."""
        return 1 / self.rates

    def slow_coordinate(self, coordinates: np.ndarray) -> np.ndarray:
        """The slowest eigenfunction at coordinates [frames] (one axis) or [frames, axes] in nm, linear between cells.

        Returns float64 [frames].  Raises `InputError` for a wrong shape, and for a frame outside the grid or more than
        `MODE_ENERGY` kT above the minimum: the bounds do not hold the run.
        """
        from scipy.interpolate import RegularGridInterpolator

        points = np.asarray(coordinates, dtype=np.float64)
        if points.ndim == 1:
            points = points[:, None]
        n_axes = len(self.axes)
        require(
            points.ndim == 2 and len(points) > 0 and points.shape[1] == n_axes,
            "coordinates",
            f"an array [frames, {n_axes}] per replica",
            f"shape {list(np.shape(coordinates))}",
        )
        values = RegularGridInterpolator(self.axes, self.slow_mode, bounds_error=False)(points)
        known = np.isfinite(values)
        require(
            bool(known.all()),
            "coordinates",
            "frames inside the bounds of the rates",
            f"{np.round(points[np.argmin(known)], 6).tolist()} nm in frame {int(np.argmin(known))}",
        )
        return values


def symmetric_operator(energy: np.ndarray, spacing: Sequence[float], diffusion: float) -> tuple[Any, np.ndarray]:
    """Minus the Fokker-Planck operator, symmetrized by sqrt(p): a scipy sparse matrix [kept, kept] in 1/ps, and which
    cells it keeps, a mask of energy's shape.

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
    return (operator + sparse.diags(diagonal)).tocsc(), kept


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
    grids = [
        [low + (np.arange(n) + 0.5) * (high - low) / n for low, high in bounds] for n in (cells, 2 * cells, 4 * cells)
    ]
    energies = [_energy_in_kt(energy, axes, ratio) for axes in grids]
    solved = [_slowest(values, axes, diffusion * ratio, n_rates) for values, axes in zip(energies, grids)]
    # Richardson: the h^2 term cancels between neighboring grids.
    first, second = ((4 * fine - coarse) / 3 for (coarse, _), (fine, _) in zip(solved, solved[1:]))
    error = np.abs(second - first)
    require(
        bool((error <= tolerance * second).all()),
        "cells",
        f"a grid fine enough for a relative change below {tolerance:g}",
        f"{cells} and a change of {float((error / second).max()):.2g}",
    )
    return RelaxationRates(second, error, tuple(grids[-1]), solved[-1][1])


def _energy_in_kt(energy: Callable, axes: Sequence[np.ndarray], ratio: float) -> np.ndarray:
    """Energy at the cells, in kT of the run."""
    values = np.asarray(energy(*np.meshgrid(*axes, indexing="ij")), dtype=np.float64) / ratio
    require(
        values.shape == tuple(len(axis) for axis in axes) and bool(np.isfinite(values).all()),
        "energy",
        "one finite value per point",
        f"shape {list(values.shape)}, or a NaN or an infinity",
    )
    return values


def _slowest(
    energy: np.ndarray, axes: Sequence[np.ndarray], diffusion: float, n_rates: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rates [n_rates] on one grid, and the eigenfunction of the slowest on it."""
    operator, kept = symmetric_operator(energy, [axis[1] - axis[0] for axis in axes], diffusion)
    require(
        operator.shape[0] > n_rates + 1, "cells", f"more than {n_rates + 1} cells that hold density", operator.shape[0]
    )
    from scipy.sparse.linalg import eigsh

    # Shift-invert just below zero: the operator itself is singular.  A fixed start makes it repeatable.
    scale = diffusion / max(axis[-1] - axis[0] for axis in axes) ** 2
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    rates, vectors = eigsh(operator, n_rates + 1, sigma=-1e-3 * scale, which="LM", v0=start)
    order = np.argsort(rates)
    height = energy[kept] - energy.min()
    # v = sqrt(p) psi with |v| = 1 makes <psi^2> = sum_i p_i psi_i^2 = 1.
    root = np.exp(-0.5 * height)
    root /= np.linalg.norm(root)
    mode = np.full(energy.shape, np.nan)
    mode[kept] = np.where(height <= MODE_ENERGY, vectors[:, order[1]] / root, np.nan)
    return rates[order][1:], mode


def double_well_rates(
    model: Any, diffusion: float, temperature_ratio: float = 1.0, n_rates: int = 3, cells: int = 80
) -> RelaxationRates:
    """Slowest rates (1/ps) along x of `models.analytic.DoubleWell`; y and z are separate and left out.

    model: a DoubleWell.  diffusion: nm^2/ps at T0.  Other arguments and errors: `relaxation_rates`.
    """
    ratio = check_number(temperature_ratio, "temperature_ratio", above=0)
    end = model.half_distance * np.sqrt(1 + np.sqrt(RIM_ENERGY * ratio / model.barrier))
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

    ratio = check_number(temperature_ratio, "temperature_ratio", above=0)
    bounds = [[end * model.length_scale for end in ends] for ends in MULLER_BROWN_MINIMA]
    _grow(energy, bounds, 0.1 * model.length_scale, RIM_ENERGY * ratio - 146.7 * model.energy_scale)
    return relaxation_rates(energy, bounds, diffusion, ratio, n_rates, cells)


def _grow(energy: Callable, bounds: list[list[float]], step: float, height: float) -> None:
    """Move each side of a box [[low, high], [low, high]] outwards until the energy all along it is above height."""
    low_enough = True
    while low_enough:
        low_enough = False
        x, y = (np.linspace(*ends, 200) for ends in bounds)
        for axis, side in ((0, 0), (0, 1), (1, 0), (1, 1)):
            edge = energy(bounds[0][side], y) if axis == 0 else energy(x, bounds[1][side])
            if edge.min() < height:
                bounds[axis][side] += step if side else -step
                low_enough = True


# ---- a run against the operator --------------------------------------------------------------------


@dataclass(frozen=True)
class RelaxationComparison:
    """What `compare_relaxation` finds: the slowest relaxation time of a run beside the operator's, ps.

    time, error: of the run, and its standard error from the run's own correlation.
    exact, exact_error: of the Fokker-Planck operator, and what its grid leaves open.
    lag: the shorter of the two lags compared, in frames.
    reliable: whether the run is long enough for the error to be believed; ``reason`` if not.
    """

    time: float
    error: float
    exact: float
    exact_error: float
    lag: int
    reliable: bool
    reason: str

    @property
    def relative_deviation(self) -> float:
        """time / exact - 1."""
        return self.time / self.exact - 1

    @property
    def relative_error(self) -> float:
        """Standard error of `relative_deviation`."""
        return float(np.hypot(self.error / self.exact, self.time * self.exact_error / self.exact**2))

    def __str__(self) -> str:
        remark = "" if self.reliable else f" (not reliable: {self.reason})"
        return (
            f"slowest relaxation {self.time:.4g} ± {self.error:.2g} ps, Fokker-Planck operator {self.exact:.5g} ps: "
            f"{100 * self.relative_deviation:+.2f} ± {100 * self.relative_error:.2f} %{remark}"
        )


def compare_relaxation(
    coordinates: Sequence[np.ndarray], rates: RelaxationRates, frame_interval: float, lag: int | None = None
) -> RelaxationComparison:
    """Slowest relaxation time of a run of one particle against that of the Fokker-Planck operator.

    coordinates: one array [frames] or [frames, axes] in nm per replica, in time order: the coordinates of the rates'
    energy, x for `double_well_rates`, x and y for `muller_brown_rates`.
    rates: from `relaxation_rates`, for the diffusion and temperature of the run.
    frame_interval: ps between frames; at most a quarter of the operator's time.
    lag: in frames; default an eighth of the operator's time.  Half or twice of it should give the same within errors.

    A run of total length N times the relaxation time knows it to about sqrt(3 / N): one percent takes 30,000 of them,
    in replicas of ten or more each.  Euler-Maruyama relaxes faster than the operator, by a relative 0.16 D dt L in the
    double well of 2 kT (the chain's exact spectrum); underdamped dynamics has another slowest rate altogether.
    Raises `InputError` for coordinates outside the rates' bounds, bad numbers, a run shorter than two lags, and
    `UnavailableError` without scipy.
    """
    require(isinstance(rates, RelaxationRates), "rates", "the result of relaxation_rates", type(rates).__name__)
    interval = check_number(frame_interval, "frame_interval", above=0, unit="ps")
    require(
        hasattr(coordinates, "__len__") and len(coordinates) > 0, "coordinates", "at least one replica", coordinates
    )
    exact = float(rates.times[0])
    require(
        interval <= exact / 4,
        "frame_interval",
        f"at most {exact / 4:.3g} ps, a quarter of the relaxation time",
        interval,
    )
    lag = max(1, round(exact / 8 / interval)) if lag is None else lag
    found = relaxation_time([rates.slow_coordinate(part) for part in coordinates], interval, lag)
    exact_error = float(rates.error[0] / rates.rates[0] ** 2)
    return RelaxationComparison(found.time, found.error, exact, exact_error, found.lag, found.reliable, found.reason)
