"""The atoms of one molecule found in frames of another: heavy atoms in all-atom snapshots, a file in another order."""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from .molecule import Molecule
from .snapshots import Snapshots


def match_atoms(snapshots: Snapshots, molecule: Molecule, argument: str = "snapshots") -> Snapshots:
    """``snapshots`` with just the atoms of ``molecule``, in its order, found by residue and atom name.

    Frames whose atoms have the same names in the same order pass as they are.

    Raises:
        InputError: under the name ``argument``, when an atom is missing or two atoms share a name.
    """
    have, want = _keys(snapshots.molecule), _keys(molecule)
    if have == want:
        return replace(snapshots, molecule=molecule)
    place = {key: i for i, key in enumerate(have)}
    if len(place) < len(have) or any(key not in place for key in want):
        missing = [f"{name} of residue {residue}" for residue, name in want if (residue, name) not in place]
        raise InputError(
            f"{argument}: expected the atoms of the model or trajectory ({molecule.n_atoms} atoms), got "
            f"{snapshots.n_atoms} atoms, among which {', '.join(missing[:3]) or 'names repeat'} "
            f"{'and others ' if len(missing) > 3 else ''}cannot be found"
        )
    index = [place[key] for key in want]
    valid = snapshots.valid_positions
    return replace(
        snapshots,
        positions=snapshots.positions[:, index],
        molecule=molecule,
        valid_positions=None if valid is None else valid[:, index],
    )


def _keys(molecule: Molecule) -> list[tuple[int, str]]:
    first = min(molecule.residue_index, default=0)
    return [(residue - first, name) for residue, name in zip(molecule.residue_index, molecule.names)]
