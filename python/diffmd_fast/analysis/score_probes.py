"""What a score and its Jacobian say at frames: products with random signs, by central differences in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import require
from ..sampling.evaluation import Evaluator
from ..sampling.spring import _row

FINITE_STEP = 1e-4  # of a finite difference, in widths of the stiffest mode


def in_double(model: Any) -> Any:
    """A copy of a module in float64: differences of float32 scores would be mostly rounding."""
    return copy.deepcopy(model).double() if isinstance(model, torch.nn.Module) else model


class Probes:
    """Score and Jacobian of a model at frames.  To be called without gradients.

    evaluate: the model in float64.  frames: float64 [frames, atoms, 3] nm.  diffusion: nm^2/ps, one or one per atom.
    n_probes: random vectors at each frame, drawn by ``seed``.  batch_size: frames evaluated together.
    """

    def __init__(
        self, evaluate: Evaluator, frames: Tensor, diffusion: Any, n_probes: int, batch_size: int = 256, seed: int = 0
    ):
        self.evaluate, self.frames, self.n_probes, self.batch_size = evaluate, frames, n_probes, batch_size
        self.diffusion = torch.tensor(_row(diffusion), dtype=torch.float64, device=frames.device)[:, None]
        self.generator = torch.Generator().manual_seed(seed)
        self.count: Any = None

    def bar(self, shown: bool, scores_per_frame: int) -> Any:
        """A progress bar that counts score evaluations."""
        from tqdm import tqdm

        total = len(self.frames) * scores_per_frame
        self.count = tqdm(total=total, desc="budget", unit=" scores", disable=None if shown else True, leave=False)
        return self.count

    def score(self, positions: Tensor) -> Tensor:
        if self.count is not None:
            self.count.update(len(positions))
        return self.evaluate(positions)[1]

    def batches(self) -> Iterator[slice]:
        for start in range(0, len(self.frames), self.batch_size):
            yield slice(start, start + self.batch_size)

    def check_frames(self) -> np.ndarray | None:
        """Refuse frames without a finite score; the energy in kT0 of each, None for a model without energies."""
        energies = []
        for part in self.batches():
            energy, score = self.evaluate(self.frames[part])
            good = torch.isfinite(score).flatten(1).all(1)
            require(bool(good.all()), "positions", "frames with a finite score", "one whose score is not finite")
            energies.append(energy)
        return None if energies[0] is None else torch.cat(energies).cpu().numpy()

    def products(self, curvature: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(frames, D^1/2 z, J D^1/2 z) for signs z of independent +-1, n_probes times for every batch of frames.

        ``curvature``: of the stiffest mode, 1/nm^2; its width sets the step of the differences.
        """
        # D_b^1/2 z relative to the largest D: no coordinate then moves by more than the finite step.
        largest = self.diffusion.max()
        weight = (self.diffusion / largest).sqrt()
        width = (
            curvature**-0.5
            if curvature > 0
            else 1 / max(self.evaluate(self.frames[: self.batch_size])[1].square().mean().sqrt().item(), 1e-3)
        )
        step = FINITE_STEP * width
        for part in self.batches():
            x = self.frames[part]
            for _ in range(self.n_probes):
                signs = 2 * torch.randint(2, x.shape, generator=self.generator).to(x) - 1
                move = step * weight * signs
                change = self.score(x + move) - self.score(x - move)
                yield part, largest.sqrt() * weight * signs, largest.sqrt() * change / (2 * step)

    def squares_and_traces(self, curvature: float) -> tuple[np.ndarray, np.ndarray]:
        """sum_a D_a |s_a|^2 and sum_a D_a div_a s_a of each frame [frames], 1/ps; the trace by Hutchinson's signs.

        In the density whose score this is, the means of the two add up to 0 (integration by parts).
        """
        squares, traces = self.frames.new_zeros(2, len(self.frames))
        for part in self.batches():
            squares[part] = (self.diffusion * self.score(self.frames[part]).square()).sum((1, 2))
        for part, signs, product in self.products(curvature):
            traces[part] += (signs * product).sum((1, 2)) / self.n_probes
        return squares.cpu().numpy(), traces.cpu().numpy()
