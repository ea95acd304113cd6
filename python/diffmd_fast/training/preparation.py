"""What is read off the snapshots before training: springs, bends, series, spread, support; and the model to train."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError, require
from ..io import Molecule
from ..models import SchNet
from ..models.topology import planes_of
from ..models.torsion_series import torsion_series
from .bonded_fit import fit_bonded

LONG_BOND = 1.0  # nm; beyond it units or periodic images are to be suspected
SERIES_BINS = 144  # of a turn
EMPTY_BIN = 0.05  # frames that a bin has without any


def centred(positions: Tensor) -> Tensor:
    """Frames [frames, atoms, 3] with their centre at the origin, which keeps float32 numbers small."""
    return positions - positions.mean(1, keepdim=True)


def stiff_pairs(molecule: Molecule) -> list[list[int]]:
    """Bonded pairs and the ends of every angle, each once, sorted."""
    pairs = {tuple(sorted(bond)) for bond in molecule.bonds}
    pairs |= {tuple(sorted((a, c))) for a, _, c in molecule.angles()}
    return [list(pair) for pair in sorted(pairs)]


def distances(positions: Tensor, pairs: list[list[int]]) -> Tensor:
    """[frames, pairs] in nm."""
    i, j = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return torch.linalg.vector_norm(positions[:, i] - positions[:, j], dim=-1)


def check_bonds(positions: Tensor, molecule: Molecule) -> None:
    """Refuse bonded atoms in one place; warn of bonds so long that they look like Angstrom or a torn molecule."""
    if not molecule.bonds:
        return
    r = distances(positions, [list(bond) for bond in molecule.bonds])
    frame, bond = divmod(int(r.argmin()), r.shape[1])
    require(r[frame, bond].item() > 0, "snapshots", "bonded atoms apart from each other",
            f"0 nm between atoms {molecule.bonds[bond][0]} and {molecule.bonds[bond][1]} in frame {frame}")
    frame, bond = divmod(int(r.argmax()), r.shape[1])
    if r[frame, bond] > LONG_BOND:
        i, j = molecule.bonds[bond]
        warnings.warn(f"atoms {i} and {j} are bonded and {r[frame, bond]:.3g} nm apart in frame {frame}: are the "
                      "positions in nm, and the molecules whole where they cross the edge of a periodic box?",
                      stacklevel=3)


def fit_torsion_series(model: SchNet, positions: Tensor) -> Tensor:
    """Fourier series [torsion types, harmonics, (sin, cos)] of -log of the torsions' histograms, in kT0.

    The likeliest for the frames of each bin; every bin has a little more, so no frames are a barrier of finite height.
    Torsions about one bond turn together: each takes its share of the energy.  Planes stand for themselves.
    """
    centres = 2 * torch.pi * ((torch.arange(SERIES_BINS, dtype=torch.float64) + 0.5) / SERIES_BINS - 0.5)
    orders = torch.arange(1, model.n_harmonics + 1, dtype=torch.float64)
    phase = centres[:, None] * orders
    design = torch.cat([torch.ones_like(centres)[:, None], phase.sin(), phase.cos()], 1)
    counts = torch.zeros(len(model.torsion_table), SERIES_BINS, dtype=torch.float64)
    shares, planes = torch.zeros(len(counts), dtype=torch.float64), planes_of(model.bonds)
    together = Counter(frozenset(atoms[1:3]) for atoms in model.torsions if atoms not in planes)
    for atoms, kind in zip(model.torsions, model.torsion_index):
        sine, cosine = ops.torsions(positions, torch.tensor([atoms]))[:, 0].unbind(-1)
        counts[kind] += torch.histc(torch.atan2(sine, cosine), SERIES_BINS, -torch.pi, torch.pi).double()
        shares[kind] += 1 if atoms in planes else 1 / together[frozenset(atoms[1:3])]
    shares /= torch.bincount(model.torsion_index, minlength=len(counts)).clamp_min(1)
    series = _log_likeliest(counts + EMPTY_BIN, design)
    return (-series * shares[:, None]).view(-1, 2, model.n_harmonics).mT.to(positions.dtype)


def _log_likeliest(counts: Tensor, design: Tensor) -> Tensor:
    """Coefficients, without the constant, of the log density that makes counts [types, bins] likeliest (Poisson).

    Newton's method from the least squares of log counts.  Those alone weigh a bin by the frames that happened to be
    there, which made barriers of few frames 0.1 kT0 too low.
    """
    ridge = 1e-5 * counts.sum(1)[:, None] * torch.ones(design.shape[1], dtype=torch.float64)
    ridge[:, 0] = 0

    def solve(weights: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.solve((design.T * weights[:, None, :]) @ design + torch.diag_embed(ridge), right)

    theta = solve(counts, (counts * counts.log()) @ design)
    for _ in range(50):
        expected = (theta @ design.T).exp()
        step = solve(expected, (counts - expected) @ design - ridge * theta)
        # by no more than a factor e^2 at once: where too few are expected a whole step goes much too far
        theta = theta + step * (2 / (step @ design.T).abs().amax(1, keepdim=True).clamp_min(2))
    return theta[:, 1:]


def measure_slopes(model: SchNet, positions: Tensor, n_frames: int = 1024) -> list[float]:
    """Mean of |grad phi|^2 in 1/nm^2 of each torsion type, over about so many frames."""
    some = positions[:: max(1, len(positions) // n_frames)].double()
    slopes = torch.zeros(len(model.torsion_table), dtype=torch.float64)
    for atoms, kind in zip(model.torsions, model.torsion_index):
        x = some[:, atoms].requires_grad_()
        angle = torch.atan2(*ops.torsions(x, torch.arange(4)[None])[:, 0].unbind(-1))
        slopes[kind] += torch.autograd.grad(angle.sum(), x)[0].square().sum((1, 2)).mean()
    return (slopes / torch.bincount(model.torsion_index, minlength=len(slopes)).clamp_min(1)).tolist()


def series_gradient(model: SchNet, positions: Tensor) -> Tensor:
    """Gradient [frames, atoms, 3] in kT0/nm of the series as fitted, at the smallest noise level, in float64."""
    x = positions.detach().double().requires_grad_()
    coefficients = model._series(x.new_tensor([model.noise_level]))[0, model.torsion_index]
    energy = torsion_series(ops.torsions(x, model.quadruples), coefficients)[0]
    return torch.autograd.grad(energy.sum(), x)[0]


def measure_support(model: SchNet, positions: Tensor, n_frames: int = 4096) -> dict[str, Any]:
    """Ranges of the stiff distances (nm) over all frames, and of the energy (kT0) over frames at the model's noise.

    A run is checked against these: a replica far outside has left what the model was trained on.
    """
    pairs = stiff_pairs(model.molecule) if model.molecule is not None else []
    r = distances(positions, pairs)
    generator = torch.Generator().manual_seed(0)
    some = positions[torch.randperm(len(positions), generator=generator)[:n_frames]]
    noised = some + model.noise_level * torch.randn(some.shape, generator=generator)
    device = next(model.parameters()).device
    with torch.no_grad():
        energy = torch.cat([model.energy(part.to(device)).cpu() for part in noised.split(256)]).double()
    return {"pairs": pairs, "lowest": r.amin(0).tolist(), "highest": r.amax(0).tolist(),
            "energy": [energy.min().item(), energy.max().item()],
            "energy_mean": energy.mean().item(), "energy_standard_deviation": energy.std().item(),
            "n_frames": len(positions)}


def prepare_model(positions: Tensor, molecule: Molecule, temperature: float, *, n_features: int, n_blocks: int,
                  cutoff: float, noise_levels: tuple[float, float], torsion_fade: float = 0.02,
                  n_harmonics: int = 0) -> SchNet:
    """A SchNet for this molecule; springs, bends, spread and series are fitted to frames [frames, atoms, 3] nm."""
    require(len(positions) >= 2, "snapshots", "at least 2 frames", len(positions))
    if molecule.n_atoms != positions.shape[1]:
        raise InputError(f"topology: expected {positions.shape[1]} atoms as in the snapshots, got {molecule.n_atoms}")
    x = centred(positions)
    spread = x.square().sum((1, 2)).mean().item() / (3 * x.shape[1])
    model = SchNet(molecule.n_atoms, n_features=n_features, n_blocks=n_blocks, cutoff=cutoff,
                   bonds=[list(bond) for bond in molecule.bonds], noise_levels=noise_levels,
                   torsion_fade=torsion_fade, n_harmonics=n_harmonics, spread=max(spread, 1e-6),
                   temperature=temperature)
    model.molecule = molecule
    known = None
    if model.torsion_series is not None:
        model.set_series(fit_torsion_series(model, x), measure_slopes(model, x))
        known = partial(series_gradient, model)
    model.set_stiff(*fit_bonded(x, molecule, noise_levels[0], known))
    return model
