"""What is computed on: molecules, beads and fluids, the same in every run, on the CPU and in float32 unless said."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from diffmd_fast.models import SchNet
from diffmd_fast.models.bonded import bend_cosines

# Alanine dipeptide with its hydrogens: acetyl, alanine, methylamide, each atom beside its parent.
DIPEPTIDE_BONDS = [(0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9), (8, 10), (10, 11), (10, 12),
                   (10, 13), (8, 14), (14, 15), (14, 16), (16, 17), (16, 18), (18, 19), (18, 20), (18, 21)]


def tree(bonds: list[tuple[int, int]], length: float = 0.15, apart: float = 0.13, seed: int = 7) -> Tensor:
    """One place for each atom of a tree of bonds (parent first), [atoms, 3] nm; no two atoms nearer than ``apart``."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.zeros(len(bonds) + 1, 3)
    set_already = [bonds[0][0]]
    for parent, child in bonds:
        while True:
            step = torch.randn(3, generator=draw)
            places[child] = places[parent] + length * step / step.norm()
            if all((places[child] - places[other]).norm() > apart for other in set_already):
                break
        set_already.append(child)
    return places


def replicas(places: Tensor, n: int, width: float = 0.002, seed: int = 11) -> Tensor:
    """[n, atoms, 3] nm: each replica a little elsewhere."""
    return places + width * torch.randn(n, *places.shape, generator=torch.Generator().manual_seed(seed))


def molecule(bonds: list[tuple[int, int]], n_features: int, n_blocks: int, **settings) -> tuple[SchNet, Tensor]:
    """A SchNet of random parameters with springs, bends and torsions on a tree of bonds, and places to start from."""
    places = tree(bonds)
    triples = [(a, b, c) for (a, b), (d, c) in itertools.permutations([*bonds, *(bond[::-1] for bond in bonds)], 2)
               if b == d and a < c]
    pairs = [*bonds, *((a, c) for a, _, c in triples)]
    bends = {"triples": triples, "mean": bend_cosines(places[None], torch.tensor(triples))[0][0].tolist(),
             "variance": [5e-3] * len(triples), "slope": [120.0] * len(triples)}
    springs = {"pairs": pairs, "mean": [(places[i] - places[j]).norm().item() for i, j in pairs],
               "variance": [1e-5] * len(pairs)}
    torch.manual_seed(3)
    model = SchNet(len(places), n_features, n_blocks, bonds=bonds, springs=springs, bends=bends,
                   spread=0.02, n_harmonics=6, **settings)
    with torch.no_grad():
        model.readout_out.normal_()
        model.torsion_series.normal_()
    return model.requires_grad_(False), places


def dipeptide(n_features: int = 64, n_blocks: int = 3) -> tuple[SchNet, Tensor]:
    """22 atoms; the size of the issue's resident rows."""
    return molecule(DIPEPTIDE_BONDS, n_features, n_blocks)


def chain(n_atoms: int, n_features: int, n_blocks: int, **settings) -> tuple[SchNet, Tensor]:
    """A molecule without branches."""
    return molecule([(i, i + 1) for i in range(n_atoms - 1)], n_features, n_blocks, **settings)


def lattice(n_side: int, spacing: float, noise: float, seed: int = 5) -> Tensor:
    """n_side^3 places of a jittered cubic lattice, in random order, [atoms, 3] nm, in a box of n_side * spacing."""
    draw = torch.Generator().manual_seed(seed)
    line = (torch.arange(n_side) + 0.5) * spacing
    places = torch.cartesian_prod(line, line, line)
    places = places[torch.randperm(len(places), generator=draw)]
    return places + noise * torch.randn(places.shape, generator=draw)


def beads(n: int, n_features: int, n_blocks: int, cutoff: float = 1.0) -> tuple[SchNet, Tensor]:
    """A globule of ``n`` beads as dense as a protein of one bead a residue (0.135 nm^3 each), pairs by list."""
    side = next(side for side in itertools.count(1) if side**3 >= n)
    line = torch.arange(side) * 0.513
    # back and forth through the lattice, so that beads that follow each other are neighbors
    places = [(x, y if x % 2 == 0 else side - 1 - y, z if (x * side + y) % 2 == 0 else side - 1 - z)
              for x in range(side) for y in range(side) for z in range(side)]
    places = line[torch.tensor(places[:n])] + 0.02 * torch.randn(n, 3, generator=torch.Generator().manual_seed(13))
    bonds = [(i, i + 1) for i in range(n - 1)]
    springs = {"pairs": bonds, "mean": [(places[i] - places[j]).norm().item() for i, j in bonds],
               "variance": [1e-3] * len(bonds)}
    torch.manual_seed(4)
    model = SchNet(n, n_features, n_blocks, cutoff=cutoff, bonds=bonds, atom_types=[i % 20 for i in range(n)],
                   torsions=(), springs=springs)
    return model.requires_grad_(False), places
