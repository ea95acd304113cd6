"""Neighbor lists of molecules and of periodic systems: compressed sparse rows with their transpose.

Minimum image in fractional coordinates (Allen and Tildesley, Computer Simulation of Liquids, 2nd ed., section 1.6.5)
and linked cells (section 5.3.2), here as a counting sort.  Fast paths: csrc/neighbor_*.cpp and
kernels/triton/neighbor_*.py.  Truth: reference/neighbor_list.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _C
from ..backend import run_reference
from ..errors import InputError, check_number, check_tensor, require
from ..reference.neighbor_list import NeighborList, edge_rows, edge_vectors, inverse_boxes, neighbor_list_core
from ._library import define, get_num_threads, native, refuse_gradient, register_autograd

# "brute_force" looks at every pair of a replica, "cell_list" only at those in cells side by side (linear time);
# "auto" takes the cells from this many atoms on, where they were measured to win (without a box between 200 atoms with
# AVX2 and 700 with AVX-512, with one at 130). All give the same list. On a GPU the number was reasoned, not measured:
# sorting into cells is some 30 short launches, in whose time all pairs of 4096 atoms can be looked at.
METHODS = ("auto", "brute_force", "cell_list")
CELLS_FROM, CELLS_FROM_IN_BOX, CELLS_FROM_ON_GPU = 400, 130, 4096
_NO_BOX = torch.empty(0, 3, 3, dtype=torch.float64)
ROUNDING = 1e-9  # a cutoff of exactly half the box, computed in floating point, passes


def neighbor_list(positions: Tensor, cutoff: float | None, *, box: Tensor | None = None, skin: float = 0.0,
                  return_distances: bool = False, return_vectors: bool = False) -> NeighborList:
    """List, for every atom, the atoms of its replica that are nearer than ``cutoff + skin``.

    Args:
        positions: [replicas, atoms, 3] nm, float32 or float64; may lie outside the box.
        cutoff: nm, above 0; None lists all pairs of each replica (no box).
        box: None, the edge lengths [3] of an orthorhombic box, the box vectors as the rows of [3, 3], or one such
            box per replica [replicas, 3, 3], in nm.  Right-handed, and at least 2 (cutoff + skin) wide
            perpendicular to each face: no atom then sees two images of another.
        skin: nm added to the cutoff, so that the list stays complete until an atom has moved by skin/2.
        return_distances: also return the distances [n_edges].
        return_vectors: also return the vectors [n_edges, 3] = x_col + shift @ box - x_row.

    Returns:
        A :class:`NeighborList`, full and symmetric, each row sorted; the same for any number of threads, SIMD level
        and dtype that holds the same positions.  Distances and vectors are differentiable to any order with respect
        to positions (not box), the list itself is not; two atoms in one place have distance and gradient zero.

    Raises:
        InputError: an argument of the wrong shape, dtype or range, a position that is not finite or 2^29 boxes
            away, a cutoff beyond half of the box, a box that is flat or left-handed; the message names it.
    """
    check_tensor(positions, "positions", ("replicas", "atoms", 3))
    skin = check_number(skin, "skin", minimum=0, unit="nm")
    if cutoff is None:
        require(skin == 0, "skin", "0 with cutoff=None (all pairs)", f"{skin:g} nm")
        require(box is None, "box", "None with cutoff=None (all pairs)", "a box")
    else:
        cutoff = check_number(cutoff, "cutoff", above=0, unit="nm")
        check_number(cutoff + skin, "skin", above=0, unit="nm (cutoff + skin)")
    boxes = as_boxes(box, positions, "neighbor_list")
    if boxes.device.type != "meta" and boxes.shape[0]:
        check_boxes(boxes, cutoff, skin)
    reach = math.inf if cutoff is None else cutoff + skin
    if run_reference(positions.device.type, "neighbor_list"):
        outputs = _other(positions.detach(), boxes, reach, "auto")
        if return_distances or return_vectors:
            vectors, distances = edge_vectors(positions, boxes, *outputs[:3])
    elif not return_distances and not return_vectors:
        outputs = torch.ops.diffmd_fast.neighbor_list.default(positions.detach(), boxes, reach, "auto")
    elif positions.requires_grad and torch.is_grad_enabled():
        outputs = torch.ops.diffmd_fast.neighbor_list.default(positions.detach(), boxes, reach, "auto")
        vectors, distances = torch.ops.diffmd_fast.neighbor_vectors.default(
            positions, boxes, *outputs[:3], return_vectors, return_distances)
    else:  # the same numbers from the search itself
        *outputs, vectors, distances = torch.ops.diffmd_fast.neighbor_list_and_vectors.default(
            positions.detach(), boxes, reach, "auto", return_vectors, return_distances)
    return NeighborList(*outputs, distances if return_distances else None, vectors if return_vectors else None)


def as_boxes(box, positions: Tensor, operation: str) -> Tensor:
    """``box`` as float64 [0, 3, 3] (none), [1, 3, 3] or [replicas, 3, 3], checked but for the vectors' values."""
    n_replicas = positions.shape[0]
    if box is None:
        return _NO_BOX if positions.device.type == "cpu" else positions.new_empty((0, 3, 3), dtype=torch.float64)
    wanted = f"edge lengths [3], box vectors [3, 3] or one box per replica [{n_replicas}, 3, 3]"
    try:
        box = torch.as_tensor(box, device=None if isinstance(box, Tensor) else positions.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"box: expected {wanted}, got {type(box).__name__}") from None
    require(box.device == positions.device, "box", f"the device of positions ({positions.device})", box.device)
    require(not box.dtype.is_complex and box.dtype != torch.bool, "box", "real numbers", box.dtype)
    require(not box.requires_grad, "box", f"a tensor without gradient ({operation} is not differentiable with "
            "respect to box)", "requires_grad=True")
    require(tuple(box.shape) in ((3,), (3, 3), (n_replicas, 3, 3)), "box", wanted, f"shape {list(box.shape)}")
    box = box.to(torch.float64)
    return torch.diag(box)[None] if box.dim() == 1 else box.reshape(-1, 3, 3).contiguous()


def check_boxes(boxes: Tensor, cutoff: float, skin: float) -> None:
    """Refuse boxes [B, 3, 3] that are not finite, left-handed, flat, or too small for cutoff + skin."""
    width, reach = _invert(boxes.cpu().contiguous()), cutoff + skin
    require(reach <= 0.5 * width * (1 + ROUNDING), "cutoff",
            f"cutoff + skin of at most {0.5 * width:.6g} nm, half of the smallest perpendicular width of the box",
            f"{cutoff:g} + {skin:g} = {reach:.6g} nm")


def _check_reach(boxes: Tensor, inverse: Tensor | None, reach: float) -> None:
    """The same for a caller who gives the sum; ``inverse``, where given, is filled."""
    width = _invert(boxes, inverse)
    if not reach <= 0.5 * width * (1 + ROUNDING):
        require(False, "reach", f"at most {0.5 * width:.6g} nm, half of the smallest perpendicular width of the box",
                f"{reach:.6g} nm")


def _invert(boxes: Tensor, inverse: Tensor | None = None) -> float:
    """The smallest perpendicular width of boxes that are finite, right-handed and not flat, on the CPU."""
    bad, width = _C.inverse_boxes(boxes.shape[0], boxes.data_ptr(), 0 if inverse is None else inverse.data_ptr())
    if bad >= 0:
        raise InputError("box: expected three right-handed vectors that span a volume, got rows "
                         f"{boxes[bad].tolist()} nm")
    return width


def _check_call(positions: Tensor, box: Tensor, reach: float, method: str) -> None:
    """Checks once more: callers of torch.ops.diffmd_fast.neighbor_list have not met those above."""
    check_tensor(positions, "positions", ("replicas", "atoms", 3))
    n_nodes = positions.shape[0] * positions.shape[1]
    require(n_nodes < 2**31 - 1, "positions", "fewer than 2147483647 atoms in all (nodes are 32-bit)", n_nodes)
    _check_box_shape(positions, box)
    require(reach > 0, "reach", "a number above 0 nm, infinity for all pairs", reach)
    if method not in METHODS:
        require(False, "method", "one of " + ", ".join(METHODS), repr(method))
    require(math.isfinite(reach) or box.shape[0] == 0, "box", "none with an infinite reach (all pairs)", "a box")


def _check_box_shape(positions: Tensor, box: Tensor) -> None:
    check_tensor(box, "box", ("boxes", 3, 3), dtypes=(torch.float64,), like=("positions", positions))
    if box.shape[0] not in (0, 1, positions.shape[0]):
        require(False, "box", f"0, 1 or {positions.shape[0]} boxes", box.shape[0])


def _refuse(positions: Tensor, node: int) -> None:
    r, a = divmod(node, positions.shape[1])
    where = positions[r, a].tolist()
    wanted = "finite values" if not all(map(math.isfinite, where)) else "atoms within 2^29 box vectors of the origin"
    raise InputError(f"positions: expected {wanted}, got {where} nm at replica {r}, atom {a}")


def _check_finite(positions: Tensor) -> None:
    finite = torch.isfinite(positions)
    if not bool(finite.all()):
        r, a, _ = torch.nonzero(~finite)[0].tolist()
        _refuse(positions, r * positions.shape[1] + a)


def _cpu(positions, box, reach, method):
    return native_list(positions, box, reach, method)[:4]


def _allocate(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def native_list(positions, box, reach, method="auto", vectors=False, distances=False, reverse=True,
                allocate=_allocate):
    """The operator neighbor_list_and_vectors on the CPU.

    models/large.py does without ``reverse``, which is empty then unless it comes for nothing, and has memory of its own
    for the rest: ``allocate(name, shape, dtype)``.
    """
    _check_call(positions, box, reach, method)
    n_replicas, n_atoms, _ = positions.shape
    n_nodes, periodic = n_replicas * n_atoms, box.shape[0] > 0
    positions, threads = positions.contiguous(), get_num_threads()
    if math.isinf(reach) or n_nodes == 0:
        lists = _all_pairs_cpu(positions, threads)
        return *lists, *_vectors_cpu(positions, box, *lists[:3], vectors, distances)
    cells = method == "cell_list" or (method == "auto" and n_atoms >= (CELLS_FROM_IN_BOX if periodic else CELLS_FROM))
    box, inverse = box.contiguous(), torch.empty_like(box)
    if periodic:
        _check_reach(box, inverse, reach)
    row_ptr = allocate("row_ptr", (n_nodes + 1,), torch.int64)
    search, n_edges = native("neighbor_list_count", positions.dtype)(
        n_replicas, n_atoms, positions.data_ptr(), box.data_ptr() if periodic else 0,
        inverse.data_ptr() if periodic else 0, box.shape[0] > 1, reach, cells, row_ptr.data_ptr(), threads)
    if n_edges < 0:
        _refuse(positions, -1 - n_edges)
    reverse = reverse or not cells  # brute force has it for nothing
    col, mirror = allocate("col", (n_edges,), torch.int32), allocate("reverse", (n_edges * reverse,), torch.int64)
    shift = allocate("shift", (n_edges * periodic, 3), torch.int32)
    along = allocate("vectors", (n_edges * vectors, 3), positions.dtype)
    apart = allocate("distances", (n_edges * distances,), positions.dtype)
    native("neighbor_list_fill", positions.dtype)(
        search, col.data_ptr(), shift.data_ptr(), mirror.data_ptr() if reverse else 0,
        along.data_ptr() if vectors else 0, apart.data_ptr() if distances else 0)
    return row_ptr, col, shift, mirror, along, apart


def _all_pairs_cpu(positions: Tensor, threads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_replicas, n_atoms, _ = positions.shape
    _check_finite(positions)
    n_edges = n_replicas * n_atoms * max(0, n_atoms - 1)
    row_ptr = torch.zeros(n_replicas * n_atoms + 1, dtype=torch.int64)
    col, reverse = torch.empty(n_edges, dtype=torch.int32), torch.empty(n_edges, dtype=torch.int64)
    if n_edges:
        _C.neighbor_list_all_pairs(n_replicas, n_atoms, row_ptr.data_ptr(), col.data_ptr(), reverse.data_ptr(), threads)
    return row_ptr, col, torch.empty(0, 3, dtype=torch.int32), reverse


def _triton(positions, box, reach, method):
    return _list_and_vectors_triton(positions, box, reach, method, False, False)[:4]


def _list_and_vectors_triton(positions, box, reach, method, vectors, distances):
    from ..kernels.triton import neighbor_list as kernels

    _check_call(positions, box, reach, method)
    inverse = None
    if box.shape[0]:
        _check_reach(box.cpu().contiguous(), None, reach)
        inverse = inverse_boxes(box)[0]
    positions, box = positions.contiguous(), box.contiguous()
    if positions.numel() == 0:
        return *neighbor_list_core(positions, box, reach), positions.new_empty(0, 3), positions.new_empty(0)
    cells = method == "cell_list" or (method == "auto" and positions.shape[1] >= CELLS_FROM_ON_GPU)
    *lists, bad = kernels.search(positions, box, inverse, reach, cells)
    if bad >= 0:
        _refuse(positions, bad)
    return *lists, *kernels.edges(positions, box, *lists, reverse=True, vectors=vectors, distances=distances)


def _other(positions, box, reach, method):
    _check_call(positions, box, reach, method)
    _check_finite(positions)
    if box.shape[0]:
        _check_reach(box.cpu().contiguous(), None, reach)
        x = positions.double() @ inverse_boxes(box)[0]
        far = torch.nonzero((x.abs() >= 2.0**29).any(2))
        if len(far):
            _refuse(positions, int(far[0, 0] * positions.shape[1] + far[0, 1]))
    return neighbor_list_core(positions, box, reach)


def _list_and_vectors_other(positions, box, reach, method, vectors, distances):
    lists = _other(positions, box, reach, method)
    return *lists, *_vectors_other(positions, box, *lists[:3], vectors, distances)


def _fake(positions, box, reach, method):
    n_replicas, n_atoms, _ = positions.shape
    n_nodes = n_replicas * n_atoms
    all_pairs = math.isinf(reach)  # then the number of edges is known without the positions
    n_edges = n_nodes * max(0, n_atoms - 1) if all_pairs else torch.library.get_ctx().new_dynamic_size()
    return (positions.new_empty(n_nodes + 1, dtype=torch.int64), positions.new_empty(n_edges, dtype=torch.int32),
            positions.new_empty((n_edges if box.shape[0] else 0, 3), dtype=torch.int32),
            positions.new_empty(n_edges, dtype=torch.int64))


def _list_and_vectors_fake(positions, box, reach, method, vectors, distances):
    lists = _fake(positions, box, reach, method)
    return *lists, *_vectors_fake(positions, box, *lists[:3], vectors, distances)


def _checked_list(positions, box, row_ptr, col, shift) -> list[Tensor]:
    """The arguments of neighbor_vectors as kernels read them."""
    check_tensor(positions, "positions", ("replicas", "atoms", 3))
    _check_box_shape(positions, box)
    n_rows, n_shifts = positions.shape[0] * positions.shape[1] + 1, col.numel() if box.shape[0] else 0
    check_tensor(row_ptr, "row_ptr", (n_rows,), dtypes=(torch.int64,))
    check_tensor(col, "col", ("edges",), dtypes=(torch.int32,))
    check_tensor(shift, "shift", (n_shifts, 3), dtypes=(torch.int32,))
    return [t.contiguous() for t in (positions, box, row_ptr, col, shift)]


def _require_list(good: bool) -> None:
    require(good, "col", "a neighbor list of these positions (row_ptr ascending from 0 to the number of edges, col "
            "below the number of atoms)", "another")


def _vectors_cpu(positions, box, row_ptr, col, shift, vectors=True, distances=True):
    positions, box, row_ptr, col, shift = _checked_list(positions, box, row_ptr, col, shift)
    n_replicas, n_atoms, _ = positions.shape
    n_edges, periodic = col.numel(), box.shape[0] > 0
    along, apart = positions.new_empty(n_edges * vectors, 3), positions.new_empty(n_edges * distances)
    _require_list(native("neighbor_vectors", positions.dtype)(
        n_replicas, n_atoms, n_edges, positions.data_ptr(), box.data_ptr() if periodic else 0, box.shape[0] > 1,
        row_ptr.data_ptr(), col.data_ptr(), shift.data_ptr(), along.data_ptr() if vectors else 0,
        apart.data_ptr() if distances else 0, get_num_threads()))
    return along, apart


def _vectors_triton(positions, box, row_ptr, col, shift, vectors=True, distances=True):
    from ..kernels.triton import neighbor_list as kernels
    from ..kernels.triton import rows

    lists = _checked_list(positions, box, row_ptr, col, shift)
    _require_list(rows.check(*lists[2:4], symmetric=False) == rows.FINE)
    return kernels.edges(*lists, vectors=vectors, distances=distances)[1:]


def _vectors_other(positions, box, row_ptr, col, shift, vectors=True, distances=True):
    along, apart = edge_vectors(positions, box, row_ptr, col, shift)
    return along if vectors else along[:0].clone(), apart if distances else apart[:0].clone()


def _vectors_fake(positions, box, row_ptr, col, shift, vectors=True, distances=True):
    n_edges = col.shape[0]
    return positions.new_empty(n_edges if vectors else 0, 3), positions.new_empty(n_edges if distances else 0)


def _vectors_setup_context(ctx, inputs, output):
    refuse_gradient(ctx, "neighbor_vectors", {1: "box"})
    ctx.save_for_backward(*inputs[:5])


def _vectors_backward(ctx, grad_vectors, grad_distances):
    """Plain torch operations on the positions, so every higher derivative follows."""
    positions, box, row_ptr, col, shift = ctx.saved_tensors
    along = grad_vectors if grad_vectors.numel() else positions.new_zeros(col.numel(), 3)
    if grad_distances.numel():
        vectors, distances = edge_vectors(positions, box, row_ptr, col, shift)
        apart = distances > 0
        direction = torch.where(apart[:, None], vectors / torch.where(apart, distances, 1.0)[:, None], 0.0)
        along = along + grad_distances[:, None] * direction
    row = edge_rows(row_ptr, col.numel())
    grad = torch.zeros_like(positions).reshape(-1, 3).index_add(0, col, along).index_add(0, row, -along)
    return grad.reshape(positions.shape), None, None, None, None, None, None


define("neighbor_list(Tensor positions, Tensor box, float reach, str method) -> (Tensor, Tensor, Tensor, Tensor)",
       _cpu, _fake, _other, _triton)
define("neighbor_vectors(Tensor positions, Tensor box, Tensor row_ptr, Tensor col, Tensor shift, "
       "bool vectors=True, bool distances=True) -> (Tensor, Tensor)", _vectors_cpu, _vectors_fake, _vectors_other,
       _vectors_triton)
register_autograd("neighbor_vectors", _vectors_backward, _vectors_setup_context)
# Both in one, without gradient: what a search compares need not be computed again. What is not asked for comes back
# empty, here and from neighbor_vectors.
define("neighbor_list_and_vectors(Tensor positions, Tensor box, float reach, str method, bool vectors, bool distances) "
       "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
       native_list, _list_and_vectors_fake, _list_and_vectors_other, _list_and_vectors_triton)
