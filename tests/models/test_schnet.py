"""SchNet's symmetries, handedness, conditioning on the noise level, and sharing between molecules."""

import pytest
import torch

import diffmd_fast
from diffmd_fast import InputError, use_backend
from diffmd_fast.models import SchNet
from diffmd_fast.models.topology import bonded_torsions

CHAIN = [(0, 1), (1, 2), (2, 3), (3, 4)]
BENT = [(0, 1, 2), (1, 2, 3), (2, 3, 4)]


def chain_positions(n_replicas=3, n_atoms=5, seed=1, dtype=torch.float64):
    """A bent, twisted chain with 0.15 nm bonds and some noise."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.tensor([[0.0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.21, 0.18, 0.14], [0.33, 0.25, 0.2]])
    base = torch.cat([base] + [base + 0.3 * k for k in range(1, -(-n_atoms // 5))])[:n_atoms]
    return (base + 0.01 * torch.randn(n_replicas, n_atoms, 3, generator=generator)).to(dtype)


def make(dtype=torch.float64, **changes):
    torch.manual_seed(3)
    arguments = dict(n_atoms=5, n_features=16, n_blocks=2, bonds=CHAIN, n_harmonics=3,
                     springs={"pairs": CHAIN, "mean": [0.15] * 4, "variance": [1e-5] * 4},
                     bends={"triples": BENT, "mean": [-0.4] * 3, "variance": [5e-3] * 3, "slope": [120.0] * 3},
                     spread=0.02)
    model = SchNet(**{**arguments, **changes})
    with torch.no_grad():  # heads start at zero; the tests want them to matter
        model.noise_heads.weight.normal_(0, 0.1)
        model.readout_out.normal_()
        model.torsion_series.normal_()
    return model.to(dtype)


def rotation(seed=5):
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return q * torch.sign(torch.linalg.det(q))


def test_every_bonded_quadruple_once():
    assert bonded_torsions([(0, 1), (1, 2), (2, 3)]) == [[0, 1, 2, 3]]
    assert bonded_torsions([(0, 1), (1, 2), (1, 4), (2, 3)]) == [[0, 1, 2, 3], [4, 1, 2, 3]]
    assert bonded_torsions([(0, 1), (1, 2), (2, 0)]) == []  # a three-ring has none
    ring = [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert len(bonded_torsions(ring)) == 4


def test_rotation_and_translation_change_nothing():
    model, x = make(), chain_positions()
    r = rotation()
    moved = x @ r.T + torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)
    energy, score = model.energy_and_score(x)
    energy2, score2 = model.energy_and_score(moved)
    torch.testing.assert_close(energy2, energy, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(score2, score @ r.T, rtol=1e-9, atol=1e-8)
    assert score.sum(1).abs().max() < 1e-8 * score.abs().max()


def test_mirror_images_have_different_energies_only_with_torsions():
    x = chain_positions()
    mirrored = x * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    handed = make()
    assert (handed.energy(x) - handed.energy(mirrored)).abs().min() > 1e-3
    blind = make(torsions=())
    torch.testing.assert_close(blind.energy(x), blind.energy(mirrored), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise_level", [None, 0.002, 0.05, 0.5])
def test_score_is_minus_the_gradient(noise_level):
    model, x = make(), chain_positions(1)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-6
    with use_backend("reference"), torch.no_grad():
        slope = (model.energy(x + step * direction, noise_level) - model.energy(x - step * direction, noise_level)) / (
            2 * step)
    score = model.score(x, noise_level)
    torch.testing.assert_close(-(score * direction).sum((1, 2)), slope, rtol=1e-6, atol=1e-6)


def test_noise_level_may_differ_per_replica():
    model, x = make(), chain_positions(2)
    both = model.energy(x, torch.tensor([0.002, 0.1], dtype=torch.float64))
    torch.testing.assert_close(both[0], model.energy(x[:1], 0.002)[0])
    torch.testing.assert_close(both[1], model.energy(x[1:], 0.1)[0])


def test_large_noise_tends_to_the_gaussian():
    """At large sigma springs fade as sigma^-4, bends faster, and the pull to the centre is sigma^2/(sigma^2 + v)^2."""
    model = make()
    spring, bend, centre = model._stiffness(torch.tensor([1e-3, 5.0], dtype=torch.float64))
    assert abs(centre[1].item() * 25.0 - 1) < 0.01
    assert spring[1].max() * 25.0 < 1e-3
    assert abs(spring[0, 0].item() - 1 / (1e-5 + 2e-6)) < 0.01 * spring[0, 0].item()
    assert abs(bend[0, 0].item() * (5e-3 + 120e-6) - 0.98) < 0.01 and bend[1].max() < 1e-9 * bend[0].min()


def test_between_the_ends_of_an_angle_a_spring_appears_as_the_bend_fades():
    ends = {"pairs": [(0, 1), (2, 0)], "mean": [0.15, 0.25], "variance": [1e-5, 1e-4]}
    noise = torch.tensor([1e-4, 0.01, 1.0], dtype=torch.float64)
    spring, bend, _ = make(springs=ends)._stiffness(noise)
    alone, none, _ = make(springs=ends, bends=None)._stiffness(noise)
    assert none.shape == (3, 0) and torch.equal(spring[:, 0], alone[:, 0])
    torch.testing.assert_close(spring[:, 1] / alone[:, 1], torch.tensor([1e-8, 0.25, 0.9998], dtype=torch.float64),
                               rtol=1e-3, atol=0)
    assert bend[0].min() * 5e-3 > 0.99 and bend[2].max() * 120 < 1e-7


def test_molecules_without_torsions_or_bonds():
    for bonds, n_atoms in (((), 1), (((0, 1),), 2), ((), 5)):
        model = make(n_atoms=n_atoms, bonds=bonds, springs=None, bends=None)
        energy, score = model.energy_and_score(chain_positions(2, 5)[:, :n_atoms])
        assert torch.isfinite(energy).all() and torch.isfinite(score).all()


def test_elements_are_shared_between_molecules():
    """Atom types as elements: same energy however atoms of one element are numbered, and other molecules work."""
    torch.manual_seed(0)
    bonds = [(0, 1), (1, 2), (2, 3)]
    model = SchNet(4, 16, 2, bonds=bonds, atom_types=[6, 6, 6, 8]).double()
    x = chain_positions(2)[:, :4]
    renumbered = model.for_molecule([8, 6, 6, 6], bonds)
    torch.testing.assert_close(renumbered.energy(x.flip(1)), model.energy(x), rtol=1e-12, atol=1e-12)
    longer = model.for_molecule([6, 6, 6, 6, 8], [(0, 1), (1, 2), (2, 3), (3, 4)], torsions=[(1, 2, 3, 4)])
    assert torch.isfinite(longer.energy(chain_positions(2))).all()
    assert next(longer.parameters()) is next(model.parameters())
    with pytest.raises(InputError, match="^atom_types: .*unknown types"):
        model.for_molecule([6, 6, 6, 7], bonds)
    with pytest.raises(InputError, match="^torsions: "):
        model.for_molecule([6, 6, 6, 6], bonds)


def test_large_molecules_use_a_list_within_the_cutoff():
    """Above the all-pairs limit edges come from the neighbor list; one molecule, two ways, one energy."""
    torch.manual_seed(0)
    n = 80
    x = 0.25 * torch.arange(n, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, 0.3, 0.1]) % 1.7
    model = SchNet(n, 8, 2, cutoff=0.6, atom_types=[6] * n).double()
    by_list = model.energy(x)
    model._pairs = lambda positions: diffmd_fast.ops.neighbor_list(positions.detach(), None)
    torch.testing.assert_close(model.energy(x), by_list, rtol=1e-11, atol=1e-10)


BAD = [
    ("n_atoms", dict(n_atoms=0)),
    ("n_features", dict(n_features=0)),
    ("n_blocks", dict(n_blocks=2.5)),
    ("cutoff", dict(cutoff=-1.0)),
    ("bonds", dict(bonds=[(0, 9)])),
    ("bonds", dict(bonds=[(1, 1)])),
    ("torsions", dict(torsions=[(0, 1, 2)])),
    ("atom_types", dict(atom_types=[0, 1])),
    ("noise_levels", dict(noise_levels=(0.5, 0.002))),
    ("noise_levels", dict(noise_levels=(0.0, 0.1))),
    ("springs", dict(springs={"pairs": [(0, 1)], "mean": [], "variance": []})),
    ("bends", dict(bends={"triples": [(0, 1)], "mean": [0.0], "variance": [0.1], "slope": [1.0]})),
    ("bends", dict(bends={"triples": [(0, 1, 2)], "mean": [0.0], "variance": [0.0], "slope": [1.0]})),
    ("bends", dict(bends={"triples": [(0, 1, 2)], "mean": [0.0], "variance": [0.1]})),
    ("temperature", dict(temperature=0.0)),
]


@pytest.mark.parametrize(("argument", "change"), BAD)
def test_bad_construction(argument, change):
    with pytest.raises(InputError, match=f"^{argument}:"):
        SchNet(**{**dict(n_atoms=5, bonds=CHAIN), **change})


@pytest.mark.parametrize(("argument", "positions", "noise"), [
    ("positions", torch.zeros(2, 4, 3), None),
    ("positions", torch.zeros(5, 3), None),
    ("positions", torch.zeros(2, 5, 3, dtype=torch.int64), None),
    ("noise_level", torch.zeros(2, 5, 3), -0.1),
    ("noise_level", torch.zeros(2, 5, 3), torch.ones(3)),
])
def test_bad_positions(argument, positions, noise):
    with pytest.raises(InputError, match=f"^{argument}:"):
        make(torch.float32).energy_and_score(positions, noise)


@pytest.mark.parametrize("argument, value", [
    ("bonds", 3), ("bonds", None), ("torsions", 2**63), ("atom_types", 0.5), ("noise_levels", []), ("noise_levels", 1),
    ("noise_levels", (0.1, 0.2, 0.3)), ("springs", {"pairs": [[0, 1]], "mean": 1, "variance": [1]})])
def test_what_is_no_list_is_refused_by_name(argument, value):
    with pytest.raises(InputError, match=f"^{argument}: expected"):
        SchNet(4, **{argument: value})


@pytest.mark.parametrize("box", [None, [2.0, 2.0, 2.0]])
def test_positions_without_memory_of_their_own_values(box):
    """What torch negates only when it is read, and zeros that it stores nowhere."""
    model = SchNet(4, n_features=8, n_blocks=1, cutoff=0.5, box=box).requires_grad_(False)
    x = torch.randn(2, 4, 3)
    for lazy, plain in ((torch._neg_view(-x), x), (torch._efficientzerotensor((2, 4, 3)), torch.zeros(2, 4, 3))):
        for got, want in zip(model.energy_and_score(lazy), model.energy_and_score(plain)):
            assert torch.equal(got, want)
