"""Writing trajectories: from a restart file or an array to XTC, DCD, HDF5 or NPZ, in constant memory."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, check_folder, check_integer, require
from .formats import WRITABLE, FrameWriter, check_suffix, open_writer
from .molecule import Molecule
from .sidecar import FORMAT, VERSION, is_foreign, replica_path, write_atomically
from .sources import Frames, Previous, source_frames
from .store import TrajectoryStore

_BLOCK_BYTES = 1 << 26
_REMARK = "REMARK   1 DIFFMD-FAST TOPOLOGY"


def check_output(path: str | os.PathLike, argument: str = "path") -> Path:
    """Whether a trajectory can be written to ``path``; ask before a long run.  Returns it as a Path.

    Raises :class:`InputError` for an unknown suffix, HDF5 without the package tables, a folder that does
    not exist or cannot be written to, and a ``.json`` of the same stem that is not ours to replace.
    """
    target = Path(path)
    check_suffix(target, WRITABLE, argument)
    check_folder(target.parent, argument)
    require(not target.is_dir(), argument, "a file name", f"the folder {target}")
    sidecar = target.with_suffix(".json")
    require(
        not is_foreign(sidecar),
        argument,
        f"a name whose companion {sidecar.name} is free",
        f"{sidecar}, which is not from diffmd-fast",
    )
    return target


def write_trajectory(
    path: str | os.PathLike,
    source: TrajectoryStore | np.ndarray,
    molecule: Molecule,
    times: np.ndarray | None = None,
    *,
    alive: np.ndarray | None = None,
    lost: Iterable[Mapping[str, Any]] = (),
    run: Mapping[str, Any] | None = None,
    per_replica: bool = False,
    previous: str | os.PathLike | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write all good frames of ``source`` to ``path`` (.xtc, .dcd, .h5 or .npz) and its companions beside it.

    ``source``: a restart file, finished or not, or an array [n_frames, n_replicas, n_atoms, 3] in nm.
    ``times``: ps [n_frames]; by default the steps of a restart file times ``time_step`` of its header.
    ``alive``: [n_frames, n_replicas] for an array (default all); nothing is written of a replica from the
    first frame in which it is not alive.  ``lost``: ``{"replica", "step", "reason"}`` of each replica lost.
    ``run``: JSON dict kept in the sidecar, by default the header of the restart file.
    ``per_replica``: ``traj_r0000.xtc``, ``traj_r0001.xtc``, ... instead of one file, in which replica follows
    replica and the time starts again.  ``previous``: the trajectory that an extended run continues; its
    frames come first.  A restart file knows which of its frames they are (``first_frame``), so that writing
    twice does not double them.

    Everything is written under other names in the same folder and then renamed: an existing trajectory is
    replaced whole or not at all.  Returns the content of the sidecar ``traj.json`` (docs/file_formats.md).

    Raises :class:`InputError` before anything is replaced, also if a good replica is not finite.
    """
    target = check_output(path)
    frames = source_frames(source, molecule, times, alive)
    run_header = dict(run) if run is not None else dict(frames.header)
    before = Previous(previous, frames, molecule)
    counts = before.used + frames.counts
    require(
        int(counts.sum()) > 0,
        "source",
        "at least one good frame",
        "none: every replica was lost at the start",
    )
    losses = _losses(lost, frames, before)
    plan = _Plan(target, per_replica, counts)
    content = _sidecar(plan, frames, before, losses, molecule, run_header)
    try:
        json_text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"run: expected only what JSON can hold, got {error}") from None
    try:
        first = _write_frames(plan, frames, before, molecule, content, progress)
        _write_topology(target.with_name(content["topology"]), molecule, first)
        plan.commit()
    finally:
        plan.discard()
    write_atomically(target.with_suffix(".json"), json_text)
    return content


# ---- writing ---------------------------------------------------------------------------------------


class _Plan:
    """The files to write, their temporary names, and the moment they take their places."""

    def __init__(self, target: Path, per_replica: bool, counts: np.ndarray) -> None:
        self.target, self.per_replica, self.counts = target, per_replica, counts
        names = [replica_path(target, r) for r in range(len(counts))] if per_replica else [target]
        self.files = [name if (counts[r] if per_replica else 1) else None for r, name in enumerate(names)]
        self._temporary: dict[Path, Path] = {}

    def temporary(self, file: Path) -> Path:
        """A name in the same folder, so that the rename is atomic; the suffix stays, HDF5 looks at it."""
        return self._temporary.setdefault(
            file, file.with_name(f".{file.stem}.{os.getpid()}.tmp{file.suffix}")
        )

    def commit(self) -> None:
        for temporary in self._temporary.values():
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
        for file, temporary in self._temporary.items():
            os.replace(temporary, file)
        self._temporary.clear()

    def discard(self) -> None:
        for temporary in self._temporary.values():
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _write_frames(
    plan: _Plan,
    frames: Frames,
    before: Previous,
    molecule: Molecule,
    content: Mapping[str, Any],
    progress: bool,
) -> np.ndarray:
    """Write every file of the plan under its temporary name; returns the first frame [n_atoms, 3]."""
    from tqdm import tqdm

    extra = {"n_replicas": len(plan.counts)}
    if content["temperature"] is not None:
        extra["temperature"] = content["temperature"]
    writer: FrameWriter | None = None
    first: np.ndarray | None = None
    bar = tqdm(
        total=int(plan.counts.sum()),
        unit="frame",
        desc=plan.target.name,
        delay=2,
        disable=not progress,
        leave=False,
    )
    try:
        for replica, chunks in _replica_chunks(frames, before):
            file = plan.files[replica if plan.per_replica else 0]
            for positions, times in chunks:
                if writer is None:
                    n_frames = plan.counts[replica] if plan.per_replica else plan.counts.sum()
                    writer = open_writer(
                        plan.temporary(file), file.suffix.lower(), molecule, int(n_frames), extra
                    )
                _check_finite(positions, times, replica)
                writer.write(positions, times, replica)
                first = np.array(positions[0], np.float32) if first is None else first
                bar.update(len(positions))
            if plan.per_replica and writer is not None:
                writer.close()
                writer = None
    finally:
        bar.close()
        before.close()
        if writer is not None:
            writer.close()
    return first


def _replica_chunks(
    frames: Frames,
    before: Previous,
) -> Iterator[tuple[int, Iterator[tuple[np.ndarray, np.ndarray]]]]:
    """For every replica in turn its chunks: the earlier trajectory's, then the source's.

    The source is frame-major; as many replicas as fit into ``_BLOCK_BYTES`` are gathered in one pass over it.
    """
    n_atoms_bytes = frames.block(slice(0, 1), slice(0, 1)).nbytes
    at_once = max(1, _BLOCK_BYTES // (n_atoms_bytes * frames.n_frames))
    chunk = max(1, _BLOCK_BYTES // n_atoms_bytes)

    def chunks(
        replica: int, block: np.ndarray | None, column: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from before.frames(replica)
        count = int(frames.counts[replica])
        for start in range(0, count, chunk):
            stop = min(count, start + chunk)
            part = (
                frames.block(slice(start, stop), slice(replica, replica + 1))[:, 0]
                if block is None
                else block[start:stop, column]
            )
            yield part, frames.times[start:stop]

    for start in range(0, frames.n_replicas, at_once):
        stop = min(frames.n_replicas, start + at_once)
        block = frames.block(slice(None), slice(start, stop)) if frames.n_frames <= chunk else None
        for replica in range(start, stop):
            yield replica, chunks(replica, block, replica - start)


def _check_finite(positions: np.ndarray, times: np.ndarray, replica: int) -> None:
    good = np.isfinite(positions).all(axis=(1, 2))
    if not good.all():
        raise InputError(
            f"source: expected finite positions in good replicas, got NaN or infinity in replica "
            f"{replica} at {times[int(np.argmin(good))]:g} ps"
        )


def _write_topology(path: Path, molecule: Molecule, first: np.ndarray) -> None:
    """The first frame as PDB with CONECT records; moved to the origin where PDB columns demand it."""
    import mdtraj

    if np.abs(first).max() > 99.0:
        first = first - first.mean(axis=0)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.pdb")
    try:
        mdtraj.Trajectory(first[None], molecule.to_mdtraj()).save_pdb(str(temporary))
        text = temporary.read_text(encoding="utf-8")
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    write_atomically(path, f"{_REMARK}\n{text}")


def _topology_name(target: Path) -> str:
    """``traj.pdb``, or another name where that file is not ours: nobody's structure is overwritten."""
    own = target.with_suffix(".pdb")
    if own.exists() and not own.read_bytes()[: len(_REMARK)].startswith(_REMARK.encode()):
        return target.stem + "_topology.pdb"
    return own.name


def _losses(lost: Iterable[Mapping[str, Any]], frames: Frames, before: Previous) -> list[dict[str, Any]]:
    """Every replica lost, once: as told, as the earlier trajectory says, or as the mask shows."""
    known: dict[int, dict[str, Any]] = {}
    for entry in [*(before.sidecar["lost"] if before.sidecar is not None else ()), *lost]:
        require(
            isinstance(entry, Mapping) and {"replica", "step", "reason"} <= set(entry),
            "lost",
            "mappings with replica, step and reason",
            entry,
        )
        replica = check_integer(entry["replica"], "lost.replica", minimum=0, maximum=frames.n_replicas - 1)
        step = (
            entry["step"] if entry["step"] is None else check_integer(entry["step"], "lost.step", minimum=0)
        )
        known[replica] = {"replica": replica, "step": step, "reason": str(entry["reason"])}
    for replica in np.flatnonzero(frames.counts < frames.n_frames).tolist():
        if replica not in known:
            step = int(frames.steps[frames.counts[replica]]) if frames.steps is not None else None
            known[replica] = {"replica": replica, "step": step, "reason": "lost before this frame was saved"}
    return [known[replica] for replica in sorted(known)]


def _sidecar(
    plan: _Plan,
    frames: Frames,
    before: Previous,
    losses: list[dict[str, Any]],
    molecule: Molecule,
    run: dict[str, Any],
) -> dict[str, Any]:
    first_time, spacing = _time_grid(frames, before)
    temperature = run.get("temperature")
    return {
        "format": FORMAT,
        "version": VERSION,
        "files": [file.name if file is not None else None for file in plan.files],
        "per_replica": plan.per_replica,
        "topology": _topology_name(plan.target),
        "n_replicas": frames.n_replicas,
        "n_atoms": molecule.n_atoms,
        "frames_per_replica": plan.counts.tolist(),
        "lost": losses,
        "first_time": first_time,
        "time_between_frames": spacing,
        "temperature": float(temperature) if isinstance(temperature, (int, float)) else None,
        "molecule": molecule.to_dict(),
        "run": run,
    }


def _time_grid(frames: Frames, before: Previous) -> tuple[float | None, float | None]:
    """First time and spacing over earlier and new frames; the spacing is None where it is uneven."""
    times = frames.times
    first, spacing, n_before = float(times[0]), None, int(before.used.max())
    if n_before:
        if before.sidecar is None or before.sidecar["first_time"] is None:
            return None, None
        first, spacing = before.sidecar["first_time"], before.sidecar["time_between_frames"]
    n_frames = n_before + len(times)
    if spacing is None and n_frames > 1:
        spacing = (float(times[-1]) - first) / (n_frames - 1)
        # From the first two frames, all that a run which is resumed later may have: both agree to the bit.
        one = float(times[0 if n_before else 1]) - first
        spacing = one if n_before < 2 and abs(one - spacing) <= 1e-9 * spacing else spacing
    if spacing is None:
        return first, None
    grid = first + spacing * np.arange(n_before, n_frames)
    return first, (spacing if np.allclose(times, grid, rtol=0, atol=1e-3 * spacing) else None)
