"""Internal coordinates of many frames at once: distances and dihedral angles.

Everything is computed in float64 whatever comes in, because the angles feed histograms and
autocorrelations whose errors should be statistical only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError, require


def check_frames(positions: np.ndarray, argument: str = "positions") -> np.ndarray:
    """``positions`` as an array [frames, atoms, 3] (nm) with a frame or more, all finite, else an error."""
    array = np.asarray(positions)
    require(
        array.ndim == 3 and array.shape[-1] == 3,
        argument,
        "an array [frames, atoms, 3]",
        f"shape {list(array.shape)}",
    )
    require(array.dtype.kind == "f", argument, "floating point positions in nm", f"dtype {array.dtype}")
    require(
        array.shape[0] > 0 and array.shape[1] > 0,
        argument,
        "at least one frame of at least one atom",
        f"shape {list(array.shape)}",
    )
    finite = np.isfinite(array).all(axis=(1, 2))
    if not finite.all():
        raise InputError(
            f"{argument}: expected finite positions, got a NaN or an infinity in frame {int(np.argmin(finite))}"
        )
    return array


def _check_indices(indices: Sequence, width: int, n_atoms: int, argument: str) -> np.ndarray:
    array = np.asarray(indices)
    if array.size == 0:
        return np.zeros((0, width), dtype=np.int64)
    require(
        array.ndim == 2 and array.shape[1] == width and array.dtype.kind in "iu",
        argument,
        f"integer atom indices [n, {width}]",
        f"shape {list(array.shape)} of {array.dtype}",
    )
    require(
        array.min() >= 0 and array.max() < n_atoms,
        argument,
        f"atom indices from 0 to {n_atoms - 1}",
        f"{array.min()} to {array.max()}",
    )
    return array.astype(np.int64)


def distances(positions: np.ndarray, pairs: Sequence) -> np.ndarray:
    """Distances of atom pairs.

    positions: [frames, atoms, 3] in nm.  pairs: atom indices [n, 2].
    Returns float64 [frames, n] in nm.  Raises `InputError` for a wrong shape or an index outside.
    """
    frames = check_frames(positions)
    index = _check_indices(pairs, 2, frames.shape[1], "pairs")
    difference = frames[:, index[:, 1]].astype(np.float64) - frames[:, index[:, 0]]
    return np.sqrt(np.einsum("fnc,fnc->fn", difference, difference))


def bond_lengths(positions: np.ndarray, bonds: Sequence) -> np.ndarray:
    """Lengths of bonds: `distances` with messages that name ``bonds``; float64 [frames, bonds] in nm."""
    frames = check_frames(positions)
    return distances(frames, _check_indices(bonds, 2, frames.shape[1], "bonds"))


def dihedral_angles(positions: np.ndarray, quadruples: Sequence) -> np.ndarray:
    """Dihedral angles with the IUPAC sign: seen along b to c, clockwise from a to d is positive.

    positions: [frames, atoms, 3] in nm.  quadruples: atom indices a, b, c, d as [n, 4].
    Returns float64 [frames, n], radians in (-pi, pi], trans = pi.  Three atoms on a line leave
    the angle undefined: 0.

    The two-argument arctangent form (Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), eq. 7-9) is
    accurate at every angle, where an arc cosine loses half the digits near 0 and pi.
    """
    frames = check_frames(positions)
    index = _check_indices(quadruples, 4, frames.shape[1], "quadruples")
    a, b, c, d = (frames[:, index[:, k]].astype(np.float64) for k in range(4))
    first, axis, last = b - a, c - b, d - c
    normal_1, normal_2 = np.cross(first, axis), np.cross(axis, last)
    sine = np.linalg.norm(axis, axis=-1) * np.einsum("fnc,fnc->fn", first, normal_2)
    cosine = np.einsum("fnc,fnc->fn", normal_1, normal_2)
    return np.arctan2(sine, cosine)


def bonds_apart(n_atoms: int, bonds: Sequence) -> np.ndarray:
    """Number of bonds on the shortest path between two atoms, int [atoms, atoms]; -1 where there is none."""
    index = _check_indices(bonds, 2, n_atoms, "bonds")
    neighbors: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in index.tolist():
        neighbors[i].append(j)
        neighbors[j].append(i)
    apart = np.full((n_atoms, n_atoms), -1, dtype=np.int64)
    for start in range(n_atoms):
        apart[start, start] = 0
        frontier = [start]
        while frontier:
            reached = []
            for atom in frontier:
                for other in neighbors[atom]:
                    if apart[start, other] < 0:
                        apart[start, other] = apart[start, atom] + 1
                        reached.append(other)
            frontier = reached
    return apart
