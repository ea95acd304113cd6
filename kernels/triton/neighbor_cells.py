"""Neighbor lists on a GPU by linked cells, in linear time: for replicas of thousands of atoms.

Linked cells as in csrc/neighbor_cells.cpp: at least as wide as the list's reach, so that the neighbors of an atom are
in the 27 cells around it.  Atoms are sorted by cell once.  A program takes all atoms of a cell, so they share the loads
of the candidates, and finds each row in the order of the cells; a pass over the rows puts them in order.  Whether a
pair is near is decided as everywhere (neighbor_metric.py), so the list is the other backends', to the last entry,
whatever the cells are.

No atomics: the sort is stable, each row is written by one program, and an edge's place is the number of the row's
smaller columns.
"""

import torch
import triton
import triton.language as tl

from .arithmetic import bits_of, float_of, load_vector
from .neighbor_metric import load_box, nearest_image, squared_distance, store_shift, upright
from .tuning import tuned

# Atoms of a cell, and candidates, of one tile, four pairs a thread. With 60 neighbors an atom, a cell as wide as the
# reach holds 14 atoms, and the cells around it 387.
ROWS, COLUMNS = 16, 32
EDGES = 32  # one warp a row in the pass that puts rows in order
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def beside(c, step, n, IN_BOX: tl.constexpr):
    """(Cell c + step of an axis of n, whether there is one); around the border in a box.

    With one or two cells an axis wraps onto cells that are met anyway, and every cell is to be met once.
    """
    there = c + step
    if IN_BOX:
        around = n >= 3
        there = tl.where(around & (there < 0), there + n, tl.where(around & (there >= n), there - n, there))
    return there, (there >= 0) & (there < n)


@triton.jit
def places_around(first, grid, replica, per_replica, cell, IN_BOX: tl.constexpr):
    """Places [low, high) of the atoms of the cells around one, itself included, one cell a lane, 27 of 32."""
    around = tl.arange(0, 32)
    n0 = tl.load(grid + 3 * replica)
    n1 = tl.load(grid + 3 * replica + 1)
    n2 = tl.load(grid + 3 * replica + 2)
    own = cell - replica * per_replica
    x, in_x = beside(own // (n1 * n2), around // 9 - 1, n0, IN_BOX)
    y, in_y = beside(own // n2 % n1, around // 3 % 3 - 1, n1, IN_BOX)
    z, in_z = beside(own % n2, around % 3 - 1, n2, IN_BOX)
    there = (around < 27) & in_x & in_y & in_z
    at = first + replica * per_replica + (x * n1 + y) * n2 + z
    return tl.load(at, mask=there, other=0), tl.load(at + 1, mask=there, other=0)


@triton.jit(do_not_specialize=["reach"])
def rows_kernel(points, node, box, first, grid, per_replica, counts, row_ptr, unordered, n_replicas, reach,
                IN_BOX: tl.constexpr, BOX_PER_REPLICA: tl.constexpr, FILL: tl.constexpr, ROWS: tl.constexpr,
                COLUMNS: tl.constexpr):
    """How many neighbors each node has, or with FILL which, ``unordered`` as the cells come.

    ``points`` and ``node`` are by place; cell c has the places first[c] .. first[c + 1], replica r the cells from
    r * per_replica on, grid[r] along its axes.
    """
    n_cells = tl.load(per_replica)
    for cell in range(tl.program_id(0).to(tl.int64), n_replicas * n_cells, tl.num_programs(0)):
        begin = tl.load(first + cell).to(tl.int64)
        end = tl.load(first + cell + 1).to(tl.int64)
        replica = cell // n_cells
        for some in range(begin, end, ROWS):
            place = some + tl.arange(0, ROWS)
            inside = place < end
            mine = upright(load_vector(points, place, inside))
            i = tl.load(node + place, mask=inside, other=0)
            if FILL:
                listed = tl.load(row_ptr + i, mask=inside, other=0)
            else:
                listed = tl.zeros([ROWS], tl.int64)
            a, b, c = load_box(box, replica * BOX_PER_REPLICA, IN_BOX)
            low, high = places_around(first, grid, replica, n_cells, cell, IN_BOX)
            last = tl.cumsum(high - low, 0)  # candidates up to this cell
            before = last - (high - low)
            n_candidates = tl.sum(high - low, 0)
            for column in range(0, n_candidates, COLUMNS):
                number = column + tl.arange(0, COLUMNS)
                there = number < n_candidates
                of_cell = (number[:, None] >= before[None, :]) & (number[:, None] < last[None, :])
                other = tl.sum(tl.where(of_cell, number[:, None] + (low - before)[None, :], 0), 1).to(tl.int64)
                theirs = load_vector(points, other[None, :], there[None, :])
                squared, _ = squared_distance(mine, theirs, a, b, c, IN_BOX)
                near = inside[:, None] & there[None, :] & (place[:, None] != other[None, :])
                near = near & (squared < float_of(reach, tl.float64))
                found = near.to(tl.int32)
                if FILL:
                    j = tl.load(node + other, mask=there, other=0)
                    edge = listed[:, None] + tl.cumsum(found, 1) - 1
                    tl.store(unordered + edge, tl.broadcast_to(j[None, :], [ROWS, COLUMNS]), mask=near)
                listed += tl.sum(found, 1)
            if not FILL:
                tl.store(counts + i, listed, mask=inside)


@triton.jit
def order_kernel(points, wraps, row_ptr, unordered, col, shift, IN_BOX: tl.constexpr, EDGES: tl.constexpr):
    """One row put in order, and its shifts; ``points`` and ``wraps`` are by node."""
    i = tl.program_id(0).to(tl.int64)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    for some in range(begin, end, EDGES):
        edge = some + tl.arange(0, EDGES)
        inside = edge < end
        j = tl.load(unordered + edge, mask=inside, other=0)
        rank = tl.zeros([EDGES], tl.int64)
        for others in range(begin, end, EDGES):
            other = others + tl.arange(0, EDGES)
            smaller = tl.load(unordered + other, mask=other < end, other=2147483647)[None, :] < j[:, None]
            rank += tl.sum(smaller.to(tl.int32), 1)
        edge = begin + rank
        tl.store(col + edge, j, mask=inside)
        if IN_BOX:
            j = j.to(tl.int64)
            _, image = nearest_image(load_vector(points, i, True), load_vector(points, j, inside))
            store_shift(shift, edge, load_vector(wraps, i, True), load_vector(wraps, j, inside), image, inside)


def choose_grids(points: torch.Tensor, inverse: torch.Tensor | None, reach: float) -> tuple[torch.Tensor, ...]:
    """(cells along each axis int64, lower ends, cells per unit length), each [replicas, 3], without asking the host.

    Cells are wider than ``reach`` by a margin that outweighs all rounding, and there are at most as many as atoms,
    whatever the spread of the positions: the axis with the fewest first gets at most the cube root of what there may
    be, the next the square root of what that leaves.
    """
    n_replicas, n_atoms, _ = points.shape
    if inverse is None:
        low = points.amin(1).double()
        length = points.amax(1).double() - low
        width = length
    else:
        low, length = points.new_zeros(n_replicas, 3), points.new_ones(n_replicas, 3)
        width = (1 / inverse.square().sum(1).sqrt()).expand(n_replicas, 3)
    count = torch.floor(width / (reach * 1.000001))
    count = torch.where((count >= 1) & (length < 1e300), count, 1.0).clamp(max=n_atoms)
    count, axis = count.sort(1)
    for k in range(3):
        left = n_atoms / count[:, :k].prod(1)
        count[:, k] = torch.minimum(count[:, k], torch.floor(left ** (1 / (3 - k))).clamp(min=1))
    count = torch.empty_like(count).scatter_(1, axis, count)
    return count.long(), low, torch.where(length > 0, count / length, 0.0)


class Cells:
    """The atoms of all replicas, sorted by cell; counts and fills the rows of their list."""

    def __init__(self, points: torch.Tensor, bad: torch.Tensor, box: torch.Tensor, inverse: torch.Tensor | None,
                 reach: float):
        """``points``: [replicas, atoms, 3], nm, or with a box wrapped fractions; where any is bad, no row is sought:
        atoms that are nowhere would all be in one cell."""
        n_replicas, n_atoms, _ = points.shape
        device, n_nodes = points.device, n_replicas * n_atoms
        points = points.masked_fill(bad[:, :, None], 0)
        grid, low, per_length = choose_grids(points, inverse, reach)
        per_replica = grid.prod(1).amax()
        c = ((points.double() - low[:, None]) * per_length[:, None]).long().clamp(min=0).minimum(grid[:, None] - 1)
        cell = (c[..., 0] * grid[:, 1, None] + c[..., 1]) * grid[:, 2, None] + c[..., 2]
        cell += per_replica * torch.arange(n_replicas, device=device)[:, None]
        # There are no more cells than nodes, so their numbers fit in 32 bits: half the sort's work.
        cell, order = cell.flatten().int().sort(stable=True)
        first = torch.searchsorted(cell, torch.arange(n_nodes + 1, dtype=torch.int32, device=device), out_int32=True)
        self.arguments = (points.reshape(-1, 3)[order], order.int(), box, first, grid, per_replica * ~bad.any())
        self.points, self.n_nodes = points, n_nodes
        self.rest = (n_replicas, bits_of(reach * reach), inverse is not None, box.shape[0] > 1)

    def launch(self, counts, row_ptr, unordered, fill: bool) -> None:
        own = {"ROWS": ROWS, "COLUMNS": COLUMNS, **LAUNCH, **tuned("neighbor_cells", "", self.points.device)}
        # As many programs as there are full cells in a dense system; each takes several cells where most are empty.
        rows_kernel[triton.cdiv(self.n_nodes, ROWS),](*self.arguments, counts, row_ptr, unordered, *self.rest, fill,
                                                      **own)

    def count(self) -> torch.Tensor:
        counts = torch.zeros(self.n_nodes, dtype=torch.int64, device=self.points.device)
        self.launch(counts, None, None, False)
        return counts

    def fill(self, wraps: torch.Tensor | None, row_ptr: torch.Tensor, col: torch.Tensor, shift: torch.Tensor) -> None:
        unordered = torch.empty_like(col)
        self.launch(None, row_ptr, unordered, True)
        order_kernel[self.n_nodes,](self.points, wraps, row_ptr, unordered, col, shift, IN_BOX=wraps is not None,
                                    EDGES=EDGES, **LAUNCH | {"num_warps": 1})
