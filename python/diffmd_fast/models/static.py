"""Energy and score of many replicas of a SchNet without autograd, without the host, in memory that stays where it is.

What a captured CUDA graph needs (sampling/graph.py): forward and backward written out, as in large.py, but for all
replicas at once; the neighbor list is kept by the device.  Nothing is scattered, so sums have one order and results
repeat bit for bit: an atom gathers from the torsions, springs and bends it takes part in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .. import ops
from ..reference.neighbor_list import inverse_boxes
from .bonded import Stiffness, bend_cosines, harmonic
from .folded import fold
from .large import _converted
from .schnet import SchNet
from .torsion_series import torsion_series

SKIN = 0.2  # of the cutoff: 1.7 times as many candidates as neighbors.  Reasoned, not measured on a GPU
operators, silu, silu_backward = torch.ops.diffmd_fast, torch.nn.functional.silu, torch.ops.aten.silu_backward


class StaticSchNet:
    """``static(positions) -> (energy [replicas], score [replicas, atoms, 3])`` of a model at one noise level.

    The model's parameters are read once, here.  A replica that is not finite comes out as not finite.

    Args:
        noise_level: nm; None for the model's own.
        positions: [replicas, atoms, 3] nm, the first to come: shape, dtype and device of all, and the room for lists.
        skin: of the neighbor list, nm; default a fifth of the cutoff, less where the box is too narrow.

    Attributes:
        list: the :class:`~diffmd_fast.ops.FixedList`, or None where all pairs are neighbors.  After
            ``list.overflows()``, ``list.fit()`` makes room; results since then are void.
    """

    @torch.no_grad()
    def __init__(self, model: SchNet, noise_level: float | None, positions: Tensor, skin: float | None = None):
        model.check_positions(positions)
        level = model.noise_level if noise_level is None else noise_level
        dtype, place = positions.dtype, positions.device
        with _no_autocast(place):
            noise = torch.tensor([level], dtype=model.embedding.dtype, device=model.embedding.device)
            self._weights = _converted(fold(model, noise), dtype)
            stiffness = Stiffness(*(each.to(dtype) for each in model._stiffness(noise.double())))
        self._embedding = self._weights.embedding[model.type_index]
        self._spread = stiffness.centre if model.spread is not None else None
        self._set_torsions(model)
        self._set_stiff(model, stiffness)
        self.cutoff, box = model.cutoff, model.box_vectors(positions)
        self.list, self._all_pairs = None, None
        if model.by_list():
            skin = default_skin(model.cutoff, box) if skin is None else skin
            self.list = ops.FixedList(positions, model.cutoff, skin, box)
        else:
            everyone = ops.neighbor_list(torch.zeros_like(positions), None)
            self._all_pairs = everyone.row_ptr, everyone.col, positions.new_empty(0, 3)
        n_nodes = positions.shape[0] * positions.shape[1]
        self._matrices = positions.new_empty(1 + 2 * model.n_blocks, n_nodes, model.n_features)

    def _set_torsions(self, model: SchNet) -> None:
        self._quadruples = model.quadruples.contiguous()
        if len(model.torsions) == 0:
            return
        incident, held, self._torsion_slots = _incidences(model.quadruples, model.n_atoms)
        self._series = self._weights.series[model.torsion_index]
        weights = self._weights.torsions[model.torsion_index].flatten(0, 1)[incident]  # [atoms, slots, (sin, cos), F]
        self._torsion_weights = (weights * held[:, :, None, None]).flatten(1, 2)
        self._torsions_of_atoms = (incident // 4).flatten()

    def _set_stiff(self, model: SchNet, stiffness: Stiffness) -> None:
        self._springs, self._bends = None, None
        if len(model.springs["pairs"]):
            incident, held, _ = _incidences(model.spring_pairs, model.n_atoms)
            signs = (held * (1 - 2 * (incident % 2)))[:, :, None].to(self._weights.readout.dtype)
            self._springs = model.spring_pairs, stiffness.springs[0], model.spring_mean.to(signs), incident // 2, signs
        if len(model.bends["triples"]):
            incident, held, _ = _incidences(model.bend_triples, model.n_atoms)
            held = held[:, :, None].to(self._weights.readout.dtype)
            self._bends = model.bend_triples, stiffness.bends[0], model.bend_mean.to(held), incident, held

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept between calls: features of every block, and the list with its candidates."""
        pairs = sum(each.nbytes for each in self._all_pairs) if self.list is None else self.list.nbytes
        return self._matrices.nbytes + pairs

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        with _no_autocast(positions.device):
            energy, gradient = self._network(positions)
            stiff = self._stiff(positions)
        score = -gradient - stiff[1]
        # Atoms that are not finite have no neighbors; here they spoil their replica all the same.
        return energy + stiff[0], score + (positions - positions)

    def _network(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        n_replicas, n_atoms, _ = positions.shape
        graph = *(self._all_pairs if self.list is None else self.list.update(positions)), self.cutoff
        x, weights = positions.view(-1, 3), self._weights
        h, *pairs = self._matrices
        features = h.view(n_replicas, n_atoms, -1)
        features.copy_(self._embedding)
        if len(self._quadruples):
            angles = operators.torsions_unchecked(positions, self._quadruples)
            series, to_angles = torsion_series(angles, self._series)
            angles = angles[:, self._torsions_of_atoms].view(n_replicas, n_atoms, -1)
            features += torch.einsum("rak,akf->raf", angles, self._torsion_weights)
        kept = list(zip(pairs[::2], pairs[1::2]))  # of each block: what is convolved, and what enters its silu
        for (projected, inner), block in zip(kept, weights.blocks):
            torch.mm(h, block.project, out=projected)
            messages = operators.spline_conv_unchecked(projected, x, block.coefficients, *graph)
            torch.addmm(block.first_bias, messages, block.first, out=inner)
            h.add_(block.second_bias).addmm_(silu(inner), block.second)
        last = torch.addmm(weights.readout_bias, h, weights.readout)
        energy = (silu(last) @ weights.readout_out).view(n_replicas, n_atoms).sum(1, dtype=torch.float64)
        if len(self._quadruples):
            energy += series.sum(1, dtype=torch.float64)
        # From here on h is the gradient with respect to h.
        torch.mm(silu_backward(weights.readout_out.expand_as(last), last), weights.readout.T, out=h)
        gradient = torch.zeros_like(positions)
        for (projected, inner), block in zip(reversed(kept), reversed(weights.blocks)):
            torch.mm(silu_backward(h @ block.second.T, inner), block.first.T, out=inner)
            further = projected is not kept[0][0] or len(self._quadruples) > 0
            to_projected, to_x = operators.spline_conv_backward_unchecked(inner, projected, x, block.coefficients,
                                                                          *graph, further)
            gradient.view(-1, 3).add_(to_x)
            if further:
                h.addmm_(to_projected, block.project.T)
        if len(self._quadruples):
            shares = torch.einsum("raf,akf->rak", features, self._torsion_weights).reshape(n_replicas, -1, 2)
            to_angles += shares[:, self._torsion_slots].view(n_replicas, -1, 4, 2).sum(2)
            gradient += operators.torsions_backward_unchecked(to_angles, positions, self._quadruples)
        return energy.to(positions.dtype), gradient

    def _stiff(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and gradient of the springs, the bends and the pull to the centre."""
        energy, gradient = positions.new_zeros(len(positions)), torch.zeros_like(positions)
        if self._springs is not None:
            pairs, stiffness, mean, incident, signs = self._springs
            apart = positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]]
            r = torch.linalg.vector_norm(apart, dim=-1)
            energy = harmonic(r, mean, stiffness)
            along = torch.where(r > 0, stiffness * (r - mean) / r, 0.0)[:, :, None] * apart
            gradient = (along[:, incident] * signs).sum(2)
        if self._bends is not None:
            triples, stiffness, mean, incident, held = self._bends
            cosine, by_a, by_c = bend_cosines(positions, triples)
            energy = energy + harmonic(cosine, mean, stiffness)
            slope = (stiffness * (cosine - mean))[:, :, None, None]
            by_atom = (slope * torch.stack([by_a, -by_a - by_c, by_c], 2)).flatten(1, 2)  # [R, places, 3]
            gradient = gradient + (by_atom[:, incident] * held).sum(2)
        if self._spread is not None:
            from_centre = positions - positions.mean(1, keepdim=True)
            energy = energy + 0.5 * self._spread * from_centre.square().sum((1, 2))
            gradient = gradient + self._spread * from_centre
        return energy, gradient


def default_skin(cutoff: float, box: Tensor | None) -> float:
    """nm; what a narrow box leaves, which may be nothing: candidates are then listed at every step."""
    if box is None:
        return SKIN * cutoff
    return max(0.0, min(SKIN * cutoff, 0.5 * inverse_boxes(box[None])[2].min().item() - cutoff))


def _no_autocast(device: torch.device) -> AbstractContextManager:
    """Buffers have one dtype; "meta", where the tests trace a step, knows no autocast."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def _incidences(atoms: Tensor, n_atoms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each atom occurs in ``atoms`` [rows, width]: places in it [atoms, slots], 0 where there are no more; bool
    [atoms, slots], whether there are; and of each place its slot among all, [rows * width]."""
    flat = atoms.flatten()
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=n_atoms)
    n_slots = int(counts.max())
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)  # of each sorted place, its atom's first
    slots = torch.empty_like(order)
    slots[order] = flat[order] * n_slots + torch.arange(len(flat), device=flat.device) - first
    places = flat.new_zeros(n_atoms * n_slots)
    places[slots] = torch.arange(len(flat), device=flat.device)
    return places.view(n_atoms, n_slots), torch.arange(n_slots, device=flat.device) < counts[:, None], slots
