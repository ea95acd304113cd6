"""What every validation is made of: rows of a table, and means of long runs with their errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffmd_fast.sampling import Sampler


@dataclass
class Row:
    """One comparison: what was measured, with its standard error, what it should be, and whether it is.

    ``reached`` None: shown only, nothing was asked for.
    """

    system: str
    quantity: str
    measured: str
    wanted: str
    reached: bool | None
    remark: str = ""


@dataclass
class Part:
    """One part of the validation: its rows, pictures (file name, caption) and remarks for the page."""

    title: str
    rows: list[Row] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def number(value: float, error: float) -> str:
    """1.2345 +- 0.0012: the error to two digits, the value to the same place."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 1e-7 * abs(value)):
        return f"{value:.6g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def within(system: str, quantity: str, value: float, error: float, exact: float, limit: float = 4.0,
           relative: float | None = None, remark: str = "") -> Row:
    """A row that is reached when value is within ``limit`` standard errors of exact, and the error (and the deviation)
    under ``relative`` of it."""
    deviation = abs(value - exact) / error
    good = deviation <= limit and (relative is None or max(error, abs(value - exact)) <= relative * abs(exact))
    wanted = f"{exact:.6g} within {limit:g} standard errors" + ("" if relative is None else f" and {relative:.0%}")
    return Row(system, quantity, number(value, error), wanted, bool(good), remark or f"{deviation:.1f} standard errors")


class Means:
    """A reporter that keeps, for every replica, the sums over frames of a function of the positions and of another.

    The result is the ratio of their means; without ``over`` that of the function itself.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], first_step: int,
                 over: Callable[[Tensor], Tensor] | None = None):
        self.function, self.over, self.first_step = function, over, first_step
        self.above = self.below = 0.0

    def __call__(self, step: int, positions: Tensor, energy: Tensor | None, alive: np.ndarray) -> None:
        if step >= self.first_step:
            if not alive.all():
                raise RuntimeError(f"replica {int(np.flatnonzero(~alive)[0])} was lost by step {step}")
            values = self.function(positions).double()
            self.above = self.above + values
            self.below = self.below + (torch.ones_like(values) if self.over is None else self.over(positions).double())

    def result(self) -> tuple[float, float]:
        """Over frames and replicas; the standard error is from the replicas' scatter: they are independent."""
        mean = (self.above.sum() / self.below.sum()).item()
        scatter = (self.above - mean * self.below).std().item() / self.below.mean().item()
        return mean, scatter / len(self.above) ** 0.5


def stationary_mean(sampler: Sampler, start: Tensor, function: Callable[[Tensor], Tensor], n_steps: int, burn_in: int,
                    every: int, over: Callable[[Tensor], Tensor] | None = None) -> tuple[float, float]:
    """Mean of ``function(positions) -> [replicas]`` over steps burn_in .. n_steps, and its standard error."""
    means = Means(function, burn_in, over)
    sampler.run(start, n_steps, every, reporters=[means], check_every=n_steps)
    return means.result()


def measured_order(steps: list[float], errors: list[float], standard_errors: list[float]) -> tuple[float, float]:
    """Slope of log |error| against log step by weighted least squares, and its standard error."""
    x, y = np.log(steps), np.log(np.abs(errors))
    weights = (np.abs(errors) / np.asarray(standard_errors)) ** 2
    centre = (weights * x).sum() / weights.sum()
    spread = (weights * (x - centre) ** 2).sum()
    return float((weights * (x - centre) * y).sum() / spread), float(spread**-0.5)
