"""A molecule's atoms found in frames of another, by residue and name."""

import numpy as np
import pytest

from diffmd_fast import InputError
from diffmd_fast.io import Molecule, Snapshots, match_atoms

NAMES, RESIDUES = ("CH3", "H1", "C", "CH3", "H1", "N"), (4, 4, 4, 5, 5, 5)
ELEMENTS = (6, 1, 6, 6, 1, 7)


def snapshots(names=NAMES, residues=RESIDUES):
    n = len(names)
    molecule = Molecule(names, ELEMENTS[:n], ("ALA",) * n, residues, tuple((i, i + 1) for i in range(n - 1)))
    positions = np.arange(7 * n * 3, dtype=np.float32).reshape(7, n, 3)
    return Snapshots(positions=positions, molecule=molecule, temperature=300.0, replica=np.arange(7, dtype=np.int32),
                     valid_positions=positions[:2] + 1)


def test_heavy_atoms_in_another_order_and_another_first_residue():
    wanted = Molecule(("N", "CH3", "C", "CH3"), (7, 6, 6, 6), ("ALA",) * 4, (1, 1, 0, 0), ((0, 1), (1, 2), (2, 3)))
    found, every = match_atoms(snapshots(), wanted), snapshots()
    np.testing.assert_array_equal(found.positions, every.positions[:, [5, 3, 2, 0]])
    np.testing.assert_array_equal(found.valid_positions, every.valid_positions[:, [5, 3, 2, 0]])
    assert found.molecule == wanted and found.temperature == 300.0 and found.replica.tolist() == list(range(7))


def test_the_same_names_pass_as_they_are_even_when_they_repeat():
    beads = snapshots(("CH3", "CH2", "CH2", "CH3"), (0,) * 4)
    found = match_atoms(beads, beads.molecule)
    np.testing.assert_array_equal(found.positions, beads.positions)


@pytest.mark.parametrize(("have", "what"), [
    (snapshots(NAMES[:5], RESIDUES[:5]), "N of residue 1"),
    (snapshots(("CH3", "H1", "C", "CH3", "CH3", "N")), "names repeat"),
])
def test_atoms_that_cannot_be_told(have, what):
    wanted = Molecule(("N", "CH3"), (7, 6), ("ALA",) * 2, (1, 0), ((0, 1),))
    with pytest.raises(InputError, match=rf"^reference: expected [^\n]*{what}[^\n]*$"):
        match_atoms(have, wanted, "reference")
