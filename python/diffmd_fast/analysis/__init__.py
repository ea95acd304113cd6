"""Does a run sample the right thing: dihedrals, autocorrelation, free energy, divergence, error budget, report; and how
to run a model: noise level and time step."""

from .autocorrelation import DihedralAutocorrelation, circular_autocorrelation, dihedral_autocorrelation
from .budget_result import ErrorBudget, Estimate
from .comparison import Comparison, compare
from .divergence import SamplingFloor, Units, jensen_shannon, resampling_units, sampling_floor
from .error_budget import error_budget
from .free_energy import (
    basin_populations,
    free_energy,
    periodic_histogram,
    ramachandran_basin,
    torsion_basin,
)
from .geometry import bond_lengths, dihedral_angles, distances
from .recommend import ScanInterrupted, recommend
from .recommend_result import NoisePoint, Recommendation, StepPoint
from .replicas import Replicas, find_replicas
from .report import report

__all__ = [
    "Comparison",
    "DihedralAutocorrelation",
    "ErrorBudget",
    "Estimate",
    "NoisePoint",
    "Recommendation",
    "Replicas",
    "ScanInterrupted",
    "StepPoint",
    "SamplingFloor",
    "Units",
    "basin_populations",
    "bond_lengths",
    "circular_autocorrelation",
    "compare",
    "dihedral_angles",
    "dihedral_autocorrelation",
    "distances",
    "error_budget",
    "find_replicas",
    "free_energy",
    "jensen_shannon",
    "periodic_histogram",
    "ramachandran_basin",
    "recommend",
    "report",
    "resampling_units",
    "sampling_floor",
    "torsion_basin",
]
