"""Dynamics with a learned energy: the spring, the stability limit, the sampler, and frames from noise."""

from .integrators import INTEGRATORS
from .reporters import EnergyReporter, Reporter
from .restart import stored_spring
from .reverse_diffusion import reverse_diffusion
from .sampler import Sampler
from .schedule import Schedule
from .spring import Spring
from .stability import Stability, check_stability, choose_spring, default_time_step, estimate_curvature
from .support import Support
from .temperature import configurational_temperature, kinetic_temperature
from .trajectory import Lost, RunInterrupted, Trajectory

__all__ = [
    "INTEGRATORS",
    "EnergyReporter",
    "Lost",
    "Reporter",
    "RunInterrupted",
    "Sampler",
    "Schedule",
    "Spring",
    "Stability",
    "Support",
    "Trajectory",
    "check_stability",
    "choose_spring",
    "configurational_temperature",
    "default_time_step",
    "estimate_curvature",
    "kinetic_temperature",
    "reverse_diffusion",
    "stored_spring",
]
