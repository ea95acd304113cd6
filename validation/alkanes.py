"""United-atom alkanes: exact forces against exact populations and Brownian reference runs, then models of snapshots."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import torch

from diffmd_fast.analysis import dihedral_angles
from diffmd_fast.analysis.structure import correlation_matrix, radius_of_gyration
from diffmd_fast.models import TraPPEAlkane
from diffmd_fast.sampling import Sampler, Spring
from diffmd_fast.sampling.stability import estimate_curvature
from diffmd_fast.training import Settings

from .figures import autocorrelation_figure, matrix_figure, torsion_figure
from .learned import (
    angle_row,
    force_row,
    hops_row,
    need_data,
    number_row,
    read,
    resampled,
    starts,
    torsion_hops,
    trained,
)
from .measure import Means, Part, number, within

DIFFUSION = 0.0017202336451351532  # nm^2/ps, of the reference's Brownian runs
TRANS = np.radians(120)  # |torsion| above


def torsions(n_beads: int) -> np.ndarray:
    return np.array([(i, i + 1, i + 2, i + 3) for i in range(n_beads - 3)])


def exact_trans_share(model: TraPPEAlkane, ratio: float = 1.0) -> float:
    """Of one torsion by quadrature: in butane it is independent of bonds and angles."""
    angle = torch.linspace(-np.pi, np.pi, 200001, dtype=torch.float64)[:-1]
    weight = torch.exp(-model.torsion_energy(torch.cos(angle)) / (model.kilojoules * ratio))
    return (weight[angle.abs() > TRANS].sum() / weight.sum()).item()


def trans_share(positions: torch.Tensor) -> torch.Tensor:
    """1 where the torsion of butane, positions [replicas, 4, 3], is trans."""
    angles = dihedral_angles(positions.cpu().numpy(), torsions(4))[:, 0]
    return torch.from_numpy(np.abs(angles) > TRANS)


def run_exact(model: TraPPEAlkane, start: torch.Tensor, picoseconds: float, time_step: float, seed: int,
              integrator: str) -> tuple:
    """A run with the exact forces from frames [replicas, beads, 3]: torsions [frames, replicas, torsions], and ps
    between frames."""
    every = max(1, round(0.25 / time_step))
    frames = Sampler(model, Spring.from_time_step(time_step, DIFFUSION), seed=seed, integrator=integrator).run(
        start, round(picoseconds / time_step) // every * every, every, check_every=1000).positions
    return angles_of(frames), every * time_step


def angles_of(frames: np.ndarray) -> np.ndarray:
    """[frames, replicas, beads, 3] to torsions [frames, replicas, torsions]."""
    flat = frames.reshape(-1, *frames.shape[2:])
    return dihedral_angles(flat, torsions(frames.shape[2])).reshape(*frames.shape[:2], -1)


def radii(frames: np.ndarray) -> np.ndarray:
    """Radius of gyration [frames, replicas] of [frames, replicas, beads, 3], nm."""
    return radius_of_gyration(frames.reshape(-1, *frames.shape[2:])).reshape(frames.shape[:2])


def butane_exact() -> Part:
    part, model = Part("TraPPE butane with its exact forces"), TraPPEAlkane.butane()
    # D dt L = 0.47: bonds are 30% too wide in variance, torsions are three hundred times softer.
    angles, interval = run_exact(model, model.sample(2048, seed=1).float(), 50.0, 1e-3, 1, "euler-maruyama")
    exact = exact_trans_share(model)
    shares = (np.abs(angles[:, :, 0]) > TRANS).mean(0)
    error = shares.std(ddof=1) / len(shares) ** 0.5
    part.rows.append(within("butane, exact forces", "trans share", shares.mean(), error, exact,
                            remark="exact by quadrature"))
    with np.load(need_data("butane_traj_brownian_300K.npz")) as file:
        reference = dihedral_angles(file["positions"], torsions(4))[:, None, :]
        spacing = float(file["time_between_frames"])
    part.rows.append(hops_row("butane, exact forces", "hops per ns", torsion_hops(angles, interval), (14.1, 0.5, 692),
                              "two reference runs of 25 and 24 ns"))
    compare_autocorrelation(part, "butane, exact forces", angles, interval, reference, spacing)
    return part


def compare_autocorrelation(part: Part, system: str, angles: np.ndarray, interval: float, reference: np.ndarray,
                            spacing: float) -> None:
    """C(t) = <cos(f(t) - f(0))> of both at a few times, with errors over replicas and over blocks."""
    lags = [2.0, 5.0, 10.0, 20.0]
    ours = [lag_mean(angles, round(lag / interval)) for lag in lags]
    pieces = reference[: len(reference) // 50 * 50].reshape(50, -1, reference.shape[-1]).transpose(1, 0, 2)
    theirs = [lag_mean(pieces, round(lag / spacing)) for lag in lags]
    for lag, (value, error), (other, uncertainty) in zip(lags, ours, theirs):
        both = float(np.hypot(error, uncertainty))
        part.rows.append(within(system, f"⟨cos(f({lag:g} ps) − f(0))⟩", value, both, other,
                                remark=f"reference {number(other, uncertainty)}, error of both"))
    part.pictures.append((autocorrelation_figure(system, lags, ours, theirs), f"{system}: ⟨cos(f(t) − f(0))⟩ of the "
                          "torsion against the Brownian reference run; bars are two standard errors."))


def lag_mean(angles: np.ndarray, lag: int) -> tuple[float, float]:
    """<cos(f(t + lag) - f(t))> of angles [frames, replicas, torsions], and its error from the replicas' scatter."""
    means = np.cos(angles[lag:] - angles[:-lag]).mean((0, 2))
    return float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5)


def butane_temperature() -> Part:
    """Butane at other temperatures than its energy's; Leimkuhler-Matthews: averages are right at large steps."""
    part, model = Part("Temperature through the spring: butane"), TraPPEAlkane.butane()
    time_step, at_t0 = 2e-3, exact_trans_share(model)  # D dt L = 0.95
    n_steps = round(40.0 / time_step)
    for ratio in (0.8, 1.25, 1.5):
        cold = ratio < 1  # relaxes in a hundred ps: started where it should stay
        start = at_temperature(300 * ratio if cold else 300.0).sample(1024, seed=3).float()
        means = Means(trans_share, n_steps // 2)
        Sampler(model, Spring.from_time_step(time_step, DIFFUSION), temperature=300 * ratio, seed=4,
                integrator="leimkuhler-matthews").run(start, n_steps, 500, reporters=[means], check_every=n_steps)
        value, error = means.result()
        remark = f"started from the populations at {'T' if cold else 'T0'}; at T0 they are {at_t0:.4f}"
        part.rows.append(within("butane", f"trans share at {ratio:g} T0", value, error, exact_trans_share(model, ratio),
                                remark=remark))
    return part


def at_temperature(kelvin: float) -> TraPPEAlkane:
    """Butane whose kT is that of another temperature: the same force field, other samples."""
    parameters = json.loads(need_data("butane_ua_parameters.json").read_text())
    return TraPPEAlkane(parameters | {"temperature_K": kelvin})


# ---- learned from snapshots ------------------------------------------------------------------------

# beads: name, seconds of training, blocks, smallest noise level in nm, replicas and ps of the run, and of the exact one
RECIPES = {4: ("butane", 150, 3, 0.002, (1024, 80), (2048, 60)),
           13: ("tridecane", 480, 2, 0.001, (256, 100), (1024, 45)),
           16: ("hexadecane", 600, 2, 0.001, (256, 100), (1024, 45))}
EXACT_STEP = 2e-3  # ps, D dt L = 0.95 for butane; models' runs have 0.9


def learned(n_beads: int) -> Part:
    name, seconds, n_blocks, noise_level, (n_replicas, picoseconds), (n_exact, exact_picoseconds) = RECIPES[n_beads]
    part = Part(f"TraPPE {name} learned from snapshots")
    snapshots = read(f"{name}_ua_300K.npz")
    settings = Settings(n_steps=10**6, max_seconds=seconds, n_blocks=n_blocks, noise_levels=(noise_level, 0.5))
    model = trained(name, snapshots, settings)
    start = starts(snapshots, n_replicas)
    # D dt L = 0.9: with Leimkuhler-Matthews even the stiffest bond has the right width.
    spring = Spring.from_time_step(0.9 / (DIFFUSION * estimate_curvature(model, start)), DIFFUSION)
    every = max(1, round(0.25 / spring.time_step))
    sampler = Sampler(model, spring, seed=5, integrator="leimkuhler-matthews")
    frames = sampler.run(start, round(picoseconds / spring.time_step), every).positions
    settled, interval = frames[len(frames) // 10 :], every * spring.time_step
    angles, reference = angles_of(settled), dihedral_angles(snapshots.positions, torsions(n_beads))
    system = f"{name}, learned"
    exact = TraPPEAlkane.from_file(need_data(f"{name}_ua_parameters.json"))
    some = torch.as_tensor(snapshots.positions[:1000], dtype=torch.float64)
    part.rows.append(force_row(system, model, some, exact.kilojoules * exact.score(some)))
    rows = [angle_row(system, f"torsion {k}", resampled(angles[:, :, k]), [reference[:, k]], 0.003)
            for k in range(angles.shape[2])]
    part.rows += rows
    part.rows.append(number_row(system, "the radius of gyration", resampled(radii(settled)),
                                [radius_of_gyration(snapshots.positions)], 0.003))
    theirs, spacing = run_exact(exact, starts(snapshots, n_exact, seed=6), exact_picoseconds, EXACT_STEP, 6,
                                "leimkuhler-matthews")
    part.rows.append(hops_row(system, "hops per torsion and ns", torsion_hops(angles, interval),
                              torsion_hops(theirs, spacing), "exact forces, same integrator"))
    part.pictures.append((torsion_figure(name, angles, reference), f"{name}: torsions of the run (line) and of the "
                          "snapshots (grey), all together."))
    part.pictures.append((matrix_figure(name, correlation_matrix(settled[:400, 0])), f"{name}: correlation matrix of "
                          f"400 frames of one replica, {interval:.2f} ps apart, as in the paper's figures."))
    part.remarks.append(f"{seconds} s of training; {n_replicas} replicas × {frames.shape[0] * interval:.0f} ps at "
                        f"{spring}, leimkuhler-matthews; noise level {model.noise_level:g} nm.  Exact forces: "
                        f"{n_exact} replicas × {exact_picoseconds} ps, time step {EXACT_STEP:g} ps.")
    return part


butane = partial(learned, 4)
tridecane = partial(learned, 13)
hexadecane = partial(learned, 16)
