"""The loop of a run where the data lives: many steps of a native model a call (csrc/resident_sampler.cpp).

On a GPU it is kernels/cuda/resident_sampler.cu that runs it: see resident_blocks.py.
"""

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
PRECISIONS = ("3xtf32", "tf32", "fp32")  # the default first; kernels/cuda/resident_blocks.hpp: Precision
SCORE_NOT_FINITE, OUTSIDE, LOST_BEFORE = 2, 3, 4  # csrc/resident_sampler.hpp: ResidentLoss; 1: positions not finite


def why_not_resident(sampler: Sampler, positions: Tensor) -> str | None:
    """Why a run must go step by step, or None when the resident loop serves it."""
    if not callable(getattr(sampler.model, "folded", None)):
        return f"{type(sampler.model).__name__} has no native evaluation of whole molecules"
    if positions.device.type == "cuda":
        from .resident_blocks import why_not_blocks  # which imports this module

        return why_not_blocks(sampler, positions)
    if current_backend() not in ("auto", "native"):
        return f'the backend is "{current_backend()}"'
    if positions.dtype not in NATIVE_DTYPES:
        return f"positions are {positions.dtype}"
    if not sampler.model.native_serves(positions, sampler._evaluate.argument):
        return "the model does not take its native path for these positions (device, size, or a gradient wanted)"
    if sampler.model.by_list():
        return "the model finds its pairs by list (more than 64 atoms, or a periodic box)"
    return None


def resident_loop(positions: Tensor) -> tuple[type[ResidentRun], str]:
    """The class that runs it, where :func:`why_not_resident` has no reason against one, and what to say of it."""
    if positions.device.type == "cuda":
        from .resident_blocks import BlockRun

        return BlockRun, "loop on the GPU, molecules in shared memory"
    return ResidentRun, "loop in native code"


class ResidentRun(Run):
    """The same run as :class:`Run`'s, to the bit, with Python entered once per native call instead of every step."""

    _whole = True  # one batch, which the native call cuts as it likes

    def __init__(self, sampler: Sampler, positions: Tensor, *arguments: Any):
        super().__init__(sampler, positions, *arguments, batches=(positions,) if self._whole else None)
        self._limits = self._support.limits()
        self._lost_positions = torch.empty_like(positions)
        self._prepare(sampler)

    def _prepare(self, sampler: Sampler) -> None:
        """What the native calls need beyond the run's own state."""
        positions = self.positions
        self._folded = sampler.model.folded(sampler.noise_level, positions.dtype)
        self._native = native("resident_sampler", positions.dtype)
        self._memory = (torch.empty_like(positions), torch.empty_like(positions), positions.new_empty(len(positions)),
                        torch.zeros_like(positions))  # what integrators work in: csrc/resident_sampler.hpp

    @torch.no_grad()
    def advance(self, n_steps: int, save_every: int, check_every: int, interrupt: Interrupt,
                first_is_saved: bool) -> None:
        self._begin()
        if not first_is_saved:
            self._check(self.step % save_every == 0)
        chunk, most = 1, self._most_steps(save_every)
        while self.step < n_steps and self._running and not interrupt.asked:
            end, started = min(n_steps, self.step + min(chunk, most)), time.monotonic()
            self._call(end, n_steps, save_every, check_every)
            # At most twice as long as the last call, so that a first guess cannot be far off.
            pace = CALL_SECONDS / max(time.monotonic() - started, 1e-6)
            chunk = max(1, int(chunk * min(2.0, pace)))
            self._bar.update(self.step, int(self.alive.sum()), len(self.lost))

    def _most_steps(self, save_every: int) -> int:
        """Of one native call."""
        frame_bytes = max(1, self.positions.numel() * self.positions.element_size())
        return save_every * max(1, MAX_FRAME_BYTES // frame_bytes)

    def _begin(self) -> None:
        """Energy and score of the positions that the run starts with."""
        part = self._parts[0]
        part.energy, part.score = self._evaluate(self.positions)

    def _call(self, end: int, last: int, save_every: int, check_every: int) -> None:
        """Run to step ``end`` natively, then do in order what the step-by-step loop does on its way."""
        positions, device = self.positions, self.positions.device
        steps = [s * save_every for s in range(self.step // save_every + 1, end // save_every + 1)]
        frames = positions.new_empty((len(steps), *positions.shape))
        energies = positions.new_empty((len(steps), len(positions)))
        velocities = [None] * len(steps) if self.velocities is None else torch.empty_like(frames)
        loss = torch.from_numpy(np.where(self.alive, 0, LOST_BEFORE).astype(np.uint8)).to(device)
        lost_step = torch.zeros(len(positions), dtype=torch.int64, device=device)
        variance = torch.from_numpy(self._variance(self.step, end)).to(device)
        run = self._fields() | {
            "first_step": self.step, "end_step": end, "last_step": last, "check_every": check_every,
            "save_every": save_every, "variance": variance, "loss": loss, "lost_step": lost_step, "frames": frames,
            "frame_energies": energies, "frame_velocities": None if self.velocities is None else velocities}
        self._run({name: _address(value) for name, value in run.items()})
        self._take(end, loss.cpu().numpy(), lost_step.cpu().numpy(), zip(steps, frames, energies, velocities))

    def _run(self, fields: dict[str, Any]) -> None:
        """The native call itself; ``fields`` by the names of csrc/resident_sampler.hpp, tensors by their addresses."""
        self._native(self._folded.description, fields)

    def _fields(self) -> dict[str, Any]:
        """What every native call of this run is given: fields of csrc/resident_sampler.hpp."""
        part, rule = self._parts[0], self._integrator
        pairs, lowest, highest, energy_limit = self._limits
        langevin = {name: getattr(rule, name, None) for name in ("kick", "decay", "amplitude")}
        other_positions, other_score, other_energy, zeros = self._memory
        return langevin | {
            "n_replicas": len(self.positions), "positions": self.positions, "energy": part.energy, "score": part.score,
            "n_threads": get_num_threads(), "diffusion_time": rule.diffusion_time,
            "diffusion_per_atom": rule.diffusion_time.numel() > 1, "rule": rule.rule,
            "other_positions": other_positions, "other_score": other_score, "other_energy": other_energy,
            "zeros": zeros, "velocities": self.velocities, "half_step": getattr(rule, "half_step", 0.0),
            "accepted": self.accepted, "seed": rule.seed, "first_replica": part.first_replica, "n_pairs": len(pairs),
            "pairs": pairs, "lowest": lowest, "highest": highest, "energy_limit": energy_limit, "good": self._good,
            "lost_positions": self._lost_positions}

    def _take(self, end: int, loss: np.ndarray, lost_step: np.ndarray, frames: Any) -> None:
        """What the call left: who was lost, and frames (step, positions, energies, velocities)."""
        alive_before = self.alive.copy()
        gone = np.flatnonzero((loss > 0) & (loss < LOST_BEFORE))
        # As the loop meets them: by step, then those that are not finite before those outside the support.
        for replica in sorted(gone.tolist(), key=lambda r: (lost_step[r], loss[r] == OUTSIDE, r)):
            self._lose(replica, self._reason(replica, int(loss[replica])), int(lost_step[replica]))
        if len(gone):
            self._set_frozen()
        self.step = end if self._running else int(lost_step[gone].max())
        for step, positions, energies, velocities in frames:
            if step <= self.step:
                alive = alive_before & ((loss == 0) | (lost_step > step))
                self._save(step, positions, energies, alive, velocities)

    def _reason(self, replica: int, loss: int) -> str:
        if loss == OUTSIDE:
            # The energy of a replica outside is worked out again: the call has gone on with where it was put back to.
            where = self._lost_positions[replica]
            energy = self._evaluate(where[None])[0]
            return self._support.reason(where, None if energy is None else energy[0])
        return f"its {'score is' if loss == SCORE_NOT_FINITE else 'positions are'} not finite"


def _address(value: Any) -> Any:
    """Where a tensor lies, 0 for none; numbers as they are."""
    if value is None:
        return 0
    return value.data_ptr() if isinstance(value, Tensor) else value
