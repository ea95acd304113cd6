"""Alanine dipeptide learned from snapshots: heavy atoms, all atoms, and the five atoms of its backbone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from diffmd_fast import load_model
from diffmd_fast.analysis import consistency
from diffmd_fast.analysis.consistency import ReferenceHistogram, read_reference
from diffmd_fast.io import Snapshots
from diffmd_fast.training import Settings

from .biased import POPULATIONS, run_under_bias
from .figures import surfaces_figure
from .learned import ALANINE_DIPEPTIDE, DATA, force_row, need_data, read, trained
from .measure import Part, Row, number

DIFFUSION = 0.00207861565453831  # nm^2/ps, of the reference's Brownian runs
ALL_ATOMS, ALL = ALANINE_DIPEPTIDE / "all_atoms.safetensors", "alanine dipeptide, all atoms"
N_BIASED, BIASED_STEPS = 256, 20_000  # replicas and steps under the bias


def heavy_atoms() -> Part:
    """The checkpoint that the package ships."""
    part = Part("Alanine dipeptide, heavy atoms, learned")
    model = load_model(ALANINE_DIPEPTIDE / "model.safetensors")
    snapshots = read("ala2_implicit_300K_train.npz", atoms="heavy")
    system = "alanine dipeptide, heavy atoms"
    faces(part, system, model, snapshots, read_reference(need_data("ala2_reference_rama.npz")), 0.005, n_steps=60_000)
    basins(part, system, model, snapshots)
    return part


def five_beads() -> Part:
    """Atoms C N CA C N of the backbone, as in ScoreMD's protocol."""
    part = Part("Alanine dipeptide, five atoms of the backbone, learned")
    snapshots = backbone(read("ala2_implicit_300K_train.npz"))
    model = trained("five_beads", snapshots, Settings(n_steps=10**6, max_seconds=240))
    faces(part, "five beads", model, snapshots, None, 0.003, n_steps=60_000)
    basins(part, "five beads", model, snapshots)
    return part


def backbone(snapshots: Snapshots) -> Snapshots:
    """Frames of the atoms of phi and psi: 4, 6, 8, 14, 16."""
    keep = [4, 6, 8, 14, 16]
    return replace(snapshots, positions=snapshots.positions[:, keep], molecule=snapshots.molecule.select(keep),
                   valid_positions=snapshots.valid_positions[:, keep])


def faces(part: Part, system: str, model, snapshots: Snapshots, reference: ReferenceHistogram | None, margin: float,
          n_steps: int, n_generated: int = 4096) -> None:
    """Generated frames, the simulated ensemble, snapshots and the reference in one table; what is asked is one row."""
    found = consistency(model, snapshots, reference=reference, n_replicas=128, n_steps=n_steps, diffusion=DIFFUSION,
                        integrator="leimkuhler-matthews", progress=False, n_generated=n_generated)
    truth = "snapshots" if reference is None else "reference"
    for agreement in found.agreements:
        if agreement.dihedrals != found.dihedrals.surface:
            continue
        asked = {agreement.first, agreement.second} == {"simulated", truth}
        floor = agreement.floor
        part.rows.append(Row(system, f"divergence of ({', '.join(agreement.dihedrals)}), {agreement.first} against "
                             f"{agreement.second}, nats", f"{agreement.divergence:.4f}",
                             f"at most floor {floor.mean:.4f} (± {floor.sd:.4f}) + {margin:g}" if asked else
                             f"floor {floor.mean:.4f} (± {floor.sd:.4f})",
                             bool(agreement.divergence <= floor.mean + margin) if asked else None,
                             floor.reason if not floor.reliable else ""))
    part.pictures.append((surfaces_figure(system.replace(" ", "_").replace(",", ""), found.histograms),
                          f"{system}: free energy of the dihedrals, generated, simulated and from the data."))
    settings = found.settings
    step, level = settings["time_step_ps"], settings["noise_level_nm"]
    part.remarks.append(f"{settings['n_replicas']} replicas × {settings['n_steps'] * step:.0f} ps "
                        f"({settings['integrator']}, time step {step:.3g} ps, D = {DIFFUSION:.4g} nm²/ps), "
                        f"{found.lost} replicas lost; {found.frames['generated']} frames generated; noise level "
                        f"{level:g} nm.")


def basins(part: Part, system: str, model, snapshots: Snapshots, n_steps: int = BIASED_STEPS) -> None:
    """Free-energy error of every basin, from a run whose barriers a fixed bias lowers, reweighted exactly.

    A run that hardly crosses into phi > 0 has the share that it was started with, whatever the model.  With c crossings
    a replica and that basin a third of the biased frames, the start is forgotten in about 0.44/c of the run, so from
    four on at most a tenth of an error is hidden by it; with fewer that basin is not reached.
    """
    found = run_under_bias(model, snapshots, DATA, n_replicas=N_BIASED, n_steps=n_steps, progress=False)
    for name, share, value, error, (true, uncertainty) in zip(
            POPULATIONS, found.populations, found.free_energy_error, found.standard_error, POPULATIONS.values()):
        both = float(np.hypot(error, uncertainty / true))
        remark = f"share {number(share, error * share)}, reference {true} ± {uncertainty}"
        mixed = name != "phi > 0" or found.crossings >= 4 * N_BIASED
        if not mixed:
            remark += f"; {found.crossings} crossings of {N_BIASED} replicas: this is what they were started with"
        part.rows.append(Row(system, f"free-energy error of {name}, kT", number(value, both), "0 within 0.15",
                             bool(mixed and abs(value) <= 0.15), remark))
    part.remarks.append(f"Basins: {N_BIASED} replicas × {n_steps} steps under the fixed bias of the reference "
                        f"data, {found.crossings} crossings of the boundary of φ > 0, {found.lost} replicas lost; "
                        "reweighted exactly.")


def all_atoms() -> Part:
    """The checkpoint that the package ships: populations and forces."""
    part = Part("Alanine dipeptide, all atoms, learned")
    model = load_model(ALL_ATOMS)
    snapshots = read("ala2_implicit_300K_train.npz")
    faces(part, ALL, model, snapshots, read_reference(need_data("ala2_reference_rama.npz")), 0.005, n_steps=20_000,
          n_generated=2048)
    basins(part, ALL, model, snapshots, n_steps=26_000)  # 20,000 had 983 crossings
    with np.load(need_data("ala2_implicit_300K_valid_eval.npz")) as file:
        frames, forces = torch.as_tensor(file["positions"]), torch.as_tensor(file["forces"]).double()
    part.rows.append(force_row(ALL, model, frames, forces))
    return part
