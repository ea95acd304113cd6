"""Dynamics with a learned energy: the spring, the stability limit, the sampler, and frames from noise."""

from .integrators import INTEGRATORS, EulerMaruyama
from .reporters import EnergyReporter, Reporter
from .restart import stored_spring
from .reverse_diffusion import reverse_diffusion
from .sampler import Sampler
from .spring import Spring
from .stability import Stability, check_stability, choose_spring, default_time_step, estimate_curvature
from .support import Support
from .trajectory import Lost, RunInterrupted, Trajectory

__all__ = [
    "INTEGRATORS",
    "EnergyReporter",
    "EulerMaruyama",
    "Lost",
    "Reporter",
    "RunInterrupted",
    "Sampler",
    "Spring",
    "Stability",
    "Support",
    "Trajectory",
    "check_stability",
    "choose_spring",
    "default_time_step",
    "estimate_curvature",
    "reverse_diffusion",
    "stored_spring",
]
