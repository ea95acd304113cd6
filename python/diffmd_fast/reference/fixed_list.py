"""Plain PyTorch truth for FixedList: candidates within a skin, and those of them within the cutoff."""

from __future__ import annotations

import torch
from torch import Tensor

from .neighbor_list import edge_offsets, squared_distances


def list_candidates(points: Tensor, box: Tensor, reach: float, stale: Tensor, candidates: Tensor,
                    counts: Tensor) -> None:
    """Rows of the stale replicas anew: ascending nodes nearer than ``reach``, and how many there are.

    ``points`` [replicas, atoms, 3]: positions, or fractions within the box; ``box`` float64 [0 or 1, 3, 3]; ``stale``
    bool [replicas]; ``candidates`` int32 [nodes, width], of which the first ``counts`` int32 [nodes] are meant.  Those
    beyond ``width`` are counted, not written.
    """
    n_atoms, width = points.shape[1], candidates.shape[1]
    for r in torch.nonzero(stale)[:, 0].tolist():
        x, rows = points[r].double(), slice(r * n_atoms, (r + 1) * n_atoms)
        near = squared_distances(x[None, :] - x[:, None], _only(box))[0] < reach * reach
        near.fill_diagonal_(False)
        place = near.cumsum(1) - 1
        i, j = torch.nonzero(near & (place < width), as_tuple=True)
        candidates[rows][i, place[i, j]] = (r * n_atoms + j).to(torch.int32)
        counts[rows] = near.sum(1).to(torch.int32)


def pack_candidates(points: Tensor, wraps: Tensor, box: Tensor, cutoff: float, candidates: Tensor, counts: Tensor,
                    row_ptr: Tensor, col: Tensor, offsets: Tensor) -> None:
    """The list of those candidates that are nearer than ``cutoff``, as far as ``col`` has room.

    ``wraps`` int32 [replicas, atoms, 3], the boxes that the fractions were taken off, or none; ``offsets`` nm
    [capacity, 3], what each edge adds to the position of its neighbor, or none.  ``row_ptr`` counts all of them.
    """
    x, n_nodes = points.double().reshape(-1, 3), counts.numel()
    row = torch.arange(n_nodes, device=x.device)[:, None]
    held = torch.arange(candidates.shape[1], device=x.device) < counts[:, None]
    other = torch.where(held, candidates.long(), row)
    squared, image = squared_distances(x[other] - x[:, None], _only(box))
    near = held & (squared < cutoff * cutoff)
    row_ptr[0], row_ptr[1:] = 0, near.sum(1).cumsum(0)
    i, k = (each[:len(col)] for each in torch.nonzero(near, as_tuple=True))
    col[:len(i)] = candidates[i, k]
    if image is not None:
        whole = wraps.reshape(-1, 3)
        shift = whole[i] - whole[other[i, k]] + image[i, k].to(torch.int32)
        offsets[:len(i)] = edge_offsets(shift, box, i, points.shape[1]).to(offsets.dtype)


def _only(box: Tensor) -> Tensor | None:
    return box[0] if box.shape[0] else None
