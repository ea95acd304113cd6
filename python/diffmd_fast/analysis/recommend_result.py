"""What a scan of noise levels and time steps found, and which of them it recommends and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..sampling.spring import Spring
from .budget_result import Estimate, plain


@dataclass(frozen=True)
class NoisePoint:
    """One noise level on the held-out snapshots.

    noise_level: sigma, nm; None where the model takes none and its own score was used.
    excess: held-out score error above that of the best level, nats/ps: by how much the model part of the error budget
        is larger.  0 +- 0 for the best level itself.
    denoising_loss: |sigma s(x + sigma xi) + xi|^2 per degree of freedom, as the training reports it; None where there
        is no noise level.  It falls with sigma whatever the model, so it is no measure across levels.
    inflation: how much sigma alone widens the variance of the stiffest bond, 2 sigma^2/variance; None without bonds.
    """

    noise_level: float | None
    excess: Estimate
    denoising_loss: Estimate | None
    inflation: float | None


@dataclass(frozen=True)
class StepPoint:
    """One time step: what short runs from held-out snapshots did.

    time_step: ps.  number: D dt L.
    predicted: how much too large the step makes the variance of the stiffest mode, 1/(1 - D dt L/2) - 1.
    measured: the same over all modes by their stiffness, from the run: its configurational temperature over T0, - 1.
    bonds: mean over bonds of the run's variance of the length over that of the snapshots, - 1: step, noise level and
        model together; None without bonds.
    lost: replicas lost, of n_replicas.  grid: grid part of the path error, nats/ps; None where it is not finite.
    measured and bonds are None where no frame was left to measure.
    """

    time_step: float
    number: float
    predicted: float
    measured: Estimate | None
    bonds: Estimate | None
    lost: int
    n_replicas: int
    grid: Estimate | None

    def fails(self, limit: float) -> str:
        """Why this step is not good enough, or nothing."""
        if self.lost:
            return f"{self.lost} of {self.n_replicas} replicas lost"
        if self.predicted > limit * (1 + 1e-6):
            return f"the stiffest mode's variance is {percent(self.predicted)} too large"
        if self.measured is not None and self.measured.value - 2 * self.measured.error > limit:
            return f"the variances of the run are {percent(self.measured)} too large"
        return ""


@dataclass(frozen=True)
class Recommendation:
    """Made by `diffmd_fast.analysis.recommend`, which says how.

    noise: the noise levels, ascending.  steps: the time steps that were run, ascending.
    noise_level: recommended sigma in nm; None where the model takes none.
    spring: of the recommended time step; None where every step failed.
    noise_reason, step_reason: why, in one line each.
    curvature: L at the recommended noise level, 1/nm^2.
    noise_bonds: what the noise level alone does to ``bonds``, mean over bonds; None without bonds or noise level.
    limit, noise_limit: the largest inflations allowed.  length: of the runs, ps.  n_frames: held-out frames used.
    complete: False where Ctrl-C left time steps out.
    """

    noise: tuple[NoisePoint, ...]
    steps: tuple[StepPoint, ...]
    diffusion: float | tuple[float, ...]
    noise_level: float | None
    spring: Spring | None
    noise_reason: str
    step_reason: str
    curvature: float
    noise_bonds: float | None
    limit: float
    noise_limit: float
    length: float
    n_frames: int
    complete: bool = True

    def __str__(self) -> str:
        rows = [["noise level (nm)", "score error above best (nats/ps)", "denoising loss", "bond variance"]]
        for p in self.noise:
            rows.append([text(p.noise_level), str(p.excess), text(p.denoising_loss), percent(p.inflation)])
        lines = _table(rows)
        rows = [["time step (ps)", "D dt L", "stiffest mode", "all modes", "bonds", "lost", "grid part (nats/ps)"]]
        for s in self.steps:
            rows.append(
                [
                    f"{s.time_step:.4g}",
                    f"{s.number:.3g}",
                    percent(s.predicted),
                    percent(s.measured),
                    percent(s.bonds),
                    f"{s.lost}/{s.n_replicas}",
                    text(s.grid),
                ]
            )
        return "\n".join([*lines, "", *_table(rows), "", self.noise_reason, self.step_reason])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, units in the names; estimates are {"value", "error"}, what is not known null."""
        spring = self.spring
        return {
            "noise_level_nm": self.noise_level,
            "time_step_ps": None if spring is None else spring.time_step,
            "stiffness_per_nm2": None if spring is None else spring.stiffness,
            "diffusion_nm2_per_ps": self.diffusion,
            "noise_reason": self.noise_reason,
            "step_reason": self.step_reason,
            "complete": self.complete,
            "curvature_per_nm2": self.curvature,
            "limit": self.limit,
            "noise_limit": self.noise_limit,
            "noise_alone_bond_inflation": self.noise_bonds,
            "run_length_ps": self.length,
            "n_frames": self.n_frames,
            "noise_levels": [
                {
                    "noise_level_nm": p.noise_level,
                    "score_error_above_best_nats_per_ps": plain(p.excess),
                    "denoising_loss": plain(p.denoising_loss),
                    "bond_inflation": p.inflation,
                }
                for p in self.noise
            ],
            "time_steps": [
                {
                    "time_step_ps": s.time_step,
                    "stability_number": s.number,
                    "stiffest_mode_inflation": s.predicted if math.isfinite(s.predicted) else None,
                    "all_modes_inflation": plain(s.measured),
                    "bond_inflation": plain(s.bonds),
                    "replicas_lost": s.lost,
                    "n_replicas": s.n_replicas,
                    "grid_part_nats_per_ps": plain(s.grid),
                    "fails": s.fails(self.limit),
                }
                for s in self.steps
            ],
        }


def choose_noise(noise: tuple[NoisePoint, ...], noise_limit: float) -> tuple[NoisePoint, str]:
    """The level with the lowest held-out error among those that inflate bonds by no more than noise_limit; else the
    smallest; and why."""
    if noise[0].noise_level is None:
        return noise[0], "noise level: the model takes none"
    allowed = [p for p in noise if p.inflation is None or p.inflation <= noise_limit]
    chosen = min(allowed or noise[:1], key=lambda p: p.excess.value)
    bonds = f"it widens the stiffest bond's variance by {percent(chosen.inflation)} (limit {percent(noise_limit)})"
    why = f"noise level {chosen.noise_level:.4g} nm: "
    if not allowed:
        return chosen, f"{why}the smallest one; {bonds}, which only a model trained to a smaller one would mend"
    others = [p for p in noise if p is not chosen]
    best = min(others, key=lambda p: p.excess.value, default=None)
    if best is None:
        why += "the only one that was tried"
    elif best.excess.value < chosen.excess.value:
        why += (
            f"lowest held-out score error within the limit, {best.noise_level:.4g} nm has "
            f"{chosen.excess.value - best.excess.value:.3g} nats/ps less and widens by {percent(best.inflation)}"
        )
    else:
        why += (
            f"lowest held-out score error, {best.noise_level:.4g} nm has "
            f"{best.excess.value - chosen.excess.value:.3g} nats/ps more"
        )
        if chosen is noise[0]:
            why += ", and no smaller one was tried"
    return chosen, why if chosen.inflation is None else f"{why}; {bonds}"


def choose_step(steps: tuple[StepPoint, ...], limit: float, length: float) -> tuple[StepPoint | None, str]:
    """The largest step up to which every one that was run is good enough, and why."""
    chosen, failure = None, ""
    for step in steps:
        failure = step.fails(limit)
        if failure:
            failed = step
            break
        chosen = step
    if chosen is None:
        if not steps:
            return None, "time step: none, no run was finished"
        return None, f"time step: none, at the smallest, {steps[0].time_step:.4g} ps, {failure}"
    why = (
        f"time step {chosen.time_step:.4g} ps: D dt L = {chosen.number:.3g} widens the stiffest mode's variance by "
        f"{percent(chosen.predicted)} (limit {percent(limit)})"
    )
    if chosen.measured is not None:
        why += f", measured over all modes {percent(chosen.measured)}"
    why += f", none of {chosen.n_replicas} replicas lost in {length:.3g} ps"
    return chosen, f"{why}; at {failed.time_step:.4g} ps {failure}" if failure else f"{why}; no larger one was tried"


def percent(value: float | Estimate | None) -> str:
    """0.0512 as 5.1%, with its error where it has one."""
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        return f"{_short(100 * value.value)} +- {_short(100 * value.error)}%"
    return f"{_short(100 * value)}%" if math.isfinite(value) else "unstable"


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1e4 else f"{value:.2g}"


def text(value: float | Estimate | None) -> str:
    """A number as a table shows it."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
