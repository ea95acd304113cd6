r"""Make what examples/alanine_dipeptide holds: the trained checkpoint and a few thousand snapshots.

    python scripts/make_examples.py --data ../shared/data --minutes 45
    python scripts/make_examples.py --data ../shared/data --minutes 32 --atoms all
    diffmd-fast train ../shared/data/ala2_implicit_300K_train.npz --noise-levels 0.0005 0.5 --force-field 30 \
        --steps 9000 --start examples/alanine_dipeptide/all_atoms.safetensors --out all_atoms.safetensors

The snapshots are heavy atoms of Amber ff14SB/OBC2 frames at 300 K (see examples/README.md).  The
model is trained on all 40,000 training frames; every eighth is shipped to start runs from and to compare with.
Of all atoms the model alone is shipped, that of the last line, which takes half an hour of one core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffmd_fast.io import read_snapshots
from diffmd_fast.training import Settings, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ala2_implicit_300K_train.npz")
    parser.add_argument("--out", type=Path, default=Path("examples/alanine_dipeptide"))
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--atoms", choices=("heavy", "all"), default="heavy")
    parser.add_argument("--stride", type=int, default=8, help="every n-th training frame is shipped")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    snapshots = read_snapshots(arguments.data / "ala2_implicit_300K_train.npz", atoms=arguments.atoms)
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(n_steps=1_000_000, max_seconds=60 * arguments.minutes)
    if arguments.atoms == "heavy":
        write_snapshots(arguments.out / "snapshots.npz", snapshots, arguments.stride)
        out = arguments.out / "model.safetensors"
    else:  # bonds to hydrogen are narrower than the usual 0.002 nm
        settings, out = replace(settings, noise_levels=(0.0005, 0.5)), arguments.out / "all_atoms.safetensors"
    train(replace(snapshots, replica=None, time=None), out, 300.0, settings, resume=arguments.resume)


def write_snapshots(path: Path, snapshots, stride: int) -> None:
    """Every stride-th frame, centred and rounded to 2^-17 nm (8e-6 nm) so that the file packs well."""
    x = snapshots.positions[::stride].astype(np.float64)
    x -= x.mean(1, keepdims=True)
    rounded = (np.round(x * 2**17) / 2**17).astype(np.float32)
    np.savez_compressed(path, positions=rounded, temperature=np.float64(300.0), **snapshots.molecule.to_npz_arrays())


if __name__ == "__main__":
    main()
