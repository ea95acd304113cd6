"""What is known of a molecule besides its positions: names, elements, residues and bonds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, require

if TYPE_CHECKING:
    import mdtraj

MAX_ATOMIC_NUMBER = 118
_FIELDS = ("names", "atomic_numbers", "residue_names", "residue_index", "bonds")


@dataclass(frozen=True)
class Molecule:
    """Atoms and bonds of one molecule.

    ``names``, ``atomic_numbers``, ``residue_names`` and ``residue_index`` have one entry per atom; the
    atomic number 0 marks a bead without an element.  ``bonds`` are index pairs: whatever order they are
    given in, they are kept as ``i < j``, sorted, each once.

    Raises :class:`InputError` for fields of unequal length, unknown elements and bonds to missing atoms.
    """

    names: tuple[str, ...]
    atomic_numbers: tuple[int, ...]
    residue_names: tuple[str, ...]
    residue_index: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        n_atoms = len(self.names)
        require(n_atoms > 0, "names", "at least one atom", "none")
        for field, kind in (
            ("names", str),
            ("atomic_numbers", int),
            ("residue_names", str),
            ("residue_index", int),
        ):
            values = _converted(getattr(self, field), field, kind)
            require(len(values) == n_atoms, field, f"{n_atoms} entries, one per atom", len(values))
            object.__setattr__(self, field, values)
        for number in self.atomic_numbers:
            require(
                0 <= number <= MAX_ATOMIC_NUMBER,
                "atomic_numbers",
                f"integers from 0 (bead) to {MAX_ATOMIC_NUMBER}",
                number,
            )
        object.__setattr__(self, "bonds", _normalized_bonds(self.bonds, n_atoms))

    @property
    def n_atoms(self) -> int:
        return len(self.names)

    @property
    def masses(self) -> tuple[float, ...] | None:
        """Of the elements, in Da, one per atom; None where an atom is a bead without an element."""
        from mdtraj.core.element import Element

        if 0 in self.atomic_numbers:
            return None
        return tuple(Element.getByAtomicNumber(number).mass for number in self.atomic_numbers)

    # ---- conversions -------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, list]:
        """Plain lists under the names of the fields, ready for JSON."""
        return {
            "names": list(self.names),
            "atomic_numbers": list(self.atomic_numbers),
            "residue_names": list(self.residue_names),
            "residue_index": list(self.residue_index),
            "bonds": [list(bond) for bond in self.bonds],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Molecule:
        """The inverse of :meth:`to_dict`; every field is checked."""
        require(isinstance(values, Mapping), "molecule", "a mapping of its fields", type(values).__name__)
        missing = [field for field in _FIELDS if field not in values]
        require(
            not missing, "molecule", f"the fields {', '.join(_FIELDS)}", f"none called {', '.join(missing)}"
        )
        for field in _FIELDS:
            require(
                isinstance(values[field], Sequence) and not isinstance(values[field], str),
                f"molecule.{field}",
                "a list",
                type(values[field]).__name__,
            )
        return cls(*(tuple(values[field]) for field in _FIELDS))

    @classmethod
    def from_mdtraj(cls, topology: mdtraj.Topology) -> Molecule:
        """Atoms and bonds of an MDTraj topology; residues are numbered from 0 through all chains."""
        atoms = list(topology.atoms)
        return cls(
            names=tuple(atom.name for atom in atoms),
            atomic_numbers=tuple(
                atom.element.atomic_number if atom.element is not None else 0 for atom in atoms
            ),
            residue_names=tuple(atom.residue.name for atom in atoms),
            residue_index=tuple(atom.residue.index for atom in atoms),
            bonds=tuple((bond[0].index, bond[1].index) for bond in topology.bonds),
        )

    def to_mdtraj(self) -> mdtraj.Topology:
        """An MDTraj topology of one chain; beads without an element become virtual sites."""
        import mdtraj

        topology = mdtraj.Topology()
        chain = topology.add_chain()
        residue, previous = None, None
        for name, number, residue_name, index in zip(
            self.names, self.atomic_numbers, self.residue_names, self.residue_index
        ):
            if residue is None or (index, residue_name) != previous:
                residue = topology.add_residue(residue_name, chain, resSeq=index + 1)
                previous = (index, residue_name)
            element = (
                mdtraj.element.Element.getByAtomicNumber(number) if number else mdtraj.element.virtual_site
            )
            topology.add_atom(name, element, residue)
        atoms = list(topology.atoms)
        for i, j in self.bonds:
            topology.add_bond(atoms[i], atoms[j])
        return topology

    @classmethod
    def from_npz_arrays(cls, arrays: Mapping[str, Any], n_atoms: int) -> Molecule:
        """The molecule described by the arrays of an NPZ file, as far as they describe one.

        Looked at: ``atom_names``, ``residue_names``, ``residue_index`` (per atom), ``atomic_numbers``,
        ``bonds`` [n_bonds, 2]; ``bead_types`` for united atoms.  ``CH4`` to ``CH`` are carbons of a residue
        ALK; a row CH3, CH2, ..., CH3 without ``bonds`` can only be the straight chain and is bonded as one.
        What is missing is filled in: names X1, X2, ...; element 0; residue UNK; no bonds.
        """

        def column(key: str, default: Iterable) -> tuple:
            if key not in arrays:
                return tuple(default)
            values = np.asarray(arrays[key])
            require(
                values.shape == (n_atoms,), key, f"shape [{n_atoms}], one entry per atom", list(values.shape)
            )
            return tuple(values.tolist())

        beads = column("bead_types", ()) if "bead_types" in arrays else None
        united = beads is not None and set(beads) <= {"C", "CH", "CH2", "CH3", "CH4"}
        bonds: Iterable = ()
        if "bonds" in arrays:
            bonds = np.asarray(arrays["bonds"])
            require(
                bonds.ndim == 2 and bonds.shape[1] == 2 or bonds.size == 0,
                "bonds",
                "shape [n_bonds, 2]",
                list(bonds.shape),
            )
            bonds = bonds.reshape(-1, 2).tolist()
        elif united and n_atoms > 2 and beads == ("CH3",) + ("CH2",) * (n_atoms - 2) + ("CH3",):
            bonds = ((i, i + 1) for i in range(n_atoms - 1))
        return cls(
            names=column("atom_names", beads or (f"X{i + 1}" for i in range(n_atoms))),
            atomic_numbers=column("atomic_numbers", [6 if united else 0] * n_atoms),
            residue_names=column("residue_names", ["ALK" if united else "UNK"] * n_atoms),
            residue_index=column("residue_index", [0] * n_atoms),
            bonds=tuple(tuple(bond) for bond in bonds),
        )

    def to_npz_arrays(self) -> dict[str, np.ndarray]:
        """The arrays that :meth:`from_npz_arrays` reads."""
        return {
            "atom_names": np.array(self.names),
            "atomic_numbers": np.array(self.atomic_numbers, np.int32),
            "residue_names": np.array(self.residue_names),
            "residue_index": np.array(self.residue_index, np.int32),
            "bonds": np.array(self.bonds, np.int32).reshape(-1, 2),
        }

    # ---- selections --------------------------------------------------------------------------------

    def select(self, indices: Iterable[int]) -> Molecule:
        """The atoms ``indices``, in that order, and the bonds among them under their new numbers."""
        kept = [int(i) for i in indices]
        require(bool(kept), "indices", "at least one atom", "none")
        require(
            len(set(kept)) == len(kept) and min(kept) >= 0 and max(kept) < self.n_atoms,
            "indices",
            f"distinct atoms from 0 to {self.n_atoms - 1}",
            kept if len(kept) < 20 else f"{len(kept)} indices",
        )
        new = {old: position for position, old in enumerate(kept)}
        return Molecule(
            *(tuple(getattr(self, field)[i] for i in kept) for field in _FIELDS[:4]),
            bonds=tuple((new[i], new[j]) for i, j in self.bonds if i in new and j in new),
        )

    def atom_indices(self, atoms: str = "all", argument: str = "atoms") -> np.ndarray:
        """Indices (int64, ascending) of ``"all"`` atoms, the ``"heavy"`` ones, or an MDTraj selection.

        Beads without an element count as heavy.  Raises :class:`InputError` for a selection that MDTraj
        does not understand or that no atom meets.
        """
        expected = 'heavy, all or an MDTraj selection such as "name CA or name CB"'
        require(isinstance(atoms, str) and atoms.strip() != "", argument, expected, repr(atoms))
        if atoms == "all":
            return np.arange(self.n_atoms)
        if atoms == "heavy":
            indices = np.flatnonzero(np.array(self.atomic_numbers) != 1)
        else:
            try:
                indices = np.unique(np.asarray(self.to_mdtraj().select(atoms), dtype=np.int64))
            except Exception as error:  # the parser raises whatever its grammar stumbles on
                reason = " ".join(str(error).split())[:120]
                raise InputError(f"{argument}: expected {expected}, got {atoms!r} ({reason})") from None
        require(
            indices.size > 0, argument, "a selection of at least one atom", f"{atoms!r}, which matches none"
        )
        return indices

    # ---- what the bonds imply ----------------------------------------------------------------------

    @cached_property
    def neighbors(self) -> tuple[tuple[int, ...], ...]:
        """For every atom the atoms bonded to it, ascending."""
        table: list[list[int]] = [[] for _ in range(self.n_atoms)]
        for i, j in self.bonds:
            table[i].append(j)
            table[j].append(i)
        return tuple(tuple(sorted(row)) for row in table)

    def angles(self) -> list[tuple[int, int, int]]:
        """Every pair of bonds that share an atom, once: (a, b, c) with b in the middle and a < c."""
        return [
            (a, b, c)
            for b in range(self.n_atoms)
            for a in self.neighbors[b]
            for c in self.neighbors[b]
            if a < c
        ]

    def torsions(self) -> list[tuple[int, int, int, int]]:
        """Every chain of three bonds over four distinct atoms, once: (a, b, c, d) with b < c."""
        return [
            (a, b, c, d)
            for b, c in self.bonds
            for a in self.neighbors[b]
            if a != c
            for d in self.neighbors[c]
            if d not in (a, b)
        ]

    def find_dihedrals(self) -> dict[str, tuple[int, int, int, int]]:
        """The dihedral angles worth looking at, by name.

        With a peptide backbone (atoms N, CA, C of consecutive residues): phi = C'-N-CA-C and
        psi = N-CA-C-N' (IUPAC-IUB 1970), called ``phi`` and ``psi`` if there is one of each, else
        ``phi2``, ``psi2``, ... with the residue's number counted from 1.  Otherwise the torsions along the
        longest chain of heavy atoms, called by atom names (``C1-C2-C3-C4``), or by element and atom number
        where the names are not unique.  Empty for a molecule without bonds.
        """
        return self._backbone_dihedrals() or self._chain_dihedrals()

    def _backbone_dihedrals(self) -> dict[str, tuple[int, int, int, int]]:
        atom = {(index, name): i for i, (index, name) in enumerate(zip(self.residue_index, self.names))}
        bonded = set(self.bonds)

        def quadruple(*keys: tuple[int, str]) -> tuple[int, int, int, int] | None:
            found = tuple(atom[key] for key in keys if key in atom)
            chained = all((min(pair), max(pair)) in bonded for pair in zip(found, found[1:]))
            return found if len(found) == 4 and chained else None

        named = {}
        for r in sorted(set(self.residue_index)):
            named["phi", r] = quadruple((r - 1, "C"), (r, "N"), (r, "CA"), (r, "C"))
            named["psi", r] = quadruple((r, "N"), (r, "CA"), (r, "C"), (r + 1, "N"))
        found = {key: atoms for key, atoms in named.items() if atoms}
        kinds = [kind for kind, _ in found]
        single = kinds.count("phi") <= 1 and kinds.count("psi") <= 1
        return {kind if single else f"{kind}{r + 1}": atoms for (kind, r), atoms in found.items()}

    def _chain_dihedrals(self) -> dict[str, tuple[int, int, int, int]]:
        path = self._longest_chain()
        if len(set(self.names)) == self.n_atoms:
            labels = self.names
        else:
            from mdtraj.core.element import Element

            labels = tuple(
                (Element.getByAtomicNumber(number).symbol if number else "X") + str(i + 1)
                for i, number in enumerate(self.atomic_numbers)
            )
        quadruples = zip(path, path[1:], path[2:], path[3:])
        return {"-".join(labels[i] for i in quadruple): quadruple for quadruple in quadruples}

    def _longest_chain(self) -> list[int]:
        """The longest of the shortest paths between heavy atoms: in a tree its diameter."""
        heavy = {i for i, number in enumerate(self.atomic_numbers) if number != 1}
        longest: list[int] = []
        # Two sweeps find a tree's diameter; a start in every atom also covers several pieces, and rings.
        for start in sorted(heavy):
            came_from = {start: start}
            queue = deque([start])
            last = start
            while queue:
                last = queue.popleft()
                for neighbor in self.neighbors[last]:
                    if neighbor in heavy and neighbor not in came_from:
                        came_from[neighbor] = last
                        queue.append(neighbor)
            path = [last]
            while path[-1] != start:
                path.append(came_from[path[-1]])
            if len(path) > len(longest):
                longest = path[::-1]
        return longest


def _converted(values: Iterable, field: str, kind: type) -> tuple:
    """A tuple of plain str or int; floats, bools and other surprises are refused, numpy scalars accepted."""

    def plain(value: Any) -> Any:
        if kind is str and isinstance(value, str):
            return str(value)
        if kind is int and hasattr(value, "__index__") and not isinstance(value, (bool, np.bool_)):
            return int(value)
        raise InputError(f"{field}: expected only {'text' if kind is str else 'integers'}, got {value!r}")

    return tuple(plain(value) for value in values)


def _normalized_bonds(bonds: Iterable, n_atoms: int) -> tuple[tuple[int, int], ...]:
    result = set()
    for bond in bonds:
        pair = _converted(bond, "bonds", int) if isinstance(bond, (Sequence, np.ndarray)) else ()
        require(len(pair) == 2, "bonds", "pairs of atom indices", bond)
        i, j = sorted(pair)
        require(0 <= i < j < n_atoms, "bonds", f"pairs of distinct atoms from 0 to {n_atoms - 1}", list(pair))
        result.add((i, j))
    return tuple(sorted(result))
