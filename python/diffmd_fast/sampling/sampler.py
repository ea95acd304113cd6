"""Langevin dynamics with a learned energy: many replicas, checked as they run, saved, stopped and resumed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import check_integer, require
from ..interrupt import Interrupt
from ..processes import Processes
from .evaluation import Evaluator, as_positions, fingerprint, model_masses, model_temperature
from .graph import graph_loop, why_not_graph
from .integrators import EulerMaruyama, find_integrator
from .loop import Run
from .reporters import Progress, Reporter
from .resident import PRECISIONS, resident_loop, why_not_resident
from .restart import FileFrames, MemoryFrames, hash_positions
from .schedule import Schedule
from .shares import SharedFrames, check_processes, combined, run_sharded
from .spring import MOLAR_GAS_CONSTANT, Spring, _row
from .stability import Stability, check_stability
from .support import Support
from .trajectory import RunInterrupted, Trajectory


class Sampler:
    """Runs a model's energy as dynamics at a spring's time step.

    Args:
        model: any object with ``score(positions)`` in 1/nm: an :class:`~diffmd_fast.models.EnergyModel`, or a
            ``torch.nn.Module`` that offers only a score (then energies are neither checked nor reported).
        spring: time step and diffusion coefficient.
        temperature: T in K of the run, by default the model's own T0 (300 K, said once, where the model has
            no ``temperature``).  It scales the noise by T/T0 and leaves the drift (docs/theory.md section 1).
            (step, K) pairs make a schedule, with straight lines between them: :class:`Schedule`.
        seed: 0 .. 2^64 - 1.  The noise depends on (seed, replica, step, atom) only.
        noise_level: sigma in nm at which the score is taken; default the model's smallest.  The run samples
            the density smoothed by it: every variance is larger by sigma^2.
        integrator: the rule that moves positions: ``"euler-maruyama"`` (the paper's step),
            ``"leimkuhler-matthews"`` (averages to second order at no cost), ``"heun"``, ``"metropolis"`` (exact
            for the energy) or ``"baoab"`` (with velocities); docs/theory.md section 4.
        masses: Da, one number or one per atom, for ``"baoab"``; default the elements' of the model's molecule.
        first_replica: number of the first replica in the noise; a run of replicas 64..127 continues one of
            0..63.
        batch_size: replicas evaluated together, default all.  Affects memory and speed, not the result (bit
            for bit where the model's values do not depend on the batch, as with the native SchNet); the resident
            loop chooses its own blocks.
        force: run a time step beyond the stability limit, and say so.
        resident: None (default) runs the whole loop in native code where model, integrator and backend allow, else on
            a GPU as a CUDA graph of the whole step, where the model can be captured in one, and step by step
            elsewhere; True refuses to run step by step, and says why it would have to; False runs step by step.
            The trajectory is the same to the bit; on a GPU (docs/gpu.md) to what ``precision`` allows.
        precision: of the matrix products in the resident loop on a GPU: ``"3xtf32"`` (default: tensor cores, as
            right as float32), ``"tf32"`` (tensor cores, some hundred times the error) or ``"fp32"`` (to check with);
            docs/gpu.md.  Nothing else heeds it, nor does it heed ``torch.set_float32_matmul_precision``.

    Raises:
        InputError: an argument out of range, a model without a score, an unknown integrator or precision.
    """

    def __init__(
        self,
        model: Any,
        spring: Spring,
        temperature: float | None = None,
        seed: int = 0,
        *,
        noise_level: float | None = None,
        integrator: str = "euler-maruyama",
        masses: Any = None,
        first_replica: int = 0,
        batch_size: int | None = None,
        force: bool = False,
        resident: bool | None = None,
        precision: str = PRECISIONS[0],
    ):
        self._evaluate = Evaluator(model, noise_level)
        require(
            isinstance(spring, Spring),
            "spring",
            "a Spring, e.g. Spring.from_time_step(time_step, diffusion)",
            type(spring).__name__,
        )
        self.model, self.spring, self.force = model, spring, force
        require(resident in (None, True, False), "resident", "None, True or False", repr(resident))
        self.resident = resident
        require(precision in PRECISIONS, "precision", "one of " + ", ".join(PRECISIONS), repr(precision))
        self.precision = precision
        self.model_temperature = model_temperature(model)
        self.schedule = Schedule(self.model_temperature if temperature is None else temperature)
        self.temperature = self.schedule.value
        self.seed = check_integer(seed, "seed", minimum=0, maximum=2**64 - 1)
        self.noise_level = self._evaluate.noise_level
        self._integrator = find_integrator(integrator)
        require(self._evaluate.has_energy or not self._integrator.needs_energy, "integrator",
                "one that needs no energy, as the model has only a score", repr(integrator))
        require(masses is None or self._integrator.uses_velocities, "masses", "none without velocities",
                f"masses for {integrator}")
        self.masses = model_masses(model, masses) if self._integrator.uses_velocities else None
        self.first_replica = check_integer(first_replica, "first_replica", minimum=0, maximum=2**32 - 1)
        self.first_in_run = 0  # above it in a process that runs a part of the replicas
        self.batch_size = (
            None if batch_size is None else check_integer(batch_size, "batch_size", minimum=1, maximum=2**31 - 1)
        )

    def __str__(self) -> str:
        kappa = max(_row(self.spring.force_constant(self.model_temperature)))
        noise = "" if self.noise_level is None else f", noise level {self.noise_level:g} nm"
        return (
            f"{self._integrator.name}: {self.spring}; spring constant kT0 k = {kappa:.4g} kJ/mol/nm^2 "
            f"at T0 = {self.model_temperature:g} K; T = {self.schedule}{noise}"
        )

    def run(
        self,
        initial_positions: Any,
        n_steps: int,
        save_every: int,
        reporters: Iterable[Reporter] = (),
        *,
        out: Any = None,
        resume: bool = False,
        overwrite: bool = False,
        per_replica: bool = False,
        molecule: Any = None,
        progress: bool = False,
        check_every: int | None = None,
        processes: Processes | None = None,
        sharded: bool = False,
    ) -> Trajectory:
        """Run all replicas for ``n_steps`` and save the start and every ``save_every``-th step.

        Positions are checked for finiteness every step, and against the training set's support
        (``model.support``) every ``check_every`` steps and before a frame is saved.  A replica that fails is
        stopped and reported; the others go on, unchanged to the bit.  When all are lost the run ends.

        Ctrl-C or SIGTERM finishes the step, writes what there is and raises :class:`RunInterrupted`.

        Args:
            initial_positions: [replicas, atoms, 3] nm, array or tensor; its dtype is the run's (float32 or
                float64). May be None with ``resume``.
            n_steps: steps from the start of the run, a resumed part included: resuming a finished run with
                more steps extends it.
            save_every: steps between frames; where it does not divide ``n_steps`` the last steps are in
                ``final_positions`` only.
            reporters: called at every saved frame, see :class:`Reporter`.
            out: trajectory file (.xtc, .dcd, .h5, .npz).  Frames go to ``OUT.restart`` as they come, in
                constant memory, and to ``OUT`` at the end.
            resume: continue the run of ``OUT.restart``: the same trajectory bit for bit as without the stop.
            overwrite: replace an existing ``out``.
            per_replica: one file a replica, ``traj_r0000.xtc`` and so on.
            molecule: names and bonds for ``out``; default ``model.molecule``, or unnamed beads.
            progress: show a bar with steps/s and ps/day (over all replicas), and D dt L.
            check_every: steps between checks of the support; default ``save_every``, at most 100.
            processes: :func:`diffmd_fast.torchrun_processes`; every process calls with the same arguments, runs its
                share of the replicas, and is given the trajectory of all. Needs ``out``, in a folder that all see;
                process 0 writes it. A reporter is called on each process, with its share.
            sharded: each process writes a file of its own, ``traj_p0000.xtc`` and so on, instead.

        Raises:
            InputError: bad arguments, starting frames that are not finite or outside the support, an unstable
                time step without ``force``, a run that ``resident=True`` cannot serve, an existing or unwritable
                ``out``, or a restart file of another run. Nothing has been written or replaced then.
            UnavailableError: ``resident=True`` and a step that cannot be captured in a CUDA graph.
            RunInterrupted: after Ctrl-C (a KeyboardInterrupt).
            ProcessFailed: another process ended. What was saved is kept, and ``resume`` goes on.
        """
        n_steps = check_integer(n_steps, "n_steps", minimum=1, maximum=2**56 - 1)
        save_every = check_integer(save_every, "save_every", minimum=1, maximum=2**56 - 1)
        check_every = (
            min(save_every, 100) if check_every is None else check_integer(check_every, "check_every", minimum=1)
        )
        reporters = tuple(reporters)
        for reporter in reporters:
            require(callable(reporter), "reporters", "callables (step, positions, energy, alive)", reporter)
        require(out is not None or not resume, "resume", "out, the file of the run to continue", "none")
        require(resume or initial_positions is not None, "initial_positions", "positions, or resume", "None")
        start = None if initial_positions is None else as_positions(initial_positions, "initial_positions", self.model)
        processes = processes or Processes()
        require(processes.size == 1 or out is not None, "out", "a file, for a run of several processes", "None")
        if start is not None:
            check_processes(processes, len(start))
        if start is not None and not resume:
            self._check_start(start)
            stability = self._check_spring(start)
            self._loop(start)
        if sharded:
            require(out is not None, "out", "a file, for one file a process", "None")
            require(not per_replica, "per_replica", "one file a replica or one a process (sharded)", "both")
            return run_sharded(self, processes, start, out, progress, n_steps=n_steps, save_every=save_every,
                               reporters=reporters, resume=resume, overwrite=overwrite, molecule=molecule,
                               check_every=check_every)
        if out is None:
            frames = MemoryFrames(n_steps // save_every + 1, start)
        else:
            files = partial(FileFrames, out, self._header(start, save_every, check_every),
                            self._molecule(molecule, start), resume, overwrite, per_replica, progress)
            frames = files() if processes.size == 1 else SharedFrames(out, files, save_every, processes)
        with closing(frames):
            first_step, lost, velocities = 0, [], None
            if resume:
                first_step, stored, lost, velocities = frames.last()
                require(
                    first_step <= n_steps,
                    "n_steps",
                    f"at least {first_step}, which the run has already",
                    n_steps,
                )
                start = as_positions(stored, "resume", self.model)
                stability = self._check_spring(start)
            share = processes.share(len(start))
            sampler, start = self._numbered_from(share.start), start[share]
            velocities = None if velocities is None else velocities[share]
            lost = [entry._replace(replica=entry.replica - share.start) for entry in lost
                    if share.start <= entry.replica < share.stop]
            with (
                Progress(progress and processes.rank == 0, n_steps, first_step, self.spring.time_step) as bar,
                Interrupt() as interrupt,
            ):
                loop, remark = sampler._loop(start)
                bar.note(f"{stability}; {remark}")
                if processes.size > 1:
                    bar.note(f"{processes.size} processes; the bar shows process 0 with {len(start)} replicas")
                run = loop(sampler, start, first_step, lost, frames, reporters, bar, velocities)
                run.advance(n_steps, save_every, check_every, interrupt, first_is_saved=resume)
                stopped = any(processes.gather(interrupt.asked))
            trajectory = self._trajectory(run, frames, save_every, stability, complete=not stopped)
            if processes.size > 1:
                trajectory = combined(processes, trajectory)
        if stopped:
            raise RunInterrupted(trajectory)
        return trajectory

    def _numbered_from(self, first: int) -> Sampler:
        """A sampler of the replicas from number ``first`` of the run on."""
        sampler = copy(self)
        sampler.first_replica, sampler.first_in_run = self.first_replica + first, self.first_in_run + first
        return sampler

    def _trajectory(self, run: Run, frames: Any, save_every: int, stability: Stability, complete: bool) -> Trajectory:
        saved = frames.finish(run.lost, complete=complete)

        def per_replica(values: Tensor) -> np.ndarray:  # NaN for those lost
            array = values.cpu().numpy().copy()
            array[~run.alive] = np.nan
            return array

        taken = run.step - run.first_step
        counted = self._integrator.counts_acceptance and taken > 0
        return Trajectory(
            positions=saved,
            final_positions=per_replica(run.positions),
            steps=save_every * np.arange(frames.n_frames),
            lost=run.lost,
            n_steps=run.step,
            spring=self.spring,
            temperature=self.temperature,
            noise_level=self.noise_level,
            seed=self.seed,
            stability=stability,
            path=frames.path,
            acceptance=per_replica(run.accepted.double() / taken) if counted else None,
            final_velocities=None if run.velocities is None else per_replica(run.velocities),
            kinetic_temperature=np.array(run.kinetic_temperatures) if self._integrator.uses_velocities else None,
        )

    def _make_integrator(self, positions: Tensor) -> EulerMaruyama:
        diffusion_time = torch.tensor(_row(self.spring.diffusion_time), dtype=torch.float64, device=positions.device)
        if not self._integrator.uses_velocities:
            return self._integrator(diffusion_time, self.seed)
        masses = torch.tensor(_row(self.masses), dtype=torch.float64, device=positions.device)
        thermal_energy = MOLAR_GAS_CONSTANT * self.model_temperature
        return self._integrator(diffusion_time, self.seed, masses.expand(positions.shape[1]).contiguous(),
                                thermal_energy, self.spring.time_step)

    def _variance(self, step: int, end: int) -> np.ndarray:
        """T/T0 of the moves from step, ..., end - 1, float64."""
        return self.schedule.at(np.arange(step, end)) / self.model_temperature

    def _loop(self, start: Tensor) -> tuple[type[Run], str]:
        """The class that runs it, and what to say of it: why not the fast one, where it is not."""
        why_not = "resident=False" if self.resident is False else why_not_resident(self, start)
        if why_not is None:
            return resident_loop(start)
        if self.resident is not False and start.device.type == "cuda":
            no_graph = why_not_graph()
            if no_graph is None:
                return graph_loop(why_not)
            why_not = f"{why_not}; no CUDA graph: {no_graph}"
        require(not self.resident, "resident", "a run that the resident loop serves", why_not)
        return Run, f"loop in Python, step by step ({why_not})"

    @torch.no_grad()
    def _check_start(self, start: Tensor) -> None:
        check_integer(self.first_replica, "first_replica", maximum=2**32 - 1 - len(start))
        support = self._support(start)
        energies = torch.cat(
            [e for e, _ in map(self._evaluate, self._batches(start)) if e is not None] or [start.new_zeros(len(start))]
        )
        bad = torch.nonzero(~support.inside(start, energies)).flatten().tolist()
        if bad:
            require(
                False,
                "initial_positions",
                "frames inside the support of the training set",
                f"replica {bad[0]}: {support.reason(start[bad[0]], energies[bad[0]])}",
            )

    def _check_spring(self, start: Tensor) -> Stability:
        for name, values in (("diffusion", self.spring.diffusion), ("masses", self.masses)):
            n = 1 if values is None else len(_row(values))
            require(n in (1, start.shape[1]), name, f"a number or {start.shape[1]} values, one per atom", n)
        return check_stability(self.model, self.spring, start, self._evaluate.argument, self.force,
                               integrator=self._integrator.name, masses=self.masses)

    def _support(self, positions: Tensor) -> Support:
        return Support(
            getattr(self.model, "support", None),
            positions.shape[1],
            self.noise_level,
            self._evaluate.at_own_noise,
            positions.device,
        )

    def _batches(self, positions: Tensor) -> tuple[Tensor, ...]:
        return positions.split(self.batch_size or len(positions))

    def _molecule(self, molecule: Any, start: Tensor | None) -> Any:
        from ..io import Molecule

        if molecule is None:
            molecule = getattr(self.model, "molecule", None)
        if molecule is None:
            n_atoms = start.shape[1] if start is not None else getattr(self.model, "n_atoms", None)
            require(
                n_atoms is not None,
                "molecule",
                "a Molecule, as neither model nor positions say the atoms",
                "None",
            )
            return Molecule.from_npz_arrays({}, n_atoms)
        require(isinstance(molecule, Molecule), "molecule", "a Molecule", type(molecule).__name__)
        n_atoms = start.shape[1] if start is not None else molecule.n_atoms
        require(molecule.n_atoms == n_atoms, "molecule", f"{n_atoms} atoms, as the positions", molecule.n_atoms)
        return molecule

    def _header(self, start: Tensor | None, save_every: int, check_every: int) -> dict[str, Any]:
        """What a run is: two runs with the same header have the same trajectory."""
        diffusion = self.spring.diffusion
        known: dict[str, Any] = (
            {}
            if start is None
            else {
                "n_replicas": len(start),
                "n_atoms": start.shape[1],
                "dtype": str(start.dtype).removeprefix("torch."),
                "initial_positions": hash_positions(start),
            }
        )
        return {
            "time_step": self.spring.time_step,
            "diffusion": list(diffusion) if isinstance(diffusion, tuple) else diffusion,
            "temperature": self.schedule.json,
            "model_temperature": self.model_temperature,
            "noise_level": self.noise_level,
            "seed": self.seed,
            "first_replica": self.first_replica,
            "integrator": self._integrator.name,
            **self._not_always(),
            "save_every": save_every,
            "check_every": check_every,
            "model": fingerprint(self.model),
            **known,
        }

    def _not_always(self) -> dict[str, Any]:
        """In the header only of runs that have it, so that others stay what version 1.0 wrote."""
        precision = {} if self.precision == PRECISIONS[0] else {"precision": self.precision}
        if self.masses is None:
            return precision
        masses = list(self.masses) if isinstance(self.masses, tuple) else self.masses
        return precision | {"velocities": True, "masses": masses}
