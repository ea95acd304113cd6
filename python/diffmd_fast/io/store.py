"""The restart file: every saved frame of a run, exactly as it was, in one file that only grows.

Layout (little endian): magic ``DMDSTORE``, version u32, length u32 and CRC32 of the header, the header
(UTF-8 JSON); then one record per saved frame: step i64, alive u8[n_replicas], positions
[n_replicas, n_atoms, 3] in the run's dtype, velocities likewise where the header says so (such a file is of
version 2, others of version 1), and the CRC32 of all that.  A record is written by one system
call after the last whole one, so a process killed at any moment leaves whole records and at most one torn
at the end, which is recognised by its length or checksum and left out.

The noise is a pure function of (seed, replica, step, atom): positions, velocities and step are the whole state, and
a run continued from the last record is the same bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, check_integer, require

MAGIC = b"DMDSTORE"
VERSION = 2  # the newest that is read
SYNC_SECONDS = 5.0
_PREFIX = struct.Struct("<8sIII")
_DTYPES = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}
_MAX_HEADER = 1 << 26
_BLOCK_BYTES = 1 << 25


class TrajectoryStore:
    """An open restart file; made by :meth:`create` or :meth:`open`, closed by ``with`` or :meth:`close`.

    ``header``: the run's parameters, a JSON dict with at least ``n_replicas``, ``n_atoms`` and ``dtype``;
    ``velocities`` true if records have them.
    ``first_frame``: number of the first record within the whole run; above 0 after :meth:`shrink`.
    ``n_frames``: whole records in the file.
    """

    def __init__(
        self, path: Path, fd: int, header: dict[str, Any], first_frame: int, offset: int, writable: bool
    ) -> None:
        self.path, self.header, self.first_frame = path, header, first_frame
        self.n_replicas, self.n_atoms = header["n_replicas"], header["n_atoms"]
        self.dtype = _DTYPES[header["dtype"]].newbyteorder("=")
        self.has_velocities = bool(header.get("velocities"))
        self._record = _record_dtype(header)
        self._fd, self._offset, self._writable = fd, offset, writable
        self._synced = time.monotonic()
        self._map: np.memmap | None = None
        self._previous: tuple[int, np.ndarray] | None = None
        self.n_frames = self._count_whole_records()
        if writable:
            os.ftruncate(fd, self._end)
        if self.n_frames:
            step, _, alive = self.last()
            self._previous = (step, alive)

    # ---- opening and closing -----------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | os.PathLike, header: Mapping[str, Any], overwrite: bool = False
    ) -> TrajectoryStore:
        """Start a new file and open it for appending.

        ``header`` needs ``n_replicas``, ``n_atoms`` (at least 1) and ``dtype`` ("float32" or "float64"); all
        else is the caller's.  Raises :class:`InputError` for a bad header, a missing folder, an existing
        file without ``overwrite``, and one that another process is writing.
        """
        target = Path(path)
        checked = _checked_header(header)
        require(target.parent.is_dir(), "path", "a file in an existing folder", str(target))
        require(not target.is_dir(), "path", "a file name", f"the folder {target}")
        if target.exists():
            require(overwrite, "path", "a new restart file (or overwrite=True)", f"the existing {target}")
            old = os.open(target, os.O_RDWR)
            try:
                _lock(old, target, "path")
            finally:
                os.close(old)
        fd = _write_new(target, checked, 0, b"")
        return cls(target, fd, checked, 0, _header_size(checked, 0), True)

    @classmethod
    def open(cls, path: str | os.PathLike, append: bool = False, argument: str = "path") -> TrajectoryStore:
        """Open an existing file for reading, or with ``append`` for going on after its last whole record.

        Raises :class:`InputError`, under the name ``argument``, for a file that is missing, is no restart
        file, was cut inside its header, was edited, comes from a newer version, or is being written.
        """
        source = Path(path)
        require(source.is_file(), argument, "an existing restart file", str(source))
        try:
            fd = os.open(source, os.O_RDWR if append else os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"{argument}: expected a readable restart file, got {error.strerror} for {source}"
            ) from None
        try:
            if append:
                _lock(fd, source, argument)
            header, first_frame, offset = _read_header(fd, source, argument)
            return cls(source, fd, header, first_frame, offset, append)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Bring everything to disk and close; a second call does nothing."""
        if self._fd >= 0:
            if self._writable:
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd, self._map = -1, None

    def __enter__(self) -> TrajectoryStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- writing -----------------------------------------------------------------------------------

    def append(self, step: int, positions: np.ndarray, alive: np.ndarray | None = None,
               velocities: np.ndarray | None = None) -> None:
        """Add the frame of ``step``: positions [n_replicas, n_atoms, 3] in the file's dtype, in nm.

        ``alive`` [n_replicas] says which replicas are good (default: all); a replica once lost stays lost.
        ``velocities`` in nm/ps, like the positions, are for files that have them and needed there.
        Steps increase.  Nothing is written if a check fails; a failed write is undone.
        """
        require(
            self._fd >= 0 and self._writable,
            "store",
            "a restart file open for appending",
            "one closed or open for reading",
        )
        step = check_integer(step, "step", minimum=0)
        data = self._array("positions", positions)
        require((velocities is not None) == self.has_velocities, "velocities",
                "some in a file that has them, none in one that has not", "none" if velocities is None else "some")
        state = np.ones(self.n_replicas, bool) if alive is None else np.asarray(alive)
        require(state.shape == (self.n_replicas,), "alive", f"shape [{self.n_replicas}]", list(state.shape))
        state = state.astype(bool)
        bad = np.flatnonzero(state & ~np.isfinite(data).all(axis=(1, 2)))
        require(
            bad.size == 0,
            "positions",
            "finite values in every replica that is alive",
            f"NaN or infinity in replica {bad[0] if bad.size else ''} at step {step}",
        )
        if self._previous is not None:
            require(step > self._previous[0], "step", f"more than the last step {self._previous[0]}", step)
            back = np.flatnonzero(state & ~self._previous[1])
            require(back.size == 0, "alive", "lost replicas to stay lost", f"replica {back[:1]} alive again")
        body = struct.pack("<q", step) + state.astype(np.uint8).tobytes() + data.tobytes()
        if velocities is not None:
            body += self._array("velocities", velocities).tobytes()
        self._write(body + struct.pack("<I", zlib.crc32(body)))
        self._previous = (step, state)

    def _array(self, name: str, values: np.ndarray) -> np.ndarray:
        """Checked, and as the file holds it."""
        data, shape = np.asarray(values), (self.n_replicas, self.n_atoms, 3)
        require(data.shape == shape, name, f"shape {list(shape)}", list(data.shape))
        require(data.dtype == self.dtype, name, f"dtype {self.dtype}, as the restart file", data.dtype)
        return np.ascontiguousarray(data, self._record["positions"].base)

    def _write(self, record: bytes) -> None:
        written = 0
        try:
            while written < len(record):
                written += os.pwrite(self._fd, record[written:] if written else record, self._end + written)
        except BaseException:
            # A full disk must not leave half a frame under the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self.n_frames += 1
        self._map = None
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Bring everything to disk."""
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def shrink(self, **updates: Any) -> None:
        """Keep only the last record, from which the run can be continued exactly; the rest is dropped.

        ``updates`` change entries of the header (not those that give the layout).  ``first_frame`` goes up
        by the number of records dropped.  The file is replaced in one step: a kill leaves the old or the new.
        """
        require(
            self._fd >= 0 and self._writable,
            "store",
            "a restart file open for appending",
            "one closed or open for reading",
        )
        require(self.n_frames > 0, "store", "at least one frame to keep", "none")
        for key in ("n_replicas", "n_atoms", "dtype", "velocities"):
            require(key not in updates, key, "no change of the file's layout", updates.get(key))
        header = _checked_header({**self.header, **updates})
        first_frame = self.first_frame + self.n_frames - 1
        fd = _write_new(self.path, header, first_frame, self._raw(self.n_frames - 1))
        os.close(self._fd)
        self._fd, self._map, self.n_frames = fd, None, 1
        self.header, self.first_frame, self._offset = header, first_frame, _header_size(header, first_frame)

    # ---- reading -----------------------------------------------------------------------------------

    def last(self) -> tuple[int, np.ndarray, np.ndarray]:
        """(step, positions [n_replicas, n_atoms, 3], alive bool[n_replicas]) of the last frame, as copies."""
        require(
            self.n_frames > 0, "store", "a restart file with at least one whole frame", f"none in {self.path}"
        )
        return next(self.frames(self.n_frames - 1))

    def velocities(self, index: int) -> np.ndarray | None:
        """Those of the record ``index``, [n_replicas, n_atoms, 3] nm/ps, a copy; None in a file without."""
        if not self.has_velocities:
            return None
        return np.frombuffer(self._raw(index), self._record)[0]["velocities"].astype(self.dtype)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(step, positions, alive) of the records start, ..., stop - 1, as copies, each checksum verified."""
        for index in range(start, self.n_frames if stop is None else min(stop, self.n_frames)):
            raw = self._raw(index)
            record = np.frombuffer(raw, self._record)[0]
            if zlib.crc32(raw[:-4]) != record["crc"]:
                raise InputError(
                    f"store: expected intact frames, got a wrong checksum in frame {index} of {self.path}"
                )
            yield int(record["step"]), record["positions"].astype(self.dtype), record["alive"].astype(bool)

    def verify(self) -> None:
        """Check every checksum (under a second per GB); :class:`InputError` names the first bad frame."""
        for _ in self.frames():
            pass

    def steps(self) -> np.ndarray:
        """The step of every record, int64 [n_frames]."""
        return self._records()["step"].astype(np.int64)

    def frames_alive(self) -> np.ndarray:
        """In how many records each replica is alive, int64 [n_replicas]; checksums are not verified."""
        records = self._records()
        counts = np.zeros(self.n_replicas, np.int64)
        chunk = max(1, _BLOCK_BYTES // self.n_replicas)
        for start in range(0, self.n_frames, chunk):
            counts += records["alive"][start : start + chunk].astype(bool).sum(axis=0)
        return counts

    def block(self, frames: slice, replicas: slice) -> np.ndarray:
        """Positions [frames, replicas, n_atoms, 3] of part of the run, a copy; checksums not verified."""
        return self._records()["positions"][frames, replicas].astype(self.dtype)

    def _records(self) -> np.ndarray:
        if self.n_frames == 0:
            return np.zeros(0, self._record)
        if self._map is None:
            # Through the descriptor, not the path: the file of that name may have been replaced meanwhile.
            with os.fdopen(os.dup(self._fd), "rb") as file:
                self._map = np.memmap(file, self._record, "r", self._offset, (self.n_frames,))
        return self._map

    @property
    def _end(self) -> int:
        return self._offset + self.n_frames * self._record.itemsize

    def _raw(self, index: int) -> bytes:
        size = self._record.itemsize
        return _read_all(self._fd, size, self._offset + index * size)

    def _count_whole_records(self) -> int:
        size = self._record.itemsize
        count = max(0, os.fstat(self._fd).st_size - self._offset) // size
        while count:
            raw = self._raw(count - 1)
            if len(raw) == size and zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little"):
                break
            count -= 1
        return count


def _record_dtype(header: Mapping[str, Any]) -> np.dtype:
    n_replicas, kind = header["n_replicas"], _DTYPES[header["dtype"]]
    names = ["positions", "velocities"] if header.get("velocities") else ["positions"]
    vectors = [(name, kind, (n_replicas, header["n_atoms"], 3)) for name in names]
    return np.dtype([("step", "<i8"), ("alive", "u1", (n_replicas,)), *vectors, ("crc", "<u4")])


def _checked_header(header: Mapping[str, Any], argument: str = "header") -> dict[str, Any]:
    require(isinstance(header, Mapping), argument, "a dict of run parameters", type(header).__name__)
    checked = dict(header)
    for key in ("n_replicas", "n_atoms"):
        checked[key] = check_integer(header.get(key), f"{argument}.{key}", minimum=1, maximum=2**31 - 1)
    require(
        header.get("dtype") in _DTYPES, f"{argument}.dtype", "float32 or float64", repr(header.get("dtype"))
    )
    require(header.get("velocities") in (None, False, True), f"{argument}.velocities", "true or false",
            repr(header.get("velocities")))
    size = checked["n_replicas"] * (checked["n_atoms"] * (48 if header.get("velocities") else 24) + 1)
    require(size < 2**31 - 64, f"{argument}.n_replicas", "frames below 2 GiB", f"{size} bytes in one frame")
    try:
        return json.loads(json.dumps(checked, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{argument}: expected only what JSON can hold, got {error}") from None


def _header_bytes(header: Mapping[str, Any], first_frame: int) -> bytes:
    return json.dumps({"run": header, "first_frame": first_frame}, allow_nan=False).encode()


def _header_size(header: Mapping[str, Any], first_frame: int) -> int:
    return _PREFIX.size + len(_header_bytes(header, first_frame))


def _write_new(path: Path, header: Mapping[str, Any], first_frame: int, records: bytes) -> int:
    """Write a complete file under another name, rename it to ``path``, return its locked descriptor."""
    text = _header_bytes(header, first_frame)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _lock(fd, path, "path")
        data = _PREFIX.pack(MAGIC, 2 if header.get("velocities") else 1, len(text), zlib.crc32(text)) + text + records
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], written)
        os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return fd


def _read_header(fd: int, path: Path, argument: str) -> tuple[dict[str, Any], int, int]:
    prefix = _read_all(fd, _PREFIX.size, 0)
    require(
        prefix[:8] == MAGIC[: len(prefix)],
        argument,
        "a diffmd-fast restart file",
        f"something else in {path}",
    )
    require(len(prefix) == _PREFIX.size, argument, "a whole restart file", f"{path} cut off in its header")
    _, version, length, checksum = _PREFIX.unpack(prefix)
    require(
        version <= VERSION,
        argument,
        f"a restart file of version {VERSION} or older",
        f"version {version} in {path}; update diffmd-fast",
    )
    require(
        version >= 1 and length <= _MAX_HEADER,
        argument,
        "an intact restart file",
        f"a damaged header in {path}",
    )
    text = _read_all(fd, length, _PREFIX.size)
    require(len(text) == length, argument, "a whole restart file", f"{path} cut off in its header")
    require(
        zlib.crc32(text) == checksum,
        argument,
        "an intact restart file",
        f"a header in {path} that was edited or damaged (wrong checksum)",
    )
    try:
        content = json.loads(text)
        header = _checked_header(content["run"], argument)
        first_frame = check_integer(content["first_frame"], argument, minimum=0)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{argument}: expected an intact restart file, got an unreadable header in {path}"
        ) from None
    return header, first_frame, _PREFIX.size + length


def _read_all(fd: int, size: int, offset: int) -> bytes:
    parts, have = [], 0
    while have < size:
        part = os.pread(fd, size - have, offset + have)
        if not part:
            break
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def _lock(fd: int, path: Path, argument: str) -> None:
    """Two runs appending to one file would shuffle their frames; the lock goes when its process ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(
            f"{argument}: expected a restart file that no running process writes, got {path}"
        ) from None
