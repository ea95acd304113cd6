"""Neighbor lists on a GPU by looking at every pair of a replica: for molecules, and systems of a few thousand atoms.

The same list as csrc/neighbor_pairs.cpp and the reference, to the last entry: whether a pair is near is decided in
float64 by the one expression of csrc/neighbor_metric.hpp, without fused multiply-adds.  Two passes over the pairs,
count and fill; a third over the edges finds each edge's twin by bisection and gives vectors and distances.  A row is
written by one program and in order, so there are no atomics and nothing is sorted.
"""

import torch
import triton
import triton.language as tl

from ...reference.neighbor_list import fractions
from .arithmetic import bits_of, exact_sqrt, float_of, load_vector, subtract

# Pairs of one tile, four a thread; with eight the fill took all 255 registers. Up to 64 atoms a row is seen at once.
PAIRS, MAX_COLUMNS = 512, 64
EDGES = 32  # one warp a row in the pass over the edges: an atom has 20 to 60 neighbors
# No fused multiply-adds: a pair and its mirror, and every machine, must decide alike.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
FARTHEST = 2.0**29  # box vectors; as kFarthest of csrc/neighbor_metric.hpp
NEAREST_MAGIC = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52: adding and taking it off rounds to the nearest integer


@triton.jit
def load_box(box, replica, inside):
    """The three vectors of each lane's box."""
    return (load_vector(box, 3 * replica, inside), load_vector(box, 3 * replica + 1, inside),
            load_vector(box, 3 * replica + 2, inside))


@triton.jit
def in_box(f, a, b, c, k: tl.constexpr):
    return (f[0] * a[k][:, None] + f[1] * b[k][:, None]) + f[2] * c[k][:, None]


@triton.jit
def near_pairs(points, box, row, column, n_nodes, n_atoms, reach, IN_BOX: tl.constexpr, BOX_PER_REPLICA: tl.constexpr,
               ALL_PAIRS: tl.constexpr):
    """(near, image) of rows of nodes and columns of atoms of each row's replica; ``points`` are fractions in a box."""
    inside = row < n_nodes
    replica = (row // n_atoms).to(tl.int64)
    other = replica[:, None] * n_atoms + column[None, :]
    both = inside[:, None] & (column < n_atoms)[None, :]
    near, image = near_nodes(points, box, row, other, both, n_nodes, n_atoms, reach, IN_BOX, BOX_PER_REPLICA, ALL_PAIRS)
    return near & (other != row[:, None]), other, image


@triton.jit
def near_nodes(points, box, row, other, both, n_nodes, n_atoms, reach, IN_BOX: tl.constexpr,
               BOX_PER_REPLICA: tl.constexpr, ALL_PAIRS: tl.constexpr):
    """(near, image) of rows [rows] and nodes ``other`` [rows, columns] where ``both`` says that there are two."""
    inside = row < n_nodes
    near = both
    mine = load_vector(points, row.to(tl.int64), inside)
    theirs = load_vector(points, other, both)
    d0 = theirs[0].to(tl.float64) - mine[0].to(tl.float64)[:, None]
    d1 = theirs[1].to(tl.float64) - mine[1].to(tl.float64)[:, None]
    d2 = theirs[2].to(tl.float64) - mine[2].to(tl.float64)[:, None]
    image = (d0, d1, d2)
    if IN_BOX:
        image = ((d0 + NEAREST_MAGIC) - NEAREST_MAGIC, (d1 + NEAREST_MAGIC) - NEAREST_MAGIC,
                 (d2 + NEAREST_MAGIC) - NEAREST_MAGIC)
        f = subtract((d0, d1, d2), image)
        a, b, c = load_box(box, (row // n_atoms).to(tl.int64) * BOX_PER_REPLICA, inside)
        d0 = in_box(f, a, b, c, 0)
        d1 = in_box(f, a, b, c, 1)
        d2 = in_box(f, a, b, c, 2)
    if not ALL_PAIRS:
        near = near & ((d0 * d0 + d1 * d1) + d2 * d2 < float_of(reach, tl.float64))
    return near, image


@triton.jit(do_not_specialize=["reach"])
def count_kernel(points, box, counts, n_nodes, n_atoms, reach, IN_BOX: tl.constexpr, BOX_PER_REPLICA: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """How many neighbors each node has, int64 [nodes]; ``reach`` holds the bits of its square."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    count = tl.zeros([ROWS], tl.int64)
    for first in range(0, n_atoms, COLUMNS):
        near, _, _ = near_pairs(points, box, row, first + tl.arange(0, COLUMNS), n_nodes, n_atoms, reach, IN_BOX,
                                BOX_PER_REPLICA, False)
        count += tl.sum(near.to(tl.int32), 1)
    tl.store(counts + row, count, mask=row < n_nodes)


@triton.jit(do_not_specialize=["reach"])
def fill_kernel(points, box, wraps, row_ptr, col, shift, n_nodes, n_atoms, reach, IN_BOX: tl.constexpr,
                BOX_PER_REPLICA: tl.constexpr, ALL_PAIRS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns and shifts of every row, in order."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_nodes
    place = tl.load(row_ptr + row, mask=inside, other=0)
    if IN_BOX:
        mine = load_vector(wraps, row, inside)
    for first in range(0, n_atoms, COLUMNS):
        near, other, image = near_pairs(points, box, row, first + tl.arange(0, COLUMNS), n_nodes, n_atoms, reach,
                                        IN_BOX, BOX_PER_REPLICA, ALL_PAIRS)
        listed = near.to(tl.int32)
        edge = place[:, None] + tl.cumsum(listed, 1) - 1
        tl.store(col + edge, other.to(tl.int32), mask=near)
        if IN_BOX:
            theirs = load_vector(wraps, other, near)
            for k in tl.static_range(3):
                whole = mine[k][:, None] - theirs[k] - image[k].to(tl.int32)
                tl.store(shift + 3 * edge + k, whole, mask=near)
        place += tl.sum(listed, 1)


@triton.jit
def edges_kernel(positions, box, row_ptr, col, shift, reverse, vectors, distances, n_atoms, n_steps,
                 IN_BOX: tl.constexpr, BOX_PER_REPLICA: tl.constexpr, REVERSE: tl.constexpr, VECTORS: tl.constexpr,
                 DISTANCES: tl.constexpr, EDGES: tl.constexpr):
    """The twin, the vector and the length of each edge of one row; ``n_steps`` bisections suffice for any row."""
    DTYPE: tl.constexpr = positions.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    mine = load_vector(positions, i, True)
    end = tl.load(row_ptr + i + 1)
    for first in range(tl.load(row_ptr + i), end, EDGES):
        edge = first + tl.arange(0, EDGES)
        inside = edge < end
        j = tl.load(col + edge, mask=inside, other=0).to(tl.int64)
        if REVERSE:
            low = tl.load(row_ptr + j, mask=inside, other=0)
            high = tl.load(row_ptr + j + 1, mask=inside, other=0)
            for _ in range(n_steps):
                middle = (low + high) // 2
                left = low < high
                before = tl.load(col + middle, mask=left, other=0) < i
                low = tl.where(left & before, middle + 1, low)
                high = tl.where(left & ~before, middle, high)
            tl.store(reverse + edge, low, mask=inside)
        if VECTORS or DISTANCES:
            there = load_vector(positions, j, inside)
            v = subtract(there, mine)
            if IN_BOX:  # rounded once, as in csrc/neighbor_metric.hpp
                s = load_vector(shift, edge, inside)
                at = box + 9 * (i // n_atoms) * BOX_PER_REPLICA
                v = (moved(there[0], mine[0], s, at, DTYPE), moved(there[1], mine[1], s, at + 1, DTYPE),
                     moved(there[2], mine[2], s, at + 2, DTYPE))
            if VECTORS:
                for k in tl.static_range(3):
                    tl.store(vectors + 3 * edge + k, v[k], mask=inside)
            if DISTANCES:
                tl.store(distances + edge, exact_sqrt((v[0] * v[0] + v[1] * v[1]) + v[2] * v[2]), mask=inside)


@triton.jit
def moved(there, here, s, box, DTYPE: tl.constexpr):
    """One component of x_j + s @ box - x_i."""
    offset = (s[0] * tl.load(box) + s[1] * tl.load(box + 3)) + s[2] * tl.load(box + 6)
    return ((there.to(tl.float64) - here.to(tl.float64)) + offset).to(DTYPE)


def search(positions: torch.Tensor, box: torch.Tensor, inverse: torch.Tensor | None, reach: float) -> tuple:
    """(row_ptr, col, shift, first bad node or -1); the list is void where a node is bad.

    Arguments are checked by ops/neighbor_list.py.  Waits for the GPU once, as the number of edges must be known.
    """
    n_replicas, n_atoms, _ = positions.shape
    n_nodes, all_pairs, device = n_replicas * n_atoms, reach == float("inf"), positions.device
    points, wraps = positions, None
    bad = ~torch.isfinite(positions).all(2)
    if inverse is not None:
        points = fractions(positions.double(), inverse)
        whole = torch.floor(points)
        bad |= ~((whole > -FARTHEST) & (whole < FARTHEST)).all(2)
        points, wraps = (points - whole).contiguous(), whole.to(torch.int32).contiguous()
    columns = min(MAX_COLUMNS, max(16, triton.next_power_of_2(n_atoms)))
    tile = {"ROWS": PAIRS // columns, "COLUMNS": columns, "IN_BOX": inverse is not None,
            "BOX_PER_REPLICA": box.shape[0] > 1, **LAUNCH}
    programs, squared = triton.cdiv(n_nodes, tile["ROWS"]), bits_of(reach * reach)
    with torch.cuda.device_of(positions):  # Triton launches on the current device
        if all_pairs:
            row_ptr = torch.arange(n_nodes + 1, device=device) * (n_atoms - 1)
        else:
            row_ptr = torch.zeros(n_nodes + 1, dtype=torch.int64, device=device)
            counts = torch.empty(n_nodes, dtype=torch.int64, device=device)
            count_kernel[programs,](points, box, counts, n_nodes, n_atoms, squared, **tile)
            torch.cumsum(counts, 0, out=row_ptr[1:])
        n_edges, any_bad, first = torch.stack([row_ptr[-1], bad.any().long(), bad.flatten().long().argmax()]).tolist()
        col = torch.empty(n_edges, dtype=torch.int32, device=device)
        shift = torch.empty((n_edges if wraps is not None else 0, 3), dtype=torch.int32, device=device)
        if n_edges and not any_bad:
            fill_kernel[programs,](points, box, wraps, row_ptr, col, shift, n_nodes, n_atoms, squared,
                                   ALL_PAIRS=all_pairs, **tile)
    return row_ptr, col, shift, first if any_bad else -1


def edges(positions, box, row_ptr, col, shift, *, reverse=False, vectors=False, distances=False) -> tuple:
    """(reverse, vectors, distances) of the edges of a list; those not asked for are empty."""
    n_replicas, n_atoms, _ = positions.shape
    n_edges = col.numel()
    twins = row_ptr.new_empty(n_edges if reverse else 0)
    along, apart = positions.new_empty(n_edges if vectors else 0, 3), positions.new_empty(n_edges if distances else 0)
    if n_edges and (reverse or vectors or distances):
        with torch.cuda.device_of(positions):
            edges_kernel[n_replicas * n_atoms,](
                positions, box, row_ptr, col, shift, twins, along, apart, n_atoms, n_atoms.bit_length(),
                IN_BOX=box.shape[0] > 0, BOX_PER_REPLICA=box.shape[0] > 1, REVERSE=reverse, VECTORS=vectors,
                DISTANCES=distances, EDGES=EDGES, **LAUNCH | {"num_warps": 1})
    return twins, along, apart
