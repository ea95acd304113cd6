"""The demo of the README, by the command line throughout; every command is printed before it runs.

1. Alanine dipeptide (heavy atoms): Langevin dynamics with the shipped checkpoint, and a report that compares the
   run with the snapshots the model was trained on.
2. Butane: exact snapshots of a known force field, two minutes of training, a run, a report.

    python examples/demo.py [--out demo-output] [--quick]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent / "alanine_dipeptide"


def run(*arguments: object) -> None:
    """One diffmd-fast command, shown and timed."""
    words = [str(word) for word in arguments]
    print(f"\n$ diffmd-fast {shlex.join(words)}", flush=True)
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-m", "diffmd_fast", *words])
    if result.returncode:
        sys.exit(result.returncode)
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)


def alanine_dipeptide(out: Path, steps: int) -> dict:
    """Run the shipped model from shipped frames; report against them."""
    trajectory = out / "alanine_dipeptide.xtc"
    run("sample", HERE / "model.safetensors", "--init", HERE / "snapshots.npz", "--replicas", 64, "--steps", steps,
        "--save-every", 100, "--seed", 1, "--out", trajectory, "--overwrite")
    run("report", trajectory, "--reference", HERE / "snapshots.npz", "--model", HERE / "model.safetensors",
        "--out", out / "alanine_dipeptide_report")
    return json.loads((out / "alanine_dipeptide_report" / "report.json").read_text())


def butane(out: Path, minutes: float, steps: int) -> dict:
    """Snapshots from the exact force field, then nothing but the snapshots is used."""
    import numpy as np

    from diffmd_fast.models import TraPPEAlkane

    snapshots = out / "butane_snapshots.npz"
    print(f"\n20,000 exact TraPPE butane snapshots -> {snapshots}")
    energy = TraPPEAlkane.butane()
    positions = energy.sample(20_000, seed=4)
    np.savez(snapshots, positions=positions.numpy().astype(np.float32), temperature=np.float64(300.0),
             bonds=np.array([(0, 1), (1, 2), (2, 3)], dtype=np.int32),
             bead_types=np.array(["CH3", "CH2", "CH2", "CH3"]))
    model, trajectory = out / "butane.safetensors", out / "butane.xtc"
    run("train", snapshots, "--temperature", 300, "--minutes", minutes, "--steps", 100_000, "--blocks", 2,
        "--learning-rate", 0.002, "--out", model, "--overwrite")
    run("sample", model, "--init", snapshots, "--replicas", 192, "--steps", steps, "--save-every", 100, "--seed", 1,
        "--out", trajectory, "--overwrite")
    run("report", trajectory, "--reference", snapshots, "--model", model, "--out", out / "butane_report")
    return json.loads((out / "butane_report" / "report.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: everything runs, nothing converges")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    run("info")
    share = 0.1 if arguments.quick else 1.0
    results = {"alanine dipeptide": alanine_dipeptide(arguments.out, int(32_000 * share)),
               "butane": butane(arguments.out, 2.0 * share, int(30_000 * share))}
    print("\nJensen-Shannon divergence between the run and the snapshots (nats), and the floor that two independent\n"
          "samples of these sizes would show (mean ± sd):")
    for name, result in results.items():
        print(f"  {name:<18} {result['js_divergence']:.4f}   floor {result['js_floor']:.4f} ± "
              f"{result['js_floor_sd']:.4f}   replicas lost {result['replicas_lost']} of {result['n_replicas']}")
    for folder in ("alanine_dipeptide_report", "butane_report"):
        print(f"look at {arguments.out / folder / 'summary.png'}, or open {arguments.out / folder / 'report.html'}")


if __name__ == "__main__":
    main()
