"""A run over several processes: each keeps the frames of its share of the replicas; together they are the run's.

Noise depends on a replica's number, so a share needs to know nothing of the others while it runs.  Each process
appends to a restart file of its own, ``OUT.restart.0``, ``OUT.restart.1``, ...  At the end, or when the run is resumed
after a kill, their frames go to ``OUT.restart``, which is then the file that one process would have written: it can
be resumed by any number of processes.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError, require
from ..interrupt import Interrupt
from ..io import TrajectoryStore
from ..processes import Processes
from .trajectory import Lost, RunInterrupted, Trajectory


def share_path(restart: Path, rank: int) -> Path:
    """``traj.xtc.restart.0`` for the share of process 0 in ``traj.xtc.restart``."""
    return Path(f"{restart}.{rank}")


def share_paths(restart: Path) -> list[Path]:
    """The files of shares beside the restart file of a run."""
    name = re.compile(re.escape(restart.name) + r"\.\d+")
    return sorted(path for path in restart.parent.iterdir() if name.fullmatch(path.name))


def remove_shares(restart: Path) -> None:
    for path in share_paths(restart):
        path.unlink()


def gather_shares(store: TrajectoryStore) -> None:
    """Append to the restart file of a run what its processes have saved since, as far as all of them came, and remove
    the shares.  Killed at any moment it can be done again."""
    if not share_paths(store.path):
        return
    with contextlib.ExitStack() as stack:
        shares = [stack.enter_context(TrajectoryStore.open(path, argument="resume"))
                  for path in share_paths(store.path)]
        shares.sort(key=lambda share: share.header["share"])
        bounds = [0, *(bound for share in shares for bound in share.header["share"]), store.n_replicas]
        whole = bounds[::2] == bounds[1::2] and all(
            share.n_frames and _run(share.header) == _run(store.header) for share in shares)
        last, _, alive_before = store.last() if store.n_frames else (-1, None, np.ones(1, bool))
        for k in range(_frames_of_all(shares) if whole else 0):
            # Of a share that lost all its replicas the last record stands for those that it did not write any more.
            index = [min(k, share.n_frames - 1) for share in shares]
            records = [next(share.frames(i)) for share, i in zip(shares, index)]
            step, alive = max(record[0] for record in records), np.concatenate([alive for _, _, alive in records])
            if step <= last or not (alive.any() or alive_before.any()):
                continue
            rates = [share.velocities(i) for share, i in zip(shares, index)] if store.has_velocities else None
            store.append(step, np.concatenate([positions for _, positions, _ in records]), alive,
                         None if rates is None else np.concatenate(rates))
            alive_before = alive
    store.sync()
    remove_shares(store.path)


def _run(header: dict[str, Any]) -> dict[str, Any]:
    """What determines the frames: shares of an older run, which a kill left beside a new one's file, have another."""
    return {key: value for key, value in header.items() if key not in ("n_replicas", "share", "lost")}


def _frames_of_all(shares: list[TrajectoryStore]) -> int:
    counts = [share.n_frames for share in shares if share.last()[2].any()]
    return min(counts) if counts else max(share.n_frames for share in shares)


class SharedFrames:
    """Frames of one process's share; :class:`~.restart.FileFrames` of the whole run on process 0.

    Args:
        whole: makes the FileFrames; called on process 0 only, and its errors are everybody's.
        save_every: steps between frames.
        processes: those of the run, at most as many as it has replicas.
    """

    def __init__(self, out: Path, whole: Any, save_every: int, processes: Processes):
        self.path, self._processes, self._save_every = Path(out), processes, save_every
        self._whole: Any = None
        processes.check_shared(self.path.parent, "out")
        header, restart, self.n_frames = processes.first(lambda: self._open(whole))
        self.share = processes.share(header["n_replicas"])
        own = {**header, "n_replicas": self.share.stop - self.share.start, "share": [self.share.start, self.share.stop]}
        self.store = TrajectoryStore.create(share_path(restart, processes.rank), own, overwrite=True)

    def _open(self, whole: Any) -> tuple[dict[str, Any], Path, int]:
        self._whole = whole()
        store = self._whole.store
        try:
            check_processes(self._processes, store.n_replicas)
        except InputError:
            self._whole.close()
            raise
        return store.header, store.path, self._whole.n_frames

    def last(self) -> tuple[int, np.ndarray, list[Lost], Tensor | None]:
        """That of the whole run."""
        step, positions, lost, velocities = self._processes.first(lambda: self._whole.last())
        if {entry.replica for entry in lost} >= set(range(self.share.start, self.share.stop)):
            self._mark_end(step, positions[self.share])
        return step, positions, lost, velocities

    def append(self, step: int, positions: Tensor, alive: np.ndarray, velocities: Tensor | None) -> None:
        rates = None if velocities is None else velocities.cpu().numpy()
        self.store.append(step, positions.cpu().numpy(), alive, rates)

    def finish(self, lost: list[Lost], complete: bool) -> None:
        """Put the shares together and write the trajectory, on process 0."""
        if self.store.n_frames and len(lost) == self.store.n_replicas:
            step, positions, alive = self.store.last()
            if alive.any():
                self._mark_end(step, positions)
        self.store.close()
        parts = self._processes.gather([entry._replace(replica=self.share.start + entry.replica) for entry in lost])
        everyone = sorted((entry for part in parts for entry in part), key=lambda entry: entry[1])

        def write() -> int:
            gather_shares(self._whole.store)
            n_frames = self._whole.n_frames
            self._whole.finish(everyone, complete)
            return n_frames

        self.n_frames = self._processes.first(write)

    def _mark_end(self, step: int, positions: np.ndarray) -> None:
        """A share without living replicas is at its end, not behind the others: its last record says so."""
        rates = np.zeros_like(positions) if self.store.has_velocities else None
        self.store.append(step + self._save_every, positions, np.zeros(len(positions), bool), rates)

    def close(self) -> None:
        self.store.close()
        if self._whole is not None:
            self._whole.close()


def check_processes(processes: Processes, n_replicas: int) -> None:
    require(processes.size <= n_replicas, "replicas", f"at least one for each of the {processes.size} processes",
            n_replicas)


def sharded_path(out: str | Path, rank: int) -> Path:
    """``traj_p0001.xtc`` for process 1 of ``traj.xtc``."""
    path = Path(out)
    return path.with_name(f"{path.stem}_p{rank:04d}{path.suffix}")


def check_sharded(out: str | Path, processes: Processes, resume: bool, overwrite: bool) -> None:
    """Before a run of one file a process: those that are there are of as many processes, or nothing is there."""
    from .restart import existing_output, restart_path

    numbers = [sharded_path(out, rank) for rank in range(processes.size)]
    if resume:
        there = sum(restart_path(path).exists() for path in numbers) + restart_path(
            sharded_path(out, processes.size)).exists()
        require(there == processes.size, "resume", f"restart files of {processes.size} processes, {numbers[0]}.restart "
                "and so on (the frames of each process are its own: as many processes must go on)",
                "one more" if there > processes.size else f"{there} of them")
    else:
        old = next(filter(None, map(existing_output, numbers)), None) if not overwrite else None
        require(old is None, "out", "a new file (or overwrite=True, or resume=True to go on)", f"{old}, which exists")
        more = existing_output(sharded_path(out, processes.size))
        require(more is None, "out", f"no files of more than {processes.size} processes there", more)


def run_sharded(sampler: Any, processes: Processes, start: Tensor | None, out: str | Path, progress: bool,
                **arguments: Any) -> Trajectory:
    """Each process runs its share into a file of its own, as a run of its own; gives the trajectory of all."""
    from .restart import stored_header

    processes.check_shared(Path(out).parent, "out")
    processes.first(lambda: check_sharded(out, processes, arguments["resume"], arguments["overwrite"]))
    path = sharded_path(out, processes.rank)
    if arguments["resume"]:
        sizes = processes.gather(stored_header(path)["n_replicas"])
        first, start = sum(sizes[: processes.rank]), None
    else:
        share = processes.share(len(start))
        first, start = share.start, start[share]
    with Interrupt():  # who is done waits for the others, also for those told to stop
        stopped = False
        try:
            part = sampler._numbered_from(first).run(start, out=path, progress=progress and processes.rank == 0,
                                                     **arguments)
        except RunInterrupted as interrupted:
            part, stopped = interrupted.trajectory, True
        stopped = any(processes.gather(stopped))
    trajectory = combined(processes, part) if processes.size > 1 else part
    if stopped:
        raise RunInterrupted(trajectory)
    return trajectory


def combined(processes: Processes, part: Trajectory) -> Trajectory:
    """The trajectory of all replicas from each process's part (without ``positions``), on every process."""
    parts = processes.gather(replace(part, positions=None))
    first = np.cumsum([0, *(each.n_replicas for each in parts)])
    running = [each for each in parts if len(each.lost) < each.n_replicas] or parts
    lost = [entry._replace(replica=int(start) + entry.replica) for each, start in zip(parts, first)
            for entry in each.lost]

    def joined(name: str) -> np.ndarray | None:
        values = [getattr(each, name) for each in parts]
        return None if values[0] is None else np.concatenate(values)

    kinetic = None
    if part.kinetic_temperature is not None:
        rows = min(len(each.kinetic_temperature) for each in running)
        kinetic = np.full((rows, first[-1]), np.nan)
        for each, start in zip(parts, first):
            have = each.kinetic_temperature[:rows]
            kinetic[: len(have), start : start + each.n_replicas] = have
    return replace(
        part, positions=None, final_positions=joined("final_positions"), lost=sorted(lost, key=lambda entry: entry[1]),
        steps=min((each.steps for each in running), key=len), n_steps=min(each.n_steps for each in running),
        acceptance=joined("acceptance"), final_velocities=joined("final_velocities"), kinetic_temperature=kinetic)
