"""Continuous-filter convolution with spline filters on a GPU; the sums are those of csrc/spline_conv.cpp.

One program owns one row of the list and every number it writes, so there are no atomics and results repeat bit for bit.
The list is symmetric: a sum over the edges that touch an atom is a sum over its row, backward as forward.  Geometry,
spline weights and filters live in registers, edges x features at a time; nothing of size edges x features is written.
The gradient of the coefficients alone sums over edges of one spline interval instead of one row: it sorts the edges by
interval (20 bytes an edge) and adds partial sums in a fixed order.
"""

import torch
import triton
import triton.language as tl

from .arithmetic import add, bits_of, divide, exact_sqrt, float_of, load_vector, subtract
from .tuning import tuned

# No fused multiply-adds: an edge and its twin, and the interpreter and a GPU, then see the same distance and interval.
# They would not pay here: for each feature of an edge five numbers come from L1 (one feature, four coefficients), 32
# of them a cycle and multiprocessor, against nine additions and products, 128 a cycle.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
EDGES_OF_PARTIAL_SUM = 256
MAX_PARTS = 64


def tile_of(n_features: int, element_size: int, numbers: int) -> dict[str, int]:
    """Edges and features of one tile of ``numbers`` float32 (half as many float64).

    128 float32 features are one warp reading 16 bytes a lane.  More than 32 edges would mostly be idle: an atom has 20
    to 60 neighbors.
    """
    features = min(128, max(16, triton.next_power_of_2(n_features)))
    return {"EDGES": min(32, max(2, numbers * 4 // (element_size * features))), "FEATURES": features}


# Numbers of a tile per kernel, 16, 8 or 4 a thread; more edges a tile share the exchange of their geometry between
# threads. Registers decide (tests/kernels/test_triton_compiles.py gates them): at 128 features these leave room for at
# least 4, 3, 3 and 6 programs of four warps on a multiprocessor; the forward at 1024 spills on sm_100. Not yet timed.
FORWARD, BACKWARD, DOUBLE_BACKWARD, COEFFICIENTS = 2048, 1024, 512, 512


@triton.jit
def measure(mine, positions, offsets, node, edge, inside, cutoff, per_spacing, n_knots, IN_BOX: tl.constexpr):
    """(near, interval, t, 1 / r, unit vector x_i - x_j) of edges to ``node``.

    The last two are zero where r is.  Beyond the cutoff all of them are finite, so that an edge whose loads are masked
    by ``near`` adds exactly zero, also where positions are infinite.
    """
    DTYPE: tl.constexpr = positions.dtype.element_ty
    # x_j - x_i first: the twin with the opposite offset then has the same distance to the last bit
    x, y, z = subtract(load_vector(positions, node, inside), mine)
    if IN_BOX:
        x, y, z = add((x, y, z), load_vector(offsets, edge, inside))
    r = exact_sqrt(x * x + y * y + z * z)
    beyond = r >= float_of(cutoff, DTYPE)
    r = tl.where(beyond, 0.0, r)
    scaled = r * float_of(per_spacing, DTYPE)
    last = (n_knots - 4).to(DTYPE)
    interval = tl.where(scaled < last, scaled, last).to(tl.int32)  # a NaN lands on the last one, and t is NaN
    inverse = tl.where(r == 0, 0.0, divide(tl.full([], 1.0, DTYPE), tl.where(r == 0, 1.0, r)))
    unit = (tl.where(beyond, 0.0, -x) * inverse, tl.where(beyond, 0.0, -y) * inverse,
            tl.where(beyond, 0.0, -z) * inverse)
    return inside & ~beyond, interval, scaled - interval.to(DTYPE), inverse, unit


@triton.jit
def splines(t):
    """The four B_k(r) that are not zero; reference/spline_conv.py says which."""
    s = 1.0 - t
    sixth = tl.full([], 1.0 / 6.0, t.dtype)
    return (s * s * s * sixth, ((3.0 * t - 6.0) * t * t + 4.0) * sixth,
            (((-3.0 * t + 3.0) * t + 3.0) * t + 1.0) * sixth, t * t * t * sixth)


@triton.jit
def slopes(t, per_spacing):
    """Their derivatives with respect to r."""
    half = 0.5 * float_of(per_spacing, t.dtype)
    s = 1.0 - t
    return (-s * s * half, (3.0 * t - 4.0) * t * half, ((-3.0 * t + 2.0) * t + 1.0) * half, t * t * half)


@triton.jit
def curvatures(t, per_spacing):
    """Their second derivatives with respect to r."""
    spacing = float_of(per_spacing, t.dtype)
    square = spacing * spacing
    return (1.0 - t) * square, (3.0 * t - 2.0) * square, (1.0 - 3.0 * t) * square, t * square


@triton.jit
def load_four(coefficients, interval, feature, n_features, mask):
    """The coefficients of each edge's interval, four tiles [edges, features]."""
    at = coefficients + interval.to(tl.int64)[:, None] * n_features + feature[None, :]
    return (tl.load(at, mask=mask, other=0.0), tl.load(at + n_features, mask=mask, other=0.0),
            tl.load(at + 2 * n_features, mask=mask, other=0.0), tl.load(at + 3 * n_features, mask=mask, other=0.0))


@triton.jit
def weigh(b, c):
    """Weights [edges] times coefficients [edges, features], summed."""
    return b[0][:, None] * c[0] + b[1][:, None] * c[1] + b[2][:, None] * c[2] + b[3][:, None] * c[3]


@triton.jit
def load_nodes(array, node, feature, n_features, mask):
    return tl.load(array + node[:, None] * n_features + feature[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["cutoff", "per_spacing"])
def forward_kernel(features, positions, coefficients, row_ptr, col, offsets, out, n_features, n_knots, cutoff,
                   per_spacing, IN_BOX: tl.constexpr, EDGES: tl.constexpr, FEATURES: tl.constexpr):
    """m_i = sum_j h_j W(r_ij) of one row and FEATURES features."""
    DTYPE: tl.constexpr = features.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    mine = load_vector(positions, i, True)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    total = tl.zeros([EDGES, FEATURES], DTYPE)
    for first in range(begin, end, EDGES):
        edge = first + tl.arange(0, EDGES)
        inside = edge < end
        j = tl.load(col + edge, mask=inside, other=0).to(tl.int64)
        near, interval, t, _, _ = measure(mine, positions, offsets, j, edge, inside, cutoff, per_spacing, n_knots,
                                          IN_BOX)
        mask = near[:, None] & (feature < n_features)[None, :]
        w = weigh(splines(t), load_four(coefficients, interval, feature, n_features, mask))
        total += load_nodes(features, j, feature, n_features, mask) * w
    tl.store(out + i * n_features + feature, tl.sum(total, 0), mask=feature < n_features)


@triton.jit(do_not_specialize=["cutoff", "per_spacing"])
def backward_kernel(features, positions, coefficients, row_ptr, col, offsets, grad, grad_features, grad_positions,
                    n_features, n_knots, cutoff, per_spacing, FOR_FEATURES: tl.constexpr, FOR_POSITIONS: tl.constexpr,
                    IN_BOX: tl.constexpr, EDGES: tl.constexpr, FEATURES: tl.constexpr):
    """grad_h_i = sum_j g_j W and grad_x_i = sum_j u sum_f W' (g_i h_j + g_j h_i) of one row."""
    DTYPE: tl.constexpr = features.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    mine = load_vector(positions, i, True)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    force = (tl.zeros([EDGES], DTYPE), tl.zeros([EDGES], DTYPE), tl.zeros([EDGES], DTYPE))
    for start in range(0, n_features, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        wanted = feature < n_features
        hi = tl.load(features + i * n_features + feature, mask=wanted, other=0.0)[None, :]
        gi = tl.load(grad + i * n_features + feature, mask=wanted, other=0.0)[None, :]
        total = tl.zeros([EDGES, FEATURES], DTYPE)
        for first in range(begin, end, EDGES):
            edge = first + tl.arange(0, EDGES)
            inside = edge < end
            j = tl.load(col + edge, mask=inside, other=0).to(tl.int64)
            near, interval, t, _, unit = measure(mine, positions, offsets, j, edge, inside, cutoff, per_spacing,
                                                 n_knots, IN_BOX)
            mask = near[:, None] & wanted[None, :]
            c = load_four(coefficients, interval, feature, n_features, mask)
            gj = load_nodes(grad, j, feature, n_features, mask)
            if FOR_FEATURES:
                total += gj * weigh(splines(t), c)
            if FOR_POSITIONS:
                hj = load_nodes(features, j, feature, n_features, mask)
                along = tl.sum(weigh(slopes(t, per_spacing), c) * (gi * hj + gj * hi), 1)
                force = (force[0] + along * unit[0], force[1] + along * unit[1], force[2] + along * unit[2])
        if FOR_FEATURES:
            tl.store(grad_features + i * n_features + feature, tl.sum(total, 0), mask=wanted)
    if FOR_POSITIONS:
        tl.store(grad_positions + 3 * i, tl.sum(force[0], 0))
        tl.store(grad_positions + 3 * i + 1, tl.sum(force[1], 0))
        tl.store(grad_positions + 3 * i + 2, tl.sum(force[2], 0))


@triton.jit
def moved(along_positions, mine, j, inside, inverse, unit, WITH: tl.constexpr):
    """How an edge moves, ax_i - ax_j, and the derivative of its length, d; zero where 1 / r is."""
    if WITH:
        x, y, z = subtract(mine, load_vector(along_positions, j, inside))
        none = inverse == 0  # and not the mask of `measure`: Triton 3.7.1 fails to compile that for 32 features
        move = (tl.where(none, 0.0, x), tl.where(none, 0.0, y), tl.where(none, 0.0, z))
        return move, unit[0] * move[0] + unit[1] * move[1] + unit[2] * move[2]
    else:
        zero = unit[0] * 0.0
        return (zero, zero, zero), zero


@triton.jit(do_not_specialize=["cutoff", "per_spacing"])
def double_backward_kernel(features, positions, coefficients, row_ptr, col, offsets, grad, along_features,
                           along_positions, along_coefficients, grad_grad, grad_features, grad_positions, n_features,
                           n_knots, cutoff, per_spacing, ALONG_FEATURES: tl.constexpr, ALONG_POSITIONS: tl.constexpr,
                           ALONG_COEFFICIENTS: tl.constexpr, FOR_POSITIONS: tl.constexpr, IN_BOX: tl.constexpr,
                           EDGES: tl.constexpr, FEATURES: tl.constexpr):
    """Derivatives of <grad_features, ah> + <grad_positions, ax> + <grad_coefficients, aC> of one row.

    The sums are those of row_twice in csrc/spline_conv.cpp, which derives them.
    """
    DTYPE: tl.constexpr = features.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    mine = load_vector(positions, i, True)
    along_mine = mine
    if ALONG_POSITIONS:
        along_mine = load_vector(along_positions, i, True)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    force = (tl.zeros([EDGES], DTYPE), tl.zeros([EDGES], DTYPE), tl.zeros([EDGES], DTYPE))
    for start in range(0, n_features, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        wanted = feature < n_features
        at = i * n_features + feature
        hi = tl.load(features + at, mask=wanted, other=0.0)[None, :]
        gi = tl.load(grad + at, mask=wanted, other=0.0)[None, :]
        if ALONG_FEATURES:
            ahi = tl.load(along_features + at, mask=wanted, other=0.0)[None, :]
        out_g = tl.zeros([EDGES, FEATURES], DTYPE)
        out_h = tl.zeros([EDGES, FEATURES], DTYPE)
        for first in range(begin, end, EDGES):
            edge = first + tl.arange(0, EDGES)
            inside = edge < end
            j = tl.load(col + edge, mask=inside, other=0).to(tl.int64)
            near, interval, t, inverse, unit = measure(mine, positions, offsets, j, edge, inside, cutoff, per_spacing,
                                                       n_knots, IN_BOX)
            move, d = moved(along_positions, along_mine, j, inside, inverse, unit, ALONG_POSITIONS)
            mask = near[:, None] & wanted[None, :]
            c = load_four(coefficients, interval, feature, n_features, mask)
            hj = load_nodes(features, j, feature, n_features, mask)
            gj = load_nodes(grad, j, feature, n_features, mask)
            w1 = weigh(slopes(t, per_spacing), c)
            turn = w1 * d[:, None]  # the derivative of the filter: its argument moves, and its coefficients
            if FOR_POSITIONS:
                bend = weigh(curvatures(t, per_spacing), c) * d[:, None]  # the same of W'
            if ALONG_COEFFICIENTS:
                ac = load_four(along_coefficients, interval, feature, n_features, mask)
                turn += weigh(splines(t), ac)
                if FOR_POSITIONS:
                    bend += weigh(slopes(t, per_spacing), ac)
            out_h += gj * turn
            to_g = hj * turn
            if ALONG_FEATURES:
                ahj = load_nodes(along_features, j, feature, n_features, mask)
                to_g += ahj * weigh(splines(t), c)
            out_g += to_g
            if FOR_POSITIONS:
                both = gi * hj + gj * hi
                lengthwise = both * bend
                if ALONG_FEATURES:
                    lengthwise += (gi * ahj + gj * ahi) * w1
                along = tl.sum(lengthwise, 1)
                across = tl.sum(both * w1, 1) * inverse
                force = (force[0] + along * unit[0] + across * (move[0] - d * unit[0]),
                         force[1] + along * unit[1] + across * (move[1] - d * unit[1]),
                         force[2] + along * unit[2] + across * (move[2] - d * unit[2]))
        tl.store(grad_grad + at, tl.sum(out_g, 0), mask=wanted)
        tl.store(grad_features + at, tl.sum(out_h, 0), mask=wanted)
    if FOR_POSITIONS:
        tl.store(grad_positions + 3 * i, tl.sum(force[0], 0))
        tl.store(grad_positions + 3 * i + 1, tl.sum(force[1], 0))
        tl.store(grad_positions + 3 * i + 2, tl.sum(force[2], 0))


@triton.jit(do_not_specialize=["cutoff", "per_spacing"])
def interval_kernel(positions, row_ptr, col, offsets, rows, intervals, n_knots, cutoff, per_spacing,
                    IN_BOX: tl.constexpr, EDGES: tl.constexpr):
    """The row of each edge and its spline interval, n_knots - 3 at and beyond the cutoff."""
    i = tl.program_id(0).to(tl.int64)
    mine = load_vector(positions, i, True)
    end = tl.load(row_ptr + i + 1)
    for first in range(tl.load(row_ptr + i), end, EDGES):
        edge = first + tl.arange(0, EDGES)
        inside = edge < end
        j = tl.load(col + edge, mask=inside, other=0).to(tl.int64)
        near, interval, _, _, _ = measure(mine, positions, offsets, j, edge, inside, cutoff, per_spacing, n_knots,
                                          IN_BOX)
        tl.store(rows + edge, tl.zeros([EDGES], tl.int32) + i.to(tl.int32), mask=inside)
        tl.store(intervals + edge, tl.where(near, interval, n_knots - 3), mask=inside)


@triton.jit(do_not_specialize=["cutoff", "per_spacing"])
def coefficients_kernel(features, positions, rows, col, offsets, grad, along_features, along_positions, order,
                        interval_ptr, parts, n_features, n_knots, cutoff, per_spacing, n_parts, SLOPE: tl.constexpr,
                        ALONG_FEATURES: tl.constexpr, ALONG_POSITIONS: tl.constexpr, IN_BOX: tl.constexpr,
                        EDGES: tl.constexpr, FEATURES: tl.constexpr):
    """A part of the sums over the edges of one interval: parts [n_parts, n_knots - 3, 4, n_features].

    sum_edges B_k g_i h_j, or with SLOPE its derivative, sum_edges B_k g_i ah_j + B'_k d g_i h_j.
    """
    DTYPE: tl.constexpr = features.dtype.element_ty
    k = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    feature = tl.program_id(2) * FEATURES + tl.arange(0, FEATURES)
    wanted = feature < n_features
    lowest = tl.load(interval_ptr + k)
    count = tl.load(interval_ptr + k + 1) - lowest
    end = lowest + count * (part + 1) // n_parts
    s0 = tl.zeros([EDGES, FEATURES], DTYPE)
    s1 = tl.zeros([EDGES, FEATURES], DTYPE)
    s2 = tl.zeros([EDGES, FEATURES], DTYPE)
    s3 = tl.zeros([EDGES, FEATURES], DTYPE)
    for first in range(lowest + count * part // n_parts, end, EDGES):
        place = first + tl.arange(0, EDGES)
        inside = place < end
        edge = tl.load(order + place, mask=inside, other=0)
        i = tl.load(rows + edge, mask=inside, other=0).to(tl.int64)
        j = tl.load(col + edge, mask=inside, other=0).to(tl.int64)
        mine = load_vector(positions, i, inside)
        near, _, t, inverse, unit = measure(mine, positions, offsets, j, edge, inside, cutoff, per_spacing, n_knots,
                                            IN_BOX)
        mask = near[:, None] & wanted[None, :]
        gi = load_nodes(grad, i, feature, n_features, mask)
        b0, b1, b2, b3 = splines(t)
        if not SLOPE or ALONG_FEATURES:
            if SLOPE:
                value = gi * load_nodes(along_features, j, feature, n_features, mask)
            else:
                value = gi * load_nodes(features, j, feature, n_features, mask)
            s0 += b0[:, None] * value
            s1 += b1[:, None] * value
            s2 += b2[:, None] * value
            s3 += b3[:, None] * value
        if ALONG_POSITIONS:
            _, d = moved(along_positions, load_vector(along_positions, i, inside), j, inside, inverse, unit, True)
            value = gi * load_nodes(features, j, feature, n_features, mask)
            p0, p1, p2, p3 = slopes(t, per_spacing)
            s0 += (p0 * d)[:, None] * value
            s1 += (p1 * d)[:, None] * value
            s2 += (p2 * d)[:, None] * value
            s3 += (p3 * d)[:, None] * value
    out = parts + ((part * (n_knots - 3) + k) * 4) * n_features + feature
    tl.store(out, tl.sum(s0, 0), mask=wanted)
    tl.store(out + n_features, tl.sum(s1, 0), mask=wanted)
    tl.store(out + 2 * n_features, tl.sum(s2, 0), mask=wanted)
    tl.store(out + 3 * n_features, tl.sum(s3, 0), mask=wanted)


def graph_of(features, positions, coefficients, offsets, cutoff: float) -> dict:
    """What every kernel is told of the sizes; arguments are checked by ops/spline_conv.py."""
    n_knots = coefficients.shape[0]
    return {"n_features": features.shape[1], "n_knots": n_knots, "cutoff": bits_of(cutoff),
            "per_spacing": bits_of((n_knots - 3) / cutoff), "IN_BOX": offsets.numel() > 0}


def launch_of(step: str, numbers: int, features: torch.Tensor) -> dict:
    """Tile, warps and options of a launch: ``numbers`` and LAUNCH unless the card has a table."""
    n_features, size = features.shape[1], features.element_size()
    shape = f"{features.dtype}, {tile_of(n_features, size, numbers)['FEATURES']} features"
    own = {"NUMBERS": numbers, **LAUNCH, **tuned(f"spline_conv_{step}", shape, features.device)}
    return tile_of(n_features, size, own.pop("NUMBERS")) | own


def forward(features, positions, coefficients, row_ptr, col, offsets, cutoff) -> torch.Tensor:
    out = torch.empty_like(features)
    n_nodes, n_features = features.shape
    launch = launch_of("forward", FORWARD, features)
    if n_nodes:
        with torch.cuda.device_of(features):  # Triton launches on the current device
            forward_kernel[n_nodes, triton.cdiv(n_features, launch["FEATURES"])](
                features, positions, coefficients, row_ptr, col, offsets, out, **launch,
                **graph_of(features, positions, coefficients, offsets, cutoff))
    return out


def backward(grad, features, positions, coefficients, row_ptr, col, offsets, cutoff, for_features, for_positions,
             for_coefficients) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of features, positions and coefficients; those not asked for are empty."""
    grad_features = torch.empty_like(features) if for_features else features.new_empty(0)
    grad_positions = torch.empty_like(positions) if for_positions else features.new_empty(0)
    graph = graph_of(features, positions, coefficients, offsets, cutoff)
    if len(features) and (for_features or for_positions):
        with torch.cuda.device_of(features):
            backward_kernel[len(features),](
                features, positions, coefficients, row_ptr, col, offsets, grad, grad_features, grad_positions,
                FOR_FEATURES=for_features, FOR_POSITIONS=for_positions, **graph,
                **launch_of("backward", BACKWARD, features))
    grad_coefficients = features.new_empty(0)
    if for_coefficients:
        grad_coefficients = sum_by_interval(features, positions, coefficients, row_ptr, col, offsets, grad, graph)
    return grad_features, grad_positions, grad_coefficients


def double_backward(along_features, along_positions, along_coefficients, grad, features, positions, coefficients,
                    row_ptr, col, offsets, cutoff, for_positions, for_coefficients) -> tuple[torch.Tensor, ...]:
    """Derivatives to grad, features, positions and coefficients; the last two are empty where not asked for."""
    grad_grad, grad_features = torch.empty_like(features), torch.empty_like(features)
    grad_positions = torch.empty_like(positions) if for_positions else features.new_empty(0)
    graph = graph_of(features, positions, coefficients, offsets, cutoff)
    if len(features):
        with torch.cuda.device_of(features):
            double_backward_kernel[len(features),](
                features, positions, coefficients, row_ptr, col, offsets, grad, along_features, along_positions,
                along_coefficients, grad_grad, grad_features, grad_positions,
                ALONG_FEATURES=along_features is not None, ALONG_POSITIONS=along_positions is not None,
                ALONG_COEFFICIENTS=along_coefficients is not None, FOR_POSITIONS=for_positions, **graph,
                **launch_of("double_backward", DOUBLE_BACKWARD, features))
    grad_coefficients = features.new_empty(0)
    if for_coefficients:
        grad_coefficients = sum_by_interval(features, positions, coefficients, row_ptr, col, offsets, grad, graph,
                                            (along_features, along_positions))
    return grad_grad, grad_features, grad_positions, grad_coefficients


def sum_by_interval(features, positions, coefficients, row_ptr, col, offsets, grad, graph: dict,
                    along: tuple | None = None) -> torch.Tensor:
    """sum_edges B_k g_i h_j, or its derivative along (along_features, along_positions), [knots, features]."""
    total = torch.zeros_like(coefficients)
    n_edges, (n_knots, n_features) = col.numel(), coefficients.shape
    n_intervals = n_knots - 3
    if n_edges == 0 or along == (None, None):
        return total
    along_features, along_positions = along or (None, None)
    n_parts = min(MAX_PARTS, triton.cdiv(n_edges, n_intervals * EDGES_OF_PARTIAL_SUM))
    parts = features.new_empty(n_parts, n_intervals, 4, n_features)
    launch = launch_of("coefficients", COEFFICIENTS, features)
    rows, intervals = torch.empty_like(col), torch.empty_like(col)
    with torch.cuda.device_of(features):
        interval_kernel[len(features),](positions, row_ptr, col, offsets, rows, intervals, EDGES=32,
                                        **{k: v for k, v in graph.items() if k != "n_features"},
                                        **LAUNCH | {"num_warps": 1})
        intervals, order = intervals.sort(stable=True)
        ends = torch.arange(n_intervals + 1, dtype=torch.int32, device=col.device)
        coefficients_kernel[n_intervals, n_parts, triton.cdiv(n_features, launch["FEATURES"])](
            features, positions, rows, col, offsets, grad, along_features, along_positions, order,
            torch.searchsorted(intervals, ends), parts, n_parts=n_parts, SLOPE=along is not None,
            ALONG_FEATURES=along_features is not None, ALONG_POSITIONS=along_positions is not None, **graph, **launch)
    sums = parts.sum(0)
    for m in range(4):
        total[m:m + n_intervals] += sums[:, m]
    return total
