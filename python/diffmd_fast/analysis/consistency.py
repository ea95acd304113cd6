"""Three faces of one model: frames drawn by reverse diffusion, the simulated ensemble, and the snapshots.

A diffusion model's score is used at every noise level when it generates frames and at the smallest one alone when
it runs as dynamics.  Nothing forces the two to agree: the small-noise score can be wrong where generation is right
(Plainer et al., arXiv 2506.17139, measured it for alanine dipeptide) and the other way round.  Where
`reverse_diffusion` turns bonds by the energies of each level, a wrong share of small noise shows in both faces, and
against the snapshots.  `consistency` measures all of them against one another, every divergence with its sampling
floor (`divergence.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from ..errors import InputError, check_integer, require
from .autocorrelation import dihedral_autocorrelation
from .comparison import Dihedrals, atom_labels, bond_label, check_same_molecule, choose_dihedrals
from .divergence import (
    SamplingFloor,
    Units,
    histogram_floor,
    independent_units,
    jensen_shannon,
    resampling_units,
    sampling_floor,
)
from .free_energy import (
    RAMACHANDRAN_BASINS,
    TORSION_BASINS,
    periodic_histogram,
    ramachandran_basin,
    shares_of_units,
    torsion_basin,
)
from .geometry import bond_lengths, check_frames, dihedral_angles
from .replicas import find_replicas
from .verdict import BAD, CAUTION, GOOD, MAX_EXCESS

if TYPE_CHECKING:
    from ..io import Molecule, Snapshots

GENERATED, SIMULATED, SNAPSHOTS, REFERENCE = "generated", "simulated", "snapshots", "reference"
EQUILIBRATION = 0.1  # of a run, left out of the simulated ensemble: the start carries no noise of the model's level
BATCH = 256  # frames generated together


@dataclass(frozen=True)
class ReferenceHistogram:
    """Probabilities of the surface's dihedrals on a periodic grid over [-pi, pi), with standard errors.

    probability: [bins] or [bins, bins], summing to 1.  error: of the same shape; zeros where nothing is known of it.
    """

    probability: np.ndarray
    error: np.ndarray

    def __post_init__(self) -> None:
        p, error = self.probability, self.error
        good = p.ndim in (1, 2) and p.size > 1 and len(set(p.shape)) == 1 and p.shape == error.shape
        require(good, "reference", "probability [bins] or [bins, bins] and errors of that shape",
                f"shapes {list(p.shape)} and {list(error.shape)}")
        for values in (p, error):
            require(bool(np.isfinite(values).all() and (values >= 0).all()), "reference",
                    "probabilities and errors that are finite and not negative", "others")
        require(abs(p.sum() - 1) < 1e-3, "reference", "probabilities that sum to 1", f"{p.sum():.6g}")


def read_reference(path: str | os.PathLike) -> ReferenceHistogram:
    """A weighted histogram from an NPZ file: ``probability`` [bins] or [bins, bins], ``probability_err`` if known.

    ``edges_deg``, where the file has it, must be even bins from -180 to 180 degrees.  Raises `InputError`.
    """
    require(Path(path).is_file(), "reference", "an existing .npz file", str(path))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"reference: expected an .npz file, got {str(path)!r} ({reason})") from None
    require("probability" in arrays, "reference", "an array named probability", ", ".join(arrays) or "no array")
    p = np.asarray(arrays["probability"], dtype=np.float64)
    if "edges_deg" in arrays:
        even = np.linspace(-180, 180, len(p) + 1)
        edges = arrays["edges_deg"]
        require(edges.shape == even.shape and bool(np.allclose(edges, even)), "reference",
                f"edges_deg from -180 to 180 in {len(p)} even bins", f"{edges.ravel()[:2]} ... {edges.ravel()[-1:]}")
    return ReferenceHistogram(p, np.asarray(arrays.get("probability_err", np.zeros_like(p)), dtype=np.float64))


@dataclass(frozen=True)
class Agreement:
    """Two faces compared in one set of dihedrals: divergence in nats and what sampling alone would give."""

    first: str
    second: str
    dihedrals: tuple[str, ...]
    divergence: float
    floor: SamplingFloor

    @property
    def excess(self) -> float:
        """Divergence above its floor."""
        return self.divergence - self.floor.mean

    @property
    def level(self) -> str:
        """As in a report: within what one pair of samples in twenty exceeds, a small margin above, or more."""
        if self.divergence <= self.floor.quantile_95:
            return GOOD
        return CAUTION if self.excess <= MAX_EXCESS else BAD


@dataclass(frozen=True)
class Consistency:
    """What `consistency` found.

    frames: of each face.  agreements: every pair of faces for the surface and for every dihedral.
    bonds: label, then (mean, standard deviation) in nm of each face.  populations: of each surface (or dihedral),
    basin by basin, (share, standard error) of each face.  histograms: of the surface, for the figure.
    lost: replicas lost of ``n_replicas``.  settings: of the run and the generation.
    """

    molecule: Molecule
    dihedrals: Dihedrals
    bins: int
    frames: dict[str, int]
    agreements: list[Agreement]
    bonds: dict[str, dict[str, tuple[float, float]]]
    populations: dict[str, dict[str, dict[str, tuple[float, float]]]]
    histograms: dict[str, np.ndarray]
    n_replicas: int
    lost: int
    settings: dict[str, Any]

    @property
    def level(self) -> str:
        """The worst of all agreements; lost replicas are a caution at least."""
        levels = [agreement.level for agreement in self.agreements] + [CAUTION if self.lost else GOOD]
        return next(level for level in (BAD, CAUTION, GOOD) if level in levels)

    def find(self, first: str, second: str, dihedrals: Sequence[str] | None = None) -> Agreement:
        """One agreement by its faces, in either order; default the surface's."""
        wanted = self.dihedrals.surface if dihedrals is None else tuple(dihedrals)
        for agreement in self.agreements:
            if {agreement.first, agreement.second} == {first, second} and agreement.dihedrals == wanted:
                return agreement
        raise InputError(f"dihedrals: expected a comparison that was made, got {first}, {second}, {wanted}")


def consistency(
    model: Any,
    snapshots: Snapshots,
    *,
    reference: ReferenceHistogram | None = None,
    n_replicas: int = 128,
    n_steps: int = 20_000,
    save_every: int = 100,
    diffusion: Any = 0.002,
    time_step: float | None = None,
    n_generated: int = 4096,
    noise_steps: int = 400,
    integrator: str = "euler-maruyama",
    dihedrals: Sequence | None = None,
    bins: int = 64,
    seed: int = 0,
    n_pairs: int = 100,
    progress: bool = True,
) -> Consistency:
    """Compare generated frames, the simulated ensemble and the snapshots, pair by pair.

    All three belong to the model's smallest noise level sigma: snapshots are blurred by it (fixed seed), as the
    density that is simulated is.  A run starts from snapshots drawn evenly from every occupied basin, in the
    proportions of the snapshots but at least one each; its first tenth is left out.

    Args:
        model: with ``energy_and_score``, ``noise_level``, ``noise_levels``, ``n_atoms``, ``temperature``.
        snapshots: positions [frames, atoms, 3] nm of the model's atoms, with their molecule.
        reference: weighted histogram of the surface's dihedrals, from :func:`read_reference`; None: none.
        n_replicas, n_steps, save_every: of the run.
        diffusion, time_step: nm^2/ps, a number or one per atom, and ps; the time step's default is D dt L = 0.25.
        n_generated: frames drawn by reverse diffusion, in ``noise_steps`` steps.
        integrator: of the run, by name.
        dihedrals: as for :func:`report`; the first two make the surface.
        bins: per dihedral (``reference`` is compared on its own bins).
        seed: of starts, noise and bootstrap.
        n_pairs: bootstrap pairs behind each floor.
        progress: show bars.

    Raises:
        InputError: bad arguments, before anything is computed; frames of another molecule.
    """
    from ..sampling import Sampler, Spring, choose_spring, reverse_diffusion

    for name, value, least, most in (("n_replicas", n_replicas, 1, 2**24), ("n_steps", n_steps, 10, 2**56),
                                     ("save_every", save_every, 1, None), ("n_generated", n_generated, 8, 2**24),
                                     ("noise_steps", noise_steps, 1, 2**20), ("bins", bins, 2, 1024),
                                     ("seed", seed, 0, 2**64 - 1), ("n_pairs", n_pairs, 20, 2**20)):
        check_integer(value, name, minimum=least, maximum=most)
    spring = None if time_step is None else Spring.from_time_step(time_step, diffusion)
    require(save_every <= 0.9 * n_steps, "save_every", f"at most {int(0.9 * n_steps)} of {n_steps} steps", save_every)
    frames, chosen = _check_frames(model, snapshots, dihedrals)
    order = find_replicas(len(frames), snapshots.replica, None, "snapshots")
    if reference is not None:
        require(reference.probability.ndim == len(chosen.surface), "reference",
                f"a histogram of {len(chosen.surface)} dihedral(s), {', '.join(chosen.surface)}",
                f"{reference.probability.ndim} dimensions")
    start = _as_tensor(model, frames[_spread_over_basins(dihedral_angles(frames, chosen.quadruples), chosen,
                                                         n_replicas, seed)])
    if spring is None:
        spring = choose_spring(model, start, diffusion)
    sampler = Sampler(model, spring, seed=seed, integrator=integrator)
    generated = reverse_diffusion(model, n_generated, seed=seed, n_steps=noise_steps, batch_size=BATCH,
                                  progress=progress)
    trajectory = sampler.run(start, n_steps, save_every, progress=progress)
    blurred = _blurred(frames, getattr(model, "noise_level", 0.0) or 0.0)
    simulated = _by_replica(trajectory.positions)
    require(bool(simulated), "model", "a run in which some replica lasts a tenth of its steps",
            f"all {n_replicas} lost before (the first: {trajectory.lost[0].reason if trajectory.lost else 'none'})")
    faces = [
        _Face(GENERATED, [generated.double().cpu().numpy()], chosen),
        _Face(SIMULATED, simulated, chosen),
        _Face(SNAPSHOTS, order.split(blurred), chosen),
    ]
    settings = {
        "n_replicas": n_replicas, "n_steps": n_steps, "save_every": save_every, "time_step_ps": spring.time_step,
        "diffusion_nm2_per_ps": spring.diffusion, "integrator": integrator, "noise_steps": noise_steps,
        "noise_level_nm": getattr(model, "noise_level", None), "seed": seed, "bins": bins,
        "d_dt_l": trajectory.stability.number, "widening_of_the_stiffest_variance": trajectory.stability.inflation,
    }
    return _compare_faces(faces, snapshots.molecule, chosen, reference, bins, seed, n_pairs, progress,
                          n_replicas=n_replicas, lost=len(trajectory.lost), settings=settings)


def _check_frames(model: Any, snapshots: Snapshots, dihedrals: Sequence | None) -> tuple[np.ndarray, Dihedrals]:
    frames = check_frames(snapshots.positions, "snapshots")
    n_atoms = getattr(model, "n_atoms", None)
    require(frames.shape[1] == n_atoms, "snapshots", f"the model's {n_atoms} atoms", f"{frames.shape[1]} atoms")
    if getattr(model, "molecule", None) is not None:
        check_same_molecule(snapshots, type(snapshots)(frames, model.molecule))
    return frames - frames.mean(1, keepdims=True), choose_dihedrals(snapshots.molecule, dihedrals)


def _as_tensor(model: Any, frames: np.ndarray) -> Any:
    """On the model's device, in its dtype."""
    import torch

    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    kind = {"dtype": torch.float32} if parameter is None else {"dtype": parameter.dtype, "device": parameter.device}
    return torch.as_tensor(np.ascontiguousarray(frames)).to(**kind)


def _basins(chosen: Dihedrals) -> dict[str, tuple[Any, list[int], tuple[str, ...]]]:
    """For each surface or dihedral: how to classify, which columns of the angles, names of the basins."""
    if chosen.is_ramachandran:
        return {", ".join(chosen.surface): (ramachandran_basin, chosen.surface_columns, RAMACHANDRAN_BASINS)}
    return {name: (lambda angles: torsion_basin(angles[:, 0]), [column], TORSION_BASINS)
            for name, column in zip(chosen.surface, chosen.surface_columns)}


def _spread_over_basins(angles: np.ndarray, chosen: Dihedrals, n: int, seed: int) -> np.ndarray:
    """Frame numbers [n]: one of each occupied basin (as far as n goes), the rest evenly over all, basin by basin."""
    label = np.zeros(len(angles), dtype=np.int64)
    for classify, columns, names in _basins(chosen).values():
        label = label * len(names) + classify(angles[:, columns])
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(angles))
    order = order[np.argsort(label[order], kind="stable")]
    first = order[np.unique(label[order], return_index=True)[1]]
    if n <= len(first):
        return rng.choice(first, n, replace=False)
    even = np.linspace(0, len(order), n, endpoint=False) + 0.5 * len(order) / n
    picked = order[np.minimum(even.astype(np.int64), len(order) - 1)]
    for frame in first:  # a basin so rare that the even draw passed it by takes the place of a frame of the largest
        if not (label[picked] == label[frame]).any():
            crowded = np.bincount(label[picked]).argmax()
            picked[np.flatnonzero(label[picked] == crowded)[0]] = frame
    return picked


def _blurred(frames: np.ndarray, noise_level: float) -> np.ndarray:
    return frames + noise_level * np.random.default_rng(0).standard_normal(frames.shape)


def _by_replica(positions: np.ndarray) -> list[np.ndarray]:
    """Frames of each replica after the first tenth of the run and before it was lost, without empty ones."""
    kept = positions[max(1, int(EQUILIBRATION * len(positions))) :]
    whole = np.isfinite(kept).all(axis=(2, 3))
    return [kept[whole[:, r], r] for r in range(kept.shape[1]) if whole[:, r].any()]


class _Face:
    """Frames of one face, replica by replica (generated ones are all one, without order), and their dihedrals."""

    def __init__(self, name: str, replicas: list[np.ndarray], chosen: Dihedrals):
        self.name, self.replicas = name, replicas
        self.angles = [dihedral_angles(frames, chosen.quadruples) for frames in replicas]
        self.n_frames = sum(map(len, replicas))
        self._correlation: dict[int, Any] = {}

    def units(self, columns: Sequence[int]) -> Units:
        """The dihedrals ``columns`` cut into independent pieces."""
        if self.name == GENERATED:
            return resampling_units([self.together(columns)], 0.5)
        for k in columns:
            if k not in self._correlation:
                self._correlation[k] = dihedral_autocorrelation([angles[:, k] for angles in self.angles])
        replicas = [angles[:, list(columns)] for angles in self.angles]
        return independent_units(replicas, [self._correlation[k] for k in columns])

    def together(self, columns: Sequence[int]) -> np.ndarray:
        return np.concatenate(self.angles)[:, list(columns)]


def _compare_faces(faces: list[_Face], molecule: Molecule, chosen: Dihedrals, reference: ReferenceHistogram | None,
                   bins: int, seed: int, n_pairs: int, progress: bool, **rest: Any) -> Consistency:
    sets = {chosen.surface: chosen.surface_columns}
    sets |= {(name,): [column] for column, name in enumerate(chosen.names)}
    agreements = []
    with _bar(progress, 3 * len(sets) + (3 if reference else 0)) as bar:
        for names, columns in sets.items():
            units = {face.name: face.units(columns) for face in faces}
            for first, second in combinations(units, 2):
                agreements.append(_agreement(first, second, names, units, bins, seed, n_pairs))
                bar.update(1)
            if names == chosen.surface and reference is not None:
                for face in units:
                    agreements.append(_against(face, names, units[face], reference, seed, n_pairs))
                    bar.update(1)
    histograms = {face.name: periodic_histogram(face.together(chosen.surface_columns), bins) for face in faces}
    if reference is not None:
        histograms[REFERENCE] = reference.probability
    return Consistency(molecule, chosen, bins, {face.name: face.n_frames for face in faces}, agreements,
                       _bonds(faces, molecule), _populations(faces, chosen), histograms, **rest)


def _bonds(faces: list[_Face], molecule: Molecule) -> dict[str, dict[str, tuple[float, float]]]:
    labels = atom_labels(molecule)
    lengths = {face.name: bond_lengths(np.concatenate(face.replicas), molecule.bonds) for face in faces}
    return {bond_label(labels, i, j): {face: (float(values[:, k].mean()), float(values[:, k].std()))
                                       for face, values in lengths.items()}
            for k, (i, j) in enumerate(molecule.bonds)}


def _populations(faces: list[_Face], chosen: Dihedrals) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    result: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for title, (classify, columns, names) in _basins(chosen).items():
        units = {face.name: face.units(columns) for face in faces}
        found = {name: shares_of_units(of.with_values(classify(of.values)).pieces(), len(names))
                 for name, of in units.items()}
        result[title] = {basin: {face: parts[k] for face, parts in found.items()}
                         for k, basin in enumerate(names)}
    return result


def _agreement(first: str, second: str, names: tuple[str, ...], units: dict[str, Units], bins: int, seed: int,
               n_pairs: int) -> Agreement:
    """The floor's density is that of whichever has correlated frames: the run, else the snapshots."""
    run, other = units[first], units[second]
    value = jensen_shannon(periodic_histogram(run.values, bins), periodic_histogram(other.values, bins))
    if first == GENERATED:
        run, other = other, run
    return Agreement(first, second, names, value,
                     sampling_floor(run, other, bins, divergence=value, n_pairs=n_pairs, seed=seed))


def _against(face: str, names: tuple[str, ...], units: Units, reference: ReferenceHistogram, seed: int,
             n_pairs: int) -> Agreement:
    bins = len(reference.probability)
    value = jensen_shannon(periodic_histogram(units.values, bins), reference.probability)
    return Agreement(face, REFERENCE, names, value,
                     histogram_floor(units, reference.probability, reference.error, divergence=value,
                                     n_pairs=n_pairs, seed=seed))


def _bar(shown: bool, total: int):
    from tqdm import tqdm

    return tqdm(total=total, desc="divergences and floors", disable=not shown, dynamic_ncols=True)
