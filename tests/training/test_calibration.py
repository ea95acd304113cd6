"""Calibration of barriers finds the series of a known energy again, and touches nothing that turns do not tell."""

import pytest
import torch

from diffmd_fast import NonFiniteError
from diffmd_fast.models import SchNet, TraPPEAlkane
from diffmd_fast.training.calibration import _groups, calibrate_series
from diffmd_fast.training.preparation import prepare_model
from tests.training.test_contrast import BRANCHED, BUTANE, RING, carbon

EXACT = TraPPEAlkane.butane()
COEFFICIENTS = [c / EXACT.kilojoules for c in EXACT.torsion_coefficients]  # kT0; 1.2, -0.2 and 2.6


def test_finds_the_series_that_a_wrong_network_leaves_to_it():
    """A network that adds a torsion energy of its own, 0.8 kT0 on each barrier, is made up for: series and network
    together are the force field's.  By 12 other seeds the standard errors of the coefficients are 0.012 at most, and
    noise and fade take 0.006; the limit leaves 4.5 standard errors (false alarm 6e-5 for all eight)."""
    x = EXACT.sample(100_000, seed=3).float()
    model = prepare_model(x, BUTANE, 300.0, n_features=4, n_blocks=1, cutoff=1.0, noise_levels=(0.001, 0.5),
                          torsion_fade=0.06, n_harmonics=4)
    added = torch.tensor([[[0.2, 0.1], [-0.1, 0.0], [0.1, 0.4], [0.0, 0.0]]])
    c1, c2, c3 = COEFFICIENTS
    wanted = torch.tensor([[[0.0, c1], [0.0, -c2], [0.0, c3], [0.0, 0.0]]])
    with torch.no_grad():
        model.readout_out.zero_()
    model.set_series(wanted + added, model.torsion_slopes)
    change = calibrate_series(model, x)
    assert change == pytest.approx(0.4, abs=0.06)
    torch.testing.assert_close(model.torsion_series, wanted, rtol=0, atol=0.06)


def model_of(molecule, **more):
    torch.manual_seed(0)
    model = SchNet(molecule.n_atoms, 4, 1, bonds=molecule.bonds, n_harmonics=2, **more)
    model.molecule = molecule
    return model


def test_bonds_that_share_a_type_of_torsion_go_together():
    pentane = carbon([(0, 1), (1, 2), (2, 3), (3, 4)])
    assert _groups(model_of(BUTANE)) == [([(1, 2, [3])], [0])]
    assert [kinds for _, kinds in _groups(model_of(pentane))] == [[0], [1]]
    shared = model_of(pentane, atom_types=[6] * 5)
    assert _groups(shared) == [([(1, 2, [3, 4]), (2, 3, [4])], [0])]
    # the plane of atom 2, (1, 3, 2, 4), turns with neither bond
    branched = model_of(BRANCHED)
    types = {key: kind for kind, key in enumerate(branched.torsion_table)}
    changed = sorted(kind for _, kinds in _groups(branched) for kind in kinds)
    assert changed == sorted(kind for key, kind in types.items() if key != (1, 3, 2, 4))
    ring = model_of(RING)
    assert [bonds for bonds, _ in _groups(ring)] == [[(3, 4, [5])]]


def test_leaves_what_no_turn_tells():
    """The torsions of a ring, and everything where nothing turns or there are no series."""
    x = 0.15 * torch.randn(50, 6, 3, generator=torch.Generator().manual_seed(0))
    ring = model_of(RING)
    turned = _groups(ring)[0][1]
    assert calibrate_series(ring, x) > 0
    still = [kind for kind in range(len(ring.torsion_table)) if kind not in turned]
    assert still and not ring.torsion_series[still].any() and ring.torsion_series[turned].all()
    angle = carbon([(0, 1), (1, 2)])
    assert calibrate_series(model_of(angle), x[:, :3]) == 0
    bare = SchNet(4, 4, 1, bonds=BUTANE.bonds)
    bare.molecule = BUTANE
    assert calibrate_series(bare, x[:, :4]) == 0


def test_few_pairs_move_little_and_repeat():
    x = EXACT.sample(500, seed=1).float()
    changes = []
    for n_pairs in (1, 1, 2000):
        model = model_of(BUTANE)
        calibrate_series(model, x, n_pairs, seed=5)
        changes.append(model.torsion_series.clone())
    assert torch.equal(changes[0], changes[1])
    assert changes[0].abs().max() < 0.3 < changes[2].abs().max()  # of up to 2.6 kT0 that are missing


def test_an_energy_that_is_not_finite_is_named():
    model = model_of(BUTANE)
    with torch.no_grad():
        model.readout_out.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="^model: the energy of a frame turned about the bond of atoms 1 and 2"):
        calibrate_series(model, EXACT.sample(10, seed=1).float())
