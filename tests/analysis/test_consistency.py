"""Three faces of one model: they agree where the score is exact at every noise level, and differ where it is not."""

import json

import numpy as np
import pytest
import torch

from diffmd_fast.analysis import (
    ReferenceHistogram,
    consistency,
    histogram_floor,
    jensen_shannon,
    periodic_histogram,
    read_reference,
    resampling_units,
)
from diffmd_fast.analysis.comparison import choose_dihedrals
from diffmd_fast.analysis.consistency import _spread_over_basins
from diffmd_fast.analysis.consistency_table import as_dict, table, write
from diffmd_fast.analysis.geometry import dihedral_angles
from diffmd_fast.errors import InputError
from diffmd_fast.io import Molecule, Snapshots
from diffmd_fast.models import Energy

MOLECULE = Molecule(("C1", "C2", "C3", "C4"), (6,) * 4, ("BUT",) * 4, (0,) * 4, ((0, 1), (1, 2), (2, 3)))
WIDTH = 0.03  # nm; wide enough for a run to pass between the two shapes within a second
STATES = torch.tensor([[[0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.15, 0.08, 0.06]],
                       [[0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.15, -0.02, -0.1]]])
STATES = STATES - STATES.mean(1, keepdim=True)
SHARE = 0.7


class TwoShapes(Energy):
    """-log of p_sigma = sum_k w_k N(x; shape_k, WIDTH^2 + sigma^2), centre of mass free: exact at every noise level.

    ``low_noise_share``: w_0 at noise levels below 0.01 nm, SHARE above it.  ``molecule``: None leaves reverse diffusion
    no bond to turn.
    """

    noise_level, noise_levels, spread = 0.002, (0.002, 0.5), None
    temperature, n_atoms = 300.0, 4

    def __init__(self, low_noise_share: float = SHARE, molecule: Molecule | None = MOLECULE):
        super().__init__()
        self.low_noise_share, self.molecule = low_noise_share, molecule

    def forward(self, positions, noise_level):
        x = positions - positions.mean(1, keepdim=True)
        share = torch.where(noise_level < 0.01, self.low_noise_share, SHARE)[:, None]
        weight = torch.log(torch.cat([share, 1 - share], 1))
        squares = (x[:, None] - STATES.to(x)).square().sum((2, 3))
        return -torch.logsumexp(weight - 0.5 * squares / (WIDTH**2 + noise_level[:, None] ** 2), 1)


def draw(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    state = (rng.random(n) >= SHARE).astype(int)
    return (STATES.numpy()[state] + WIDTH * rng.standard_normal((n, 4, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def snapshots() -> Snapshots:
    return Snapshots(positions=draw(4000, 1), molecule=MOLECULE, temperature=300.0)


@pytest.fixture(scope="module")
def reference() -> ReferenceHistogram:
    counts = periodic_histogram(dihedral_angles(draw(400_000, 2), [(0, 1, 2, 3)]), 36)
    return ReferenceHistogram(counts / counts.sum(), np.sqrt(counts) / counts.sum())


SMALL = dict(n_replicas=64, n_steps=3000, save_every=30, time_step=0.04, n_generated=4000, noise_steps=200, bins=36,
             progress=False)


@pytest.fixture(scope="module")
def exact(snapshots, reference):
    return consistency(TwoShapes(), snapshots, reference=reference, **SMALL)


def test_faces_of_an_exact_model_agree(exact):
    """Six comparisons, each within 6 standard deviations of its floor.  A divergence of 36 bins is distributed about
    as chi-square of 35 degrees of freedom: beyond 6 of its standard deviations lies 4e-6.  Means of bonds have standard
    errors of 0.5% and the time step widens variances by 5%."""
    assert exact.frames == {"generated": 4000, "simulated": 64 * 91, "snapshots": 4000}
    assert exact.lost == 0 and len(exact.agreements) == 6  # of one dihedral: 3 pairs, 3 against the reference
    for one in exact.agreements:
        assert one.excess < 6 * one.floor.sd, (one.first, one.second, one.divergence, one.floor)
    for faces in exact.bonds.values():
        means, sds = np.array(list(faces.values())).T
        assert np.ptp(means) < 0.04 * means.mean() and np.ptp(sds) < 0.1 * sds.mean()


def test_a_wrong_score_at_small_noise_shows_in_the_simulation_alone(snapshots, reference):
    """The run relaxes to shares that the generation never had, as no move of its takes it from shape to shape."""
    result = consistency(TwoShapes(low_noise_share=0.2, molecule=None), snapshots, reference=reference, **SMALL)
    for face in ("generated", "snapshots", "reference"):
        wrong = result.find("simulated", face)
        assert wrong.level == "bad" and wrong.divergence > wrong.floor.quantile_95 + 0.02, wrong
    for face in ("snapshots", "reference"):
        right = result.find("generated", face)
        assert right.excess < 6 * right.floor.sd, right
    assert result.level == "bad" and "DIFFERENT" in table(result)


def test_turned_bonds_show_it_in_the_generation_too(snapshots, reference):
    """Both faces then have the shares of small noise, and both differ from the data."""
    result = consistency(TwoShapes(low_noise_share=0.2), snapshots, reference=reference, **SMALL)
    for face in ("generated", "simulated"):
        for truth in ("snapshots", "reference"):
            assert result.find(face, truth).level == "bad", (face, truth)
    both = result.find("generated", "simulated")
    assert both.excess < 6 * both.floor.sd, both


def test_what_is_written(exact, tmp_path):
    write(exact, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "consistency.json", "consistency.png", "consistency.txt"]
    assert (tmp_path / "out" / "consistency.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "out" / "consistency.json").read_text())
    assert stored == json.loads(json.dumps(as_dict(exact)))
    assert {d["first"] for d in stored["divergences"]} == {"generated", "simulated", "snapshots"}
    shares = [faces["simulated"]["share"] for basins in stored["populations"].values() for faces in basins.values()]
    assert abs(sum(shares) - 1) < 1e-9
    text = (tmp_path / "out" / "consistency.txt").read_text()
    assert "simulated / reference" in text and "64 replicas" in text


def test_a_run_starts_in_every_basin():
    """3 of 10,000 frames are gauche-: the even draw of 20 would miss them, and the proportions stay."""
    angles = np.radians(np.r_[np.full(6997, 170.0), np.full(3000, 60.0), np.full(3, -60.0)])[:, None]
    chosen = choose_dihedrals(MOLECULE)
    picked = np.round(np.degrees(angles[_spread_over_basins(angles, chosen, 20, 0), 0]))
    assert (picked == -60).sum() == 1 and abs((picked == 60).sum() - 6) <= 1 and len(picked) == 20
    assert len(set(_spread_over_basins(angles, chosen, 2, 0))) == 2


@pytest.mark.parametrize(("argument", "change"), [
    ("n_replicas", dict(n_replicas=0)), ("save_every", dict(save_every=3000)), ("bins", dict(bins=1)),
    ("time_step", dict(time_step=-1.0)), ("n_generated", dict(n_generated=0)),
    ("dihedrals", dict(dihedrals=["chi9"])),
    ("reference", dict(reference=ReferenceHistogram(np.full((4, 4), 1 / 16), np.zeros((4, 4))))),
])
def test_bad_input_is_refused(snapshots, argument, change):
    with pytest.raises(InputError, match=f"^{argument}: expected"):
        consistency(TwoShapes(), snapshots, **{**SMALL, **change})


def test_other_molecules_are_refused(snapshots):
    with pytest.raises(InputError, match="^snapshots: expected the model's 4 atoms, got 3 atoms"):
        consistency(TwoShapes(), Snapshots(snapshots.positions[:, :3], MOLECULE.select([0, 1, 2])), **SMALL)


@pytest.mark.parametrize(("arrays", "expected"), [
    (dict(p=np.ones(4)), "an array named probability"),
    (dict(probability=np.ones(4)), "sum to 1"),
    (dict(probability=np.array([0.5, 0.7, -0.2])), "not negative"),
    (dict(probability=np.full(4, 0.25), edges_deg=np.linspace(0, 360, 5)), "edges_deg from -180"),
    (dict(probability=np.full((2, 3), 1 / 6)), r"\[bins, bins\]"),
])
def test_bad_references_are_refused(tmp_path, arrays, expected):
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(InputError, match=f"^reference: expected .*{expected}"):
        read_reference(tmp_path / "r.npz")


def test_a_reference_is_read(tmp_path):
    p = np.array([[0.1, 0.2], [0.3, 0.4]])
    np.savez(tmp_path / "r.npz", probability=p, probability_err=0.1 * p, edges_deg=np.array([-180, 0, 180.0]))
    read = read_reference(tmp_path / "r.npz")
    np.testing.assert_array_equal(read.probability, p)
    np.testing.assert_allclose(read.error, 0.1 * p)
    with pytest.raises(InputError, match="^reference: expected an existing"):
        read_reference(tmp_path / "none.npz")


@pytest.mark.parametrize("correlated", [False, True])
def test_the_floor_against_a_histogram_is_the_mean_over_fresh_samples(correlated):
    """Runs of a two-state chain (or independent angles) against histograms of 4,000 frames with Poisson errors: within
    15% of the mean over 300 fresh pairs (standard errors of both: about 4%)."""
    rng = np.random.default_rng(5)

    def sample(n_replicas, n_frames):
        state = rng.integers(0, 2, (n_replicas, 1 if correlated else n_frames))
        return (2 * state - 1) + 0.4 * rng.standard_normal((n_replicas, n_frames))

    def histogram():
        counts = periodic_histogram(sample(4000, 1).ravel(), 36)
        return counts / counts.sum(), np.sqrt(counts) / counts.sum()

    def run():
        return sample(40, 25)

    fresh = np.mean([jensen_shannon(periodic_histogram(run().ravel(), 36), histogram()[0]) for _ in range(300)])
    floors = [histogram_floor(resampling_units(list(run()), 100.0 if correlated else 0.5), *histogram(), n_pairs=60,
                              seed=k).mean for k in range(16)]
    assert abs(np.mean(floors) / fresh - 1) < 0.15, (np.mean(floors), fresh)
