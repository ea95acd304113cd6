"""A neighbor list that is kept from step to step: Verlet's skin, with a criterion that holds for a changing box.

L. Verlet, Phys. Rev. 159, 98 (1967); Allen and Tildesley, Computer Simulation of Liquids, 2nd ed., section 5.3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from ..backend import current_backend, run_reference, triton_runs
from ..errors import InputError, check_number, check_tensor, require
from ..reference import verlet_list as reference
from ..reference.neighbor_list import NeighborList, edge_vectors, inverse_boxes
from ._library import get_num_threads, native
from .neighbor_list import as_boxes, check_boxes, neighbor_list

MARGIN = 1e-9  # of cutoff + skin: covers the rounding of every comparison here and in the list


class VerletList:
    """Neighbor lists along one trajectory, rebuilt only where atoms have moved too far.

    Made with cutoff + skin, a list holds every pair within the cutoff for as long as no pair can have crossed the
    skin.  With h0 the box at that time, h the box now (box vectors as rows), A = h0^-1 h and u_i = x_i - x0_i A, what
    atom i moved beyond what the box did to it, a pair at d0 is now at d0 A + u_j - u_i, so a list stays complete while

        sigma_min(A) (cutoff + skin) - (the two largest |u|) >= cutoff,

    sigma_min(A) being the smallest singular value.  Without a box, or while it keeps its shape, that is 1.  Each
    replica is judged by itself; only those that fail are listed anew and put in the place of the old ones.

    Positions are meant to be unwrapped, as integrators leave them: an atom that crosses the box keeps its shifts.  An
    atom that the caller wraps back seems to have jumped by a box vector, and its replica is listed anew: slower, not
    wrong.

    This object keeps state by design: the last list and the positions and box it was made with.  Use one for each
    trajectory, from one thread at a time, and do not write into the tensors it returns.

    Args:
        cutoff: nm, above 0.
        skin: nm, above 0; a larger one makes longer lists that are kept longer.

    Attributes:
        n_updates: calls of :meth:`update` since the start.
        n_builds: lists of single replicas made in them; n_builds / (n_updates * replicas) is the share not reused.
    """

    def __init__(self, cutoff: float, skin: float):
        self.cutoff = check_number(cutoff, "cutoff", above=0, unit="nm")
        self.skin = check_number(skin, "skin", above=0, unit="nm")
        self.n_updates = self.n_builds = 0
        self.reset()

    def reset(self) -> None:
        """Forget the list, to go on with another system; the counts go on."""
        self._list: NeighborList | None = None
        self._anchors = self._anchor_boxes = self._seen_boxes = self._transform = self._shrinkage = None

    def update(self, positions: Tensor, box: Tensor | None = None, *, return_distances: bool = False,
               return_vectors: bool = False) -> NeighborList:
        """The list for ``positions``: every pair within the cutoff, and some up to about cutoff + skin.

        Args:
            positions: [replicas, atoms, 3] nm, float32 or float64; shape, dtype and device those of the first call.
            box: as for :func:`~diffmd_fast.ops.neighbor_list`; may change from call to call, but not appear or
                disappear.  At least 2 cutoff wide, and 2 (cutoff + skin) whenever a list is made.
            return_distances: also return the distances [n_edges] at these positions.
            return_vectors: also return the vectors [n_edges, 3].

        Returns:
            A :class:`~diffmd_fast.ops.NeighborList`, what ``neighbor_list(..., skin=skin)`` gave when each replica was
            last listed.  Distances and vectors are those of now, differentiable with respect to positions.

        Raises:
            InputError: as :func:`~diffmd_fast.ops.neighbor_list`, or another shape, dtype or device than before; the
                list is then as if the call had not been made.
        """
        check_tensor(positions, "positions", ("replicas", "atoms", 3))
        boxes = as_boxes(box, positions, "VerletList")
        now = positions.detach()
        plain = run_reference(now.device.type, "neighbor_list")
        largest_moves, splice = _parts(now.device.type, plain)
        if self._list is None:
            self._build(now, boxes, None, splice)
        else:
            self._check_same(now, boxes)
            if boxes.shape[0]:
                check_boxes(boxes, self.cutoff, 0.0)
            stale = ~self._complete(now, boxes, largest_moves)
            if bool(stale.any()):
                self._build(now, boxes, None if bool(stale.all()) else stale, splice)
        self.n_updates += 1
        if not return_distances and not return_vectors:
            return self._list
        along = (positions, boxes, *self._list[:3])
        vectors, distances = edge_vectors(*along) if plain else torch.ops.diffmd_fast.neighbor_vectors(
            *along, return_vectors, return_distances)
        return NeighborList(*self._list[:4], distances if return_distances else None,
                            vectors if return_vectors else None)

    def _check_same(self, positions: Tensor, boxes: Tensor) -> None:
        before, advice = self._anchors, "; reset() begins another trajectory"
        for what in ("shape", "dtype", "device"):
            require(getattr(positions, what) == getattr(before, what), "positions",
                    f"the {what} of the calls before ({getattr(before, what)}{advice})", getattr(positions, what))
        had_box = self._anchor_boxes is not None
        require(had_box == (boxes.shape[0] > 0), "box", f"{'a box' if had_box else 'None'}, as in the calls before",
                "None" if had_box else "a box")

    def _complete(self, positions: Tensor, boxes: Tensor, largest_moves) -> Tensor:
        """Which replicas' lists certainly still hold every pair within the cutoff: bool [replicas]."""
        if boxes.shape[0] and not (self._seen_boxes is not None and torch.equal(boxes, self._seen_boxes)):
            transform = inverse_boxes(self._anchor_boxes)[0] @ boxes
            still = bool((self._anchor_boxes == boxes).all())
            self._transform = None if still else transform.contiguous()
            self._shrinkage = None if still else torch.linalg.svdvals(transform)[:, -1]
            self._seen_boxes = boxes.clone()
        moves = largest_moves(positions, self._anchors, self._transform)
        reach = (self.cutoff + self.skin) * (1 - MARGIN)
        left = reach - moves if self._shrinkage is None else self._shrinkage * reach - moves
        return left >= self.cutoff  # false for NaN

    def _build(self, positions: Tensor, boxes: Tensor, stale: Tensor | None, splice) -> None:
        """Make the lists of the stale replicas (None: all)."""
        n_replicas, n_atoms, _ = positions.shape
        box = boxes if boxes.shape[0] else None
        if stale is None:
            self._list = self._fresh(positions, box)
            self._anchors = positions.clone()
            self._anchor_boxes = None if box is None else boxes.expand(n_replicas, 3, 3).clone()
        else:
            which = torch.nonzero(stale)[:, 0]
            some = box[which] if box is not None and box.shape[0] > 1 else box
            try:
                fresh = self._fresh(positions[which], some)
            except InputError:
                self._fresh(positions, box)  # the same error, with the replica's own number
                raise
            source = torch.full((n_replicas,), -1, dtype=torch.int64, device=positions.device)
            source[which] = torch.arange(len(which), device=positions.device)
            self._list = splice(self._list, fresh, source, n_atoms)
            self._anchors[which] = positions[which]
            if box is not None:
                self._anchor_boxes[which] = box if box.shape[0] == 1 else some
        self._seen_boxes = self._transform = self._shrinkage = None
        self.n_builds += n_replicas if stale is None else len(which)

    def _fresh(self, positions: Tensor, box: Tensor | None) -> NeighborList:
        if box is not None and box.shape[0] == 1:
            box = box[0]
        return neighbor_list(positions, self.cutoff, box=box, skin=self.skin)


def _parts(device_type: str, plain: bool):
    """largest_moves and splice, as of reference/verlet_list.py, for tensors of a device."""
    if not plain and (current_backend() == "triton" or (device_type == "cuda" and triton_runs("VerletList"))):
        from ..kernels.triton import verlet_list as kernels

        return kernels.largest_moves, kernels.splice
    if plain or device_type == "cuda":
        return reference.largest_moves, reference.splice
    return _largest_moves, _splice


def _largest_moves(positions: Tensor, anchors: Tensor, transform: Tensor | None) -> Tensor:
    positions = positions.contiguous()
    n_replicas, n_atoms, _ = positions.shape
    moves = torch.zeros(n_replicas, dtype=torch.float64)
    if n_atoms:
        native("largest_moves", positions.dtype)(
            n_replicas, n_atoms, positions.data_ptr(), anchors.data_ptr(),
            0 if transform is None else transform.data_ptr(), moves.data_ptr(), get_num_threads())
    return moves


def _splice(kept: NeighborList, fresh: NeighborList, source: Tensor, n_atoms: int) -> NeighborList:
    n_replicas, periodic = source.shape[0], len(kept.shift) + len(fresh.shift) > 0
    row_ptr = torch.empty_like(kept.row_ptr)
    lists = [[t.data_ptr() for t in (x.row_ptr, x.col, x.shift, x.reverse)] for x in (kept, fresh)]
    n_edges = _C.splice_count(n_replicas, n_atoms, source.data_ptr(), *lists, row_ptr.data_ptr())
    col, reverse = torch.empty(n_edges, dtype=torch.int32), torch.empty(n_edges, dtype=torch.int64)
    shift = torch.empty(n_edges * periodic, 3, dtype=torch.int32)
    out = [row_ptr.data_ptr(), col.data_ptr(), shift.data_ptr() if periodic else 0, reverse.data_ptr()]
    _C.splice_fill(n_replicas, n_atoms, source.data_ptr(), *lists, out, get_num_threads())
    return NeighborList(row_ptr, col, shift, reverse)
