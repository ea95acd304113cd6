"""Does a run sample the right thing, how fast, and how far from the exact dynamics; and how to run a model."""

from .autocorrelation import (
    Autocorrelation,
    DihedralAutocorrelation,
    autocorrelation,
    circular_autocorrelation,
    dihedral_autocorrelation,
)
from .averages import Average, average, circular_average
from .budget_result import ErrorBudget, Estimate
from .comparison import Comparison, compare
from .consistency import Agreement, Consistency, ReferenceHistogram, consistency, read_reference
from .divergence import (
    SamplingFloor,
    Units,
    histogram_floor,
    independent_units,
    jensen_shannon,
    resampling_units,
    sampling_floor,
)
from .error_budget import error_budget
from .fokker_planck import (
    RelaxationComparison,
    RelaxationRates,
    compare_relaxation,
    double_well_rates,
    muller_brown_rates,
    relaxation_rates,
)
from .free_energy import (
    basin_populations,
    free_energy,
    periodic_histogram,
    ramachandran_basin,
    torsion_basin,
)
from .free_energy_differences import (
    FreeEnergyDifference,
    MbarFreeEnergies,
    bennett,
    jarzynski,
    mbar,
    zwanzig,
)
from .free_energy_profile import (
    FreeEnergyProfile,
    dihedral_free_energy_profile,
    dihedral_free_energy_surface,
    free_energy_profile,
)
from .geometry import bond_lengths, dihedral_angles, distances
from .kinetics import (
    HopRates,
    ImpliedTimescales,
    RelaxationTime,
    Tica,
    Vamp2Score,
    hop_rates,
    implied_timescales,
    relaxation_time,
    tica,
    torsion_core,
    vamp2_score,
)
from .observable_figures import (
    free_energy_surface_figure,
    matrix_figure,
    profile_figure,
    scalar_figure,
    timescales_figure,
)
from .recommend import ScanInterrupted, recommend
from .recommend_result import NoisePoint, Recommendation, StepPoint
from .replicas import Replicas, find_replicas
from .report import report
from .structure import align, correlation_matrix, end_to_end_distance, radius_of_gyration, rmsd, rmsd_matrix

__all__ = [
    "Agreement",
    "Autocorrelation",
    "Average",
    "Comparison",
    "Consistency",
    "DihedralAutocorrelation",
    "ErrorBudget",
    "Estimate",
    "FreeEnergyDifference",
    "FreeEnergyProfile",
    "HopRates",
    "ImpliedTimescales",
    "MbarFreeEnergies",
    "NoisePoint",
    "Recommendation",
    "ReferenceHistogram",
    "RelaxationComparison",
    "RelaxationRates",
    "RelaxationTime",
    "Replicas",
    "SamplingFloor",
    "ScanInterrupted",
    "StepPoint",
    "Tica",
    "Units",
    "Vamp2Score",
    "align",
    "autocorrelation",
    "average",
    "basin_populations",
    "bennett",
    "bond_lengths",
    "circular_autocorrelation",
    "circular_average",
    "compare",
    "compare_relaxation",
    "consistency",
    "correlation_matrix",
    "dihedral_angles",
    "dihedral_autocorrelation",
    "dihedral_free_energy_profile",
    "dihedral_free_energy_surface",
    "distances",
    "double_well_rates",
    "end_to_end_distance",
    "error_budget",
    "find_replicas",
    "free_energy",
    "free_energy_profile",
    "free_energy_surface_figure",
    "histogram_floor",
    "hop_rates",
    "implied_timescales",
    "independent_units",
    "jarzynski",
    "jensen_shannon",
    "matrix_figure",
    "mbar",
    "muller_brown_rates",
    "periodic_histogram",
    "profile_figure",
    "radius_of_gyration",
    "ramachandran_basin",
    "read_reference",
    "recommend",
    "relaxation_rates",
    "relaxation_time",
    "report",
    "resampling_units",
    "rmsd",
    "rmsd_matrix",
    "sampling_floor",
    "scalar_figure",
    "tica",
    "timescales_figure",
    "torsion_basin",
    "torsion_core",
    "vamp2_score",
    "zwanzig",
]
