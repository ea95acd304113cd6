"""Fuzz targets: SchNet's native evaluation, its construction, and a run of the sampler."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from diffmd_fast import NonFiniteError, Sampler, Spring
from diffmd_fast.models import SchNet
from diffmd_fast.sampling import INTEGRATORS

from .case import REFUSALS, Case
from .operators import in_reference, on_a_line

KNOTS = (4, 5, 9, 30, 100)


def draw_config(case: Case, most_atoms: int = 14) -> dict:
    """Constructor arguments of a small SchNet: a chain with branches, some torsions, springs and bends."""
    n_atoms = case.size(most_atoms, 1)
    bonds = [[case.random.randrange(max(0, i - 2), i), i] for i in range(1, n_atoms)]
    torsions = None if case.chance(0.6) else [case.permutation(n_atoms)[:4] for _ in range(3 if n_atoms > 3 else 0)]
    pairs = bonds[:case.size(5)]
    springs = {"pairs": pairs, "mean": [0.15] * len(pairs), "variance": [2e-3] * len(pairs)}
    triples = [case.permutation(n_atoms)[:3] for _ in range(case.size(4) if n_atoms > 2 else 0)]
    bends = {"triples": triples, "mean": [-0.4] * len(triples), "variance": [2e-2] * len(triples),
             "slope": [90.0] * len(triples)}
    return {"n_atoms": n_atoms, "n_features": case.size(40, 1), "n_blocks": case.choice((1, 1, 2, 3)),
            "cutoff": case.choice((0.2, 0.5, 1.0, 5.0)), "bonds": bonds, "torsions": torsions,
            "atom_types": [case.random.randrange(3) for _ in range(n_atoms)] if case.chance(0.5) else None,
            "n_knots": case.choice(KNOTS), "n_harmonics": case.choice((0, 1, 3, 6)), "noise_levels": [0.002, 0.5],
            "springs": springs if case.chance(0.5) else None, "bends": bends if case.chance(0.5) else None,
            "spread": 0.05 if case.chance(0.5) else None}


def draw_model(case: Case, dtype: torch.dtype, most_atoms: int = 14) -> SchNet:
    """With every parameter moved from where it starts, zeros included; special values in one now and then."""
    torch.manual_seed(case.random.getrandbits(32))
    model = SchNet(**draw_config(case, most_atoms)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=case.generator, dtype=dtype)
        if not case.ordinary and case.chance(0.3):
            parameter = case.choice([p for p in model.parameters() if p.numel()])
            parameter.copy_(case.values(parameter.shape, dtype))
    return model.requires_grad_(False)  # else the energy keeps a graph, and takes another path than the score


def same(a: Tensor, b: Tensor) -> bool:
    """To the last bit, NaN being equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def schnet(case: Case) -> None:
    dtype = case.dtype()
    most = 66 if case.chance(0.02) else 14  # above 64 atoms it is another path, with a list of neighbors
    model = draw_model(case, dtype, most)
    n_replicas = 70 if case.chance(0.05) else case.size(9)
    arguments = case.spoil({"positions": case.positions(n_replicas, model.n_atoms, dtype, case.choice((0.1, 0.3, 2.0))),
                            "noise_level": case.choice((None, 0.002, 0.05, 0.5))}, 0.3)
    result = case.attempt(lambda: model.energy_and_score(**arguments))
    if result is None:
        return
    x, (energy, score) = arguments["positions"], result
    case.check_shape(energy, x.shape[:1], x.dtype, "energy")
    case.check_shape(score, x.shape, x.dtype, "score")
    if x.requires_grad:
        return
    if model.n_atoms <= 64:
        check_replicas(case, model, arguments, energy, score)
    if not case.spoiled and case.ordinary and n_replicas and not on_a_line(x, model.quadruples):
        exact = copy.deepcopy(model).double()
        truth = in_reference(lambda: exact.energy_and_score(x.double(), arguments["noise_level"]))
        reference = in_reference(lambda: model.energy_and_score(**arguments))
        for got, plain, true, what in zip(result, reference, truth, ("energy", "score")):
            case.check_close(got, plain, true, what)


def check_replicas(case: Case, model: SchNet, arguments: dict, energy: Tensor, score: Tensor) -> None:
    """A replica that is not finite is NaN, and every other is what it is alone."""
    x = arguments["positions"]
    finite = x.isfinite().flatten(1).all(1)
    case.check(energy[~finite].isnan().all() and score[~finite].isnan().all(), "NaN for replicas that are not finite")
    case.check(same(model.energy(**arguments), energy), "the same energy without a score")
    if len(x):
        r = case.random.randrange(len(x))
        alone = model.energy_and_score(x[r:r + 1], arguments["noise_level"])
        case.check(same(alone[0], energy[r:r + 1]) and same(alone[1], score[r:r + 1]), "a replica's own result")


def schnet_config(case: Case) -> None:
    """Constructor arguments with one of them wrong: refused by name, or a model that runs."""
    config = case.spoil_json(draw_config(case))
    for name in ("n_atoms", "n_features", "n_blocks"):  # who asks for 2^31 blocks gets them, one by one
        if isinstance(config[name], int) and config[name] > 1000:
            config[name] = -1
    model = case.attempt(lambda: SchNet(**config))
    if model is not None:
        case.attempt(lambda: model.energy_and_score(case.positions(2, model.n_atoms, torch.float32)))


def sampler(case: Case) -> None:
    """A few steps: frames of the right shape, NaN exactly where a replica was lost."""
    dtype = case.dtype()
    model = draw_model(case, dtype)
    n_replicas, n_steps, save_every = case.size(9, 1), case.size(6, 1), case.size(3, 1)
    arguments = case.spoil({"positions": case.positions(n_replicas, model.n_atoms, dtype), "diffusion": 0.002,
                            "time_step": 1e-4, "temperature": 300.0, "seed": 1}, 0.3)
    name = case.random.choice(list(INTEGRATORS))
    rule = {"integrator": name, "masses": 12.0 if name == "baoab" else None}

    def run(resident=None):
        spring = Spring.from_time_step(arguments["time_step"], arguments["diffusion"])
        own = Sampler(model, spring, arguments["temperature"], seed=arguments["seed"], force=True, resident=resident,
                      **rule)
        return own.run(arguments["positions"], n_steps, save_every)

    try:
        trajectory = run()
    except (*REFUSALS, NonFiniteError) as error:
        if not isinstance(error, NonFiniteError):
            case.attempt(run)  # judged there
        case.refused = True
        return
    positions = torch.as_tensor(trajectory.positions)
    lost = {gone.replica for gone in trajectory.lost}
    n_replicas = len(arguments["positions"])  # one more or less than drawn is no mistake
    case.check(positions.shape[1:] == (n_replicas, model.n_atoms, 3), "frames of all replicas")
    bad = {r for r in range(n_replicas) if not positions[:, r].isfinite().all()}
    case.check(bad <= lost, f"NaN in no replica but the lost {sorted(lost)}, got {sorted(bad)}")
    stepwise = run(resident=False)
    case.check(stepwise.lost == trajectory.lost, f"the same losses step by step, {stepwise.lost}, as {trajectory.lost}")
    case.check(same(torch.as_tensor(stepwise.positions), positions), "the same frames step by step as resident")


TARGETS = {function.__name__: function for function in (schnet, schnet_config, sampler)}
