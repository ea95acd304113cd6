"""Molecule: validation, conversions, selections, and what its bonds imply."""

import json

import numpy as np
import pytest

from diffmd_fast.errors import InputError
from diffmd_fast.io import Molecule, read_snapshots


def chain(n: int, **changes) -> Molecule:
    fields = {
        "names": [f"C{i + 1}" for i in range(n)],
        "atomic_numbers": [6] * n,
        "residue_names": ["ALK"] * n,
        "residue_index": [0] * n,
        "bonds": [(i + 1, i) for i in range(n - 1)],
    }
    return Molecule(**{**fields, **changes})


def peptide() -> Molecule:
    """Backbone N, CA, C of three residues: two phi, two psi."""
    return Molecule(
        names=("N", "CA", "C") * 3,
        atomic_numbers=(7, 6, 6) * 3,
        residue_names=("GLY",) * 9,
        residue_index=(0, 0, 0, 1, 1, 1, 2, 2, 2),
        bonds=tuple((i, i + 1) for i in range(8)),
    )


def test_bonds_are_normalized():
    molecule = chain(4, bonds=[(3, 2), (1, 0), (0, 1), np.array([1, 2])])
    assert molecule.bonds == ((0, 1), (1, 2), (2, 3))
    assert molecule == chain(4)
    assert hash(molecule) == hash(chain(4))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"names": []}, "names"),
        ({"names": ["C1", "C2", "C3", 4]}, "names"),
        ({"atomic_numbers": [6, 6, 6]}, "atomic_numbers"),
        ({"atomic_numbers": [6, 6, 6, 119]}, "atomic_numbers"),
        ({"atomic_numbers": [6, 6, 6, -1]}, "atomic_numbers"),
        ({"atomic_numbers": [6, 6, 6, 6.0]}, "atomic_numbers"),
        ({"residue_names": ["ALK"] * 5}, "residue_names"),
        ({"residue_index": [0, 0, 0, True]}, "residue_index"),
        ({"bonds": [(0, 4)]}, "bonds"),
        ({"bonds": [(1, 1)]}, "bonds"),
        ({"bonds": [(-1, 1)]}, "bonds"),
        ({"bonds": [(0, 1, 2)]}, "bonds"),
        ({"bonds": [3]}, "bonds"),
    ],
)
def test_bad_fields(changes, argument):
    with pytest.raises(InputError, match=rf"^{argument}: expected [^\n]*, got [^\n]*$"):
        chain(4, **changes)


def test_json_round_trip():
    molecule = peptide()
    assert Molecule.from_dict(json.loads(json.dumps(molecule.to_dict()))) == molecule


@pytest.mark.parametrize(
    "values", [None, [], {}, {**chain(3).to_dict(), "names": "CCC"}, {"names": ["C"]}], ids=str
)
def test_from_dict_refuses(values):
    with pytest.raises(InputError, match="^molecule"):
        Molecule.from_dict(values)


def test_mdtraj_round_trip():
    molecule = chain(4, atomic_numbers=[6, 0, 6, 1], residue_index=[0, 0, 1, 1])
    again = Molecule.from_mdtraj(molecule.to_mdtraj())
    assert again == molecule


def test_npz_round_trip():
    molecule = peptide()
    assert Molecule.from_npz_arrays(molecule.to_npz_arrays(), 9) == molecule
    assert Molecule.from_npz_arrays(chain(1, bonds=[]).to_npz_arrays(), 1).bonds == ()


def test_npz_without_names():
    molecule = Molecule.from_npz_arrays({}, 3)
    assert molecule.names == ("X1", "X2", "X3")
    assert molecule.atomic_numbers == (0, 0, 0)
    assert molecule.bonds == ()


def test_united_atoms():
    beads = np.array(["CH3", "CH2", "CH2", "CH3"])
    molecule = Molecule.from_npz_arrays({"bead_types": beads}, 4)
    assert molecule.bonds == ((0, 1), (1, 2), (2, 3)), "a straight chain is the only way to join these"
    assert molecule.residue_names == ("ALK",) * 4
    assert molecule.atomic_numbers == (6,) * 4
    assert molecule.find_dihedrals() == {"C1-C2-C3-C4": (0, 1, 2, 3)}
    branched = Molecule.from_npz_arrays({"bead_types": np.array(["CH3", "CH", "CH3", "CH3"])}, 4)
    assert branched.bonds == (), "isobutane is not guessed"


@pytest.mark.parametrize(
    ("arrays", "argument"),
    [
        ({"atom_names": np.array(["C", "C"])}, "atom_names"),
        ({"bonds": np.zeros((2, 3), int)}, "bonds"),
        ({"bonds": np.array([[0.5, 1.0]])}, "bonds"),
        ({"bonds": np.array([[0, 3]])}, "bonds"),
        ({"atomic_numbers": np.array([6.0, 6.0, 6.0])}, "atomic_numbers"),
    ],
)
def test_bad_npz_arrays(arrays, argument):
    with pytest.raises(InputError, match=f"^{argument}: expected"):
        Molecule.from_npz_arrays(arrays, 3)


def test_select_renumbers_bonds():
    picked = chain(5).select([4, 3, 1])
    assert picked.names == ("C5", "C4", "C2")
    assert picked.bonds == ((0, 1),)
    for bad in ([], [0, 0], [5], [-1]):
        with pytest.raises(InputError, match="^indices: expected"):
            chain(5).select(bad)


def test_atom_indices():
    molecule = chain(4, names=["CA", "HA", "B", "CB"], atomic_numbers=[6, 1, 0, 6])
    assert molecule.atom_indices("heavy").tolist() == [0, 2, 3]
    assert molecule.atom_indices("all").tolist() == [0, 1, 2, 3]
    assert molecule.atom_indices("name CB or name CA").tolist() == [0, 3]
    for bad in ("nonsense 3", "name XX", "", " ", None, "((", "__import__('os')"):
        with pytest.raises(InputError, match=r"^atoms: expected [^\n]*$"):
            molecule.atom_indices(bad)


def test_angles_and_torsions_of_a_branched_chain():
    # isopentane: 0-1-2-3 with a branch 4 on 1
    molecule = chain(5, bonds=[(0, 1), (1, 2), (2, 3), (1, 4)])
    assert set(molecule.angles()) == {(0, 1, 2), (0, 1, 4), (2, 1, 4), (1, 2, 3)}
    assert molecule.torsions() == [(0, 1, 2, 3), (4, 1, 2, 3)]
    assert list(molecule.find_dihedrals()) == ["C1-C2-C3-C4"]


def test_torsions_of_rings():
    square = chain(4, bonds=[(0, 1), (1, 2), (2, 3), (0, 3)])
    assert len(square.torsions()) == 4
    triangle = chain(3, bonds=[(0, 1), (1, 2), (0, 2)])
    assert triangle.torsions() == [], "three atoms have no torsion"


def test_every_torsion_once():
    molecule = chain(7, bonds=[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 6), (1, 5)])
    found = molecule.torsions()
    assert len({min(t, t[::-1]) for t in found}) == len(found)
    bonded = set(molecule.bonds)
    for quadruple in found:
        assert len(set(quadruple)) == 4
        assert quadruple[1] < quadruple[2]
        assert all((min(p), max(p)) in bonded for p in zip(quadruple, quadruple[1:]))


def test_backbone_dihedrals_of_several_residues():
    assert peptide().find_dihedrals() == {
        "psi1": (0, 1, 2, 3), "phi2": (2, 3, 4, 5), "psi2": (3, 4, 5, 6), "phi3": (5, 6, 7, 8),
    }  # fmt: skip


def test_backbone_needs_its_bonds():
    cut = Molecule(**{**peptide().to_dict(), "bonds": [(0, 1), (1, 2), (3, 4), (4, 5)]})
    assert cut.find_dihedrals() == {}


def test_alanine_dipeptide(shared_data):
    path = shared_data / "ala2_implicit_300K_valid_eval.npz"
    molecule = read_snapshots(path).molecule
    assert molecule.find_dihedrals() == {"phi": (4, 6, 8, 14), "psi": (6, 8, 14, 16)}
    assert len(molecule.angles()) == 36
    assert len(molecule.torsions()) == 41
    heavy = read_snapshots(path, atoms="heavy").molecule
    assert heavy.names == ("CH3", "C", "O", "N", "CA", "CB", "C", "O", "N", "C")
    assert len(heavy.bonds) == 9
    assert list(heavy.find_dihedrals()) == ["phi", "psi"]
