"""Energy differences between conformations: conditional noise-contrastive estimation with moves of whole torsions.

Denoising fixes the slope of the energy where frames are.  Two basins with hardly a frame between them are tied to each
other by slopes that no frame has tested, so their populations can come out wrong by many kT0 while the loss looks
perfect.  Here frames are moved across in one step: turn the far side of a bond by a random angle, or take the mirror
image, and ask the energy which of the two the frame was.  For a move that preserves volume and is as likely as its
inverse, the probability that x and not y = T(x) is the frame is p(x)/(p(x) + p(y)), so

    loss = -log sigmoid(E(y) - E(x))

has its minimum where E is -log p up to a constant (Ceylan and Gutmann, ICML 2018, arXiv 1806.03664, eq. 12, with a
symmetric conditional density).  A turn about a bond leaves every bond length and angle as it is, so y is a fair guess
even where bonds are stiff; it needs no derivative by the positions, and its gradients are bounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..io import Molecule
from ..models.turns import rotatable_bonds, turned_side

MIRROR_SHARE = 0.25  # of the frames; the rest turn about bonds
SECOND_BOND = 0.5  # chance that a second bond turns, too
HYDROGENS_ONLY = 0.25  # how often a bond turns that moves hydrogens only, as a methyl's, where another turns once


class Moves:
    """Volume-preserving random moves of frames of one molecule, as likely as their inverses."""

    def __init__(self, molecule: Molecule):
        self.bonds = rotatable_bonds(molecule)
        self.weights = torch.tensor([HYDROGENS_ONLY if _turns_hydrogens(molecule, b, c) else 1.0
                                     for b, c, _ in self.bonds])

    def __call__(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """Frames [frames, atoms, 3] moved: one or two bonds turned by uniform angles, or the mirror image."""
        n = len(positions)
        kind, second = torch.rand(2, n, generator=generator)
        angle = 2 * math.pi * (torch.rand(2, n, generator=generator) - 0.5)
        if not self.bonds:
            return -positions
        bond = torch.multinomial(self.weights, 2 * n, replacement=True, generator=generator).view(2, n)
        turned = torch.zeros(len(self.bonds), n)
        turned[bond[1], torch.arange(n)] = angle[1] * (second < SECOND_BOND)
        turned[bond[0], torch.arange(n)] = angle[0]
        moved = positions.clone()
        for k, (b, c, side) in enumerate(self.bonds):
            (rows,) = torch.nonzero(turned[k], as_tuple=True)
            if len(rows):
                cosine, sine = (f(turned[k, rows].to(positions.dtype)) for f in (torch.cos, torch.sin))
                moved[rows[:, None], side] = turned_side(moved[rows], b, c, side, cosine, sine)
        return torch.where((kind < MIRROR_SHARE)[:, None, None], -positions, moved)


def _turns_hydrogens(molecule: Molecule, b: int, c: int) -> bool:
    """Whether all that is bonded to one end, besides the other, is hydrogens: few of their turns change much."""
    return any(all(molecule.atomic_numbers[k] == 1 for k in molecule.neighbors[end] if k != other)
               for end, other in ((b, c), (c, b)))


def contrastive_loss(energy: Tensor, moved_energy: Tensor) -> Tensor:
    """-log sigmoid(E(moved) - E(frame)) for each frame [frames]."""
    return torch.nn.functional.softplus(energy - moved_energy)
