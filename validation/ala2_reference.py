"""Brownian dynamics of alanine dipeptide with its true forces, for the all-atom model's dynamics to be compared with.

    OPENMM_PYTHON -m validation.ala2_reference run angles.npz --minutes 60      # openmm==8.6.1 and openmmtools
    .venv/bin/python -m validation.ala2_reference summary angles.npz more.npz validation/ala2_brownian/305.json

Force field and D are those of ../shared/data/make/ala2_brownian.py; the integrator is Leimkuhler-Matthews with the time
step of the model's runs, which gives five times as many picoseconds a second as Euler-Maruyama at 0.2 fs there.  Runs
of 200 ps start from training frames drawn at random, so that basins are visited as they are populated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

# Written out here: an environment with OpenMM need not have torch, which validation/dynamics.py imports.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
KT = 0.00831446261815324 * 300  # kJ/mol
DIFFUSION = 0.00207861565453831  # nm^2/ps
TIME_STEP, STRIDE, N_FRAMES, SETTLE = 0.000925, 108, 2000, 2000  # ps, steps between frames, frames, steps before them


def run(out: Path, minutes: float, seed: int) -> None:
    """(phi, psi) of every frame, [runs, frames, 2] radians, written after every run."""
    sys.path.insert(0, str(DATA / "make"))
    import ala2_common
    import openmm

    _, system, _ = ala2_common.build()
    integrator = openmm.CustomIntegrator(TIME_STEP)
    integrator.addPerDofVariable("noise", 0)
    integrator.addGlobalVariable("pull", DIFFUSION * TIME_STEP / KT)
    integrator.addGlobalVariable("half", (2 * DIFFUSION * TIME_STEP) ** 0.5 / 2)
    integrator.addComputePerDof("x", "x + pull*f + half*noise")
    integrator.addComputePerDof("noise", "gaussian")
    integrator.addComputePerDof("x", "x + half*noise")
    integrator.setRandomNumberSeed(seed)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    with np.load(DATA / "ala2_implicit_300K_train.npz") as file:
        frames, phi, psi = (file[name] for name in ("train_positions", "phi_atoms", "psi_atoms"))
    angles, order, started = [], np.random.default_rng(seed).permutation(len(frames)), time.monotonic()
    while time.monotonic() - started < 60 * minutes:
        context.setPositions(frames[order[len(angles)]].astype(float))
        integrator.step(SETTLE)
        found = []
        for _ in range(N_FRAMES):
            integrator.step(STRIDE)
            x = context.getState(getPositions=True).getPositions(asNumpy=True)._value
            found.append([ala2_common.dihedral(x[None], atoms)[0] for atoms in (phi, psi)])
        angles.append(found)
        keep(out, angles=np.array(angles, np.float32), seed=seed)
        picoseconds = len(angles) * N_FRAMES * STRIDE * TIME_STEP
        print(f"{len(angles)} runs, {picoseconds / 1000:.1f} ns, {time.monotonic() - started:.0f} s", flush=True)


def keep(path: Path, **arrays) -> None:
    """An NPZ file that is whole or not there: one that is replaced is lost only when the new one is written."""
    whole = path.with_suffix(".part.npz")
    np.savez_compressed(whole, **arrays)
    whole.replace(path)


def summary(sources: list[Path], out: Path) -> None:
    """Curves and hops by the functions that the model's runs are measured with; errors over runs."""
    from diffmd_fast.analysis.kinetics import hop_rates

    from .dynamics import ANGLES, BASINS, LAGS, cores, reference_histogram, short_time_curve

    runs, seeds = [], []
    for source in sources:
        with np.load(source) as file:
            runs.append(file["angles"].swapaxes(0, 1).astype(float))
            seeds.append(int(file["seed"]))
    angles, interval = np.concatenate(runs, 1), STRIDE * TIME_STEP
    hops, histogram = hop_rates(cores(angles), interval, n_cores=2), reference_histogram()
    rows = {"made_by": f"validation/ala2_reference.py, seeds {seeds}; OpenMM 8.6.1, Reference platform",
            "molecule": "alanine dipeptide, ff14SB + OBC2, no constraints, 300 K",
            "integrator": f"Leimkuhler-Matthews, {TIME_STEP} ps, D = {DIFFUSION} nm^2/ps",
            "runs": angles.shape[1], "picoseconds": round(angles.shape[0] * angles.shape[1] * interval, 1),
            "hops": {"alphaR_to_beta": int(hops.counts[0, 1]), "beta_to_alphaR": int(hops.counts[1, 0]),
                     "ps_in_alphaR": round(hops.time[0], 1), "ps_in_beta": round(hops.time[1], 1)},
            "lag_ps": LAGS.tolist()}
    rows["curves"] = {basin: {name: [part.round(6).tolist() for part in  # values, standard errors
                                     short_time_curve(angles, basin, name, interval, histogram)] for name in ANGLES}
                      for basin in BASINS}
    text = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items())
    out.write_text(f"{{\n {text}\n}}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    first = stages.add_parser("run", help="make (phi, psi) with OpenMM")
    first.add_argument("out", type=Path)
    first.add_argument("--minutes", type=float, default=60.0)
    first.add_argument("--seed", type=int, default=304)
    second = stages.add_parser("summary", help="what validation/dynamics.py compares with")
    second.add_argument("sources", type=Path, nargs="+")
    second.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.stage == "run" and given.out.exists():
        first.error(f"out: expected a new file, got {given.out}, which is there")
    run(given.out, given.minutes, given.seed) if given.stage == "run" else summary(given.sources, given.out)


if __name__ == "__main__":
    main()
