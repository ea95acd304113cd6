"""Called at every saved frame: the protocol, one that keeps energies, and the progress bar."""

from __future__ import annotations

import time
import warnings
from typing import Protocol

import numpy as np
from torch import Tensor


class Reporter(Protocol):
    """Any callable of this form; called at every saved frame, step 0 included, not again for resumed ones.

    Args:
        step: the frame's step.
        positions: [replicas, atoms, 3] nm, the run's own tensor: to be read only, and copied to be kept.
        energy: [replicas] kT0, or None for a model that offers only a score.
        alive: bool [replicas]; what stands in the rows of lost replicas means nothing.
    """

    def __call__(self, step: int, positions: Tensor, energy: Tensor | None, alive: np.ndarray) -> None: ...


class EnergyReporter:
    """Keeps ``steps`` [n_frames] and ``energies`` [n_frames, replicas] in kT0 (NaN for lost replicas)."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._energies: list[np.ndarray] = []

    def __call__(self, step: int, positions: Tensor, energy: Tensor | None, alive: np.ndarray) -> None:
        values = np.full(len(alive), np.nan) if energy is None else energy.double().cpu().numpy()
        self._steps.append(step)
        self._energies.append(np.where(alive, values, np.nan))

    @property
    def steps(self) -> np.ndarray:
        return np.array(self._steps, np.int64)

    @property
    def energies(self) -> np.ndarray:
        return np.array(self._energies)


class Progress:
    """A bar with steps/s, ps/day summed over the replicas alive, and the number of replicas lost.

    With ``show`` False there is no bar, and what must be said (a lost replica) becomes a warning.
    """

    def __init__(self, show: bool, n_steps: int, first_step: int, time_step: float):
        self._bar = None
        self._time_step, self._first_step = time_step, first_step
        self._start = self._shown = time.monotonic()
        if show:
            from tqdm import tqdm

            self._bar = tqdm(total=n_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def update(self, step: int, n_alive: int, n_lost: int) -> None:
        """Called at every check: cheap, and the bar is redrawn at most twice a second."""
        now = time.monotonic()
        if self._bar is None or (now - self._shown < 0.5 and step < self._bar.total):
            return
        self._shown = now
        rate = (step - self._first_step) / max(now - self._start, 1e-9)
        daily = 86400 * rate * self._time_step * n_alive
        self._bar.set_postfix_str(f"{daily:.3g} ps/day over {n_alive} replicas, {n_lost} lost", refresh=False)
        self._bar.update(step - self._bar.n)

    def say(self, message: str) -> None:
        if self._bar is None:
            warnings.warn(message, stacklevel=4)
        else:
            self._bar.write(message, file=self._bar.fp)

    def note(self, message: str) -> None:
        """Something worth showing beside a bar, and nowhere else."""
        if self._bar is not None:
            self.say(message)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()
