"""The JSON file beside a trajectory: which frames belong to which replica, what was lost, how it was run.

``traj.json`` stands beside ``traj.xtc``, or beside ``traj_r0000.xtc``, ``traj_r0001.xtc``, ...  Trajectories
are readable without it (replicas are then told apart by the time going backwards); with it a truncated
file is recognised in every format and the molecule is exact.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, require
from .molecule import Molecule

FORMAT = "diffmd-fast trajectory"
VERSION = 1
_REPLICA = re.compile(r"_r\d{4,}$")


def replica_path(path: Path, replica: int) -> Path:
    """``traj_r0007.xtc`` for replica 7 of ``traj.xtc``."""
    return path.with_name(f"{path.stem}_r{replica:04d}{path.suffix}")


def beside(path: Path, suffix: str) -> list[Path]:
    """Where the companion file of a trajectory may be: under its own stem, or its stem without ``_rNNNN``."""
    stems = dict.fromkeys((path.stem, _REPLICA.sub("", path.stem)))
    return [path.with_name(stem + suffix) for stem in stems if stem]


def load_sidecar(path: Path, argument: str = "path") -> dict[str, Any] | None:
    """The sidecar that names the trajectory ``path``, or None.

    JSON files that are not sidecars, or belong to a trajectory of another name, are passed over.  Raises
    :class:`InputError` for a sidecar of a newer version or with unusable content.
    """
    for candidate in beside(path, ".json"):
        content = _read_json(candidate)
        if content is None or path.name not in _file_names(content):
            continue
        version = content.get("version")
        require(version == VERSION, argument, f"{candidate} of version {VERSION}", f"version {version!r}")
        return _checked(content, candidate, argument)
    return None


def load_sidecar_of_set(path: Path, argument: str = "path") -> dict[str, Any] | None:
    """The sidecar of a set of files, one per replica, asked for under its common name ``traj.xtc``."""
    content = _read_json(path.with_suffix(".json"))
    if content is None or not _file_names(content):
        return None
    stem, suffix = path.stem, path.suffix
    ours = [
        name
        for name in _file_names(content)
        if Path(name).suffix == suffix
        and _REPLICA.sub("", Path(name).stem) == stem
        and Path(name).stem != stem
    ]
    return load_sidecar(path.with_name(ours[0]), argument) if ours else None


def is_foreign(path: Path) -> bool:
    """Whether a JSON file of that name exists and is not ours to replace."""
    return path.exists() and _read_json(path) is None


def described_beside(path: Path) -> str | None:
    """A file other than ``path`` and its set that ``path``'s sidecar is of, if that file is still there."""
    content = _read_json(path.with_suffix(".json"))
    for name in _file_names(content) if content is not None else ():
        stem = _REPLICA.sub("", Path(name).stem)
        if (stem, Path(name).suffix) != (path.stem, path.suffix) and path.with_name(name).exists():
            return name
    return None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write under another name in the same folder, then rename; the file's rights are the user's usual ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def layout(content: Mapping[str, Any], name: str) -> list[tuple[int, int]]:
    """(replica, number of frames) of the file ``name``, in file order."""
    frames = content["frames_per_replica"]
    if content["per_replica"]:
        replica = content["files"].index(name)
        return [(replica, frames[replica])]
    return [(replica, count) for replica, count in enumerate(frames) if count]


def regular_times(content: Mapping[str, Any], n_frames: int) -> np.ndarray | None:
    """Times in ps of the first ``n_frames`` frames of a replica, if frames are evenly spaced."""
    first, step = content.get("first_time"), content.get("time_between_frames")
    if first is None or step is None:
        return None
    return first + step * np.arange(n_frames, dtype=np.float64)


def split_by_time(times: np.ndarray) -> np.ndarray:
    """Replica of every frame, int32: a new one begins wherever the time goes backwards."""
    return np.concatenate(([0], np.cumsum(np.diff(times) < 0))).astype(np.int32)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The content of one of our JSON files; None if absent or somebody else's."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _file_names(content: Mapping[str, Any]) -> list[str]:
    files = content.get("files")
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []


def _checked(content: dict[str, Any], path: Path, argument: str) -> dict[str, Any]:
    frames, per_replica = content.get("frames_per_replica"), content.get("per_replica")
    good = (
        isinstance(frames, list)
        and all(type(count) is int and count >= 0 for count in frames)
        and isinstance(per_replica, bool)
        and content.get("n_replicas") == len(frames)
        and len(content["files"]) == (len(frames) if per_replica else 1)
        and isinstance(content.get("lost"), list)
        and all(
            isinstance(content.get(key), (int, float, type(None)))
            for key in ("first_time", "time_between_frames", "temperature")
        )
    )
    require(good, argument, f"an intact {path}", "damaged or edited entries")
    try:
        content["molecule"] = Molecule.from_dict(content["molecule"]).to_dict()
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{argument}: expected a molecule in {path}, got {error}") from None
    return content
