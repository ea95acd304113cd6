"""One step of a run as a function of memory that stays where it is: what graph.py captures and replays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .integrators import Evaluate, Part
from .resident import LOST_BEFORE, OUTSIDE, SCORE_NOT_FINITE

if TYPE_CHECKING:
    from .loop import Run

POSITIONS_NOT_FINITE = 1  # csrc/resident_sampler.hpp: ResidentLoss, as the others


class CapturedStep:
    """Move, evaluate, check and save, with every decision made by the device: what :class:`Run` does in a step.

    A call takes no argument and returns nothing.  It makes no host wait, and so may be captured in a CUDA graph; where
    nothing is captured it does the same.

    Args:
        run: whose positions, velocities and counts it works on.
        evaluates: of each of the run's parts.
        save_every, check_every, last: steps; ``last`` ends the run.
        n_steps, n_frames: the most of a visit, from :meth:`begin` to :meth:`losses`.

    Attributes:
        clock: the step that the positions belong to, int64 [1].
        frames [n_frames, replicas, atoms, 3], frame_energies [n_frames, replicas] or None, frame_velocities or None:
            what was saved since :meth:`begin`, in order.
        lost_positions: where replicas were when they were found outside the support.
    """

    def __init__(self, run: Run, evaluates: list[Evaluate], save_every: int, check_every: int, last: int, n_steps: int,
                 n_frames: int):
        positions, self._integrator, self._support = run.positions, run._integrator, run._support
        self._positions, self._velocities, self._good, self._accepted = (positions, run.velocities, run._good,
                                                                         run.accepted)
        self._parts, self._evaluates = run._parts, evaluates
        self._save_every, self._check_every, self._last = save_every, check_every, last
        whole, place, n_replicas = {"dtype": torch.int64, "device": positions.device}, positions.device, len(positions)
        self.clock, self._start, self._n_saved = (torch.zeros(1, **whole) for _ in range(3))
        self._variance = torch.ones(n_steps, dtype=torch.float64, device=place)
        self._loss, self._lost_step = torch.zeros(n_replicas, **whole), torch.zeros(n_replicas, **whole)
        self._scores, self.lost_positions = torch.zeros_like(positions), torch.zeros_like(positions)
        self._energies = positions.new_zeros(n_replicas) if run._evaluate.has_energy else None
        # One frame more, for the steps that save none: the same work at every step.
        self.frames = positions.new_zeros(n_frames + 1, *positions.shape)
        self.frame_energies = None if self._energies is None else positions.new_zeros(n_frames + 1, n_replicas)
        self.frame_velocities = None if self._velocities is None else torch.zeros_like(self.frames)
        self._no_slot = torch.full((1,), n_frames, **whole)

    @property
    def state(self) -> list[Tensor]:
        """What a step changes and a later one reads: with these copied back, steps can be made again."""
        tensors = (self._positions, self._velocities, self._good, self._accepted, self.clock, self._n_saved, self._loss,
                   self._lost_step, self._scores, self._energies, self.lost_positions)
        return [tensor for tensor in tensors if tensor is not None]

    @property
    def nbytes(self) -> int:
        frames = (self.frames, self.frame_energies, self.frame_velocities)
        return sum(t.nbytes for t in (*self.state, self._variance, *frames) if t is not None)

    def evaluate(self) -> None:
        """Energy and score of the positions as they are."""
        for part, evaluate in zip(self._parts, self._evaluates):
            part.energy, part.score = evaluate(part.positions)
            self._keep(part)

    def begin(self, step: int, variance: np.ndarray, alive: np.ndarray) -> None:
        """Before the steps from ``step`` on, at T/T0 ``variance``."""
        self.clock.fill_(step)
        self._start.fill_(step)
        self._n_saved.zero_()
        self._variance[:len(variance)].copy_(torch.from_numpy(variance))
        self._loss.copy_(torch.from_numpy(np.where(alive, 0, LOST_BEFORE)))

    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each replica since :meth:`begin`: how it was lost, 0 where it was not, and at which step."""
        return self._loss.cpu().numpy(), self._lost_step.cpu().numpy()

    def __call__(self) -> None:
        variance = self._variance.index_select(0, self.clock - self._start)
        for part, evaluate in zip(self._parts, self._evaluates):
            self._integrator.move(part, evaluate, self.clock, variance)
        self._freeze()
        after = self.clock + 1
        finite, score_finite = (torch.isfinite(each).flatten(1).all(1) for each in (self._positions, self._scores))
        self._lose(~finite, torch.where(score_finite, POSITIONS_NOT_FINITE, SCORE_NOT_FINITE), after)
        for part, evaluate in zip(self._parts, self._evaluates):
            self._integrator.finish(part, *evaluate(part.positions), self.clock, variance)
            self._keep(part)
        self._freeze()
        saved = after % self._save_every == 0
        self._check(after, saved | (after % self._check_every == 0) | (after == self._last))
        self._save(saved)
        self.clock.copy_(after)

    def _keep(self, part: Part) -> None:
        """Energy and score to where the next replay reads them."""
        rows = slice(part.first, part.first + len(part.positions))
        part.score = self._scores[rows].copy_(part.score)
        if self._energies is not None:
            part.energy = self._energies[rows].copy_(part.energy)

    def _freeze(self) -> None:
        """Lost replicas move with their batch; here they are put back to where they were last good."""
        alive = (self._loss == 0)[:, None, None]
        self._positions.copy_(torch.where(alive, self._positions, self._good))
        if self._velocities is not None:
            self._velocities.copy_(torch.where(alive, self._velocities, 0.0))

    def _lose(self, bad: Tensor, how: Tensor | int, step: Tensor) -> None:
        bad = bad & (self._loss == 0)
        self._loss.copy_(torch.where(bad, how, self._loss))
        self._lost_step.copy_(torch.where(bad, step, self._lost_step))
        self._freeze()

    def _check(self, step: Tensor, due: Tensor) -> None:
        outside = due & ~self._support.inside(self._positions, self._energies) & (self._loss == 0)
        self.lost_positions.copy_(torch.where(outside[:, None, None], self._positions, self.lost_positions))
        self._lose(outside, OUTSIDE, step)
        self._good.copy_(torch.where(due, self._positions, self._good))

    def _save(self, saved: Tensor) -> None:
        slot = torch.where(saved, self._n_saved, self._no_slot)
        for frames, values in ((self.frames, self._positions), (self.frame_energies, self._energies),
                               (self.frame_velocities, self._velocities)):
            if frames is not None:
                frames.index_copy_(0, slot, values[None])
        self._n_saved += saved
