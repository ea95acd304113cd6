"""The model's own run has the populations of its energy, and matching makes them those of the snapshots."""

from itertools import islice

import pytest
import torch

from diffmd_fast import NonFiniteError
from diffmd_fast.models import SchNet, TraPPEAlkane
from diffmd_fast.models.turns import turned_side
from diffmd_fast.ops import torsions
from diffmd_fast.training import ensemble
from diffmd_fast.training.ensemble import match_ensemble, own_frames
from diffmd_fast.training.preparation import prepare_model
from tests.training.test_calibration import model_of
from tests.training.test_contrast import BUTANE, carbon

EXACT = TraPPEAlkane.butane()
TRANS = 2 * torch.pi / 3


@pytest.fixture(scope="module")
def snapshots():
    return EXACT.sample(20_000, seed=3).float()


def springs_and_series(snapshots, added=0.0):
    """A model of butane without a network: springs, bend and series, the series with ``added`` to its second cosine."""
    model = prepare_model(snapshots, BUTANE, 300.0, n_features=4, n_blocks=1, cutoff=1.0, noise_levels=(0.001, 0.5),
                          torsion_fade=0.06, n_harmonics=4)
    with torch.no_grad():
        model.readout_out.zero_()
    series = model.torsion_series.clone()
    series[0, 1, 1] += added
    model.set_series(series, model.torsion_slopes)
    return model


def angle(frames):
    return torch.atan2(*torsions(frames, torch.tensor([[0, 1, 2, 3]])).unbind(-1))[..., 0]


def trans_share(model, frame):
    """Of the model's density by quadrature: energies of one frame turned in a circle; its torsion is independent of the
    rest but where angles are nearly straight."""
    turn = torch.arange(3600) * (2 * torch.pi / 3600)
    x = frame.repeat(3600, 1, 1)
    x[:, [3]] = turned_side(x, 1, 2, [3], turn.cos(), turn.sin())
    with torch.no_grad():
        energy = model.energy(x).double()
    weight = torch.exp(energy.min() - energy)
    return (weight[angle(x).abs() > TRANS].sum() / weight.sum()).item()


def test_own_frames_cross_barriers_and_have_the_populations_of_the_energy(snapshots):
    """All start trans, where a barrier of five kT0 would keep them.  4.5 standard errors from the replicas' scatter:
    false alarm 7e-6."""
    model = springs_and_series(snapshots, added=0.3)
    trans = snapshots[angle(snapshots).abs() > TRANS][:256]
    frames = torch.stack(list(islice(own_frames(model, trans, seed=1), 120)))[20:]
    share = (angle(frames.flatten(0, 1)).abs() > TRANS).view(100, 256).double().mean(0)
    exact = trans_share(model, snapshots[0])
    error = share.std().item() / 16
    assert error < 0.02
    assert share.mean().item() == pytest.approx(exact, abs=4.5 * error)
    # bonds and angles are those of the snapshots, noise added
    noised = snapshots + model.noise_level * torch.randn(snapshots.shape, generator=torch.Generator().manual_seed(1))
    for i, j in ((0, 1), (0, 2)):
        ours, theirs = ((x[..., i, :] - x[..., j, :]).norm(dim=-1) for x in (frames, noised))
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_matching_gives_the_populations_of_the_snapshots(snapshots):
    """A torsion series that is wrong where frames are: 0.6 kT0 between trans and gauche, 0.114 in the share of trans.
    Of that 0.010 is left by the gains and 0.008 by the ridge; by 16 other seeds it ends at 0.018 with a standard error
    of 0.008, of which the limit leaves 4.6 (false alarm 4e-6)."""
    model = springs_and_series(snapshots, added=-0.4)
    wanted = (angle(snapshots).abs() > TRANS).double().mean().item()
    before = trans_share(model, snapshots[0])
    match_ensemble(model, snapshots, n_changes=8)
    after = trans_share(model, snapshots[0])
    assert before - wanted == pytest.approx(0.114, abs=0.005)
    assert abs(after - wanted) < 0.055


def test_repeats_with_the_seed(snapshots):
    changed = []
    for seed in (5, 5, 6):
        model = springs_and_series(snapshots)
        match_ensemble(model, snapshots[:100], n_changes=1, seed=seed)
        changed.append(model.torsion_series.clone())
    assert torch.equal(changed[0], changed[1]) and not torch.equal(changed[0], changed[2])


def test_does_nothing_without_series_or_bonds_that_turn(snapshots, monkeypatch):
    monkeypatch.setattr(ensemble, "own_frames", None)
    triangle = model_of(carbon([(0, 1), (1, 2), (2, 0), (0, 3)]))
    bare = SchNet(4, 4, 1, bonds=BUTANE.bonds)
    bare.molecule = BUTANE
    for model, n_changes in ((triangle, 1), (bare, 1), (springs_and_series(snapshots), 0)):
        before = None if model.torsion_series is None else model.torsion_series.clone()
        match_ensemble(model, snapshots, n_changes)
        assert before is None or torch.equal(model.torsion_series, before)


def test_frames_stay_inside_the_support(snapshots):
    """Trans only, by the distance of the ends; without a support it leaves at the first turns."""
    model = springs_and_series(snapshots)
    ends = (snapshots[:, 0] - snapshots[:, 3]).norm(dim=-1)
    trans = snapshots[ends > 0.37][:64]
    for support, stay in ({"pairs": [[0, 3]], "lowest": [0.38], "highest": [0.39]}, True), (None, False):
        model.support = support
        last = list(islice(own_frames(model, trans, seed=2), 4))[-1]
        inside = (last[:, 0] - last[:, 3]).norm(dim=-1) > 0.36
        assert bool(inside.all()) is stay


def test_a_run_that_leaves_the_support_is_an_error(snapshots):
    model = springs_and_series(snapshots)
    model.support = {"pairs": [[0, 1]], "lowest": [0.3], "highest": [0.31]}  # of a bond of 0.154 nm
    with pytest.raises(NonFiniteError, match="^model: all 256 replicas of its own run"):
        match_ensemble(model, snapshots)
