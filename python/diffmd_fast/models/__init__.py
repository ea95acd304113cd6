"""Energies: the protocol, the learned SchNet, and analytic energies with known answers."""

from .alkane import TraPPEAlkane
from .analytic import DoubleWell, Harmonic, LennardJonesCluster, MullerBrown
from .checkpoint import load_model, save_model
from .energy import Energy, EnergyModel
from .schnet import SchNet

__all__ = [
    "DoubleWell",
    "Energy",
    "EnergyModel",
    "Harmonic",
    "LennardJonesCluster",
    "MullerBrown",
    "SchNet",
    "TraPPEAlkane",
    "load_model",
    "save_model",
]
