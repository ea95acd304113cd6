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
from diffmd_fast.sampling.spring import MOLAR_GAS_CONSTANT
from diffmd_fast.training import Settings, train

from .measure import Row

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
ALANINE_DIPEPTIDE = ROOT / "examples" / "alanine_dipeptide"  # the models that the package ships
MODELS = ROOT / "validation-output" / "models"
BINS = 64


class Absent(Exception):
    """Reference data that a part needs and this machine has not: the part is left out."""


def need_data(name: str) -> Path:
    """A file of the reference data; raises `Absent` without it."""
    path = DATA / name
    if not path.is_file():
        raise Absent(f"reference data {path} is not on this machine")
    return path


def trained(name: str, snapshots: Snapshots, settings: Settings) -> SchNet:
    """The model of that name, trained now, or before with the same settings (remove it to train anew)."""
    MODELS.mkdir(parents=True, exist_ok=True)
    path = MODELS / f"{name}.safetensors"
    if path.is_file():
        model = load_model(path)
        wanted = json.loads(json.dumps(settings.__dict__))
        if model.training_record["settings"] == wanted and not Path(f"{path}.training").is_file():
            print(f"   {name}: the model in {path}", flush=True)
            return model
    return train(replace(snapshots, replica=None, time=None), path, settings=settings, progress=False,
                 resume=Path(f"{path}.training").is_file())


def read(name: str, **more) -> Snapshots:
    return read_snapshots(need_data(name), **more)


def starts(snapshots: Snapshots, n: int, seed: int = 0) -> torch.Tensor:
    """n frames [n, atoms, 3] drawn from the snapshots, centred."""
    order = np.random.default_rng(seed).permutation(len(snapshots.positions))[np.arange(n) % len(snapshots.positions)]
    x = torch.as_tensor(snapshots.positions[order], dtype=torch.float32)
    return x - x.mean(1, keepdim=True)


def angle_row(system: str, quantity: str, run: Sequence[np.ndarray], reference: Sequence[np.ndarray],
              margin: float) -> Row:
    """Divergence of a distribution of angles from the reference's, against its sampling floor plus a margin."""
    units = [independent_units(side, [dihedral_autocorrelation(side)]) for side in (run, reference)]
    divergence = jensen_shannon(*(periodic_histogram(np.concatenate(side), BINS) for side in (run, reference)))
    floor = sampling_floor(*units, bins=BINS, divergence=divergence)
    return Row(system, f"divergence of {quantity}, nats", f"{divergence:.4f}",
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
    """The run's rate against the reference's: reached within 10%, whatever the error, which the remark states."""
    ratio = run[0] / reference[0]
    error = ratio * np.hypot(run[1] / run[0], reference[1] / reference[0])
    return Row(system, quantity, f"{run[0]:.2f} ± {run[1]:.2f} ({run[2]} hops)",
               f"{reference[0]:.2f} ± {reference[1]:.2f} ({source}) within 10%",
               bool(abs(ratio - 1) <= 0.1), f"ratio {ratio:.3f} ± {error:.3f}")


def force_row(system: str, model: SchNet, positions: torch.Tensor, true: torch.Tensor) -> Row:
    """Root-mean-square error of kT0 times the score against true forces [frames, atoms, 3], kJ/mol/nm."""
    score = torch.cat([model.energy_and_score(chunk)[1] for chunk in positions.float().split(512)]).double()
    error = (true - MOLAR_GAS_CONSTANT * model.temperature * score).square().mean().sqrt().item()
    return Row(system, "force error, kJ/mol/nm", f"{error:.0f}", f"forces are {true.square().mean().sqrt():.0f} (rms)",
               None, f"at noise level {model.noise_level:g} nm, whose blur softens the bonds, against forces without")


def resampled(values: np.ndarray) -> list[np.ndarray]:
    """[frames, replicas, ...] as one array per replica."""
    return [values[:, r] for r in range(values.shape[1])]
