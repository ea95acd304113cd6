"""Frame-by-frame readers and writers of the trajectory formats, all in nm and ps, in constant memory.

XTC, DCD and HDF5 go through MDTraj's file classes; what these leave unsaid (units, silent overflows,
messages printed by their C code) is settled here.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import os
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, require
from .molecule import Molecule

WRITABLE = (".xtc", ".dcd", ".h5", ".npz")
READABLE = WRITABLE + (".hdf5", ".pdb")
# XTC keeps 1/1000 nm in 32-bit integers and does not notice when they overflow.
_XTC_LIMIT = 1e6


def check_suffix(path: Path, known: tuple[str, ...], argument: str) -> str:
    """The suffix in lower case, if it is one of ``known`` and the library behind it is there."""
    suffix = path.suffix.lower()
    require(suffix in known, argument, f"a file ending in {', '.join(known[:-1])} or {known[-1]}", str(path))
    if suffix in (".h5", ".hdf5"):
        require(
            importlib.util.find_spec("tables") is not None,
            argument,
            "the package tables for HDF5 (pip install tables)",
            "an environment without it",
        )
    return suffix


@contextlib.contextmanager
def reading(path: Path, argument: str) -> Iterator[None]:
    """Turns whatever a reader raises over a damaged file into one :class:`InputError` line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{argument}: expected a sound file, got {path} with {error}") from None
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1][:160] if lines else type(error).__name__
        raise InputError(
            f"{argument}: expected a whole {path.suffix.lower()[1:].upper()} file, got {path} ({reason})"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what C code prints: the DCD plugin greets on stdout, xdrfile complains on stderr.

    Works on the descriptors of the whole process, so it is held only around single calls.
    """
    libc = ctypes.CDLL(None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    libc.fflush(None)
    saved = []
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in (1, 2):
            with contextlib.suppress(OSError):
                saved.append((fd, os.dup(fd)))
                os.dup2(null, fd)
        yield
    finally:
        libc.fflush(None)
        for fd, copy in saved:
            os.dup2(copy, fd)
            os.close(copy)
        os.close(null)


# ---- readers ---------------------------------------------------------------------------------------


class FrameReader(ABC):
    """Reads frames in order: ``read(n)`` -> (positions [n, n_atoms, 3] nm, time [n] ps or None).

    ``n_frames`` and ``n_atoms`` are known beforehand; ``molecule`` is None where the format has none.
    DCD positions come as float64, so that writing them again as DCD gives the same bits.
    """

    n_frames: int
    n_atoms: int
    molecule: Molecule | None = None
    temperature: float | None = None
    arrays: Mapping[str, np.ndarray] = {}  # the small arrays of an NPZ file

    @abstractmethod
    def read(self, n: int) -> tuple[np.ndarray, np.ndarray | None]: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _XtcReader(FrameReader):
    def __init__(self, path: Path) -> None:
        from mdtraj.formats import XTCTrajectoryFile

        with quiet():
            self._file = XTCTrajectoryFile(str(path))
            self.n_frames = len(self._file)
            self._pending = self._file.read(1)[:2]
            last = int(self._file.offsets[-1])
        self.n_atoms = self._pending[0].shape[1]
        if path.stat().st_size != _xtc_frame_end(path, last):
            self._file.close()
            raise OSError(f"{self.n_frames} whole frames and part of another")

    def read(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        head, self._pending = self._pending, (self._pending[0][n:], self._pending[1][n:])
        head = (head[0][:n], head[1][:n])
        rest = n - len(head[0])
        if rest == 0:
            return head
        with quiet():
            tail = self._file.read(rest)[:2]
        if len(tail[0]) != rest:
            raise OSError("fewer frames than its size suggests")
        return np.concatenate((head[0], tail[0])), np.concatenate((head[1], tail[1]))

    def close(self) -> None:
        self._file.close()


def _xtc_frame_end(path: Path, start: int) -> int:
    """Where the XTC frame that begins at ``start`` ends.

    Header of 52 bytes, number of atoms; up to 9 atoms as plain floats; else 36 bytes of packing parameters, whose
    last four say how many bytes follow, padded to a multiple of four.  All numbers are big-endian.
    """
    with open(path, "rb") as file:
        file.seek(start)
        head = file.read(92)
    n_atoms = int.from_bytes(head[52:56], "big")
    if n_atoms <= 9:
        return start + 56 + 12 * n_atoms
    return start + 92 + -(-int.from_bytes(head[88:92], "big") // 4) * 4


class _DcdReader(FrameReader):
    def __init__(self, path: Path) -> None:
        from mdtraj.formats import DCDTrajectoryFile

        with quiet():
            self._file = DCDTrajectoryFile(str(path))
            self.n_frames = len(self._file)
            first = self._file.read(1)[0] if self.n_frames else np.empty((0, 0, 3), np.float32)
            self._file.seek(0)
        self.n_atoms = first.shape[1]
        claimed = _dcd_frames_claimed(path)
        if claimed > self.n_frames:
            self._file.close()
            raise OSError(f"{self.n_frames} frames where its header announces {claimed}")

    def read(self, n: int) -> tuple[np.ndarray, None]:
        with quiet():
            positions = self._file.read(n)[0]
        if len(positions) != n:
            raise OSError("fewer frames than its size suggests")
        return positions.astype(np.float64) / 10.0, None

    def close(self) -> None:
        with quiet():
            self._file.close()


def _dcd_frames_claimed(path: Path) -> int:
    """The frame count in a DCD header: int32 number 2 behind the mark 84 and CORD, in either byte order."""
    with open(path, "rb") as file:
        head = file.read(12)
    order = "little" if int.from_bytes(head[:4], "little") == 84 else "big"
    return int.from_bytes(head[8:12], order)


class _Hdf5Reader(FrameReader):
    def __init__(self, path: Path) -> None:
        from mdtraj.formats import HDF5TrajectoryFile

        self._file = HDF5TrajectoryFile(str(path))
        try:
            self._nodes = self._file.root
            self.n_frames, self.n_atoms = self._nodes.coordinates.shape[:2]
            topology = self._file.topology
            self.molecule = Molecule.from_mdtraj(topology) if topology is not None else None
            self._has_time = "time" in self._nodes
        except BaseException:
            self._file.close()
            raise
        self._at = 0

    def read(self, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        part = slice(self._at, self._at + n)
        self._at += n
        positions = self._nodes.coordinates[part]
        return positions, self._nodes.time[part].astype(np.float64) if self._has_time else None

    def close(self) -> None:
        self._file.close()


class _NpzReader(FrameReader):
    """Streams ``positions`` (or ``train_positions``) out of the archive; the small arrays are read whole."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = archive.files
                self.key = "positions" if "positions" in names else "train_positions"
                if self.key not in names:
                    raise OSError("no array positions or train_positions in it")
                self.arrays = {
                    name: archive[name] for name in names if name != self.key and name in _NPZ_SMALL
                }
            self._stream = self._zip.open(self.key + ".npy")
            shape, fortran, self._dtype = _npy_header(self._stream)
            if len(shape) != 3 or shape[2] != 3 or self._dtype.kind != "f" or fortran:
                raise OSError(f"{self.key} is {self._dtype} {list(shape)}, not floats [frames, atoms, 3]")
            self._check_size(path, math.prod(shape) * self._dtype.itemsize)
            self.n_frames, self.n_atoms = shape[:2]
            self._times = frame_times(self.arrays, self.n_frames)
            self.temperature = float(self.arrays["temperature"]) if "temperature" in self.arrays else None
            self.molecule = Molecule.from_npz_arrays(self.arrays, self.n_atoms) if self.n_atoms else None
        except BaseException:
            self._zip.close()
            raise
        self._at = 0

    def _check_size(self, path: Path, n_bytes: int) -> None:
        """Memory is not reserved on the word of a header; deflate shrinks 1032 times at the very most."""
        size = self._zip.getinfo(self.key + ".npy").file_size
        if size != self._stream.tell() + n_bytes or size > 1100 * path.stat().st_size:
            raise OSError(f"{self.key} is not as large as its header says")

    def read(self, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        wanted = n * self.n_atoms * 3 * self._dtype.itemsize
        data = self._stream.read(wanted)
        if len(data) != wanted:
            raise OSError(f"{self.key} is cut short")
        part = slice(self._at, self._at + n)
        self._at += n
        positions = np.frombuffer(data, self._dtype).reshape(n, self.n_atoms, 3)
        return positions.astype(self._dtype.newbyteorder("="), copy=False), (
            None if self._times is None else self._times[part]
        )

    def close(self) -> None:
        self._stream.close()
        self._zip.close()


_NPZ_SMALL = frozenset(
    (
        "atom_names",
        "atomic_numbers",
        "residue_names",
        "residue_index",
        "bonds",
        "bead_types",
        "temperature",
        "time",
        "time_between_frames",
        "replica",
        "train_run",
        "run",
        "chain",
        "valid_positions",
    )
)


def frame_times(arrays: Mapping[str, Any], n_frames: int) -> np.ndarray | None:
    """Times in ps from ``time`` [n_frames] or ``time_between_frames`` of an NPZ file; None without either."""
    if "time" in arrays:
        times = np.asarray(arrays["time"], np.float64)
        require(
            times.shape == (n_frames,), "time", f"shape [{n_frames}], one entry per frame", list(times.shape)
        )
        return times
    if "time_between_frames" in arrays:
        return float(arrays["time_between_frames"]) * np.arange(n_frames)
    return None


def _npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise OSError(f"array format {version} is not known")


class _PdbReader(FrameReader):
    def __init__(self, path: Path) -> None:
        import mdtraj

        trajectory = mdtraj.load_pdb(str(path))
        self._positions, self._at = trajectory.xyz, 0
        self.n_frames, self.n_atoms = trajectory.n_frames, trajectory.n_atoms
        self.molecule = Molecule.from_mdtraj(trajectory.topology)

    def read(self, n: int) -> tuple[np.ndarray, None]:
        part = self._positions[self._at : self._at + n]
        self._at += n
        return part, None

    def close(self) -> None:
        self._positions = self._positions[:0]


def open_reader(path: Path, argument: str = "path") -> FrameReader:
    """The reader for the suffix of ``path``; :class:`InputError` if missing, unknown, empty or damaged."""
    suffix = check_suffix(path, READABLE, argument)
    require(path.is_file(), argument, "an existing file", str(path))
    require(path.stat().st_size > 0, argument, "a file with frames", f"the empty file {path}")
    readers: dict[str, Callable[[Path], FrameReader]] = {
        ".xtc": _XtcReader,
        ".dcd": _DcdReader,
        ".npz": _NpzReader,
        ".pdb": _PdbReader,
    }
    with reading(path, argument):
        reader = readers.get(suffix, _Hdf5Reader)(path)
    if reader.n_frames < 1 or reader.n_atoms < 1:
        reader.close()
        raise InputError(
            f"{argument}: expected at least one frame and one atom, got {reader.n_frames} frames "
            f"of {reader.n_atoms} atoms in {path}"
        )
    return reader


# ---- writers ---------------------------------------------------------------------------------------


class FrameWriter(ABC):
    """``write(positions [n, n_atoms, 3] nm, time [n] ps, replica)``, then ``close()``."""

    @abstractmethod
    def __init__(self, path: Path, molecule: Molecule, n_frames: int, extra: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def write(self, positions: np.ndarray, time: np.ndarray, replica: int) -> None: ...

    def close(self) -> None:
        self._file.close()

    _file: Any


class _XtcWriter(FrameWriter):
    def __init__(self, path: Path, molecule: Molecule, n_frames: int, extra: Mapping[str, Any]) -> None:
        from mdtraj.formats import XTCTrajectoryFile

        self._file = XTCTrajectoryFile(str(path), "w")
        self._replica, self._number = -1, 0

    def write(self, positions: np.ndarray, time: np.ndarray, replica: int) -> None:
        largest = float(np.abs(positions).max())
        require(
            largest < _XTC_LIMIT,
            "positions",
            f"coordinates below {_XTC_LIMIT:g} nm for XTC (or another format)",
            f"{largest:g} nm in replica {replica}",
        )
        start = self._number if replica == self._replica else 0
        self._replica, self._number = replica, start + len(positions)
        self._file.write(
            np.ascontiguousarray(positions, np.float32),
            time=time.astype(np.float32),
            step=np.arange(start, self._number, dtype=np.int32),
        )


class _DcdWriter(FrameWriter):
    def __init__(self, path: Path, molecule: Molecule, n_frames: int, extra: Mapping[str, Any]) -> None:
        from mdtraj.formats import DCDTrajectoryFile

        with quiet():
            self._file = DCDTrajectoryFile(str(path), "w")

    def write(self, positions: np.ndarray, time: np.ndarray, replica: int) -> None:
        self._file.write((positions.astype(np.float64) * 10.0).astype(np.float32))

    def close(self) -> None:
        with quiet():
            self._file.close()


class _Hdf5Writer(FrameWriter):
    def __init__(self, path: Path, molecule: Molecule, n_frames: int, extra: Mapping[str, Any]) -> None:
        from mdtraj.formats import HDF5TrajectoryFile

        self._file = HDF5TrajectoryFile(str(path), "w")
        self._file.topology = molecule.to_mdtraj()
        self._file.application = "diffmd-fast"

    def write(self, positions: np.ndarray, time: np.ndarray, replica: int) -> None:
        self._file.write(np.ascontiguousarray(positions, np.float32), time=time.astype(np.float32))


class _NpzWriter(FrameWriter):
    """Positions go straight into the archive, uncompressed: noise in the low bits does not compress."""

    def __init__(self, path: Path, molecule: Molecule, n_frames: int, extra: Mapping[str, Any]) -> None:
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._small = {**molecule.to_npz_arrays(), **{key: np.asarray(value) for key, value in extra.items()}}
        self._time, self._replica = np.empty(n_frames), np.empty(n_frames, np.int32)
        self._at = 0
        self._stream = self._file.open("positions.npy", "w", force_zip64=True)
        shape = (n_frames, molecule.n_atoms, 3)
        np.lib.format.write_array_header_1_0(
            self._stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )

    def write(self, positions: np.ndarray, time: np.ndarray, replica: int) -> None:
        part = slice(self._at, self._at + len(positions))
        self._stream.write(np.ascontiguousarray(positions, "<f4").tobytes())
        self._time[part], self._replica[part] = time, replica
        self._at = part.stop

    def close(self) -> None:
        if not self._stream.closed:
            self._stream.close()
            if self._at == len(self._time):
                for name, array in {**self._small, "time": self._time, "replica": self._replica}.items():
                    with self._file.open(name + ".npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        self._file.close()


def open_writer(
    path: Path, suffix: str, molecule: Molecule, n_frames: int, extra: Mapping[str, Any]
) -> FrameWriter:
    """The writer for ``suffix``.  ``extra``: further small arrays for formats that can hold them (NPZ)."""
    writers = {".xtc": _XtcWriter, ".dcd": _DcdWriter, ".h5": _Hdf5Writer, ".npz": _NpzWriter}
    return writers[suffix](path, molecule, n_frames, extra)


def frame_chunk(n_atoms: int, n_bytes: int = 1 << 24) -> int:
    """How many frames of ``n_atoms`` to hold at a time."""
    return max(1, math.ceil(n_bytes / (24 * n_atoms)))
