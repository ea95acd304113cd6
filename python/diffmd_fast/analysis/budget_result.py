"""What an error budget holds: numbers with errors and units, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import check_number
from ..sampling.integrators import EulerMaruyama
from ..sampling.spring import Spring


@dataclass(frozen=True)
class Estimate:
    """A mean over frames and its standard error, in the unit that its owner names."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.error:.2g}"

    def times(self, factor: float) -> Estimate:
        """Both numbers times a positive factor."""
        return Estimate(factor * self.value, factor * self.error)


@dataclass(frozen=True)
class GridPoint:
    """The grid part at one time step.

    time_step: ps.  hutchinson: leading order in the time step, nats/ps.  bridge: without expansion, nats/ps.
    total: grid and model part measured in one, nats/ps; None where the true forces are not a function.
    """

    time_step: float
    hutchinson: Estimate
    bridge: Estimate
    total: Estimate | None = None


def total_variation(divergence: float) -> float:
    """Pinsker's bound on the total variation distance, sqrt(KL/2), at most 1; ``divergence`` in nats."""
    return min(1.0, math.sqrt(max(divergence, 0.0) / 2))


def wanted_time_step(slope: Estimate, model_part: Estimate | None, wanted: float) -> Estimate | None:
    """The time step in ps at which grid and model part add up to ``wanted``, or None where no step does.

    slope: KL per ps and ps of time step, nats/ps^2, so that the grid part is slope times time step (leading order).
    model_part: nats/ps, None counts as 0.  wanted: nats/ps, above 0.  The error is that of slope and model part,
    taken as independent.
    """
    wanted = check_number(wanted, "wanted", above=0, unit="nats/ps")
    model = model_part or Estimate(0.0, 0.0)
    left = wanted - model.value
    if left <= 0:
        return None
    if slope.value <= 0:  # a score that is the same everywhere: every step is exact
        return Estimate(math.inf, 0.0)
    step = left / slope.value
    return Estimate(step, step * math.hypot(slope.error / slope.value, model.error / left))


@dataclass(frozen=True)
class ErrorBudget:
    """Kullback-Leibler divergence of a run's paths from those of the exact dynamics, per ps of the run.

    Made by `diffmd_fast.analysis.error_budget`, which says what each part is.  Divergences are in nats.

    spring: time step in ps, diffusion in nm^2/ps (a number or one per atom), stiffness in 1/nm^2.
    temperature: T of the run, K.  model_temperature: T0 of the model, K.
    noise_level: sigma at which the score was taken, nm; None for a model that has none.
    curvature: L, largest eigenvalue of the energy's Hessian over 16 of the frames, 1/nm^2.
    slope: KL per ps and ps of time step at leading order, nats/ps^2 (Hutchinson).
    growth: the same of the whole error, cross term included, (total_direct - model_part)/time_step, nats/ps^2; None
        where there is no total_direct.
    grid_hutchinson: slope times the time step, nats/ps.
    grid_bridge: the grid part without expansion in the time step, nats/ps.
    model_part: nats/ps; None where no true forces were given.
    total: grid_bridge + model_part (of what is known), nats/ps, the error being that of the sum.
    total_direct: both parts measured in one, with the cross term that the sum leaves out, nats/ps; None where the
        true forces are not a function that could be evaluated inside the step.
    curve: the grid part at several time steps, in ascending order.
    length: of the run, ps, or None.
    wanted: the wanted error as a rate, nats/ps, or None.
    n_frames: frames that were used.  n_probes: probes and draws at each of them.
    units: what counted as independent for the errors.  reliable: whether they are many and long enough for the
        errors to be trusted; ``reason`` if not.
    """

    spring: Spring
    temperature: float
    model_temperature: float
    noise_level: float | None
    curvature: float
    slope: Estimate
    growth: Estimate | None
    grid_hutchinson: Estimate
    grid_bridge: Estimate
    model_part: Estimate | None
    total: Estimate
    total_direct: Estimate | None
    curve: tuple[GridPoint, ...]
    length: float | None
    wanted: float | None
    n_frames: int
    n_probes: int
    units: str
    reliable: bool
    reason: str = field(default="")

    @property
    def rate(self) -> Estimate:
        """The best value of the whole error, nats/ps: total_direct where there is one, else total."""
        return self.total_direct or self.total

    @property
    def dominant(self) -> str:
        """The larger part: "grid" or "model"; "unknown" where the model part is not known."""
        if self.model_part is None:
            return "unknown"
        return "grid" if self.grid_bridge.value >= self.model_part.value else "model"

    @property
    def stability_limit(self) -> float:
        """The time step in ps from which on Euler-Maruyama is unstable, 2/(D L)."""
        largest = self.spring.diffusion_time
        largest = max(largest) if isinstance(largest, tuple) else largest
        return (
            EulerMaruyama.limit * self.spring.time_step / (largest * self.curvature) if self.curvature > 0 else math.inf
        )

    def divergence(self, length: float | None = None) -> Estimate:
        """KL in nats of a run of ``length`` ps (default: the budget's own)."""
        length = self.length if length is None else length
        return self.rate.times(check_number(length, "length", above=0, unit="ps"))

    def total_variation(self, length: float | None = None) -> float:
        """Pinsker's bound sqrt(KL/2), at most 1, on the total variation distance of paths of ``length`` ps.

        Of the grid part alone where the model part is unknown.
        """
        return total_variation(self.divergence(length).value)

    def time_step_for(self, wanted: float) -> Estimate | None:
        """The time step in ps for an error of ``wanted`` nats/ps; None where the model part alone exceeds it."""
        growing = self.growth is not None and self.growth.value > 0
        return wanted_time_step(self.growth if growing else self.slope, self.model_part, wanted)

    def spring_for(self, wanted: float) -> Spring | None:
        """The same as a spring, with its stiffness; None where no step, or every step, meets it."""
        step = self.time_step_for(wanted)
        return (
            None if step is None or math.isinf(step.value) else Spring.from_time_step(step.value, self.spring.diffusion)
        )

    @property
    def summary(self) -> str:
        """One line: the parts with their errors, and what they mean for the length."""
        parts = (
            f"path error at dt = {self.spring.time_step:.4g} ps: grid part {self.grid_bridge} nats/ps (bridge), "
            f"{self.grid_hutchinson} (Hutchinson); "
        )
        if self.model_part is None:
            parts += "model part unknown without true forces"
        else:
            parts += f"model part {self.model_part} nats/ps; total {self.rate} nats/ps, mostly {self.dominant} part"
        if self.length is not None:
            what = " of the grid part" if self.model_part is None else ""
            parts += (
                f"; over {self.length:g} ps KL{what} = {self.divergence()} nats, total variation at most "
                f"{self.total_variation():.3g}"
            )
        return parts

    @property
    def advice(self) -> str:
        """One line on the wanted error: the step that meets it, or why none does."""
        if self.wanted is None:
            return ""
        step, wanted = self.time_step_for(self.wanted), f"wanted {self.wanted:.4g} nats/ps: "
        if step is None:
            return f"{wanted}no time step meets it, the model part alone is {self.model_part} nats/ps"
        if math.isinf(step.value):
            return f"{wanted}every time step meets it"
        text = f"{wanted}{self.spring_for(self.wanted)}, uncertain by {100 * step.error / step.value:.2g}%"
        point = next((p for p in self.curve if math.isclose(p.time_step, step.value)), None)
        if point is not None:
            text += f"; there the grid part without expansion is {point.bridge} nats/ps"
            text += "" if point.total is None else f", the total in one {point.total}"
        if step.value >= self.stability_limit:
            text += f"; that is beyond the stability limit of {self.stability_limit:.4g} ps, which sets the step"
        if self.model_part is None:
            text += "; model part unknown, taken as 0"
        return text

    def __str__(self) -> str:
        noise = "" if self.noise_level is None else f", noise level {self.noise_level:g} nm"
        lines = [
            f"{self.spring}; T = {self.temperature:g} K, T0 = {self.model_temperature:g} K{noise}",
            f"  grid part    {self.grid_bridge} nats/ps (bridge)",
            f"               {self.grid_hutchinson} nats/ps (Hutchinson, leading order in the time step)",
            f"  model part   {'unknown, no true forces' if self.model_part is None else self.model_part}"
            f"{'' if self.model_part is None else ' nats/ps'}",
            f"  total        {self.total} nats/ps{' (grid part only)' if self.model_part is None else ''}",
        ]
        if self.total_direct is not None:
            lines.append(f"  in one       {self.total_direct} nats/ps (with the cross term)")
        if self.length is not None:
            lines.append(
                f"  {self.length:g} ps: KL = {self.divergence()} nats, total variation at most "
                f"{self.total_variation():.3g}"
            )
        if self.wanted is not None:
            lines.append(f"  {self.advice}")
        trust = "" if self.reliable else f"; errors not to be trusted: {self.reason}"
        return "\n".join([*lines, f"  {self.n_frames:,} frames, errors from {self.units}{trust}"])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, units in the names; estimates are {"value", "error"}, infinities null."""
        step, spring = (
            (None, None) if self.wanted is None else (self.time_step_for(self.wanted), self.spring_for(self.wanted))
        )
        return {
            "time_step_ps": self.spring.time_step,
            "diffusion_nm2_per_ps": self.spring.diffusion,
            "stiffness_per_nm2": self.spring.stiffness,
            "temperature_K": self.temperature,
            "model_temperature_K": self.model_temperature,
            "noise_level_nm": self.noise_level,
            "curvature_per_nm2": self.curvature,
            "stability_limit_ps": self.stability_limit if math.isfinite(self.stability_limit) else None,
            "slope_nats_per_ps2": plain(self.slope),
            "growth_nats_per_ps2": plain(self.growth),
            "grid_hutchinson_nats_per_ps": plain(self.grid_hutchinson),
            "grid_bridge_nats_per_ps": plain(self.grid_bridge),
            "model_part_nats_per_ps": plain(self.model_part),
            "total_nats_per_ps": plain(self.total),
            "total_direct_nats_per_ps": plain(self.total_direct),
            "dominant": self.dominant,
            "length_ps": self.length,
            "divergence_nats": None if self.length is None else plain(self.divergence()),
            "total_variation_bound": None if self.length is None else self.total_variation(),
            "wanted_nats_per_ps": self.wanted,
            "wanted_time_step_ps": plain(step),
            "wanted_stiffness_per_nm2": None if spring is None else spring.stiffness,
            "advice": self.advice,
            "curve": [
                {
                    "time_step_ps": p.time_step,
                    "hutchinson_nats_per_ps": plain(p.hutchinson),
                    "bridge_nats_per_ps": plain(p.bridge),
                    "total_nats_per_ps": plain(p.total),
                }
                for p in self.curve
            ],
            "n_frames": self.n_frames,
            "n_probes": self.n_probes,
            "units": self.units,
            "reliable": self.reliable,
            "reason": self.reason,
        }


def plain(estimate: Estimate | None) -> dict[str, float] | None:
    if estimate is None or not math.isfinite(estimate.value):
        return None
    return {"value": estimate.value, "error": estimate.error if math.isfinite(estimate.error) else None}
