"""Energy and score of one large system, by list: the forward and backward pass of SchNet written out.

What autograd would keep is not needed here: weights are folded at one noise level and want no gradient, two matrices
[atoms, features] a block are kept for the way back, each is overwritten or freed as soon as it has served, and the
dense layers run over tiles of atoms that stay in the cache.  Atoms are worked on in the order of a space-filling
curve, so that the features of an atom's neighbors are near each other in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops.spline_conv import edge_offsets
from .periodic import memory_order
from .schnet import SchNet

TILE = 1024  # atoms, or torsions, of a dense layer at once: 0.25 MB a matrix, so the few of a layer stay in L2
silu, silu_backward = torch.nn.functional.silu, torch.ops.aten.silu_backward


class Folded:
    """The weights at one noise level, gates and shifts multiplied and added in; matrices are [in, out]."""

    def __init__(self, model: SchNet, noise: Tensor, dtype: torch.dtype):
        heads = [head[0] for head in model._noise_heads(noise)]
        gates, shifts = heads[1:-2:2], heads[2:-2:2]
        self.blocks = [[weight.to(dtype) for weight in (
            block.project.weight.T, block.coefficients(model.radial_basis) * model.keep,
            (block.first.weight * (1 + gate)).T, block.first.bias + shift, block.second.weight.T, block.second.bias)]
            for block, gate, shift in zip(model.blocks, gates, shifts)]
        self.embedding = (model.embedding + heads[0]).to(dtype)
        self.torsions = (model.torsion_weights * model._torsion_weight(noise)).to(dtype)
        self.readout = model.readout_in.weight.T.to(dtype)
        self.readout_bias = (model.readout_in.bias + heads[-1]).to(dtype)
        self.readout_out = (model.readout_out * (1 + heads[-2])).to(dtype)


def energy_and_score(model: SchNet, positions: Tensor, noise_level: float,
                     with_score: bool) -> tuple[Tensor, Tensor | None]:
    """Energy [replicas] and score [replicas, atoms, 3], or None: see SchNet.energy_and_score.

    Replicas are evaluated one after another, so a result does not depend on the batch, and memory is that of one.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        noise = torch.tensor([noise_level], dtype=model.embedding.dtype)
        weights = Folded(model, noise, positions.dtype)
        energy, score = positions.new_empty(len(positions)), torch.empty_like(positions) if with_score else None
        for r, x in enumerate(positions):
            energy[r], one = _network(model, weights, x, with_score)
            if score is not None:
                score[r] = one
    if len(model.springs["pairs"]) or model.spread is not None:
        with torch.inference_mode(False), torch.set_grad_enabled(with_score):
            x = positions.clone().requires_grad_(with_score)
            stiff = model._spring_energy(x, torch.full((len(x),), noise_level, dtype=x.dtype))
            slope = torch.autograd.grad(stiff.sum(), x)[0] if with_score else None
        energy = energy + stiff.detach()
        score = None if slope is None else score - slope
    return energy, score


def _network(model: SchNet, weights: Folded, positions: Tensor, with_score: bool) -> tuple[Tensor, Tensor | None]:
    """Energy [] and score [atoms, 3] of one system [atoms, 3], without the springs."""
    n_atoms = positions.shape[0]
    box = model.box_vectors(positions)
    order = memory_order(positions, model.cutoff, box)
    x = positions[order]
    graph = _graph(x, model.cutoff, box)
    quadruples, classes = torch.argsort(order)[model.quadruples], model.torsion_index
    h = weights.embedding[model.type_index[order]]
    angles = ops.torsions(x[None], quadruples)[0]
    for part in _tiles(len(quadruples)):
        added = torch.einsum("tc,trcf->trf", angles[part], weights.torsions[classes[part]])
        _add_rows(h, quadruples[part], added)
    kept = []
    for project, coefficients, first, first_bias, second, second_bias in weights.blocks:
        projected = h @ project
        inner = torch.ops.diffmd_fast.spline_conv(projected, x, coefficients, *graph)
        for part in _tiles(n_atoms):
            inner[part] = torch.addmm(first_bias, inner[part], first)
            h[part] += torch.addmm(second_bias, silu(inner[part]), second)
        kept.append((projected, inner) if with_score else None)
    energy = x.new_zeros((), dtype=torch.float64)
    for part in _tiles(n_atoms):
        last = torch.addmm(weights.readout_bias, h[part], weights.readout)
        energy += (silu(last) @ weights.readout_out).sum(dtype=torch.float64)
        if with_score:  # from here on h is the gradient with respect to h
            torch.mm(silu_backward(weights.readout_out.expand_as(last), last), weights.readout.T, out=h[part])
    if not with_score:
        return energy.to(x.dtype), None
    gradient = torch.zeros_like(x)
    for project, coefficients, first, _, second, _ in reversed(weights.blocks):
        projected, inner = kept.pop()
        for part in _tiles(n_atoms):
            outer = silu_backward(h[part] @ second.T, inner[part])
            torch.mm(outer, first.T, out=inner[part])
        further = bool(kept) or len(quadruples) > 0  # the first features are constants but for the torsions
        to_projected, to_x, _ = torch.ops.diffmd_fast.spline_conv_backward(
            inner, projected, x, coefficients, *graph, further, True, False)
        gradient += to_x
        for part in _tiles(n_atoms * further):
            h[part].addmm_(to_projected[part], project.T)
    for part in _tiles(len(quadruples)):
        angles[part] = torch.einsum("trf,trcf->tc", h[quadruples[part]], weights.torsions[classes[part]])
    gradient += torch.ops.diffmd_fast.torsions_backward(angles[None], x[None], quadruples)[0]
    score = torch.empty_like(x)
    score[order] = -gradient
    return energy.to(x.dtype), score


def _graph(x: Tensor, cutoff: float, box: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Rows, neighbors, what each edge adds to its neighbor's position [edges, 3], cutoff: as the operators take it.

    The list's shift and reverse are dropped: 20 bytes an edge that nobody reads again.
    """
    neighbors = ops.neighbor_list(x[None], cutoff, box=box)
    offsets = x.new_empty(0, 3) if box is None else edge_offsets(neighbors.shift, box, x.dtype)
    return neighbors.row_ptr, neighbors.col, offsets, cutoff


def _tiles(n: int) -> list[slice]:
    return [slice(first, min(first + TILE, n)) for first in range(0, n, TILE)]


def _add_rows(h: Tensor, rows: Tensor, values: Tensor) -> None:
    """h[rows] += values, rows that occur more than once included."""
    values = values.reshape(-1, h.shape[1])
    h.scatter_add_(0, rows.reshape(-1, 1).expand_as(values), values)

