"""Turning one side of a molecule about a bond: a move that keeps volume, bonds and angles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..io import Molecule


def rotatable_bonds(molecule: Molecule) -> list[tuple[int, int, list[int]]]:
    """(b, c, atoms on c's side without c) of each bond inside a torsion that is in no ring, each once."""
    found = []
    for b, c in sorted({(torsion[1], torsion[2]) for torsion in molecule.torsions()}):
        side, frontier = {c}, [c]
        while frontier:
            for other in molecule.neighbors[frontier.pop()]:
                if other not in side and (other, b) != (b, c) and other != b:
                    side.add(other)
                    frontier.append(other)
        in_ring = any(b in molecule.neighbors[atom] for atom in side - {c})
        if not in_ring:
            found.append((b, c, sorted(side - {c})))
    return found


def turned_side(x: Tensor, b: int, c: int, side: list[int], cosine: Tensor, sine: Tensor) -> Tensor:
    """The atoms ``side`` of frames x [frames, atoms, 3], turned about b to c by the angle whose cosine and sine
    [frames] are given (Rodrigues): [frames, len(side), 3].

    Written out in sums and products of components, so that a frame's result does not depend on the others.
    """
    bond = x[:, c] - x[:, b]
    axis = (bond / _dot(bond, bond).sqrt())[:, None]
    arm = x[:, side] - x[:, c, None]
    along = _dot(axis, arm) * axis
    return x[:, c, None] + along + cosine[:, None, None] * (arm - along) + sine[:, None, None] * _cross(axis, arm)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product = a * b
    return product[..., 0:1] + product[..., 1:2] + product[..., 2:3]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]
