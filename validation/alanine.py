"""Alanine dipeptide learned from snapshots: heavy atoms, all atoms, and the five atoms of its backbone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diffmd_fast import load_model
from diffmd_fast.analysis import consistency, dihedral_angles, ramachandran_basin
from diffmd_fast.analysis.consistency import ReferenceHistogram, read_reference
from diffmd_fast.analysis.kinetics import hop_rates
from diffmd_fast.io import Snapshots
from diffmd_fast.sampling import Sampler, Spring
from diffmd_fast.sampling.stability import estimate_curvature
from diffmd_fast.training import Settings

from .biased import POPULATIONS, run_under_bias
from .figures import short_time_figure, surfaces_figure
from .learned import DATA, ROOT, force_row, need_data, read, trained
from .measure import Part, Row, number

DIFFUSION = 0.00207861565453831  # nm^2/ps, of the reference's Brownian runs
BROWNIAN = sorted(Path(__file__).with_name("ala2_brownian").glob("*.json"))  # 104.9 ns beside 4.75 of ../shared/data
ALL_ATOMS, ALL = ROOT / "examples" / "alanine_dipeptide" / "all_atoms.safetensors", "alanine dipeptide, all atoms"
N_DYNAMICS = 384  # replicas from each basin
N_BIASED, BIASED_STEPS = 256, 20_000  # replicas and steps under the bias
BASINS = {"alphaR": 1, "beta_PPII": 2}  # names of the reference's summary, numbers of ramachandran_basin


def heavy_atoms() -> Part:
    """The checkpoint that the package ships."""
    part = Part("Alanine dipeptide, heavy atoms, learned")
    model = load_model(ROOT / "examples" / "alanine_dipeptide" / "model.safetensors")
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


def basins(part: Part, system: str, model, snapshots: Snapshots) -> None:
    """Free-energy error of every basin, from a run whose barriers a fixed bias lowers, reweighted exactly.

    A run that hardly crosses into phi > 0 has the share that it was started with, whatever the model.  With c crossings
    a replica and that basin a third of the biased frames, the start is forgotten in about 0.44/c of the run, so from
    four on at most a tenth of an error is hidden by it; with fewer that basin is not reached.
    """
    found = run_under_bias(model, snapshots, DATA, n_replicas=N_BIASED, n_steps=BIASED_STEPS, progress=False)
    for name, share, value, error, (true, uncertainty) in zip(
            POPULATIONS, found.populations, found.free_energy_error, found.standard_error, POPULATIONS.values()):
        both = float(np.hypot(error, uncertainty / true))
        remark = f"share {number(share, error * share)}, reference {true} ± {uncertainty}"
        mixed = name != "phi > 0" or found.crossings >= 4 * N_BIASED
        if not mixed:
            remark += f"; {found.crossings} crossings of {N_BIASED} replicas: this is what they were started with"
        part.rows.append(Row(system, f"free-energy error of {name}, kT", number(value, both), "0 within 0.15",
                             bool(mixed and abs(value) <= 0.15), remark))
    part.remarks.append(f"Basins: {N_BIASED} replicas × {BIASED_STEPS} steps under the fixed bias of the reference "
                        f"data, {found.crossings} crossings of the boundary of φ > 0, {found.lost} replicas lost; "
                        "reweighted exactly.")


def all_atoms() -> Part:
    """The checkpoint that the package ships: populations and forces."""
    part = Part("Alanine dipeptide, all atoms, learned")
    model = load_model(ALL_ATOMS)
    snapshots = read("ala2_implicit_300K_train.npz")
    faces(part, ALL, model, snapshots, read_reference(need_data("ala2_reference_rama.npz")), 0.005, n_steps=20_000,
          n_generated=2048)
    basins(part, ALL, model, snapshots)
    with np.load(need_data("ala2_implicit_300K_valid_eval.npz")) as file:
        frames, forces = torch.as_tensor(file["positions"]), torch.as_tensor(file["forces"]).double()
    part.rows.append(force_row(ALL, model, frames, forces))
    return part


def all_atoms_dynamics() -> Part:
    """Short-time curves from each basin and exchange rates against Brownian dynamics with the true forces."""
    part, system, model = Part("Alanine dipeptide, all atoms, learned: dynamics"), ALL, load_model(ALL_ATOMS)
    snapshots = read("ala2_implicit_300K_train.npz")
    reference = pooled(need_data("ala2_brownian_300K_summary.json"), *BROWNIAN)
    x = torch.as_tensor(snapshots.positions)
    quadruples = np.array([[4, 6, 8, 14], [6, 8, 14, 16]])
    angles = dihedral_angles(snapshots.positions, quadruples)
    curves, hops = {}, []
    # D dt L = 0.9: with Leimkuhler-Matthews even the stiffest bond has the right width.
    spring = Spring.from_time_step(0.9 / (DIFFUSION * estimate_curvature(model, x[:: len(x) // 64])), DIFFUSION)
    every = max(1, round(0.1 / spring.time_step))
    interval = every * spring.time_step
    for basin in ("beta_PPII", "alphaR"):
        chosen = np.flatnonzero(in_basin(angles, basin))
        chosen = np.random.default_rng(1).permutation(chosen)[:N_DYNAMICS]
        start = x[chosen] - x[chosen].mean(1, keepdim=True)
        sampler = Sampler(model, spring, seed=11, integrator="leimkuhler-matthews")
        frames = sampler.run(start, round(100 / spring.time_step), every).positions
        q = dihedral_angles(frames.reshape(-1, *frames.shape[2:]), quadruples).reshape(*frames.shape[:2], 2)
        hops.append(q)
        table = reference[f"short_time_from_{basin}"]
        lags = np.array(table["lag_ps"])
        ours = {name: from_basin(q, in_basin(q, basin), k, lags, interval) for k, name in enumerate(("phi", "psi"))}
        theirs = {name: (1 - np.array(table[name]), np.array(table[f"{name}_err"])) for name in ours}
        curves[basin] = lags, ours, theirs
        for name in ours:
            compare_curve(part, system, basin, name, lags, ours[name], theirs[name])
    part.pictures.append((short_time_figure(curves), "1 − ⟨cos Δφ⟩ and 1 − ⟨cos Δψ⟩ from either basin, of the run and "
                          "of Brownian dynamics with the true forces (bars: two standard errors), and their difference "
                          "with the standard error of both; dashed: what is asked."))
    exchange(part, system, hops, interval, reference["hops"])
    part.remarks.append(f"{N_DYNAMICS} replicas × 100 ps from frames of either basin (leimkuhler-matthews, time step "
                        f"{spring.time_step:.3g} ps, D = {DIFFUSION:.4g} nm²/ps), against "
                        f"{(reference['hops']['ps_in_alphaR'] + reference['hops']['ps_in_beta']) / 1000:.1f} ns of "
                        "Brownian dynamics with the true forces (OpenMM).")
    return part


def pooled(*summaries: Path) -> dict:
    """Hops, and curves weighted by the frames that they start from, of runs that ala2_brownian.py has summed up."""
    runs = [json.loads(path.read_text()) for path in summaries]
    counted = ("alphaR_to_beta", "beta_to_alphaR", "ps_in_alphaR", "ps_in_beta")
    result: dict = {"hops": {key: sum(run["hops"][key] for run in runs) for key in counted}}
    for basin in BASINS:
        tables = [run[f"short_time_from_{basin}"] for run in runs]
        weight = np.array([table["start_frames"] for table in tables], float)
        weight /= weight.sum()
        result[f"short_time_from_{basin}"] = {"lag_ps": tables[0]["lag_ps"]} | {
            name: weight @ np.array([table[name] for table in tables]) for name in ("phi", "psi")} | {
            f"{name}_err": np.sqrt(weight**2 @ np.array([table[f"{name}_err"] for table in tables]) ** 2)
            for name in ("phi", "psi")}
    return result


def in_basin(angles: np.ndarray, basin: str) -> np.ndarray:
    """Whether (phi, psi) [..., 2] lies in one of BASINS."""
    return ramachandran_basin(angles.reshape(-1, 2)).reshape(angles.shape[:-1]) == BASINS[basin]


def from_basin(q: np.ndarray, inside: np.ndarray, k: int, lags: np.ndarray, interval: float) -> tuple:
    """1 - <cos(q(t) - q(0))> over frames [frames, replicas] that start inside, at the lags; errors over replicas."""
    values, errors = [], []
    for lag in np.rint(lags / interval).astype(int):
        if lag == 0:
            values.append(0.0)
            errors.append(0.0)
            continue
        change = 1 - np.cos(q[lag:, :, k] - q[:-lag, :, k])
        weight = inside[:-lag].astype(float)
        per_replica, count = (change * weight).sum(0), weight.sum(0)
        mean = per_replica.sum() / count.sum()
        values.append(mean)
        errors.append(np.sqrt(((per_replica - mean * count) ** 2).sum()) / count.sum())
    return np.array(values), np.array(errors)


def compare_curve(part: Part, system: str, basin: str, name: str, lags: np.ndarray, ours: tuple,
                  theirs: tuple) -> None:
    """The largest relative difference over the lags 0.5 to 10 ps; ours and theirs are (values, standard errors)."""
    at = (lags >= 0.5) & (lags <= 10)
    true = theirs[0][at]
    ratio = ours[0][at] / true - 1
    error = np.hypot(ours[1], theirs[1])[at] / true
    worst = int(np.abs(ratio).argmax())
    part.rows.append(Row(system, f"1 − ⟨cos Δ{name}⟩ from {basin}, largest difference over lags 0.5 to 10 ps",
                         f"{100 * ratio[worst]:+.1f} ± {100 * error[worst]:.1f} %", "0 within 5%",
                         bool(abs(ratio[worst]) <= 0.05),
                         f"at {lags[at][worst]:g} ps; mean difference {100 * ratio.mean():+.1f} %"))


def cores(angles: np.ndarray) -> list[np.ndarray]:
    """0 in alphaR's core, 1 in beta's, as ../shared/data/make/ala2_brownian.py has them, -1 outside: [frames] of each
    replica, from (phi, psi) [frames, replicas, 2]."""
    psi = np.degrees(angles[..., 1])
    left = ramachandran_basin(angles.reshape(-1, 2)).reshape(psi.shape) == 0
    return list(np.where(left, -1, np.where(np.abs(psi + 20) < 40, 0, np.where(psi > 110, 1, -1))).T)


def exchange(part: Part, system: str, runs: list, interval: float, reference: dict) -> None:
    """Core-to-core rates of alphaR <-> beta."""
    found = hop_rates([core for q in runs for core in cores(q)], interval, n_cores=2)
    for (i, j), label, n, time in (((0, 1), "alphaR_to_beta", reference["alphaR_to_beta"], reference["ps_in_alphaR"]),
                                   ((1, 0), "beta_to_alphaR", reference["beta_to_alphaR"], reference["ps_in_beta"])):
        value, error = 1000 * found.rates[i, j], 1000 * found.errors[i, j]
        true, uncertainty = 1000 * n / time, 1000 * n**0.5 / time
        part.rows.append(Row(system, f"rate {label.replace('_', ' ')}, 1/ns", number(value, error),
                             f"{number(true, uncertainty)} within two standard errors of both",
                             bool(abs(value - true) <= 2 * np.hypot(error, uncertainty)),
                             f"{found.counts[i, j]} hops here, {n} in the reference"))
