"""How each system of the validation is trained and run: data, settings, seconds, time step.

    from recipes import RECIPES, read_system, train_system
    model = train_system("five-bead", data="../shared/data", out="five.safetensors")        # the recipe's seconds
    model = train_system("butane", data="../shared/data", out="butane.safetensors", seconds=60)

By hand:  python scripts/recipes.py five-bead --data ../shared/data --out five.safetensors
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffmd_fast.io import Snapshots, read_snapshots
from diffmd_fast.training import Settings, train


@dataclass(frozen=True)
class Recipe:
    """One system.

    file: of the data folder.  atoms: what `read_snapshots` takes, or "backbone beads".
    seconds: of training, on one free core.  settings: what differs from the defaults of `Settings`.
    number: D dt L of the run, which sets the time step.  replicas, steps, save_every: of the run.
    """

    file: str
    atoms: str
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    number: float = 0.25
    replicas: int = 256
    steps: int = 20_000
    save_every: int = 100


ALANINE = "ala2_implicit_300K_train.npz"
RECIPES = {
    "butane": Recipe("butane_ua_300K.npz", "all", 240),
    "tridecane": Recipe("tridecane_ua_300K.npz", "all", 420),
    "hexadecane": Recipe("hexadecane_ua_300K.npz", "all", 420),
    "alanine-heavy": Recipe(ALANINE, "heavy", 600),
    "alanine-all": Recipe(ALANINE, "all", 600),
    "five-bead": Recipe(ALANINE, "backbone beads", 300),
}
BACKBONE_BEADS = ((0, "C"), (1, "N"), (1, "CA"), (1, "C"), (2, "N"))  # residue (ACE, ALA, NME) and atom


def read_system(system: str, data: str | Path) -> Snapshots:
    """The snapshots of a system; frames are shuffled by the training, so their order is kept for the analysis."""
    recipe = RECIPES[system]
    if recipe.atoms != "backbone beads":
        return read_snapshots(Path(data) / recipe.file, atoms=recipe.atoms)
    whole = read_snapshots(Path(data) / recipe.file)
    atoms = list(zip(whole.molecule.residue_index, whole.molecule.names))
    first = min(whole.molecule.residue_index)
    wanted = [atoms.index((first + residue, name)) for residue, name in BACKBONE_BEADS]
    return replace(whole, positions=whole.positions[:, wanted], valid_positions=whole.valid_positions[:, wanted],
                   molecule=whole.molecule.select(wanted))


def train_system(system: str, data: str | Path, out: str | Path, seconds: float | None = None, *,
                 resume: bool = False, progress: bool = True, **settings: Any):
    """Train by recipe; ``seconds`` and ``settings`` take the place of the recipe's.  Returns the model."""
    recipe = RECIPES[system]
    chosen = {"n_steps": 10_000_000, "max_seconds": seconds or recipe.seconds, **recipe.settings, **settings}
    return train(read_system(system, data), out, 300.0, Settings(**chosen), resume=resume, progress=progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    train_system(arguments.system, arguments.data, arguments.out, arguments.seconds, resume=arguments.resume)


if __name__ == "__main__":
    main()
