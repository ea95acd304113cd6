"""What a run gives back, and what an interrupted one leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .spring import Spring
from .stability import Stability


class Lost(NamedTuple):
    """A replica that was stopped: its place in the run, the step at which it was no longer good, and why."""

    replica: int
    step: int
    reason: str


@dataclass(frozen=True)
class Trajectory:
    """Saved frames of every replica and how they were made.

    Attributes:
        positions: [n_frames, n_replicas, n_atoms, 3] nm; frame 0 is the start.  NaN for a replica from the
            first frame at which it was lost.  None when the frames went to a file (``path``).
        final_positions: [n_replicas, n_atoms, 3] nm at the last step run; NaN for lost replicas.
        steps: [n_frames] step of every frame: 0, save_every, 2 save_every, ...
        lost: the replicas that were stopped, in the order of their loss.
        n_steps: steps run, which is fewer than asked for after Ctrl-C or when every replica was lost.
        temperature: K, or the (step, K) pairs of a schedule.
        noise_level: nm (None where the model does not say).
        stability: largest curvature found and D dt L.
        acceptance: share of the steps of this call that were accepted, [n_replicas] (NaN for lost ones), of
            ``"metropolis"``; else None.
        final_velocities: [n_replicas, n_atoms, 3] nm/ps, of ``"baoab"``; else None.
        kinetic_temperature: K at the frames that this call saved, [frames, n_replicas], of ``"baoab"``; else None.
    """

    positions: np.ndarray | None
    final_positions: np.ndarray
    steps: np.ndarray
    lost: list[Lost]
    n_steps: int
    spring: Spring
    temperature: float | tuple[tuple[int, float], ...]
    noise_level: float | None
    seed: int
    stability: Stability
    path: Path | None = None
    acceptance: np.ndarray | None = None
    final_velocities: np.ndarray | None = None
    kinetic_temperature: np.ndarray | None = None

    @property
    def n_frames(self) -> int:
        return len(self.steps)

    @property
    def n_replicas(self) -> int:
        return len(self.final_positions)

    @property
    def times(self) -> np.ndarray:
        """Time of every frame in ps [n_frames]."""
        return self.steps * self.spring.time_step

    @property
    def alive(self) -> np.ndarray:
        """Whether a replica was good at a frame, bool [n_frames, n_replicas]."""
        end = np.full(self.n_replicas, np.iinfo(np.int64).max)
        for replica, step, _ in self.lost:
            end[replica] = step
        return self.steps[:, None] < end[None, :]


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C: the step was finished, the frames so far are written; ``trajectory`` holds what there is."""

    def __init__(self, trajectory: Trajectory):
        text = f"stopped after step {trajectory.n_steps} with {trajectory.n_frames} frames"
        if trajectory.path is not None:
            text += f" in {trajectory.path}; run again with resume=True to go on"
        super().__init__(text)
        self.trajectory = trajectory
