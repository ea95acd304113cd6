"""The figure that shows why a noise level and a time step are recommended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..sampling.integrators import EulerMaruyama
from .budget_figure import error_bars
from .budget_result import Estimate
from .figures import REFERENCE, RUN, SERIES, figure_file
from .files import write_result
from .recommend_result import Recommendation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

CHOSEN, BOUND = SERIES[3], "#777777"


def write_recommendation(result: Recommendation, out_dir: str | os.PathLike) -> dict[str, Path]:
    """Write recommend.json (`Recommendation.as_dict`) and recommend.png into a folder, made if missing; their paths.

    Raises `InputError` for a place that cannot be written to.
    """
    return write_result(out_dir, "recommend", lambda path: draw_recommendation(result, path), result.as_dict())


def draw_recommendation(result: Recommendation, path: str | os.PathLike) -> None:
    """Both scans as one PNG: noise levels on the left, time steps on the right, what is recommended as vertical lines.

    Bars are one standard error; a cross at the top marks a time step that lost replicas, with their share.
    """
    scanned = result.noise_level is not None
    with figure_file(Path(path), 10.0 if scanned else 5.4, 6.8) as figure:
        axes = figure.subplots(2, 2 if scanned else 1, squeeze=False, sharex="col")
        _set_range(axes[:, -1], [s.time_step for s in result.steps])
        if scanned:
            _set_range(axes[:, 0], [p.noise_level for p in result.noise])
            _draw_score_error(axes[0, 0], result)
            _draw_noise_inflation(axes[1, 0], result)
        _draw_step_inflation(axes[0, -1], result)
        _draw_grid_part(axes[1, -1], result)
        for column, chosen in enumerate([result.noise_level, _chosen_step(result)][-axes.shape[1] :]):
            for panel in axes[:, column]:
                if chosen is not None:
                    panel.axvline(chosen, color=CHOSEN, linewidth=1.4, label="recommended", zorder=0)
                if panel.get_legend_handles_labels()[0]:
                    panel.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")


def _set_range(panels: Sequence[Axes], scanned: list[float]) -> None:
    """What was scanned as the range of x; one value alone has none that matplotlib could find."""
    for panel in panels:
        panel.set_xscale("log")
        if scanned:
            panel.set_xlim(min(scanned) / 1.25, max(scanned) * 1.25)


def _chosen_step(result: Recommendation) -> float | None:
    return None if result.spring is None else result.spring.time_step


def _draw_score_error(axes: Axes, result: Recommendation) -> None:
    levels = [p.noise_level for p in result.noise]
    axes.errorbar(
        levels,
        [p.excess.value for p in result.noise],
        [p.excess.error for p in result.noise],
        fmt="o-",
        color=RUN,
        markersize=5,
        capsize=2.5,
        label="at the held-out snapshots",
    )
    axes.set(
        xscale="log",
        ylabel="score error above the best (nats/ps)",
        title=f"Noise level: {result.n_frames:,} held-out frames",
    )
    _plain_ticks(axes, levels)


def _draw_noise_inflation(axes: Axes, result: Recommendation) -> None:
    levels = [p.noise_level for p in result.noise]
    axes.set(xscale="log", xlabel="noise level σ (nm)", ylabel="widening of the bond's variance (%)")
    if result.noise[0].inflation is not None:
        axes.plot(
            levels,
            [100 * p.inflation for p in result.noise],
            "o-",
            color=REFERENCE,
            markersize=5,
            label="2σ² over the stiffest bond's variance",
        )
        _plain_log(axes.yaxis)
        _limit(axes, result.noise_limit)
        _make_room(axes, [100 * p.inflation for p in result.noise])
    _plain_ticks(axes, levels)


def _plain_ticks(axes: Axes, levels: list[float]) -> None:
    axes.set_xticks(levels, [f"{level:.2g}" for level in levels])
    axes.set_xticks([], minor=True)


def _plain_log(axis: Axis) -> None:
    """A logarithmic axis with 1, 2 and 5 of every decade named: a scan rarely covers more than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _make_room(axes: Axes, values: list[float]) -> None:
    """The range of the values on a logarithmic axis, with room below for the legend and above for lost replicas.

    Error bars do not count: one that reaches down to zero would.
    """
    low, high = min(values), max(values)
    axes.set_ylim(low / max(high / low, 10) ** 0.5, high * max(high / low, 10) ** 0.25)


def _draw_step_inflation(axes: Axes, result: Recommendation) -> None:
    axes.set(
        ylabel="widening of a variance (%)",
        title=f"Time step: {result.steps[0].n_replicas} runs of {result.length:.3g} ps each"
        if result.steps
        else "Time step: no run was finished",
    )
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    points = [s for s in result.steps if s.number < EulerMaruyama.limit]
    if points and points[0].number > 0:
        number = np.geomspace(points[0].number, points[-1].number)
        axes.plot(
            number / points[0].number * points[0].time_step,
            100 * (1 / (1 - number / 2) - 1),
            color=REFERENCE,
            label="stiffest mode, predicted",
        )
    _measured(axes, result, "measured", 100, "o", RUN, "all modes, measured")
    _measured(axes, result, "bonds", 100, "s", SERIES[2], "bonds against the snapshots")
    if result.noise_bonds is not None:
        axes.axhline(
            100 * result.noise_bonds, color=SERIES[2], linestyle=":", linewidth=1.2, label="bonds, noise level alone"
        )
    _limit(axes, result.limit)
    known = [v.value for s in result.steps for v in (s.measured, s.bonds) if v is not None]
    predicted = [s.predicted for s in points if s.predicted > 0]
    smallest = min(predicted, default=result.limit)
    _make_room(axes, [100 * v for v in (*known, *predicted, result.limit) if v >= smallest / 3])
    for step in result.steps:
        if step.lost:
            axes.plot(step.time_step, 0.97, "x", color=RUN, transform=axes.get_xaxis_transform(), markersize=7)
            axes.text(
                step.time_step,
                0.93,
                f"{step.lost / step.n_replicas:.0%}\nlost",
                ha="center",
                va="top",
                fontsize=8,
                color=RUN,
                transform=axes.get_xaxis_transform(),
            )


def _draw_grid_part(axes: Axes, result: Recommendation) -> None:
    axes.set(xlabel="time step (ps)", ylabel="path KL divergence (nats/ps)")
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    _measured(axes, result, "grid", 1, "o-", REFERENCE, "grid part of the path error")


def _measured(axes: Axes, result: Recommendation, name: str, factor: float, style: str, color: str, label: str) -> None:
    """What of the steps is known and above zero, which is all that a logarithmic axis shows."""
    known = [(s.time_step, getattr(s, name)) for s in result.steps if isinstance(getattr(s, name), Estimate)]
    known = [(step, value) for step, value in known if value.value > 0]
    if known:
        values = factor * np.array([value.value for _, value in known])
        errors = factor * np.array([value.error for _, value in known])
        axes.errorbar(
            [step for step, _ in known],
            values,
            error_bars(values, errors),
            fmt=style,
            color=color,
            markersize=5,
            capsize=2.5,
            elinewidth=1.2,
            label=label,
        )


def _limit(axes: Axes, limit: float) -> None:
    axes.axhline(100 * limit, color=BOUND, linestyle="--", linewidth=1.2, label=f"limit, {100 * limit:g}%")
