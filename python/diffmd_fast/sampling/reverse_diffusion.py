"""Independent frames from noise: the ordinary reverse diffusion of the network that also runs as dynamics."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_integer, require
from .evaluation import Evaluator, device_of
from .integrators import REVERSE_DIFFUSION, move
from .support import Support


@torch.no_grad()
def reverse_diffusion(
    model: Any,
    n_replicas: int,
    seed: int = 0,
    n_steps: int = 400,
    *,
    first_replica: int = 0,
    batch_size: int | None = None,
    max_attempts: int = 20,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Tensor:
    """Draw frames [n_replicas, n_atoms, 3] nm from the model's density at its smallest noise level.

    Noise levels fall in equal ratios from the largest trained one, where a frame is a normal number of
    variance sigma^2 (+ ``model.spread``) per coordinate, to the smallest.  One step from sigma to sigma'
    draws from the posterior of the variance-exploding process (Ho et al., arXiv 2006.11239, eq. 7, in the
    variance-exploding form of Song et al., arXiv 2011.13456, appendix F):

        x' = x + (sigma^2 - sigma'^2) s(x, sigma) + sqrt((sigma^2 - sigma'^2) sigma'^2 / sigma^2) xi

    Where the model has an energy, each step begins with a Gibbs move between the frame and its mirror image, drawn
    with the probabilities that their energies at the level give.  At large noise an energy of distances and
    faded torsions does not tell them apart, so half of all frames would otherwise cool down with the wrong
    handedness.

    The step is em_step with D dt = sigma^2 - sigma'^2 and a variance multiplier of sigma'^2/(2 sigma^2).  The
    noise is a stream of the seed apart from the sampler's, by replica, so the result does not depend on
    ``batch_size``.  A frame that ends outside the support of the training set is drawn again, which a warning
    counts.

    Args:
        model: with ``noise_levels`` (smallest, largest), ``n_atoms`` and ``score(positions, noise_level)``.
        n_replicas: frames to draw.
        seed: 0 .. 2^64 - 1.
        n_steps: noise levels between largest and smallest.
        first_replica: number of the first frame in the noise.
        batch_size: frames evaluated together, default all.
        max_attempts: draws of one frame before giving up.
        dtype: float32 or float64.
        progress: show a bar.

    Raises:
        InputError: a model without noise levels or number of atoms, an argument out of range, or frames still
            outside the support after ``max_attempts``.
    """
    evaluators, levels, n_atoms = _prepare(model, n_steps)
    n_replicas = check_integer(n_replicas, "n_replicas", minimum=1)
    seed = check_integer(seed, "seed", minimum=0, maximum=2**64 - 1)
    first_replica = check_integer(first_replica, "first_replica", minimum=0, maximum=2**32 - 1 - n_replicas)
    size = n_replicas if batch_size is None else check_integer(batch_size, "batch_size", minimum=1)
    max_attempts = check_integer(max_attempts, "max_attempts", minimum=1, maximum=2**20)
    require(dtype in (torch.float32, torch.float64), "dtype", "torch.float32 or torch.float64", dtype)
    device = device_of(model) or torch.device("cpu")
    support = Support(getattr(model, "support", None), n_atoms, levels[-1], evaluators[-1].at_own_noise, device)
    frames = torch.empty(n_replicas, n_atoms, 3, dtype=dtype, device=device)
    wanted, redrawn, reason = list(range(n_replicas)), 0, ""
    with _bar(progress, n_steps * -(-n_replicas // size)) as bar:
        for attempt in range(max_attempts):
            failed = []
            for start in range(0, len(wanted), size):
                rows = wanted[start : start + size]
                drawn = _draw(
                    evaluators,
                    levels,
                    getattr(model, "spread", None) or 0.0,
                    rows,
                    frames,
                    seed,
                    first_replica,
                    attempt,
                    bar,
                )
                energy, _ = evaluators[-1](drawn)
                outside = torch.nonzero(~support.inside(drawn, energy)).flatten().tolist()
                frames[rows] = drawn
                failed += [rows[i] for i in outside]
                if outside:
                    i = outside[0]
                    reason = support.reason(drawn[i], None if energy is None else energy[i])
            if not failed:
                break
            redrawn, wanted = redrawn + len(failed), failed
        else:
            raise InputError(
                f"model: expected frames inside the support of its training set, got {len(failed)} of "
                f"{n_replicas} outside after {max_attempts} attempts (the last: {reason})"
            )
    if redrawn:
        warnings.warn(
            f"reverse diffusion: {redrawn} frames ended outside the support of the training set and were "
            f"drawn again (the last: {reason})",
            stacklevel=2,
        )
    return frames


def _prepare(model: Any, n_steps: int) -> tuple[list[Evaluator], list[float], int]:
    """One evaluator per noise level, the levels from largest to smallest, and the number of atoms."""
    n_steps = check_integer(n_steps, "n_steps", minimum=1)
    bounds = getattr(model, "noise_levels", None)
    if bounds is None or len(bounds) != 2:
        raise InputError(
            "model: expected noise_levels (smallest, largest), which reverse diffusion starts and ends at, "
            f"got {type(model).__name__} without"
        )
    low, high = (float(level) for level in bounds)
    require(0 < low < high, "model.noise_levels", "0 < smallest < largest", f"({low:g}, {high:g})")
    require(getattr(model, "box", None) is None, "model", "one without a periodic box (large noise has no place in it)",
            "one with a box")
    n_atoms = getattr(model, "n_atoms", None)
    require(isinstance(n_atoms, int), "model", "an attribute n_atoms", f"{type(model).__name__} without")
    levels = [high * (low / high) ** (i / n_steps) for i in range(n_steps)] + [low]
    return [Evaluator(model, min(level, high)) for level in levels], levels, n_atoms


def _draw(
    evaluators: list[Evaluator],
    levels: list[float],
    spread: float,
    rows: list[int],
    like: Tensor,
    seed: int,
    first_replica: int,
    attempt: int,
    bar: Any,
) -> Tensor:
    """One attempt at the frames ``rows`` [len(rows), atoms, 3]."""
    x = like.new_zeros(len(rows), *like.shape[1:])
    # Neighbours in `rows` that are neighbours in the noise are moved by one call.
    cuts = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1] + 1] + [len(rows)]

    def noisy(score: Tensor, diffusion_time: float, variance: float, step: int, x: Tensor = x) -> None:
        d, v = (torch.tensor([value], dtype=torch.float64, device=x.device) for value in (diffusion_time, variance))
        for begin, end in zip(cuts, cuts[1:]):
            move(
                x[begin:end],
                score[begin:end],
                d,
                v,
                seed,
                first_replica + rows[begin],
                attempt * 2**32 + step,
                REVERSE_DIFFUSION,
            )

    noisy(torch.zeros_like(x), 0.5 * (levels[0] ** 2 + spread), 1.0, 0)
    lost = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    for i, (level, next_level) in enumerate(zip(levels, levels[1:])):
        energy, score = evaluators[i](x)
        if energy is not None:
            _choose_mirror_image(evaluators[i], x, energy, score, noisy, 2**31 + i)
        gap = level**2 - next_level**2
        noisy(score, gap, 0.5 * (next_level / level) ** 2, i + 1)
        if not math.isfinite(x.sum().item()):
            # Zeros keep what follows well defined for every model; the frame is marked and drawn again.
            lost |= ~torch.isfinite(x).flatten(1).all(1)
            x[lost] = 0
        bar.update(1)
    x[lost] = float("nan")
    return x


def _choose_mirror_image(evaluate: Evaluator, x: Tensor, energy: Tensor, score: Tensor, noisy: Any, step: int) -> None:
    """Replace frames of ``x`` [frames, atoms, 3], and their scores, by their mirror images with probability
    1/(1 + exp(E(mirror) - E)): a Gibbs move that leaves the density of the level as it is."""
    mirrored_energy, mirrored_score = evaluate(-x)
    normal = torch.zeros_like(x[:, :1])
    noisy(torch.zeros_like(normal), 0.5, 1.0, step, normal)
    uniform = 0.5 * (1 + torch.erf(normal[:, 0, 0].double() / math.sqrt(2)))
    turned = uniform < torch.sigmoid((energy - mirrored_energy).double())
    x[turned] = -x[turned]
    score[turned] = mirrored_score[turned]


def _bar(show: bool, total: int):
    from tqdm import tqdm

    return tqdm(total=total, desc="reverse diffusion", unit="step", disable=not show, dynamic_ncols=True)
