"""A simulated run against reference frames: every number the report shows, computed once, drawn elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, check_integer, require
from .autocorrelation import DihedralAutocorrelation, dihedral_autocorrelation
from .divergence import SamplingFloor, Units, jensen_shannon, resampling_units, sampling_floor
from .free_energy import (
    RAMACHANDRAN_BASINS,
    TORSION_BASINS,
    Population,
    basin_populations,
    periodic_histogram,
    ramachandran_basin,
    torsion_basin,
)
from .geometry import bond_lengths, bonds_apart, check_frames, dihedral_angles, distances
from .replicas import Replicas, find_replicas

if TYPE_CHECKING:
    from ..io import Molecule, Snapshots

MAX_PAIRS = 1000  # distances compared in large molecules
MAX_PAIR_FRAMES = 4000
SHOWN_DISTANCES = 6


@dataclass(frozen=True)
class Dihedrals:
    """Dihedrals to analyse.

    names: of all.  quadruples: their atom indices [n, 4].  surface: the names of the one or two compared.
    """

    names: tuple[str, ...]
    quadruples: np.ndarray
    surface: tuple[str, ...]

    @property
    def surface_columns(self) -> list[int]:
        """Positions of the surface's dihedrals among ``names``."""
        return [self.names.index(name) for name in self.surface]

    @property
    def is_ramachandran(self) -> bool:
        """Whether the surface is (phi, psi) of one residue."""
        return (
            len(self.surface) == 2
            and self.surface[0].startswith("phi")
            and self.surface[1] == "psi" + self.surface[0][3:]
        )


def choose_dihedrals(molecule: Molecule, dihedrals: Sequence | None = None) -> Dihedrals:
    """Dihedrals by name, by atom indices, or found from the bonds.

    dihedrals: names as `Molecule.find_dihedrals` gives them ("phi", "C1-C2-C3-C4"), or atom indices
    counted from 0, as (4, 6, 8, 14) or "4-6-8-14"; the first two make the surface.  None: all that the
    molecule has; the surface is (phi, psi) of the first residue with both, else the two in the middle of the
    chain, else the only one.
    """
    found = molecule.find_dihedrals()
    if dihedrals is None:
        require(
            bool(found),
            "dihedrals",
            "a molecule with three bonds in a row, or four atom indices for each angle",
            f"{molecule.n_atoms} atoms with {len(molecule.bonds)} bonds",
        )
        names = list(found)
        pairs = [(name, "psi" + name[3:]) for name in names if name.startswith("phi") and "psi" + name[3:] in found]
        middle = max(0, (len(names) - 2) // 2)
        surface = pairs[0] if pairs else tuple(names[middle : middle + 2])
        return Dihedrals(tuple(names), np.array([found[name] for name in names]), surface)
    require(
        not isinstance(dihedrals, str) and len(dihedrals) > 0,
        "dihedrals",
        "a list of names or atom indices",
        repr(dihedrals),
    )
    chosen: dict[str, tuple[int, ...]] = {}
    for entry in dihedrals:
        name, quadruple = _one_dihedral(entry, found, molecule.n_atoms)
        require(name not in chosen, "dihedrals", "each dihedral once", f"{name} twice")
        chosen[name] = quadruple
    return Dihedrals(tuple(chosen), np.array(list(chosen.values())), tuple(chosen)[:2])


def _one_dihedral(entry: Any, found: dict, n_atoms: int) -> tuple[str, tuple[int, ...]]:
    if isinstance(entry, str) and entry in found:
        return entry, found[entry]
    parts = entry.split("-") if isinstance(entry, str) else entry
    try:
        indices = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        known = ", ".join(found) if found else "none found from the bonds"
        raise InputError(f"dihedrals: expected names among {known}, or four atom indices, got {entry!r}") from None
    require(
        len(indices) == 4 and len(set(indices)) == 4 and min(indices) >= 0 and max(indices) < n_atoms,
        "dihedrals",
        f"four different atom indices from 0 to {n_atoms - 1}",
        repr(entry),
    )
    return "-".join(map(str, indices)), indices


@dataclass(frozen=True)
class LengthStatistics:
    """Means and standard deviations (nm) of a set of distances in the run and in the reference, [pairs] each.

    labels: of the pairs.  pairs: atom indices [pairs, 2].
    """

    labels: tuple[str, ...]
    pairs: np.ndarray
    run_mean: np.ndarray
    run_sd: np.ndarray
    reference_mean: np.ndarray
    reference_sd: np.ndarray

    @property
    def relative_deviation(self) -> np.ndarray:
        """(run mean - reference mean) / reference mean."""
        return (self.run_mean - self.reference_mean) / self.reference_mean


def _statistics(labels: Sequence[str], pairs: np.ndarray, run: np.ndarray, reference: np.ndarray) -> LengthStatistics:
    return LengthStatistics(
        tuple(labels), pairs, run.mean(axis=0), run.std(axis=0), reference.mean(axis=0), reference.std(axis=0)
    )


@dataclass(frozen=True)
class EnergyTrace:
    """Learned energy (kT0) along the run.

    time: ps (or frames), [points].  mean, low, high: mean and 5 and 95 % quantiles over the replicas at that
    time.  run_mean: over all of them.  reference_mean, reference_low, reference_high: of the reference.
    """

    time: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    run_mean: float
    reference_mean: float
    reference_low: float
    reference_high: float


@dataclass(frozen=True)
class Comparison:
    """All results of `compare`; histograms are [bins] or [bins, bins]."""

    molecule: Molecule
    dihedrals: Dihedrals
    bins: int
    replicas: Replicas
    n_reference: int
    run_angles: np.ndarray
    reference_angles: np.ndarray
    run_histogram: np.ndarray
    reference_histogram: np.ndarray
    js_divergence: float
    floor: SamplingFloor
    autocorrelations: dict[str, DihedralAutocorrelation]
    populations: dict[str, list[Population]]
    bonds: LengthStatistics
    distances: LengthStatistics
    shown_distances: tuple[LengthStatistics, np.ndarray, np.ndarray]
    energy: EnergyTrace | None

    @property
    def effective_sample_size(self) -> float:
        """The smallest of the surface's dihedrals."""
        return min(self.autocorrelations[name].effective_sample_size for name in self.dihedrals.surface)


def check_same_molecule(trajectory: Snapshots, reference: Snapshots) -> None:
    """`InputError` naming ``reference`` unless both hold the same atoms in the same order."""
    ours, theirs = trajectory.molecule, reference.molecule
    n_atoms = np.shape(trajectory.positions)[1]
    require(n_atoms == ours.n_atoms, "trajectory", f"the {ours.n_atoms} atoms of its molecule", n_atoms)
    require(
        np.shape(reference.positions)[1] == n_atoms,
        "reference",
        f"the {n_atoms} atoms of the trajectory",
        f"{np.shape(reference.positions)[1]} atoms",
    )
    for index, (mine, other) in enumerate(zip(ours.atomic_numbers, theirs.atomic_numbers)):
        # An element 0 is a bead or a file that does not say; only two elements can contradict each other.
        require(
            mine == other or 0 in (mine, other),
            "reference",
            f"the atoms of the trajectory in the same order (atom {index} has atomic number {mine})",
            f"atomic number {other}",
        )


def compare(
    trajectory: Snapshots,
    reference: Snapshots,
    dihedrals: Sequence | None = None,
    bins: int = 64,
    *,
    seed: int = 0,
    n_pairs: int = 200,
    frame_interval: float | None = None,
    model: Any = None,
    energy_frames: int = 2000,
    step: Any = lambda text: None,
) -> Comparison:
    """Every comparison of a run with reference frames; arguments as in `diffmd_fast.analysis.report`."""
    bins = check_integer(bins, "bins", minimum=2, maximum=1024)
    run_frames = check_frames(trajectory.positions, "trajectory")
    reference_frames = check_frames(reference.positions, "reference")
    check_same_molecule(trajectory, reference)
    molecule = trajectory.molecule if trajectory.molecule.bonds else reference.molecule
    chosen = choose_dihedrals(molecule, dihedrals)
    replicas = find_replicas(len(run_frames), trajectory.replica, trajectory.time, "trajectory")
    if frame_interval is not None:
        replicas = Replicas(replicas.indices, replicas.labels, frame_interval)
    order = find_replicas(len(reference_frames), reference.replica, None, "reference")

    step("dihedral angles")
    run_angles = dihedral_angles(run_frames, chosen.quadruples)
    reference_angles = dihedral_angles(reference_frames, chosen.quadruples)
    step("autocorrelation")
    autocorrelations = {
        name: dihedral_autocorrelation(replicas.split(run_angles[:, k]), replicas.frame_interval)
        for k, name in enumerate(chosen.names)
    }
    columns = chosen.surface_columns
    run_units = units_of(replicas.split(run_angles[:, columns]), [autocorrelations[name] for name in chosen.surface])
    reference_units = units_of(
        order.split(reference_angles[:, columns]),
        [dihedral_autocorrelation(order.split(reference_angles[:, k])) for k in columns],
    )
    step("divergence and its floor")
    run_histogram = periodic_histogram(run_angles[:, columns], bins)
    reference_histogram = periodic_histogram(reference_angles[:, columns], bins)
    divergence = jensen_shannon(run_histogram, reference_histogram)
    floor = sampling_floor(run_units, reference_units, bins, divergence=divergence, n_pairs=n_pairs, seed=seed)
    step("bonds and distances")
    labels = atom_labels(molecule)
    bonds = np.array(molecule.bonds, dtype=np.int64).reshape(-1, 2)
    lengths = bond_lengths(run_frames, bonds), bond_lengths(reference_frames, bonds)
    for name, values in zip(("trajectory", "reference"), lengths):
        require(bool((values > 0).all()), name, "bonded atoms apart from each other", "two in one place")
    bond_statistics = _statistics([bond_label(labels, i, j) for i, j in bonds], bonds, *lengths)
    far, shown = _compare_distances(molecule, labels, run_frames, reference_frames, seed)
    energy = None
    if model is not None:
        step("energy")
        energy = energy_trace(model, run_frames, reference_frames, replicas, energy_frames)
    return Comparison(
        molecule,
        chosen,
        bins,
        replicas,
        len(reference_frames),
        run_angles,
        reference_angles,
        run_histogram,
        reference_histogram,
        divergence,
        floor,
        autocorrelations,
        _populations(chosen, run_units, reference_units),
        bond_statistics,
        far,
        shown,
        energy,
    )


def units_of(replicas: Sequence[np.ndarray], functions: list[DihedralAutocorrelation]) -> Units:
    """Independent pieces of replicas [frames, ...], by the slowest of their dihedrals' autocorrelations."""
    slowest = max(function.integrated_time for function in functions)
    return resampling_units(replicas, slowest, all(function.resolved for function in functions))


def _populations(chosen: Dihedrals, run: Units, reference: Units) -> dict[str, list[Population]]:
    def of(classify: Any, names: Sequence[str]) -> list[Population]:
        return basin_populations(
            run.with_values(classify(run.values)).pieces(),
            reference.with_values(classify(reference.values)).pieces(),
            names,
        )

    if chosen.is_ramachandran:
        return {", ".join(chosen.surface): of(ramachandran_basin, RAMACHANDRAN_BASINS)}
    return {
        name: of(lambda values, k=k: torsion_basin(values[:, k]), TORSION_BASINS)
        for k, name in enumerate(chosen.surface)
    }


def atom_labels(molecule: Molecule) -> list[str]:
    """Labels, different for every atom: its name, with the residue where needed, else element and number.

    Elements are numbered as in the names of `Molecule.find_dihedrals`: C1, C2, ...
    """
    names = list(molecule.names)
    if len(set(names)) == len(names):
        return names
    named = [f"{residue.capitalize()} {name}" for residue, name in zip(molecule.residue_names, names)]
    if len(set(named)) == len(names):
        return named
    from mdtraj.core.element import Element

    return [
        f"{Element.getByAtomicNumber(number).symbol if number else 'X'}{index + 1}"
        for index, number in enumerate(molecule.atomic_numbers)
    ]


def bond_label(labels: Sequence[str], i: int, j: int) -> str:
    """Two atom labels joined; the residue is said once where both share it: "Ala N–CA"."""
    residue, _, name = labels[j].rpartition(" ")
    shared = residue and labels[i].startswith(residue + " ")
    return f"{labels[i]}–{name if shared else labels[j]}"


def _compare_distances(
    molecule: Molecule, labels: list[str], run: np.ndarray, reference: np.ndarray, seed: int
) -> tuple[LengthStatistics, tuple[LengthStatistics, np.ndarray, np.ndarray]]:
    """Means over pairs three or more bonds apart, and the distributions of a few that vary most."""
    apart = bonds_apart(molecule.n_atoms, molecule.bonds)
    i, j = np.nonzero(np.triu((apart < 0) | (apart >= 3), 1))
    pairs = np.stack([i, j], axis=1)
    if len(pairs) > MAX_PAIRS:
        pairs = pairs[np.sort(np.random.default_rng(seed).choice(len(pairs), MAX_PAIRS, replace=False))]
    some_run, some_reference = (distances(_thinned(frames), pairs) for frames in (run, reference))
    text = [f"{labels[a]} … {labels[b]}" for a, b in pairs]
    everything = _statistics(text, pairs, some_run, some_reference)
    chosen = _most_varied(some_reference, SHOWN_DISTANCES)
    shown_run, shown_reference = distances(run, pairs[chosen]), distances(reference, pairs[chosen])
    return everything, (
        _statistics([text[k] for k in chosen], pairs[chosen], shown_run, shown_reference),
        shown_run,
        shown_reference,
    )


def _thinned(frames: np.ndarray) -> np.ndarray:
    return frames[np.linspace(0, len(frames) - 1, min(len(frames), MAX_PAIR_FRAMES)).astype(int)]


def _most_varied(values: np.ndarray, n: int) -> list[int]:
    """Columns of widest spread, none of which repeats what one before it says (correlation above 0.8)."""
    spread = values.std(axis=0)
    standard = (values - values.mean(axis=0)) / np.maximum(spread, 1e-12)
    chosen: list[int] = []
    for k in np.argsort(-spread).tolist():
        if all(abs((standard[:, k] * standard[:, other]).mean()) < 0.8 for other in chosen):
            chosen.append(k)
        if len(chosen) == n:
            break
    return chosen


def energy_trace(
    model: Any, run: np.ndarray, reference: np.ndarray, replicas: Replicas, n_frames: int = 2000
) -> EnergyTrace:
    """Energy of up to n_frames frames of the run, evenly spaced in time, and of as many of the reference.

    A run samples the density blurred by the model's noise level, so the reference frames get that noise too (from a
    fixed seed): clean frames would lie lower by half a kT0 for every stiff degree of freedom that the noise widens.

    model: anything with ``energy(positions [n, atoms, 3] in nm) -> [n]`` in kT0.
    """
    longest = int(replicas.lengths.max())
    n_replicas = len(replicas.indices)
    shown = replicas.indices[:: max(1, -(-n_replicas * 10 // n_frames))]
    points = np.unique(np.linspace(0, longest - 1, min(longest, max(1, n_frames // len(shown)))).astype(int))
    chosen = [np.array([index[p] for index in shown if p < len(index)]) for p in points]
    kept = [k for k, frames in enumerate(chosen) if len(frames)]
    energies = _energies(model, run[np.concatenate([chosen[k] for k in kept])])
    parts = np.split(energies, np.cumsum([len(chosen[k]) for k in kept])[:-1])
    some = reference[np.linspace(0, len(reference) - 1, min(len(reference), n_frames)).astype(int)]
    noise = np.random.default_rng(0).standard_normal(some.shape, dtype=np.float32)
    own = _energies(model, some + np.float32(getattr(model, "noise_level", 0.0)) * noise)
    return EnergyTrace(
        points[kept] * (replicas.frame_interval or 1.0),
        np.array([part.mean() for part in parts]),
        np.array([np.quantile(part, 0.05) for part in parts]),
        np.array([np.quantile(part, 0.95) for part in parts]),
        float(energies.mean()),
        float(own.mean()),
        *(float(q) for q in np.quantile(own, [0.05, 0.95])),
    )


def _energies(model: Any, frames: np.ndarray, chunk: int = 256) -> np.ndarray:
    import torch

    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    kind = {} if parameter is None else {"dtype": parameter.dtype, "device": parameter.device}
    results = []
    with torch.no_grad():
        for start in range(0, len(frames), chunk):
            positions = torch.as_tensor(np.ascontiguousarray(frames[start : start + chunk])).to(**kind)
            results.append(model.energy(positions).detach().double().cpu().numpy())
    return np.concatenate(results)
