"""What keeps a neighbor list for more than one step, on a GPU: how far atoms have moved since it was made, and lists of
single replicas put together into one; moves are those of csrc/verlet_list.cpp without fused multiply-adds."""

import torch
import triton
import triton.language as tl

from ...reference.neighbor_list import NeighborList
from .arithmetic import load_vector, subtract
from .neighbor_metric import load_box, widened

PIECE = 4096  # atoms whose moves are looked at by one program; as Moves::kPiece of csrc/verlet_list.hpp
ATOMS = 512  # at once, four a thread
EDGES = 32  # one warp a row in the pass that copies rows, as where they are made
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
ROUNDING = tl.constexpr(1e-14)  # of a coordinate; as kRounding of csrc/verlet_list.cpp


@triton.jit
def larger(a, b):
    """The larger of the two, and ``b`` where ``a`` is not a number."""
    return tl.where(a > b, a, b)


@triton.jit
def moves_kernel(positions, anchors, transform, moves, n_atoms, n_pieces, MOVED_BOX: tl.constexpr, PIECE: tl.constexpr,
                 ATOMS: tl.constexpr):
    """moves [replicas, pieces, 2]: the two largest |position - anchor @ transform|, NaN where one is not finite."""
    program = tl.program_id(0).to(tl.int64)
    replica = program // n_pieces
    begin = (program - replica * n_pieces) * PIECE
    if MOVED_BOX:
        a, b, c = load_box(transform, replica, True)
    largest = tl.zeros([ATOMS], tl.float64)
    second = tl.zeros([ATOMS], tl.float64)
    extent = tl.zeros([ATOMS], tl.float64)
    good = tl.zeros([ATOMS], tl.float64)
    for first in range(begin, tl.minimum(begin + PIECE, n_atoms), ATOMS):
        atom = first + tl.arange(0, ATOMS)
        inside = atom < n_atoms
        here = widened(load_vector(positions, replica * n_atoms + atom, inside))
        was = widened(load_vector(anchors, replica * n_atoms + atom, inside))
        if MOVED_BOX:
            was = ((was[0] * a[0] + was[1] * b[0]) + was[2] * c[0], (was[0] * a[1] + was[1] * b[1]) + was[2] * c[1],
                   (was[0] * a[2] + was[1] * b[2]) + was[2] * c[2])
        u = subtract(here, was)
        squared = (u[0] * u[0] + u[1] * u[1]) + u[2] * u[2]
        good += squared * 0  # NaN from the first one on that is not finite
        second = larger(tl.where(squared < largest, squared, largest), second)
        largest = larger(squared, largest)
        for k in tl.static_range(3):
            extent = larger(tl.abs(here[k]), extent)
    lane = tl.arange(0, ATOMS)
    second = tl.max(tl.where(lane == tl.argmax(largest, 0), second, largest), 0)
    rounding = tl.full([], ROUNDING, tl.float64) * tl.max(extent, 0)
    spoiled = tl.sum(good, 0)
    tl.store(moves + 2 * program, (tl.sqrt(tl.max(largest, 0)) + rounding) + spoiled)
    tl.store(moves + 2 * program + 1, (tl.sqrt(second) + rounding) + spoiled)


@triton.jit
def copy_row(from_ptr, from_col, from_shift, from_reverse, row_ptr, col, shift, reverse, row, replica, source, n_atoms,
             IN_BOX: tl.constexpr, EDGES: tl.constexpr):
    """A row of replica ``source`` of one list becomes ``row``, of ``replica``, of another."""
    nodes = (replica - source) * n_atoms
    edges = tl.load(row_ptr + replica * n_atoms) - tl.load(from_ptr + source * n_atoms)
    to = tl.load(row_ptr + row)
    begin = tl.load(from_ptr + row - nodes)
    n_edges = tl.load(row_ptr + row + 1) - to
    for first in range(0, n_edges, EDGES):
        edge = first + tl.arange(0, EDGES)
        inside = edge < n_edges
        j = tl.load(from_col + begin + edge, mask=inside, other=0)
        tl.store(col + to + edge, (j + nodes).to(tl.int32), mask=inside)
        tl.store(reverse + to + edge, tl.load(from_reverse + begin + edge, mask=inside, other=0) + edges, mask=inside)
        if IN_BOX:
            s = load_vector(from_shift, begin + edge, inside)
            for k in tl.static_range(3):
                tl.store(shift + 3 * (to + edge) + k, s[k], mask=inside)


@triton.jit
def splice_kernel(source, kept_ptr, kept_col, kept_shift, kept_reverse, fresh_ptr, fresh_col, fresh_shift,
                  fresh_reverse, row_ptr, col, shift, reverse, n_atoms, IN_BOX: tl.constexpr, EDGES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    replica = row // n_atoms
    of_fresh = tl.load(source + replica)
    if of_fresh < 0:
        copy_row(kept_ptr, kept_col, kept_shift, kept_reverse, row_ptr, col, shift, reverse, row, replica, replica,
                 n_atoms, IN_BOX, EDGES)
    else:
        copy_row(fresh_ptr, fresh_col, fresh_shift, fresh_reverse, row_ptr, col, shift, reverse, row, replica,
                 of_fresh, n_atoms, IN_BOX, EDGES)


def largest_moves(positions: torch.Tensor, anchors: torch.Tensor, transform: torch.Tensor | None) -> torch.Tensor:
    """As reference/verlet_list.py, rounded up like the native one."""
    positions = positions.contiguous()
    n_replicas, n_atoms, _ = positions.shape
    if positions.numel() == 0:
        return torch.zeros(n_replicas, dtype=torch.float64, device=positions.device)
    n_pieces = triton.cdiv(n_atoms, PIECE)
    moves = torch.empty(n_replicas, 2 * n_pieces, dtype=torch.float64, device=positions.device)
    with torch.cuda.device_of(positions):  # Triton launches on the current device
        moves_kernel[n_replicas * n_pieces,](positions, anchors, transform, moves, n_atoms, n_pieces,
                                             MOVED_BOX=transform is not None, PIECE=PIECE, ATOMS=ATOMS, **LAUNCH)
    return (moves if n_pieces == 1 else moves.topk(2, dim=1).values).sum(1)


def splice(kept: NeighborList, fresh: NeighborList, source: torch.Tensor, n_atoms: int) -> NeighborList:
    """As reference/verlet_list.py; waits for the GPU once, as the number of edges must be known."""
    lengths, others = (x.row_ptr.diff().reshape(-1, n_atoms) for x in (kept, fresh))
    lengths = torch.where(source[:, None] < 0, lengths, others[source.clamp(min=0)])
    row_ptr = torch.zeros_like(kept.row_ptr)
    torch.cumsum(lengths.flatten(), 0, out=row_ptr[1:])
    n_edges, in_box = int(row_ptr[-1]), len(kept.shift) + len(fresh.shift) > 0
    col, reverse = kept.col.new_empty(n_edges), kept.reverse.new_empty(n_edges)
    shift = kept.shift.new_empty(n_edges * in_box, 3)
    with torch.cuda.device_of(col):
        splice_kernel[len(row_ptr) - 1,](source, *kept[:4], *fresh[:4], row_ptr, col, shift, reverse, n_atoms,
                                         IN_BOX=in_box, EDGES=EDGES, **LAUNCH | {"num_warps": 1})
    return NeighborList(row_ptr, col, shift, reverse)
