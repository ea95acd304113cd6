"""Populations of a learned energy's (phi, psi) basins, in minutes: dynamics with barriers lowered, then reweighted.

Alanine dipeptide leaves phi > 0 once in many nanoseconds, so a plain run of affordable length shows the populations
that it was started with, whatever the model.  Here the run is made with E + V(phi) + V(psi), V the fixed Fourier bias
that the reference frames were made with (../shared/data/make/ala2_bias.json), from frames of every basin, and each
saved frame counts with exp(+V/kT): an exact reweighting, with errors from a jackknife over replicas.

    result = run_under_bias(model, snapshots, data)
    print(result.free_energy_error, result.standard_error)      # kT, for left-handed, alphaR, beta/PPII
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmd_fast.analysis import dihedral_angles, jensen_shannon, ramachandran_basin
from diffmd_fast.io import Snapshots
from diffmd_fast.ops import torsions
from diffmd_fast.sampling import Sampler, Spring
from diffmd_fast.sampling.spring import MOLAR_GAS_CONSTANT
from diffmd_fast.sampling.stability import estimate_curvature

# ../shared/data/README.md: reweighted raw frames of all 20 runs, with jackknife errors over the runs.
POPULATIONS = {"phi > 0": (0.0207, 0.0008), "alpha R": (0.407, 0.009), "beta / PPII": (0.572, 0.008)}
MASS = 12.0  # Da, of every atom: populations do not depend on it
FRICTION = 0.01  # times the time step
EQUILIBRATION = 10  # the first tenth of the frames is left out


class Biased(torch.nn.Module):
    """A model's energy plus V(phi) + V(psi), for the sampler."""

    def __init__(self, model: Any, quadruples: np.ndarray, bias: dict[str, list[float]]):
        super().__init__()
        self.model = model
        for name in ("n_atoms", "temperature", "noise_level", "noise_levels", "molecule"):
            setattr(self, name, getattr(model, name))
        self.quadruples = torch.as_tensor(np.ascontiguousarray(quadruples), dtype=torch.int64)
        coefficients = np.array([bias["phi"], bias["psi"]]) / (MOLAR_GAS_CONSTANT * model.temperature)
        self.coefficients = torch.tensor(coefficients, dtype=torch.float32)

    def bias(self, positions: Tensor) -> Tensor:
        """V(phi) + V(psi) in kT0 [replicas], from positions [replicas, atoms, 3] nm."""
        sine_cosine = torsions(positions, self.quadruples)
        angle = torch.atan2(sine_cosine[..., 0], sine_cosine[..., 1])
        multiple = angle[..., None] * torch.arange(1, self.coefficients.shape[1] // 2 + 1)
        return (torch.cat([multiple.cos(), multiple.sin()], -1) * self.coefficients).sum((1, 2))

    def energy_and_score(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.model.energy_and_score(positions)
        with torch.enable_grad():
            x = positions.detach().requires_grad_()
            added = self.bias(x)
            (gradient,) = torch.autograd.grad(added.sum(), x)
        return energy + added.detach(), score - gradient

    def score(self, positions: Tensor) -> Tensor:
        return self.energy_and_score(positions)[1]


@dataclass(frozen=True)
class BiasedRun:
    """populations, free_energy_error (kT, against POPULATIONS), standard_error (kT): of the three basins.

    histogram: reweighted, on the reference's bins.  divergence: from the reference histogram, nats.
    crossings: of the boundary of the left-handed basin, in all replicas.  lost: replicas.
    """

    populations: np.ndarray
    free_energy_error: np.ndarray
    standard_error: np.ndarray
    histogram: np.ndarray
    divergence: float
    crossings: int
    lost: int


def run_under_bias(model: Any, snapshots: Snapshots, data: str | Path, *, n_replicas: int = 256, n_steps: int = 20_000,
                   number: float = 0.7, save_every: int = 100, seed: int = 3, progress: bool = True) -> BiasedRun:
    """Run ``model`` under the bias of the reference data and reweight.

    BAOAB with equal masses, which crosses six times as often as Leimkuhler-Matthews in as many steps (all atoms), and
    whose averages are exact in harmonic wells; ``number`` is dt^2 L kT0/m, and friction takes 1% of a velocity in a
    step.
    """
    data = Path(data)
    found = snapshots.molecule.find_dihedrals()
    quadruples = np.array([found["phi"], found["psi"]])
    biased = Biased(model, quadruples, json.loads((data / "make" / "ala2_bias.json").read_text()))
    start = torch.as_tensor(snapshots.positions) - torch.as_tensor(snapshots.positions).mean(1, keepdim=True)
    log_weight = -_bias(biased, snapshots.positions)
    weight = np.exp(log_weight - log_weight.max())
    chosen = np.random.default_rng(seed).choice(len(weight), n_replicas, p=weight / weight.sum())
    start = start[chosen]
    speed = MOLAR_GAS_CONSTANT * model.temperature / MASS  # kT0/m, nm^2/ps^2
    time_step = (number / (speed * estimate_curvature(model, start))) ** 0.5
    sampler = Sampler(biased, Spring.from_time_step(time_step, speed * time_step / FRICTION), seed=seed,
                      integrator="baoab", masses=MASS)
    trajectory = sampler.run(start, n_steps, save_every, progress=progress)
    kept = trajectory.positions[len(trajectory.positions) // EQUILIBRATION :]
    kept = kept[:, np.isfinite(kept).all(axis=(0, 2, 3))].swapaxes(0, 1)  # [replicas, frames, atoms, 3]
    return _reweighted(biased, kept, quadruples, np.load(data / "ala2_reference_rama.npz"), len(trajectory.lost))


@torch.no_grad()
def _bias(biased: Biased, positions: np.ndarray) -> np.ndarray:
    return biased.bias(torch.as_tensor(positions)).double().numpy()


def _reweighted(biased: Biased, frames: np.ndarray, quadruples: np.ndarray, reference: Any, lost: int) -> BiasedRun:
    angles = np.stack([dihedral_angles(replica, quadruples) for replica in frames])
    bias = np.stack([_bias(biased, replica) for replica in frames])
    weight = np.exp(bias - bias.max())
    basin = np.stack([ramachandran_basin(replica) for replica in angles])
    inside = np.stack([(weight * (basin == k)).sum(1) for k in range(3)])  # [basin, replica]
    total, n = weight.sum(1), len(weight)
    populations = inside.sum(1) / total.sum()
    without = (inside.sum(1, keepdims=True) - inside) / (total.sum() - total)
    error = np.sqrt((n - 1) / n * ((without - without.mean(1, keepdims=True)) ** 2).sum(1))
    histogram = np.histogram2d(*np.degrees(angles.reshape(-1, 2).T), bins=[reference["edges_deg"]] * 2,
                               weights=weight.ravel())[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        free_energy_error = -np.log(populations / [p for p, _ in POPULATIONS.values()])
        standard_error = error / populations
    crossings = int(np.diff((basin == 0).astype(int), axis=1).astype(bool).sum())
    return BiasedRun(populations, free_energy_error, standard_error, histogram,
                     jensen_shannon(histogram, reference["probability"]), crossings, lost)
