"""The loop of a run: evaluate, check, save, move; who is alive, and what becomes of a replica that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..interrupt import Interrupt
from .reporters import Progress, Reporter
from .spring import _row
from .trajectory import Lost

if TYPE_CHECKING:
    from .sampler import Sampler

MAX_SAID = 20  # losses reported one by one while running; all of them are in the trajectory


class Run:
    """State of one run: positions, who is alive, and the loop."""

    def __init__(
        self,
        sampler: Sampler,
        positions: Tensor,
        step: int,
        lost: list[Lost],
        frames: Any,
        reporters: tuple[Reporter, ...],
        bar: Progress,
        batches: tuple[Tensor, ...] | None = None,
    ):
        self.positions, self.step, self.lost = positions, step, list(lost)
        self._evaluate, self._frames, self._reporters, self._bar = sampler._evaluate, frames, reporters, bar
        device = positions.device
        diffusion_time = torch.tensor(_row(sampler.spring.diffusion_time), dtype=torch.float64, device=device)
        variance = torch.tensor([sampler.temperature / sampler.model_temperature], dtype=torch.float64, device=device)
        self._integrator = sampler._integrator(diffusion_time, variance, sampler.seed)
        self._support = sampler._support(positions)
        # views: moving them moves the positions
        self._batches = sampler._batches(positions) if batches is None else batches
        size = len(self._batches[0])
        self._first = [i * size for i in range(len(self._batches))]
        self._first_replica = [sampler.first_replica + first for first in self._first]
        self._evaluations: list[tuple[Tensor | None, Tensor] | None] = [None] * len(self._batches)
        self.alive = np.ones(len(positions), bool)
        self.alive[[entry.replica for entry in lost]] = False
        self._good = positions.clone()  # where a replica is put back to when it is lost
        self._set_frozen()

    @torch.no_grad()
    def advance(
        self, n_steps: int, save_every: int, check_every: int, interrupt: Interrupt, first_is_saved: bool
    ) -> None:
        """Step until ``n_steps``, Ctrl-C, or the last replica's loss."""
        positions, batches, evaluations = self.positions, self._batches, self._evaluations
        evaluate, integrate = self._evaluate, self._integrator.step
        first_step = self.step
        while True:
            step = self.step
            due = step % check_every == 0 or step % save_every == 0 or step == n_steps
            if step < n_steps or evaluate.has_energy:
                for b in self._running:
                    evaluations[b] = evaluate(batches[b])
            if due and not (first_is_saved and step == first_step):
                self._check(step % save_every == 0)
            if step == n_steps or interrupt.asked or not self._running:
                return
            for b in self._running:
                integrate(batches[b], evaluations[b][1], self._first_replica[b], step)
            if self._frozen is not None:
                positions.index_copy_(0, self._frozen_rows, self._frozen)
            self.step = step + 1
            # One sum tells whether anything is not finite; which replica, only then.
            total = positions.sum().item()
            if total - total != 0.0:
                self._lose_not_finite()

    def _energy(self) -> Tensor | None:
        """Energies [replicas] at the current positions; NaN where nothing is evaluated any more."""
        if not self._evaluate.has_energy:
            return None
        energy = self.positions.new_full((len(self.positions),), float("nan"))
        for b in self._running:
            first, values = self._first[b], self._evaluations[b][0]
            energy[first : first + len(values)] = values
        return energy

    def _check(self, save: bool) -> None:
        energy = self._energy()
        inside = self._support.inside(self.positions, energy).cpu().numpy()
        bad = np.flatnonzero(self.alive & ~inside).tolist()
        for replica in bad:
            self._lose(
                replica,
                self._support.reason(self.positions[replica], None if energy is None else energy[replica]),
                self.step,
            )
        if bad:
            self._put_back()
        self._good.copy_(self.positions)
        if save:
            self._save(self.step, self.positions, energy, self.alive)
        self._bar.update(self.step, int(self.alive.sum()), len(self.lost))

    def _save(self, step: int, positions: Tensor, energy: Tensor | None, alive: np.ndarray) -> None:
        self._frames.append(step, positions, alive)
        for reporter in self._reporters:
            reporter(step, positions, energy, alive.copy())

    def _lose_not_finite(self) -> None:
        good = torch.isfinite(self.positions).flatten(1).all(1).cpu().numpy()
        bad = np.flatnonzero(self.alive & ~good)
        for replica in bad.tolist():
            b = replica // len(self._batches[0])
            score = self._evaluations[b][1][replica - self._first[b]]
            what = "positions are" if bool(torch.isfinite(score).all()) else "score is"
            self._lose(replica, f"its {what} not finite", self.step)
        if len(bad):
            self._put_back()

    def _lose(self, replica: int, reason: str, step: int) -> None:
        self.alive[replica] = False
        self.lost.append(Lost(replica, step, reason))
        if len(self.lost) <= MAX_SAID:
            self._bar.say(f"replica {replica} lost at step {step}: {reason}")
        elif len(self.lost) == MAX_SAID + 1:
            self._bar.say("more replicas are lost; all are listed at the end")
        if not self.alive.any():
            self._bar.say(f"every replica was lost by step {step}: the run ends")

    def _put_back(self) -> None:
        """Lost replicas stand still where they were last good, in a batch of unchanged shape."""
        rows = torch.from_numpy(np.flatnonzero(~self.alive)).to(self.positions.device)
        self.positions[rows] = self._good[rows]
        self._set_frozen()

    def _set_frozen(self) -> None:
        """Rows to keep in place, and the batches in which anybody still moves."""
        rows = np.flatnonzero(~self.alive)
        self._frozen_rows = torch.from_numpy(rows).to(self.positions.device)
        self._frozen = self._good[self._frozen_rows] if len(rows) else None
        ends = [first + len(batch) for first, batch in zip(self._first, self._batches)]
        self._running = [b for b, (first, end) in enumerate(zip(self._first, ends)) if self.alive[first:end].any()]
