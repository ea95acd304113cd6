"""A neighbor list in memory of fixed size that the device keeps up to date by itself, for steps captured in a graph.

Verlet's skin in two layers: candidates within cutoff + skin, listed anew for the replicas of which an atom has moved
too far (the device decides), and the list itself, those of them within the cutoff, packed at every call.  So the list,
and the order of every sum over it, is a function of the positions alone, and neither restarts nor other replicas show
in a trajectory; and what reads the list meets no edge that adds nothing.

Fast path: kernels/triton/fixed_list.py.  Truth: reference/fixed_list.py, which is what runs on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import check_number, check_tensor, require
from ..reference import fixed_list as reference
from ..reference.neighbor_list import fractions, inverse_boxes
from ..reference.verlet_list import largest_moves
from ._library import define
from .neighbor_list import as_boxes, check_boxes, neighbor_list
from .verlet_list import MARGIN

SPARE, MULTIPLE = 1.25, 16  # room beyond what was needed when the memory was taken
FARTHEST = 2.0**29  # box vectors, as in csrc/neighbor_metric.hpp


class FixedList:
    """The pairs within ``cutoff`` of replicas that move, as :func:`~diffmd_fast.ops.neighbor_list` gives them.

    :meth:`update` makes no host wait for a GPU and changes memory that stays where it is.  Once more pairs turn up than
    fit, lists are empty and :meth:`overflows` says so afterwards: call :meth:`fit`, and compute again whatever was
    computed meanwhile.

    Args:
        positions: [replicas, atoms, 3] nm, the first to come; they say how much room is needed.
        cutoff: nm.
        skin: nm; a larger one makes more candidates, listed less often.
        box: as for ``neighbor_list``, one for all replicas; None for none.

    Attributes:
        row_ptr: int64 [nodes + 1], col: int32 [capacity], offsets: [capacity, 3] nm (what an edge adds to its
            neighbor's position) or [0, 3] without a box: the list, in compressed sparse rows.
        n_builds: int64 [1]: how often candidates of a replica were listed.
    """

    def __init__(self, positions: Tensor, cutoff: float, skin: float, box: Tensor | None = None):
        check_tensor(positions, "positions", ("replicas", "atoms", 3))
        require(positions.numel() > 0, "positions", "at least one replica and one atom", list(positions.shape))
        self.cutoff = check_number(cutoff, "cutoff", above=0, unit="nm")
        self.skin = check_number(skin, "skin", minimum=0, unit="nm")
        self._box = as_boxes(box, positions, "FixedList")
        require(len(self._box) < 2, "box", "one for all replicas", list(self._box.shape))
        if len(self._box):
            check_boxes(self._box, self.cutoff, self.skin)
            self._inverse = inverse_boxes(self._box)[0]
        n_nodes = positions.shape[0] * positions.shape[1]
        require(n_nodes < 2**31 - 1, "positions", "fewer than 2147483647 atoms in all (nodes are 32-bit)", n_nodes)
        self._anchors = torch.empty_like(positions)
        self._counts = torch.zeros(n_nodes, dtype=torch.int32, device=positions.device)
        self.row_ptr = torch.zeros(n_nodes + 1, dtype=torch.int64, device=positions.device)
        self._needed = torch.zeros(2, dtype=torch.int64, device=positions.device)
        self.n_builds = torch.zeros(1, dtype=torch.int64, device=positions.device)
        reaches = (self.cutoff + self.skin, self.cutoff)
        longest, listed = (neighbor_list(positions, reach, box=self._own_box()).row_ptr for reach in reaches)
        self._allocate(int((longest[1:] - longest[:-1]).max()), int(listed[-1]))

    def _own_box(self) -> Tensor | None:
        return self._box[0] if len(self._box) else None

    def _allocate(self, n_slots: int, n_edges: int) -> None:
        n_atoms, place = self._anchors.shape[1], self._anchors
        n_slots, n_edges = (-(-int(SPARE * n + 1) // MULTIPLE) * MULTIPLE for n in (n_slots, n_edges))
        n_slots = min(n_slots, max(1, n_atoms - 1))
        self._candidates = torch.zeros(self._counts.numel(), n_slots, dtype=torch.int32, device=place.device)
        self.col = torch.zeros(n_edges, dtype=torch.int32, device=place.device)
        self.offsets = place.new_zeros(n_edges * len(self._box), 3)
        self._anchors.fill_(float("nan"))  # which is too far from everywhere
        self._needed.zero_()
        self._room = torch.tensor([n_slots, n_edges], device=place.device)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept between calls."""
        kept = (self._anchors, self._counts, self._candidates, self.row_ptr, self.col, self.offsets)
        return sum(tensor.nbytes for tensor in kept)

    def update(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(row_ptr, col, offsets) of these positions, contiguous and like the first; rows of atoms that are not
        finite, or 2^29 boxes away, are empty."""
        points, wraps = positions, self._counts[:0]
        if len(self._box):
            points = fractions(positions.double(), self._inverse)
            whole = torch.floor(points)
            points = torch.where(whole.abs() < FARTHEST, points - whole, float("nan"))
            wraps = whole.to(torch.int32)
        reach = self.cutoff + self.skin
        stale = ~(reach * (1 - MARGIN) - largest_moves(positions, self._anchors, None) >= self.cutoff)  # NaN: stale
        operators = torch.ops.diffmd_fast
        operators.list_candidates_(points, self._box, reach, stale, self._candidates, self._counts)
        self._anchors.copy_(torch.where(stale[:, None, None], positions, self._anchors))
        self.n_builds += stale.sum()
        operators.pack_candidates_(points, wraps, self._box, self.cutoff, self._candidates, self._counts, self.row_ptr,
                                   self.col, self.offsets)
        needed = torch.stack([self._counts.amax().to(torch.int64), self.row_ptr[-1]])
        self._needed.copy_(torch.maximum(self._needed, needed))
        self.row_ptr.mul_((self._needed <= self._room).all())  # a list with gaps would not be symmetric
        return self.row_ptr, self.col, self.offsets

    def overflows(self) -> bool:
        """Whether a list did not fit since the memory was taken; waits for the device."""
        return bool((self._needed > self._room).any())

    def fit(self) -> None:
        """Take new memory, for as much as was needed so far: other tensors than before."""
        n_slots, n_edges = self._needed.tolist()
        self._allocate(max(n_slots, int(self._candidates.shape[1] / SPARE)), max(n_edges, int(len(self.col) / SPARE)))


def _check(points, box, candidates, counts) -> None:
    """What memory safety needs of callers of torch.ops.diffmd_fast."""
    check_tensor(points, "points", ("replicas", "atoms", 3))
    n_nodes, like = points.shape[0] * points.shape[1], ("points", points)
    check_tensor(box, "box", ("boxes", 3, 3), dtypes=(torch.float64,), like=like)
    require(len(box) < 2, "box", "at most one", len(box))
    require(len(box) == 0 or points.dtype == torch.float64, "points", "float64 in a box", points.dtype)
    check_tensor(candidates, "candidates", (n_nodes, "slots"), dtypes=(torch.int32,), like=like)
    check_tensor(counts, "counts", (n_nodes,), dtypes=(torch.int32,), like=like)
    for name, tensor in (("candidates", candidates), ("counts", counts)):
        require(tensor.is_contiguous(), name, "a contiguous tensor", f"strides {list(tensor.stride())}")


def _list_arguments(points, box, reach, stale, candidates, counts) -> tuple:
    _check(points, box, candidates, counts)
    check_number(reach, "reach", above=0, unit="nm")
    check_tensor(stale, "stale", (points.shape[0],), dtypes=(torch.bool,), like=("points", points))
    return points.contiguous(), box.contiguous(), reach, stale.contiguous(), candidates, counts


def _pack_arguments(points, wraps, box, cutoff, candidates, counts, row_ptr, col, offsets) -> tuple:
    _check(points, box, candidates, counts)
    check_number(cutoff, "cutoff", above=0, unit="nm")
    like, boxed = ("points", points), len(box) > 0
    check_tensor(wraps, "wraps", tuple(points.shape) if boxed else (0,), dtypes=(torch.int32,), like=like)
    check_tensor(row_ptr, "row_ptr", (counts.numel() + 1,), dtypes=(torch.int64,), like=like)
    check_tensor(col, "col", ("edges",), dtypes=(torch.int32,), like=like)
    check_tensor(offsets, "offsets", (col.numel() * boxed, 3), dtypes=(torch.float32, torch.float64), like=like)
    for name, tensor in (("row_ptr", row_ptr), ("col", col), ("offsets", offsets)):
        require(tensor.is_contiguous(), name, "a contiguous tensor", f"strides {list(tensor.stride())}")
    return (points.contiguous(), wraps.contiguous(), box.contiguous(), cutoff, candidates, counts, row_ptr, col,
            offsets)


def _list_plain(*arguments):
    reference.list_candidates(*_list_arguments(*arguments))


def _list_triton(*arguments):
    from ..kernels.triton import fixed_list as kernels

    kernels.list_candidates(*_list_arguments(*arguments))


def _pack_plain(*arguments):
    _, _, _, _, candidates, counts, *_ = arguments = _pack_arguments(*arguments)
    held = torch.arange(candidates.shape[1], device=counts.device) < counts[:, None]
    outside = held & ((candidates < 0) | (candidates >= counts.numel()))
    require(not bool(outside.any()), "candidates", f"nodes 0..{counts.numel() - 1}", "another")
    reference.pack_candidates(*arguments)


def _pack_triton(*arguments):
    from ..kernels.triton import fixed_list as kernels

    kernels.pack_candidates(*_pack_arguments(*arguments))


def _nothing(*_):
    return None


# Steps of FixedList: without gradient, and on CUDA tensors candidates that are no nodes are left out without a word.
define("list_candidates_(Tensor points, Tensor box, float reach, Tensor stale, Tensor(a!) candidates, "
       "Tensor(b!) counts) -> ()", _list_plain, _nothing, _list_plain, _list_triton)
define("pack_candidates_(Tensor points, Tensor wraps, Tensor box, float cutoff, Tensor candidates, Tensor counts, "
       "Tensor(a!) row_ptr, Tensor(b!) col, Tensor(c!) offsets) -> ()",
       _pack_plain, _nothing, _pack_plain, _pack_triton)
