"""The report's figures: functions that draw one kind of panel on given axes, and figures made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .free_energy import bin_centers, free_energy, periodic_histogram, smooth_periodic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .comparison import Comparison

RUN, REFERENCE = "#c8553d", "#2f4858"
SERIES = ("#c8553d", "#2f6690", "#5b8e7d", "#e0a030", "#7a5195", "#8d6e63")
MAX_ENERGY = 6.0  # kT: rarer than that, a few thousand frames hardly know
MAX_DIFFERENCE = 2.0  # kT
DIFFERENCE_WIDTH = 1.5  # bins
DIFFERENCE_COUNTS = 10
MANY_CURVES = 6
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "lines.linewidth": 1.6,
    "image.interpolation": "nearest",
}


def symbol(name: str) -> str:
    """phi2 as φ2, psi as ψ, every other name as it is."""
    return name.replace("phi", "φ").replace("psi", "ψ")


@contextmanager
def figure_file(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in the house style, saved when the block ends.  No pyplot: no global state, no display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        # Laid out once by hand: saving would do it twice, and layout is most of the time.
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
        figure.savefig(path, dpi=150)


# ---- panels ----------------------------------------------------------------------------------------


def draw_surface(axes: Axes, histogram: np.ndarray, names: tuple[str, ...], title: str) -> Any:
    """Free energy (kT) of a two-dimensional histogram, smoothed by one bin for the eye; returns the image.

    Above `MAX_ENERGY` it stays white in every panel, so that a larger sample does not look different only
    because it knows its rare regions better.
    """
    energy = free_energy(smooth_periodic(histogram))
    shown = np.where(energy <= MAX_ENERGY, energy, np.nan)
    extent = (-180, 180, -180, 180)
    image = axes.imshow(shown.T, origin="lower", extent=extent, cmap="viridis", vmin=0, vmax=MAX_ENERGY)
    centers = np.degrees(bin_centers(len(energy)))
    filled = np.nan_to_num(energy, nan=MAX_ENERGY + 3)
    axes.contour(centers, centers, filled.T, levels=[1, 2, 3, 4, 5], colors="white", linewidths=0.5, alpha=0.65)
    _square(axes, names, title)
    return image


def draw_difference(axes: Axes, run: np.ndarray, reference: np.ndarray, names: tuple[str, ...], title: str) -> Any:
    """Difference of the free energies where both samples hold about ten frames under the kernel; the image.

    Each surface is normalized by its probability, not by its minimum, so that one deep bin shifts nothing.
    """
    first, second = (smooth_periodic(histogram, DIFFERENCE_WIDTH) for histogram in (run, reference))
    enough = DIFFERENCE_COUNTS / (4 * np.pi * DIFFERENCE_WIDTH**2)
    known = (first >= enough) & (second >= enough)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = -np.log(first / first.sum()) + np.log(second / second.sum())
    image = axes.imshow(
        np.where(known, difference, np.nan).T,
        origin="lower",
        extent=(-180, 180, -180, 180),
        cmap="RdBu_r",
        vmin=-MAX_DIFFERENCE,
        vmax=MAX_DIFFERENCE,
    )
    axes.set_facecolor("#ececec")
    _square(axes, names, title)
    return image


def scale(axes: Axes, image: Any, label: str, ticks: list[float] | None = None, extend: str = "neither") -> None:
    """A color bar exactly as high as its panel."""
    bar = axes.figure.colorbar(image, cax=axes.inset_axes([1.04, 0, 0.05, 1]), extend=extend, ticks=ticks)
    bar.set_label(label)
    bar.outline.set_linewidth(0.6)


def _square(axes: Axes, names: tuple[str, ...], title: str) -> None:
    axes.set(
        xlim=(-180, 180),
        ylim=(-180, 180),
        xticks=range(-180, 181, 90),
        yticks=range(-180, 181, 90),
        xlabel=f"{symbol(names[0])} (degrees)",
        ylabel=f"{symbol(names[1])} (degrees)",
        title=title,
        aspect="equal",
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def draw_distribution(axes: Axes, comparison: Comparison, column: int) -> None:
    """Densities of one dihedral in the run and in the reference."""
    centers = np.degrees(bin_centers(comparison.bins))
    width = 360 / comparison.bins
    for angles, color, label, filled in (
        (comparison.reference_angles, REFERENCE, "reference", True),
        (comparison.run_angles, RUN, "run", False),
    ):
        counts = periodic_histogram(angles[:, column], comparison.bins)
        density = counts / counts.sum() / width
        if filled:
            axes.fill_between(centers, density, step="mid", color=color, alpha=0.22, linewidth=0, label=label)
        else:
            axes.step(centers, density, where="mid", color=color, label=label)
    axes.set(
        xlim=(-180, 180),
        xticks=range(-180, 181, 60),
        xlabel=f"{symbol(comparison.dihedrals.names[column])} (degrees)",
        ylabel="probability per degree",
    )
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")


def draw_autocorrelation(axes: Axes, comparison: Comparison, connected: bool = True) -> None:
    """Autocorrelation of every dihedral over the lag, with the spread of the replicas as a band."""
    functions = comparison.autocorrelations
    many = len(functions) > MANY_CURVES
    longest = max(1, max(len(f.lag) for f in functions.values()) // 2)
    # A decayed function needs about eight correlation times; one that never decays all there is.
    needed = max(8 * f.integrated_time if f.resolved else np.inf for f in functions.values())
    last = int(min(longest, max(needed, 10)))
    for k, (name, function) in enumerate(functions.items()):
        color = SERIES[k % len(SERIES)] if not many else "#2f6690"
        values = function.connected if connected else function.circular
        axes.plot(
            function.lag[: last + 1],
            values[: last + 1],
            color=color,
            alpha=0.35 if many else 1,
            label=None if many else _curve_label(name, function, connected),
        )
        if connected and not many:
            error = np.nan_to_num(function.connected_error)
            axes.fill_between(
                function.lag[: last + 1],
                (values - error)[: last + 1],
                (values + error)[: last + 1],
                color=color,
                alpha=0.18,
                linewidth=0,
            )
    if many:
        shown = np.array([(f.connected if connected else f.circular)[: last + 1] for f in functions.values()])
        axes.plot(
            next(iter(functions.values())).lag[: last + 1],
            shown.mean(axis=0),
            color=REFERENCE,
            linewidth=2.2,
            label=f"mean of {len(functions)} dihedrals",
        )
    axes.axhline(0, color="#999999", linewidth=0.8)
    unit = "ps" if comparison.replicas.frame_interval else "frames"
    axes.set(
        xlabel=f"lag ({unit})",
        xlim=(0, max(f.lag[min(last, len(f.lag) - 1)] for f in functions.values()) or 1),
        ylim=(min(0, axes.get_ylim()[0]), 1.02),
        ylabel="normalized autocorrelation" if connected else r"$\langle\cos(q(t)-q(0))\rangle$",
    )
    axes.legend(loc="best")


def _curve_label(name: str, function: Any, with_time: bool) -> str:
    if not with_time:
        return symbol(name)
    unit, tau, error = "ps", function.integrated_time_ps, function.integrated_time_error_ps
    if tau is None:
        unit, tau, error = "frames", function.integrated_time, function.integrated_time_error
    if not function.resolved:
        return f"{symbol(name)}: τ above {tau:.2g} {unit} (not resolved)"
    return f"{symbol(name)}: τ = {tau:.3g} ± {error:.1g} {unit}"


def draw_bonds(axes: Axes, comparison: Comparison) -> None:
    """Deviation of each mean bond length from the reference, in percent, over the band of one percent."""
    bonds = comparison.bonds
    deviation = 100 * bonds.relative_deviation
    rows = np.arange(len(deviation))
    axes.axvspan(-1, 1, color="#5b8e7d", alpha=0.13, linewidth=0)
    axes.axvline(0, color="#777777", linewidth=0.8)
    axes.hlines(rows, 0, deviation, color=RUN, linewidth=1.4, alpha=0.6)
    axes.plot(deviation, rows, "o", color=RUN, markersize=5)
    reach = max(1.25, 1.2 * float(np.abs(deviation).max(initial=0)))
    axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.4, -0.6), xlabel="mean bond length: run − reference (%)")
    if len(rows) <= 30:
        axes.set_yticks(rows, bonds.labels, fontsize=8.5 if len(rows) <= 14 else 6.5)
        axes.tick_params(axis="y", length=0)
    else:
        axes.set_ylabel("bond")


def draw_energy(axes: Axes, comparison: Comparison) -> None:
    """Learned energy along the run: mean and 5 to 95 % of the replicas, over the reference's band."""
    energy = comparison.energy
    unit = "ps" if comparison.replicas.frame_interval else "frames"
    axes.axhspan(
        energy.reference_low,
        energy.reference_high,
        color=REFERENCE,
        alpha=0.13,
        linewidth=0,
        label="reference, 5 to 95 %",
    )
    axes.axhline(energy.reference_mean, color=REFERENCE, linestyle="--", linewidth=1.2, label="reference, mean")
    axes.fill_between(
        energy.time,
        energy.low,
        energy.high,
        color=RUN,
        alpha=0.18,
        linewidth=0,
        label="run, 5 to 95 % of replicas",
    )
    axes.plot(energy.time, energy.mean, color=RUN, label="run, mean of replicas")
    axes.set(xlabel=f"time ({unit})", ylabel="learned energy ($kT_0$)", xlim=(energy.time[0], energy.time[-1] or 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))


# ---- figures ---------------------------------------------------------------------------------------


def _surfaces(figure: Any, comparison: Comparison) -> list:
    """Run, reference and difference side by side, with one scale for the two surfaces."""
    names = comparison.dihedrals.surface
    panels = figure.subplots(1, 3)
    frames = int(comparison.replicas.lengths.sum())
    draw_surface(panels[0], comparison.run_histogram, names, f"Run ({frames:,} frames)")
    image = draw_surface(
        panels[1], comparison.reference_histogram, names, f"Reference ({comparison.n_reference:,} frames)"
    )
    change = draw_difference(
        panels[2], comparison.run_histogram, comparison.reference_histogram, names, "Run − reference"
    )
    panels[1].set_ylabel("")
    panels[2].set_ylabel("")
    scale(panels[1], image, "free energy ($kT$)", list(range(int(MAX_ENERGY) + 1)))
    scale(panels[2], change, "difference ($kT$)", [-2, -1, 0, 1, 2], extend="both")
    return list(panels)


def surface_figure(comparison: Comparison, path: Path) -> None:
    """Free-energy surfaces side by side, or the distribution where there is one dihedral only."""
    if len(comparison.dihedrals.surface) == 2:
        with figure_file(path, 11.2, 3.7) as figure:
            _surfaces(figure, comparison)
        return
    with figure_file(path, 9.6, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        _single_dihedral(left, right, comparison)


def _single_dihedral(left: Axes, right: Axes, comparison: Comparison) -> None:
    column = comparison.dihedrals.surface_columns[0]
    draw_distribution(left, comparison, column)
    centers = np.degrees(bin_centers(comparison.bins))
    for histogram, color, label in (
        (comparison.reference_histogram, REFERENCE, "reference"),
        (comparison.run_histogram, RUN, "run"),
    ):
        right.plot(
            centers,
            free_energy(histogram),
            color=color,
            label=label,
            linewidth=1.6 if color == RUN else 2.4,
            alpha=1 if color == RUN else 0.6,
        )
    right.set(
        xlim=(-180, 180),
        xticks=range(-180, 181, 60),
        ylabel="free energy ($kT$)",
        xlabel=f"{symbol(comparison.dihedrals.surface[0])} (degrees)",
    )
    right.set_ylim(bottom=0)


def autocorrelation_figure(comparison: Comparison, path: Path) -> None:
    """Normalized and circular autocorrelation."""
    with figure_file(path, 10.2, 3.7) as figure:
        left, right = figure.subplots(1, 2)
        draw_autocorrelation(left, comparison)
        draw_autocorrelation(right, comparison, connected=False)


def bonds_figure(comparison: Comparison, path: Path) -> None:
    """Deviation of the means, and means with standard deviations."""
    bonds = comparison.bonds
    rows = np.arange(len(bonds.labels))
    with figure_file(path, 9.6, 1.5 + 0.2 * min(len(rows), 60)) as figure:
        left, right = figure.subplots(1, 2)
        draw_bonds(left, comparison)
        for shift, mean, sd, color, label in (
            (-0.16, bonds.reference_mean, bonds.reference_sd, REFERENCE, "reference"),
            (0.16, bonds.run_mean, bonds.run_sd, RUN, "run"),
        ):
            right.errorbar(
                mean,
                rows + shift,
                xerr=sd,
                fmt="o",
                color=color,
                markersize=4,
                linewidth=1.3,
                label=f"{label}, mean ± sd",
            )
        right.set(ylim=left.get_ylim(), yticks=[], xlabel="bond length (nm)")
        right.locator_params(axis="x", nbins=6)
        right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def distances_figure(comparison: Comparison, path: Path) -> None:
    """Distributions of the distances that vary most."""
    statistics, run, reference = comparison.shown_distances
    columns = min(3, len(statistics.labels))
    rows = -(-len(statistics.labels) // columns)
    with figure_file(path, 3.3 * columns + 0.4, 2.5 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for k, axes in enumerate(panels):
            if k >= len(statistics.labels):
                axes.set_visible(False)
                continue
            both = np.concatenate([run[:, k], reference[:, k]])
            edges = np.linspace(*np.quantile(both, [0.0002, 0.9998]), 41)
            axes.hist(reference[:, k], edges, density=True, color=REFERENCE, alpha=0.22, label="reference")
            axes.hist(run[:, k], edges, density=True, histtype="step", color=RUN, linewidth=1.5, label="run")
            axes.set(
                title=statistics.labels[k],
                yticks=[],
                xlabel="distance (nm)" if k >= len(panels) - columns else "",
            )
            axes.locator_params(axis="x", nbins=5)
            axes.spines["left"].set_visible(False)
            if k == 0:
                axes.legend(loc="upper left", fontsize=8)


def distributions_figure(comparison: Comparison, path: Path) -> None:
    """Densities of all dihedrals (the first twelve)."""
    n = min(12, len(comparison.dihedrals.names))
    columns = min(3, n)
    rows = -(-n // columns)
    with figure_file(path, 3.3 * columns + 0.4, 2.4 * rows + 0.2) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for k, axes in enumerate(panels):
            if k >= n:
                axes.set_visible(False)
                continue
            draw_distribution(axes, comparison, k)
            axes.set_yticks([])
            axes.set_ylabel("")
            axes.set_xticks(range(-180, 181, 90))
            if k:
                axes.get_legend().remove()


def energy_figure(comparison: Comparison, path: Path) -> None:
    """Energy along the run."""
    with figure_file(path, 9.6, 3.2) as figure:
        draw_energy(figure.subplots(), comparison)


def summary_figure(comparison: Comparison, path: Path) -> None:
    """Everything that decides in one picture: surfaces, difference, autocorrelation, bonds."""
    floor = comparison.floor
    names = ", ".join(symbol(name) for name in comparison.dihedrals.surface)
    with figure_file(path, 11.2, 7.4) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.08, 1])
        if len(comparison.dihedrals.surface) == 2:
            _surfaces(top, comparison)
        else:
            _single_dihedral(*top.subplots(1, 2), comparison)
        top.suptitle(
            f"Jensen–Shannon divergence of ({names}): {comparison.js_divergence:.4f}      "
            f"sampling floor: {floor.mean:.4f} ± {floor.sd:.4f}",
            fontsize=11.5,
            fontweight="bold",
        )
        left, right = bottom.subplots(1, 2, width_ratios=[1.25, 1])
        draw_autocorrelation(left, comparison)
        left.set_title("Dihedral autocorrelation")
        draw_bonds(right, comparison)
        right.set_title("Bond lengths")
