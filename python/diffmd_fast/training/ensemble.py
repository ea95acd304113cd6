"""Calibration against a run of the model: torsion series whose means in its own ensemble are the snapshots'.

Turns of snapshots (calibration.py) set barriers, and depths of basins to some tenths of kT0: a turned frame has bonds
and angles that have not relaxed.  Here the model itself makes frames.  With F the sines and cosines of the torsions'
multiples, the likeliest series for the snapshots is where <F> of the model is <F> of the snapshots, and a change c of
the coefficients moves <F> by -cov(F) c.  So a run goes on while the series change, by Newton's steps that get smaller
as those of stochastic approximation must (Robbins and Monro, 1951):

    c_k+1 = c_k + 2/(k + 4) (cov(F) + ridge)^-1 (<F>_k - <F>_snapshots - ridge c_k)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import NonFiniteError
from ..models import SchNet
from ..models.turns import rotatable_bonds, turned_side
from ..sampling.evaluation import Evaluator
from ..sampling.integrators import Baoab, Part
from ..sampling.stability import estimate_curvature
from ..sampling.support import Support
from .calibration import torsion_waves

REPLICAS = 256
STEPS = 50  # of dynamics between turns
ROUNDS = 10  # of turns and dynamics between changes of the series
MOST_CHANGES = 30
FRAMES_A_CHANGE = REPLICAS * STEPS * ROUNDS  # evaluated, besides the turned ones
APART = 10  # rounds between frames that are independent: basins of alanine dipeptide decay by 1/e in 5
SPREAD = 0.1  # kT0, how far a coefficient is expected to move after turns have set it
STEP_NUMBER = 0.7  # dt^2 L kT0/m: BAOAB is exact in harmonic wells and stable below 4
FRICTION = 0.01  # times dt
CHUNK = 2**12  # frames whose waves are worked out at once


def match_ensemble(model: SchNet, positions: Tensor, n_changes: int = MOST_CHANGES, seed: int = 0,
                   progress: bool = False) -> None:
    """Change the torsion series until the means of their waves in a run of the model are those of the snapshots.

    Args:
        model: trained; its ``torsion_series`` is changed in place, on the device where it is.  Nothing is done where it
            has none, or where no bond turns, since such a run would not leave the basins that it starts in.
        positions: frames [frames, atoms, 3] nm that it was trained on.
        n_changes: of the series, each after ``FRAMES_A_CHANGE`` evaluations.
        seed: of starts, noise and turns.
        progress: show a bar.

    Raises:
        NonFiniteError: every replica of the run was lost.
    """
    if not (n_changes and model.n_harmonics and rotatable_bonds(model.molecule)):
        return
    generator = torch.Generator().manual_seed(seed)
    start = positions[torch.randint(len(positions), (REPLICAS,), generator=generator)]
    run = own_frames(model, start, seed)
    wanted, covariance = _moments(model, positions, generator)
    ridge = APART / (SPREAD**2 * REPLICAS * ROUNDS * n_changes)
    inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)).to(covariance))
    before, change = model.torsion_series.clone(), torch.zeros_like(wanted)
    for k in tqdm(range(1, n_changes + 1), desc="matching the ensemble", unit="change", disable=not progress):
        found = torch.stack([_waves(model, frames).mean(0) for frames in islice(run, ROUNDS)]).mean(0)
        change = change + 2 / (k + 4) * (inverse @ (found - wanted - ridge * change))
        model.set_series(before + change.view(before.shape).to(before), model.torsion_slopes)


@torch.no_grad()
def own_frames(model: SchNet, start: Tensor, seed: int) -> Iterator[Tensor]:
    """Frames [replicas, atoms, 3] of the model's density at its smallest noise level, without end, from ``start`` on.

    Each time every bond that turns does so by any angle, by a Metropolis move, and BAOAB goes ``STEPS`` steps, with
    equal masses, in units where kT0 and they are 1.  Barriers are no obstacle to that, and no bias has to be taken out.
    What is outside the support of the training set is rejected.

    Args:
        model: its series may be changed between frames; what follows is of the new ones.
        start: snapshots [replicas, atoms, 3] nm, to which the noise is added here.
        seed: of noise, velocities and turns.

    Raises:
        NonFiniteError: every replica is outside after a round.
    """
    evaluate, device = Evaluator(model), model.torsion_series.device
    support = Support(model.support, model.n_atoms, evaluate.noise_level, device=device)
    bonds, generator = rotatable_bonds(model.molecule), torch.Generator().manual_seed(seed)
    x = (start + model.noise_level * torch.randn(start.shape, generator=generator)).to(device)
    one = torch.ones(1, dtype=torch.float64, device=device)
    time_step = math.sqrt(STEP_NUMBER / estimate_curvature(model, start))
    baoab = Baoab(one * time_step**2 / FRICTION, seed, one.expand(model.n_atoms).contiguous(), 1.0, time_step)
    part = Part(x, 0, 0, baoab.draw_velocities(x, 0, one), torch.zeros(len(x), dtype=torch.int64))
    for first_step in count(0, STEPS):
        _turn(model, support, part.positions, bonds, generator)
        before = part.positions.clone()
        part.energy, part.score = evaluate(part.positions)
        for step in range(first_step, first_step + STEPS):
            baoab.move(part, evaluate, step, one)
            baoab.finish(part, *evaluate(part.positions), step, one)
        outside = ~support.inside(part.positions, part.energy)
        if outside.all():
            raise NonFiniteError(f"model: all {len(x)} replicas of its own run left the support of the training set "
                                 f"within {STEPS} steps; lower learning_rate or train longer")
        part.positions[outside], part.velocities[outside] = before[outside], 0.0
        part.positions -= part.positions.mean(1, keepdim=True)
        yield part.positions.clone()


def _turn(model: SchNet, support: Support, x: Tensor, bonds: list, generator: torch.Generator) -> None:
    """A Metropolis move of every replica [replicas, atoms, 3] about every bond, in place."""
    energy = model.energy(x)
    for b, c, side in bonds:
        angle, chance = torch.rand(2, len(x), generator=generator).to(x)
        y = x.clone()
        y[:, side] = turned_side(x, b, c, side, (2 * math.pi * angle).cos(), (2 * math.pi * angle).sin())
        turned = model.energy(y)
        accepted = (chance.log() < energy - turned) & support.inside(y, turned)
        x[accepted], energy[accepted] = y[accepted], turned[accepted]


def _waves(model: SchNet, frames: Tensor) -> Tensor:
    """F of every torsion type [frames, types * harmonics * 2], float64."""
    return torsion_waves(model, frames, list(range(len(model.torsion_table)))).double()


def _moments(model: SchNet, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean [waves] and covariance [waves, waves] of F over the snapshots with the model's smallest noise."""
    mean = square = 0.0
    for part in positions.split(CHUNK):
        noised = part + model.noise_level * torch.randn(part.shape, generator=generator)
        waves = _waves(model, noised.to(model.torsion_series.device))
        mean, square = mean + waves.sum(0) / len(positions), square + waves.T @ waves / len(positions)
    return mean, square - torch.outer(mean, mean)
