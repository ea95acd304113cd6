"""Neighbor lists on a GPU.  Here: every pair of a replica, for molecules and systems of a few thousand atoms, and what
the passes have in common; neighbor_cells.py: linked cells.

The same list as csrc/neighbor_*.cpp and the reference, to the last entry: whether a pair is near is decided in
float64 by the one expression of neighbor_metric.py.  Two passes over the pairs, count and fill; a third over the edges
finds each edge's twin by bisection and gives vectors and distances.  A row is written by one program, and here in
order, so there are no atomics and nothing is sorted.
"""

import torch
import triton
import triton.language as tl

from ...reference.neighbor_list import fractions
from .arithmetic import bits_of, exact_sqrt, float_of, load_vector, subtract
from .neighbor_cells import Cells
from .neighbor_metric import FARTHEST, load_box, squared_distance, store_shift, upright
from .tuning import tuned

# Pairs of one tile, four a thread; with eight the fill took all 255 registers. Up to 64 atoms a row is seen at once.
PAIRS, MAX_COLUMNS = 512, 64
EDGES = 32  # one warp a row in the pass over the edges: an atom has 20 to 60 neighbors
# No fused multiply-adds: a pair and its mirror, and every machine, must decide alike.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def near_pairs(points, box, row, column, n_nodes, n_atoms, reach, IN_BOX: tl.constexpr, BOX_PER_REPLICA: tl.constexpr,
               ALL_PAIRS: tl.constexpr):
    """(near, other, image) of rows of nodes and columns of atoms of each row's replica; ``points`` are fractions in a
    box."""
    inside = row < n_nodes
    replica = (row // n_atoms).to(tl.int64)
    other = replica[:, None] * n_atoms + column[None, :]
    both = inside[:, None] & (column < n_atoms)[None, :] & (other != row[:, None])
    near, image = near_nodes(points, box, row, other, both, n_nodes, n_atoms, reach, IN_BOX, BOX_PER_REPLICA, ALL_PAIRS)
    return near, other, image


@triton.jit
def near_nodes(points, box, row, other, both, n_nodes, n_atoms, reach, IN_BOX: tl.constexpr,
               BOX_PER_REPLICA: tl.constexpr, ALL_PAIRS: tl.constexpr):
    """(near, image) of rows [rows] and nodes ``other`` [rows, columns] where ``both`` says that there are two."""
    inside = row < n_nodes
    a, b, c = load_box(box, (row // n_atoms).to(tl.int64) * BOX_PER_REPLICA, inside & IN_BOX)
    squared, image = squared_distance(upright(load_vector(points, row.to(tl.int64), inside)),
                                      load_vector(points, other, both), upright(a), upright(b), upright(c), IN_BOX)
    near = both
    if not ALL_PAIRS:
        near = near & (squared < float_of(reach, tl.float64))
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
    for first in range(0, n_atoms, COLUMNS):
        near, other, image = near_pairs(points, box, row, first + tl.arange(0, COLUMNS), n_nodes, n_atoms, reach,
                                        IN_BOX, BOX_PER_REPLICA, ALL_PAIRS)
        listed = near.to(tl.int32)
        edge = place[:, None] + tl.cumsum(listed, 1) - 1
        tl.store(col + edge, other.to(tl.int32), mask=near)
        if IN_BOX:  # wraps kept from before the loop take 40 registers more on sm_90
            store_shift(shift, edge, upright(load_vector(wraps, row, inside)), load_vector(wraps, other, near), image,
                        near)
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


def search(positions: torch.Tensor, box: torch.Tensor, inverse: torch.Tensor | None, reach: float,
           cells: bool) -> tuple:
    """(row_ptr, col, shift, first bad node or -1); the list is void where a node is bad.

    Arguments are checked by ops/neighbor_list.py.  Waits for the GPU once, as the number of edges must be known.
    """
    n_replicas, n_atoms, _ = positions.shape
    device, points, wraps = positions.device, positions, None
    bad = ~torch.isfinite(positions).all(2)
    if inverse is not None:
        points = fractions(positions.double(), inverse)
        whole = torch.floor(points)
        bad |= ~((whole > -FARTHEST) & (whole < FARTHEST)).all(2)
        points, wraps = (points - whole).contiguous(), whole.to(torch.int32).contiguous()
    with torch.cuda.device_of(positions):  # Triton launches on the current device
        if cells and reach < float("inf"):
            rows = Cells(points, bad, box, inverse, reach)
        else:
            rows = Pairs(points, box, inverse, reach)
        row_ptr = torch.zeros(n_replicas * n_atoms + 1, dtype=torch.int64, device=device)
        torch.cumsum(rows.count(), 0, out=row_ptr[1:])
        n_edges, any_bad, first = torch.stack([row_ptr[-1], bad.any().long(), bad.flatten().long().argmax()]).tolist()
        if any_bad:
            return row_ptr, None, None, first
        col = torch.empty(n_edges, dtype=torch.int32, device=device)
        shift = torch.empty((n_edges if wraps is not None else 0, 3), dtype=torch.int32, device=device)
        if n_edges:
            rows.fill(wraps, row_ptr, col, shift)
    return row_ptr, col, shift, -1


class Pairs:
    """Every pair of a replica: counts and fills the rows of their list."""

    def __init__(self, points: torch.Tensor, box: torch.Tensor, inverse: torch.Tensor | None, reach: float):
        """``points``: [replicas, atoms, 3], nm, or with a box wrapped fractions."""
        n_replicas, n_atoms, _ = points.shape
        self.points, self.box, self.in_box, self.all_pairs = points, box, inverse is not None, reach == float("inf")
        self.sizes = (n_replicas * n_atoms, n_atoms, bits_of(reach * reach))

    def launch(self, kernel, *arguments, **constants) -> None:
        n_nodes, n_atoms, _ = self.sizes
        columns = min(MAX_COLUMNS, max(16, triton.next_power_of_2(n_atoms)))
        own = {"PAIRS": PAIRS, **LAUNCH, **tuned("neighbor_pairs", f"{columns} columns", self.points.device)}
        rows = own.pop("PAIRS") // columns
        kernel[triton.cdiv(n_nodes, rows),](
            self.points, self.box, *arguments, *self.sizes, IN_BOX=self.in_box, BOX_PER_REPLICA=self.box.shape[0] > 1,
            ROWS=rows, COLUMNS=columns, **constants, **own)

    def count(self) -> torch.Tensor:
        n_nodes, n_atoms, _ = self.sizes
        counts = torch.full((n_nodes,), n_atoms - 1, device=self.points.device)
        if not self.all_pairs:
            self.launch(count_kernel, counts)
        return counts

    def fill(self, wraps: torch.Tensor | None, row_ptr: torch.Tensor, col: torch.Tensor, shift: torch.Tensor) -> None:
        self.launch(fill_kernel, wraps, row_ptr, col, shift, ALL_PAIRS=self.all_pairs)


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
