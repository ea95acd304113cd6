"""Does a run sample the right thing, and how fast: averages, structure, kinetics, free energies, divergence, report."""

from .autocorrelation import (
    Autocorrelation,
    DihedralAutocorrelation,
    autocorrelation,
    circular_autocorrelation,
    dihedral_autocorrelation,
)
from .averages import Average, average, circular_average
from .comparison import Comparison, compare
from .divergence import SamplingFloor, Units, jensen_shannon, resampling_units, sampling_floor
from .free_energy import (
    basin_populations,
    free_energy,
    periodic_histogram,
    ramachandran_basin,
    torsion_basin,
)
from .geometry import bond_lengths, dihedral_angles, distances
from .replicas import Replicas, find_replicas
from .report import report
from .structure import align, correlation_matrix, end_to_end_distance, radius_of_gyration, rmsd, rmsd_matrix

__all__ = [
    "Autocorrelation",
    "Average",
    "Comparison",
    "DihedralAutocorrelation",
    "Replicas",
    "SamplingFloor",
    "Units",
    "align",
    "autocorrelation",
    "average",
    "basin_populations",
    "bond_lengths",
    "circular_autocorrelation",
    "circular_average",
    "compare",
    "correlation_matrix",
    "dihedral_angles",
    "dihedral_autocorrelation",
    "distances",
    "end_to_end_distance",
    "find_replicas",
    "free_energy",
    "jensen_shannon",
    "periodic_histogram",
    "radius_of_gyration",
    "ramachandran_basin",
    "report",
    "resampling_units",
    "rmsd",
    "rmsd_matrix",
    "sampling_floor",
    "torsion_basin",
]
