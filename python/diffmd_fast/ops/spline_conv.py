"""Continuous-filter convolution with a cubic B-spline filter: how atoms tell each other where they are.

    m_i = sum_j h_j * W(r_ij),   W_f(r) = sum_k C[k, f] B_k(r)

SchNet's interaction (arXiv 1706.08566, eq. 2) with the filter tabulated as a spline on [0, cutoff].

Fast paths: csrc/spline_conv.cpp and kernels/triton/spline_conv.py.  Truth: reference/spline_conv.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import run_reference, triton_runs
from ..errors import UnavailableError, check_number, check_tensor, require
from ..reference.spline_conv import spline_conv_core
from ._library import NATIVE_DTYPES, define, get_num_threads, native, refuse_gradient, register_autograd
from .neighbor_list import NeighborList, as_boxes

MAX_KNOTS = 1_000_000
_STATUS = {
    1: ("neighbors", "row_ptr that starts at 0, never falls and ends at the number of edges", "another"),
    2: ("neighbors", "col between 0 and the number of atoms - 1", "an index outside"),
    3: ("neighbors", "a symmetric list (for every edge i <- j its edge j <- i), which the gradients rest on",
        "one that is not"),
}


def spline_conv(features: Tensor, positions: Tensor, coefficients: Tensor, neighbors: NeighborList,
                cutoff: float, box: Tensor | None = None) -> Tensor:
    """Sum over every atom's neighbors of their features times a filter of the distance.

    Args:
        features: h [replicas, atoms, features], float32 or float64.
        positions: [replicas, atoms, 3] nm.
        coefficients: C [knots, features], 4 to 1,000,000 knots.  Uniform cubic B-splines with spacing
            cutoff / (knots - 3): on interval i the coefficients i .. i+3 contribute.  The filter ends
            smoothly at the cutoff when the last three are zero.
        neighbors: full and symmetric list of these atoms, from :func:`~diffmd_fast.ops.neighbor_list`.
        cutoff: nm.  Neighbors at or beyond it contribute exactly zero, so the list may have a skin or hold
            all pairs.
        box: the box the list was made with, [3] lengths, [3, 3] rows of box vectors or [replicas, 3, 3], nm;
            None (default) for a list without one.

    Returns:
        m [replicas, atoms, features].  Twice differentiable with respect to features, positions and
        coefficients, not with respect to the box.  The direction between two atoms at one place is undefined:
        that pair adds nothing to derivatives with respect to positions.

    Raises:
        InputError: an argument of the wrong shape, dtype, device or range, a list with an index out of range
            or (found in the backward) an edge without its twin; the message names it.
        UnavailableError: a third derivative was asked for outside the reference backend.
    """
    n_replicas, n_atoms, n_features = _check(features, positions, coefficients, neighbors, cutoff)
    n_nodes = n_replicas * n_atoms
    operator = torch.ops.diffmd_fast.spline_conv
    reference = run_reference(positions.device.type, "spline_conv") or _no_kernel(positions)
    offsets = _offsets(neighbors, box, positions, reference)
    if reference:
        operator = spline_conv_core
        _check_list(neighbors, n_nodes)
    messages = operator(features.reshape(n_nodes, n_features), positions.reshape(n_nodes, 3), coefficients,
                        neighbors.row_ptr, neighbors.col, offsets, float(cutoff))
    return messages.view(n_replicas, n_atoms, n_features)


def _no_kernel(positions: Tensor) -> bool:
    """CUDA tensors where Triton is missing: the operators below have nothing but kernels."""
    compiling = torch.compiler.is_compiling()  # then Triton is there
    return positions.device.type == "cuda" and not compiling and not triton_runs("spline_conv")


def _check(features, positions, coefficients, neighbors, cutoff) -> tuple[int, int, int]:
    check_tensor(features, "features", ("replicas", "atoms", "features"))
    n_replicas, n_atoms, n_features = features.shape
    require(n_features >= 1, "features", "at least one feature", "none")
    like = ("features", features)
    check_tensor(positions, "positions", (n_replicas, n_atoms, 3), like=like)
    check_tensor(coefficients, "coefficients", ("knots", n_features), like=like)
    n_knots = coefficients.shape[0]
    require(4 <= n_knots <= MAX_KNOTS, "coefficients", f"4 to {MAX_KNOTS} knots", n_knots)
    check_number(cutoff, "cutoff", above=0, unit="nm")
    whole = all(isinstance(getattr(neighbors, name, None), Tensor) for name in ("row_ptr", "col", "shift"))
    require(whole, "neighbors", "a NeighborList", type(neighbors).__name__)
    n_rows, int32 = n_replicas * n_atoms + 1, (torch.int32,)
    check_tensor(neighbors.row_ptr, "neighbors.row_ptr", (n_rows,), dtypes=(torch.int64,), like=like)
    check_tensor(neighbors.col, "neighbors.col", ("edges",), dtypes=int32, like=like)
    n_shifts = neighbors.col.shape[0] if neighbors.shift.shape[0] else 0
    check_tensor(neighbors.shift, "neighbors.shift", (n_shifts, 3), dtypes=int32, like=like)
    return n_replicas, n_atoms, n_features


def _offsets(neighbors: NeighborList, box, positions: Tensor, reference: bool) -> Tensor:
    """What each edge adds to the position of its neighbor, [edges, 3] nm; [0, 3] without a box."""
    n_replicas, n_atoms, _ = positions.shape
    n_edges, n_shifts = neighbors.col.shape[0], neighbors.shift.shape[0]
    if box is None:
        require(n_shifts == 0, "box", "the box that the neighbor list was made with", None)
        return positions.new_empty(0, 3)
    require(n_shifts == n_edges, "box", "None, as the neighbor list was made without one", "a box")
    boxes = as_boxes(box, positions, "spline_conv")
    traced = type(neighbors.shift) is not Tensor or torch.compiler.is_compiling()
    if boxes.shape[0] == 1 and positions.device.type == "cpu" and not reference and not traced:
        return edge_offsets(neighbors.shift, boxes[0], positions.dtype)
    shift = neighbors.shift.to(torch.float64)
    if boxes.shape[0] == 1:
        return (shift @ boxes[0]).to(positions.dtype)
    replica = torch.div(neighbors.col, max(n_atoms, 1), rounding_mode="floor").long()
    replica = replica.clamp(0, max(n_replicas - 1, 0))  # a col outside is refused later, by name
    return (shift[:, None] @ boxes[replica])[:, 0].to(positions.dtype)


def edge_offsets(shift: Tensor, box: Tensor, dtype: torch.dtype, in_place: bool = False) -> Tensor:
    """shift [edges, 3] @ box [3, 3] on the CPU: torch takes ten times as long, and 48 bytes an edge on the way.

    ``in_place``: float32 offsets may take the memory of a contiguous shift, which is lost.
    """
    shift, box = shift.contiguous(), box.contiguous()
    offsets = shift.view(dtype) if in_place and dtype == torch.float32 else torch.empty(shift.shape, dtype=dtype)
    native("edge_offsets", dtype)(len(shift), shift.data_ptr(), box.data_ptr(), offsets.data_ptr(), get_num_threads())
    return offsets


def _check_list(neighbors: NeighborList, n_nodes: int) -> None:
    """What the native code checks itself: indexing in torch would count a negative index from the end."""
    row_ptr, col = neighbors.row_ptr, neighbors.col
    if col.device.type == "meta" or torch.compiler.is_compiling():
        return  # no values to look at
    ends = (row_ptr[0] == 0) & (row_ptr[-1] == col.numel()) & (row_ptr[1:] >= row_ptr[:-1]).all()
    require(bool(ends), *_STATUS[1])
    require(bool(((col >= 0) & (col < n_nodes)).all()), *_STATUS[2])


# ---- the three operators on flat nodes: [nodes, features], [nodes, 3], [knots, features] ------------------
_GRAPH = ("Tensor features, Tensor positions, Tensor coefficients, Tensor row_ptr, Tensor col, "
          "Tensor offsets, float cutoff")


def _check_graph(graph: tuple) -> tuple:
    """The graph as kernels read it: shapes are checked once more, as the flat operators may be called by anyone."""
    features, positions, coefficients, row_ptr, col, offsets, cutoff = graph
    n_nodes, n_edges, dtype, device = row_ptr.numel() - 1, col.numel(), features.dtype, features.device
    require(dtype in NATIVE_DTYPES, "features", "dtype float32 or float64", dtype)
    require(features.dim() == coefficients.dim() == 2, "features", "shape [nodes, features], and coefficients of "
            "shape [knots, features]", f"{list(features.shape)} and {list(coefficients.shape)}")
    require(n_nodes < 2**31, "features", "fewer than 2147483648 nodes (col is 32-bit)", n_nodes)
    n_features, n_knots = features.shape[1], coefficients.shape[0]
    flat = {"features": (features, (n_nodes, n_features), dtype),
            "positions": (positions, (n_nodes, 3), dtype),
            "coefficients": (coefficients, (n_knots, n_features), dtype),
            "row_ptr": (row_ptr, (n_nodes + 1,), torch.int64), "col": (col, (n_edges,), torch.int32),
            "offsets": (offsets, (n_edges if offsets.numel() else 0, 3), dtype)}
    for argument, (tensor, shape, want) in flat.items():
        require(tensor.shape == shape and tensor.dtype == want and tensor.device == device, argument,
                f"{want} of shape {list(shape)} on {device}",
                f"{tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}")
    require(n_features >= 1 and 4 <= n_knots <= MAX_KNOTS, "coefficients", f"[4 to {MAX_KNOTS}, 1 or more]",
            list(coefficients.shape))
    check_number(cutoff, "cutoff", above=0, unit="nm")
    return *(t.contiguous() for t in graph[:6]), cutoff


def run_native(name: str, graph: tuple, *tensors: Tensor | None) -> None:
    """Run native ``name`` on CPU tensors."""
    *kept, cutoff = _check_graph(graph)  # alive until the kernel is done
    features, coefficients = kept[0], kept[2]
    require(features.device.type == "cpu", "features", "CPU tensors", features.device)
    n_nodes, n_edges = kept[3].numel() - 1, kept[4].numel()
    status = native(name, features.dtype)(
        n_nodes, n_edges, features.shape[1], coefficients.shape[0], cutoff, *(t.data_ptr() for t in kept),
        get_num_threads(), *(0 if t is None else t.data_ptr() for t in tensors))
    if status in _STATUS:
        require(False, *_STATUS[status])
    if status:
        raise MemoryError(f"{name}: no memory for partial sums of shape {list(coefficients.shape)}")


def run_triton(name: str, given: tuple, graph: tuple, wanted: tuple = (), symmetric: bool = True):
    """Run function ``name`` of kernels/triton/spline_conv.py on other tensors, the graph, and what is wanted."""
    from ..kernels.triton import rows
    from ..kernels.triton import spline_conv as kernels

    graph = _check_graph(graph)
    status = rows.check(graph[3], graph[4], symmetric)
    if status != rows.FINE:
        require(False, *_STATUS[status])
    return getattr(kernels, name)(*given, *graph, *wanted)


def _aligned(argument: str, tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """A cotangent as the kernel reads it."""
    if tensor is None:
        return None
    require(tensor.shape == like.shape and tensor.dtype == like.dtype, argument,
            f"{like.dtype} of shape {list(like.shape)}", f"{tensor.dtype} of shape {list(tensor.shape)}")
    return tensor.contiguous()


def _empty(like: Tensor, wanted: bool = True) -> Tensor:
    return like.new_empty(like.shape if wanted else (0,))


def _asked(tensor: Tensor, wanted: bool) -> Tensor | None:
    return tensor if wanted else None


def _cpu(*graph):
    out = _empty(graph[0])
    run_native("spline_conv", graph, out)
    return out


def _triton(*graph):
    return run_triton("forward", (), graph, symmetric=False)


def _fake(features, *_):
    return _empty(features)


def _cpu_backward(grad, *arguments):
    graph, wanted = arguments[:7], arguments[7:]
    grad = _aligned("grad", grad, graph[0])
    outputs = tuple(_empty(like, want) for like, want in zip(graph, wanted))
    run_native("spline_conv_backward", graph, grad, *map(_asked, outputs, wanted))
    return outputs


def _triton_backward(grad, *arguments):
    graph, wanted = arguments[:7], arguments[7:]
    return run_triton("backward", (_aligned("grad", grad, graph[0]),), graph, wanted)


def _fake_backward(grad, *arguments):
    return tuple(_empty(like, want) for like, want in zip(arguments[:3], arguments[7:]))


def _along(tensors: tuple, graph: tuple) -> tuple[Tensor | None, ...]:
    names = ("along_features", "along_positions", "along_coefficients")
    return tuple(_aligned(name, tensor, like) for name, tensor, like in zip(names, tensors, graph))


def _cpu_double_backward(along_features, along_positions, along_coefficients, grad, *arguments):
    graph, wanted = arguments[:7], arguments[7:]
    given = _along((along_features, along_positions, along_coefficients), graph)
    grad = _aligned("grad", grad, graph[0])
    outputs = (_empty(graph[0]), _empty(graph[0]), _empty(graph[1], wanted[0]), _empty(graph[2], wanted[1]))
    run_native("spline_conv_double_backward", graph, grad, *given, *outputs[:2], *map(_asked, outputs[2:], wanted))
    return outputs


def _triton_double_backward(along_features, along_positions, along_coefficients, grad, *arguments):
    graph, wanted = arguments[:7], arguments[7:]
    given = _along((along_features, along_positions, along_coefficients), graph)
    return run_triton("double_backward", (*given, _aligned("grad", grad, graph[0])), graph, wanted)


def _fake_double_backward(along_features, along_positions, along_coefficients, grad, *arguments):
    graph, wanted = arguments[:3], arguments[7:]
    return _empty(graph[0]), _empty(graph[0]), _empty(graph[1], wanted[0]), _empty(graph[2], wanted[1])


# ---- for steps captured in a graph: without looking at the list, which may have room behind its last edge ----
def _cut(graph: tuple) -> tuple:
    """On the CPU the list is checked as ever, without what is behind its last edge."""
    *nodes, row_ptr, col, offsets, cutoff = graph
    n_edges = max(0, int(row_ptr[-1])) if row_ptr.numel() else 0
    return *nodes, row_ptr, col[:n_edges], offsets[:n_edges], cutoff


def _within(graph: tuple) -> tuple:
    """On a GPU the host does not look at the list: what leads out of the arrays is led to their ends."""
    *nodes, row_ptr, col, offsets, cutoff = _check_graph(graph)
    return *nodes, row_ptr.clamp(0, col.numel()), col.clamp(0, nodes[0].shape[0] - 1), offsets, cutoff


def _cpu_unchecked(*graph):
    return _cpu(*_cut(graph))


def _triton_unchecked(*graph):
    from ..kernels.triton import spline_conv as kernels

    return kernels.forward(*_within(graph))


def _cpu_backward_unchecked(grad, *arguments):
    return _cpu_backward(grad, *_cut(arguments[:7]), arguments[7], True, False)[:2]


def _triton_backward_unchecked(grad, *arguments):
    from ..kernels.triton import spline_conv as kernels

    graph = _within(arguments[:7])
    return kernels.backward(_aligned("grad", grad, graph[0]), *graph, arguments[7], True, False)[:2]


def _fake_backward_unchecked(grad, *arguments):
    return _empty(arguments[0], arguments[7]), _empty(arguments[1])


# ---- autograd: inputs are saved and everything is computed again from them ---------------------------------
def _wanted(ctx, first: int, n: int) -> list[bool]:
    """Which of the inputs first .. first+n-1 the running backward will really use.

    ``needs_input_grad`` says what could be asked for; a score asks for positions alone, and the engine knows.
    """
    return [ctx.needs_input_grad[i] and _will_run(ctx.next_functions[i][0]) for i in range(first, first + n)]


def _will_run(node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except (RuntimeError, TypeError, AttributeError):  # a leaf being collected, or no engine here
        return True


def _setup_context(ctx, inputs, output):
    refuse_gradient(ctx, "spline_conv", {5: "offsets"})
    ctx.save_for_backward(*inputs[:6])
    ctx.cutoff = inputs[6]
    ctx.set_materialize_grads(False)


def _backward(ctx, grad):
    if grad is None:
        return (None,) * 7
    wanted = _wanted(ctx, 0, 3)
    grads = torch.ops.diffmd_fast.spline_conv_backward(grad, *ctx.saved_tensors, ctx.cutoff, *wanted)
    return *map(_asked, grads, wanted), None, None, None, None


def _setup_context_backward(ctx, inputs, output):
    ctx.mark_non_differentiable(*(grad for grad, wanted in zip(output, inputs[8:]) if not wanted))
    ctx.save_for_backward(*inputs[:7])
    ctx.cutoff = inputs[7]
    ctx.set_materialize_grads(False)


def _backward_backward(ctx, *along):
    if all(a is None for a in along):
        return (None,) * 11
    wanted = _wanted(ctx, 0, 4)
    grads = torch.ops.diffmd_fast.spline_conv_double_backward(
        *along, *ctx.saved_tensors, ctx.cutoff, *wanted[2:])
    return *map(_asked, grads, wanted), None, None, None, None, None, None, None


def _no_third_derivative(ctx, *grads):
    raise UnavailableError("spline_conv: the third derivative (of spline_conv_double_backward) is not "
                           "available outside the reference backend: use_backend(\"reference\") has every order")


define(f"spline_conv({_GRAPH}) -> Tensor", _cpu, _fake, triton=_triton)
define(f"spline_conv_backward(Tensor grad, {_GRAPH}, bool for_features, bool for_positions, "
       "bool for_coefficients) -> (Tensor, Tensor, Tensor)", _cpu_backward, _fake_backward, triton=_triton_backward)
define("spline_conv_double_backward(Tensor? along_features, Tensor? along_positions, "
       f"Tensor? along_coefficients, Tensor grad, {_GRAPH}, bool for_positions, bool for_coefficients) "
       "-> (Tensor, Tensor, Tensor, Tensor)", _cpu_double_backward, _fake_double_backward,
       triton=_triton_double_backward)
define(f"spline_conv_unchecked({_GRAPH}) -> Tensor", _cpu_unchecked, _fake, triton=_triton_unchecked)
define(f"spline_conv_backward_unchecked(Tensor grad, {_GRAPH}, bool for_features) -> (Tensor, Tensor)",
       _cpu_backward_unchecked, _fake_backward_unchecked, triton=_triton_backward_unchecked)
register_autograd("spline_conv", _backward, _setup_context)
register_autograd("spline_conv_backward", _backward_backward, _setup_context_backward)
register_autograd("spline_conv_double_backward", _no_third_derivative)
