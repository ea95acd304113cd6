"""The error budget as a figure of the error over the time step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .budget_result import ErrorBudget
from .figures import REFERENCE, RUN, SERIES, figure_file
from .files import write_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_budget(budget: ErrorBudget, out_dir: str | os.PathLike) -> dict[str, Path]:
    """Write budget.json (`ErrorBudget.as_dict`) and budget.png into a folder, made if missing; returns the paths.

    Raises `InputError` for a place that cannot be written to.
    """
    return write_result(out_dir, "budget", lambda path: draw_budget(budget, path), budget.as_dict())


def draw_budget(budget: ErrorBudget, path: str | os.PathLike) -> None:
    """KL per ps over the time step, both axes logarithmic, as one PNG.

    The grid part by both estimators with error bars of one standard error, the model part as a band (of one standard
    error either side, never thinner than its line), the run's time step and the wanted one as vertical lines.
    """
    with figure_file(Path(path), 6.4, 4.8) as figure:
        axes = figure.add_subplot(xscale="log", yscale="log")
        _draw_grid_part(axes, budget)
        _draw_model_part(axes, budget)
        _draw_steps(axes, budget)
        axes.set(xlabel="time step (ps)", ylabel="path KL divergence (nats/ps)")
        axes.set_title(
            f"D = {_range(budget.spring.diffusion)} nm²/ps, T = {budget.temperature:g} K; "
            f"{budget.n_frames:,} frames, bars: one standard error"
        )
        figure.legend(loc="outside lower center", ncols=2)


def _draw_grid_part(axes: Axes, budget: ErrorBudget) -> None:
    steps = np.array([point.time_step for point in budget.curve])
    line, line_error, points, point_error = np.array(
        [(p.hutchinson.value, p.hutchinson.error, p.bridge.value, p.bridge.error) for p in budget.curve]
    ).T
    if not (line > 0).all() or not (points > 0).all():
        return  # a score that is the same everywhere: nothing to show on a logarithmic axis
    axes.plot(steps, line, color=REFERENCE, label="grid part, leading order (Hutchinson)")
    axes.errorbar(steps, line, error_bars(line, line_error), fmt="none", ecolor=REFERENCE, capsize=5, elinewidth=1.2)
    axes.errorbar(
        steps,
        points,
        error_bars(points, point_error),
        fmt="o",
        color=RUN,
        markersize=5,
        capsize=2.5,
        elinewidth=1.2,
        label="grid part, no expansion (bridge)",
    )


def error_bars(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Lengths of the bars below and above; the lower end stays above zero, which a logarithmic axis lacks."""
    return np.stack([np.minimum(errors, 0.99 * values), errors])


def _draw_model_part(axes: Axes, budget: ErrorBudget) -> None:
    part = budget.model_part
    if part is None or part.value <= 0:
        return
    known = [point.total is not None for point in budget.curve]
    axes.plot(
        [point.time_step for point in budget.curve],
        [p.total.value if p.total else p.hutchinson.value + part.value for p in budget.curve],
        color=SERIES[4],
        linestyle="-.",
        linewidth=1.2,
        label="total, measured in one" if all(known) else "grid part + model part",
    )
    axes.axhline(part.value, color=SERIES[2], linewidth=1.2, label="model part")
    axes.axhspan(
        max(part.value - part.error, 1e-3 * part.value),
        part.value + part.error,
        color=SERIES[2],
        alpha=0.3,
        linewidth=0,
    )


def _draw_steps(axes: Axes, budget: ErrorBudget) -> None:
    axes.axvline(
        budget.spring.time_step,
        color="#777777",
        linestyle=":",
        linewidth=1.4,
        label=f"this run, {budget.spring.time_step:.3g} ps",
    )
    if budget.wanted is not None:
        step, spring = budget.time_step_for(budget.wanted), budget.spring_for(budget.wanted)
        axes.axhline(
            budget.wanted, color=SERIES[3], linewidth=1.0, linestyle="--", label=f"wanted, {budget.wanted:.3g} nats/ps"
        )
        if spring is not None:
            axes.axvline(
                step.value,
                color=SERIES[3],
                linewidth=1.4,
                label=f"chosen, {step.value:.3g} ps = {_range(spring.stiffness)} 1/nm²",
            )
    if budget.stability_limit < 4 * max(point.time_step for point in budget.curve):
        axes.axvspan(budget.stability_limit, 4 * budget.stability_limit, color="#bbbbbb", alpha=0.4, linewidth=0)
        axes.text(
            budget.stability_limit * 1.08,
            0.03,
            "unstable",
            transform=axes.get_xaxis_transform(),
            fontsize=8,
            rotation=90,
            color="#555555",
            va="bottom",
        )
        highest = max(budget.stability_limit * 1.6, 1.3 * budget.spring.time_step)
        axes.set_xlim(right=highest)


def _range(value: float | tuple[float, ...]) -> str:
    row = value if isinstance(value, tuple) else (value,)
    return f"{min(row):.3g}" if min(row) == max(row) else f"{min(row):.3g} to {max(row):.3g}"
