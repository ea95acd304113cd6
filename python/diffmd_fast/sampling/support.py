"""Whether a replica is still where the training snapshots were; elsewhere the energy means nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, require

ENERGY_MARGIN = 5.0  # of the training's energy range, above its top
NOISE_MARGIN = 6.0  # noise levels, beside the range of a distance


class Support:
    """The ranges that a model's training snapshots had, with the margins within which a replica is kept.

    ``support`` is the model's record: ``pairs`` [P, 2] of bonded atoms and ends of angles, their ``lowest``
    and ``highest`` distance [P] in nm, and ``energy`` [lowest, highest] in kT0 at the model's own noise
    level.  A replica is outside when a distance is beyond [lowest - w, highest + w], w = highest - lowest + 6
    sigma, or its energy is above highest + 5 (highest - lowest), or anything is not finite.  None: only
    finiteness is asked for.

    Args:
        noise_level: sigma of the run in nm, or None.
        check_energy: False where the run is not at the noise level that the energy range belongs to.

    Raises:
        InputError: a record with missing or unusable entries.
    """

    def __init__(
        self,
        support: Mapping[str, Any] | None,
        n_atoms: int,
        noise_level: float | None = None,
        check_energy: bool = True,
        device: torch.device | str = "cpu",
    ):
        self.empty = support is None
        if support is None:
            return
        try:
            pairs = torch.as_tensor(support["pairs"], dtype=torch.int64).reshape(-1, 2)
            lowest = torch.as_tensor(support["lowest"], dtype=torch.float64).reshape(-1)
            highest = torch.as_tensor(support["highest"], dtype=torch.float64).reshape(-1)
            energy = support.get("energy")
            energy = None if energy is None else tuple(float(value) for value in energy)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"model.support: expected pairs, lowest, highest and energy, got {type(error).__name__} "
                f"on reading them ({error})"
            ) from None
        require(
            len(pairs) == len(lowest) == len(highest),
            "model.support",
            "as many ranges as pairs",
            f"{len(pairs)}, {len(lowest)}, {len(highest)}",
        )
        require(
            len(pairs) == 0 or bool((pairs >= 0).all() and (pairs < n_atoms).all()),
            "model.support",
            f"pairs of atoms 0..{n_atoms - 1}",
            "another atom",
        )
        require(energy is None or len(energy) == 2, "model.support", "energy as [lowest, highest]", energy)
        margin = highest - lowest + NOISE_MARGIN * (noise_level or 0.0)
        self._pairs, self._ranges = pairs, torch.stack([lowest, highest], 1)
        self._i, self._j = pairs.unbind(1)
        self._low, self._high = ((lowest - margin).to(device), (highest + margin).to(device))
        self._i, self._j = self._i.to(device), self._j.to(device)
        self._energy = energy if check_energy else None
        self._energy_limit = (
            energy[1] + ENERGY_MARGIN * (energy[1] - energy[0]) if self._energy is not None else float("inf")
        )

    def inside(self, positions: Tensor, energy: Tensor | None) -> Tensor:
        """Which are inside, bool [replicas]; positions [replicas, atoms, 3], energy [replicas] or None."""
        good = torch.isfinite(positions).flatten(1).all(1)
        if energy is not None:
            good &= torch.isfinite(energy)
        if self.empty:
            return good
        if energy is not None:
            good &= energy <= self._energy_limit
        distances = self._distances(positions)
        return good & ((distances >= self._low) & (distances <= self._high)).all(1)

    def limits(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """What :meth:`inside` compares with: pairs int64 [P, 2], lowest and highest float64 [P] nm, energy kT0."""
        if self.empty:
            none = torch.empty(0, dtype=torch.float64)
            return torch.empty(0, 2, dtype=torch.int64), none, none, float("inf")
        return self._pairs.contiguous(), self._low.contiguous(), self._high.contiguous(), self._energy_limit

    def reason(self, positions: Tensor, energy: Tensor | None) -> str:
        """Why one replica, positions [atoms, 3] and energy [] or None, is outside."""
        if not bool(torch.isfinite(positions).all()):
            return "its positions are not finite"
        if energy is not None and not bool(torch.isfinite(energy)):
            return "its energy is not finite"
        if self.empty:
            return "it is outside the support"
        r = self._distances(positions[None])[0]
        excess = torch.maximum((self._low - r), (r - self._high)) / (self._high - self._low).clamp_min(1e-12)
        if len(excess) and excess.max() > 0:
            worst = int(excess.argmax())
            (i, j), (low, high) = self._pairs[worst].tolist(), self._ranges[worst].tolist()
            return f"distance {i}-{j} is {r[worst].item():.4g} nm, training range {low:.4g} to {high:.4g} nm"
        return f"energy is {energy.item():.4g} kT0, training range {self._energy[0]:.4g} to {self._energy[1]:.4g} kT0"

    def _distances(self, positions: Tensor) -> Tensor:
        # In double, as csrc/resident_sampler.cpp does: both loops then lose a replica at the same step.
        return torch.linalg.vector_norm((positions[:, self._i] - positions[:, self._j]).double(), dim=-1)
