"""Plain PyTorch truth for torsions: sine and cosine of dihedral angles, smooth at every geometry.

    b1 = x_b - x_a,  b2 = x_c - x_b,  b3 = x_d - x_c,  n1 = b1 x b2,  n2 = b2 x b3
    X = n1 . n2,  Y = sqrt(|b2|^2 + LENGTH_FLOOR) (b1 . n2)
    (sin, cos) = (Y, X) / sqrt(X^2 + Y^2 + AREA_FLOOR)

Sign of IUPAC (seen along b->c, clockwise from a to d is positive), trans is pi; X and Y as in Blondel and
Karplus, J. Comput. Chem. 17, 1132 (1996).  Without the floors X = |n1||n2| cos and Y = |n1||n2| sin, and the
derivatives diverge where three atoms are on one line.

What the floors do.  Sine and cosine shrink by the fraction AREA_FLOOR / (2 |n1|^2 |n2|^2): 2.3e-7 for alkanes
(0.154 nm, 114 degrees), 1.3e-6 for H-O-O-H, whose areas are among the smallest of ordinary molecules, and
below 1e-5 wherever |n1||n2| > 7.1e-5 nm^4 (bonds of 0.13 nm: bond angles below 150 degrees).  LENGTH_FLOOR
changes the sine by at most 5e-7 (relative) for any b2 above 0.1 nm.  On a line both go to 0 and every
derivative is finite: the first is at most |b2| |n2| / sqrt(AREA_FLOOR), 1.1e4 per nm for an alkane.
"""

from __future__ import annotations

import torch
from torch import Tensor

LENGTH_FLOOR = 1e-8  # nm^2; csrc/torsions.hpp: kTorsionLengthFloor
AREA_FLOOR = 1e-13  # nm^8; csrc/torsions.hpp: kTorsionAreaFloor


def _bonds(x: Tensor, quadruples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c, d = (x[:, quadruples[:, i]] for i in range(4))
    return b - a, c - b, d - c


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(a, b, dim=-1)


def torsions_core(positions: Tensor, quadruples: Tensor) -> Tensor:
    """(sin, cos) [replicas, torsions, 2]; quadruples int64 [torsions, 4].  Differentiable to any order."""
    b1, b2, b3 = _bonds(positions, quadruples)
    n2 = _cross(b2, b3)
    x = _dot(_cross(b1, b2), n2)
    y = torch.sqrt(_dot(b2, b2) + LENGTH_FLOOR) * _dot(b1, n2)
    return torch.stack([y, x], dim=-1) / torch.sqrt(x * x + y * y + AREA_FLOOR)[..., None]


def torsions_backward_core(grad_output: Tensor, positions: Tensor, quadruples: Tensor) -> Tensor:
    """Gradient [replicas, atoms, 3] of sum(grad_output * torsions), without autograd."""
    return torsions_double_backward_core(torch.zeros_like(positions), grad_output, positions, quadruples)[2]


def torsions_double_backward_core(cotangent: Tensor, grad_output: Tensor, positions: Tensor,
                                  quadruples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of <cotangent, torsions_backward> to grad_output and positions, and torsions_backward itself.

    The Hessian is symmetric, so both are derivatives along ``cotangent`` t: d/dt of torsions(x + t) and of
    torsions_backward(x + t).  Each quantity q below has its derivative dq beside it.
    """
    b1, b2, b3 = _bonds(positions, quadruples)
    db1, db2, db3 = _bonds(cotangent, quadruples)
    n1, dn1 = _cross(b1, b2), _cross(db1, b2) + _cross(b1, db2)
    n2, dn2 = _cross(b2, b3), _cross(db2, b3) + _cross(b2, db3)
    length = torch.sqrt(_dot(b2, b2) + LENGTH_FLOOR)
    dlength = _dot(b2, db2) / length
    volume, dvolume = _dot(b1, n2), _dot(db1, n2) + _dot(b1, dn2)
    x, dx = _dot(n1, n2), _dot(dn1, n2) + _dot(n1, dn2)
    y, dy = length * volume, dlength * volume + length * dvolume
    norm = torch.sqrt(x * x + y * y + AREA_FLOOR)
    dnorm = (x * dx + y * dy) / norm
    value = torch.stack([y, x], dim=-1) / norm[..., None]
    dvalue = (torch.stack([dy, dx], dim=-1) - value * dnorm[..., None]) / norm[..., None]

    along, dalong = _dot(grad_output, value), _dot(grad_output, dvalue)
    grad = (grad_output - along[..., None] * value) / norm[..., None]
    dgrad = -(dalong[..., None] * value + along[..., None] * dvalue + grad * dnorm[..., None])
    dgrad = dgrad / norm[..., None]
    gy, gx, dgy, dgx = grad[..., :1], grad[..., 1:], dgrad[..., :1], dgrad[..., 1:]
    slope, dslope = gy * length[..., None], dgy * length[..., None] + gy * dlength[..., None]
    g1, dg1 = gx * n2, dgx * n2 + gx * dn2
    g2, dg2 = gx * n1 + slope * b1, dgx * n1 + gx * dn1 + dslope * b1 + slope * db1
    over = volume / length
    stretch = gy[..., 0] * over
    dstretch = dgy[..., 0] * over + gy[..., 0] * (dvolume - over * dlength) / length
    bonds = (slope * n2 + _cross(b2, g1),
             stretch[..., None] * b2 + _cross(g1, b1) + _cross(b3, g2),
             _cross(g2, b2))
    dbonds = (dslope * n2 + slope * dn2 + _cross(db2, g1) + _cross(b2, dg1),
              dstretch[..., None] * b2 + stretch[..., None] * db2 + _cross(dg1, b1) + _cross(g1, db1)
              + _cross(db3, g2) + _cross(b3, dg2),
              _cross(dg2, b2) + _cross(g2, db2))
    return dvalue, _scatter(dbonds, positions, quadruples), _scatter(bonds, positions, quadruples)


def _scatter(bonds: tuple[Tensor, Tensor, Tensor], positions: Tensor, quadruples: Tensor) -> Tensor:
    g1, g2, g3 = bonds
    out = torch.zeros_like(positions)
    for i, part in enumerate((-g1, g1 - g2, g2 - g3, g3)):
        out.index_add_(1, quadruples[:, i], part)
    return out
