"""Where the frames of a run go: to memory, or to a restart file from which the run can be continued."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, require
from .shares import gather_shares, remove_shares
from .spring import Spring
from .trajectory import Lost

NOT_COMPARED = (
    "lost",
    "n_replicas",
    "n_atoms",
    "dtype",
)  # the layout of positions is compared with the positions


def restart_path(out: str | Path) -> Path:
    """``traj.xtc.restart`` beside ``traj.xtc``."""
    return Path(f"{out}.restart")


def existing_output(out: Path) -> Path | None:
    """What a new run to ``out`` would replace: the trajectory, its restart file, files of single replicas, or the
    ``.json`` that tells the replicas of another trajectory apart (``traj.dcd`` beside ``traj.xtc``)."""
    from ..io.sidecar import described_beside

    single = sorted(out.parent.glob(f"{glob.escape(out.stem)}_r[0-9][0-9][0-9][0-9]*{glob.escape(out.suffix)}"))
    shared = [out.with_suffix(".json")] if described_beside(out) else []
    return next((path for path in (out, restart_path(out), *single, *shared) if path.exists()), None)


def stored_header(out: str | Path) -> dict[str, Any]:
    """What the restart file of ``out`` says of its run; InputError ``resume`` if there is none."""
    from ..io import TrajectoryStore

    with TrajectoryStore.open(restart_path(out), argument="resume") as store:
        return store.header


def stored_spring(out: str | Path) -> Spring:
    """The spring of the run that wrote ``out``, read from its restart file; what a resumed run must use.

    Raises:
        InputError: no restart file, or one of something else.
    """
    header = stored_header(out)
    require(
        "time_step" in header and "diffusion" in header,
        "resume",
        "the restart file of a run",
        f"{restart_path(out)}, which has no spring",
    )
    return Spring.from_time_step(header["time_step"], header["diffusion"])


def hash_positions(positions: Tensor) -> str:
    return hashlib.sha256(positions.cpu().numpy().tobytes()).hexdigest()


class MemoryFrames:
    """Frames kept in one array [n_frames, n_replicas, n_atoms, 3]."""

    path = None

    def __init__(self, n_frames: int, positions: Tensor):
        self._array = np.empty((n_frames, *positions.shape), positions.cpu().numpy().dtype)
        self.n_frames = 0

    def append(self, step: int, positions: Tensor, alive: np.ndarray, velocities: Tensor | None) -> None:
        frame = self._array[self.n_frames]
        frame[:] = positions.cpu().numpy()
        frame[~alive] = np.nan
        self.n_frames += 1

    def finish(self, lost: list[Lost], complete: bool) -> np.ndarray:
        return self._array[: self.n_frames]

    def close(self) -> None:
        pass


class FileFrames:
    """Frames appended to ``OUT.restart`` as they come, and written to ``OUT`` at the end.

    Args:
        out: the trajectory file (.xtc, .dcd, .h5, .npz).
        header: what the run is; a resumed run must have the same.
        molecule: names and bonds for the file.
        resume: continue the run in the restart file instead of starting one.
        overwrite: a new run may replace an old trajectory and its restart file.

    Raises:
        InputError: before anything is written: a file that cannot be written or exists, no restart file to
            resume from, or one of another run (the message names what differs).
    """

    def __init__(
        self,
        out: str | Path,
        header: Mapping[str, Any],
        molecule: Any,
        resume: bool,
        overwrite: bool,
        per_replica: bool,
        progress: bool,
    ):
        from ..io import TrajectoryStore, check_output

        self.path = check_output(out, "out")
        self._molecule, self._per_replica, self._progress = molecule, per_replica, progress
        restart = restart_path(self.path)
        if resume:
            self.store = TrajectoryStore.open(restart, append=True, argument="resume")
            try:
                self._compare(header)
                gather_shares(self.store)
                require(self.store.n_frames > 0, "resume", "a restart file with at least one frame", str(restart))
                self._check_previous()
            except BaseException:
                self.store.close()
                raise
        else:
            there = existing_output(self.path)
            require(
                overwrite or there is None,
                "out",
                "a new file (or overwrite=True, or resume=True to go on)",
                f"{there}, which exists",
            )
            self.store = TrajectoryStore.create(restart, header, overwrite=overwrite)
            remove_shares(restart)

    def _compare(self, header: Mapping[str, Any]) -> None:
        stored = self.store.header
        for key in header:
            if key not in NOT_COMPARED and header[key] is not None and header[key] != stored.get(key):
                raise InputError(
                    f"{key}: expected {stored.get(key)!r} as in the run to resume "
                    f"({self.store.path}), got {header[key]!r}"
                )

    def _check_previous(self) -> None:
        """A finished run is extended: its trajectory must still be there, or the end could not be written."""
        from ..io.sources import Previous, source_frames

        if self.store.first_frame == 0:
            return
        try:
            previous = Previous(self.path, source_frames(self.store, self._molecule, None, None), self._molecule)
        except InputError as error:
            raise InputError(f"out:{str(error).partition(':')[2]}") from None
        before = self._per_replica if previous.sidecar is None else previous.sidecar["per_replica"]
        require(self._per_replica == before, "per_replica", f"{before}, as in the run to resume", self._per_replica)

    def last(self) -> tuple[int, np.ndarray, list[Lost], Tensor | None]:
        """(step, positions, lost, velocities) of the last whole frame; a killed run leaves no reasons."""
        step, positions, alive = self.store.last()
        lost = [Lost(*entry) for entry in self.store.header.get("lost", [])]
        known = {entry.replica for entry in lost}
        missing = [int(replica) for replica in np.flatnonzero(~alive) if replica not in known]
        if missing:
            steps, counts = self.store.steps(), self.store.frames_alive()
            lost += [
                Lost(replica, int(steps[counts[replica]]), "lost before the run was stopped and resumed")
                for replica in missing
            ]
        velocities = self.store.velocities(self.store.n_frames - 1)
        return step, positions, lost, None if velocities is None else torch.from_numpy(velocities)

    def append(self, step: int, positions: Tensor, alive: np.ndarray, velocities: Tensor | None) -> None:
        rates = None if velocities is None else velocities.cpu().numpy()
        self.store.append(step, positions.cpu().numpy(), alive, rates)

    def finish(self, lost: list[Lost], complete: bool) -> None:
        """Write the trajectory; after a complete run the restart file keeps what an extension needs."""
        from ..io import write_trajectory

        previous = self.path if self.store.first_frame > 0 else None
        write_trajectory(
            self.path,
            self.store,
            self._molecule,
            lost=[entry._asdict() for entry in lost],
            per_replica=self._per_replica,
            previous=previous,
            progress=self._progress,
        )
        if complete:
            self.store.shrink(lost=[list(entry) for entry in lost])

    @property
    def n_frames(self) -> int:
        return self.store.first_frame + self.store.n_frames

    def close(self) -> None:
        self.store.close()
