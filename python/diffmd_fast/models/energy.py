"""What a model must offer to be sampled: the EnergyModel protocol, and a base class that fills in the rest."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..errors import InputError, check_number, check_tensor, require


@runtime_checkable
class EnergyModel(Protocol):
    """A learned (or analytic) energy E = -log p in units of kT0, and its score s = -grad E in 1/nm.

    Any ``torch.nn.Module`` that has these three methods can be sampled.  Positions are [replicas, atoms, 3] nm;
    ``noise_level`` is sigma in nm, or None for the model's own (its smallest trained one).
    """

    def energy(self, positions: Tensor, noise_level: float | None = None) -> Tensor: ...

    def score(self, positions: Tensor, noise_level: float | None = None) -> Tensor: ...

    def energy_and_score(self, positions: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]: ...


class Energy(nn.Module):
    """Base class: a subclass writes ``forward(positions, noise_level) -> energy [replicas]``, in torch.

    Attributes:
        n_atoms: atoms per replica.
        temperature: T0 in K, the temperature of the density that the energy belongs to.
        noise_level: sigma in nm at which the energy is evaluated when none is given; 0 for exact energies.
    """

    n_atoms: int
    temperature: float = 300.0
    noise_level: float = 0.0

    def forward(self, positions: Tensor, noise_level: Tensor | None = None) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say how its energy is computed: it needs a forward method")

    def energy(self, positions: Tensor, noise_level: float | None = None) -> Tensor:
        """E in kT0 of each replica [replicas]; positions [replicas, atoms, 3] nm.  Differentiable."""
        self.check_positions(positions)
        return self(positions, self._noise(positions, noise_level))

    def score(self, positions: Tensor, noise_level: float | None = None) -> Tensor:
        """-grad E in 1/nm [replicas, atoms, 3]; differentiable where ``positions`` requires a gradient."""
        return self.energy_and_score(positions, noise_level)[1]

    def energy_and_score(self, positions: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]:
        """Energy [replicas] in kT0 and score [replicas, atoms, 3] in 1/nm from one forward and one backward."""
        self.check_positions(positions)
        higher = torch.is_grad_enabled() and positions.requires_grad
        if forward_ad._current_level >= 0 and not higher:  # detach() would drop a tangent without a word
            require(forward_ad.unpack_dual(positions).tangent is None, "positions",
                    "requires_grad=True for forward-mode derivatives of a score", "requires_grad=False")
        with torch.inference_mode(False), torch.enable_grad():
            x = positions if higher else positions.detach()
            if not higher:
                x = (x.clone() if x.is_inference() else x).requires_grad_()
            energy = self(x, self._noise(positions, noise_level))
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=higher)
        return (energy, -gradient) if higher else (energy.detach(), -gradient)

    def check_positions(self, positions: Tensor) -> None:
        """Raise InputError unless positions are [replicas, n_atoms, 3] of a floating dtype."""
        check_tensor(positions, "positions", ("replicas", self.n_atoms, 3))

    def _noise(self, positions: Tensor, noise_level: float | None) -> Tensor:
        value = self.noise_level if noise_level is None else noise_level
        if not isinstance(value, Tensor):
            value = check_number(value, "noise_level", minimum=0, unit="nm")
        # Filled and not copied from the host, which a captured CUDA graph could not do.
        noise = value.to(positions) if isinstance(value, Tensor) else positions.new_full((), value)
        require(noise.dim() == 0 or noise.shape == positions.shape[:1], "noise_level",
                f"a number or shape [{positions.shape[0]}] in nm", f"shape {list(noise.shape)}")
        return noise.expand(positions.shape[0])


def require_score(model: Any) -> None:
    """Refuse an object that cannot be sampled at all."""
    if not callable(getattr(model, "score", None)):
        raise InputError(f"model: expected a method score(positions) -> [replicas, atoms, 3] in 1/nm, got "
                         f"{type(model).__name__}, which has none")
