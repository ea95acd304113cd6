"""How large a time step may be: the curvature of the energy and the limit D dt L < 2 that it sets.

The method removes nothing of the linear stability limit (docs/theory.md section 1): in a harmonic well of
variance s^2 the Euler-Maruyama chain has the variance s^2/(1 - a/2) with a = D dt/s^2 and none at all from a
= 2 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_integer, check_number, require
from .evaluation import Evaluator, as_positions
from .spring import Spring, _row

LIMIT = 2.0
DEFAULT_NUMBER = 0.25  # D dt L of the default time step: the stiffest mode's variance is then 14% too large
MAX_FRAMES = 16


@dataclass(frozen=True)
class Stability:
    """``curvature`` L in 1/nm^2, and ``number`` = D dt L, which must stay below 2."""

    curvature: float
    number: float

    @property
    def inflation(self) -> float:
        """How much too large the step makes the variance of the stiffest mode, 1/(1 - D dt L/2) - 1."""
        return 1 / (1 - self.number / 2) - 1 if self.number < LIMIT else float("inf")

    def __str__(self) -> str:
        text = f"D dt L = {self.number:.3g} (limit {LIMIT:g}; largest curvature L = {self.curvature:.4g} 1/nm^2)"
        if 0 < self.number < LIMIT:
            text += f"; the step widens the stiffest mode's variance by {100 * self.inflation:.2g}%"
        return text


@torch.no_grad()
def estimate_curvature(
    model: Any, positions: Any, noise_level: float | None = None, n_iterations: int = 20, seed: int = 0
) -> float:
    """Largest eigenvalue of the Hessian of E over some frames, in 1/nm^2.

    Lanczos, which is power iteration that keeps what it has seen, on every frame at once; at most 16 frames,
    evenly spread over those given.  Hessian times vector is a central difference of the score, so any module
    with a score will do, and the native path serves; its step is a twentieth of the width of the stiffest
    mode found. For a score that is no gradient the result is that of the symmetric part, roughly.

    Args:
        model: anything with ``score``.
        positions: [frames, atoms, 3] nm, typical ones: curvature differs from place to place.
        noise_level: sigma in nm; default the model's own.
        n_iterations: Hessian-vector products per frame; 20 give the largest eigenvalue to about 1%.
        seed: of the first vector.

    Raises:
        InputError: bad positions, or frames without a finite score.
    """
    evaluate = Evaluator(model, noise_level)
    frames = as_positions(positions, "positions", model)
    n_iterations = check_integer(n_iterations, "n_iterations", minimum=1)
    frames = frames[:: -(-len(frames) // MAX_FRAMES)].contiguous()
    score = evaluate(frames)[1]
    good = torch.isfinite(score).flatten(1).all(1)
    require(bool(good.any()), "positions", "frames with a finite score", "none")
    frames, score = frames[good], score[good].double()
    # In equilibrium <s^2> is the mean curvature; at a minimum, where s = 0, the size of the numbers sets the
    # scale.
    scale = torch.finfo(frames.dtype).eps ** (1 / 3) * max(frames.abs().max().item(), 1e-3)
    width = min(1 / max(score.square().mean().sqrt().item(), 1e-30), 20 * scale)
    curvature = 0.0
    for iterations in (min(4, n_iterations), n_iterations):
        curvature = _lanczos(evaluate, frames, 0.05 * width, iterations, seed)
        if curvature > 0:
            width = curvature**-0.5
    return curvature


def _lanczos(evaluate: Evaluator, frames: Tensor, step: float, n_iterations: int, seed: int) -> float:
    """Largest Ritz value over frames [frames, atoms, 3]; ``step`` in nm is the length of a displacement."""
    n_frames, size = len(frames), frames[0].numel()
    n_iterations = min(n_iterations, size)
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(n_frames, size, generator=generator, dtype=torch.float64).to(frames.device)
    vector = vector / vector.norm(dim=1, keepdim=True)
    basis, diagonal, off_diagonal = [vector], [], []
    for _ in range(n_iterations):
        product = _hessian_times(evaluate, frames, basis[-1], step)
        diagonal.append((product * basis[-1]).sum(1))
        for _ in range(2):  # twice is enough to keep the basis orthogonal
            for other in basis:
                product = product - (product * other).sum(1, keepdim=True) * other
        length = product.norm(dim=1, keepdim=True)
        off_diagonal.append(length[:, 0])
        basis.append(product / length.clamp_min(torch.finfo(torch.float64).tiny))
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if n_iterations > 1:
        beside = torch.stack(off_diagonal[:-1], 1)
        matrix = matrix + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    matrix = matrix[torch.isfinite(matrix).flatten(1).all(1)]
    require(len(matrix) > 0, "positions", "frames with a finite score around them", "none")
    return torch.linalg.eigvalsh(matrix).max().item()


def _hessian_times(evaluate: Evaluator, frames: Tensor, vector: Tensor, step: float) -> Tensor:
    displacement = (step * vector).view(frames.shape)
    pair = torch.cat([frames + displacement, frames - displacement]).to(frames.dtype)
    ahead, behind = evaluate(pair)[1].double().chunk(2)
    return ((behind - ahead) / (2 * step)).flatten(1)


def default_time_step(curvature: float, diffusion: Any) -> float:
    """The time step in ps with D dt L = 0.25: the variance of the stiffest mode is then 1/(1 - 0.125), 14%
    too large.

    Everything softer is proportionally better: a mode of a tenth of the curvature is 1.3% too wide.
    ``diffusion`` in nm^2/ps, a number or one per atom (the largest counts); ``curvature`` in 1/nm^2.
    """
    curvature = check_number(curvature, "curvature", above=0, unit="1/nm^2")
    spring = Spring.from_time_step(1.0, diffusion)
    return DEFAULT_NUMBER / (curvature * max(_row(spring.diffusion)))


def choose_spring(model: Any, positions: Any, diffusion: Any, noise_level: float | None = None) -> Spring:
    """The spring of the default time step, from the curvature at ``positions``."""
    curvature = estimate_curvature(model, positions, noise_level)
    if curvature <= 0:
        raise InputError(
            f"time_step: expected a value (no default: the energy curves down, L = {curvature:.3g} 1/nm^2, "
            "at every starting frame), got none"
        )
    return Spring.from_time_step(default_time_step(curvature, diffusion), diffusion)


def check_stability(
    model: Any,
    spring: Spring,
    positions: Any,
    noise_level: float | None = None,
    force: bool = False,
    curvature: float | None = None,
) -> Stability:
    """D dt L of a run; ``curvature`` in 1/nm^2 where it is known already.

    Raises:
        InputError: D dt L >= 2 and not ``force``; the message names ``time_step`` or ``stiffness``, whichever
            the spring was made from, and the value at the limit.
    """
    if curvature is None:
        curvature = estimate_curvature(model, positions, noise_level)
    stability = Stability(curvature, max(_row(spring.diffusion_time)) * curvature)
    if stability.number >= LIMIT and not force:
        ratio = LIMIT / stability.number
        if spring.given == "stiffness":
            limit = f"above {max(_row(spring.stiffness)) / ratio:.4g} 1/nm^2"
            value = f"{max(_row(spring.stiffness)):.4g} 1/nm^2"
        else:
            limit, value = f"below {spring.time_step * ratio:.4g} ps", f"{spring.time_step:.4g} ps"
        raise InputError(
            f"{spring.given}: expected {limit} (stability: D dt L < {LIMIT:g}), got {value} with D dt L = "
            f"{stability.number:.3g}; force runs it all the same"
        )
    return stability
