"""Models trained for the validation, and what their runs are compared by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diffmd_fast import load_model
from diffmd_fast.analysis import dihedral_autocorrelation, jensen_shannon, sampling_floor
from diffmd_fast.analysis.divergence import independent_units
from diffmd_fast.analysis.free_energy import periodic_histogram
from diffmd_fast.analysis.kinetics import hop_rates, torsion_core
from diffmd_fast.io import Snapshots, read_snapshots
from diffmd_fast.models import SchNet
from diffmd_fast.training import Settings, train

from .measure import Row

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
MODELS = ROOT / "validation-output" / "models"
BINS = 64


def need_data(name: str) -> Path:
    """A file of the reference data; without it a part ends with one line."""
    path = DATA / name
    if not path.is_file():
        raise SystemExit(f"reference data: expected {path}, which is not on this machine; this part is left out")
    return path


def trained(name: str, snapshots: Snapshots, settings: Settings) -> SchNet:
    """The model of that name, trained now, or before with the same settings (remove it to train anew)."""
    MODELS.mkdir(parents=True, exist_ok=True)
    path = MODELS / f"{name}.safetensors"
    if path.is_file():
        model = load_model(path)
        wanted = json.loads(json.dumps(settings.__dict__))
        if json.loads(json.dumps(model.training_record["settings"])) == wanted and finished(path):
            print(f"   {name}: the model in {path}", flush=True)
            return model
    return train(replace(snapshots, replica=None, time=None), path, settings=settings, progress=False,
                 resume=Path(f"{path}.training").is_file())


def finished(path: Path) -> bool:
    return not Path(f"{path}.training").is_file()


def read(name: str, **more) -> Snapshots:
    return read_snapshots(need_data(name), **more)


def starts(snapshots: Snapshots, n: int, seed: int = 0) -> torch.Tensor:
    """n frames [n, atoms, 3] drawn from the snapshots, centred."""
    order = np.random.default_rng(seed).permutation(len(snapshots.positions))[np.arange(n) % len(snapshots.positions)]
    x = torch.as_tensor(snapshots.positions[order], dtype=torch.float32)
    return x - x.mean(1, keepdim=True)


def angle_row(system: str, quantity: str, run: Sequence[np.ndarray], reference: Sequence[np.ndarray], margin: float,
              blurred: str = "") -> Row:
    """Divergence of a distribution of angles from the reference's, against its sampling floor plus a margin."""
    units = [independent_units(side, [dihedral_autocorrelation(side)]) for side in (run, reference)]
    divergence = jensen_shannon(*(periodic_histogram(np.concatenate(side), BINS) for side in (run, reference)))
    floor = sampling_floor(*units, bins=BINS, divergence=divergence)
    return Row(system, f"divergence of {quantity}{blurred}, nats", f"{divergence:.4f}",
               f"at most floor {floor.mean:.4f} (± {floor.sd:.4f}) + {margin:g}", divergence <= floor.mean + margin,
               "" if floor.reliable else f"floor not reliable: {floor.reason}")


def number_row(system: str, quantity: str, run: Sequence[np.ndarray], reference: Sequence[np.ndarray],
               margin: float) -> Row:
    """The same for a number: its range becomes three quarters of a circle, which changes no histogram."""
    together = np.concatenate([*run, *reference])
    low, width = together.min(), np.ptp(together)

    def turned(side):
        return [(part - low) / width * 1.5 * np.pi - 0.75 * np.pi for part in side]

    return angle_row(system, quantity, turned(run), turned(reference), margin)


def torsion_hops(torsions: np.ndarray, interval: float) -> tuple[float, float, int]:
    """Hops per torsion and ns with their Poisson error, and their number, from angles [frames, replicas, torsions]."""
    cores = torsion_core(torsions)
    found = hop_rates([cores[:, r, k] for r in range(cores.shape[1]) for k in range(cores.shape[2])], interval)
    return 1000 * found.total_rate, 1000 * found.total_rate_error, found.total


def hops_row(system: str, quantity: str, run: tuple[float, float, int], reference: tuple[float, float, int],
             source: str) -> Row:
    """The run's rate against the reference's, within 10% where the errors allow that to be known."""
    ratio = run[0] / reference[0]
    error = ratio * np.hypot(run[1] / run[0], reference[1] / reference[0])
    return Row(system, quantity, f"{run[0]:.2f} ± {run[1]:.2f} ({run[2]} hops)",
               f"{reference[0]:.2f} ± {reference[1]:.2f} ({source}) within 10%",
               bool(abs(ratio - 1) <= 0.1), f"ratio {ratio:.3f} ± {error:.3f}")


def resampled(values: np.ndarray) -> list[np.ndarray]:
    """[frames, replicas, ...] as one array per replica."""
    return [values[:, r] for r in range(values.shape[1])]
