"""Energy and score of one large system, by list: the forward and backward pass of SchNet written out.

What autograd would keep is not needed here: weights are folded at one noise level and want no gradient, two matrices
[atoms, features] a block are kept for the way back, the memory of matrices and edges serves the next call again, and
the dense layers run over tiles of atoms that stay in the cache.  Atoms are worked on in the order of a space-filling
curve, so that the features of an atom's neighbors are near each other in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..ops.neighbor_list import as_boxes, native_list
from ..ops.spline_conv import edge_offsets, run_native
from .folded import Folded, FoldedBlock, fold
from .periodic import memory_order
from .schnet import SchNet
from .torsion_series import torsion_series

TILE = 1024  # atoms, or torsions, of a dense layer at once: 0.25 MB a matrix, so the few of a layer stay in L2
silu, silu_backward = torch.nn.functional.silu, torch.ops.aten.silu_backward


def energy_and_score(model: SchNet, positions: Tensor, noise_level: float,
                     with_score: bool) -> tuple[Tensor, Tensor | None]:
    """Energy [replicas] and score [replicas, atoms, 3], or None: see SchNet.energy_and_score.

    Replicas are evaluated one after another, so a result does not depend on the batch, and memory is that of one.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        noise = torch.tensor([noise_level], dtype=model.embedding.dtype)
        weights = _converted(fold(model, noise), positions.dtype)
        energy, score = positions.new_empty(len(positions)), torch.empty_like(positions) if with_score else None
        for r, x in enumerate(positions):
            energy[r], one = _network(model, weights, x, with_score)
            if score is not None:
                score[r] = one
    if len(model.springs["pairs"]) or len(model.bends["triples"]) or model.spread is not None:
        with torch.inference_mode(False), torch.set_grad_enabled(with_score):
            x = positions.clone().requires_grad_(with_score)
            stiff = model._stiff_energy(x, torch.full((len(x),), noise_level, dtype=x.dtype))
            slope = torch.autograd.grad(stiff.sum(), x)[0] if with_score else None
        energy = energy + stiff.detach()
        score = None if slope is None else score - slope
    return energy, score


def _converted(folded: Folded, dtype: torch.dtype) -> Folded:
    blocks = [FoldedBlock(*(weight.to(dtype) for weight in block)) for block in folded.blocks]
    return Folded(*(blocks if value is folded.blocks else value.to(dtype) for value in folded))


def _network(model: SchNet, weights: Folded, positions: Tensor, with_score: bool) -> tuple[Tensor, Tensor | None]:
    """Energy [] and score [atoms, 3] of one system [atoms, 3], without springs, bends and the pull to the centre."""
    n_atoms = positions.shape[0]
    workspace = _take_workspace(model)
    box = model.box_vectors(positions)
    order = memory_order(positions, model.cutoff, box)
    x = positions[order]
    graph = _graph(x, model.cutoff, box, workspace)
    quadruples, classes = torch.argsort(order)[model.quadruples], model.torsion_index
    matrices = workspace.empty("matrices", (2 + 2 * model.n_blocks, n_atoms, model.n_features), positions.dtype)
    h, to_projected, *pairs = matrices
    torch.index_select(weights.embedding, 0, model.type_index[order], out=h)
    angles = ops.torsions(x[None], quadruples)[0]
    for part in _tiles(len(quadruples)):
        added = torch.einsum("tc,trcf->trf", angles[part], weights.torsions[classes[part]])
        _add_rows(h, quadruples[part], added)
    kept = list(zip(pairs[::2], pairs[1::2]))  # of each block: what is convolved, and what enters its silu
    for (projected, inner), (project, coefficients, first, first_bias, second, second_bias) in zip(
            kept, weights.blocks):
        torch.mm(h, project, out=projected)
        run_native("spline_conv", (projected, x, coefficients, *graph), inner)
        for part in _tiles(n_atoms):
            inner[part] = torch.addmm(first_bias, inner[part], first)
            h[part] += torch.addmm(second_bias, silu(inner[part]), second)
    series = torsion_series(angles, weights.series[classes])
    energy = series[0].sum(dtype=torch.float64)
    for part in _tiles(n_atoms):
        last = torch.addmm(weights.readout_bias, h[part], weights.readout)
        energy += (silu(last) @ weights.readout_out).sum(dtype=torch.float64)
        if with_score:  # from here on h is the gradient with respect to h
            torch.mm(silu_backward(weights.readout_out.expand_as(last), last), weights.readout.T, out=h[part])
    if not with_score:
        model._workspaces.append(workspace)
        return energy.to(x.dtype), None
    gradient, to_x = torch.zeros_like(x), torch.empty_like(x)
    for project, coefficients, first, _, second, _ in reversed(weights.blocks):
        projected, inner = kept.pop()
        for part in _tiles(n_atoms):
            outer = silu_backward(h[part] @ second.T, inner[part])
            torch.mm(outer, first.T, out=inner[part])
        further = bool(kept) or len(quadruples) > 0  # the first features are constants but for the torsions
        run_native("spline_conv_backward", (projected, x, coefficients, *graph), inner,
                   to_projected if further else None, to_x, None)
        gradient += to_x
        for part in _tiles(n_atoms * further):
            h[part].addmm_(to_projected[part], project.T)
    for part in _tiles(len(quadruples)):
        angles[part] = torch.einsum("trf,trcf->tc", h[quadruples[part]], weights.torsions[classes[part]])
    angles += series[1]
    gradient += torch.ops.diffmd_fast.torsions_backward(angles[None], x[None], quadruples)[0]
    score = torch.empty_like(x)
    score[order] = -gradient
    model._workspaces.append(workspace)
    return energy.to(x.dtype), score


class Workspace:
    """Memory of one evaluation, kept for the next: 2.9 kB an atom with 64 features, 3 blocks and 52 neighbors.

    The kernel clears a page before it hands it out, and a virtual machine's may have to be asked of the host: fresh
    memory for every evaluation took a quarter of the time at 10^6 atoms.
    """

    def __init__(self) -> None:
        self._bytes: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n = math.prod(shape) * dtype.itemsize
        kept = self._bytes.get(name)
        if kept is None or not n <= kept.numel() <= 2 * n + 4096:
            with torch.inference_mode(False):  # such a tensor could not be written to outside of it
                # The number of edges changes from call to call; pages that nobody touches cost nothing.
                kept = self._bytes[name] = torch.empty(n + n // 16, dtype=torch.uint8)
        return kept[:n].view(dtype).view(shape)


def _take_workspace(model: SchNet) -> Workspace:
    """That of the last call; the end of this one puts it back, so that two threads never share one."""
    try:
        workspace = model._workspaces.pop()
    except IndexError:
        workspace = Workspace()
    model._workspaces.clear()  # one is kept, whatever threads there were
    return workspace


def _graph(x: Tensor, cutoff: float, box: Tensor | None, workspace: Workspace) -> tuple[Tensor, Tensor, Tensor, float]:
    """Rows, neighbors, what each edge adds to its neighbor's position [edges, 3], cutoff: as the operators take it."""
    boxes = as_boxes(box, x[None], "SchNet")
    row_ptr, col, shift, *_ = native_list(x[None], boxes, cutoff, reverse=False, allocate=workspace.empty)
    offsets = x.new_empty(0, 3) if box is None else edge_offsets(shift, box, x.dtype, in_place=True)
    return row_ptr, col, offsets, cutoff


def _tiles(n: int) -> list[slice]:
    return [slice(first, min(first + TILE, n)) for first in range(0, n, TILE)]


def _add_rows(h: Tensor, rows: Tensor, values: Tensor) -> None:
    """h[rows] += values, rows that occur more than once included."""
    values = values.reshape(-1, h.shape[1])
    h.scatter_add_(0, rows.reshape(-1, 1).expand_as(values), values)

