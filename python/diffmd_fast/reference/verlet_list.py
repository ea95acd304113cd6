"""Plain PyTorch truth for VerletList: how far atoms have moved, and lists of single replicas put together."""

from __future__ import annotations

import torch
from torch import Tensor

from .neighbor_list import NeighborList


def largest_moves(positions: Tensor, anchors: Tensor, transform: Tensor | None) -> Tensor:
    """Sum of the two largest |position - anchor @ transform| of each replica, float64 [replicas], nm; NaN for NaN."""
    was = anchors.double() if transform is None else anchors.double() @ transform
    moves = torch.linalg.vector_norm(positions.double() - was, dim=2)
    moves = torch.where(torch.isfinite(moves), moves, torch.nan)
    if moves.shape[1] == 0:
        return moves.sum(1)
    return moves.topk(min(2, moves.shape[1]), dim=1).values.sum(1)


def splice(kept: NeighborList, fresh: NeighborList, source: Tensor, n_atoms: int) -> NeighborList:
    """Replica r is replica source[r] of ``fresh``, or where that is negative replica r of ``kept``."""
    row_ptr, fields = [kept.row_ptr.new_zeros(1)], []
    n_edges = 0
    for r, from_fresh in enumerate(source.tolist()):
        rows, at = (kept, r) if from_fresh < 0 else (fresh, from_fresh)
        ends = rows.row_ptr[at * n_atoms:(at + 1) * n_atoms + 1]
        edges = slice(int(ends[0]), int(ends[-1]))
        fields.append((rows.col[edges] + (r - at) * n_atoms, rows.shift[edges],
                       rows.reverse[edges] + (n_edges - edges.start)))
        row_ptr.append(ends[1:] - ends[0] + n_edges)
        n_edges += edges.stop - edges.start
    return NeighborList(torch.cat(row_ptr), *(torch.cat(parts) for parts in zip(*fields)))
