"""Size and shape of a molecule frame by frame, and how alike two frames are after optimal alignment.

Alignment is Kabsch's (Acta Cryst. A 34, 827 (1978)): with both frames moved to their means, the rotation R of
largest overlap sum_a x_a . R y_a comes from the singular values s1 >= s2 >= s3 of the 3 x 3 matrix sum_a x_a y_a^T.
The overlap is L = s1 + s2 + sign(det) s3, mirror images not being rotations, and both measures follow from it:

    rmsd^2 = (|x|^2 + |y|^2 - 2 L) / atoms,        correlation = L / (|x| |y|).

The correlation is Pearson's over all 3 atoms coordinates of the two aligned frames: moved to its mean, every frame has
mean 0 along each axis.  mdtraj has the rmsd only, in float32, which leaves about 1e-4 nm between equal frames; here
everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import check_integer, require
from .geometry import check_frames, distances

PAIRS_AT_ONCE = 200_000  # overlaps worked on together: 40 MB


def radius_of_gyration(positions: np.ndarray, masses: np.ndarray | None = None) -> np.ndarray:
    """sqrt(sum_a m_a |x_a - center|^2 / sum_a m_a) of each frame about its centre of mass.

    positions: [frames, atoms, 3] in nm.  masses: [atoms], any unit, not negative; None weighs all atoms alike.
    Returns float64 [frames] in nm.  Raises `InputError` for wrong shapes or masses.
    """
    frames = check_frames(positions).astype(np.float64)
    weight = _weights(masses, frames.shape[1])
    centered = frames - np.einsum("a,fac->fc", weight, frames)[:, None]
    return np.sqrt(np.einsum("a,fac,fac->f", weight, centered, centered))


def _weights(masses: np.ndarray | None, n_atoms: int) -> np.ndarray:
    if masses is None:
        return np.full(n_atoms, 1 / n_atoms)
    array = np.asarray(masses, dtype=np.float64)
    require(array.shape == (n_atoms,), "masses", f"shape [{n_atoms}]", f"shape {list(array.shape)}")
    require(
        bool(np.isfinite(array).all() and (array >= 0).all() and array.sum() > 0),
        "masses",
        "finite masses that are not negative, one of them positive",
        array,
    )
    return array / array.sum()


def end_to_end_distance(positions: np.ndarray, first: int = 0, last: int = -1) -> np.ndarray:
    """Distance of two atoms, by default the first and the last of the chain.

    positions: [frames, atoms, 3] in nm.  first, last: atom indices; negative ones count from the end.
    Returns float64 [frames] in nm.  Raises `InputError` for a wrong shape or an index outside.
    """
    frames = check_frames(positions)
    n_atoms = frames.shape[1]
    ends = [
        check_integer(value, name, minimum=-n_atoms, maximum=n_atoms - 1) % n_atoms
        for name, value in (("first", first), ("last", last))
    ]
    return distances(frames, [ends])[:, 0]


def align(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Frames rotated and moved onto a reference, each for the smallest RMSD; all atoms count alike.

    positions: [frames, atoms, 3] in nm.  reference: [atoms, 3] in nm.
    Returns float64 [frames, atoms, 3], centred on the reference's mean.  Raises `InputError` for wrong shapes.
    """
    frames, norms, target, _ = _pair(positions, reference)
    left, _, right = np.linalg.svd(np.einsum("fac,ad->fcd", frames, target))
    # A product of determinant -1 would mirror: the direction of the smallest singular value is turned over.
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    center = np.asarray(reference, dtype=np.float64).mean(axis=0)
    return frames @ (left @ right) + center


def rmsd(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root-mean-square distance of each frame to a reference after optimal alignment.

    positions: [frames, atoms, 3] in nm.  reference: [atoms, 3] in nm, the same atoms in the same order.
    Returns float64 [frames] in nm.  Raises `InputError` for wrong shapes.
    """
    frames, norms, target, norm = _pair(positions, reference)
    overlap = _overlap(np.einsum("fac,ad->fcd", frames, target))
    return _distance(norms, norm, overlap, len(target))


def rmsd_matrix(positions: np.ndarray) -> np.ndarray:
    """Root-mean-square distance of every two frames, each pair optimally aligned.

    positions: [frames, atoms, 3] in nm.  Returns float64 [frames, frames] in nm, symmetric, diagonal 0.
    Time and memory go with the square of the frames: about 1.6 s for 1,000 on one core.
    Raises `InputError` for a wrong shape.
    """
    frames, norms = _centered(positions)
    result = np.zeros((len(frames), len(frames)))
    for i, j, overlap in _overlaps(frames):
        result[i, j] = result[j, i] = _distance(norms[i], norms[j], overlap, frames.shape[1])
    return result


def correlation_matrix(positions: np.ndarray) -> np.ndarray:
    """Pearson correlation of the coordinates of every two frames, each pair optimally aligned.

    positions: [frames, atoms, 3] in nm.  Returns float64 [frames, frames], symmetric, diagonal 1: the matrix of the
    figures in Diamond and Lill, arXiv 2511.17741.  Time as for `rmsd_matrix`.
    Raises `InputError` for a wrong shape or a frame whose atoms all coincide, which has no correlation.
    """
    frames, norms = _centered(positions)
    require(
        bool((norms > 0).all()), "positions", "frames whose atoms do not all coincide", f"frame {int(np.argmin(norms))}"
    )
    result = np.eye(len(frames))
    for i, j, overlap in _overlaps(frames):
        result[i, j] = result[j, i] = overlap / np.sqrt(norms[i] * norms[j])
    return result


# ---- one overlap serves both measures ----------------------------------------------------------------


def _centered(positions: np.ndarray, argument: str = "positions") -> tuple[np.ndarray, np.ndarray]:
    """Frames moved to their means, and |x|^2 of each, [frames]."""
    frames = check_frames(positions, argument).astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    return frames, np.einsum("fac,fac->f", frames, frames)


def _pair(positions: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    frames, norms = _centered(positions)
    require(
        np.shape(reference) == frames.shape[1:],
        "reference",
        f"shape {list(frames.shape[1:])}",
        f"shape {list(np.shape(reference))}",
    )
    target, norm = _centered(np.asarray(reference)[None], "reference")
    return frames, norms, target[0], norm[0]


def _overlap(products: np.ndarray) -> np.ndarray:
    """L of the 3 x 3 matrices sum_a x_a y_a^T, [..., 3, 3]."""
    singular = np.linalg.svd(products, compute_uv=False)
    return singular[..., 0] + singular[..., 1] + np.sign(np.linalg.det(products)) * singular[..., 2]


def _overlaps(frames: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices i < j and their overlaps, a block of pairs at a time."""
    first, second = np.triu_indices(len(frames), 1)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        i, j = first[start : start + PAIRS_AT_ONCE], second[start : start + PAIRS_AT_ONCE]
        rows = np.unique(i)
        # One matrix product for the rows of this block; pairs below the diagonal among them cost little.
        products = np.tensordot(frames[rows], frames, axes=([1], [1]))
        yield i, j, _overlap(products[np.searchsorted(rows, i), :, j])


def _distance(norms: np.ndarray, norm: np.ndarray | float, overlap: np.ndarray, n_atoms: int) -> np.ndarray:
    return np.sqrt(np.maximum(norms + norm - 2 * overlap, 0.0) / n_atoms)  # rounding may go below zero
