"""Replica-steps per second of the whole sampler, 64 replicas, two threads."""

from diffmd_fast import use_backend
from diffmd_fast.sampling import Sampler, Spring

from .common import ALL, BACKENDS, HEAVY, median_seconds, molecule, pin, schnet

N_REPLICAS, N_STEPS = 64, {"native": 200, "reference": 10}


def run(backend: str, atoms: int) -> float:
    """Replica-steps per second."""
    pin(2)
    model, x = schnet(atoms), molecule(N_REPLICAS, atoms)
    model.support = None  # random parameters: only the speed is looked at
    sampler = Sampler(model, Spring.from_time_step(1e-6, 0.002), temperature=300, seed=1)
    with use_backend(backend):
        return N_REPLICAS * N_STEPS[backend] / median_seconds(
            lambda: sampler.run(x, N_STEPS[backend], save_every=N_STEPS[backend]), 3)


def track_replica_steps_per_second(backend, atoms):
    return run(backend, atoms)


def track_speedup_sampler(atoms):
    return run("native", atoms) / run("reference", atoms)


track_replica_steps_per_second.params = [BACKENDS, [HEAVY, ALL]]
track_replica_steps_per_second.param_names = ["backend", "atoms"]
track_replica_steps_per_second.unit = "replica-steps/s"
track_speedup_sampler.params, track_speedup_sampler.param_names = [HEAVY, ALL], ["atoms"]
track_speedup_sampler.unit = "native/reference"
