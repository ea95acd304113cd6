"""Plain PyTorch truth for neighbor_list: every pair of a replica is looked at, nothing is clever."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PAIRS_AT_ONCE = 2**21  # memory of the reference, about 200 bytes a pair


class NeighborList(NamedTuple):
    """Who is near whom, as compressed sparse rows; node = replica * n_atoms + atom.

    Every pair is listed from both sides, no atom is its own neighbor, and no edge leaves its replica.
    """

    row_ptr: Tensor  # int64 [n_nodes + 1]: the edges of node i are row_ptr[i] .. row_ptr[i + 1]
    col: Tensor  # int32 [n_edges]: the neighbor's node, ascending within a row
    shift: Tensor  # int32 [n_edges, 3]: box vectors to add to the neighbor; [0, 3] without a box
    reverse: Tensor  # int64 [n_edges]: the edge of the same pair seen from the other side
    distances: Tensor | None = None  # [n_edges] nm
    vectors: Tensor | None = None  # [n_edges, 3] nm: x_col + shift @ box - x_row

    def rows(self) -> Tensor:
        """The node that each edge starts from: int64 [n_edges]."""
        return edge_rows(self.row_ptr, self.col.numel())


def edge_rows(row_ptr: Tensor, n_edges: int) -> Tensor:
    """Row (the node that receives) of every edge of a list in compressed sparse rows, int64 [n_edges]."""
    nodes = torch.arange(row_ptr.numel() - 1, device=row_ptr.device)
    return torch.repeat_interleave(nodes, row_ptr[1:] - row_ptr[:-1], output_size=n_edges)


def inverse_boxes(box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(inverse [B, 3, 3], volume [B], perpendicular widths [B, 3]) of boxes [B, 3, 3] whose rows are the vectors.

    Products and sums are written out: fractions decide what is listed, and the native code repeats them bit for bit.
    """
    normals = torch.stack([_cross(box[:, (k + 1) % 3], box[:, (k + 2) % 3]) for k in range(3)], dim=1)
    volume = _dot(box[:, 0], normals[:, 0])
    widths = volume[:, None] / torch.sqrt(_dot(normals, normals))
    return (normals / volume[:, None, None]).transpose(1, 2).contiguous(), volume, widths


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([u[:, (c + 1) % 3] * v[:, (c + 2) % 3] - u[:, (c + 2) % 3] * v[:, (c + 1) % 3]
                        for c in range(3)], dim=1)


def _dot(u: Tensor, v: Tensor) -> Tensor:
    product = u * v
    return (product[..., 0] + product[..., 1]) + product[..., 2]


def fractions(positions: Tensor, inverse: Tensor) -> Tensor:
    """positions @ inverse for [replicas, atoms, 3] and [B, 3, 3], in the order of operations of the native code."""
    x, y, z = positions.unbind(2)
    m = inverse[:, :, :, None]  # [B, 3, 3, 1]: broadcasts over the atoms
    return torch.stack([(x * m[:, 0, k] + y * m[:, 1, k]) + z * m[:, 2, k] for k in range(3)], dim=2)


def neighbor_list_core(positions: Tensor, box: Tensor, reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(row_ptr, col, shift, reverse); ``box`` is float64 [0, 3, 3] (none), [1, 3, 3] or [replicas, 3, 3].

    An infinite ``reach`` lists all pairs.  Whether a pair is near is decided in float64.  With a box, rounding the
    difference of the fractional coordinates gives the nearest image whenever that is nearer than half of every
    perpendicular width, triclinic boxes included.
    """
    n_replicas, n_atoms, _ = positions.shape
    place, periodic = positions.device, box.shape[0] > 0
    x = positions.double()
    if periodic:
        boxes = box.expand(n_replicas, 3, 3)
        fraction = fractions(x, inverse_boxes(boxes)[0])
        wraps = torch.floor(fraction)
        x = fraction - wraps
    rows, cols, shifts = [], [], []
    block = max(1, PAIRS_AT_ONCE // max(1, n_atoms))
    for r in range(n_replicas):
        for first in range(0, n_atoms, block):
            mine = torch.arange(first, min(first + block, n_atoms), device=place)
            squared, image = squared_distances(x[r][None, :] - x[r, mine][:, None], boxes[r] if periodic else None)
            near = squared < reach * reach
            if reach == float("inf"):
                near = torch.ones_like(near)
            near[torch.arange(len(mine), device=place), mine] = False
            i, j = torch.nonzero(near, as_tuple=True)
            rows.append(r * n_atoms + first + i)
            cols.append(r * n_atoms + j)
            if periodic:
                shifts.append(image[i, j] + wraps[r, first + i] - wraps[r, j])
    empty = torch.zeros(0, dtype=torch.int64, device=place)
    row, col = torch.cat([empty, *rows]), torch.cat([empty, *cols])
    shift = torch.cat([torch.zeros(0, 3, dtype=torch.float64, device=place), *shifts]).to(torch.int32)
    counts = torch.bincount(row, minlength=n_replicas * n_atoms)
    row_ptr = torch.cat([empty.new_zeros(1), counts.cumsum(0)])
    # The list is symmetric and sorted by (row, col): sorted by (col, row) it is the list of the mirrors.
    reverse = torch.argsort(col * max(1, n_replicas * n_atoms) + row)
    return row_ptr, col.to(torch.int32), shift, reverse


def squared_distances(d: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(nm^2 [rows, columns], image) of differences d [rows, columns, 3] in float64: of positions, or of fractions in
    ``box`` [3, 3], to the nearest image then; image [rows, columns, 3] are the box vectors to add for it."""
    image = None
    if box is not None:
        image = -torch.round(d)
        f0, f1, f2 = (d + image).unbind(2)
        d = torch.stack([(f0 * box[0, k] + f1 * box[1, k]) + f2 * box[2, k] for k in range(3)], dim=2)
    return (d[..., 0] ** 2 + d[..., 1] ** 2) + d[..., 2] ** 2, image


def edge_offsets(shift: Tensor, box: Tensor, row: Tensor, n_atoms: int) -> Tensor:
    """shift @ box in nm, float64 [n_edges, 3], for boxes [1, 3, 3] or [replicas, 3, 3] and the edges' rows."""
    own = box[0] if box.shape[0] == 1 else box[torch.div(row, n_atoms, rounding_mode="floor")]
    return (shift.double()[:, :, None] * own).sum(1)


def edge_vectors(positions: Tensor, box: Tensor, row_ptr: Tensor, col: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(vectors, distances) along the edges, differentiable to any order; a distance of zero has gradient zero."""
    row = edge_rows(row_ptr, col.numel())
    flat = positions.reshape(-1, 3)
    vectors = flat.index_select(0, col.long()) - flat.index_select(0, row)
    if box.shape[0]:
        vectors = vectors + edge_offsets(shift, box, row, positions.shape[1]).to(positions.dtype)
    squared = (vectors * vectors).sum(1)
    apart = squared > 0
    return vectors, torch.where(apart, torch.sqrt(torch.where(apart, squared, 1.0)), 0.0)
