"""The temperature of a run, step by step: one number, or points with straight lines between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError, check_integer, check_number, require


class Schedule:
    """T in K at every step; "temperature through the spring" (docs/theory.md section 1).

    Args:
        temperature: a number, or (step, K) pairs of ascending steps: before the first and after the last the
            temperature stays what it is there, between two it changes in a straight line.  The move from step n to
            n + 1 is made at the temperature of n.

    Raises:
        InputError: not such a value; the message names ``temperature``.
    """

    def __init__(self, temperature: Any):
        if hasattr(temperature, "tolist"):
            temperature = temperature.tolist()
        if not isinstance(temperature, Sequence) or isinstance(temperature, str):
            self.value: float | tuple = check_number(temperature, "temperature", above=0, unit="K")
            self._steps, self._temperatures = np.zeros(1), np.array([self.value])
            return
        wanted = "a number in K, or (step, K) pairs"
        try:
            pairs = [tuple(pair) for pair in temperature]
        except TypeError:
            raise InputError(f"temperature: expected {wanted}, got {temperature!r}"[:200]) from None
        require(len(pairs) > 0 and all(len(pair) == 2 for pair in pairs), "temperature", wanted, repr(temperature)[:80])
        self.value = tuple((check_integer(_whole(step), "temperature", minimum=0, maximum=2**53),
                            check_number(kelvin, "temperature", above=0, unit="K")) for step, kelvin in pairs)
        steps = [step for step, _ in self.value]
        require(all(a < b for a, b in zip(steps, steps[1:])), "temperature", "pairs of ascending steps", steps)
        self._steps, self._temperatures = np.array(self.value, dtype=np.float64).T

    @property
    def constant(self) -> bool:
        return len(set(self._temperatures)) == 1

    def at(self, steps: Any) -> np.ndarray:
        """K at each of ``steps``."""
        return np.interp(np.asarray(steps, dtype=np.float64), self._steps, self._temperatures)

    @property
    def json(self) -> Any:
        """For the header of a restart file."""
        return self.value if isinstance(self.value, float) else [list(pair) for pair in self.value]

    def __str__(self) -> str:
        if isinstance(self.value, float):
            return f"{self.value:g} K"
        return ", ".join(f"{kelvin:g} K at step {step}" for step, kelvin in self.value)


def _whole(step: Any) -> Any:
    """10.0, which arrays have, is a step; 10.5 is not."""
    return int(step) if isinstance(step, float) and step.is_integer() else step
