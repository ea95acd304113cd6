"""A SchNet at one noise level, as the native code wants it (csrc/schnet.hpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..ops._library import get_num_threads, native

if TYPE_CHECKING:
    from .schnet import SchNet

FEATURE_MULTIPLE = 16  # csrc/schnet.hpp: kFeatureMultiple
MATRICES = ("project", "first", "second", "readout")


class FoldedSchNet:
    """A SchNet at one noise level: gates multiplied into weights, shifts added to biases, filters as coefficients.

    Weights are stored [in, out] and again transposed, since the backward pass multiplies by the transpose.

    Attributes:
        description: sizes and addresses of the weights by the names of csrc/schnet.hpp, for ``_C.schnet_*`` and
            ``_C.resident_sampler_*``; it is good as long as this object lives.
    """

    def __init__(self, model: SchNet, noise_level: float, dtype: torch.dtype):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # it is kept, and used outside of an autocast
            noise = torch.tensor([noise_level], dtype=model.embedding.dtype)
            heads = [head[0] for head in model._noise_heads(noise)]
            spring, centre = model._spring_stiffness(noise.double())
            weights = {"embedding": model.embedding[model.type_index] + heads[0],
                       "torsion_weights": model.torsion_weights[model.torsion_index] * model._torsion_weight(noise)}
            stacked: dict[str, list[Tensor]] = {name: [] for name in ("project", "coefficients", "first", "first_bias",
                                                                      "second", "second_bias")}
            for b, block in enumerate(model.blocks):
                gate, shift = heads[1 + 2 * b], heads[2 + 2 * b]
                stacked["project"].append(block.project.weight.T)
                stacked["coefficients"].append(block.coefficients(model.radial_basis) * model.keep)
                stacked["first"].append((block.first.weight * (1 + gate)).T)
                stacked["first_bias"].append(block.first.bias + shift)
                stacked["second"].append(block.second.weight.T)
                stacked["second_bias"].append(block.second.bias)
            weights.update({name: torch.stack(values) for name, values in stacked.items()})
            weights["readout"] = model.readout_in.weight.T
            weights["readout_bias"] = model.readout_in.bias + heads[-1]
            weights["readout_out"] = model.readout_out * (1 + heads[-2])
            weights = {name: _pad(value, 2 if name in MATRICES else 1) for name, value in weights.items()}
            for name in MATRICES:
                weights[name + "_transposed"] = weights[name].mT
            weights["spring_stiffness"], weights["spring_mean"] = spring[0], model.spring_mean
            self._tensors = {name: value.detach().to(dtype).contiguous() for name, value in weights.items()}
            self._tensors.update(quadruples=model.quadruples.contiguous(), spring_pairs=model.spring_pairs.contiguous())
        self.description: dict[str, Any] = {
            "n_atoms": model.n_atoms, "n_features": weights["readout_out"].shape[0], "n_blocks": model.n_blocks,
            "n_coefficients": model.n_knots + 3, "n_torsions": len(model.torsions),
            "n_springs": len(model.springs["pairs"]), "cutoff": model.cutoff,
            "centre_stiffness": float(centre[0]) if model.spread is not None else 0.0,
            **{name: tensor.data_ptr() for name, tensor in self._tensors.items()}}
        self._native = native("schnet", dtype)

    def run(self, positions: Tensor, energy: Tensor, score: Tensor | None) -> None:
        """Fill ``energy`` [replicas] and ``score`` [replicas, atoms, 3] (None: only the energy, at half the cost).

        All contiguous, of the folded dtype and on the CPU.
        """
        self._native(self.description, positions.shape[0], positions.data_ptr(), energy.data_ptr(),
                     0 if score is None else score.data_ptr(), get_num_threads())


def _pad(weight: Tensor, n_axes: int) -> Tensor:
    """``weight`` with its last axes, all of n_features, padded by zeros to what csrc/schnet.hpp works in."""
    missing = -weight.shape[-1] % FEATURE_MULTIPLE
    return nn.functional.pad(weight, (0, missing) * n_axes)
