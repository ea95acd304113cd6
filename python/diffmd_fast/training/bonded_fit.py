"""Springs and bends read off the snapshots: a harmonic force field fitted to all of them together, without forces.

The stiffness of a coordinate is not one over its variance where others pull on the same atoms: three angles about one
flat centre share the stiffness of each, and the planes and torsions that the energy has already pull, too.  Nor is its
rest at its mean, where others push it.  Score matching finds what each pulls: with E = E0 + sum_k theta_k f_k, the mean
of |grad E|^2 / 2 - lap E is least where A theta = b, A_kl = <grad f_k . grad f_l> and b_k = <lap f_k - grad f_k . grad
E0> (Hyvaerinen, J. Mach. Learn. Res. 6, 695, 2005).  Here f = z^2/2 and z, z a distance or cosine in its standard
deviations from its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..io import Molecule
from ..models.bonded import bend_weight
from .coordinates import cosines, distances

STIFF = 0.02, 0.2  # of a bond in nm, of a cosine: what fluctuates more is left to the network
SOFTEST = 0.05  # stiffness times variance; what the rest of the molecule holds needs no spring
STRAINED = 3.0  # standard deviations; no rest is further from the mean
N_SAMPLES = 4096  # frames with noise, at least
AT_ONCE = 2**18  # coordinates of frames worked on together: 19 MB of gradients
RIDGE = 1e-4  # of the diagonal: angles that follow from each other, as the six about one centre, share what they hold


def fit_bonded(positions: Tensor, molecule: Molecule, noise_level: float,
               known: Callable[[Tensor], Tensor] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Springs and bends (:class:`diffmd_fast.SchNet`) of frames [frames, atoms, 3] nm; the noise level is in nm.

    ``known`` gives the gradient [frames, atoms, 3] in kT0/nm of what the energy has already, at float64 frames.

    Bonds and bends are fitted to frames with the smallest noise, in which a run moves; then its variance is taken out
    again.  Springs between the ends of the bends' angles, for larger noise, have the variance of the frames.
    """
    if not molecule.bonds:
        return ({"pairs": [], "mean": [], "variance": []}, {"triples": [], "mean": [], "variance": [], "slope": []})
    coordinates = _Coordinates(sorted(sorted(bond) for bond in molecule.bonds),
                               [list(angle) for angle in molecule.angles()], molecule.n_atoms)
    generator = torch.Generator().manual_seed(0)
    frames = positions.repeat(-(-N_SAMPLES // len(positions)), 1, 1).double()
    frames = frames + noise_level * torch.randn(frames.shape, generator=generator, dtype=torch.float64)
    mean, deviation, slope = coordinates.moments(frames)
    normal, right = coordinates.normal_equations(frames, mean, deviation, known)
    keep = deviation < torch.tensor(STIFF, dtype=torch.float64).repeat_interleave(coordinates.counts)
    while True:
        stiffness, tension = _solve(normal, right, keep)
        soft = keep & (stiffness < SOFTEST)
        if not bool(soft.any()):
            break
        keep &= ~soft
    rest = mean - deviation * (tension / stiffness).clamp(-STRAINED, STRAINED)
    n_pairs, noise = len(coordinates.pairs), noise_level**2 * slope
    weight = torch.ones_like(slope)
    weight[n_pairs:] = bend_weight(noise_level**2)
    variance = torch.maximum(weight * deviation**2 / stiffness - noise, 0.1 * noise)
    springs, bends = (kept.nonzero()[:, 0] for kept in keep.split(coordinates.counts.tolist()))
    pairs, triples = coordinates.pairs[springs].tolist(), coordinates.triples[bends].tolist()
    ends = sorted({(a, c) for a, _, c in triples if [a, c] not in pairs})
    apart = torch.stack([torch.linalg.vector_norm(positions[:, a] - positions[:, c], dim=-1).double() for a, c in ends],
                        1) if ends else positions.new_zeros(len(positions), 0, dtype=torch.float64)
    return ({"pairs": pairs + [list(each) for each in ends], "mean": rest[springs].tolist() + apart.mean(0).tolist(),
             "variance": variance[springs].tolist() + apart.var(0).clamp_min(1e-8).tolist()},
            {"triples": triples, "mean": rest[n_pairs + bends].tolist(),
             "variance": variance[n_pairs + bends].tolist(), "slope": slope[n_pairs + bends].tolist()})


def _solve(normal: Tensor, right: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of z^2/2 and z of the coordinates kept; 1 and 0 for the others."""
    (rows,) = keep.repeat(2).nonzero(as_tuple=True)
    scale = normal.diagonal()[rows].rsqrt()
    a = scale[:, None] * normal[rows[:, None], rows] * scale + RIDGE * torch.eye(len(rows), dtype=scale.dtype)
    result = torch.cat([torch.ones_like(keep, dtype=right.dtype), torch.zeros_like(keep, dtype=right.dtype)])
    result[rows] = scale * torch.linalg.solve(a, scale * right[rows])
    return result[: len(keep)], result[len(keep) :]


class _Coordinates:
    """Bonds and cosines of a molecule, with their gradients by each atom they depend on."""

    def __init__(self, pairs: list[list[int]], triples: list[list[int]], n_atoms: int):
        self.pairs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        self.triples = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3)
        self.counts = torch.tensor([len(pairs), len(triples)])
        places: list[list[tuple[int, int]]] = [[] for _ in range(n_atoms)]
        for k, atoms in enumerate(pairs + triples):
            for slot, atom in enumerate(atoms):
                places[atom].append((k, slot))
        self.n_frames = max(1, AT_ONCE // max(1, len(pairs) + len(triples)))  # at once
        # where each atom occurs: coordinates, and which of their atoms it is
        self.of_atom = [torch.tensor(each, dtype=torch.int64).reshape(-1, 2).unbind(1) for each in places]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [frames, n], gradients by the atoms of each [frames, n, 3, 3] (bonds have no third), Laplacians."""
        (r, along, bent_r), bends = distances(x, self.pairs), cosines(x, self.triples)
        along = nn.functional.pad(along, (0, 0, 0, 1))
        return (torch.cat([r, bends.values], 1), torch.cat([along, bends.gradients], 1),
                torch.cat([bent_r, bends.laplacians], 1))

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of each value, and the mean of its gradient's square [n]."""
        parts = [(values, gradients.square().sum((2, 3)))
                 for values, gradients, _ in map(self, frames.split(self.n_frames))]
        values, squares = (torch.cat(each) for each in zip(*parts))
        return values.mean(0), values.std(0), squares.mean(0)

    def normal_equations(self, frames: Tensor, mean: Tensor, deviation: Tensor,
                         known: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
        """A [2n, 2n] and b [2n] for z^2/2 of all coordinates, then for z."""
        n = len(mean)
        normal, right = (torch.zeros(shape, dtype=torch.float64) for shape in ((2 * n, 2 * n), (2 * n,)))
        for x in frames.split(self.n_frames):
            values, gradients, laplacians = self(x)
            z, gradients = (values - mean) / deviation, gradients / deviation[:, None, None]
            laplacians = laplacians / deviation
            right += torch.cat([(gradients.square().sum((2, 3)) + z * laplacians).sum(0), laplacians.sum(0)])
            slopes = torch.cat([z[:, :, None, None] * gradients, gradients], 1)
            pull = None if known is None else known(x)
            for atom, (k, slot) in enumerate(self.of_atom):  # coordinates that share no atom share nothing
                k, slot = torch.cat([k, n + k]), slot.repeat(2)
                g = slopes[:, k, slot]
                flat = g.transpose(1, 2).reshape(-1, len(k))
                normal[k[:, None], k] += flat.T @ flat
                if pull is not None:
                    # an angle names each of its atoms once, so no k comes twice
                    right[k] -= torch.einsum("fki,fi->k", g, pull[:, atom])
        return normal / len(frames), right / len(frames)
