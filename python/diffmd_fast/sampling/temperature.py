"""The temperature that a run has, from its velocities and from its forces: both should be what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import InputError, check_integer, require
from .evaluation import Evaluator, as_positions, model_temperature
from .spring import MOLAR_GAS_CONSTANT
from .stability import hessian_times

DISPLACEMENT = 0.03  # of a probe, in widths 1/rms(score) of a mode of average curvature


def kinetic_temperature(velocities: Any, masses: Any) -> np.ndarray:
    """sum m v^2 / (3 N k_B) in K, of every replica.

    Args:
        velocities: [..., atoms, 3] nm/ps.
        masses: [atoms] Da.

    Returns:
        [...] K; what Langevin dynamics moves is all 3 N of the coordinates, so nothing is taken off for the centre.
    """
    v, m = np.asarray(velocities, np.float64), np.asarray(masses, np.float64)
    require(v.ndim >= 2 and v.shape[-1] == 3, "velocities", "shape [..., atoms, 3]", list(v.shape))
    require(m.shape == v.shape[-2:-1], "masses", f"{v.shape[-2]} values, one per atom", list(m.shape))
    return (m[:, None] * v**2).sum((-1, -2)) / (3 * v.shape[-2] * MOLAR_GAS_CONSTANT)


@torch.no_grad()
def configurational_temperature(model: Any, positions: Any, noise_level: float | None = None, n_probes: int = 4,
                                seed: int = 0) -> tuple[float, float]:
    """T0 <|grad E|^2>/<laplacian E> over frames, with its standard error, both in K.

    In equilibrium at T this is T, whatever the energy (Rugh, Phys. Rev. Lett. 78, 772, 1997, to leading order in
    1/N): a step that is too long, or a model that curves otherwise than where the frames lie, shows in it.  Stiff
    modes weigh most.  The Laplacian is estimated by random probes (Hutchinson) as central differences of the score.

    Args:
        model: anything with ``score``; the result is in units of its T0.
        positions: [frames, atoms, 3] nm, independent ones (one a replica, say): the error takes them for such.
        noise_level: sigma in nm; default the model's own.
        n_probes: score pairs a frame.
        seed: of the probes.

    Raises:
        InputError: bad positions, fewer than two frames, a score that is not finite, or a mean curvature that is
            not above 0.
    """
    evaluate = Evaluator(model, noise_level)
    x = as_positions(positions, "positions", model)
    require(len(x) >= 2, "positions", "at least 2 frames", len(x))
    n_probes = check_integer(n_probes, "n_probes", minimum=1)
    squared = evaluate(x)[1].double().square().sum((1, 2))
    require(bool(torch.isfinite(squared).all()), "positions", "frames with a finite score", "others")
    step = DISPLACEMENT * (x[0].numel() / max(squared.mean().item(), 1e-30)) ** 0.5
    generator = torch.Generator().manual_seed(check_integer(seed, "seed", minimum=0, maximum=2**63 - 1))
    laplacian = torch.zeros_like(squared)
    for _ in range(n_probes):
        probe = (torch.randint(0, 2, (len(x), x[0].numel()), generator=generator, dtype=torch.float64) * 2 - 1)
        probe = probe.to(x.device)
        laplacian += (hessian_times(evaluate, x, probe, step) * probe).sum(1) / n_probes
    require(bool(torch.isfinite(laplacian).all()), "positions", "frames with a finite score around them", "others")
    above, below = squared.mean().item(), laplacian.mean().item()
    if below <= 0:
        raise InputError(f"positions: expected frames where the energy curves up on average, got a mean Laplacian of "
                         f"{below:.3g} 1/nm^2")
    ratio = above / below
    error = (squared - ratio * laplacian).std().item() / (below * len(x) ** 0.5)  # of a ratio of means
    T0 = model_temperature(model)
    return T0 * ratio, T0 * error
