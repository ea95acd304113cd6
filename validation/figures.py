"""Pictures of the validation, PNG files under docs/images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
COLORS = {"euler-maruyama": "#c0392b", "leimkuhler-matthews": "#1f4e79", "heun": "#e08e0b", "baoab": "#2e8b57",
          "metropolis": "#7f7f7f"}


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure and its axes, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure, name: str) -> str:
    figure.savefig(IMAGES / f"validation_{name}.png", dpi=110)
    return f"images/validation_{name}.png"


def order_figure(system: str, quantity: str, lines: dict) -> str:
    figure, axis = new_figure(6.4, 4.0)
    for name, (steps, errors, standard_errors) in lines.items():
        x = np.array(steps) / max(steps)
        axis.errorbar(x, np.abs(errors), standard_errors, fmt="o", ms=4, capsize=2, color=COLORS[name], label=name)
        if name != "metropolis":
            line = np.polyfit(np.log(x), np.log(np.abs(errors)), 1, w=np.abs(errors) / np.array(standard_errors))
            axis.plot(x, np.exp(np.polyval(line, np.log(x))), color=COLORS[name], lw=1)
    axis.set(xscale="log", yscale="log", xlabel="time step / largest one of its integrator",
             ylabel=f"|error of {quantity}|", title=system)
    axis.legend(frameon=False, fontsize=8)
    return save(figure, "order_" + ("double_well" if system == "double well" else "muller_brown"))


def autocorrelation_figure(system: str, lags: list[float], ours: list, theirs: list) -> str:
    figure, axis = new_figure(5.2, 3.4)
    for found, color, label in ((theirs, "#7f7f7f", "Brownian reference"), (ours, "#1f4e79", "run")):
        values, errors = np.array(found).T
        axis.errorbar(lags, values, 2 * errors, fmt="o-", ms=4, capsize=3, color=color, label=label)
    axis.set(xlabel="lag (ps)", ylabel="⟨cos(f(t) − f(0))⟩", title=system)
    axis.legend(frameon=False)
    return save(figure, "autocorrelation_" + system.split(",")[0])


def torsion_figure(name: str, run: np.ndarray, reference: np.ndarray) -> str:
    figure, axis = new_figure(5.2, 3.4)
    bins = np.linspace(-180, 180, 73)
    axis.hist(np.degrees(reference).ravel(), bins, density=True, color="#c8c8c8", label="snapshots")
    axis.hist(np.degrees(run).ravel(), bins, density=True, histtype="step", color="#1f4e79", lw=1.5, label="run")
    axis.set(xlabel="torsion (degrees)", ylabel="density (1/degree)", title=name, xlim=(-180, 180))
    axis.legend(frameon=False)
    return save(figure, f"torsions_{name}")


def matrix_figure(name: str, matrix: np.ndarray) -> str:
    figure, axis = new_figure(4.4, 3.8)
    image = axis.imshow(matrix, cmap="viridis", origin="lower")
    axis.set(xlabel="frame", ylabel="frame", title=name)
    figure.colorbar(image, label="correlation")
    return save(figure, f"correlation_{name}")


def surfaces_figure(name: str, surfaces: dict[str, np.ndarray]) -> str:
    """Free energy of (phi, psi) of each face, from probabilities [bins, bins], on one scale of 0 to 7 kT."""
    figure, axes = new_figure(3.3 * len(surfaces) + 0.6, 3.4, 1, len(surfaces))
    for axis, (label, probability) in zip(np.ravel(axes), surfaces.items()):
        with np.errstate(divide="ignore"):
            energy = -np.log(probability / probability.max())
        image = axis.imshow(energy.T, origin="lower", extent=(-180, 180, -180, 180), cmap="viridis", vmin=0, vmax=7)
        axis.set(title=label, xlabel="φ (degrees)", ylabel="ψ (degrees)", xticks=(-180, -90, 0, 90, 180),
                 yticks=(-180, -90, 0, 90, 180))
    figure.colorbar(image, ax=axes, label="free energy (kT)")
    return save(figure, f"surfaces_{name}")


def short_time_figure(curves: dict[str, tuple]) -> str:
    """1 - <cos(q(t) - q(0))> of the run and of the reference, one column a basin, and below it their difference.

    curves: {basin: (lags, run, reference)}, both {angle: (values, standard errors)}.
    """
    figure, axes = new_figure(9.0, 5.4, 2, len(curves))
    for (above, below), (basin, (lags, ours, theirs)) in zip(axes.T, curves.items()):
        some = lags >= 0.5
        for angle, symbol, color in (("phi", "φ", "#1f4e79"), ("psi", "ψ", "#c0392b")):
            (run, error), (true, uncertainty) = ours[angle], theirs[angle]
            above.errorbar(lags, true, 2 * uncertainty, fmt="o", ms=3, color=color, mfc="none", elinewidth=0.8,
                           label=f"{symbol}, Brownian reference")
            above.plot(lags, run, color=color, label=f"{symbol}, run")
            ratio, both = 100 * (run[some] / true[some] - 1), 100 * np.hypot(error, uncertainty)[some] / true[some]
            below.plot(lags[some], ratio, color=color, label=symbol)
            below.fill_between(lags[some], ratio - both, ratio + both, color=color, alpha=0.2, lw=0)
        above.set(ylabel="1 − ⟨cos Δ⟩", title=f"from {basin}", xlim=(0, 10.2), ylim=(0, None))
        above.legend(frameon=False, fontsize=7)
        for limit in (-5, 5):
            below.axhline(limit, color="#7f7f7f", lw=0.8, ls="--")
        below.axhline(0, color="#7f7f7f", lw=0.8)
        below.set(xlabel="lag (ps)", ylabel="run against reference (%)", xlim=(0, 10.2))
    return save(figure, "short_time")
