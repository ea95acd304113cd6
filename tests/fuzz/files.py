"""Fuzz targets: model files, restart files and snapshots that were damaged, or made by somebody who means harm.

Damaged bytes must be noticed.  Where a file has a checksum, its content is also changed and the checksum made right
again: the reader must cope with whatever it says.
"""

from __future__ import annotations

import functools
import json
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

import diffmd_fast
from diffmd_fast.io import Molecule, TrajectoryStore, read_snapshots
from diffmd_fast.io.store import _PREFIX, MAGIC, VERSION
from diffmd_fast.models import SchNet
from diffmd_fast.models.checkpoint import FORMAT, _checksum, save_model

from .case import Case

BONDS = [(0, 1), (1, 2), (2, 3), (3, 4)]
HEADER = {"n_replicas": 3, "n_atoms": 2, "dtype": "float32", "save_every": 10, "lost": [], "note": "x" * 40}


@contextmanager
def written(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def molecule() -> Molecule:
    return Molecule(("CA", "CB", "CC", "CD", "CE"), (6,) * 5, ("ALK",) * 5, (0,) * 5, tuple(BONDS))


# ---- model files ---------------------------------------------------------------------------------------------

@functools.cache
def _model_file() -> bytes:
    torch.manual_seed(1)
    springs = {"pairs": BONDS, "mean": [0.15] * 4, "variance": [2e-3] * 4}
    model = SchNet(5, n_features=6, n_blocks=2, cutoff=0.8, bonds=BONDS, n_knots=9, n_harmonics=2, springs=springs,
                   bends={"triples": [[0, 1, 2]], "mean": [-0.4], "variance": [2e-2], "slope": [90.0]}, spread=0.05)
    model.molecule = molecule()
    model.support = {"pairs": BONDS, "lowest": [0.14] * 4, "highest": [0.16] * 4, "energy": [-3.0, 9.0]}
    with written(b"", "model.safetensors") as path:
        save_model(path, model)
        return path.read_bytes()


def _use(case: Case, model) -> None:
    x = case.positions(2, model.n_atoms, torch.float32)
    case.attempt(lambda: model.energy_and_score(x))


def model_bytes(case: Case) -> None:
    data = case.spoil_bytes(_model_file())
    with written(data, "model.safetensors") as path:
        model = case.attempt(lambda: diffmd_fast.load_model(path))
    if model is None:
        return
    with written(_model_file(), "model.safetensors") as path:
        whole = diffmd_fast.load_model(path)
    equal = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values()))
    case.check(equal and model.config == whole.config, "damage to be noticed, or to have changed nothing")


def model_content(case: Case) -> None:
    """Metadata or tensors that say something else, under a right checksum."""
    data = _model_file()
    tensors, length = load(data), int.from_bytes(data[:8], "little")
    metadata = json.loads(json.loads(data[8:8 + length])["__metadata__"][FORMAT])
    if case.chance(0.3):
        name = case.choice(list(tensors))
        tensors[name], how = case._spoiled_tensor(tensors[name], raw=True)
        case.spoiled.append(f"{name}: {how}")
        if not isinstance(tensors[name], torch.Tensor) or tensors[name].numel() > 10**6:
            del tensors[name]
    else:
        metadata = case.spoil_json(metadata)
    text = json.dumps(metadata)
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    try:
        data = save(tensors, {FORMAT: text, "sha256": _checksum(text, tensors)})
    except (TypeError, ValueError, RuntimeError):  # not even safetensors, or our checksum, can hold this
        case.refused = True
        return
    with written(data, "model.safetensors") as path:
        model = case.attempt(lambda: diffmd_fast.load_model(path))
    if model is not None:
        _use(case, model)


# ---- restart files -------------------------------------------------------------------------------------------

def _frames() -> list[np.ndarray]:
    return [np.random.default_rng(step).normal(size=(3, 2, 3)).astype(np.float32) for step in range(4)]


@functools.cache
def _restart_file() -> bytes:
    with written(b"", "run.restart") as path:
        with TrajectoryStore.create(path, HEADER, overwrite=True) as store:
            for step, positions in enumerate(_frames()):
                store.append(10 * step, positions)
        return path.read_bytes()


def _read(case: Case, path: Path):
    """What a reader asks of a restart file, or None where that was refused; frames only as far as they are whole."""
    def read():
        with TrajectoryStore.open(path, append=case.chance(0.3)) as store:
            store.steps(), store.frames_alive(), store.block(slice(None), slice(0, 2))
            return [(step, positions) for step, positions, _ in store.frames()]

    return case.attempt(read)


def store_bytes(case: Case) -> None:
    with written(case.spoil_bytes(_restart_file()), "run.restart") as path:
        frames = _read(case, path)
    if frames is not None:
        whole = _frames()
        case.check(len(frames) <= len(whole), "no more frames than were written")
        case.check(all(step == 10 * i and np.array_equal(x, whole[i]) for i, (step, x) in enumerate(frames)),
                   "the frames that were written, from the first on")


def store_content(case: Case) -> None:
    """A header that says something else, under a right checksum."""
    data = _restart_file()
    _, _, length, _ = _PREFIX.unpack(data[:_PREFIX.size])
    content = case.spoil_json(json.loads(data[_PREFIX.size:_PREFIX.size + length]))
    text = json.dumps(content).encode()
    header = _PREFIX.pack(MAGIC, VERSION, len(text), zlib.crc32(text)) + text
    with written(header + data[_PREFIX.size + length:], "run.restart") as path:
        _read(case, path)


# ---- snapshots -----------------------------------------------------------------------------------------------

@functools.cache
def _snapshots_file() -> bytes:
    positions = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    with written(b"", "snapshots.npz") as path:
        np.savez_compressed(path, positions=positions, temperature=np.float64(300.0), **molecule().to_npz_arrays())
        return path.read_bytes()


def snapshots_bytes(case: Case) -> None:
    with written(case.spoil_bytes(_snapshots_file()), "snapshots.npz") as path:
        snapshots = case.attempt(lambda: read_snapshots(path))
    if snapshots is not None:
        case.check(snapshots.positions.ndim == 3 and np.isfinite(snapshots.positions).all(), "finite positions")


TARGETS = {function.__name__: function for function in (
    model_bytes, model_content, store_bytes, store_content, snapshots_bytes)}
