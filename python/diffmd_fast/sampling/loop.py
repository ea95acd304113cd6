"""The loop of a run: move, evaluate, check, save; who is alive, and what becomes of a replica that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..interrupt import Interrupt
from .integrators import Part
from .reporters import Progress, Reporter
from .temperature import kinetic_temperature
from .trajectory import Lost

if TYPE_CHECKING:
    from .sampler import Sampler

MAX_SAID = 20  # losses reported one by one while running; all of them are in the trajectory


class Run:
    """State of one run: positions, who is alive, and the loop."""

    def __init__(self, sampler: Sampler, positions: Tensor, step: int, lost: list[Lost], frames: Any,
                 reporters: tuple[Reporter, ...], bar: Progress, velocities: Tensor | None = None,
                 batches: tuple[Tensor, ...] | None = None):
        self.positions, self.step, self.lost = positions, step, list(lost)
        self._evaluate, self._frames, self._reporters, self._bar = sampler._evaluate, frames, reporters, bar
        self._integrator = sampler._make_integrator(positions)
        self._variance, self._first_in_run = sampler._variance, sampler.first_in_run
        self._support = sampler._support(positions)
        if velocities is None and self._integrator.uses_velocities:
            variance = torch.as_tensor(self._variance(step, step + 1), device=positions.device)
            velocities = self._integrator.draw_velocities(positions, sampler.first_replica, variance)
        self.velocities = velocities
        self.accepted = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        self.first_step, self.kinetic_temperatures = step, []
        self._parts = self._cut(sampler._batches(positions) if batches is None else batches, sampler.first_replica)
        self.alive = np.ones(len(positions), bool)
        self.alive[[entry.replica for entry in lost]] = False
        self._good = positions.clone()  # where a replica is put back to when it is lost
        self._set_frozen()

    def _cut(self, batches: tuple[Tensor, ...], first_replica: int) -> list[Part]:
        """The batches, views into the positions, each with its views into what else is kept of a replica."""
        parts, first = [], 0
        for positions in batches:
            rows = slice(first, first + len(positions))
            velocities = None if self.velocities is None else self.velocities[rows]
            parts.append(Part(positions, first, first_replica + first, velocities, self.accepted[rows]))
            first += len(positions)
        return parts

    @torch.no_grad()
    def advance(self, n_steps: int, save_every: int, check_every: int, interrupt: Interrupt,
                first_is_saved: bool) -> None:
        """Step until ``n_steps``, Ctrl-C, or the last replica's loss."""
        for part in self._running:
            part.energy, part.score = self._evaluate(part.positions)
        if not first_is_saved:
            self._check(self.step % save_every == 0)
        while self.step < n_steps and self._running and not interrupt.asked:
            self._step()
            step = self.step
            if step % check_every == 0 or step % save_every == 0 or step == n_steps:
                self._check(step % save_every == 0)

    def _step(self) -> None:
        step, running = self.step, self._running
        variance = torch.as_tensor(self._variance(step, step + 1), device=self.positions.device)
        for part in running:
            self._integrator.move(part, self._evaluate, step, variance)
        self._freeze()
        self.step = step + 1
        # One sum tells whether anything is not finite; which replica, only then.
        total = self.positions.sum().item()
        if total - total != 0.0:
            self._lose_not_finite()
        for part in running:
            self._integrator.finish(part, *self._evaluate(part.positions), step, variance)
        self._freeze()

    def _freeze(self) -> None:
        """Lost replicas move with their batch; here they are put back to where they stand."""
        if self._frozen is None:
            return
        self.positions.index_copy_(0, self._frozen_rows, self._frozen)
        if self.velocities is not None:
            self.velocities.index_fill_(0, self._frozen_rows, 0.0)

    def _energy(self) -> Tensor | None:
        """Energies [replicas] at the current positions; NaN where nothing is evaluated any more."""
        if not self._evaluate.has_energy:
            return None
        energy = self.positions.new_full((len(self.positions),), float("nan"))
        for part in self._running:
            energy[part.first : part.first + len(part.positions)] = part.energy
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
            self._save(self.step, self.positions, energy, self.alive, self.velocities)
        self._bar.update(self.step, int(self.alive.sum()), len(self.lost))

    def _save(self, step: int, positions: Tensor, energy: Tensor | None, alive: np.ndarray,
              velocities: Tensor | None) -> None:
        self._frames.append(step, positions, alive, velocities)
        if velocities is not None:
            kinetic = kinetic_temperature(velocities.cpu().numpy(), self._integrator.masses.cpu().numpy())
            self.kinetic_temperatures.append(np.where(alive, kinetic, np.nan))
        for reporter in self._reporters:
            reporter(step, positions, energy, alive.copy())

    def _lose_not_finite(self) -> None:
        good = torch.isfinite(self.positions).flatten(1).all(1).cpu().numpy()
        bad = np.flatnonzero(self.alive & ~good)
        for replica in bad.tolist():
            part = self._parts[replica // len(self._parts[0].positions)]
            score = part.score[replica - part.first]
            what = "positions are" if bool(torch.isfinite(score).all()) else "score is"
            self._lose(replica, f"its {what} not finite", self.step)
        if len(bad):
            self._put_back()

    def _lose(self, replica: int, reason: str, step: int) -> None:
        self.alive[replica] = False
        self.lost.append(Lost(replica, step, reason))
        if len(self.lost) <= MAX_SAID:
            self._bar.say(f"replica {self._first_in_run + replica} lost at step {step}: {reason}")
        elif len(self.lost) == MAX_SAID + 1:
            self._bar.say("more replicas are lost; all are listed at the end")
        if not self.alive.any():
            self._bar.say(f"every replica was lost by step {step}: the run ends")

    def _put_back(self) -> None:
        """Lost replicas stand still where they were last good, in a batch of unchanged shape."""
        rows = torch.from_numpy(np.flatnonzero(~self.alive)).to(self.positions.device)
        self.positions[rows] = self._good[rows]
        self._set_frozen()
        self._freeze()

    def _set_frozen(self) -> None:
        """Rows to keep in place, and the parts in which anybody still moves."""
        rows = np.flatnonzero(~self.alive)
        self._frozen_rows = torch.from_numpy(rows).to(self.positions.device)
        self._frozen = self._good[self._frozen_rows] if len(rows) else None
        ends = [part.first + len(part.positions) for part in self._parts]
        self._running = [part for part, end in zip(self._parts, ends) if self.alive[part.first:end].any()]
