"""Commands on how good a run is going to be: diffmd-fast recommend | budget | consistency."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import click

from .cli_common import QUIET, TOPOLOGY, _load_model, _one_or_many, _say, _spring
from .errors import called, check_new_folder, require


@click.command()
@click.argument("model")
@click.option("--snapshots", required=True, multiple=True, metavar="FRAMES",
              help="Frames that the MODEL was not trained on; repeat for several files.")
@TOPOLOGY
@click.option("--diffusion", type=float, default=0.002, show_default=True, metavar="NM2/PS",
              help="Diffusion coefficient of every atom.")
@click.option("--noise-levels", type=float, multiple=True, metavar="NM",
              help="Noise level to try, repeat for several; default: 1 to 4 times the smallest.")
@click.option("--time-steps", type=float, multiple=True, metavar="PS",
              help="Time step to try, repeat for several; default: 1/2 to 16 times that at the limit, where stable.")
@click.option("--limit", type=float, default=0.05, show_default=True,
              help="Largest widening of a variance by the time step.")
@click.option("--noise-limit", type=float, default=2.0, show_default=True,
              help="Largest widening of the stiffest bond's variance by the noise, 2 sigma^2/variance.")
@click.option("--replicas", type=int, default=64, show_default=True, help="Runs side by side.")
@click.option("--length", type=float, metavar="PS", help="Length of each run; default: 2000 steps at the limit.")
@click.option("--probes", type=int, default=4, show_default=True, help="Probes at each frame.")
@click.option("--max-frames", type=int, default=2000, show_default=True, help="Frames used, evenly spread.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of probes, noise, starting frames and runs.")
@click.option("--out", metavar="DIR", help="Folder for recommend.json and recommend.png.")
@QUIET
def recommend(model, snapshots, topology, diffusion, noise_levels, time_steps, limit, noise_limit, replicas, length,
              probes, max_frames, seed, out, quiet):
    """Which noise level and time step to run MODEL with, from held-out snapshots and short runs.

    \b
    Example:
      diffmd-fast recommend model.safetensors --snapshots held-out.npz --diffusion 0.002 --out recommend
    """
    from .analysis.recommend import ScanInterrupted, Settings, recommend
    from .io import match_atoms, read_snapshots

    options = dict(diffusion=diffusion, noise_levels=noise_levels or None, time_steps=time_steps or None, limit=limit,
                   noise_limit=noise_limit, n_replicas=replicas, length=length, n_probes=probes,
                   max_frames=max_frames, seed=seed)
    Settings(**options)
    if out is not None:
        check_new_folder(out, "out")
    energy = _load_model(model)
    frames = read_snapshots(_one_or_many(snapshots), topology=topology, argument="snapshots")
    if energy.molecule is not None:
        frames = match_atoms(frames, energy.molecule, "snapshots")
    try:
        result = recommend(energy, frames, progress=not quiet, **options)
    except ScanInterrupted as stopped:
        if stopped.recommendation.steps:
            _say(f"{stopped}; what was found:")
            _tell(stopped.recommendation, out)
        raise
    _tell(result, out)
    if result.spring is None:
        raise click.exceptions.Exit(1)
    words = ["diffmd-fast", "sample", model, "--init", snapshots[0], "--diffusion", f"{diffusion:g}", "--time-step",
             f"{result.spring.time_step:.4g}"]
    words += [] if result.noise_level is None else ["--noise-level", f"{result.noise_level:g}"]
    words += [] if topology is None else ["--topology", topology]
    _say(shlex.join([*words, "--steps", "20000", "--out", "traj.xtc"]))


def _tell(result, out):
    from .analysis.recommend_figure import write_recommendation

    _say(str(result))
    if out is not None:
        _say(f"figure in {write_recommendation(result, Path(out))['figure']}")


@click.command()
@click.argument("model")
@click.option("--frames", required=True, multiple=True, metavar="FRAMES",
              help="Frames of the run in question, or of its equilibrium; repeat for several files.")
@TOPOLOGY
@click.option("--forces", metavar="NPZ", help="True forces at the frames: array forces [frames, atoms, 3], kJ/mol/nm.")
@click.option("--exact", metavar="JSON", help="Instead of them: TraPPE alkane parameters, or the word butane.")
@click.option("--time-step", type=float, metavar="PS",
              help="Time step; default: that of the run that wrote FRAMES, else as in sample.")
@click.option("--stiffness", type=float, metavar="1/NM2", help="Spring stiffness k = 1/(2 D dt), instead of it.")
@click.option("--diffusion", type=float, metavar="NM2/PS",
              help="Diffusion coefficient of every atom; default: that of the run, else 0.002.")
@click.option("--temperature", type=float, metavar="K", help="Temperature of the run; default: the frames', else T0.")
@click.option("--noise-level", type=float, metavar="NM",
              help="Noise level; default: that of the run, else the smallest.")
@click.option("--length", type=float, metavar="PS", help="Length of the run, for its total error.")
@click.option("--wanted", type=float, metavar="NATS",
              help="KL divergence to be met, over --length or else per ps: gives the time step for it.")
@click.option("--probes", type=int, default=4, show_default=True, help="Probes at each frame.")
@click.option("--max-frames", type=int, default=2000, show_default=True, help="Frames used, evenly spread.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the probes.")
@click.option("--out", metavar="DIR", help="Folder for budget.json and budget.png.")
@QUIET
def budget(model, frames, topology, forces, exact, time_step, stiffness, diffusion, temperature, noise_level, length,
           wanted, probes, max_frames, seed, out, quiet):
    """Error of a run's paths: how much of it is the time step's, how much the MODEL's, and which step is enough.

    \b
    Example:
      diffmd-fast budget model.safetensors --frames traj.xtc --time-step 0.0005 --length 1 --wanted 2 --out budget
    """
    from .analysis import error_budget
    from .analysis.budget_figure import write_budget
    from .analysis.error_budget import Settings
    from .io import match_atoms, read_forces, read_snapshots

    options = dict(length=length, wanted=wanted, n_probes=probes, max_frames=max_frames, seed=seed)
    Settings(temperature=temperature, **options)
    require(time_step is None or stiffness is None, "time_step", "either --time-step or --stiffness", "both")
    require(forces is None or exact is None, "forces", "either --forces or --exact", "both")
    if out is not None:
        check_new_folder(out, "out")
    energy, known = _load_model(model), _exact(exact)
    run = read_snapshots(_one_or_many(frames), topology=topology, argument="frames")
    true = read_forces(forces, run.positions.shape) if forces else None
    if energy.molecule is not None:
        if true is not None:
            if run.n_atoms > energy.n_atoms:
                _say("forces on a part of the atoms scatter about the mean force: the model part is an upper bound")
            true = match_atoms(replace(run, positions=true, valid_positions=None), energy.molecule, "frames").positions
        run = match_atoms(run, energy.molecule, "frames")
    time_step, diffusion, temperature, noise_level = _settings_of(run, energy, stiffness, time_step, diffusion,
                                                                  temperature, noise_level)
    with called("positions", "frames"):
        spring = _spring(energy, run.positions, None, time_step, stiffness, diffusion, noise_level)
        result = error_budget(energy, run.positions, spring, temperature=temperature, noise_level=noise_level,
                              forces=true, exact=known, replica=run.replica, time=run.time, progress=not quiet,
                              **options)
    _say(result.summary)
    for line in (result.advice, "" if result.reliable else f"the errors are not to be trusted: {result.reason}"):
        if line:
            _say(line)
    if out is not None:
        _say(f"figure in {write_budget(result, out)['figure']}")


def _settings_of(frames, energy, stiffness, time_step, diffusion, temperature, noise_level) -> tuple:
    """What was not given as the run that wrote the frames had it, where they are a run of ours."""
    run = (frames.metadata or {}).get("run") or {}
    if run.get("integrator", "euler-maruyama") != "euler-maruyama":
        _say(f"the frames are of a run with {run['integrator']}; the budget is that of Euler-Maruyama's step")
    if time_step is None and stiffness is None:
        time_step = run.get("time_step")
    if noise_level is None and run.get("noise_level") != energy.noise_level:
        noise_level = run.get("noise_level")
    return (time_step, run.get("diffusion", 0.002) if diffusion is None else diffusion,
            frames.temperature if temperature is None else temperature, noise_level)


def _exact(name):
    """The exact energy of --exact: a parameter file, or butane's inside the package."""
    from .models import TraPPEAlkane

    if name is None:
        return None
    with called("path", "exact"):
        return TraPPEAlkane.butane() if name == "butane" else TraPPEAlkane.from_file(name)


@click.command()
@click.argument("model")
@click.option("--snapshots", required=True, multiple=True, metavar="FRAMES",
              help="Frames the model was trained on, or others of the same ensemble; repeat for several files.")
@click.option("--out", required=True, metavar="DIR", help="Folder for the figure, the table and the numbers.")
@TOPOLOGY
@click.option("--reference", metavar="NPZ", help="Weighted histogram (array probability, and probability_err) of the "
              "first dihedrals, compared with all three.")
@click.option("--replicas", type=int, default=128, show_default=True, help="Molecules run side by side.")
@click.option("--steps", type=int, default=20000, show_default=True, help="Steps of each; the first tenth is left out.")
@click.option("--save-every", type=int, default=100, show_default=True, metavar="STEPS", help="Steps between frames.")
@click.option("--time-step", type=float, metavar="PS", help="Time step; default: D dt L = 0.25.")
@click.option("--diffusion", type=float, default=0.002, show_default=True, metavar="NM2/PS",
              help="Diffusion coefficient of every atom.")
@click.option("--integrator", default="euler-maruyama", show_default=True, help="Of the run.")
@click.option("--generated", type=int, default=4096, show_default=True, help="Frames drawn by reverse diffusion.")
@click.option("--dihedrals", multiple=True, metavar="A-B-C-D",
              help="Dihedrals by name (phi) or atom indices (4-6-8-14); default: found from the topology.")
@click.option("--bins", type=int, default=64, show_default=True, help="Bins per dihedral.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of starts, noise and bootstrap.")
@QUIET
def consistency(model, snapshots, out, topology, reference, replicas, steps, save_every, time_step, diffusion,
                integrator, generated, dihedrals, bins, seed, quiet):
    """Compare the three faces of one MODEL: generated frames, simulated ensemble, snapshots.

    \b
    Example:
      diffmd-fast consistency model.safetensors --snapshots snapshots.npz --out consistency
    """
    from .analysis import consistency, read_reference
    from .analysis.consistency_table import table, write
    from .io import match_atoms, read_snapshots

    check_new_folder(out, "out_dir")
    energy = _load_model(model)
    histogram = read_reference(reference) if reference else None
    frames = read_snapshots(_one_or_many(snapshots), topology=topology, argument="snapshots")
    if energy.molecule is not None:
        frames = match_atoms(frames, energy.molecule, "snapshots")
    result = consistency(energy, frames, reference=histogram, n_replicas=replicas, n_steps=steps,
                         save_every=save_every, time_step=time_step, diffusion=diffusion, n_generated=generated,
                         integrator=integrator, dihedrals=list(dihedrals) or None, bins=bins, seed=seed,
                         progress=not quiet)
    write(result, out)
    _say(table(result))
    _say(f"figure, table and numbers in {out}")
