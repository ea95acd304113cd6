"""The error budget: against closed forms on a Gaussian, and against log ratios of path densities on butane."""

from __future__ import annotations

import numpy as np
import torch

from diffmd_fast.analysis import error_budget
from diffmd_fast.models import TraPPEAlkane
from diffmd_fast.models.analytic import Harmonic
from diffmd_fast.sampling import Spring, estimate_curvature

from .alkanes import DIFFUSION
from .exact import S2, normal
from .measure import Part, Row, number, within


def error_budgets() -> Part:
    part = Part("Error budget")
    for a in (0.1, 0.5):
        gaussian(part, a)
    butane(part)
    return part


def gaussian(part: Part, a: float) -> None:
    """Inside a step x_t - x_n = -(D t/s^2) x_n + noise: its mean square over the step gives the KL per ps."""
    n_atoms, diffusion = 4, 0.5
    spring = Spring.from_time_step(a * S2 / diffusion, diffusion)
    variance = S2 / (1 - a / 2)
    found = error_budget(Harmonic(n_atoms, standard_deviation=S2**0.5), normal((16384, n_atoms, 3), variance).double(),
                         spring, max_frames=16384, n_probes=8)
    moved = diffusion * spring.time_step
    exact = 3 * n_atoms * diffusion / 4 / S2**2 * (moved + moved**2 * variance / (3 * S2**2))
    leading = 3 * n_atoms * diffusion / 4 / S2**2 * moved
    for name, estimate, truth in (("bridge", found.grid_bridge, exact), ("Hutchinson", found.grid_hutchinson, leading)):
        good = abs(estimate.value / truth - 1) <= 0.03
        part.rows.append(Row("Gaussian", f"path KL per ps, grid part, {name}, D Δt/s² = {a:g}",
                             number(estimate.value, estimate.error), f"{truth:.5g} within 3%", good,
                             f"{100 * (estimate.value / truth - 1):+.2f} %" + ("; of the leading order, which it "
                             f"estimates; the whole is {exact:.5g}" if name == "Hutchinson" else "")))


def butane(part: Part) -> None:
    """Exact forces: the budget's bridge against the mean log ratio of path densities of runs, at three steps."""
    model = TraPPEAlkane.butane()
    frames = model.sample(4096, seed=11)
    curvature = estimate_curvature(model, frames)
    measured = []
    for a in (0.1, 0.2, 0.4):
        spring = Spring.from_time_step(a / (DIFFUSION * curvature), DIFFUSION)
        start, _ = follow(model, frames, spring.time_step, 40, 1, seed=12)  # to the step's own density
        found = error_budget(model, start, spring, max_frames=4096)
        _, ratio = follow(model, start, spring.time_step, 20, 16, seed=13)
        length = 20 * spring.time_step
        value, error = ratio.mean() / length, ratio.std(ddof=1) / len(ratio) ** 0.5 / length
        measured.append((value, error))
        both = float(np.hypot(error, found.grid_bridge.error))
        remark = f"wanted: the budget's bridge; its Hutchinson estimate {found.grid_hutchinson.value:.4g}"
        part.rows.append(within("butane, exact forces", f"log ratio of path densities, nats/ps, D Δt L = {a:g}", value,
                                both, found.grid_bridge.value, remark=remark))
    drop = measured[2][0] / measured[0][0]
    part.rows.append(Row("butane, exact forces", "the same, at D Δt L = 0.4 over 0.1",
                         number(drop, drop * float(np.hypot(measured[2][1] / measured[2][0],
                                                            measured[0][1] / measured[0][0]))),
                         "about 4: the grid part is of first order in the step", None))


def follow(model, x: torch.Tensor, time_step: float, n_steps: int, fine: int, seed: int) -> tuple:
    """Euler-Maruyama steps cut into ``fine`` pieces with the drift held; the log of their density over that of pieces
    whose drift is taken where they start: positions at the end, and that logarithm for every replica."""
    generator = torch.Generator().manual_seed(seed)
    moved = DIFFUSION * time_step / fine
    ratio = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(n_steps):
        held = model.score(x)
        for piece in range(fine):
            here = held if piece == 0 else model.score(x)
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            # The noise that the exact drift would have needed for the same piece.
            other = noise + (moved / 2) ** 0.5 * (held - here)
            ratio += (other.square() - noise.square()).sum((1, 2)) / 2
            x = x + moved * held + (2 * moved) ** 0.5 * noise
    return x, ratio.numpy()
