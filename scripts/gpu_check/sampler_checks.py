"""The sampler on the device: the resident loop, and step by step (as a CUDA graph where there is that path)."""

from __future__ import annotations

import copy
import functools
import importlib.util
import tempfile
import warnings
from typing import Any

import numpy as np
import torch

from diffmd_fast import use_backend
from diffmd_fast.sampling import INTEGRATORS, Sampler, Spring, choose_spring
from diffmd_fast.sampling.resident import why_not_resident
from diffmd_fast.sampling.resident_blocks import BlockRun

from . import systems
from .cases import Case, Skipped, Wrong
from .checks import error_ratio, require, same_bits

SYSTEMS = {"5 beads": lambda: systems.chain(5, 16, 2), "22 atoms": systems.dipeptide,
           "64 atoms": lambda: systems.chain(64, 64, 2), "80 beads by list": lambda: systems.beads(80, 32, 2)}
NOT_BUILT = ("compiled without CUDA", "the GPU's loop has")  # reasons that are no failure of the card


@functools.cache
def spring_of(system: str) -> Spring:
    """Half of the default time step, found on the CPU, so that it is the same for every device and dtype."""
    model, places = SYSTEMS[system]()
    return Spring.from_time_step(0.5 * choose_spring(model, systems.replicas(places, 8), 0.002).time_step, 0.002)


def sampler_of(model, spring: Spring, integrator: str = "euler-maruyama", **options) -> Sampler:
    masses = 12.0 if INTEGRATORS[integrator].uses_velocities else None
    settings = {"temperature": 300, "seed": 9, "integrator": integrator, "masses": masses}
    return Sampler(model, spring, **settings | options)


def start(system: str, n_replicas: int, device: str):
    """(model, positions, spring), the first two on the device."""
    model, places = SYSTEMS[system]()
    return model.to(device), systems.replicas(places, n_replicas).to(device), spring_of(system)


def must_be_resident(sampler: Sampler, x: torch.Tensor) -> None:
    reason = why_not_resident(sampler, x)
    if reason and reason.startswith(NOT_BUILT):
        raise Skipped(reason)
    require(reason is None, f"the run would go step by step: {reason}")


def reference_run(model, x: torch.Tensor, spring: Spring, integrator: str, n_steps: int,
                  dtype: torch.dtype) -> torch.Tensor:
    """Last positions of the run by plain PyTorch on the CPU."""
    sampler = sampler_of(copy.deepcopy(model).to("cpu", dtype), spring, integrator, resident=False)
    sampler._check_spring = lambda start: None  # most of the time, and no position depends on it
    with use_backend("reference"):
        return torch.from_numpy(sampler.run(x.to("cpu", dtype), n_steps, n_steps).final_positions)


def within_the_rule(system: str, n_replicas: int, integrator: str = "euler-maruyama", resident: bool | None = None,
                    n_steps: int = 20):
    """A run's last positions against the float64 reference's, and the run again."""
    def run(device: str) -> dict[str, Any]:
        model, x, spring = start(system, n_replicas, device)
        sampler = sampler_of(model, spring, integrator, resident=resident)
        if resident:
            must_be_resident(sampler, x)
        got, again = (torch.from_numpy(sampler.run(x, n_steps, n_steps).final_positions) for _ in range(2))
        same_bits("the run again", again, got)
        wanted = [reference_run(model, x, spring, integrator, n_steps, dtype)
                  for dtype in (torch.float32, torch.float64)]
        require(bool((wanted[1] - x.cpu()).abs().max() > 1e-4), "the reference has hardly moved")
        return {"error over allowed": round(error_ratio("last positions", got, *wanted), 3),
                "loop": sampler._loop(x)[1]}
    return run


def emulation(system: str, n_replicas: int, integrator: str, precision: str = "fp32", tolerance: float = 0.0):
    """Energies and frames of the same device code run on the host, to the bit unless a tolerance is given.

    Nobody says how tensor cores round their sums.
    """
    def run(device: str) -> dict[str, Any]:
        if device == "cpu":
            raise Skipped("the emulation is what a card is compared with")
        model, x, spring = start(system, n_replicas, device)
        options = {"resident": True, "precision": precision}
        sampler = sampler_of(model, spring, integrator, **options)
        must_be_resident(sampler, x)
        emulated = sampler_of(copy.deepcopy(model).cpu(), spring, integrator, **options)
        emulated._loop = lambda start: (BlockRun, "emulated")
        energies: dict[str, list] = {"device": [], "host": []}

        def keep(name):
            return lambda step, positions, energy, alive: energies[name].append(energy.cpu().clone())

        got = sampler.run(x, 6, 3, reporters=[keep("device")])
        wanted = emulated.run(x.cpu(), 6, 3, reporters=[keep("host")])
        one, other = torch.stack(energies["device"]), torch.stack(energies["host"])
        if tolerance:
            off = ((one - other).abs() / other.abs().clamp(min=1)).max().item()
            require(off <= tolerance, f"energies are off by {off:.3g} of their size, {tolerance:g} is expected")
            return {"largest difference of energies, relative": off}
        same_bits("energies", one, other)
        same_bits("frames", torch.from_numpy(got.positions), torch.from_numpy(wanted.positions))
        return {"frames": len(got.positions)}
    return run


def parts_of_a_run(device: str) -> dict[str, Any]:
    """Replicas 2 to 4 alone are those of the whole run, to the bit."""
    model, x, spring = start("22 atoms", 7, device)
    whole = sampler_of(model, spring).run(x, 30, 10)
    part = sampler_of(model, spring, first_replica=2).run(x[2:5], 30, 10)
    same_bits("replicas 2 to 4 alone", torch.from_numpy(part.positions), torch.from_numpy(whole.positions[:, 2:5]))
    return {}


def resumed_run(device: str) -> dict[str, Any]:
    """A run stopped after 17 steps and resumed is the whole run, to the bit."""
    missing = [name for name in ("mdtraj", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"a trajectory file cannot be written: {' and '.join(missing)} not installed")
    model, x, spring = start("5 beads", 7, device)
    whole = sampler_of(model, spring).run(x, 30, 10)
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/trajectory.npz"
        sampler_of(model, spring).run(x, 17, 10, out=out)
        resumed = sampler_of(model, spring).run(None, 30, 10, out=out, resume=True)
    same_bits("last positions", torch.from_numpy(resumed.final_positions), torch.from_numpy(whole.final_positions))
    return {}


def lost_replicas(device: str) -> dict[str, Any]:
    """Hot replicas that leave a narrow support are lost at the same steps as on the CPU, and change no other."""
    model, x, spring = start("5 beads", 24, device)
    free = sampler_of(model, spring, temperature=600).run(x, 60, 20)
    bonds = len(model.bonds)  # the first of the springs
    model.support = {"pairs": model.springs["pairs"][:bonds], "lowest": model.springs["mean"][:bonds],
                     "highest": model.springs["mean"][:bonds], "energy": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        got, wanted = (sampler_of(m, spring, temperature=600).run(y, 60, 20, check_every=3)
                       for m, y in ((model, x), (copy.deepcopy(model).cpu(), x.cpu())))
    losses = [[(entry.replica, entry.step) for entry in run.lost] for run in (got, wanted)]
    require(0 < len(losses[1]) < 24, f"{len(losses[1])} of 24 were lost on the CPU: the check says nothing")
    require(losses[0] == losses[1], f"lost {losses[0]}, on the CPU {losses[1]}")
    alive = np.isfinite(got.final_positions).all((1, 2))
    same_bits("those that were not lost", torch.from_numpy(got.final_positions[alive]),
              torch.from_numpy(free.final_positions[alive]))
    return {"lost": len(got.lost)}


def other_stream(device: str) -> dict[str, Any]:
    """On a stream that is not the default one, with work still queued there: the same bits."""
    if device == "cpu":
        raise Skipped("there are no streams on a CPU")
    model, x, spring = start("22 atoms", 7, device)
    wanted = sampler_of(model, spring).run(x, 20, 10)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy = torch.zeros(2**26, device=device)
        for _ in range(50):
            busy += 1
        late = x + 0 * busy[0]
        got = sampler_of(model, spring).run(late, 20, 10)
    stream.synchronize()
    same_bits("frames", torch.from_numpy(got.positions), torch.from_numpy(wanted.positions))
    return {}


def own_module(device: str) -> dict[str, Any]:
    """A user's torch.nn.Module with nothing but score(positions)."""
    class Well(torch.nn.Module):
        temperature = 300.0

        def __init__(self):
            super().__init__()
            self.stiffness = torch.nn.Parameter(torch.tensor(100.0))

        def score(self, positions):
            return -self.stiffness * positions

    x = 0.1 * torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(1))
    runs = []
    for place in (device, "cpu"):
        model = Well().requires_grad_(False).to(place)
        spring = choose_spring(model, x.to(place), 0.002)
        runs.append(torch.from_numpy(Sampler(model, spring, 300, seed=4).run(x.to(place), 50, 10).positions))
    off = (runs[0] - runs[1]).abs().max().item()
    if not off <= 1e-6:
        raise Wrong(f"off the CPU's run by {off:.3g} nm")
    return {"largest difference from the CPU's run, nm": off}


CASES = [
    *(Case(f"resident: {system}, {name}, {steps} steps", within_the_rule(system, n, name, resident=True, n_steps=steps),
           sanitized=name == "euler-maruyama" and system != "64 atoms")
      for system, n, steps, names in (("5 beads", 16, 20, INTEGRATORS),
                                      ("22 atoms", 4, 20, ("euler-maruyama", "baoab")),
                                      ("64 atoms", 2, 10, ("euler-maruyama",)))
      for name in names),
    *(Case(f"resident: {system}, {name}, the bits of the emulation", emulation(system, n, name))
      for system, n, names in (("5 beads", 14, INTEGRATORS), ("22 atoms", 4, ("euler-maruyama", "metropolis")),
                               ("64 atoms", 2, ("euler-maruyama",)))
      for name in names),
    *(Case(f"resident: 22 atoms, {precision}, near the emulation",
           emulation("22 atoms", 4, "euler-maruyama", precision, tolerance))
      for precision, tolerance in (("3xtf32", 1e-4), ("tf32", 0.05))),
    Case("sampler: parts of a run", parts_of_a_run),
    Case("sampler: a run resumed", resumed_run),
    Case("sampler: lost replicas", lost_replicas),
    Case("sampler: on another stream", other_stream),
    Case("sampler: step by step, 22 atoms", within_the_rule("22 atoms", 4, resident=False)),
    Case("sampler: 80 beads by list", within_the_rule("80 beads by list", 4)),
    Case("sampler: a module of the user's own", own_module),
]
