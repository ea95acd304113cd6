"""Reading structures and trajectories, ours and others', into plain arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, require
from .formats import READABLE, check_suffix, frame_chunk, open_reader, reading
from .molecule import Molecule
from .sidecar import beside, layout, load_sidecar, load_sidecar_of_set, regular_times, split_by_time

# Names under which the reference data and our own files keep the independent runs apart.
_REPLICA_KEYS = ("replica", "train_run", "run", "chain")


@dataclass(frozen=True)
class Snapshots:
    """Frames of one molecule.

    ``positions``: float32 [n_frames, n_atoms, 3], nm, as they stand in the file.  ``molecule``: its atoms.
    ``temperature``: K.  ``replica``: int32 [n_frames], which independent run a frame is from.  ``time``:
    float64 [n_frames], ps, within its replica.  ``valid_positions``: the frames the file sets apart for
    validation.  ``metadata``: the sidecar of a trajectory of ours.  All but the first two may be None.
    """

    positions: np.ndarray
    molecule: Molecule
    temperature: float | None = None
    replica: np.ndarray | None = None
    time: np.ndarray | None = None
    valid_positions: np.ndarray | None = None
    metadata: dict[str, Any] | None = None

    @property
    def n_frames(self) -> int:
        return self.positions.shape[0]

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[1]


def read_snapshots(
    path: str | os.PathLike | Iterable[str | os.PathLike],
    topology: str | os.PathLike | Molecule | None = None,
    atoms: str = "all",
    argument: str = "path",
) -> Snapshots:
    """Read frames from an NPZ, XTC, DCD, HDF5 or PDB file, or from several, one replica each.

    NPZ: ``positions`` [frames, atoms, 3] in nm, or ``train_positions`` and ``valid_positions``, with the
    names of :meth:`Molecule.from_npz_arrays`; never unpickled.  XTC and DCD hold no atoms: they come from
    ``topology`` (any structure file MDTraj reads, or a :class:`Molecule`), else from the sidecar, else from
    a ``.pdb`` of the same stem.  ``traj.xtc`` also stands for the set ``traj_r0000.xtc``, ... that one run
    wrote.  ``atoms``: "all", "heavy" or an MDTraj selection.

    Raises :class:`InputError`, under the name ``argument``, ``topology`` or ``atoms``, for files that are
    missing, unknown, empty, truncated or damaged, positions that are not finite, atom counts that do not
    match, and selections that are wrong or empty.
    """
    single = isinstance(path, (str, os.PathLike))
    paths = _expand(Path(path), argument) if single else [Path(one) for one in path]
    require(bool(paths), argument, "at least one file", "none")
    parts = [_read_file(one, topology, atoms, argument) for one in paths]
    return parts[0] if len(parts) == 1 else _joined(parts, paths, argument)


def _expand(path: Path, argument: str) -> list[Path]:
    """The file itself, or the files of the set that a run wrote under that common name."""
    if not path.exists():
        sidecar = load_sidecar_of_set(path, argument)
        if sidecar is not None:
            return [path.with_name(name) for name in sidecar["files"] if name is not None]
    return [path]


def _read_file(path: Path, topology: Any, atoms: str, argument: str) -> Snapshots:
    suffix = check_suffix(path, READABLE, argument)
    given = load_topology(topology) if topology is not None else None
    sidecar = load_sidecar(path, argument) if path.is_file() else None
    with open_reader(path, argument) as reader:
        molecule = given or (Molecule.from_dict(sidecar["molecule"]) if sidecar is not None else None)
        molecule = molecule or reader.molecule or _molecule_beside(path, suffix)
        require(
            molecule.n_atoms == reader.n_atoms,
            "topology",
            f"{reader.n_atoms} atoms, as in {path}",
            f"{molecule.n_atoms} atoms",
        )
        indices = molecule.atom_indices(atoms)
        positions, times = _read_frames(path, reader, indices, argument)
        arrays, temperature = reader.arrays, reader.temperature
    n_frames = len(positions)
    replica = _replica_of_arrays(arrays, n_frames)
    if sidecar is not None:
        replica, times = _from_sidecar(sidecar, path, n_frames, times, argument)
        temperature = sidecar["temperature"]
    elif replica is None and times is not None and (np.diff(times) < 0).any():
        replica = split_by_time(times)
    return Snapshots(
        positions=positions,
        molecule=molecule if len(indices) == molecule.n_atoms else molecule.select(indices),
        temperature=temperature,
        replica=replica,
        time=None if times is None else np.asarray(times, np.float64),
        valid_positions=_valid_positions(arrays, indices, molecule.n_atoms, path, argument),
        metadata=sidecar,
    )


def read_forces(path: str | os.PathLike, shape: tuple[int, ...], argument: str = "forces") -> np.ndarray:
    """The array ``forces`` of an NPZ file, kJ/mol/nm as float64, of the shape [frames, atoms, 3] that is given.

    Raises :class:`InputError` for a file that is missing, damaged or of another format, an array that is not there or
    of another shape or kind, and values that are not finite.
    """
    path = Path(path)
    require(path.suffix.lower() == ".npz", argument, "a file ending in .npz", str(path))
    require(path.is_file(), argument, "an existing file", str(path))
    with reading(path, argument), np.load(path, allow_pickle=False) as archive:
        forces = archive["forces"] if "forces" in archive.files else None
    require(forces is not None, argument, "an NPZ file with an array forces", f"{path} without one")
    require(forces.shape == tuple(shape) and forces.dtype.kind == "f", argument,
            f"floats {list(shape)}, one force a frame and atom", f"{forces.dtype} {list(forces.shape)} in {path}")
    require(bool(np.isfinite(forces).all()), argument, "finite values", f"NaN or infinity in {path}")
    return forces.astype(np.float64)


def load_topology(topology: str | os.PathLike | Molecule) -> Molecule:
    """The molecule of a structure file (PDB, PRMTOP, ... through MDTraj; NPZ), or the Molecule given."""
    if isinstance(topology, Molecule):
        return topology
    path = Path(topology)
    require(path.is_file(), "topology", "an existing file", str(path))
    if path.suffix.lower() in (".npz", ".h5", ".hdf5"):
        with open_reader(path, "topology") as reader:
            require(reader.molecule is not None, "topology", "a file with atoms", str(path))
            return reader.molecule
    import mdtraj

    with reading(path, "topology"):
        return Molecule.from_mdtraj(mdtraj.load_topology(str(path)))


def _molecule_beside(path: Path, suffix: str) -> Molecule:
    for candidate in beside(path, ".pdb"):
        if candidate.is_file():
            return load_topology(candidate)
    raise InputError(
        f"topology: expected a structure file (PDB) for {path.name}, because {suffix[1:].upper()} "
        f"files hold no atoms, got none"
    )


def _read_frames(
    path: Path, reader: Any, indices: np.ndarray, argument: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """All frames, only the atoms wanted, a chunk at a time: never twice the file in memory."""
    positions = np.empty((reader.n_frames, len(indices), 3), np.float32)
    every = len(indices) == reader.n_atoms
    times: list[np.ndarray] = []
    chunk = frame_chunk(reader.n_atoms)
    for start in range(0, reader.n_frames, chunk):
        stop = min(reader.n_frames, start + chunk)
        with reading(path, argument):
            part, part_times = reader.read(stop - start)
        positions[start:stop] = part if every else part[:, indices]
        _check_finite(positions[start:stop], start, path, argument)
        if part_times is not None:
            times.append(part_times)
    return positions, np.concatenate(times) if times else None


def _check_finite(positions: np.ndarray, start: int, path: Path, argument: str) -> None:
    good = np.isfinite(positions).all(axis=(1, 2))
    if not good.all():
        raise InputError(
            f"{argument}: expected finite positions, got NaN or infinity in frame "
            f"{start + int(np.argmin(good))} of {path}"
        )


def _replica_of_arrays(arrays: Mapping[str, Any], n_frames: int) -> np.ndarray | None:
    for key in _REPLICA_KEYS:
        if key in arrays and arrays[key].shape == (n_frames,) and arrays[key].dtype.kind in "iu":
            return arrays[key].astype(np.int32)
    return None


def _valid_positions(
    arrays: Mapping[str, Any], indices: np.ndarray, n_atoms: int, path: Path, argument: str
) -> np.ndarray | None:
    if "valid_positions" not in arrays:
        return None
    valid = arrays["valid_positions"]
    require(
        valid.ndim == 3 and valid.shape[1:] == (n_atoms, 3) and len(valid) > 0 and valid.dtype.kind == "f",
        argument,
        f"valid_positions of shape [frames, {n_atoms}, 3]",
        f"{valid.dtype} {list(valid.shape)} in {path}",
    )
    valid = valid[:, indices].astype(np.float32)
    _check_finite(valid, 0, path, argument)
    return valid


def _from_sidecar(
    sidecar: Mapping[str, Any], path: Path, n_frames: int, times: np.ndarray | None, argument: str
) -> tuple[np.ndarray, np.ndarray | None]:
    parts = layout(sidecar, path.name)
    expected = sum(count for _, count in parts)
    require(
        expected == n_frames,
        argument,
        f"{expected} frames in {path}, as its .json file says",
        f"{n_frames} (truncated, or interrupted while written: convert the restart file again)",
    )
    replica = np.concatenate([np.full(count, index, np.int32) for index, count in parts])
    regular = [regular_times(sidecar, count) for _, count in parts]
    if all(part is not None for part in regular):
        times = np.concatenate(regular)
    return replica, times


def _joined(parts: list[Snapshots], paths: list[Path], argument: str) -> Snapshots:
    """One replica per file; numbers come from the sidecar where all files are of one set."""
    for part, path in zip(parts, paths):
        require(
            part.molecule == parts[0].molecule,
            argument,
            f"files of one molecule, that of {paths[0]}",
            f"another in {path}",
        )
    metadata = parts[0].metadata
    one_set = (
        metadata is not None and metadata["per_replica"] and all(part.metadata == metadata for part in parts)
    )
    replica = np.concatenate(
        [
            part.replica if one_set else np.full(part.n_frames, number, np.int32)
            for number, part in enumerate(parts)
        ]
    )

    def together(field: str) -> np.ndarray | None:
        values = [getattr(part, field) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    temperatures = {part.temperature for part in parts}
    return Snapshots(
        positions=np.concatenate([part.positions for part in parts]),
        molecule=parts[0].molecule,
        temperature=temperatures.pop() if len(temperatures) == 1 else None,
        replica=replica,
        time=together("time"),
        valid_positions=together("valid_positions"),
        metadata=metadata if one_set else None,
    )
