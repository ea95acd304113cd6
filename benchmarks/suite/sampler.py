"""Replica-steps per second of whole runs: the resident loop, step by step, and the reference."""

import statistics
import time

from diffmd_fast import use_backend
from diffmd_fast.sampling import INTEGRATORS, Sampler, Spring

from .common import ALL, HEAVY, median_seconds, molecule, pin, schnet

N_REPLICAS = 64
# loop: (backend, resident, steps of a run, long enough that what comes before the first step does not show)
LOOPS = {
    "resident": ("native", True, 2000),
    "step by step": ("native", False, 2000),
    "reference": ("reference", False, 20),
}


def sampler(atoms: int, resident: bool, n_blocks: int = 3) -> Sampler:
    model = schnet(atoms, n_blocks)
    model.support = None  # random parameters: only the speed is looked at
    return Sampler(model, Spring.from_time_step(1e-6, 0.002), temperature=300, seed=1, resident=resident)


def replica_steps_per_second(loop: str, atoms: int, threads: int) -> float:
    pin(threads)
    backend, resident, n_steps = LOOPS[loop]
    run, x = sampler(atoms, resident).run, molecule(N_REPLICAS, atoms)
    with use_backend(backend):
        return N_REPLICAS * n_steps / median_seconds(lambda: run(x, n_steps, save_every=n_steps), 3)


def track_replica_steps_per_second(loop, atoms):
    return replica_steps_per_second(loop, atoms, threads=2)


def track_resident_over_reference(atoms):
    return replica_steps_per_second("resident", atoms, 2) / replica_steps_per_second("reference", atoms, 2)


def track_two_threads_over_one(atoms):
    """Medians of runs with one and two threads in turns."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    run, x = sampler(atoms, resident=True).run, molecule(N_REPLICAS, atoms)
    for _ in range(6):
        for threads, taken in seconds.items():
            pin(threads)
            started = time.perf_counter()
            run(x, 2000, save_every=2000)
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[1][1:]) / statistics.median(seconds[2][1:])


def track_over_euler_maruyama(integrator):
    """Replica-steps per second of the resident loop over those of the cheapest integrator, runs in turns, 10 atoms."""
    pin()
    model, x = sampler(HEAVY, True).model, molecule(N_REPLICAS, HEAVY)
    spring, seconds = Spring.from_time_step(1e-6, 0.002), {"euler-maruyama": [], integrator: []}
    runs = {name: Sampler(model, spring, 300, integrator=name, resident=True,
                          masses=12.0 if name == "baoab" else None) for name in seconds}
    for _ in range(5):
        for name, run in runs.items():
            started = time.perf_counter()
            run.run(x, 1000, save_every=1000)
            seconds[name].append(time.perf_counter() - started)
    return statistics.median(seconds["euler-maruyama"][1:]) / statistics.median(seconds[integrator][1:])


def track_one_replica(loop, atoms):
    """Steps per second of a single replica, which no batch hides the calls of, one thread."""
    pin()
    backend, resident, n_steps = LOOPS[loop]
    run, x = sampler(atoms, resident).run, molecule(1, atoms)
    with use_backend(backend):
        return n_steps / median_seconds(lambda: run(x, n_steps, save_every=n_steps), 3)


def track_five_beads_per_cpu_second():
    """The size of ScoreMD's backbone model: five beads, two blocks, 64 features; CPU seconds of one thread."""
    pin()
    run, x = sampler(5, True, n_blocks=2).run, molecule(N_REPLICAS, 5)
    seconds = []
    for _ in range(4):
        started = time.process_time()
        run(x, 4000, save_every=4000)
        seconds.append(time.process_time() - started)
    return N_REPLICAS * 4000 / sorted(seconds[1:])[1]


for track in (track_replica_steps_per_second, track_one_replica):
    track.params, track.param_names = [list(LOOPS), [HEAVY, ALL]], ["loop", "atoms"]
    track.unit = "replica-steps/s"
for track in (track_resident_over_reference, track_two_threads_over_one):
    track.params, track.param_names = [HEAVY, ALL], ["atoms"]
track_over_euler_maruyama.params, track_over_euler_maruyama.param_names = [list(INTEGRATORS)[1:]], ["integrator"]
track_over_euler_maruyama.unit = "integrator/euler-maruyama"
track_resident_over_reference.unit = "resident/reference"
track_two_threads_over_one.unit = "2 threads/1 thread"
track_five_beads_per_cpu_second.unit = "replica-steps/CPU-s"
