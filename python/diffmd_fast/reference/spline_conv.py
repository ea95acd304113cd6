"""Plain PyTorch truth for spline_conv; autograd differentiates it to any order."""

from __future__ import annotations

import torch
from torch import Tensor

from .neighbor_list import edge_rows


def spline_basis(distances: Tensor, n_knots: int, cutoff: float) -> tuple[Tensor, Tensor]:
    """The cubic B-splines that are not zero at each distance.

    Uniform knots of spacing h = cutoff / (n_knots - 3); with t the fraction of the interval, the values are
    (1-t)^3/6, (3t^3-6t^2+4)/6, (-3t^3+3t^2+3t+1)/6, t^3/6 (de Boor, A Practical Guide to Splines, ch. IX).
    At and beyond the cutoff all are zero; NaN stays NaN.

    Args:
        distances: [edges] nm.
        n_knots: number of coefficients K.
        cutoff: nm.

    Returns:
        The first coefficient of each edge, int64 [edges], and the values [edges, 4].
    """
    x = distances / (cutoff / (n_knots - 3))
    first = x.detach().floor().nan_to_num(nan=0.0, posinf=0.0).clamp(0, n_knots - 4)
    t = x - first
    cubics = [(1 - t) ** 3, (3 * t - 6) * t * t + 4, ((-3 * t + 3) * t + 3) * t + 1, t**3]
    return first.long(), torch.where((distances >= cutoff)[:, None], 0.0, torch.stack(cubics, -1) / 6)


def spline_conv_core(features: Tensor, positions: Tensor, coefficients: Tensor, row_ptr: Tensor, col: Tensor,
                     offsets: Tensor, cutoff: float) -> Tensor:
    """m_i = sum_j h_j * W(r_ij) on flat nodes; the arguments of ``torch.ops.diffmd_fast.spline_conv``."""
    row, col = edge_rows(row_ptr, col.numel()), col.long()
    vectors = positions[col] - positions[row]
    if offsets.numel():
        vectors = vectors + offsets
    square = vectors.square().sum(-1)
    apart = square != 0  # the root has no derivative at zero: there the distance is a constant
    distances = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
    first, basis = spline_basis(distances, coefficients.shape[0], cutoff)
    filters = sum(basis[:, m, None] * coefficients[first + m] for m in range(4))
    return torch.zeros_like(features).index_add(0, row, features[col] * filters)
