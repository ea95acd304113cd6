"""Where the frames to be written come from: a restart file or an array, and an earlier trajectory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import require
from .formats import FrameReader, frame_chunk, open_reader, reading
from .molecule import Molecule
from .sidecar import layout, load_sidecar, load_sidecar_of_set, regular_times, split_by_time
from .store import TrajectoryStore


class Frames(Protocol):
    """Frame-major source: ``counts`` good frames per replica, ``times`` and ``steps`` per frame."""

    n_frames: int
    n_replicas: int
    first_frame: int
    times: np.ndarray
    steps: np.ndarray | None
    counts: np.ndarray
    header: Mapping[str, Any]

    def block(self, frames: slice, replicas: slice) -> np.ndarray: ...


@dataclass
class _StoreFrames:
    store: TrajectoryStore
    times: np.ndarray

    def __post_init__(self) -> None:
        self.n_frames, self.n_replicas = self.store.n_frames, self.store.n_replicas
        self.first_frame, self.header = self.store.first_frame, self.store.header
        self.steps, self.counts = self.store.steps(), self.store.frames_alive()

    def block(self, frames: slice, replicas: slice) -> np.ndarray:
        return self.store.block(frames, replicas)


@dataclass
class _ArrayFrames:
    array: np.ndarray
    times: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        self.n_frames, self.n_replicas = self.array.shape[:2]
        self.first_frame, self.steps, self.header = 0, None, {}

    def block(self, frames: slice, replicas: slice) -> np.ndarray:
        return self.array[frames, replicas]


def source_frames(source: Any, molecule: Molecule, times: Any, alive: Any) -> Frames:
    """The source with its shapes, checksums and times verified; see :func:`write_trajectory`."""
    if isinstance(source, TrajectoryStore):
        require(
            source.n_frames > 0, "source", "a restart file with at least one frame", f"none in {source.path}"
        )
        require(
            source.n_atoms == molecule.n_atoms,
            "molecule",
            f"{source.n_atoms} atoms, as in the restart file",
            molecule.n_atoms,
        )
        require(alive is None, "alive", "nothing for a restart file, which has its own", "an array")
        source.verify()
        if times is None:
            time_step = source.header.get("time_step")
            require(
                isinstance(time_step, (int, float)),
                "times",
                "times, or a restart file with time_step in its header",
                "neither",
            )
            times = source.steps() * float(time_step)
        return _StoreFrames(source, _checked_times(times, source.n_frames))
    array = np.asarray(source)
    require(
        array.ndim == 4 and array.shape[2:] == (molecule.n_atoms, 3) and min(array.shape) > 0,
        "source",
        f"shape [n_frames, n_replicas, {molecule.n_atoms}, 3]",
        list(array.shape),
    )
    require(array.dtype in (np.float32, np.float64), "source", "dtype float32 or float64", array.dtype)
    require(times is not None, "times", "the time of every frame in ps", "none")
    state = np.ones(array.shape[:2], bool) if alive is None else np.asarray(alive).astype(bool)
    require(state.shape == array.shape[:2], "alive", f"shape {list(array.shape[:2])}", list(state.shape))
    counts = np.logical_and.accumulate(state, axis=0).sum(axis=0)
    return _ArrayFrames(array, _checked_times(times, len(array)), counts)


def _checked_times(times: Any, n_frames: int) -> np.ndarray:
    values = np.asarray(times, np.float64)
    require(
        values.shape == (n_frames,), "times", f"shape [{n_frames}], one time per frame", list(values.shape)
    )
    require(
        bool(np.isfinite(values).all() and (np.diff(values) > 0).all()),
        "times",
        "finite, increasing times in ps",
        "others",
    )
    return values


class Previous:
    """The frames of an earlier trajectory that come before the source's, replica by replica."""

    def __init__(self, path: str | os.PathLike | None, frames: Frames, molecule: Molecule) -> None:
        self.used = np.zeros(frames.n_replicas, np.int64)
        self.sidecar: dict[str, Any] | None = None
        self._pieces: list[tuple[Path, list[tuple[int, int]]]] = []
        self._reader: FrameReader | None = None
        if path is None:
            require(
                frames.first_frame == 0,
                "previous",
                f"the trajectory with the first {frames.first_frame} frames of this run",
                "none",
            )
            return
        self._find(Path(path))
        have = np.zeros(frames.n_replicas, np.int64)
        for file, parts in self._pieces:
            with open_reader(file, "previous") as reader:
                require(
                    reader.n_atoms == molecule.n_atoms,
                    "previous",
                    f"{molecule.n_atoms} atoms",
                    reader.n_atoms,
                )
            for replica, count in parts:
                require(
                    replica < frames.n_replicas,
                    "previous",
                    f"{frames.n_replicas} replicas",
                    f"a replica {replica} in {file}",
                )
                have[replica] += count
        if frames.steps is None:
            self.used = have
            return
        self.used = np.minimum(have, frames.first_frame)
        short = np.flatnonzero((self.used < frames.first_frame) & (frames.counts > 0))
        require(
            short.size == 0,
            "previous",
            f"at least {frames.first_frame} frames of every replica alive",
            f"{self.used[short[0]] if short.size else 0} of replica {short[:1]}",
        )

    def _find(self, path: Path) -> None:
        sidecar = load_sidecar(path, "previous") if path.exists() else load_sidecar_of_set(path, "previous")
        self.sidecar = sidecar
        if sidecar is not None and sidecar["per_replica"]:
            for name in filter(None, sidecar["files"]):
                file = path.with_name(name)
                with open_reader(file, "previous") as reader:
                    count = reader.n_frames
                self._pieces.append((file, [(sidecar["files"].index(name), count)]))
            return
        with open_reader(path, "previous") as reader:
            parts = layout(sidecar, path.name) if sidecar is not None else []
            if sum(count for _, count in parts) != reader.n_frames:
                # No sidecar, or a kill between the two renames left one of another run length.
                parts = _layout_of_file(reader, path)
        self._pieces.append((path, parts))

    def frames(self, replica: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions, times) chunks of the frames used of ``replica``; ask for replicas in order."""
        for file, parts in self._pieces:
            if replica not in (index for index, _ in parts):
                continue
            if self._reader is None or replica == parts[0][0]:
                self.close()
                self._reader = open_reader(file, "previous")
            count = dict(parts)[replica]
            regular = regular_times(self.sidecar, count) if self.sidecar is not None else None
            chunk = frame_chunk(self._reader.n_atoms)
            for start in range(0, count, chunk):
                stop = min(count, start + chunk)
                with reading(file, "previous"):
                    positions, times = self._reader.read(stop - start)
                times = regular[start:stop] if regular is not None else times
                require(times is not None, "previous", "a trajectory whose times are known", str(file))
                keep = slice(0, max(0, int(self.used[replica]) - start))
                if len(positions[keep]):
                    yield positions[keep], np.asarray(times[keep], np.float64)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _layout_of_file(reader: FrameReader, path: Path) -> list[tuple[int, int]]:
    """(replica, number of frames) in file order, from the file alone."""
    replica = reader.arrays.get("replica")
    if replica is not None and replica.shape == (reader.n_frames,) and (np.diff(replica) >= 0).all():
        replicas, counts = np.unique(replica, return_counts=True)
        return list(zip(replicas.tolist(), counts.tolist()))
    chunk, times = frame_chunk(reader.n_atoms), []
    for start in range(0, reader.n_frames, chunk):
        with reading(path, "previous"):
            part = reader.read(min(chunk, reader.n_frames - start))[1]
        require(
            part is not None,
            "previous",
            f"{path} with the .json file written beside it",
            "no way to tell its replicas apart",
        )
        times.append(part)
    replicas, counts = np.unique(split_by_time(np.concatenate(times)), return_counts=True)
    return list(zip(replicas.tolist(), counts.tolist()))
