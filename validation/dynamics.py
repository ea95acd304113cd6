"""Dynamics of alanine dipeptide, all atoms, against Brownian dynamics with the true forces.

Both sides are summed up by the same functions.  Frames that curves start from count so that (phi, psi) is distributed
over a basin as in the reference histogram: a run of some tens of nanoseconds crosses between the parts of a basin only
so often, and the chance in how long it stayed in each is a good part of the error.  Populations themselves are another
part (alanine.all_atoms).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffmd_fast import load_model
from diffmd_fast.analysis import dihedral_angles, ramachandran_basin
from diffmd_fast.analysis.consistency import read_reference
from diffmd_fast.analysis.kinetics import hop_rates
from diffmd_fast.sampling import Sampler, Spring
from diffmd_fast.sampling.stability import estimate_curvature

from .ala2_reference import keep
from .alanine import ALL, ALL_ATOMS, DIFFUSION
from .figures import short_time_figure
from .learned import ROOT, need_data, read
from .measure import Part, Row, number

BROWNIAN = sorted(Path(__file__).with_name("ala2_brownian").glob("*.json"))  # made by ala2_reference.py
N_REPLICAS, PICOSECONDS = 224, 100  # from each basin: what the hour of all parts leaves
RUNS = ROOT / "validation-output"
BASINS = {"alphaR": 1, "beta_PPII": 2}  # numbers of ramachandran_basin
ANGLES = {"phi": "φ", "psi": "ψ"}
QUADRUPLES = np.array([[4, 6, 8, 14], [6, 8, 14, 16]])
LAGS = np.r_[np.arange(0, 21), np.arange(25, 101, 5)] / 10  # ps


def all_atoms_dynamics() -> Part:
    """Short-time curves from each basin and exchange rates against Brownian dynamics with the true forces."""
    part, model = Part("Alanine dipeptide, all atoms, learned: dynamics"), load_model(ALL_ATOMS)
    x = torch.as_tensor(read("ala2_implicit_300K_train.npz").positions)
    reference, histogram = pooled(BROWNIAN), reference_histogram()
    # D dt L = 0.9: with Leimkuhler-Matthews even the stiffest bond has the right width.
    spring = Spring.from_time_step(0.9 / (DIFFUSION * estimate_curvature(model, x[:: len(x) // 64])), DIFFUSION)
    runs, intervals = zip(*(run_from(basin, model, x, spring) for basin in BASINS))
    angles, interval = np.concatenate(runs, axis=1), intervals[0]
    curves = {}
    for basin in BASINS:
        ours = {name: short_time_curve(angles, basin, name, interval, histogram) for name in ANGLES}
        theirs = reference["curves"][basin]
        curves[basin] = LAGS, ours, theirs
        for name in ANGLES:
            compare_curve(part, basin, name, ours[name], theirs[name])
    part.pictures.append((short_time_figure(curves), "1 − ⟨cos Δφ⟩ and 1 − ⟨cos Δψ⟩ from either basin, of the run and "
                          "of Brownian dynamics with the true forces (bars: two standard errors), and their difference "
                          "with the standard error of both; dashed: what is asked."))
    exchange(part, angles, interval, reference["hops"])
    part.remarks.append(f"{N_REPLICAS} replicas × {PICOSECONDS} ps from frames of either basin (leimkuhler-matthews, "
                        f"time step {spring.time_step:.3g} ps, D = {DIFFUSION:.4g} nm²/ps), against "
                        f"{reference['picoseconds'] / 1000:.1f} ns of Brownian dynamics with the true forces (OpenMM).")
    return part


def run_from(basin: str, model, x: torch.Tensor, spring: Spring) -> tuple[np.ndarray, float]:
    """(phi, psi) [frames, replicas, 2] of a run that starts from frames x of the basin, and ps between frames.

    Kept in validation-output, for more of the reference to be compared with; remove it to run anew.
    """
    every = max(1, round(0.1 / spring.time_step))
    interval = every * spring.time_step
    path = RUNS / f"all_atoms_from_{basin}.npz"
    made_by = f"{hashlib.sha256(ALL_ATOMS.read_bytes()).hexdigest()}, {N_REPLICAS} x {PICOSECONDS} ps, {interval}"
    if path.is_file():
        with np.load(path) as kept:
            if kept["made_by"] == made_by:
                print(f"   the run in {path}", flush=True)
                return kept["angles"], interval
    chosen = np.flatnonzero(in_basin(dihedral_angles(x.numpy(), QUADRUPLES), basin))
    start = x[np.random.default_rng(1).permutation(chosen)[:N_REPLICAS]]
    sampler = Sampler(model, spring, seed=11, integrator="leimkuhler-matthews")
    frames = sampler.run(start - start.mean(1, keepdim=True), round(PICOSECONDS / spring.time_step), every).positions
    angles = dihedral_angles(frames.reshape(-1, *frames.shape[2:]), QUADRUPLES).reshape(*frames.shape[:2], 2)
    keep(path, angles=angles, made_by=made_by)
    return angles, interval


def reference_histogram() -> np.ndarray:
    """Probabilities of (phi, psi) on even bins [bins, bins]."""
    return read_reference(need_data("ala2_reference_rama.npz")).probability


def in_basin(angles: np.ndarray, basin: str) -> np.ndarray:
    """Whether (phi, psi) [..., 2] lies in one of BASINS."""
    return ramachandran_basin(angles.reshape(-1, 2)).reshape(angles.shape[:-1]) == BASINS[basin]


def short_time_curve(angles: np.ndarray, basin: str, name: str, interval: float,
                     histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 - <cos(q(t) - q(0))> at LAGS and its standard error, q one of (phi, psi) [frames, replicas, 2], q(0) in the
    basin.

    Each bin of (phi, psi) that a pair of frames starts from counts as the histogram says, whatever its share of this
    run (post-stratification).  A pair counts half for its start and half for its end in the basin: dynamics is
    reversible, so both means are the same, and ways into the basin tell as much as those out of it.  Errors are from
    the replicas' scatter.
    """
    bins, replicas, q = len(histogram), angles.shape[1], angles[..., list(ANGLES).index(name)]
    centres = (np.stack(np.indices(histogram.shape), -1) + 0.5) * (2 * np.pi / bins) - np.pi
    wanted = np.where(sum(in_basin(centres, each) for each in BASINS), histogram, 0).ravel()
    place = np.mod(np.floor((angles + np.pi) * (bins / (2 * np.pi))).astype(int), bins)
    cell = place[..., 0] * bins + place[..., 1] + bins**2 * np.arange(replicas)
    inside, shape = in_basin(angles, basin), (replicas, bins**2)
    if not inside[: -round(LAGS[-1] / interval)].any():
        raise ValueError(f"angles: expected frames in {basin}, got none in {len(angles)} frames of {replicas} replicas")
    values, errors = np.zeros((2, len(LAGS)))
    for i, lag in enumerate(np.rint(LAGS / interval).astype(int)):
        if lag == 0:
            continue
        change = (1 - np.cos(q[lag:] - q[:-lag])) * (0.5 * inside[:-lag] + 0.5 * inside[lag:])
        start = cell[:-lag].ravel()
        total = np.bincount(start, change.ravel(), replicas * bins**2).reshape(shape)
        count = np.bincount(start, minlength=replicas * bins**2).reshape(shape)
        n = count.sum(0)
        weight = np.where(n > 0, wanted, 0)
        weight, n = weight / weight[in_basin(centres, basin).ravel()].sum(), np.maximum(n, 1)
        mean = total.sum(0) / n
        values[i] = weight @ mean
        errors[i] = np.sqrt((((total - mean * count) @ (weight / n)) ** 2).sum())
    return values, errors


def cores(angles: np.ndarray) -> list[np.ndarray]:
    """0 in alphaR's core, 1 in beta's, as ../shared/data/make/ala2_brownian.py has them, -1 outside: [frames] of each
    replica, from (phi, psi) [frames, replicas, 2]."""
    psi = np.degrees(angles[..., 1])
    left = ramachandran_basin(angles.reshape(-1, 2)).reshape(psi.shape) == 0
    return list(np.where(left, -1, np.where(np.abs(psi + 20) < 40, 0, np.where(psi > 110, 1, -1))).T)


def pooled(summaries: Sequence[Path]) -> dict:
    """picoseconds and hops of all the summaries of ala2_reference.py together, and, of those that have them, curves
    {basin: {angle: (values, standard errors)}}, each part weighted by its time."""
    parts = [json.loads(path.read_text()) for path in summaries]
    hops = {key: sum(part["hops"][key] for part in parts) for key in parts[0]["hops"]}
    drawn = [part for part in parts if "curves" in part]
    share = np.array([part["picoseconds"] for part in drawn])
    share /= share.sum()
    curves = {}
    for basin in BASINS:
        curves[basin] = {}
        for name in ANGLES:
            value, error = np.array([part["curves"][basin][name] for part in drawn]).swapaxes(0, 1)
            curves[basin][name] = share @ value, np.sqrt(share**2 @ error**2)
    return {"picoseconds": sum(part["picoseconds"] for part in parts), "hops": hops, "curves": curves}


def compare_curve(part: Part, basin: str, name: str, ours: tuple, theirs: tuple) -> None:
    """The largest relative difference over the lags 0.5 to 10 ps; ours and theirs are (values, standard errors)."""
    at = (LAGS >= 0.5) & (LAGS <= 10)
    true = theirs[0][at]
    ratio = ours[0][at] / true - 1
    error = np.hypot(ours[1], theirs[1])[at] / true
    worst = int(np.abs(ratio).argmax())
    part.rows.append(Row(ALL, f"1 − ⟨cos Δ{ANGLES[name]}⟩ from {basin}, largest difference over lags 0.5 to 10 ps",
                         f"{100 * ratio[worst]:+.1f} ± {100 * error[worst]:.1f} %", "0 within 5%",
                         bool(abs(ratio[worst]) <= 0.05),
                         f"at {LAGS[at][worst]:g} ps; mean difference {100 * ratio.mean():+.1f} %"))


def exchange(part: Part, angles: np.ndarray, interval: float, reference: dict) -> None:
    """Core-to-core rates of alphaR <-> beta."""
    found = hop_rates(cores(angles), interval, n_cores=2)
    for (i, j), label, n, time in (((0, 1), "alphaR_to_beta", reference["alphaR_to_beta"], reference["ps_in_alphaR"]),
                                   ((1, 0), "beta_to_alphaR", reference["beta_to_alphaR"], reference["ps_in_beta"])):
        value, error = 1000 * found.rates[i, j], 1000 * found.errors[i, j]
        true, uncertainty = 1000 * n / time, 1000 * n**0.5 / time
        part.rows.append(Row(ALL, f"rate {label.replace('_', ' ')}, 1/ns", number(value, error),
                             f"{number(true, uncertainty)} within two standard errors of both",
                             bool(abs(value - true) <= 2 * np.hypot(error, uncertainty)),
                             f"{found.counts[i, j]} hops here, {n} in the reference"))
