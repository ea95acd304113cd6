"""The loop of a run where the data lives: many steps of a native model a call (csrc/resident_sampler.cpp)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..backend import current_backend
from ..interrupt import Interrupt
from ..ops._library import NATIVE_DTYPES, get_num_threads, native
from .loop import Run

if TYPE_CHECKING:
    from .sampler import Sampler

CALL_SECONDS = 0.25  # of one native call: Ctrl-C and the progress bar are looked at between calls
MAX_FRAME_BYTES = 2**26  # frames that one call may hold
SCORE_NOT_FINITE, OUTSIDE, LOST_BEFORE = 2, 3, 4  # csrc/resident_sampler.hpp: ResidentLoss; 1: positions not finite


def why_not_resident(sampler: Sampler, positions: Tensor) -> str | None:
    """Why a run must go step by step, or None when the resident loop serves it."""
    if not callable(getattr(sampler.model, "folded", None)):
        return f"{type(sampler.model).__name__} has no native evaluation of whole molecules"
    if not sampler._integrator.resident:
        return f"the integrator {sampler._integrator.name} has no resident form"
    if current_backend() not in ("auto", "native"):
        return f'the backend is "{current_backend()}"'
    if positions.dtype not in NATIVE_DTYPES:
        return f"positions are {positions.dtype}"
    if not sampler.model.native_serves(positions, sampler._evaluate.argument):
        return "the model does not take its native path for these positions (device, size, or a gradient wanted)"
    if sampler.model.by_list():
        return "the model finds its pairs by list (more than 64 atoms, or a periodic box)"
    return None


class ResidentRun(Run):
    """The same run as :class:`Run`'s, to the bit, with Python entered once per native call instead of every step."""

    def __init__(self, sampler: Sampler, positions: Tensor, *arguments: Any):
        super().__init__(sampler, positions, *arguments, batches=(positions,))
        self._folded = sampler.model.folded(sampler.noise_level, positions.dtype)
        self._native = native("resident_sampler", positions.dtype)
        self._first_replica_number = sampler.first_replica
        self._limits = self._support.limits()
        self._lost_positions = torch.empty_like(positions)

    @torch.no_grad()
    def advance(
        self, n_steps: int, save_every: int, check_every: int, interrupt: Interrupt, first_is_saved: bool
    ) -> None:
        energy, score = self._evaluate(self.positions)
        self._evaluations[0] = (energy, score.contiguous())
        if not first_is_saved:
            self._check(self.step % save_every == 0)
        frame_bytes = max(1, self.positions.numel() * self.positions.element_size())
        most = save_every * max(1, MAX_FRAME_BYTES // frame_bytes)
        chunk = 1
        while self.step < n_steps and self._running and not interrupt.asked:
            end, started = min(n_steps, self.step + min(chunk, most)), time.monotonic()
            self._call(end, n_steps, save_every, check_every)
            # At most twice as long as the last call, so that a first guess cannot be far off.
            pace = CALL_SECONDS / max(time.monotonic() - started, 1e-6)
            chunk = max(1, int(chunk * min(2.0, pace)))
            self._bar.update(self.step, int(self.alive.sum()), len(self.lost))

    def _call(self, end: int, last: int, save_every: int, check_every: int) -> None:
        """Run to step ``end`` natively, then do in order what the step-by-step loop does on its way."""
        positions, (energy, score) = self.positions, self._evaluations[0]
        steps = [s * save_every for s in range(self.step // save_every + 1, end // save_every + 1)]
        frames = positions.new_empty((len(steps), *positions.shape))
        energies = energy.new_empty((len(steps), len(positions)))
        loss = np.where(self.alive, 0, LOST_BEFORE).astype(np.uint8)
        lost_step = np.zeros(len(positions), np.int64)
        pairs, lowest, highest, energy_limit = self._limits
        rule = self._integrator
        self._native(
            self._folded.description, len(positions), positions.data_ptr(), energy.data_ptr(), score.data_ptr(),
            get_num_threads(), rule.diffusion_time.data_ptr(), rule.diffusion_time.numel() > 1, rule.variance.item(),
            rule.seed, self._first_replica_number, self.step, end, last, check_every, save_every, len(pairs),
            pairs.data_ptr(), lowest.data_ptr(), highest.data_ptr(), energy_limit, self._good.data_ptr(),
            loss.ctypes.data, lost_step.ctypes.data, self._lost_positions.data_ptr(), frames.data_ptr(),
            energies.data_ptr(),
        )
        alive_before = self.alive.copy()
        gone = np.flatnonzero((loss > 0) & (loss < LOST_BEFORE))
        # As the loop meets them: by step, then those that are not finite before those outside the support.
        for replica in sorted(gone.tolist(), key=lambda r: (lost_step[r], loss[r] == OUTSIDE, r)):
            self._lose(replica, self._reason(replica, int(loss[replica])), int(lost_step[replica]))
        if len(gone):
            self._set_frozen()
        self.step = end if self._running else int(lost_step[gone].max())
        for step, frame, values in zip(steps, frames, energies):
            if step <= self.step:
                alive = alive_before & ((loss == 0) | (lost_step > step))
                self._save(step, frame, values, alive)

    def _reason(self, replica: int, loss: int) -> str:
        if loss == OUTSIDE:
            # The energy of a replica outside is worked out again: the call has gone on with where it was put back to.
            where = self._lost_positions[replica]
            return self._support.reason(where, self._evaluate(where[None])[0][0])
        return f"its {'score is' if loss == SCORE_NOT_FINITE else 'positions are'} not finite"
