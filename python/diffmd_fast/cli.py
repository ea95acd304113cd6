"""The command line: diffmd-fast train | recommend | sample | report | budget | consistency | info.

Exit code 0 on success, 2 on bad input with one line on stderr that begins with the argument's name, 1 when a run
itself failed (every replica lost, a loss that became NaN, no memory), 130 after Ctrl-C.  No traceback unless --debug.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import click

from .cli_accuracy import budget, consistency, recommend
from .cli_common import QUIET, TOPOLOGY, _load_model, _one_or_many, _say, _spring
from .errors import InputError, NonFiniteError, UnavailableError, called, require
from .processes import Processes, ProcessFailed, torchrun_processes


class _Group(click.Group):
    """Shows commands in the order of use instead of the alphabet's."""

    def list_commands(self, ctx):
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--threads", type=int, metavar="N", help="Threads to use; default: as many as torch takes.")
@click.option("--backend", default="auto", show_default=True,
              help="auto, reference (plain PyTorch), native, triton or cuda.")
@click.version_option(package_name="diffmd-fast", prog_name="diffmd-fast")
def cli(debug: bool, threads: int | None, backend: str):
    """Molecular dynamics from a diffusion model: train on shuffled snapshots, run Langevin dynamics, report.

    \b
    Example:
      diffmd-fast train snapshots.npz --temperature 300 --out model.safetensors
      diffmd-fast sample model.safetensors --init snapshots.npz --replicas 64 --steps 20000 --out traj.xtc
      diffmd-fast report traj.xtc --reference snapshots.npz --out report
    On several GPUs or CPUs (train and sample):
      torchrun --nproc-per-node=4 -m diffmd_fast sample model.safetensors --init snapshots.npz --replicas 64 ...
    """
    import torch

    from .backend import use_backend
    from .errors import check_integer
    from .ops import set_num_threads

    command = click.get_current_context().invoked_subcommand
    require(torchrun_processes().size == 1 or command in ("train", "sample"), "command",
            "train or sample under torchrun", command)
    if threads is not None:
        torch.set_num_threads(check_integer(threads, "threads", minimum=1, maximum=1024))
        set_num_threads(threads)
    use_backend(backend)


# Python's names that the command line calls otherwise.
_OPTIONS = {"n_steps": "steps", "n_replicas": "replicas", "n_features": "features", "n_blocks": "blocks",
            "max_seconds": "minutes", "n_threads": "threads", "initial_positions": "init", "out_dir": "out",
            "header.n_replicas": "replicas", "n_probes": "probes", "n_generated": "generated", "path": "out"}

ATOMS = click.option("--atoms", default="all", show_default=True, metavar="WHICH",
                     help="heavy, all, or an MDTraj selection such as 'backbone'.")


@cli.command()
@click.argument("snapshots", nargs=-1, required=True)
@TOPOLOGY
@ATOMS
@click.option("--temperature", type=float, metavar="K", help="Temperature of the snapshots; default: the file's own.")
@click.option("--out", required=True, metavar="FILE", help="The model file (.safetensors).")
@click.option("--steps", type=int, default=20000, show_default=True, help="Optimizer steps.")
@click.option("--minutes", type=float, default=0.0,
              help="Stop after this time (0: no limit); the learning rate then falls by the clock.")
@click.option("--batch-size", type=int, default=256, show_default=True, help="Snapshots a step.")
@click.option("--learning-rate", type=float, default=2e-3, show_default=True, help="At its highest; it falls to 1%.")
@click.option("--noise-levels", type=float, nargs=2, default=(0.002, 0.5), show_default=True, metavar="LOW HIGH",
              help="Smallest and largest noise level in nm; dynamics runs at the smallest.")
@click.option("--contrast", type=float, default=1.0, show_default=True,
              help="Weight of comparing energies across barriers, which fixes populations of basins and, at the end, "
                   "calibrates torsions; 0: neither.")
@click.option("--force-field", type=float, default=0.0, show_default=True,
              help="Weight of following a classical force field, fitted to the snapshots, at the smallest noise level, "
                   "where runs take place.  30 suits small molecules; 0: none.")
@click.option("--features", type=int, default=64, show_default=True, help="Width of the network.")
@click.option("--blocks", type=int, default=3, show_default=True, help="Interaction blocks of the network.")
@click.option("--cutoff", type=float, default=1.0, show_default=True, metavar="NM", help="Reach of an interaction.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of parameters, batches and noise.")
@click.option("--start", metavar="MODEL",
              help="Model file to begin with; molecule, sizes and noise levels must be the same.")
@click.option("--resume", is_flag=True, help="Go on from where a stopped training of the same settings was.")
@click.option("--overwrite", is_flag=True, help="Replace an existing model, or start a stopped training anew.")
@QUIET
def train(snapshots, topology, atoms, temperature, out, steps, minutes, batch_size, learning_rate, noise_levels,
          contrast, force_field, features, blocks, cutoff, seed, start, resume, overwrite, quiet):
    """Train an energy on SNAPSHOTS (.npz, .xtc, .dcd, .h5, .pdb).

    \b
    Example:
      diffmd-fast train frames.xtc --topology protein.pdb --atoms heavy --temperature 300 --out model.safetensors
    Refine a model at its smallest noise level, where runs take place:
      diffmd-fast train frames.npz --noise-levels 0.0005 0.5 --start model.safetensors --force-field 30
        --minutes 20 --out refined.safetensors
    Over 4 GPUs, or processes (docs/several_gpus.md):
      torchrun --nproc-per-node=4 -m diffmd_fast train frames.npz --out model.safetensors
    """
    from .errors import check_number
    from .io import read_snapshots
    from .training import Settings, train, training_state_path

    check_number(minutes, "minutes", minimum=0, unit="min")
    settings = Settings(n_steps=steps, max_seconds=60 * minutes, batch_size=batch_size, learning_rate=learning_rate,
                        noise_levels=noise_levels, contrast=contrast, force_field=force_field, n_features=features,
                        n_blocks=blocks, cutoff=cutoff, seed=seed, validate_every=max(1, min(500, steps)))
    state = training_state_path(out)
    processes = torchrun_processes()
    processes.first(lambda: _require_new(overwrite or resume,
                                         next((path for path in (Path(out), state) if path.exists()), None)))
    data = read_snapshots(_one_or_many(snapshots), topology=topology, atoms=atoms, argument="snapshots")
    _say(f"{len(data.positions)} snapshots of {data.positions.shape[1]} atoms, {len(data.molecule.bonds)} bonds")
    if len(data.molecule.bonds) == 0 and data.positions.shape[1] > 1:
        _say("the snapshots name no bonds: no torsion features, so mirror images will be equally likely")
    try:
        model = train(data, out, temperature, settings, start=start, resume=resume, progress=not quiet,
                      processes=processes)
    except KeyboardInterrupt:
        if state.is_file():
            _say(f"stopped; go on with the same command and --resume (state in {state})")
        raise
    last = model.training_record["history"][-1]
    if "calibrated" in model.training_record:
        _say(f"torsions calibrated: their series changed by up to {model.training_record['calibrated']:.2f} kT0")
    if "held_out_force_field" in last:
        off = 100 * last["held_out_force_field"] ** 0.5
        _say(f"the score at {model.noise_level:g} nm is {off:.1f}% off that of the force field fitted to the snapshots "
             "(held-out frames, rms)")
    _say(f"best held-out loss {last['held_out_loss']:.4f} at step {last['step']}; model in {out}, "
         f"loss figure in {Path(out).with_suffix('.loss.png')}")


cli.add_command(recommend)  # in the order of use


@cli.command()
@click.argument("model")
@click.option("--init", metavar="FRAMES", help="Start from frames of this file (drawn by --seed).")
@click.option("--from-noise", is_flag=True, help="Start from frames made by reverse diffusion.")
@click.option("--topology", metavar="PDB", help="Names and bonds of --init, where its format has none.")
@click.option("--replicas", type=int, default=64, show_default=True, help="Molecules run side by side.")
@click.option("--steps", type=int, required=True, help="Steps from the start, a resumed part included.")
@click.option("--time-step", type=float, metavar="PS",
              help="Time step; default: D dt L = 0.25, an eighth of the stability limit (L: largest curvature), or "
                   "dt^2 L kT0/m = 0.25 for baoab.")
@click.option("--stiffness", type=float, metavar="1/NM2", help="Spring stiffness k = 1/(2 D dt), instead of it.")
@click.option("--diffusion", type=float, default=0.002, show_default=True, metavar="NM2/PS",
              help="Diffusion coefficient of every atom.")
@click.option("--temperature", metavar="K",
              help="Temperature of the run, or a schedule STEP:K,STEP:K,... with straight "
                   "lines between, e.g. 0:900,20000:300; default: the model's T0.")
@click.option("--noise-level", type=float, metavar="NM", help="Noise level of the energy; default: the smallest.")
@click.option("--integrator", default="euler-maruyama", show_default=True, metavar="NAME",
              help="euler-maruyama, leimkuhler-matthews (better averages at no cost), heun, metropolis (exact for the "
                   "energy) or baoab (with velocities).")
@click.option("--masses", metavar="DA",
              help="For baoab: one number, or one per atom with commas; default: the elements'.")
@click.option("--save-every", type=int, default=100, show_default=True, metavar="STEPS", help="Steps between frames.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise and of the choice of frames.")
@click.option("--batch-size", type=int, metavar="R", help="Replicas evaluated together; the result is the same.")
@click.option("--out", required=True, metavar="FILE", help="Trajectory: .xtc, .dcd, .h5 or .npz.")
@click.option("--per-replica", is_flag=True, help="One file a replica instead of one for all.")
@click.option("--sharded", is_flag=True, help="One file a process of torchrun (traj_p0000.xtc, ...) instead.")
@click.option("--resume", is_flag=True,
              help="Continue the run in --out and its .restart file to --steps; other options default to that run's.")
@click.option("--overwrite", is_flag=True, help="Replace an existing trajectory.")
@click.option("--force", is_flag=True, help="Run a time step beyond the stability limit all the same.")
@QUIET
def sample(model, init, from_noise, topology, replicas, steps, time_step, stiffness, diffusion, temperature,
           noise_level, integrator, masses, save_every, seed, batch_size, out, per_replica, sharded, resume, overwrite,
           force, quiet):
    """Run Langevin dynamics with a trained MODEL.

    \b
    Example:
      diffmd-fast sample model.safetensors --init snapshots.npz --replicas 64 --steps 20000 --out traj.xtc
    Over 4 GPUs, or processes, the same trajectory (docs/several_gpus.md):
      torchrun --nproc-per-node=4 -m diffmd_fast sample model.safetensors --init snapshots.npz --replicas 64 ...
    """
    from .errors import check_integer
    from .io import check_output
    from .sampling import RunInterrupted, Sampler
    from .sampling.restart import existing_output, restart_path
    from .sampling.shares import check_sharded, sharded_path

    processes = torchrun_processes()
    energy = _load_model(model).to(processes.device)
    require(resume or bool(init) != from_noise, "init", "a file of frames, or --from-noise",
            "both" if init else "neither")
    require(time_step is None or stiffness is None, "time_step", "either --time-step or --stiffness", "both")
    temperature, masses = _temperature(temperature), _numbers(masses, "masses")
    check_integer(steps, "steps", minimum=1)
    check_output(out, "out")
    processes.first(lambda: check_sharded(out, processes, resume, overwrite) if sharded
                    else _require_new(overwrite or resume, existing_output(Path(out))))
    own = sharded_path(out, processes.rank) if sharded else out
    if resume:
        diffusion, temperature, noise_level, integrator, masses, save_every, seed = _of_resumed_run(
            own, energy, {"temperature": temperature, "masses": masses}, processes if sharded else Processes())
    start = None if resume else _start(energy, init, from_noise, topology, replicas, seed, batch_size, quiet)
    # Of process 0, for all: on another kind of processor the default time step would differ in its last digit.
    spring = processes.first(lambda: _spring(energy, start, own, time_step, stiffness, diffusion, noise_level,
                                             integrator, masses))
    sampler = Sampler(energy, spring, temperature=temperature, seed=seed, noise_level=noise_level,
                      integrator=integrator, masses=masses, batch_size=batch_size, force=force)
    _say(str(sampler))
    try:
        result = sampler.run(start, steps, save_every, out=out, resume=resume, overwrite=overwrite,
                             per_replica=per_replica, progress=not quiet, processes=processes, sharded=sharded)
    except RunInterrupted as stopped:
        _say(f"stopped after step {stopped.trajectory.n_steps} with {stopped.trajectory.n_frames} frames of "
             f"{stopped.trajectory.n_replicas} replicas in {_files(out, sharded)}; go on with the same command "
             "and --resume")
        raise
    except KeyboardInterrupt:
        if restart_path(own).exists():
            _say(f"stopped; what was saved is in {restart_path(own)}; go on with the same command and --resume")
        raise
    if quiet:  # else said beside the progress bar, before the run
        _say(str(result.stability))
    if processes.rank == 0:
        _say_of_run(energy, result, noise_level)
    for replica, step, reason in result.lost:
        _say(f"replica {replica} lost at step {step}: {reason}")
    _say(f"{result.n_frames} frames of {result.n_replicas} replicas in {_files(out, sharded)}; "
         f"{len(result.lost)} replicas lost")
    if len(result.lost) == result.n_replicas:
        raise click.exceptions.Exit(1)


@cli.command()
@click.argument("trajectory", nargs=-1, required=True)
@click.option("--reference", required=True, multiple=True, metavar="SNAPSHOTS",
              help="Frames to compare with; repeat for several files.")
@click.option("--out", required=True, metavar="DIR", help="Folder of the report.")
@TOPOLOGY
@click.option("--reference-topology", metavar="PDB", help="The same for the reference.")
@click.option("--atoms", default="matching", show_default=True, metavar="WHICH",
              help="Atoms of the reference: matching (by name), heavy, all, or an MDTraj selection.")
@click.option("--dihedrals", multiple=True, metavar="A-B-C-D",
              help="Dihedrals by name (phi) or atom indices (4-6-8-14); default: found from the topology.")
@click.option("--model", metavar="FILE", help="Model file, for the energy trace.")
@click.option("--bins", type=int, default=64, show_default=True, help="Bins per dihedral.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@QUIET
def report(trajectory, reference, out, topology, reference_topology, atoms, dihedrals, model, bins, seed, quiet):
    """Compare a TRAJECTORY with reference frames: surfaces, autocorrelation, bonds, divergence and its floor.

    \b
    Example:
      diffmd-fast report traj.xtc --reference snapshots.npz --out report
    """
    from .analysis import report
    from .io import match_atoms, read_snapshots

    run = read_snapshots(_one_or_many(trajectory), topology=topology, argument="trajectory")
    with called("topology", "reference_topology"):
        other = read_snapshots(_one_or_many(reference), topology=reference_topology, argument="reference",
                               atoms="all" if atoms == "matching" else atoms)
    if atoms == "matching":
        other = match_atoms(other, run.molecule, "reference")
    energy = _load_model(model) if model else None
    if energy is not None:
        require(energy.n_atoms == run.n_atoms, "model", f"a model of the trajectory's {run.n_atoms} atoms",
                f"one of {energy.n_atoms}")
    result = report(run, other, out, dihedrals=list(dihedrals) or None, bins=bins, seed=seed, model=energy,
                    progress=not quiet)
    _say(f"Jensen-Shannon divergence {result['js_divergence']:.4f} nats, sampling floor {result['js_floor']:.4f} ± "
         f"{result['js_floor_sd']:.4f}; {result['n_frames']} frames, replicas lost: {result['replicas_lost']}")
    _say(result["verdict"]["headline"])
    _say(f"report in {Path(out) / 'report.html'}")


cli.add_command(budget)
cli.add_command(consistency)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Machine readable.")
def info(as_json: bool):
    """Versions, what was compiled, and which backends can run here."""
    import json

    from .config import config, show_config

    if as_json:
        click.echo(json.dumps(config(), indent=1))
    else:
        show_config()


def _complain(line: str) -> None:
    """One line, also if every process has it to say, or several end because one did."""
    processes = torchrun_processes()
    if processes.speaks():
        click.echo(line if processes.size == 1 else f"{line} (process {processes.rank} of {processes.size})", err=True)


def _files(out: str, sharded: bool) -> str:
    from .sampling.shares import sharded_path

    return f"{sharded_path(out, 0)} and so on, one a process" if sharded else out


def _require_new(allowed: bool, there: Path | None) -> None:
    require(allowed or there is None, "out", "a new file (or --overwrite, or --resume to go on)",
            f"{str(there)!r}, which exists")


def _of_resumed_run(out, energy, read, processes) -> list:
    """Options of a run to resume: as given, else as the run had them.  What differs, the sampler refuses.

    ``read``: options that were given as text, by name.  ``processes``: those with a file of replicas each.
    """
    from .sampling.restart import stored_header

    context, stored = click.get_current_context(), stored_header(out)
    n_replicas = stored["n_replicas"] = sum(processes.gather(stored["n_replicas"]))
    values = {}
    for option, key in (("diffusion", "diffusion"), ("temperature", "temperature"), ("noise_level", "noise_level"),
                        ("integrator", "integrator"), ("masses", "masses"), ("save_every", "save_every"),
                        ("seed", "seed"), ("replicas", "n_replicas")):
        given = context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE
        value = read.get(option, context.params[option])
        values[option] = value if given else stored.get(key, value)
    require(values.pop("replicas") == n_replicas, "replicas", f"{n_replicas}, as in the run to resume",
            context.params["replicas"])
    if values["noise_level"] == energy.noise_level:
        values["noise_level"] = None  # the model's own, as it is when nobody names one
    return list(values.values())


def _start(energy, init, from_noise, topology, replicas, seed, batch_size, quiet):
    """Starting frames [replicas, atoms, 3]: drawn from a file, or by reverse diffusion."""
    import torch

    from .errors import check_integer
    from .io import match_atoms, read_snapshots
    from .sampling import reverse_diffusion
    from .sampling.shares import check_processes

    processes = torchrun_processes()
    # A frame of all replicas is one record of the restart file, below 2 GiB.
    check_integer(replicas, "replicas", minimum=1, maximum=(2**31 - 64) // (24 * energy.n_atoms + 1))
    check_integer(seed, "seed", minimum=0, maximum=2**64 - 1)
    check_processes(processes, replicas)
    if from_noise:
        share = processes.share(replicas)
        return torch.cat(processes.gather(reverse_diffusion(
            energy, share.stop - share.start, seed=seed, first_replica=share.start, batch_size=batch_size,
            progress=not quiet and processes.rank == 0).cpu()))
    frames = read_snapshots(init, topology=topology, argument="init")
    if energy.molecule is not None:
        frames = match_atoms(frames, energy.molecule, "init")
    positions = torch.as_tensor(frames.positions, dtype=torch.float32)
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    chosen = positions[order[torch.arange(replicas) % len(order)]]
    return chosen - chosen.mean(1, keepdim=True)


def _say_of_run(energy, result, noise_level) -> None:
    """Acceptance and temperatures, with standard errors over the replicas."""
    import numpy as np

    from .sampling import configurational_temperature

    good = result.final_positions[np.isfinite(result.final_positions).all((1, 2))]
    if result.acceptance is not None and len(good):
        _say(f"accepted {100 * np.nanmean(result.acceptance):.1f}% of the steps")
    if result.kinetic_temperature is not None and len(good) > 1:
        means = np.nanmean(result.kinetic_temperature, 0)[np.isfinite(result.final_positions).all((1, 2))]
        _say(f"kinetic temperature {means.mean():.1f} +- {means.std(ddof=1) / len(means) ** 0.5:.1f} K over the frames")
    if len(good) > 1:
        try:
            value, error = configurational_temperature(energy, good, noise_level)
        except InputError as why:  # too few frames for a mean curvature above 0
            _say(f"no configurational temperature: {why}")
        else:
            _say(f"configurational temperature {value:.1f} +- {error:.1f} K at the last step")


def _temperature(text):
    """A number in K, or (step, K) pairs from STEP:K,STEP:K; None stays None."""
    if text is None or ":" not in text:
        numbers = _numbers(text, "temperature")
        require(not isinstance(numbers, list), "temperature", "a number in K, or STEP:K,STEP:K", repr(text))
        return numbers
    try:
        return [(int(step), float(kelvin)) for step, kelvin in (point.split(":") for point in text.split(","))]
    except ValueError:
        raise InputError(f"temperature: expected a number in K, or STEP:K,STEP:K, got {text!r}") from None


def _numbers(text, name):
    """One number, or a list of those between commas; None stays None."""
    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{name}: expected a number, or several between commas, got {text!r}") from None
    return numbers if len(numbers) > 1 else numbers[0]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``diffmd-fast`` and ``python -m diffmd_fast``."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments  # wherever it stands, also behind the command
    arguments = [word for word in arguments if word != "--debug"]
    processes = torchrun_processes()
    warnings.showwarning = lambda message, *rest, **more: _say(f"note: {message}")
    try:
        code = cli.main(arguments, prog_name="diffmd-fast", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except (click.ClickException, InputError, UnavailableError, NonFiniteError, ProcessFailed, OSError,
            KeyboardInterrupt) as error:
        if debug:
            raise
        code = _explain(error, arguments)
    except Exception as error:  # nothing we foresaw; still one line, and the way to the rest
        if debug:
            raise
        code = _explain_unforeseen(error)
    processes.close()
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: BaseException, arguments: list[str]) -> int:
    """Print one line about the error; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, (NonFiniteError, ProcessFailed)):
        _complain(str(error))
        return 1
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help())
        return 0
    if isinstance(error, click.ClickException):
        parameter = getattr(error, "param", None)
        name = getattr(error, "option_name", None) or (parameter.name if parameter is not None else "command")
        if isinstance(error, click.MissingParameter):
            _complain(f"{name}: expected a value, got none (see --help)")
        else:
            _complain(f"{name}: {error.message if error.message else error.format_message()}".replace("\n", " "))
        return 2
    if isinstance(error, OSError):
        _complain(f"{_option_of(error.filename, arguments)}: {error.strerror or error}{_in(error.filename)}")
        return 2
    name, _, rest = str(error).splitlines()[0].partition(":")
    _complain(f"{_OPTIONS.get(name, name)}:{rest}")
    return 2


def _option_of(file, arguments: list[str]) -> str:
    """The option whose value a file's name begins with; the system's errors know files, not options."""
    for option, value in zip(arguments, arguments[1:]):
        if file and option.startswith("--") and str(file).startswith(value):
            return option[2:].replace("-", "_")
    return "file"


def _in(file) -> str:
    return f" ({str(file)[:200]})" if file else ""


def _explain_unforeseen(error: Exception) -> int:
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or any(words in reason for words in (
            "not enough memory", "out of memory", "allocate memory")):
        _complain("memory: expected enough of it, got none left; fewer --replicas, a smaller --batch-size or a smaller "
                  f"network take less ({reason or type(error).__name__})")
    else:
        _complain(f"diffmd-fast: failed with {type(error).__name__}: {reason} (diffmd-fast --debug shows where)")
    return 1


if __name__ == "__main__":
    main()
