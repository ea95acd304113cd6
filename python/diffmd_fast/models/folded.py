"""A SchNet at one noise level, as the native code wants it (csrc/schnet.hpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops._library import get_num_threads, native

if TYPE_CHECKING:
    from .schnet import SchNet

FEATURE_MULTIPLE = 16  # csrc/schnet.hpp: kFeatureMultiple
MATRICES = ("project", "first", "second", "readout")


class FoldedBlock(NamedTuple):
    """Weights of one block; matrices are [in, out]."""

    project: Tensor
    coefficients: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


class Folded(NamedTuple):
    """A plain SchNet: what is left of one at a single noise level."""

    embedding: Tensor  # [types, F]
    torsions: Tensor  # [torsion types, 4 roles, (sin, cos), F]
    series: Tensor  # [torsion types, harmonics, (sin, cos)]
    blocks: list[FoldedBlock]
    readout: Tensor
    readout_bias: Tensor
    readout_out: Tensor


def fold(model: SchNet, noise: Tensor) -> Folded:
    """Gates multiplied into weights and shifts added to biases, at ``noise`` [1] nm."""
    heads = model._noise_heads(noise)
    gates, shifts = ([each[0] for each in kind] for kind in (heads.gates, heads.shifts))
    blocks = [FoldedBlock(block.project.weight.T, block.coefficients(model.radial_basis) * model.keep,
                          (block.first.weight * (1 + gate)).T, block.first.bias + shift, block.second.weight.T,
                          block.second.bias)
              for block, gate, shift in zip(model.blocks, gates, shifts)]
    return Folded(model.embedding + heads.first[0], model.torsion_weights * model._torsion_weight(noise),
                  model._series(noise)[0], blocks, model.readout_in.weight.T,
                  model.readout_in.bias + shifts[-1], model.readout_out * (1 + gates[-1]))


class FoldedSchNet:
    """A SchNet at one noise level as csrc/schnet.cpp reads it, for the atoms of one molecule.

    Weights are stored [in, out] and again transposed, since the backward pass multiplies by the transpose.

    Attributes:
        description: sizes and addresses of the weights by the names of csrc/schnet.hpp, for ``_C.schnet_*`` and
            ``_C.resident_sampler_*``; it is good as long as this object lives.
    """

    def __init__(self, model: SchNet, noise_level: float, dtype: torch.dtype):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # it is kept, and used outside of an autocast
            noise = torch.tensor([noise_level], dtype=model.embedding.dtype)
            folded, stiffness = fold(model, noise), model._stiffness(noise.double())
            weights = {"embedding": folded.embedding[model.type_index],
                       "torsion_weights": folded.torsions[model.torsion_index]}
            stacked = map(torch.stack, zip(*folded.blocks))  # field by field, over the blocks
            weights.update(zip(FoldedBlock._fields, stacked))
            weights.update(readout=folded.readout, readout_bias=folded.readout_bias, readout_out=folded.readout_out)
            weights = {name: _pad(value, 2 if name in MATRICES else 1) for name, value in weights.items()}
            for name in MATRICES:
                weights[name + "_transposed"] = weights[name].mT
            weights["spring_stiffness"], weights["spring_mean"] = stiffness.springs[0], model.spring_mean
            weights["bend_stiffness"], weights["bend_mean"] = stiffness.bends[0], model.bend_mean
            weights["torsion_series"] = folded.series[model.torsion_index]
            self._tensors = {name: value.detach().to(dtype).contiguous() for name, value in weights.items()}
            self._tensors.update((name, getattr(model, name).contiguous())
                                 for name in ("quadruples", "spring_pairs", "bend_triples"))
        self.description: dict[str, Any] = {
            "n_atoms": model.n_atoms, "n_features": weights["readout_out"].shape[0], "n_blocks": model.n_blocks,
            "n_coefficients": model.n_knots + 3, "n_torsions": len(model.torsions),
            "n_springs": len(model.springs["pairs"]), "n_bends": len(model.bends["triples"]),
            "n_harmonics": model.n_harmonics, "cutoff": model.cutoff,
            "centre_stiffness": float(stiffness.centre[0]) if model.spread is not None else 0.0,
            **{name: tensor.data_ptr() for name, tensor in self._tensors.items()}}
        self._native = native("schnet", dtype)

    def run(self, positions: Tensor, energy: Tensor, score: Tensor | None) -> None:
        """Fill ``energy`` [replicas] and ``score`` [replicas, atoms, 3] (None: only the energy, at half the cost).

        All contiguous, of the folded dtype and on the CPU.
        """
        self._native(self.description, positions.shape[0], positions.data_ptr(), energy.data_ptr(),
                     0 if score is None else score.data_ptr(), get_num_threads())


class BlockWeights:
    """A :class:`FoldedSchNet` of float32 as kernels/cuda/resident_blocks.hpp reads it, on any device.

    Attributes:
        description: sizes, and addresses on the host, where the native code checks them.
        place: addresses on ``device``.
    """

    def __init__(self, folded: FoldedSchNet, device: torch.device):
        n_atoms = folded.description["n_atoms"]
        here = dict(folded._tensors)
        here["role_starts"], here["roles"] = _places(here["quadruples"], n_atoms)
        here["spring_starts"], here["spring_ends"] = _places(here["spring_pairs"], n_atoms)
        here["bend_starts"], here["bend_atoms"] = _places(here["bend_triples"], n_atoms)
        there = {name: tensor.to(device) for name, tensor in here.items()}
        self._kept = here, there
        self.description = folded.description | {name: tensor.data_ptr() for name, tensor in here.items()}
        self.place = {name: tensor.data_ptr() for name, tensor in there.items()}


def _places(atoms: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Where each atom occurs in the flattened ``atoms``: starts [n_atoms + 1] into places, ascending; both int32."""
    flat = atoms.flatten()
    starts = torch.zeros(n_atoms + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(flat, minlength=n_atoms).cumsum(0)
    return starts.int(), torch.argsort(flat, stable=True).int()


def _pad(weight: Tensor, n_axes: int) -> Tensor:
    """``weight`` with its last axes, all of n_features, padded by zeros to what csrc/schnet.hpp works in."""
    missing = -weight.shape[-1] % FEATURE_MULTIPLE
    return nn.functional.pad(weight, (0, missing) * n_axes)
