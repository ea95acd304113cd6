"""Fuzz targets: the operators, through diffmd_fast.ops and, where it has no checks before it, torch.ops."""

from __future__ import annotations

import torch
from torch import Tensor

from diffmd_fast import ops, use_backend
from diffmd_fast.ops.spline_conv import as_boxes
from diffmd_fast.reference.neighbor_list import edge_offsets, edge_vectors
from diffmd_fast.reference.spline_conv import spline_conv_core
from diffmd_fast.reference.torsions import torsions_backward_core, torsions_core, torsions_double_backward_core

from .case import Case

RAW = torch.ops.diffmd_fast


def in_reference(call):
    with use_backend("reference"):
        return call()


def doubled(arguments: dict) -> dict:
    return {k: v.double() if isinstance(v, Tensor) and v.dtype == torch.float32 else v for k, v in arguments.items()}


# ---- em_step -------------------------------------------------------------------------------------------------

def _state(case: Case) -> tuple[int, int, dict]:
    most = 200 if case.chance(0.05) else 12
    n_replicas, n_atoms, dtype = case.size(most), case.size(most), case.dtype()
    return n_replicas, n_atoms, {"positions": case.positions(n_replicas, n_atoms, dtype),
                                 "score": case.values((n_replicas, n_atoms, 3), dtype, 10.0)}


def em_step(case: Case) -> None:
    n_replicas, n_atoms, arguments = _state(case)
    per = lambda n: case.values(n, torch.float64).abs() + 0.01 if case.chance(0.4) else 0.5  # noqa: E731
    arguments |= {"diffusion": per(n_atoms), "variance": per(n_replicas), "seed": case.random.randrange(2**64),
                  "first_replica": case.size(100), "step": case.random.randrange(2**56),
                  case.choice(("time_step", "stiffness")): 0.01,
                  "return_noise": case.chance(0.5), "return_log_density": case.chance(0.5)}
    arguments = case.spoil(arguments)
    before, out = dict(arguments), None
    x = arguments["positions"]
    if case.chance(0.6) and isinstance(x, Tensor) and x.numel() < 10**6:  # huge ones have no memory to be written to
        out = torch.empty(x.shape, dtype=x.dtype)  # contiguous, as it must be
        if case.chance(0.5):
            arguments["positions"] = out.copy_(x.detach())
        if case.chance(0.2):
            out = case.spoil({"out": out}, 1.0)["out"]
    result = case.attempt(lambda: ops.em_step(**arguments, out=out))
    if result is None:
        return
    if out is not None:
        case.check((result if isinstance(result, Tensor) else result[0]) is out, "out itself")
    arguments = before
    outputs = (result, None, None) if isinstance(result, Tensor) else result
    x, dtype = arguments["positions"], arguments["positions"].dtype
    case.check_shape(outputs[0], x.shape, dtype, "positions")
    if case.spoiled or not case.ordinary:
        return
    truth = in_reference(lambda: ops.em_step(**doubled(arguments) | {"return_noise": True, "return_log_density": True}))
    same = in_reference(lambda: ops.em_step(**arguments | {"return_noise": True, "return_log_density": True}))
    for name, got, reference, exact in zip(truth._fields, outputs, same, truth):
        # the noise in float64 is made of other random bits than that in float32
        if got is not None:
            case.check_close(got, reference, exact if dtype == torch.float64 else reference.double(), name)


def em_step_raw(case: Case) -> None:
    n_replicas, n_atoms, arguments = _state(case)
    one_or = lambda n: case.values(n if case.chance(0.5) else 1, torch.float64).abs()  # noqa: E731
    arguments |= {"diffusion_time": one_or(n_atoms), "variance": one_or(n_replicas),
                  "seed": case.random.randrange(-(2**63), 2**63), "first_replica": case.size(100),
                  "step": case.random.randrange(2**56), "with_noise": case.chance(0.5),
                  "with_log_density": case.chance(0.5)}
    arguments = case.spoil(arguments, raw=True)
    result = case.attempt(lambda: RAW.em_step(*arguments.values()))
    if result is not None:
        case.check_shape(result[0], arguments["positions"].shape, arguments["positions"].dtype, "positions")


def em_step_at_raw(case: Case) -> None:
    n_replicas, n_atoms, arguments = _state(case)
    one = torch.ones(1, dtype=torch.float64)
    arguments |= {"diffusion_time": one, "variance": one, "seed": case.random.randrange(-(2**63), 2**63),
                  "first_replica": case.size(100), "step": torch.tensor([case.random.randrange(2**56)]),
                  "domain": case.random.randrange(256)}
    arguments = {"positions": arguments["positions"].clone()} | case.spoil(
        {name: value for name, value in arguments.items() if name != "positions"}, raw=True)
    case.attempt(lambda: RAW.em_step_at_(*arguments.values()))


# ---- neighbor_list -------------------------------------------------------------------------------------------

def _box(case: Case, n_replicas: int, edge: float) -> Tensor | None:
    kind = case.choice(("none", "lengths", "vectors", "one each"))
    if kind == "none":
        return None
    lengths = edge * (1 + torch.rand(3, generator=case.generator, dtype=torch.float64))
    if kind == "lengths":
        return lengths
    tilt = 0.3 * edge * torch.rand(n_replicas, 3, 3, generator=case.generator, dtype=torch.float64)
    boxes = torch.diag(lengths) + torch.tril(tilt, -1)
    return boxes if kind == "one each" else (boxes[0] if n_replicas else torch.diag(lengths))


def neighbor_list(case: Case) -> None:
    n_replicas, n_atoms = case.size(6), 300 if case.chance(0.05) else case.size(40)
    positions = case.positions(n_replicas, n_atoms, case.dtype(), 1.0)
    cutoff, skin = case.random.uniform(0.05, 1.0), case.choice((0.0, 0.1))
    box = _box(case, n_replicas, 4.0 * (cutoff + skin))
    if box is None and case.chance(0.2):
        cutoff, skin = None, 0.0
    arguments = case.spoil({"positions": positions, "cutoff": cutoff, "box": box, "skin": skin,
                            "return_distances": case.chance(0.5), "return_vectors": case.chance(0.5)})
    result = case.attempt(lambda: ops.neighbor_list(**arguments))
    if result is None:
        return
    x = arguments["positions"]
    check_list(case, result, x.shape[0] * x.shape[1])
    if not case.spoiled:  # the same rows, whatever the values
        for name, got, want in zip(result._fields, result, in_reference(lambda: ops.neighbor_list(**arguments))):
            if name in ("row_ptr", "col", "shift", "reverse"):
                case.check(torch.equal(got, want), f"the reference's {name}")


def verlet_list(case: Case) -> None:
    """Several updates of one list, as it would be made for each of them."""
    n_replicas, n_atoms = case.size(4), case.size(30)
    positions, box = case.positions(n_replicas, n_atoms, case.dtype(), 1.0), _box(case, n_replicas, 3.0)
    arguments = case.spoil({"cutoff": case.random.uniform(0.1, 1.0), "skin": case.random.uniform(0.01, 0.4)})
    verlet = case.attempt(lambda: ops.VerletList(**arguments))
    for _ in range(3 if verlet else 0):
        x = positions + case.random.choice((0.0, 0.1, 1.0)) * torch.rand(
            n_replicas, 1, 1, generator=case.generator, dtype=positions.dtype)
        now = case.spoil({"positions": x, "box": None if box is None else box * case.random.uniform(0.95, 1.05),
                          "return_distances": case.chance(0.5)})
        result = case.attempt(lambda now=now: verlet.update(**now))
        if result is not None:
            check_list(case, result, now["positions"].shape[0] * now["positions"].shape[1])


def neighbor_list_raw(case: Case) -> None:
    n_replicas, n_atoms = case.size(6), case.size(40)
    positions = case.positions(n_replicas, n_atoms, case.dtype(), 1.0)
    box = _box(case, n_replicas, 4.0)
    box = torch.zeros(0, 3, 3, dtype=torch.float64) if box is None else as_boxes(box, positions, "fuzz")
    infinite = not box.shape[0] and case.chance(0.3)
    arguments = case.spoil({"positions": positions, "box": box, "reach": float("inf") if infinite else 0.7,
                            "method": case.choice(("auto", "brute_force", "cell_list"))}, raw=True)
    result = case.attempt(lambda: RAW.neighbor_list(*arguments.values()))
    if result is not None:
        x = arguments["positions"]
        check_list(case, ops.NeighborList(*result), x.shape[0] * x.shape[1])


def check_list(case: Case, result: ops.NeighborList, n_nodes: int) -> None:
    """Rows that cover the edges, columns inside, and a `reverse` that is one."""
    n_edges = result.col.numel()
    case.check_shape(result.row_ptr, (n_nodes + 1,), torch.int64, "row_ptr")
    case.check_shape(result.reverse, (n_edges,), torch.int64, "reverse")
    case.check(result.row_ptr[0] == 0 and result.row_ptr[-1] == n_edges and (result.row_ptr.diff() >= 0).all(),
               "rows that cover the edges")
    if n_edges:
        case.check(result.col.min() >= 0 and result.col.max() < n_nodes, "columns that are nodes")
        case.check(torch.equal(result.rows(), result.col[result.reverse].long()), "reverse edges back to their row")


def neighbor_vectors(case: Case) -> None:
    n_replicas, n_atoms = case.size(5), case.size(20)
    ordinary, case.ordinary = case.ordinary, True  # the list comes from positions that have one
    positions = case.positions(n_replicas, n_atoms, case.dtype(), 1.0)
    box = _box(case, n_replicas, 2.5)
    listed = ops.neighbor_list(positions, 0.8, box=box)
    boxes = as_boxes(box, positions, "fuzz")
    case.ordinary = ordinary
    if not ordinary:
        positions = case.positions(n_replicas, n_atoms, positions.dtype, 1.0)
    arguments = case.spoil({"positions": positions, "box": boxes, "row_ptr": listed.row_ptr, "col": listed.col,
                            "shift": listed.shift}, raw=True)
    result = case.attempt(lambda: RAW.neighbor_vectors(*arguments.values()))
    if result is None:
        return
    n_edges = arguments["col"].numel()
    case.check_shape(result[0], (n_edges, 3), arguments["positions"].dtype, "vectors")
    case.check_shape(result[1], (n_edges,), arguments["positions"].dtype, "distances")
    if not case.spoiled and case.ordinary:
        for got, same, truth in zip(result, edge_vectors(*arguments.values()),
                                    edge_vectors(*doubled(arguments).values())):
            case.check_close(got, same, truth, "vectors and distances")


# ---- spline_conv ---------------------------------------------------------------------------------------------

def _graph(case: Case) -> dict:
    """The arguments of the flat operators; a list of ordinary positions, whatever the positions are in the end."""
    n_replicas, n_atoms, dtype = case.size(4), case.size(12), case.dtype()
    n_features, n_knots = case.size(20, 1), case.choice((4, 5, 8, 30, 400))
    cutoff = case.random.uniform(0.1, 1.0)
    ordinary, case.ordinary = case.ordinary, True
    positions = case.positions(n_replicas, n_atoms, dtype)
    box = _box(case, n_replicas, 2.5)
    listed = ops.neighbor_list(positions, None if box is None and case.chance(0.5) else 1.0, box=box)
    offsets = positions.new_zeros(0, 3)
    if box is not None:
        boxes = as_boxes(box, positions, "fuzz")
        offsets = edge_offsets(listed.shift, boxes, listed.rows(), n_atoms).to(dtype)
    case.ordinary = ordinary
    if not ordinary:
        positions = case.positions(n_replicas, n_atoms, dtype)
    coefficients = case.values((n_knots, n_features), dtype)
    coefficients[-3:] = 0  # a filter that ends at the cutoff without a step, on whose side rounding would decide
    return {"features": case.values((n_replicas * n_atoms, n_features), dtype), "positions": positions.view(-1, 3),
            "coefficients": coefficients, "row_ptr": listed.row_ptr, "col": listed.col, "offsets": offsets,
            "cutoff": cutoff}


def spline_conv(case: Case) -> None:
    arguments = case.spoil(_graph(case), raw=True)
    out = case.attempt(lambda: RAW.spline_conv(*arguments.values()))
    if out is None:
        return
    case.check_shape(out, arguments["features"].shape, arguments["features"].dtype, "messages")
    if not case.spoiled and case.ordinary:
        case.check_close(out, spline_conv_core(*arguments.values()), spline_conv_core(*doubled(arguments).values()),
                         "messages")


def spline_conv_public(case: Case) -> None:
    n_replicas, n_atoms, dtype = case.size(4), case.size(12), case.dtype()
    n_features = case.size(20, 1)
    positions = case.positions(n_replicas, n_atoms, dtype)
    box = _box(case, n_replicas, 2.5)
    listed = case.attempt(lambda: ops.neighbor_list(positions, 1.0, box=box))
    if listed is None:
        return
    parts = case.spoil(dict(zip(("row_ptr", "col", "shift", "reverse"), listed[:4])), 0.3)
    arguments = case.spoil({"features": case.values((n_replicas, n_atoms, n_features), dtype), "positions": positions,
                            "coefficients": case.values((case.choice((4, 9, 50)), n_features), dtype),
                            "cutoff": 0.9, "box": box}, 0.3)
    out = case.attempt(lambda: ops.spline_conv(neighbors=ops.NeighborList(**parts), **arguments))
    if out is not None:
        case.check_shape(out, arguments["features"].shape, arguments["features"].dtype, "messages")


def _backward_of(graph: dict, grad: Tensor, wanted) -> list[Tensor]:
    """Gradients of <grad, spline_conv> to the wanted of features, positions and coefficients, through autograd."""
    leaves = [graph[name].detach().requires_grad_() for name in ("features", "positions", "coefficients")]
    out = spline_conv_core(*leaves, *list(graph.values())[3:])
    grads = torch.autograd.grad(out, leaves, grad, create_graph=True, allow_unused=True, materialize_grads=True)
    return [g for g, want in zip(grads, wanted) if want], leaves


def spline_conv_backward(case: Case) -> None:
    graph = _graph(case)
    wanted = [case.chance(0.6) for _ in range(3)]
    grad = case.values(graph["features"].shape, graph["features"].dtype)
    arguments = case.spoil({"grad": grad, **graph, **dict(zip("123", wanted))}, raw=True)
    grads = case.attempt(lambda: RAW.spline_conv_backward(*arguments.values()))
    if grads is None or case.spoiled or not case.ordinary or not graph["features"].numel():
        return
    same, truth = _backward_of(graph, grad, wanted)[0], _backward_of(doubled(graph), grad.double(), wanted)[0]
    for got, reference, exact in zip([g for g, want in zip(grads, wanted) if want], same, truth):
        case.check_shape(got, exact.shape, grad.dtype, "gradient")
        case.check_close(got, reference.detach(), exact.detach(), "gradient")


def spline_conv_double_backward(case: Case) -> None:
    graph = _graph(case)
    dtype, wanted = graph["features"].dtype, [case.chance(0.6) for _ in range(2)]
    along = {f"along_{name}": case.values(graph[name].shape, dtype) if case.chance(0.8) else None
             for name in ("features", "positions", "coefficients")}
    grad = case.values(graph["features"].shape, dtype)
    arguments = case.spoil({**along, "grad": grad, **graph, **dict(zip("12", wanted))}, raw=True)
    grads = case.attempt(lambda: RAW.spline_conv_double_backward(*arguments.values()))
    if grads is None or case.spoiled or not case.ordinary or not graph["features"].numel():
        return
    same = _double_backward_of(graph, grad, along)
    truth = _double_backward_of(doubled(graph), grad.double(), doubled(along))
    for got, reference, exact, want in zip(grads, same, truth, (True, True, *wanted)):
        if want:
            case.check_shape(got, exact.shape, dtype, "second gradient")
            case.check_close(got, reference, exact, "second gradient")


def _double_backward_of(graph: dict, grad: Tensor, along: dict) -> list[Tensor]:
    grad = grad.detach().requires_grad_()
    grads, leaves = _backward_of(graph, grad, (True, True, True))
    total = sum(((g * a).sum() for g, a in zip(grads, along.values()) if a is not None), grad.sum() * 0)
    return torch.autograd.grad(total, [grad, *leaves], allow_unused=True, materialize_grads=True)


# ---- torsions ------------------------------------------------------------------------------------------------

def _quadruples(case: Case) -> dict:
    n_replicas, n_atoms = case.size(40), case.size(12)
    rows = [case.permutation(n_atoms)[:4] for _ in range(case.size(20) if n_atoms >= 4 else 0)]
    quadruples = torch.tensor(rows, dtype=case.choice((torch.int64, torch.int32))).reshape(-1, 4)
    return {"positions": case.positions(n_replicas, n_atoms, case.dtype()), "quadruples": quadruples}


def on_a_line(x: Tensor, quadruples: Tensor) -> bool:
    """Near a line the derivatives reach 1e4 per nm and more: an error of rounding is as large as the result."""
    if not quadruples.numel() or not x.numel():
        return False
    a, b, c, d = (x.double()[:, quadruples.long()[:, i]] for i in range(4))
    areas = [torch.linalg.cross(u, v).norm(dim=-1).min() for u, v in ((b - a, c - b), (c - b, d - c))]
    return min(areas).item() < 1e-3


def torsions(case: Case) -> None:
    arguments = case.spoil(_quadruples(case))
    out = case.attempt(lambda: ops.torsions(**arguments))
    if out is None:
        return
    x, quadruples = arguments["positions"], arguments["quadruples"]
    case.check_shape(out, (x.shape[0], quadruples.shape[0], 2), x.dtype, "sines and cosines")
    if not case.spoiled and case.ordinary and not on_a_line(x, quadruples):
        case.check_close(out, torsions_core(x, quadruples), torsions_core(x.double(), quadruples), "sines and cosines")


def torsions_backward(case: Case) -> None:
    arguments = _quadruples(case)
    x, quadruples = arguments.values()
    grad = case.values((x.shape[0], quadruples.shape[0], 2), x.dtype)
    arguments = case.spoil({"grad_output": grad, **arguments}, raw=True)
    out = case.attempt(lambda: RAW.torsions_backward(*arguments.values()))
    if out is None:
        return
    case.check_shape(out, arguments["positions"].shape, arguments["positions"].dtype, "gradient")
    if not case.spoiled and case.ordinary and not on_a_line(x, quadruples):
        case.check_close(out, torsions_backward_core(*arguments.values()),
                         torsions_backward_core(*doubled(arguments).values()), "gradient")


def torsions_double_backward(case: Case) -> None:
    arguments = _quadruples(case)
    x, quadruples = arguments.values()
    grad, cotangent = case.values((x.shape[0], quadruples.shape[0], 2), x.dtype), case.values(x.shape, x.dtype)
    arguments = case.spoil({"cotangent": cotangent, "grad_output": grad, **arguments}, raw=True)
    outputs = case.attempt(lambda: RAW.torsions_double_backward(*arguments.values()))
    if outputs is None:
        return
    for out, like in zip(outputs, (arguments["grad_output"], arguments["positions"])):
        case.check_shape(out, like.shape, like.dtype, "second derivative")
    if not case.spoiled and case.ordinary and not on_a_line(x, quadruples):
        for got, same, truth in zip(outputs, torsions_double_backward_core(*arguments.values()),
                                    torsions_double_backward_core(*doubled(arguments).values())):
            case.check_close(got, same, truth, "second derivative")


TARGETS = {function.__name__: function for function in (
    em_step, em_step_raw, em_step_at_raw, neighbor_list, neighbor_list_raw, neighbor_vectors, verlet_list, spline_conv,
    spline_conv_public, spline_conv_backward, spline_conv_double_backward, torsions, torsions_backward,
    torsions_double_backward)}
