"""Energies: the protocol, the learned SchNet, and analytic energies with known answers."""

from .energy import Energy, EnergyModel
from .schnet import SchNet

__all__ = ["Energy", "EnergyModel", "SchNet"]
