"""What several commands share."""

from __future__ import annotations

import click

from .errors import called
from .processes import torchrun_processes

TOPOLOGY = click.option("--topology", metavar="PDB", help="Names and bonds, where the snapshots' format has none.")
QUIET = click.option("--quiet", is_flag=True, help="No progress bar.")


def _say(line: str) -> None:
    """What the user is told goes to stdout; stderr holds the progress bar and the one line of an error."""
    if torchrun_processes().rank == 0:
        click.echo(line)


def _one_or_many(paths):
    return paths[0] if len(paths) == 1 else list(paths)


def _load_model(path: str):
    """load_model, whose "path" the command line calls "model"."""
    from .models import load_model

    with called("path", "model"):
        return load_model(path)


def _spring(energy, start, out, time_step, stiffness, diffusion, noise_level, integrator="euler-maruyama",
            masses=None):
    """From what was given, else from the run that is resumed, else from the energy's largest curvature."""
    from .sampling import Spring, choose_spring, stored_spring

    if time_step is not None:
        return Spring.from_time_step(time_step, diffusion)
    if stiffness is not None:
        return Spring.from_stiffness(stiffness, diffusion)
    if start is None:
        return Spring.from_time_step(stored_spring(out).time_step, diffusion)
    return choose_spring(energy, start, diffusion, noise_level, integrator, masses)
