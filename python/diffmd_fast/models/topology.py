"""Checked lists of atoms, and what follows from bonds: torsions and planes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from ..errors import InputError, check_integer


def sequence_of(name: str, values: Any, expected: str) -> list:
    """``values`` as a list; InputError where they are none, as 3 or None for a list of bonds."""
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name}: expected {expected}, got {values!r}"[:200]) from None


def check_atom_types(values: Any) -> list[int]:
    return [check_integer(t, "atom_types", minimum=0) for t in sequence_of("atom_types", values, "one integer an atom")]


def _neighbors(bonds: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    neighbors: dict[int, set[int]] = {}
    for i, j in bonds:
        neighbors.setdefault(i, set()).add(j)
        neighbors.setdefault(j, set()).add(i)
    return neighbors


def planes_of(bonds: Sequence[Sequence[int]]) -> list[list[int]]:
    """(a, b, centre, c) of every atom with three bonds, a < b < c: half a turn where all four lie in a plane.

    Its sign says on which side the centre lies, and follows the order of the atoms.
    """
    return [[a, b, centre, c] for centre, bonded in sorted(_neighbors(bonds).items()) if len(bonded) == 3
            for a, b, c in [sorted(bonded)]]


def bonded_torsions(bonds: Sequence[Sequence[int]]) -> list[list[int]]:
    """Every quadruple (a, b, c, d) with bonds a-b, b-c, c-d, each once with b < c, sorted."""
    neighbors = _neighbors(bonds)
    return sorted([a, b, c, d] for b in neighbors for c in neighbors[b] if b < c
                  for a in neighbors[b] - {c} for d in neighbors[c] - {b, a})


def canonical(quadruple: Sequence[int], types: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """(types, atoms) read from the end that gives the smaller types: both readings are one torsion."""
    forward = tuple(types[i] for i in quadruple)
    if forward[::-1] < forward:
        return forward[::-1], list(quadruple)[::-1]
    return forward, list(quadruple)


def index_rows(name: str, rows: Any, width: int, n_atoms: int) -> list[list[int]]:
    """Rows of ``width`` distinct atom indices as lists, checked."""
    result = []
    for row in sequence_of(name, rows, f"rows of {width} atom indices"):
        try:
            row = [operator.index(i) for i in row]
        except TypeError:
            raise InputError(f"{name}: expected rows of {width} atom indices, got {row!r}") from None
        good = len(row) == width and len(set(row)) == width and all(0 <= i < n_atoms for i in row)
        if not good:
            raise InputError(f"{name}: expected rows of {width} different atoms in 0..{n_atoms - 1}, got {row}")
        result.append(row)
    return result


def equivalent_atoms(kinds: Sequence[Any], bonds: Sequence[Sequence[int]]) -> list[int]:
    """A type for each atom: the same where kinds and bonds, followed to any depth, do not tell atoms apart (handedness
    apart), as three hydrogens of a methyl.  Types are numbered in the order of their first atoms."""
    neighbors, types = _neighbors(bonds), _numbered(kinds)
    while True:
        around = [tuple(sorted(types[j] for j in neighbors.get(i, ()))) for i in range(len(types))]
        finer = _numbered(list(zip(types, around)))
        if max(finer, default=0) == max(types, default=0):
            return types
        types = finer


def _numbered(keys: Sequence[Any]) -> list[int]:
    """Each key's place among the different ones in the order of their first appearance."""
    places: dict[Any, int] = {}
    return [places.setdefault(key, len(places)) for key in keys]
