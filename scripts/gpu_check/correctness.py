"""Is it right on the device?  Every operator, the models on them, and the sampler, against the reference on the CPU."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from diffmd_fast import _C, InputError, ops, reference, use_backend
from diffmd_fast.training.denoising import denoising_loss

from . import systems
from .cases import Case, Skipped, Wrong
from .checks import check_operator, derivatives, error_ratio, require, same_bits
from .sampler_checks import CASES as SAMPLER_CASES

STEP = {"diffusion": 0.002, "time_step": 1e-3, "seed": 2**63 + 5, "first_replica": 3, "step": 2**33 + 17}


def draw(*shape: int, seed: int = 1, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- which code runs -------------------------------------------------------------------------------------
def dispatch(device: str) -> dict[str, Any]:
    """Every operator has a kernel for the device; a backend that cannot serve it refuses; the probe kernel runs."""
    key = device.upper()
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("diffmd_fast::")]
    require(len(names) > 10, f"only {names} are registered")
    for name in names:
        require(torch._C._dispatch_has_kernel_for_dispatch_key(name, key), f"{name} has no {key} kernel")
    x, score = draw(4, 5, 3), draw(4, 5, 3, seed=2)
    moved = ops.em_step(x.to(device), score.to(device), **STEP)
    require(moved.device.type == device, f"em_step of {device} tensors is on {moved.device}")
    if device == "cpu":
        return {"backend": "native", **_C.build_info()}
    with use_backend("triton"):
        same_bits("em_step by use_backend('triton') and by 'auto'", ops.em_step(x.cuda(), score.cuda(), **STEP), moved)
    with use_backend("native"):
        try:
            ops.em_step(x.cuda(), score.cuda(), **STEP)
        except InputError as error:
            return {"backend": "triton", "refused": str(error), **_C.build_info()}
    raise Wrong("the native backend took CUDA tensors")


def probe(device: str) -> dict[str, Any]:
    """The random words of a CUDA kernel of the extension are the host's."""
    reason = _C.cuda_probe()
    if device == "cpu" or reason.startswith("compiled without CUDA"):
        raise Skipped(reason or "the checks are of the CPU's code")
    require(reason == "", reason)
    return {}


def operator_registration(device: str) -> dict[str, Any]:
    """Schema and fake tensors of the operators as torch's own checker sees them."""
    h, x, c, neighbors, _ = graph(2, 5, 6, 9, None)
    x64 = x.double().to(device)
    one = torch.ones(1, dtype=torch.float64, device=device)
    edges = [h, x, c, *neighbors[:2], x.new_empty(0, 3)]
    flat = [t.flatten(0, 1) if t.dim() == 3 else t for t in edges]
    flat = [t.to(device) for t in flat]
    quadruples = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]], device=device)
    for name, arguments in (("em_step", (x64, x64 * 2, one, one, 1, 0, 0, True, True)),
                            ("torsions", (x64, quadruples)), ("torsions_backward", (x64[:, :2, :2], x64, quadruples)),
                            ("spline_conv", (*flat, 1.0)),
                            ("spline_conv_backward", (flat[0] + 1, *flat, 1.0, True, True, True))):
        torch.library.opcheck(getattr(torch.ops.diffmd_fast, name), arguments,
                              test_utils=("test_schema", "test_faketensor"))
    return {}


# ---- em_step -----------------------------------------------------------------------------------------------
def step_of(operator, **more):
    return lambda x, score: operator(x, score, **STEP, **more)


def em_step_rule(device: str) -> dict[str, Any]:
    x, score = draw(37, 17, 3), draw(37, 17, 3, seed=2, scale=300.0)
    result = check_operator(device, step_of(ops.em_step), step_of(reference.em_step), x, score)
    everything = {"return_noise": True, "return_log_density": True}
    got = ops.em_step(x.to(device), score.to(device), **STEP, **everything)
    wanted32 = reference.em_step(x, score, **STEP, **everything)
    wanted64 = reference.em_step(x.double(), score.double(), **STEP, **everything)
    for name, *values in zip(got._fields, got, wanted32, wanted64):
        result[name] = round(error_ratio(name, *values), 3)
    return result


def em_step_noise(device: str) -> dict[str, Any]:
    """Noise and positions have the bits of the CPU's, for numbers of replica, step and seed of more than 32 bits."""
    compared = 0
    for dtype in (torch.float32, torch.float64):
        for n_replicas, n_atoms in ((1, 1), (3, 7), (37, 17), (512, 1), (2, 300)):
            for seed, first, step in ((0, 0, 0), (2**64 - 1, 2**32 - 1 - n_replicas, 2**56 - 1), (7, 3, 2**32 + 5)):
                x, score = draw(n_replicas, n_atoms, 3).to(dtype), draw(n_replicas, n_atoms, 3, seed=2).to(dtype)
                options = {"diffusion": 0.002, "time_step": 1e-3, "seed": seed, "first_replica": first, "step": step,
                           "return_noise": True}
                got, wanted = ops.em_step(x.to(device), score.to(device), **options), ops.em_step(x, score, **options)
                where = f"seed {seed}, first replica {first}, step {step}, {dtype}"
                same_bits(f"noise ({where})", got.noise, wanted.noise)
                same_bits(f"positions ({where})", got.positions, wanted.positions)
                compared += wanted.noise.numel()
    return {"normals compared": compared}


def em_step_batches(device: str) -> dict[str, Any]:
    """A batch may be cut anywhere; per-atom diffusion, per-replica variance, strides and writing in place."""
    x, score = draw(50, 22, 3).to(device), draw(50, 22, 3, seed=2).to(device)
    options = {**STEP, "diffusion": torch.linspace(0.001, 0.003, 22, dtype=torch.float64, device=device)}
    variance = torch.linspace(0.5, 1.5, 50, dtype=torch.float64, device=device)
    whole = ops.em_step(x, score, **options, variance=variance)
    parts = [ops.em_step(x[a:b], score[a:b], **{**options, "first_replica": 3 + a}, variance=variance[a:b])
             for a, b in ((0, 1), (1, 34), (34, 50))]
    same_bits("a batch in parts", torch.cat(parts), whole)
    same_bits("strided positions", ops.em_step(x.repeat(1, 2, 1)[:, ::22][:, :1].expand(50, 22, 3), score, **options,
                                               variance=variance),
              ops.em_step(x[:, :1].expand(50, 22, 3).contiguous(), score, **options, variance=variance))
    in_place = x.clone()
    ops.em_step(in_place, score, **options, variance=variance, out=in_place)
    same_bits("in place", in_place, whole)
    return {}


# ---- torsions ------------------------------------------------------------------------------------------------
def torsions_rule(device: str) -> dict[str, Any]:
    model, places = systems.dipeptide(16, 1)
    quadruples = model.quadruples
    x = systems.replicas(places, 33)
    return check_operator(device, lambda y: ops.torsions(y, quadruples.to(device)),
                          lambda y: reference.torsions(y, quadruples), x)


def torsions_degenerate(device: str) -> dict[str, Any]:
    """Atoms on a line and in one place: finite, and the reference's to float64 rounding."""
    a, b, c, d = [0.05, 0.12, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.0, 0.14]
    rows = [[[-0.15, 0, 0], b, c, d], [[-0.15, 0, 0], b, c, [0.3, 0, 0]], [a, b, b, d], [b, b, c, d], [a, b, c, c],
            [c, b, c, d], [b, b, b, b]]
    x, one = torch.tensor(rows, dtype=torch.float64), torch.tensor([[0, 1, 2, 3]])
    got = derivatives(lambda y: ops.torsions(y, one.to(device)), x.to(device))
    for name, wanted in derivatives(lambda y: reference.torsions(y, one), x).items():
        scale = max(1.0, wanted.abs().max().item())
        off = (got[name].cpu() - wanted).abs().max().item()
        require(off <= 1e-9 * scale, f"{name}: off by {off:.3g} of {scale:.3g}")
    return {}


# ---- neighbor lists and spline_conv ----------------------------------------------------------------------------
def boxes(kind: str, n_replicas: int) -> torch.Tensor | None:
    return {"none": None, "orthorhombic": torch.tensor([2.2, 2.4, 2.6]).double(),
            "triclinic": torch.tensor([[2.4, 0, 0], [0.3, 2.5, 0], [0.2, 0.4, 2.6]]).double(),
            "one per replica": torch.diag_embed(2.2 + 0.1 * torch.arange(3.0 * n_replicas).reshape(-1, 3)).double(),
            }[kind]


def neighbor_list(kind: str, cutoff: float | None = 0.9, n_replicas: int = 3, n_atoms: int = 130):
    def run(device: str) -> dict[str, Any]:
        x, box = draw(n_replicas, n_atoms, 3, scale=0.9), boxes(kind, n_replicas)
        there = None if box is None else box.to(device)
        got, again = (ops.neighbor_list(x.to(device), cutoff, box=there) for _ in range(2))
        wanted = reference.neighbor_list(x, cutoff, box=box)
        for name in ("row_ptr", "col", "shift", "reverse"):
            same_bits(name, getattr(got, name), getattr(wanted, name))
            same_bits(f"{name}, computed twice", getattr(again, name), getattr(got, name))

        def along_edges(operator, box):
            def of(y):
                found = operator(y, cutoff, box=box, return_distances=True, return_vectors=True)
                return torch.cat([found.vectors, found.distances[:, None]], 1)
            return of

        return {"edges": got.col.numel()} | check_operator(device, along_edges(ops.neighbor_list, there),
                                                           along_edges(reference.neighbor_list, box), x)
    return run


def neighbor_list_large(device: str) -> dict[str, Any]:
    """One box of 4096 particles: the device's list is the native one, to the last entry."""
    x, box = systems.lattice(16, 0.2154, 0.05)[None], torch.full((3,), 16 * 0.2154).double()
    got, wanted = ops.neighbor_list(x.to(device), 0.5, box=box.to(device)), ops.neighbor_list(x, 0.5, box=box)
    for name in ("row_ptr", "col", "shift", "reverse"):
        same_bits(name, getattr(got, name), getattr(wanted, name))
    return {"edges": wanted.col.numel()}


def neighbor_list_refuses(device: str) -> dict[str, Any]:
    x = draw(2, 70, 3)
    x[1, 33, 2] = math.nan
    try:
        ops.neighbor_list(x.to(device), 0.5)
    except InputError as error:
        require("replica 1, atom 33" in str(error), f"the message names another atom: {error}")
        return {}
    raise Wrong("a position that is not finite was taken")


def verlet_list(device: str) -> dict[str, Any]:
    """Along a walk with a skin, every pair within the cutoff stays listed, and most lists are kept."""
    kept, x = ops.VerletList(0.6, 0.2), draw(3, 40, 3, scale=0.6).to(device)
    for step in range(20):
        x = x + draw(3, 40, 3, seed=100 + step, scale=0.006).to(device)
        found = kept.update(x, return_distances=True)
        near = found.distances < 0.6
        wanted = reference.neighbor_list(x.cpu(), 0.6)
        same_bits("neighbors within the cutoff", found.col[near], wanted.col)
        same_bits("their rows", found.rows()[near], wanted.rows())
    require(0 < kept.n_builds < 3 * 20 // 2, f"{kept.n_builds} lists were made in {3 * 20}")
    return {"lists made": kept.n_builds, "of": 3 * 20}


def graph(n_replicas: int, n_atoms: int, n_features: int, n_knots: int, kind: str | None):
    """Features, positions, coefficients, a list of them and their box; cutoff 1."""
    x = draw(n_replicas, n_atoms, 3, scale=0.45)
    box = None if kind is None else boxes(kind, n_replicas)
    neighbors = ops.neighbor_list(x, 1.0, box=box)
    return draw(n_replicas, n_atoms, n_features, seed=2), x, draw(n_knots, n_features, seed=4), neighbors, box


def spline_conv(n_atoms: int, n_features: int, n_knots: int, kind: str | None = None):
    def run(device: str) -> dict[str, Any]:
        h, x, c, neighbors, box = graph(3, n_atoms, n_features, n_knots, kind)
        there = type(neighbors)(*(None if t is None else t.to(device) for t in neighbors))
        box_there = None if box is None else box.to(device)
        return {"edges": neighbors.col.numel()} | check_operator(
            device, lambda h, x, c: ops.spline_conv(h, x, c, there, 1.0, box_there),
            lambda h, x, c: reference.spline_conv(h, x, c, neighbors, 1.0, box), h, x, c)
    return run


# ---- models ------------------------------------------------------------------------------------------------------
def schnet_results(model, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Energy, score, and the gradient of a denoising loss, each parameter's in units of its largest entry."""
    noise, level = draw(*x.shape, seed=9).to(x), torch.full((len(x),), 0.01).to(x)
    energy, score = model.energy_and_score(x)
    learning = copy.deepcopy(model).requires_grad_(True)
    denoising_loss(learning, x, noise, level).sum().backward()
    gradients = {name: p.grad.detach().cpu() for name, p in learning.named_parameters() if p.grad is not None}
    return {"energy": energy, "score": score, **gradients}


def schnet(system, n_replicas: int):
    def run(device: str) -> dict[str, Any]:
        model, places = system()
        x = systems.replicas(places, n_replicas)
        there = copy.deepcopy(model).to(device)
        got, again = (schnet_results(there, x.to(device)) for _ in range(2))
        with use_backend("reference"):
            wanted32, wanted64 = schnet_results(model, x), schnet_results(copy.deepcopy(model).double(), x.double())
        require(got.keys() == wanted64.keys(), f"gradients of {sorted(got)} instead of {sorted(wanted64)}")
        same_bits("score, computed twice", again["score"], got["score"])
        result = {name: round(error_ratio(name, got[name], wanted32[name], wanted64[name]), 3)
                  for name in ("energy", "score")}
        # All parameters together: one alone is too few numbers to be held to a factor of two of another rounding.
        scales = {name: t.abs().max().clamp(min=1e-30) for name, t in wanted64.items() if name not in result}
        one, two, three = (torch.cat([(t[name].double() / scales[name]).flatten() for name in scales])
                           for t in (got, wanted32, wanted64))
        return result | {"training gradient": round(error_ratio("training gradient", one, two, three), 3)}
    return run


CASES = [
    Case("which code runs", dispatch),
    Case("the probe kernel", probe),
    Case("operators as torch checks them", operator_registration),
    Case("em_step: value and derivatives", em_step_rule, sanitized=True),
    Case("em_step: noise equal to the CPU's, to the bit", em_step_noise),
    Case("em_step: batches, strides, in place", em_step_batches),
    Case("torsions: value and derivatives", torsions_rule, sanitized=True),
    Case("torsions: degenerate geometries", torsions_degenerate),
    *(Case(f"neighbor_list: box {kind}", neighbor_list(kind), sanitized=kind == "triclinic")
      for kind in ("none", "orthorhombic", "triclinic", "one per replica")),
    Case("neighbor_list: all pairs", neighbor_list("none", None, 3, 22)),
    Case("neighbor_list: rows of many tiles", neighbor_list("none", 1.5, 2, 300)),
    Case("neighbor_list: 4096 particles in a box", neighbor_list_large, sanitized=True),
    Case("neighbor_list: refuses what is not finite", neighbor_list_refuses),
    Case("VerletList: complete along a walk", verlet_list),
    *(Case(f"spline_conv: {n_atoms} atoms, {n_features} features, {n_knots} knots, box {kind}",
           spline_conv(n_atoms, n_features, n_knots, kind), sanitized=n_features == 17)
      for n_atoms, n_features, n_knots, kind in ((5, 1, 4, None), (33, 17, 30, None), (22, 64, 103, None),
                                                 (60, 128, 103, "triclinic"), (20, 300, 20, "one per replica"))),
    Case("SchNet: 22 atoms, all pairs", schnet(lambda: systems.dipeptide(), 16)),
    Case("SchNet: 80 beads, by list", schnet(lambda: systems.beads(80, 32, 2), 4)),
    *SAMPLER_CASES,
]
