"""Model files: one safetensors file, its metadata one JSON text.  Nothing in a file is ever executed.

docs/file_formats.md describes the metadata field by field.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, require
from .energy import EnergyModel
from .schnet import SchNet

FORMAT = "diffmd_fast.model"
FORMAT_VERSION = 1
UNITS = {"length": "nm", "energy": "kT0", "score": "1/nm", "temperature": "K"}
ARCHITECTURES = {"SchNet": SchNet}


def save_model(path: str | Path, model: SchNet) -> None:
    """Write a model file; an existing one is replaced in one move, never half.

    Stored: parameters, constructor arguments, molecule, T0, units, noise levels, support of the training set,
    the record of the training, package version, and a checksum over all of it.

    Raises:
        InputError: a model of another kind, or a place that cannot be written.
    """
    from safetensors.torch import save

    from .. import __version__
    from ..io.sidecar import write_atomically

    require(type(model).__name__ in ARCHITECTURES, "model", "one of " + ", ".join(ARCHITECTURES), type(model).__name__)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "package_version": __version__, "units": UNITS,
        "architecture": type(model).__name__, "config": model.config,
        "molecule": model.molecule.to_dict() if model.molecule is not None else None,
        "support": model.support, "training": model.training_record,
    }
    text = json.dumps(metadata)
    path = Path(path)
    try:
        write_atomically(path, save(tensors, {FORMAT: text, "sha256": _checksum(text, tensors)}))
    except OSError as error:
        raise InputError(f"path: expected a place to write a model file, got {str(path)!r} "
                         f"({str(error).splitlines()[0]})") from error


def load_model(path: str | Path) -> EnergyModel:
    """Read a model file and return the model, ready to run (float32, CPU, evaluation mode).

    Safe on files from anywhere: only tensors and JSON are read, sizes and the checksum are verified.

    Raises:
        InputError: no such file, not a model file, truncated, edited, or written by a later version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"path: expected a model file, got {str(path)!r}, which does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"path: expected a whole model file, got {str(path)!r}, which cannot be read "
                         f"({str(error).splitlines()[0]})") from error
    metadata = _metadata(path, header)
    if header.get("sha256") != _checksum(header[FORMAT], tensors):
        raise InputError(f"path: expected a model file as it was written, got {str(path)!r}, whose checksum is wrong "
                         "(edited or damaged)")
    return _build(path, metadata, tensors)


def _metadata(path: Path, header: dict[str, str]) -> dict[str, Any]:
    try:
        metadata = json.loads(header[FORMAT])
        version = int(metadata["format_version"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise InputError(f"path: expected a model file of diffmd_fast, got {str(path)!r}, a safetensors file without "
                         "its metadata") from None
    if version > FORMAT_VERSION:
        raise InputError(f"path: expected model format version {FORMAT_VERSION} or earlier, got version {version} in "
                         f"{str(path)!r}; install a newer diffmd-fast")
    return metadata


def _build(path: Path, metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> EnergyModel:
    from ..io import Molecule

    try:
        _check_sizes(metadata["config"], tensors)
        model = ARCHITECTURES[metadata["architecture"]](**metadata["config"]).float()
        model.load_state_dict(tensors)
        model.molecule = Molecule.from_dict(metadata["molecule"]) if metadata["molecule"] else None
        if model.molecule is not None:
            require(model.molecule.n_atoms == model.n_atoms, "molecule", f"{model.n_atoms} atoms",
                    model.molecule.n_atoms)
        model.support = metadata["support"]
        model.training_record = metadata["training"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"path: expected a model file this version can read, got {str(path)!r} "
                         f"({str(error).splitlines()[0]})") from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _check_sizes(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Refuse a configuration that its own parameters contradict, before memory of the sizes it names is taken."""
    n_types, n_features = tensors["embedding"].shape
    require(config["n_features"] == n_features, "n_features", n_features, config["n_features"])
    n_blocks = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    require(config["n_blocks"] == n_blocks, "n_blocks", n_blocks, config["n_blocks"])
    types = config["atom_types"]
    require(len(types) == config["n_atoms"] and len(set(types)) == n_types, "atom_types",
            f"{config['n_atoms']} atoms of {n_types} types", f"{len(types)} of {len(set(types))}")


def _checksum(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
