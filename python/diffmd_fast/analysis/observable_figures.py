"""Figures of numbers over time, matrices between frames, implied timescales and profiles, in the report's style.

The ``draw_`` functions draw on given axes; the ``figure_file`` functions write one file and return nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import check_folder, check_number, require
from .autocorrelation import check_replicas
from .averages import Average, average
from .figures import MAX_ENERGY, REFERENCE, RUN, SERIES, _square, figure_file, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .comparison import Comparison
    from .free_energy_profile import FreeEnergyProfile
    from .kinetics import ImpliedTimescales

MAX_TRACES = 8  # replicas drawn one by one
MAX_POINTS = 2000  # of a trace
MAX_ERROR = 1.0  # kT, end of the color scale of errors
MAX_MATRIX = 1000  # frames along an edge: more than a figure has pixels


def _time_unit(frame_interval: float | None) -> tuple[float, str]:
    if frame_interval is None:
        return 1.0, "frames"
    return check_number(frame_interval, "frame_interval", above=0, unit="ps"), "ps"


def _with_error(mean: Average) -> str:
    return f"{mean.mean:.4g} ± {mean.error:.1g}" if mean.error > 0 else f"{mean.mean:.4g} (error unknown)"


def _target(path: str | os.PathLike) -> Path:
    target = Path(path)
    check_folder(target.parent, "path")
    return target


# ---- panels ----------------------------------------------------------------------------------------


def draw_traces(axes: Axes, values: Sequence[np.ndarray], label: str, frame_interval: float | None = None) -> None:
    """A number over time for the first `MAX_TRACES` replicas, and its mean with two standard errors as a band.

    values: one array [frames] per replica.  label: of the axis, with the unit.  frame_interval: ps.
    """
    series = check_replicas(values)
    interval, unit = _time_unit(frame_interval)
    mean = average(series, frame_interval)
    for k, part in enumerate(series[:MAX_TRACES]):
        stride = -(-len(part) // MAX_POINTS)
        time = np.arange(0, len(part), stride) * interval
        axes.plot(time, part[::stride], color=SERIES[k % len(SERIES)], linewidth=0.7, alpha=0.6)
    error = np.nan_to_num(mean.error)
    axes.axhspan(mean.mean - 2 * error, mean.mean + 2 * error, color=REFERENCE, alpha=0.25, linewidth=0)
    axes.axhline(mean.mean, color=REFERENCE, linewidth=1.2, label=f"mean {_with_error(mean)}")
    last = max(len(part) for part in series) - 1
    axes.set(xlabel=f"time ({unit})", ylabel=label, xlim=(0, last * interval or 1))
    axes.legend(loc="upper right")


def draw_density(axes: Axes, samples: Mapping[str, Sequence[np.ndarray]], label: str, bins: int = 50) -> None:
    """Densities of a number in one or more samples on common bins.

    samples: name -> one array [frames] per replica; the first in the run's color.  label: with the unit.
    """
    pooled = {name: np.concatenate(check_replicas(values, name)) for name, values in samples.items()}
    everything = np.concatenate(list(pooled.values()))
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for k, (name, values) in enumerate(pooled.items()):
        color = RUN if k == 0 else REFERENCE if k == 1 else SERIES[k % len(SERIES)]
        axes.hist(values, edges, density=True, histtype="step", color=color, linewidth=1.5, label=name)
    axes.set(xlabel=label, yticks=[], xlim=(edges[0], edges[-1]))
    axes.spines["left"].set_visible(False)
    if len(pooled) > 1:
        axes.legend(loc="best")


def draw_matrix(
    axes: Axes,
    matrix: np.ndarray,
    frame_interval: float | None = None,
    title: str = "",
    lowest: float | None = None,
    highest: float | None = None,
) -> Any:
    """A matrix between frames over two axes of time; returns the image.

    matrix: [frames, frames], as `rmsd_matrix` and `correlation_matrix` give; thinned evenly above `MAX_MATRIX`.
    frame_interval: ps.  lowest, highest: ends of the color scale, default those of the matrix.
    """
    array = np.asarray(matrix)
    require(
        array.ndim == 2 and array.shape[0] == array.shape[1] and array.size > 0,
        "matrix",
        "shape [frames, frames]",
        f"shape {list(array.shape)}",
    )
    interval, unit = _time_unit(frame_interval)
    stride = -(-len(array) // MAX_MATRIX)
    end = len(array) * interval
    image = axes.imshow(
        array[::stride, ::stride], origin="lower", extent=(0, end, 0, end), cmap="viridis", vmin=lowest, vmax=highest
    )
    axes.set(xlabel=f"time ({unit})", ylabel=f"time ({unit})", title=title, aspect="equal")
    return image


def draw_timescales(axes: Axes, found: ImpliedTimescales, in_ps: bool = True) -> None:
    """Implied timescales over the lag with one standard error as a band; grey: times shorter than the lag."""
    unit = "ps" if in_ps else "frames"
    axes.fill_between(found.lags, found.lags, color="#bbbbbb", alpha=0.5, linewidth=0)
    for k, (times, error) in enumerate(zip(found.timescales.T, found.errors.T)):
        color = SERIES[k % len(SERIES)]
        axes.plot(found.lags, times, "o-", color=color, markersize=3.5, label=f"process {k + 1}")
        band = np.nan_to_num(error)
        axes.fill_between(found.lags, times - band, times + band, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel=f"lag ({unit})", ylabel=f"implied timescale ({unit})", yscale="log")
    axes.legend(loc="best")


def draw_profile(axes: Axes, profile: FreeEnergyProfile, label: str, scale: float = 1.0) -> None:
    """Free energy with one standard error as bars.  label: of the coordinate; scale: to its unit (180/pi)."""
    axes.errorbar(
        profile.centers * scale,
        profile.free_energy,
        yerr=np.nan_to_num(profile.error),
        color=RUN,
        linewidth=1.3,
        elinewidth=0.9,
        capsize=1.5,
    )
    axes.set(xlabel=label, ylabel="free energy ($kT$)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


# ---- figures ---------------------------------------------------------------------------------------


def scalar_figure(
    path: str | os.PathLike,
    values: Sequence[np.ndarray],
    label: str,
    frame_interval: float | None = None,
    reference: Sequence[np.ndarray] | None = None,
) -> None:
    """A number such as the radius of gyration: over time with its mean and error, and its density.

    path: of the PNG; its folder must exist.  values: one array [frames] per replica.  label: "radius of gyration (nm)".
    frame_interval: ps; None counts frames.  reference: another sample for the density.
    Raises `InputError` for values that are no finite numbers, or a folder that cannot be written to.
    """
    target = _target(path)
    samples = {"run": values} if reference is None else {"run": values, "reference": reference}
    with figure_file(target, 9.6, 3.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        draw_traces(left, values, label, frame_interval)
        draw_density(right, samples, label)


def matrix_figure(path: str | os.PathLike, matrix: np.ndarray, label: str, frame_interval: float | None = None) -> None:
    """An RMSD or correlation matrix between the frames of one replica.

    path: of the PNG; its folder must exist.  matrix: [frames, frames].  label: of the color scale, "RMSD (nm)".
    frame_interval: ps; None counts frames.
    Raises `InputError` for a wrong shape, or a folder that cannot be written to.
    """
    target = _target(path)
    with figure_file(target, 4.8, 4.0) as figure:
        axes = figure.subplots()
        image = draw_matrix(axes, matrix, frame_interval)
        scale(axes, image, label)


def timescales_figure(path: str | os.PathLike, found: ImpliedTimescales, in_ps: bool = True) -> None:
    """Implied timescales over the lag.  path: of the PNG.  in_ps: whether `found` was made with a frame interval."""
    target = _target(path)
    with figure_file(target, 5.4, 3.6) as figure:
        draw_timescales(figure.subplots(), found, in_ps)


def profile_figure(path: str | os.PathLike, profile: FreeEnergyProfile, label: str, scale: float = 1.0) -> None:
    """A free energy profile with error bars.  path: of the PNG.  label, scale: of the coordinate."""
    target = _target(path)
    with figure_file(target, 5.4, 3.6) as figure:
        draw_profile(figure.subplots(), profile, label, scale)


def free_energy_surface_figure(
    path: str | os.PathLike, surface: FreeEnergyProfile, names: tuple[str, str] = ("phi", "psi")
) -> None:
    """A free energy surface beside its standard error, both in kT.

    path: of the PNG; its folder must exist.  surface: from `dihedral_free_energy_surface`.  names: of the two angles.
    White: empty bins, and those above `figures.MAX_ENERGY`.
    Raises `InputError` for a profile over one coordinate, or a folder that cannot be written to.
    """
    target = _target(path)
    require(surface.free_energy.ndim == 2, "surface", "a free energy over two dihedrals", "one over one coordinate")
    shown = surface.free_energy <= MAX_ENERGY
    with figure_file(target, 8.4, 3.7) as figure:
        for axes, values, title, top in zip(
            figure.subplots(1, 2),
            (surface.free_energy, surface.error),
            ("Free energy", "Standard error"),
            (MAX_ENERGY, MAX_ERROR),
        ):
            image = axes.imshow(
                np.where(shown, values, np.nan).T,
                origin="lower",
                extent=(-180, 180, -180, 180),
                cmap="viridis",
                vmin=0,
                vmax=top,
            )
            _square(axes, names, title)
            scale(
                axes, image, "$kT$", np.linspace(0, top, 5).tolist(), extend="neither" if top == MAX_ENERGY else "max"
            )


def structure_figure(comparison: Comparison, path: Path) -> None:
    """Of a report: densities of the radius of gyration, and the correlation matrix of the first replica's frames."""
    structure = comparison.structure
    interval = comparison.replicas.frame_interval
    samples = {
        f"{name}, mean {_with_error(mean)} nm": [radii]
        for name, mean, radii in (
            ("run", structure.run_radius, structure.run_radii),
            ("reference", structure.reference_radius, structure.reference_radii),
        )
    }
    with figure_file(path, 9.6, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        draw_density(left, samples, "radius of gyration (nm)")
        left.legend(loc="lower left", bbox_to_anchor=(0, 1))
        image = draw_matrix(right, structure.correlation, (interval or 1.0) * structure.stride)
        right.set_title(f"Frames of replica {comparison.replicas.labels[0]}")
        if interval is None:
            right.set(xlabel="time (frames)", ylabel="time (frames)")
        scale(right, image, "correlation after alignment")
