"""Energies: the protocol, the learned SchNet, and analytic energies with known answers."""

from .energy import Energy, EnergyModel

__all__ = ["Energy", "EnergyModel"]
