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
from .evaluation import DEFAULT_TEMPERATURE, Evaluator, as_positions, model_masses, model_temperature
from .integrators import INTEGRATORS, EulerMaruyama, find_integrator
from .spring import MOLAR_GAS_CONSTANT, Spring, _row

DEFAULT_NUMBER = 0.25  # D dt L of the default time step: Euler-Maruyama's stiffest variance is then 14% too large
MAX_FRAMES = 16


@dataclass(frozen=True)
class Stability:
    """``curvature`` L in 1/nm^2, and the ``number`` that says how large the integrator's step is beside it.

    The number is D dt L, and dt^2 L kT0/m for ``"baoab"``; it must stay below ``limit``: 2, and 4 there.
    ``"metropolis"`` has no limit: it only accepts less.
    """

    curvature: float
    number: float
    integrator: str = "euler-maruyama"

    @property
    def limit(self) -> float:
        return INTEGRATORS[self.integrator].limit

    @property
    def inflation(self) -> float:
        """What the step adds to the variance of the stiffest mode, relative; Euler-Maruyama: 1/(1 - D dt L/2) - 1."""
        return INTEGRATORS[self.integrator].inflation(self.number) if self.number < self.limit else float("inf")

    def __str__(self) -> str:
        rule = INTEGRATORS[self.integrator]
        limit = "no limit" if rule.limit == float("inf") else f"limit {rule.limit:g}"
        text = f"{rule.number_text} = {self.number:.3g} ({limit}; largest curvature L = {self.curvature:.4g} 1/nm^2)"
        if 0 < self.number < rule.limit and (change := 100 * self.inflation):
            changes = "widens" if change > 0 else "narrows"
            text += f"; the step {changes} the stiffest mode's variance by {abs(change):.2g}%"
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
        product = hessian_times(evaluate, frames, basis[-1], step)
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


def hessian_times(evaluate: Evaluator, frames: Tensor, vector: Tensor, step: float) -> Tensor:
    displacement = (step * vector).view(frames.shape)
    pair = torch.cat([frames + displacement, frames - displacement]).to(frames.dtype)
    ahead, behind = evaluate(pair)[1].double().chunk(2)
    return ((behind - ahead) / (2 * step)).flatten(1)


def default_time_step(curvature: float, diffusion: Any, integrator: str = "euler-maruyama",
                      masses: Any = None, temperature: float = DEFAULT_TEMPERATURE) -> float:
    """The time step in ps at which the number of :class:`Stability` is 0.25.

    With Euler-Maruyama the variance of the stiffest mode is then 1/(1 - 0.125), 14% too large, and everything softer
    is proportionally better: a mode of a tenth of the curvature is 1.3% too wide.

    Args:
        curvature: L in 1/nm^2.
        diffusion: nm^2/ps, a number or one per atom (the largest counts).
        integrator: its name.
        masses: Da, a number or one per atom (the smallest counts), and temperature: T0 in K, for ``"baoab"``.
    """
    curvature = check_number(curvature, "curvature", above=0, unit="1/nm^2")
    unit = Spring.from_time_step(1.0, diffusion)
    number = _number(find_integrator(integrator), curvature, unit, masses, temperature)
    return (DEFAULT_NUMBER / number) ** (1 / _power(integrator))


def choose_spring(model: Any, positions: Any, diffusion: Any, noise_level: float | None = None,
                  integrator: str = "euler-maruyama", masses: Any = None) -> Spring:
    """The spring of the default time step, from the curvature at ``positions``; masses as :class:`Sampler` has them."""
    masses = model_masses(model, masses) if find_integrator(integrator).uses_velocities else None
    curvature = estimate_curvature(model, positions, noise_level)
    if curvature <= 0:
        raise InputError(
            f"time_step: expected a value (no default: the energy curves down, L = {curvature:.3g} 1/nm^2, "
            "at every starting frame), got none"
        )
    time_step = default_time_step(curvature, diffusion, integrator, masses, model_temperature(model))
    return Spring.from_time_step(time_step, diffusion)


def check_stability(
    model: Any,
    spring: Spring,
    positions: Any,
    noise_level: float | None = None,
    force: bool = False,
    curvature: float | None = None,
    integrator: str = "euler-maruyama",
    masses: Any = None,
) -> Stability:
    """How large a run's step is; ``curvature`` in 1/nm^2 where it is known already, masses in Da for ``"baoab"``.

    Raises:
        InputError: a step at or over the limit (D dt L >= 2) and not ``force``; the message names ``time_step`` or
            ``stiffness``, whichever the spring was made from, and the value at the limit.
    """
    rule = find_integrator(integrator)
    if curvature is None:
        curvature = estimate_curvature(model, positions, noise_level)
    number = _number(rule, curvature, spring, masses, model_temperature(model))
    stability = Stability(curvature, number, rule.name)
    if stability.number >= rule.limit and not force:
        ratio = (rule.limit / stability.number) ** (1 / _power(rule.name))
        if spring.given == "stiffness":
            limit = f"above {max(_row(spring.stiffness)) / ratio:.4g} 1/nm^2"
            value = f"{max(_row(spring.stiffness)):.4g} 1/nm^2"
        else:
            limit, value = f"below {spring.time_step * ratio:.4g} ps", f"{spring.time_step:.4g} ps"
        raise InputError(
            f"{spring.given}: expected {limit} (stability: {rule.number_text} < {rule.limit:g}), got {value} with "
            f"{rule.number_text} = {stability.number:.3g}; force runs it all the same"
        )
    return stability


def _number(rule: type[EulerMaruyama], curvature: float, spring: Spring, masses: Any, temperature: float) -> float:
    if not rule.uses_velocities:
        return max(_row(spring.diffusion_time)) * curvature
    lightest = min(_row(model_masses(None, masses)))
    return spring.time_step**2 * curvature * MOLAR_GAS_CONSTANT * temperature / lightest


def _power(integrator: str) -> int:
    """Of the time step in the number."""
    return 2 if INTEGRATORS[integrator].uses_velocities else 1
