"""How fast is it on this card?  Each case measures one thing; ``rows.py`` compares it with what was asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from diffmd_fast import ops, use_backend
from diffmd_fast.sampling import Sampler, Spring

from . import systems
from .cases import Case, Skipped
from .checks import require
from .clock import copy_bandwidth, matrix_rate, median_seconds, peak_bytes, seconds_per_step
from .rows import PRECISIONS

TIME_STEP, DIFFUSION = 1e-6, 0.002  # ps, nm^2/ps: so short that positions hardly move, whatever the parameters


# ---- whole runs --------------------------------------------------------------------------------------------
def dipeptide(device: str, n_replicas: int | None = None):
    """(model, positions); None: twelve molecules a multiprocessor, four times what its shared memory holds."""
    if n_replicas is None:
        n_replicas = 16
        if device == "cuda":
            n_replicas = 12 * torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    model, places = systems.dipeptide()
    return model.to(device), systems.replicas(places, n_replicas).to(device)


def one_dipeptide(device: str):
    return dipeptide(device, 1)


def globule(device: str):
    """269 beads × 64 replicas, 128 features, 4 blocks; on a CPU 2 replicas of 70 beads."""
    n, replicas, width, n_blocks = (269, 64, 128, 4) if device == "cuda" else (70, 2, 32, 2)
    model, places = systems.beads(n, width, n_blocks)
    return model.to(device), systems.replicas(places, replicas).to(device)


def sampler_run(system, resident: bool | None = None, precision: str | None = None):
    """The sampler as a user calls it, by the fastest loop there is unless told otherwise."""
    def run(device: str) -> dict[str, Any]:
        options = {} if precision is None else {"precision": precision}
        model, x = system(device)
        sampler = Sampler(model, Spring.from_time_step(TIME_STEP, DIFFUSION), 300, seed=1, resident=resident, **options)

        def steps(n: int) -> None:
            sampler.run(x, n, save_every=n)

        found = seconds_per_step(steps, device)
        found |= {"loop": sampler._loop(x)[1], "peak bytes": peak_bytes(lambda: steps(4), device)}
        return of_run(model, x, found)
    return run


def of_run(model, x: torch.Tensor, found: dict[str, Any]) -> dict[str, Any]:
    edges = ops.neighbor_list(x[:1], model.cutoff if model.by_list() else None).col.numel()
    return found | {"replicas": len(x), "rate": len(x) / found["seconds"], "edges a replica": edges,
                    "atoms": x.shape[1], "features": model.n_features, "blocks": model.n_blocks}


# ---- the same by the reference -----------------------------------------------------------------------------
def reference_step(network, model, x: torch.Tensor):
    """One step by plain PyTorch, in place.  Its noise is torch.randn, which is cheaper than the package's own."""
    noise_level = torch.full((len(x),), model.noise_level, device=x.device)
    drift, amplitude = DIFFUSION * TIME_STEP, (2 * DIFFUSION * TIME_STEP) ** 0.5
    now = x.clone()

    def step() -> None:
        moving = now.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(moving, noise_level).sum(), moving)
        now.add_(gradient, alpha=-drift).add_(torch.randn_like(now), alpha=amplitude)

    return step


def give_list(model, x: torch.Tensor) -> None:
    """The model keeps the list of these positions: the reference's own asks the host, and cannot be captured."""
    neighbors = ops.neighbor_list(x, model.cutoff if model.by_list() else None)
    model._pairs = lambda positions: neighbors


def repeated(step):
    def steps(n: int) -> None:
        for _ in range(n):
            step()
    return steps


def eager_reference(system, list_given: bool = False):
    """Score and step in a loop: no checks, nothing saved."""
    def run(device: str) -> dict[str, Any]:
        model, x = system(device)
        if list_given:
            give_list(model, x)
        with use_backend("reference"):
            step = reference_step(model, model, x)
            found = seconds_per_step(repeated(step), device)
            return of_run(model, x, found) | {"peak bytes": peak_bytes(step, device)}
    return run


def compiled_reference(system):
    """The same step under torch.compile, captured whole as one CUDA graph, its list given.

    The operators' checks of indices ask the host; they are taken out here, which is in the reference's favor.
    """
    def run(device: str) -> dict[str, Any]:
        if device == "cpu":
            raise Skipped("there are no CUDA graphs on a CPU")
        model, x = system(device)
        give_list(model, x)
        for module, name in (("torsions", "_check_quadruples"), ("spline_conv", "_check_list")):
            setattr(importlib.import_module(f"diffmd_fast.ops.{module}"), name, lambda *arguments: None)
        with use_backend("reference"):
            step, note = reference_step(torch.compile(model), model, x), "captured as one CUDA graph"
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                repeated(step)(5)  # compiles
            torch.cuda.current_stream().wait_stream(side)
            memory = peak_bytes(step, device)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    step()
                step = graph.replay
            except RuntimeError as error:
                note = f"compiled, but not captured ({str(error).splitlines()[0]})"
            found = seconds_per_step(repeated(step), device)
            return of_run(model, x, found) | {"loop": note, "peak bytes": memory}
    return run


# ---- operators ----------------------------------------------------------------------------------------------
def em_step(plain: bool):
    """10^9 coordinates in ten slices of 400 MB an array, larger than any L2; on a CPU 10^7."""
    def run(device: str) -> dict[str, Any]:
        n_slices, n_atoms = (10, 33_334) if device == "cuda" else (3, 334)
        if device == "cuda" and 0.8 * torch.cuda.mem_get_info()[0] < 10**10:
            n_slices = 3  # the same three again and again
        rounds = 10 // n_slices
        slices = [[torch.randn(1000, n_atoms, 3, device=device) for _ in range(2)] for _ in range(n_slices)]

        def all_slices() -> None:
            for _ in range(rounds):
                for x, score in slices:
                    ops.em_step(x, score, diffusion=DIFFUSION, time_step=TIME_STEP, seed=1)

        with use_backend("reference" if plain else "auto"):
            found = median_seconds(all_slices, device, repeats=3 if plain else 10)
            memory = peak_bytes(lambda: ops.em_step(*slices[0], diffusion=DIFFUSION, time_step=TIME_STEP), device)
        n = rounds * sum(x.numel() for x, _ in slices)
        return found | {"coordinates": n, "rate": n / found["seconds"], "peak bytes": memory}
    return run


def spline_conv(plain: bool, coefficients: bool = True):
    """Forward and backward, 10^6 edges of 20,000 atoms in a box, 128 features."""
    def run(device: str) -> dict[str, Any]:
        side, width = (27, 128) if device == "cuda" else (10, 32)
        x, box = systems.lattice(side, 0.2154, 0.05)[None].to(device), torch.full((3,), side * 0.2154).double()
        cutoff = 0.4955  # 51 neighbors at 100 atoms a nm^3
        neighbors = ops.neighbor_list(x, cutoff, box=box.to(device))
        h = torch.randn(1, x.shape[1], width, device=device).requires_grad_()
        c = torch.randn(103, width, device=device).requires_grad_(coefficients)
        moving, along = x.clone().requires_grad_(), torch.randn_like(h)
        wanted = (h, moving, c) if coefficients else (h, moving)

        def call() -> None:
            torch.autograd.grad(ops.spline_conv(h, moving, c, neighbors, cutoff, box.to(device)), wanted, along)

        with use_backend("reference" if plain else "auto"):
            found = median_seconds(call, device)
            memory = peak_bytes(call, device)
        return found | {"edges": neighbors.col.numel(), "atoms": x.shape[1], "features": width, "peak bytes": memory}
    return run


def molecules(device: str):
    n_replicas, side = (512, 4) if device == "cuda" else (16, 4)
    return systems.replicas(systems.lattice(side, 0.2154, 0.05), n_replicas).to(device), None


def box_of_particles(device: str):
    """100 a nm^3 in random order."""
    side = 100 if device == "cuda" else 16
    return systems.lattice(side, 0.2154, 0.05)[None].to(device), torch.full((3,), side * 0.2154).double().to(device)


def neighbor_list(system, cutoff: float, plain: bool = False):
    def run(device: str) -> dict[str, Any]:
        x, box = system(device)
        with use_backend("reference" if plain else "auto"):
            found = median_seconds(lambda: ops.neighbor_list(x, cutoff, box=box), device, warm_up=1 if plain else 3)
            memory = peak_bytes(lambda: ops.neighbor_list(x, cutoff, box=box), device)
            edges = ops.neighbor_list(x, cutoff, box=box).col.numel()
        return found | {"edges": edges, "particles": x.shape[0] * x.shape[1], "peak bytes": memory}
    return run


def peer_list(system, cutoff: float):
    """nvalchemi-toolkit-ops, where it is installed: its own format (a matrix), told how many neighbors there are."""
    def run(device: str) -> dict[str, Any]:
        if importlib.util.find_spec("nvalchemiops") is None:
            raise Skipped("nvalchemi-toolkit-ops is not installed")
        from nvalchemiops.torch.neighbors import neighbor_list as peer

        x, box = system(device)
        wanted = ops.neighbor_list(x, cutoff, box=box)
        flat = x.flatten(0, 1)
        options = {"max_neighbors": int((wanted.row_ptr[1:] - wanted.row_ptr[:-1]).max())}
        if box is None:
            options["batch_ptr"] = torch.arange(len(x) + 1, dtype=torch.int32, device=device) * x.shape[1]
        else:
            options |= {"cell": torch.diag(box).float()[None], "pbc": torch.ones(1, 3, dtype=torch.bool, device=device)}
        found = median_seconds(lambda: peer(flat, cutoff, **options), device)
        edges = int(peer(flat, cutoff, **options)[1].sum())
        require(abs(edges - wanted.col.numel()) <= 1e-5 * edges, f"{edges} edges, we list {wanted.col.numel()}")
        return found | {"edges": edges}
    return run


SMALL, LARGE = 0.5, 0.5233  # nm: the latter gives 60 neighbors at 100 a nm^3
CASES = [
    Case("copy bandwidth", copy_bandwidth),
    Case("matrix rate, fp32", matrix_rate("highest")),
    Case("matrix rate, tf32", matrix_rate("high")),
    *(Case(f"resident, {precision}", sampler_run(dipeptide, precision=precision)) for precision in PRECISIONS),
    *(Case(f"resident, one replica, {precision}", sampler_run(one_dipeptide, precision=precision))
      for precision in PRECISIONS),
    Case("graph path", sampler_run(globule)),
    Case("em_step", em_step(plain=False)),
    Case("spline_conv", spline_conv(plain=False)),
    Case("spline_conv, no coefficients", spline_conv(plain=False, coefficients=False)),
    Case("neighbor list, molecules", neighbor_list(molecules, SMALL)),
    Case("neighbor list, one box", neighbor_list(box_of_particles, LARGE)),
    Case("resident, step by step", sampler_run(dipeptide, resident=False)),
    Case("resident, eager", eager_reference(dipeptide)),
    Case("graph path, eager", eager_reference(globule)),
    Case("graph path, eager, list given", eager_reference(globule, list_given=True)),
    Case("em_step, eager", em_step(plain=True)),
    Case("spline_conv, eager", spline_conv(plain=True)),
    Case("neighbor list, molecules, eager", neighbor_list(molecules, SMALL, plain=True)),
    Case("neighbor list, molecules, peer", peer_list(molecules, SMALL)),
    Case("neighbor list, one box, peer", peer_list(box_of_particles, LARGE)),
    Case("resident, compiled", compiled_reference(dipeptide)),
    Case("resident, one replica, compiled", compiled_reference(one_dipeptide)),
    Case("graph path, compiled", compiled_reference(globule)),
    Case("resident, one replica, eager", eager_reference(one_dipeptide)),
]
