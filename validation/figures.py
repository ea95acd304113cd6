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


def order_figure(system: str, lines: dict) -> str:
    figure, axis = new_figure(6.4, 4.0)
    for name, (steps, errors, standard_errors) in lines.items():
        x = np.array(steps) / max(steps)
        axis.errorbar(x, np.abs(errors), standard_errors, fmt="o", ms=4, capsize=2, color=COLORS[name], label=name)
        if name != "metropolis":
            line = np.polyfit(np.log(x), np.log(np.abs(errors)), 1, w=np.abs(errors) / np.array(standard_errors))
            axis.plot(x, np.exp(np.polyval(line, np.log(x))), color=COLORS[name], lw=1)
    axis.set(xscale="log", yscale="log", xlabel="time step / largest one of its integrator",
             ylabel="|error of ⟨E⟩| (kT0)", title=system)
    axis.legend(frameon=False, fontsize=8)
    return save(figure, "order_" + ("double_well" if system == "double well" else "muller_brown"))
