"""SchNet on static buffers (models/static.py): what is captured in a CUDA graph, here on the CPU."""

import copy

import pytest
import torch

from diffmd_fast.models import SchNet
from diffmd_fast.models.static import StaticSchNet, default_skin

from ..ops.common import assert_float64_rule
from . import test_schnet_native as small
from . import test_schnet_periodic as large

CASES = [(30, large.LENGTHS, False), (30, large.TRICLINIC, True), (90, None, True), (70, None, False)]


def assert_same(got, want, tolerance=1e-11):
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("parts", [small.EVERYTHING, small.BARE], ids=["everything", "bare"])
@pytest.mark.parametrize("n_atoms", [1, 2, 10, 22])
def test_small_molecules_equal_the_reference(rng, n_atoms, parts):
    model = small.make_model(rng, n_atoms, 16, **parts)
    positions = small.make_positions(rng, 5, n_atoms)
    static = StaticSchNet(model, None, positions)
    for noise_level in (None, 0.05):
        static = StaticSchNet(model, noise_level, positions)
        assert static.list is None
        assert_same(static(positions), small.reference(model, positions, noise_level))


@pytest.mark.parametrize(("n_atoms", "box", "bonded"), CASES)
def test_by_list_equals_the_reference_as_atoms_move(rng, n_atoms, box, bonded):
    model = large.make(rng, n_atoms, box, bonded)
    positions = large.place(rng, 3, n_atoms, box or large.LENGTHS)
    static = StaticSchNet(model, None, positions)
    for _ in range(4):
        assert_same(static(positions), large.reference(model, positions))
        positions = positions + 0.01 * torch.randn(positions.shape, generator=rng, dtype=torch.float64)
    assert not static.list.overflows()
    narrow = box is not None and default_skin(model.cutoff, model.box_vectors(positions)) < 0.1
    assert narrow or static.list.n_builds < 12


@pytest.mark.parametrize("n_atoms, box", [(22, None), (90, None), (30, large.TRICLINIC)])
def test_float32_within_twice_the_reference_error(rng, n_atoms, box):
    make = small.make_model if n_atoms == 22 else lambda *a, **k: large.make(*a, box=box, bonded=True, **k)
    model = make(rng, n_atoms, dtype=torch.float32)
    place = small.make_positions(rng, 10, 22, torch.float32) if n_atoms == 22 else large.place(
        rng, 4, n_atoms, box or large.LENGTHS, torch.float32)
    exact = copy.deepcopy(model).double()
    got = StaticSchNet(model, None, place)(place)
    for name, a, b, c in zip(("energy", "score"), got, large.reference(model, place),
                             large.reference(exact, place.double())):
        assert_float64_rule(a, b, c, name)


def test_memory_of_a_call_stays_and_results_repeat(rng):
    model = large.make(rng, 90, None, True, dtype=torch.float32)
    positions = large.place(rng, 3, 90, large.LENGTHS, torch.float32)
    static = StaticSchNet(model, None, positions)
    first = [each.clone() for each in static(positions)]
    addresses = [each.data_ptr() for each in (static._matrices, static.list.col, static.list.row_ptr)]
    static(positions + 0.3)
    again = static(positions)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert addresses == [each.data_ptr() for each in (static._matrices, static.list.col, static.list.row_ptr)]


def test_coincident_atoms_and_springs_at_zero_length_are_finite(rng):
    model = small.make_model(rng, 6, 16)
    positions = small.make_positions(rng, 3, 6)
    positions[1, 4] = positions[1, 3]
    assert_same(StaticSchNet(model, None, positions)(positions), small.reference(model, positions))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e25])
@pytest.mark.parametrize("box", [None, large.LENGTHS])
def test_a_bad_replica_is_not_finite_and_alone(rng, bad, box):
    model: SchNet = large.make(rng, 70, box, True, dtype=torch.float32)
    positions = large.place(rng, 3, 70, large.LENGTHS, torch.float32)
    static = StaticSchNet(model, None, positions)
    good = [each.clone() for each in static(positions)]
    broken = positions.clone()
    broken[1, 69, 1] = bad
    energy, score = static(broken)
    others = torch.tensor([0, 2])
    assert torch.equal(energy[others], good[0][others]) and torch.equal(score[others], good[1][others])
    if bad != 1e25 or box is not None:
        assert not score[1].isfinite().all()
