"""csrc/schnet.cpp: one native call for energy and score, against SchNet.forward and autograd on the reference path."""

import copy
import math

import pytest
import torch

from diffmd_fast import set_num_threads, use_backend
from diffmd_fast.models import SchNet

from ..ops.common import SIMD_LEVELS, assert_float64_rule, simd_level

EVERYTHING = dict(torsions=True, springs=True, bends=True, spread=True)
BARE = dict(torsions=False, springs=False, bends=False, spread=False)


def make_model(rng, n_atoms, n_features=64, n_blocks=3, cutoff=1.0, torsions=True, springs=True, bends=True,
               spread=True, dtype=torch.float64):
    """A chain with every parameter drawn away from its initial value, zeros included."""
    bonds = [(i, i + 1) for i in range(n_atoms - 1)]
    stiff = {"pairs": bonds, "mean": [0.15] * len(bonds), "variance": [3e-3] * len(bonds)}
    triples = [(i, i + 1, i + 2) for i in range(n_atoms - 2)]
    bent = {"triples": triples, "mean": [-0.3] * len(triples), "variance": [0.05] * len(triples),
            "slope": [90.0] * len(triples)}
    model = SchNet(n_atoms, n_features, n_blocks, cutoff, bonds=bonds, torsions=None if torsions else (),
                   springs=stiff if springs else None, bends=bent if bends else None, spread=0.05 if spread else None,
                   n_harmonics=4 if torsions else 0)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=rng) * (0.3 if p.dim() < 2 else 1.0 / math.sqrt(p.shape[-1])))
    return model.to(dtype)


def make_positions(rng, n_replicas, n_atoms, dtype=torch.float64):
    line = 0.1 * torch.arange(n_atoms, dtype=torch.float64)[:, None] * torch.tensor([0.8, 0.5, 0.3])
    return (line + 0.08 * torch.randn(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)).to(dtype)


def reference(model, positions, noise_level=None):
    with use_backend("reference"):
        return model.energy_and_score(positions, noise_level)


def native(model, positions, noise_level=None):
    with use_backend("native"):
        return model.energy_and_score(positions, noise_level)


def assert_same(got, want, tolerance=1e-10):
    for a, b in zip(got, want):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("parts", [EVERYTHING, BARE], ids=["everything", "bare"])
@pytest.mark.parametrize("n_features", [64, 48, 5])
@pytest.mark.parametrize("n_atoms", [1, 2, 4, 10, 22, 64])
def test_equals_reference(rng, n_atoms, n_features, parts):
    model = make_model(rng, n_atoms, n_features, **parts)
    positions = make_positions(rng, 3 if n_atoms < 64 else 1, n_atoms)
    assert_same(native(model, positions), reference(model, positions))
    assert_same(native(model, positions, 0.07), reference(model, positions, 0.07))


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("only", ["torsions", "springs", "bends", "spread"])
def test_each_part_at_each_level(rng, level, only):
    model = make_model(rng, 6, 16, n_blocks=2, **{**BARE, only: True})
    positions = make_positions(rng, 7, 6)
    with simd_level(level):
        assert_same(native(model, positions), reference(model, positions))


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("parts", [EVERYTHING, BARE], ids=["everything", "bare"])
@pytest.mark.parametrize("n_atoms", [10, 22])
def test_float32_within_twice_the_reference_error(rng, n_atoms, parts, level):
    """Over eight models: the rounding of a model's weights moves all its replicas alike, so one tells little."""
    results = {"energy": [], "score": []}
    for _ in range(8):
        model = make_model(rng, n_atoms, dtype=torch.float32, **parts)
        positions = make_positions(rng, 5, n_atoms, torch.float32)
        exact = reference(copy.deepcopy(model).double(), positions.double())
        with simd_level(level):
            got = native(model, positions)
        for name, a, b, c in zip(results, got, reference(model, positions), exact):
            results[name].append(torch.stack([a.double(), b.double(), c]) / c.abs().max())
    for name, values in results.items():
        assert_float64_rule(*torch.cat(values, 1), name)


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_atoms", [1, 7, 10])
def test_a_replica_does_not_depend_on_batch_place_or_threads(rng, n_atoms, dtype, level):
    """Bit for bit: blocks of 66 // n_atoms replicas are cut differently in every one of these calls."""
    model = make_model(rng, n_atoms, dtype=dtype)
    positions = make_positions(rng, 80, n_atoms, dtype)
    order = torch.randperm(80, generator=rng)
    with simd_level(level):
        try:
            set_num_threads(1)
            energy, score = native(model, positions)
            for n_threads in (1, 2, 3):
                set_num_threads(n_threads)
                for first, last in ((0, 80), (0, 1), (5, 6), (1, 15), (13, 80)):
                    part = native(model, positions[first:last])
                    assert torch.equal(part[0], energy[first:last]) and torch.equal(part[1], score[first:last])
                part = native(model, positions[order])
                assert torch.equal(part[0], energy[order]) and torch.equal(part[1], score[order])
        finally:
            set_num_threads(None)
        with torch.no_grad(), use_backend("native"):
            assert torch.equal(model.energy(positions), energy), "without the score"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_replica_is_nan_and_alone(rng, bad):
    model = make_model(rng, 10, dtype=torch.float32)
    positions = make_positions(rng, 8, 10, torch.float32)
    energy, score = native(model, positions)
    broken = positions.clone()
    broken[3, 9, 1] = bad
    got = native(model, broken)
    others = torch.arange(8) != 3
    assert torch.equal(got[0][others], energy[others]) and torch.equal(got[1][others], score[others])
    assert got[0][3].isnan() and got[1][3].isnan().all()


def test_enormous_positions_harm_nobody_else(rng):
    """Squares overflow: whatever comes out for that replica, no index may follow from it."""
    model = make_model(rng, 10, dtype=torch.float32)
    positions = make_positions(rng, 4, 10, torch.float32)
    energy, score = native(model, positions)
    positions[1] *= 1e25
    got = native(model, positions)
    others = torch.tensor([0, 2, 3])
    assert torch.equal(got[0][others], energy[others]) and torch.equal(got[1][others], score[others])
    assert not got[0][1].isfinite()


def test_pairs_at_and_beyond_the_cutoff(rng):
    """Dyadic numbers, so the second atom is at the cutoff exactly; beyond it nothing depends on the distance."""
    model = make_model(rng, 2, cutoff=0.5, **BARE)
    positions = torch.zeros(5, 2, 3, dtype=torch.float64)
    positions[:, 1, 0] = torch.tensor([0.5, 0.75, 100.0, math.nextafter(0.5, 0), 0.25])
    energy, score = got = native(model, positions)
    assert_same(got, reference(model, positions))
    assert energy[0] == energy[1] == energy[2] and (score[:3] == 0).all()
    assert energy[4] != energy[0] and (score[4, :, 0] != 0).all()
    chain = make_model(rng, 22, cutoff=0.5)
    positions = make_positions(rng, 5, 22)
    assert (torch.pdist(positions[0]) > 0.5).sum() > 50
    assert_same(native(chain, positions), reference(chain, positions))


def test_coincident_atoms_are_finite(rng):
    model = make_model(rng, 10)
    positions = make_positions(rng, 3, 10)
    positions[1, 4] = positions[1, 3]
    positions[2] = 0.0
    energy, score = got = native(model, positions)
    assert energy.isfinite().all() and score.isfinite().all()
    assert_same(got, reference(model, positions))


@pytest.mark.parametrize("n_atoms", [2, 6])
def test_score_is_minus_the_slope_of_the_energy(rng, n_atoms):
    model = make_model(rng, n_atoms, 32)
    positions = make_positions(rng, 1, n_atoms)
    _, score = native(model, positions)
    step = 1e-5 * torch.eye(3 * n_atoms, dtype=torch.float64).view(-1, n_atoms, 3)
    slope = (native(model, positions + step)[0] - native(model, positions - step)[0]) / 2e-5
    torch.testing.assert_close(score.flatten(), -slope, rtol=1e-6, atol=1e-6 * score.abs().max().item())


def test_moves_and_turns_change_nothing(rng):
    model = make_model(rng, 10)
    positions = make_positions(rng, 4, 10)
    energy, score = native(model, positions)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))
    turn = turn * torch.linalg.det(turn)
    moved = native(model, positions @ turn + torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    assert_same(moved, (energy, score @ turn), 1e-9)
    assert_same([score.sum(1)], [torch.zeros(4, 3, dtype=torch.float64)], 1e-9)


@pytest.mark.parametrize("torsions", [True, False])
def test_only_torsions_tell_mirror_images_apart(rng, torsions):
    model = make_model(rng, 10, torsions=torsions)
    positions = make_positions(rng, 4, 10)
    mirrored = positions * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    difference = (native(model, positions)[0] - native(model, mirrored)[0]).abs()
    assert (difference > 1e-3).all() if torsions else (difference < 1e-9).all()


def test_changed_parameters_are_noticed(rng):
    model = make_model(rng, 4, 16)
    positions = make_positions(rng, 2, 4)
    before = native(model, positions)
    for p in (model.embedding, model.blocks[1].first.weight, model.readout_out):
        with torch.no_grad():
            p.mul_(1.1)
        after = native(model, positions)
        assert not torch.equal(after[0], before[0])
        assert_same(after, reference(model, positions))
        before = after
    model.load_state_dict(make_model(rng, 4, 16).state_dict())
    assert_same(native(model, positions), reference(model, positions))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.embedding.add_(0.5)
    assert_same(native(twin, positions), reference(twin, positions))
    assert_same(native(model, positions), reference(model, positions))


def test_saturated_activations(rng):
    """Pre-activations of hundreds: exp is clamped, so they meet neither infinity nor NaN."""
    model = make_model(rng, 5, 16, **BARE)
    with torch.no_grad():
        for p in (model.readout_in.bias, model.blocks[0].first.bias):
            p.copy_(torch.linspace(-900, 900, 16))
    positions = make_positions(rng, 2, 5)
    energy, score = got = native(model, positions)
    assert energy.isfinite().all() and score.isfinite().all()
    assert_same(got, reference(model, positions))


def test_empty_batch_and_strides(rng):
    model = make_model(rng, 4, 16)
    energy, score = native(model, torch.zeros(0, 4, 3, dtype=torch.float64))
    assert energy.shape == (0,) and score.shape == (0, 4, 3)
    positions = make_positions(rng, 6, 4)
    strided = positions.repeat(1, 1, 2)[..., :3]
    assert not strided.is_contiguous()
    assert torch.equal(native(model, strided)[1], native(model, positions)[1])


@pytest.mark.parametrize("wrong", ["features", "quadruples", "spring_pairs", "bend_triples"])
def test_the_module_refuses_what_would_read_out_of_bounds(rng, wrong):
    model = make_model(rng, 5, 16)
    positions = make_positions(rng, 1, 5)
    folded = model.folded(0.01, torch.float64)
    if wrong == "features":
        folded.description["n_features"] = 17
    else:
        atoms = getattr(model, wrong).clone()
        atoms[0, 1] = 5 if wrong == "quadruples" else -1
        folded.description[wrong] = atoms.data_ptr()
    energy, score = torch.full((1,), 7.0, dtype=torch.float64), torch.empty_like(positions)
    with pytest.raises(ValueError, match="expected"):
        folded.run(positions, energy, score)
    assert energy.item() == 7.0
