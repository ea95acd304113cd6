"""Moves across barriers preserve volume, bonds and angles; the loss is smallest for the true energy."""

import numpy as np
import pytest
import torch

from diffmd_fast.analysis import bond_lengths, dihedral_angles
from diffmd_fast.io import Molecule
from diffmd_fast.models import TraPPEAlkane
from diffmd_fast.models.turns import rotatable_bonds
from diffmd_fast.training.contrast import MIRROR_SHARE, Moves, contrastive_loss


def carbon(bonds) -> Molecule:
    n = 1 + max(max(bond) for bond in bonds)
    return Molecule(tuple(f"C{i}" for i in range(n)), (6,) * n, ("X",) * n, (0,) * n, tuple(bonds))


BUTANE = carbon([(0, 1), (1, 2), (2, 3)])
BRANCHED = carbon([(0, 1), (1, 2), (2, 3), (2, 4), (4, 5)])
RING = carbon([(0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 5)])


@pytest.mark.parametrize(("molecule", "expected"), [
    (BUTANE, [(1, 2, [3])]),
    (BRANCHED, [(1, 2, [3, 4, 5]), (2, 4, [5])]),
    (RING, [(3, 4, [5])]),
    (carbon([(0, 1), (1, 2)]), []),
])
def test_bonds_that_turn(molecule, expected):
    assert rotatable_bonds(molecule) == expected


def test_moves_keep_bonds_angles_and_volume():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, 3, generator=generator, dtype=torch.float64)
    y = Moves(BRANCHED)(x, generator)
    np.testing.assert_allclose(bond_lengths(x.numpy(), BRANCHED.bonds), bond_lengths(y.numpy(), BRANCHED.bonds))
    ends = [(a, c) for a, _, c in BRANCHED.angles()]
    np.testing.assert_allclose(bond_lengths(x.numpy(), ends), bond_lengths(y.numpy(), ends))
    mirrored = (y == -x).flatten(1).all(1)
    assert abs(mirrored.double().mean() - MIRROR_SHARE) < 4 * (MIRROR_SHARE * (1 - MIRROR_SHARE) / 300) ** 0.5
    for seed in range(6):  # the same seed makes the same move of one frame

        def move(v, seed=seed):
            return Moves(BRANCHED)(v.view(1, 6, 3), torch.Generator().manual_seed(seed)).flatten()

        jacobian = torch.autograd.functional.jacobian(move, x[seed].flatten())
        assert abs(abs(torch.linalg.det(jacobian)) - 1) < 1e-9


def test_turns_are_uniform():
    """Kolmogorov-Smirnov at 1e-4: each of the two torsions that turn, and turns backward as often as forward."""
    from scipy.stats import kstest

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 6, 3, generator=generator, dtype=torch.float64)
    y = Moves(BRANCHED)(x, generator)
    quadruples = [(0, 1, 2, 3), (1, 2, 4, 5)]
    change = dihedral_angles(y.numpy(), quadruples) - dihedral_angles(x.numpy(), quadruples)
    change = (change + np.pi) % (2 * np.pi) - np.pi
    turned = (np.abs(change) > 1e-9) & ~(y == -x).flatten(1).all(1).numpy()[:, None]
    for k in range(2):
        assert turned[:, k].sum() > 1000
        assert kstest(change[turned[:, k], k], "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-4


def test_the_true_energy_has_the_smallest_loss():
    """Butane with exact energies plus a times a torsion term: the slope of the loss is zero at a = 0 within 4 standard
    errors (false alarm 6e-5), and both signs of a lose."""
    energy = TraPPEAlkane.butane()
    x = energy.sample(20_000, seed=3)
    y = Moves(BUTANE)(x, torch.Generator().manual_seed(4))

    def wrong(positions):
        return torch.as_tensor(np.cos(dihedral_angles(positions.numpy(), [(0, 1, 2, 3)])[:, 0]))

    with torch.no_grad():
        difference, change = energy.energy(y) - energy.energy(x), wrong(y) - wrong(x)

    def losses(a):
        return contrastive_loss(-(difference + a * change), torch.zeros(len(x), dtype=difference.dtype)).double()

    slope = (losses(1e-3) - losses(-1e-3)) / 2e-3
    assert abs(slope.mean()) < 4 * slope.std() / len(x) ** 0.5
    assert losses(0.0).mean() < min(losses(0.5).mean(), losses(-0.5).mean()) - 1e-3


def test_a_methyl_turns_a_quarter_as_often():
    """Of moves with one bond or more turned, by binomial error at 4 standard errors."""
    methyl = Molecule(("C",) * 4 + ("H",) * 3, (6,) * 4 + (1,) * 3, ("X",) * 7, (0,) * 7,
                      ((0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (3, 6)))
    moves = Moves(methyl)
    assert [(b, c) for b, c, _ in moves.bonds] == [(1, 2), (2, 3)] and moves.weights.tolist() == [1.0, 0.25]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8000, 7, 3, generator=generator, dtype=torch.float64)
    y = moves(x, generator)
    turned = (y != -x).flatten(1).any(1)
    change = np.abs(dihedral_angles(y.numpy(), [(1, 2, 3, 4)]) - dihedral_angles(x.numpy(), [(1, 2, 3, 4)]))[:, 0]
    share, wanted = (change[turned] > 1e-6).mean(), 1 - 0.8 * (1 - 0.5 * 0.2)  # the first bond, or the second, is it
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / turned.sum().item()) ** 0.5
