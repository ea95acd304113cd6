"""Springs and bends read off the snapshots: a harmonic force field fitted to all of them together, without forces.

The stiffness of a coordinate is not one over its variance where others pull on the same atoms: three angles about one
flat centre share the stiffness of each.  Score matching finds what each pulls: with E = sum_k theta_k f_k, the mean of
|grad E|^2 / 2 - lap E is least where A theta = b, A_kl = <grad f_k . grad f_l> and b_k = <lap f_k> (Hyvaerinen, J.
Mach. Learn. Res. 6, 695, 2005).  Here f = z^2/2, z a distance or cosine in its standard deviations from its mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..io import Molecule
from ..models.bonded import bend_cosines, bend_weight

STIFF = 0.02, 0.2  # of a bond in nm, of a cosine: what fluctuates more is left to the network
SOFTEST = 0.05  # stiffness times variance; what the rest of the molecule holds needs no spring
N_SAMPLES = 4096  # frames with noise, at least
AT_ONCE = 2**18  # coordinates of frames worked on together: 19 MB of gradients
RIDGE = 1e-4  # of the diagonal: angles that follow from each other, as the six about one centre, share what they hold


def fit_bonded(positions: Tensor, molecule: Molecule, noise_level: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Springs and bends (:class:`diffmd_fast.SchNet`) of frames [frames, atoms, 3] nm; the noise level is in nm.

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
    normal, right = coordinates.normal_equations(frames, mean, deviation)
    keep = deviation < torch.tensor(STIFF, dtype=torch.float64).repeat_interleave(coordinates.counts)
    while True:
        stiffness = _solve(normal, right, keep)
        soft = keep & (stiffness < SOFTEST)
        if not bool(soft.any()):
            break
        keep &= ~soft
    n_pairs, noise = len(coordinates.pairs), noise_level**2 * slope
    weight = torch.ones_like(slope)
    weight[n_pairs:] = bend_weight(noise_level**2)
    variance = torch.maximum(weight * deviation**2 / stiffness - noise, 0.1 * noise)
    springs, bends = (kept.nonzero()[:, 0] for kept in keep.split(coordinates.counts.tolist()))
    pairs, triples = coordinates.pairs[springs].tolist(), coordinates.triples[bends].tolist()
    ends = sorted({(a, c) for a, _, c in triples if [a, c] not in pairs})
    apart = torch.stack([torch.linalg.vector_norm(positions[:, a] - positions[:, c], dim=-1).double() for a, c in ends],
                        1) if ends else positions.new_zeros(len(positions), 0, dtype=torch.float64)
    return ({"pairs": pairs + [list(each) for each in ends], "mean": mean[springs].tolist() + apart.mean(0).tolist(),
             "variance": variance[springs].tolist() + apart.var(0).clamp_min(1e-8).tolist()},
            {"triples": triples, "mean": mean[n_pairs + bends].tolist(),
             "variance": variance[n_pairs + bends].tolist(), "slope": slope[n_pairs + bends].tolist()})


def _solve(normal: Tensor, right: Tensor, keep: Tensor) -> Tensor:
    """Stiffness of the coordinates kept, in one over their variances; 1 for the others."""
    (rows,) = keep.nonzero(as_tuple=True)
    scale = normal.diagonal()[rows].rsqrt()
    a = scale[:, None] * normal[rows[:, None], rows] * scale + RIDGE * torch.eye(len(rows), dtype=scale.dtype)
    result = torch.ones_like(right)
    result[rows] = scale * torch.linalg.solve(a, scale * right[rows])
    return result


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
        apart = x[:, self.pairs[:, 0]] - x[:, self.pairs[:, 1]]
        r = torch.linalg.vector_norm(apart, dim=-1)
        along = apart / r[..., None]
        cosine, by_a, by_c = bend_cosines(x, self.triples)
        a, centre, c = self.triples.unbind(1)
        over_u, over_v = (1 / torch.linalg.vector_norm(x[:, end] - x[:, centre], dim=-1) for end in (a, c))
        curved = -4 * cosine * (over_u**2 + over_v**2) + 2 * (1 + cosine**2) * over_u * over_v
        gradients = torch.cat([torch.stack([along, -along, torch.zeros_like(along)], 2),
                               torch.stack([by_a, -by_a - by_c, by_c], 2)], 1)
        return torch.cat([r, cosine], 1), gradients, torch.cat([4 / r, curved], 1)

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of each value, and the mean of its gradient's square [n]."""
        parts = [(values, gradients.square().sum((2, 3)))
                 for values, gradients, _ in map(self, frames.split(self.n_frames))]
        values, squares = (torch.cat(each) for each in zip(*parts))
        return values.mean(0), values.std(0), squares.mean(0)

    def normal_equations(self, frames: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """A [n, n] and b [n] for z^2/2 of all coordinates."""
        n = len(mean)
        normal, right = (torch.zeros(shape, dtype=torch.float64) for shape in ((n, n), (n,)))
        for x in frames.split(self.n_frames):
            values, gradients, laplacians = self(x)
            z, gradients = (values - mean) / deviation, gradients / deviation[:, None, None]
            right += (gradients.square().sum((2, 3)) + z * laplacians / deviation).sum(0)
            slopes = z[:, :, None, None] * gradients
            for k, slot in self.of_atom:  # coordinates that share no atom share nothing
                g = slopes[:, k, slot].transpose(1, 2).reshape(-1, len(k))
                normal[k[:, None], k] += g.T @ g
        return normal / len(frames), right / len(frames)
