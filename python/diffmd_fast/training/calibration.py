"""Barriers after training: the torsion series once more, by turns about bonds, with the network as it is.

Frames hardly visit a barrier, so the network's own share of it is what training happened to leave there, some tenths of
kT0; rates go like the mean of exp(-E) over it.  The series can make up for it: let F be the sines and cosines of
their torsions' multiples, then turning a frame x about a bond to y changes the energy by E(y) - E(x) + c (F(y) - F(x)),
which is linear in the change c of the coefficients, and

    sum over frames and turns of -log sigmoid(E(y) - E(x) + c (F(y) - F(x))) + |c|^2 / (2 SPREAD^2)

(contrast.py) is convex.  Without the last term, at its minimum the frames have the mean F that they would have if each
of them were drawn anew by the model's energies, from itself and its turn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from .. import ops
from ..errors import NonFiniteError
from ..models import SchNet
from ..models.turns import rotatable_bonds, turned_side

TURNS = 4  # of a frame about each bond, evenly spaced from a random angle
MOST_PAIRS = 2**20  # of a frame and its turn, over all bonds
MOST_NUMBERS = 2**26  # kept of bonds that go together, a quarter of a GiB
SPREAD = 0.3  # kT0, how far a coefficient is expected to move: what no turn tells stays as it is
CHUNK = 2**16  # atoms whose energies are worked out at once


def calibrate_series(model: SchNet, positions: Tensor, n_pairs: int = MOST_PAIRS, seed: int = 0,
                     progress: bool = False) -> float:
    """Change the series of those torsions that turns about bonds change, by their contrast at the smallest noise level.

    Args:
        model: trained; its ``torsion_series`` is changed in place, on the device where it is.
        positions: frames [frames, atoms, 3] nm that it was trained on.
        n_pairs: of a frame and its turn, at most, over all bonds (one frame at least).
        seed: of frames, noise and angles.
        progress: show a bar.

    Returns:
        The largest change of a coefficient in kT0; 0 without series or bonds that turn.

    Raises:
        NonFiniteError: the energy of a turned frame is not finite.
    """
    groups = _groups(model) if model.n_harmonics else []
    n_bonds = sum(len(bonds) for bonds, _ in groups)
    generator = torch.Generator().manual_seed(seed)
    changes = torch.zeros(len(model.torsion_table), model.n_harmonics, 2, dtype=torch.float64)
    with tqdm(total=n_bonds, unit="bond", desc="calibrating barriers", disable=not (progress and groups)) as bar:
        for bonds, kinds in groups:
            width = TURNS * len(bonds) * len(kinds) * 2 * model.n_harmonics
            n_frames = max(1, min(n_pairs // (TURNS * n_bonds), MOST_NUMBERS // width))
            frames = positions[torch.randperm(len(positions), generator=generator)[:n_frames]]
            pairs = []
            for bond in bonds:
                pairs += _pairs(model, frames, bond, kinds, generator)
                bar.update()
            change = _likeliest(*(torch.cat(part) for part in zip(*pairs)))
            changes[kinds] = change.cpu().view(len(kinds), model.n_harmonics, 2)
    if groups:
        model.set_series(model.torsion_series + changes.to(model.torsion_series), model.torsion_slopes)
    return changes.abs().max().item() if groups else 0.0


def _groups(model: SchNet) -> list[tuple[list, list[int]]]:
    """Bonds that turn with the torsion types that change by it; no type is in two groups."""
    groups: list[tuple[list, list[int]]] = []
    everything = set(range(model.n_atoms))
    for b, c, side in rotatable_bonds(model.molecule):
        near, far = everything - set(side), {b, c, *side}  # what stays as it is, and what turns as one
        kinds = {int(kind) for atoms, kind in zip(model.torsions, model.torsion_index)
                 if not near.issuperset(atoms) and not far.issuperset(atoms)}
        bonds = [(b, c, side)]
        for group in [group for group in groups if not kinds.isdisjoint(group[1])]:
            groups.remove(group)
            bonds, kinds = group[0] + bonds, kinds.union(group[1])
        if kinds:
            groups.append((bonds, sorted(kinds)))
    return groups


def _pairs(model: SchNet, positions: Tensor, bond: tuple[int, int, list[int]], kinds: list[int],
           generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """E(y) - E(x) in kT0 [frames] and F(y) - F(x) [frames, features], for noised frames x and their turns y about the
    bond, by parts."""
    (b, c, side), device, pairs = bond, model.torsion_series.device, []
    for part in positions.split(max(1, CHUNK // model.n_atoms)):
        x = part + model.noise_level * torch.randn(part.shape, generator=generator)
        angles = 2 * math.pi / TURNS * (torch.rand(len(x), generator=generator) + torch.arange(TURNS)[:, None])
        x, angles = x.to(device), angles.to(device)
        with torch.no_grad():
            energy, features = model.energy(x).double(), torsion_waves(model, x, kinds)
            for angle in angles:
                y = x.clone()
                y[:, side] = turned_side(x, b, c, side, angle.cos(), angle.sin())
                difference = model.energy(y).double() - energy
                if not difference.isfinite().all():
                    raise NonFiniteError(f"model: the energy of a frame turned about the bond of atoms {b} and {c} is "
                                         "not finite; lower learning_rate")
                pairs.append((difference, torsion_waves(model, y, kinds) - features))
    return pairs


def torsion_waves(model: SchNet, x: Tensor, kinds: list[int]) -> Tensor:
    """What the coefficients of these torsion types are multiplied by in E [frames, types * harmonics * 2]."""
    known = torch.tensor(kinds, device=x.device)
    rows = torch.isin(model.torsion_index, known)
    sine, cosine = ops.torsions(x, model.quadruples[rows]).unbind(-1)
    multiples = torch.atan2(sine, cosine)[..., None] * torch.arange(1, model.n_harmonics + 1, device=x.device)
    waves = torch.stack([multiples.sin(), multiples.cos()], -1)
    place = torch.searchsorted(known, model.torsion_index[rows])
    return waves.new_zeros(len(x), len(kinds), *waves.shape[2:]).index_add(1, place, waves).flatten(1)


def _likeliest(difference: Tensor, features: Tensor) -> Tensor:
    """The c [features] of the least sum above, by Newton's method, from E(y) - E(x) [pairs] and F(y) - F(x)."""
    c = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for _ in range(50):
        slope, curvature = -c / SPREAD**2, torch.eye(len(c)).to(c) / SPREAD**2
        for e, f in zip(difference.split(2**16), features.split(2**16)):
            f = f.double()
            wrong = torch.sigmoid(-(e + f @ c))
            slope, curvature = slope + f.T @ wrong, curvature + f.T @ (f * (wrong * (1 - wrong))[:, None])
        step = torch.linalg.solve(curvature, slope)
        furthest = max((f.double() @ step).abs().max().item() for f in features.split(2**16))
        # by no more than 2 kT0 at once: where the model is sure of what is wrong there is no curvature
        c = c + step * (2 / max(2.0, furthest))
        if furthest < 1e-3:
            break
    return c
