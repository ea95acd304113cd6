"""Distances, cosines of angles and torsions of frames, each with its gradient and its Laplacian.

What score matching of an energy of such coordinates needs (bonded_fit.py, force_field.py): of f(q) the gradient is
f'(q) grad q, the Laplacian f''(q) |grad q|^2 + f'(q) lap q.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..models.bonded import bend_cosines


class Coordinates(NamedTuple):
    """Values [frames, n], gradients by the atoms of each [frames, n, atoms of one, 3] and Laplacians [frames, n]."""

    values: Tensor
    gradients: Tensor
    laplacians: Tensor


def distances(x: Tensor, pairs: Tensor) -> Coordinates:
    """Of ``pairs`` [n, 2] in frames [frames, atoms, 3] nm, in nm."""
    apart = x[:, pairs[:, 0]] - x[:, pairs[:, 1]]
    r = torch.linalg.vector_norm(apart, dim=-1)
    along = apart / r[..., None]
    return Coordinates(r, torch.stack([along, -along], 2), 4 / r)


def cosines(x: Tensor, triples: Tensor) -> Coordinates:
    """Of the angles (a, centre, c) of ``triples`` [n, 3]."""
    cosine, by_a, by_c = bend_cosines(x, triples)
    a, centre, c = triples.unbind(1)
    over_u, over_v = (1 / torch.linalg.vector_norm(x[:, end] - x[:, centre], dim=-1) for end in (a, c))
    curved = -4 * cosine * (over_u**2 + over_v**2) + 2 * (1 + cosine**2) * over_u * over_v
    return Coordinates(cosine, torch.stack([by_a, -by_a - by_c, by_c], 2), curved)


def torsions(x: Tensor, quadruples: Tensor) -> Coordinates:
    """Of ``quadruples`` [n, 4], in radians.

    A torsion turns about the axis b-c: by each atom it is the angle of a cylinder, whose Laplacian is 0, also by b and
    by c (grad phi there is a sum of such fields, each times a function that changes at right angles to it only).
    """
    atoms = x[:, quadruples].detach().requires_grad_()
    with torch.enable_grad():
        sine, cosine = ops.torsions(atoms.flatten(0, 1), torch.arange(4, device=x.device)[None])[:, 0].unbind(-1)
        angle = torch.atan2(sine, cosine)
        (gradients,) = torch.autograd.grad(angle.sum(), atoms)
    angle = angle.detach().view(atoms.shape[:2])
    return Coordinates(angle, gradients, torch.zeros_like(angle))
