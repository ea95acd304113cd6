"""Asking a model for score and energy: what it may lack, and what it must return."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from ..backend import say_once
from ..errors import InputError, check_number, check_tensor, require
from ..models.energy import require_score
from .spring import _numbers

DEFAULT_TEMPERATURE = 300.0  # K, of a model that does not say its T0


class Evaluator:
    """``evaluate(positions) -> (energy [replicas] or None, score [replicas, atoms, 3])`` of a model.

    To be called without gradients (``torch.no_grad``), which the caller switches off once for a whole loop.
    Energies are None for a module that offers only a score.  ``noise_level`` None leaves the choice to the
    model (its smallest trained one) and serves modules whose ``score`` takes positions only.

    Raises:
        InputError: a model without ``score``; a noise level outside the model's range; on a call, a score of
            another shape, dtype or device than the positions.
    """

    def __init__(self, model: Any, noise_level: float | None = None):
        require_score(model)
        self.has_energy = callable(getattr(model, "energy_and_score", None))
        self._both = model.energy_and_score if self.has_energy else None
        self._score = model.score
        own = getattr(model, "noise_level", None)
        self.noise_level = float(own) if isinstance(own, (int, float)) else None
        self.at_own_noise = noise_level is None
        self.argument, self._level = noise_level, ()
        if noise_level is not None:
            level = check_number(noise_level, "noise_level", above=0, unit="nm")
            low, high = getattr(model, "noise_levels", None) or (0.0, float("inf"))
            require(
                low <= level <= high,
                "noise_level",
                f"{low:g} to {high:g} nm, the range of the training",
                f"{level:g} nm",
            )
            self.at_own_noise = level == self.noise_level
            self.noise_level, self._level = level, (level,)

    def __call__(self, positions: Tensor) -> tuple[Tensor | None, Tensor]:
        if self._both is not None:
            energy, score = self._both(positions, *self._level)
        else:
            energy, score = None, self._score(positions, *self._level)
        # Checked on every call: the native step trusts the sizes.
        same_kind = score.dtype == positions.dtype and score.device == positions.device
        if score.shape != positions.shape or not same_kind:
            raise InputError(
                f"model: expected a score of shape {list(positions.shape)}, {positions.dtype} on "
                f"{positions.device}, got shape {list(score.shape)}, {score.dtype} on {score.device}"
            )
        if energy is not None and energy.shape != positions.shape[:1]:
            raise InputError(f"model: expected an energy of shape [{positions.shape[0]}], got {list(energy.shape)}")
        return None if energy is None else energy.to(positions).contiguous(), score.contiguous()


def as_positions(value: Any, argument: str, model: Any) -> Tensor:
    """Positions [replicas, atoms, 3] on the model's device, as a copy; numbers that are not float32/64 become
    float32.

    Raises:
        InputError: another shape, no replica, another number of atoms than the model's, or a value that is
            not finite; the message names the replica.
    """
    try:
        positions = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{argument}: expected an array or tensor of shape [replicas, atoms, 3], got {type(value).__name__}"
        ) from None
    if positions.dtype not in (torch.float32, torch.float64):
        require(
            not positions.is_complex() and positions.dtype != torch.bool,
            argument,
            "real numbers",
            str(positions.dtype).removeprefix("torch."),
        )
        positions = positions.to(torch.float32)
    n_atoms = getattr(model, "n_atoms", None)
    check_tensor(positions, argument, ("replicas", n_atoms if isinstance(n_atoms, int) else "atoms", 3))
    require(positions.numel() > 0, argument, "at least one replica and one atom", f"shape {list(positions.shape)}")
    bad = torch.nonzero(~torch.isfinite(positions).flatten(1).all(1)).flatten().tolist()
    require(not bad, argument, "finite positions", f"NaN or infinity in replica {bad[0] if bad else ''}")
    return positions.detach().to(device_of(model) or positions.device).clone(memory_format=torch.contiguous_format)


def device_of(model: Any) -> torch.device | None:
    """Where the model's parameters are, or None if it has none."""
    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return None


def model_temperature(model: Any) -> float:
    """T0 of the model in K; a module without ``temperature`` is taken to be of 300 K, which is said once."""
    value = getattr(model, "temperature", None)
    if value is None:
        say_once(
            f"temperature:{type(model).__qualname__}",
            f"model: {type(model).__name__} has no attribute temperature; its T0 is taken to be "
            f"{DEFAULT_TEMPERATURE:g} K",
        )
        return DEFAULT_TEMPERATURE
    return check_number(value, "model.temperature", above=0, unit="K")


def model_masses(model: Any, masses: Any = None) -> float | tuple[float, ...]:
    """Masses in Da, as given (a number, or one per atom) or else of the elements of ``model.molecule``.

    Raises:
        InputError: ``masses``: not above 0, or none given and the model names no elements.
    """
    if masses is not None:
        return _numbers(masses, "masses", "Da")
    values = getattr(getattr(model, "molecule", None), "masses", None)
    require(values is not None, "masses", "a number or one per atom in Da", "none, and the model names no elements")
    return values


def fingerprint(model: Any) -> str:
    """A hash of what determines the model's values: class, plain attributes, configuration and parameters."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    plain = {
        name: value
        for name, value in sorted(vars(model).items())
        if not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str))
    }
    digest.update(repr(plain).encode())
    config = getattr(model, "config", None)
    if isinstance(config, dict):
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    tensors = dict(model.state_dict()) if isinstance(model, torch.nn.Module) else {}
    tensors.update({name: value for name, value in vars(model).items() if isinstance(value, Tensor)})
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
