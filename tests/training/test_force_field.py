"""training/force_field.py: a score read off the snapshots against the forces that they were drawn by."""

import pytest
import torch

from diffmd_fast import InputError, NonFiniteError
from diffmd_fast.io import Molecule
from diffmd_fast.models import TraPPEAlkane
from diffmd_fast.models.topology import equivalent_atoms
from diffmd_fast.training import coordinates, force_field
from diffmd_fast.training.force_field import ForceField

CHAIN = [(0, 1), (1, 2), (2, 3)]
ETHANOL = [6, 6, 8, 1, 1, 1, 1, 1, 1], [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (1, 6), (1, 7), (2, 8)]


def molecule_of(elements, bonds=()):
    n = len(elements)
    return Molecule(("X",) * n, tuple(elements), ("X",) * n, (0,) * n, tuple(bonds))


def random_frames(n, n_atoms, seed=0):
    return 0.2 * torch.randn(n, n_atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x, row):
    """Distance, cosine or torsion of a frame [atoms, 3], as its definition has it."""
    a, b, *others = x[row]
    if not others:
        return torch.linalg.vector_norm(a - b)
    u, v = a - b, others[0] - b
    if len(others) == 1:
        return u @ v / torch.linalg.vector_norm(u) / torch.linalg.vector_norm(v)
    axis, w = v / torch.linalg.vector_norm(v), others[1] - others[0]
    u, w = u - (u @ axis) * axis, w - (w @ axis) * axis
    return torch.atan2(torch.linalg.cross(axis, u) @ w, u @ w)


@pytest.mark.parametrize(("measure", "atoms"), [
    (coordinates.distances, [[0, 2], [3, 1]]), (coordinates.cosines, [[0, 1, 2], [3, 0, 2]]),
    (coordinates.torsions, [[0, 1, 2, 3], [0, 1, 3, 2], [2, 4, 0, 1]])])
def test_gradients_and_laplacians_are_derivatives(measure, atoms):
    x = random_frames(3, 5)
    found = measure(x, torch.tensor(atoms))
    for k, row in enumerate(atoms):
        for frame in range(len(x)):
            def value(flat, row=row):
                return by_hand(flat.view(5, 3), row)
            flat = x[frame].flatten()
            torch.testing.assert_close(found.values[frame, k], value(flat), rtol=1e-5, atol=1e-6)
            by_atom = torch.autograd.functional.jacobian(value, flat).view(5, 3)
            torch.testing.assert_close(found.gradients[frame, k], by_atom[row], rtol=1e-4, atol=1e-5)
            laplacian = torch.autograd.functional.hessian(value, flat).trace()
            torch.testing.assert_close(found.laplacians[frame, k], laplacian, rtol=1e-4, atol=2e-3)


def test_equivalent_atoms():
    """Hydrogens of one methyl, halves of a chain; not what an element or a bond further away tells apart."""
    assert equivalent_atoms(*ETHANOL) == [0, 1, 2, 3, 3, 3, 4, 4, 5]
    assert equivalent_atoms([6] * 5, [(0, 1), (1, 2), (2, 3), (3, 4)]) == [0, 1, 2, 1, 0]
    assert equivalent_atoms([6] * 6, [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5)]) == [0, 1, 2, 3, 4, 4]
    assert equivalent_atoms(["A", "B", "A"], []) == [0, 1, 0] and equivalent_atoms([], []) == []


def test_functions_have_the_score_and_its_divergence():
    """Of any parameters: gradients and Laplacians that are fitted are those of the score that comes out."""
    field = ForceField(molecule_of(*ETHANOL))
    # bonds C-C, C-O, O-H, two C-H; 7 angles; torsions H-C-C-H, H-C-C-O, H-C-O-H, C-C-O-H; 5 kinds of pairs
    assert [(term.n_types, term.width, len(term.atoms)) for term in field.terms] == [
        (5, 3, 8), (7, 3, 13), (4, 8, 12), (5, 3, 15)]
    frames = random_frames(50, 9)
    field.fit(frames, 0.0)
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(field.n_parameters, generator=generator, dtype=torch.float64) * field.theta.abs()
    field.theta.copy_(theta)
    gradients, laplacians = field._functions(frames[:5])
    score = -(theta @ gradients).view(9, 3, 5).permute(2, 0, 1)
    torch.testing.assert_close(field(frames[:5]), score, rtol=1e-9, atol=1e-9 * float(score.abs().max()))
    step, divergence = 1e-6, 0.0
    for k in range(27):
        shift = torch.zeros(27, dtype=torch.float64)
        shift[k] = step
        high, low = (field(frames[:5] + sign * shift.view(9, 3)).flatten(1)[:, k] for sign in (1, -1))
        divergence += ((high - low) / (2 * step)).sum()
    torch.testing.assert_close(divergence, -theta @ laplacians, rtol=1e-4, atol=0.0)


def test_butane_has_the_forces_of_its_force_field():
    """20 parameters of 16,384 exact samples; 1.7% is found, of which chance is most (4,096: 4.1%, 65,536: 0.7%)."""
    butane = TraPPEAlkane.butane()
    field = ForceField(molecule_of([6] * 4, CHAIN))
    assert field.n_parameters == 2 * 3 + 3 + 8 + 3
    field.fit(butane.sample(16384, seed=3), 1e-5)
    frames = butane.sample(1000, seed=9)
    true = butane.score(frames)
    error = (field(frames) - true).square().sum() / true.square().sum()
    assert error.sqrt() < 0.035
    assert abs(field.square / true.square().sum((1, 2)).mean() - 1) < 0.03


def test_parts_of_the_frames_and_the_order_of_bonds_do_not_matter(monkeypatch):
    frames, other = TraPPEAlkane.butane().sample(3000, seed=2), random_frames(4, 4)
    whole, reversed_bonds = ForceField(molecule_of([6] * 4, CHAIN)), ForceField(molecule_of([6] * 4, CHAIN[::-1]))
    whole.fit(frames, 1e-3)
    monkeypatch.setattr(force_field, "AT_ONCE", 12 * 20 * 7)
    reversed_bonds.fit(frames, 1e-3)
    wanted = whole(other)
    torch.testing.assert_close(reversed_bonds(other), wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def test_atoms_without_bonds():
    """Ten atoms of two elements: three kinds of pairs."""
    field = ForceField(molecule_of([18] * 6 + [10] * 4))
    assert field.n_parameters == 9
    frames = random_frames(500, 10)
    field.fit(frames, 0.01)
    assert field(frames).isfinite().all() and field(frames).shape == frames.shape


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(InputError, match="^force_field: expected 0 for a molecule .*more than 2048 parameters, got"):
        ForceField(molecule_of(range(1, 60), [(i, i + 1) for i in range(58)]))
    field = ForceField(molecule_of([6] * 4, CHAIN))
    with pytest.raises(NonFiniteError, match="^force_field: no parameters"):
        field.fit(torch.zeros(20, 4, 3), 0.0)
