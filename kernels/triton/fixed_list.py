"""A neighbor list in memory of fixed size, kept by the GPU itself: what ops/fixed_list.py says, without the host.

Pairs are judged by the one expression of neighbor_list.py, so the list is the same to the last entry.  Rows are written
by one program and in order: no atomics.  Where no replica of a program's rows is stale, it looks at no pair.
"""

import torch
import triton
import triton.language as tl

from .arithmetic import bits_of, load_vector
from .neighbor_list import LAUNCH, MAX_COLUMNS, PAIRS, near_nodes, near_pairs

SLOTS = 32  # candidates of a row at once: an atom has 30 to 100
SLOT_ROWS = PAIRS // SLOTS


@triton.jit(do_not_specialize=["reach"])
def candidates_kernel(points, box, stale, candidates, held, n_nodes, n_atoms, reach, n_slots, IN_BOX: tl.constexpr,
                      ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Candidates of the rows of stale replicas; ``reach`` holds the bits of its square."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    wanted = tl.load(stale + row // n_atoms, mask=row < n_nodes, other=0)
    row = tl.where(wanted != 0, row, n_nodes)  # those of others are outside
    place = tl.zeros([ROWS], tl.int32)
    for first in range(0, tl.where(tl.max(wanted, 0) != 0, n_atoms, 0), COLUMNS):
        near, other, _ = near_pairs(points, box, row, first + tl.arange(0, COLUMNS), n_nodes, n_atoms, reach, IN_BOX,
                                    False, False)
        listed = near.to(tl.int32)
        slot = place[:, None] + tl.cumsum(listed, 1) - 1
        tl.store(candidates + row[:, None] * n_slots + slot, other.to(tl.int32), mask=near & (slot < n_slots))
        place += tl.sum(listed, 1)
    tl.store(held + row, place, mask=row < n_nodes)


@triton.jit
def near_candidates(points, box, candidates, held, row, slot, n_nodes, n_atoms, reach, n_slots,
                    IN_BOX: tl.constexpr):
    """(near, node, image) of so many slots of so many rows."""
    count = tl.load(held + row, mask=row < n_nodes, other=0)
    both = (slot[None, :] < count[:, None]) & (slot < n_slots)[None, :]
    other = tl.load(candidates + row[:, None] * n_slots + slot[None, :], mask=both, other=0).to(tl.int64)
    both = both & (other >= 0) & (other < n_nodes)  # the host cannot look at them first
    near, image = near_nodes(points, box, row, other, both, n_nodes, n_atoms, reach, IN_BOX, False, False)
    return near, other, image


@triton.jit
def slots_of(held, row, n_nodes, n_slots):
    """How many slots the rows of a program have at most."""
    return tl.minimum(tl.max(tl.load(held + row, mask=row < n_nodes, other=0), 0), n_slots)


@triton.jit(do_not_specialize=["reach"])
def count_kernel(points, box, candidates, held, listed, n_nodes, n_atoms, reach, n_slots, IN_BOX: tl.constexpr,
                 ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """How many candidates of each row are near, int64 [nodes]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.int64)
    for first in range(0, slots_of(held, row, n_nodes, n_slots), SLOTS):
        near, _, _ = near_candidates(points, box, candidates, held, row, first + tl.arange(0, SLOTS), n_nodes,
                                     n_atoms, reach, n_slots, IN_BOX)
        total += tl.sum(near.to(tl.int32), 1)
    tl.store(listed + row, total, mask=row < n_nodes)


@triton.jit(do_not_specialize=["reach"])
def fill_kernel(points, box, wraps, candidates, held, row_ptr, col, offsets, n_nodes, n_atoms, reach, n_slots,
                n_edges, IN_BOX: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """Neighbors of every row and what their edges add to their positions; ``n_edges`` is the room there is."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_nodes
    place = tl.load(row_ptr + row, mask=inside, other=0)
    if IN_BOX:
        mine = load_vector(wraps, row, inside)
    for first in range(0, slots_of(held, row, n_nodes, n_slots), SLOTS):
        near, other, image = near_candidates(points, box, candidates, held, row, first + tl.arange(0, SLOTS), n_nodes,
                                             n_atoms, reach, n_slots, IN_BOX)
        listed = near.to(tl.int32)
        edge = place[:, None] + tl.cumsum(listed, 1) - 1
        fits = near & (edge < n_edges)
        tl.store(col + edge, other.to(tl.int32), mask=fits)
        if IN_BOX:
            theirs = load_vector(wraps, other, fits)
            a = mine[0][:, None].to(tl.float64) - theirs[0].to(tl.float64) - image[0]
            b = mine[1][:, None].to(tl.float64) - theirs[1].to(tl.float64) - image[1]
            c = mine[2][:, None].to(tl.float64) - theirs[2].to(tl.float64) - image[2]
            for k in tl.static_range(3):
                offset = (a * tl.load(box + k) + b * tl.load(box + 3 + k)) + c * tl.load(box + 6 + k)
                tl.store(offsets + 3 * edge + k, offset.to(offsets.dtype.element_ty), mask=fits)
        place += tl.sum(listed, 1)


def list_candidates(points, box, reach: float, stale, candidates, counts) -> None:
    """Arguments as of reference/fixed_list.py, checked by ops/fixed_list.py."""
    n_nodes, n_atoms = counts.numel(), points.shape[1]
    columns = min(MAX_COLUMNS, max(16, triton.next_power_of_2(n_atoms)))
    rows = PAIRS // columns
    with torch.cuda.device_of(points):  # Triton launches on the current device
        candidates_kernel[triton.cdiv(n_nodes, rows),](
            points, box, stale.to(torch.int32), candidates, counts, n_nodes, n_atoms, bits_of(reach * reach),
            candidates.shape[1], IN_BOX=box.shape[0] > 0, ROWS=rows, COLUMNS=columns, **LAUNCH)


def pack_candidates(points, wraps, box, cutoff: float, candidates, counts, row_ptr, col, offsets) -> None:
    n_nodes, n_atoms = counts.numel(), points.shape[1]
    tile = {"IN_BOX": box.shape[0] > 0, "ROWS": SLOT_ROWS, "SLOTS": SLOTS, **LAUNCH}
    listed, programs, squared = torch.empty_like(row_ptr[1:]), triton.cdiv(n_nodes, SLOT_ROWS), bits_of(cutoff * cutoff)
    with torch.cuda.device_of(points):
        count_kernel[programs,](points, box, candidates, counts, listed, n_nodes, n_atoms, squared,
                                candidates.shape[1], **tile)
        row_ptr[:1].zero_()
        torch.cumsum(listed, 0, out=row_ptr[1:])
        fill_kernel[programs,](points, box, wraps, candidates, counts, row_ptr, col, offsets, n_nodes, n_atoms, squared,
                               candidates.shape[1], col.numel(), **tile)
