"""Distances and dihedral angles against MDTraj, the data's convention, and by hand."""

import numpy as np
import pytest

from diffmd_fast.analysis import bond_lengths, dihedral_angles, distances
from diffmd_fast.analysis.geometry import bonds_apart
from diffmd_fast.errors import InputError


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(1).normal(scale=0.2, size=(50, 7, 3)).astype(np.float32)


def _mdtraj(frames: np.ndarray):
    import mdtraj

    topology = mdtraj.Topology()
    residue = topology.add_residue("UNK", topology.add_chain())
    for k in range(frames.shape[1]):
        topology.add_atom(f"X{k}", mdtraj.element.virtual_site, residue)
    return mdtraj.Trajectory(frames, topology)


def test_dihedrals_equal_mdtraj(frames):
    import mdtraj

    quadruples = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [6, 0, 4, 2]])
    ours = dihedral_angles(frames, quadruples)
    theirs = mdtraj.compute_dihedrals(_mdtraj(frames), quadruples, periodic=False)
    assert ours.dtype == np.float64
    # MDTraj works in float32; compare on the circle.
    assert np.abs(np.angle(np.exp(1j * (ours - theirs)))).max() < 2e-4


def test_distances_equal_mdtraj(frames):
    import mdtraj

    pairs = np.array([[0, 1], [5, 2]])
    theirs = mdtraj.compute_distances(_mdtraj(frames), pairs, periodic=False)
    np.testing.assert_allclose(distances(frames, pairs), theirs, rtol=1e-5)
    np.testing.assert_array_equal(bond_lengths(frames, pairs), distances(frames, pairs))


@pytest.mark.parametrize("angle", [-3.0, -1.0, 0.0, 1e-7, 0.5, np.pi / 2, 3.1, np.pi])
def test_iupac_sign_and_accuracy(angle):
    # Looking from b to c (along +z), a at 12 o'clock: clockwise is the direction from x towards y.
    positions = np.array([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5], [np.cos(angle), np.sin(angle), 1.5]]])
    found = dihedral_angles(positions, [[0, 1, 2, 3]])[0, 0]
    assert abs(np.angle(np.exp(1j * (found - angle)))) < 1e-15


def test_atoms_on_a_line_give_zero_not_nan():
    positions = np.zeros((1, 4, 3))
    positions[0, :, 0] = [0, 1, 2, 3]
    assert dihedral_angles(positions, [[0, 1, 2, 3]])[0, 0] == 0


def test_bonds_apart():
    apart = bonds_apart(6, [(0, 1), (1, 2), (2, 3), (1, 4)])
    assert apart[0].tolist() == [0, 1, 2, 3, 2, -1]
    np.testing.assert_array_equal(apart, apart.T)


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda x: dihedral_angles(x[0], [[0, 1, 2, 3]]), "positions: expected an array [frames, atoms, 3]"),
        (lambda x: dihedral_angles(x[:0], [[0, 1, 2, 3]]), "positions: expected at least one frame"),
        (lambda x: dihedral_angles(x, [[0, 1, 2]]), "quadruples: expected"),
        (lambda x: dihedral_angles(x, [[0, 1, 2, 7]]), "quadruples: expected atom indices from 0 to 6"),
        (lambda x: distances(x, [[-1, 2]]), "pairs: expected atom indices"),
        (lambda x: bond_lengths(x, [[0, 9]]), "bonds: expected atom indices"),
        (
            lambda x: bond_lengths(np.where(x == x[3, 2, 1], np.nan, x), [[0, 1]]),
            "positions: expected finite",
        ),
        (lambda x: bond_lengths(x.astype(int), [[0, 1]]), "positions: expected floating point"),
    ],
)
def test_bad_input(frames, call, start):
    with pytest.raises(InputError) as error:
        call(frames)
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)
