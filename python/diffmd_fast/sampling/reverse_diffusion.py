"""Independent frames from noise: the ordinary reverse diffusion of the network that also runs as dynamics."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_integer, require
from ..models.turns import rotatable_bonds, turned_side
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

    Where the model has an energy, each step begins with two moves that leave the level's density as it is: a Gibbs
    move between the frame and its mirror image, and, where ``model.molecule`` has bonds that turn, a Metropolis move
    that turns the far side of one of them by any angle.  At large noise an energy of distances and faded torsions
    tells neither handedness nor conformations apart, so frames would otherwise cool down in shares that are only as
    right as the score between the basins, which no frame has tested.

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
    molecule = getattr(model, "molecule", None)
    bonds = [] if molecule is None else rotatable_bonds(molecule)
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
                    bonds,
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
    bonds: list[tuple[int, int, list[int]]],
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
            _exchange(evaluators[i], x, energy, score, bonds, noisy, 2**31 + i)
        gap = level**2 - next_level**2
        noisy(score, gap, 0.5 * (next_level / level) ** 2, i + 1)
        if not math.isfinite(x.sum().item()):
            # Zeros keep what follows well defined for every model; the frame is marked and drawn again.
            lost |= ~torch.isfinite(x).flatten(1).all(1)
            x[lost] = 0
        bar.update(1)
    x[lost] = float("nan")
    return x


def _exchange(evaluate: Evaluator, x: Tensor, energy: Tensor, score: Tensor, bonds: list, noisy: Any,
              step: int) -> None:
    """The two moves of a level, in place: ``x`` [frames, atoms, 3] with its ``energy`` [frames] and ``score``."""
    normal = torch.zeros_like(x[:, :1]).repeat(1, 2, 1)
    noisy(torch.zeros_like(normal), 0.5, 1.0, step, normal)
    uniform = 0.5 * (1 + torch.erf(normal.double() / math.sqrt(2)))
    mirrored = -x
    values = evaluate(mirrored)
    _replace(uniform[:, 0, 0] < torch.sigmoid((energy - values[0]).double()), mirrored, values, x, energy, score)
    if bonds:
        turned = _turned(x, bonds, (uniform[:, 0, 1] * len(bonds)).long(), normal[:, 1, :2])
        values = evaluate(turned)
        _replace(uniform[:, 0, 2].log() < (energy - values[0]).double(), turned, values, x, energy, score)


def _turned(x: Tensor, bonds: list[tuple[int, int, list[int]]], which: Tensor, direction: Tensor) -> Tensor:
    """Frames x with the far side of bond ``which`` [frames] turned by the angle of ``direction`` [frames, 2], which is
    uniform where that is normal."""
    result = x.clone()
    length = (direction[:, 0] * direction[:, 0] + direction[:, 1] * direction[:, 1]).sqrt()
    for k, (b, c, side) in enumerate(bonds):
        (rows,) = torch.nonzero(which == k, as_tuple=True)
        cosine, sine = (direction[rows, i] / length[rows] for i in (0, 1))
        result[rows[:, None], torch.tensor(side, device=x.device)] = turned_side(x[rows], b, c, side, cosine, sine)
    return result


def _replace(accepted: Tensor, other: Tensor, values: tuple[Tensor, Tensor], x: Tensor, energy: Tensor,
             score: Tensor) -> None:
    """Where ``accepted`` [frames], the other frames with their energies and scores take the place of the frames'."""
    x[accepted] = other[accepted]
    energy[accepted], score[accepted] = values[0][accepted], values[1][accepted]


def _bar(show: bool, total: int):
    from tqdm import tqdm

    return tqdm(total=total, desc="reverse diffusion", unit="step", disable=not show, dynamic_ncols=True)
