"""The spring that ties a frame to the one before it, and the time step that it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, check_number, require

MOLAR_GAS_CONSTANT = 0.00831446261815324  # kJ/mol/K
Number = float | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Spring:
    """Stiffness k = 1/(2 D dt) and time step dt: either is the other (arXiv 2511.17741, docs/theory.md
    section 1).

    Give ``diffusion`` and one of the two; the attributes hold both.

    Args:
        diffusion: D = kT0/friction in nm^2/ps, a number or one per atom.
        time_step: ps.
        stiffness: 1/nm^2, a number or one per atom; D and k of every atom must give one time step.

    Raises:
        InputError: a value that is not above 0, both or neither of the two, or a stiffness that would give
            every atom its own time step.
    """

    diffusion: Number
    time_step: float | None = None
    stiffness: Number | None = None
    given: str = field(init=False, repr=False, compare=False, default="time_step")

    def __post_init__(self) -> None:
        diffusion = _numbers(self.diffusion, "diffusion", "nm^2/ps")
        require(
            (self.time_step is None) != (self.stiffness is None),
            "time_step",
            "either time_step or stiffness",
            "both" if self.time_step is not None else "neither",
        )
        if self.stiffness is None:
            time_step = check_number(self.time_step, "time_step", above=0, unit="ps")
            stiffness = _each(diffusion, lambda d: 0.5 / d / time_step)
            require(
                max(_row(stiffness)) < float("inf"),
                "time_step",
                "1/(2 D dt) within the range of floats",
                f"{time_step:g} ps",
            )
        else:
            object.__setattr__(self, "given", "stiffness")
            stiffness = _numbers(self.stiffness, "stiffness", "1/nm^2")
            time_step = _common_time_step(diffusion, stiffness)
        for name, value in (("diffusion", diffusion), ("time_step", time_step), ("stiffness", stiffness)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_time_step(cls, time_step: float, diffusion: Any) -> Spring:
        """The spring of a time step in ps."""
        return cls(time_step=time_step, diffusion=diffusion)

    @classmethod
    def from_stiffness(cls, stiffness: Any, diffusion: Any) -> Spring:
        """The time step of a spring of stiffness k in 1/nm^2."""
        return cls(stiffness=stiffness, diffusion=diffusion)

    @property
    def diffusion_time(self) -> Number:
        """D dt in nm^2, a number or one per atom: half the variance of a step's noise."""
        return _each(self.diffusion, lambda d: d * self.time_step)

    def force_constant(self, temperature: float) -> Number:
        """kT0 k in kJ/mol/nm^2, the stiffness as a force field writes it; ``temperature`` is T0 in K."""
        kT = MOLAR_GAS_CONSTANT * check_number(temperature, "temperature", above=0, unit="K")
        return _each(self.stiffness, lambda k: kT * k)

    def __str__(self) -> str:
        return (
            f"time step {self.time_step:.6g} ps = stiffness {_text(self.stiffness)} 1/nm^2 "
            f"(diffusion {_text(self.diffusion)} nm^2/ps)"
        )


def _common_time_step(diffusion: Number, stiffness: Number) -> float:
    d, k = _row(diffusion), _row(stiffness)
    n = max(len(d), len(k))
    require(
        len(d) in (1, n) and len(k) in (1, n),
        "stiffness",
        f"a number or {len(d)} values, one per atom as the diffusion",
        len(k),
    )
    steps = [0.5 / d[i % len(d)] / k[i % len(k)] for i in range(n)]
    require(
        0 < min(steps) <= max(steps) < float("inf"),
        "stiffness",
        "1/(2 D k) within the range of floats",
        steps[0],
    )
    if max(steps) > min(steps) * (1 + 1e-6):
        raise InputError(
            "stiffness: expected 1/(2 D dt) with one time step dt for all atoms, got time steps from "
            f"{min(steps):.6g} to {max(steps):.6g} ps"
        )
    return steps[0]


def _numbers(value: Any, name: str, unit: str) -> Number:
    """A float, or a tuple of floats from a sequence, array or tensor of one per atom."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        require(len(value) > 0, name, "at least one number", "none")
        return tuple(check_number(v, name, above=0, unit=unit) for v in value)
    return check_number(value, name, above=0, unit=unit)


def _row(value: Number) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _each(value: Number, function) -> Number:
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def _text(value: Number) -> str:
    row = _row(value)
    if min(row) == max(row):
        return f"{row[0]:.6g}"
    return f"{min(row):.6g} to {max(row):.6g}"
