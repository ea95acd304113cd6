"""Does a run sample the right thing: dihedrals, autocorrelation, free energy, divergence, report."""

from .autocorrelation import DihedralAutocorrelation, circular_autocorrelation, dihedral_autocorrelation
from .comparison import Comparison, compare
from .consistency import Agreement, Consistency, ReferenceHistogram, consistency, read_reference
from .divergence import SamplingFloor, Units, histogram_floor, jensen_shannon, resampling_units, sampling_floor
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

__all__ = [
    "Agreement",
    "Comparison",
    "Consistency",
    "DihedralAutocorrelation",
    "ReferenceHistogram",
    "Replicas",
    "SamplingFloor",
    "Units",
    "basin_populations",
    "bond_lengths",
    "circular_autocorrelation",
    "compare",
    "consistency",
    "dihedral_angles",
    "dihedral_autocorrelation",
    "distances",
    "find_replicas",
    "free_energy",
    "histogram_floor",
    "jensen_shannon",
    "periodic_histogram",
    "ramachandran_basin",
    "read_reference",
    "report",
    "resampling_units",
    "sampling_floor",
    "torsion_basin",
]
