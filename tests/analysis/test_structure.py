"""Shapes of frames: closed forms, invariance under rotation, and mdtraj as the other opinion."""

import mdtraj
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffmd_fast.analysis import (
    align,
    correlation_matrix,
    end_to_end_distance,
    radius_of_gyration,
    rmsd,
    rmsd_matrix,
)
from diffmd_fast.errors import InputError


def _frames(seed: int = 0, n_frames: int = 12, n_atoms: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_atoms, 3)) + 0.3 * rng.standard_normal((n_frames, n_atoms, 3))


def _moved(frames: np.ndarray, seed: int = 1) -> np.ndarray:
    """Every frame turned and shifted by itself."""
    turned = Rotation.random(len(frames), rng=np.random.default_rng(seed)).as_matrix()
    return frames @ turned + np.random.default_rng(seed).standard_normal((len(frames), 1, 3))


def test_radius_of_gyration_and_ends():
    line = np.zeros((1, 3, 3))
    line[0, :, 0] = [0.0, 1.0, 5.0]
    assert radius_of_gyration(line) == pytest.approx(np.std([0, 1, 5]))
    assert radius_of_gyration(line, [1, 1, 0]) == pytest.approx(0.5)
    assert radius_of_gyration(line, [2.0, 0, 3.0]) == pytest.approx(5 * np.sqrt(0.24))
    assert end_to_end_distance(line) == pytest.approx(5)
    assert end_to_end_distance(line, 1, -1) == pytest.approx(4)
    frames = _frames()
    assert radius_of_gyration(_moved(frames)) == pytest.approx(radius_of_gyration(frames))


def test_rotation_and_shift_change_nothing():
    frames = _frames()
    moved = _moved(frames)
    assert rmsd(moved, moved[3]) == pytest.approx(rmsd(frames, frames[3]), abs=1e-7)
    assert rmsd_matrix(moved) == pytest.approx(rmsd_matrix(frames), abs=1e-7)
    assert correlation_matrix(moved) == pytest.approx(correlation_matrix(frames), abs=1e-12)
    assert rmsd(_moved(frames[:1]), frames[0]) == pytest.approx(0, abs=1e-7)


def test_matrices_agree_with_alignment_one_by_one():
    frames = _moved(_frames())
    distance, correlation = rmsd_matrix(frames), correlation_matrix(frames)
    for j, reference in enumerate(frames):
        aligned = align(frames, reference)
        assert np.sqrt(((aligned - reference) ** 2).sum(-1).mean(-1)) == pytest.approx(distance[:, j], abs=1e-7)
        pearson = [
            np.corrcoef(x.ravel(), (reference - reference.mean(0)).ravel())[0, 1]
            for x in aligned - aligned.mean(1, keepdims=True)
        ]
        assert pearson == pytest.approx(correlation[:, j], abs=1e-12)
    assert (np.diag(distance) == 0).all() and (np.diag(correlation) == 1).all()
    assert (distance == distance.T).all()


def test_alignment_is_the_best_of_all_and_never_mirrors():
    frames = _frames(n_frames=2)
    best = rmsd(frames[:1], frames[1])[0]
    target = frames[1] - frames[1].mean(0)
    for rotation in Rotation.random(500, rng=np.random.default_rng(3)).as_matrix():
        other = (frames[0] - frames[0].mean(0)) @ rotation
        assert np.sqrt(((other - target) ** 2).sum(-1).mean()) >= best
    mirrored = frames * [1, 1, -1]
    assert rmsd(mirrored[:1], frames[0])[0] > 0.1
    # Distances within a frame do not change, and its handedness is kept.
    aligned = align(mirrored[:1], frames[0])[0]
    handed = [np.linalg.det(x[1:4] - x[0]) for x in (aligned, mirrored[0])]
    assert handed[0] == pytest.approx(handed[1])


def test_agrees_with_mdtraj():
    frames = _moved(_frames(5, 20, 9)).astype(np.float32)
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(9):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    trajectory = mdtraj.Trajectory(frames, topology)
    matrix = rmsd_matrix(frames)
    for k in range(20):
        assert matrix[k] == pytest.approx(mdtraj.rmsd(trajectory, trajectory, k), abs=2e-3)
    assert radius_of_gyration(frames) == pytest.approx(mdtraj.compute_rg(trajectory), rel=1e-5)


def test_flat_and_straight_molecules():
    flat = _frames() * [1, 1, 0]
    assert rmsd(_moved(flat), flat[0]) == pytest.approx(rmsd(flat, flat[0]), abs=1e-7)
    two = _frames(n_atoms=2)
    lengths = np.linalg.norm(two[:, 0] - two[:, 1], axis=-1)
    assert rmsd(two, two[0]) == pytest.approx(np.abs(lengths - lengths[0]) / 2, abs=1e-7)
    assert rmsd(_frames(n_atoms=1), _frames(n_atoms=1)[0]) == pytest.approx(0)


def test_blocks_of_pairs_change_nothing(monkeypatch):
    whole = rmsd_matrix(_frames())
    monkeypatch.setattr("diffmd_fast.analysis.structure.PAIRS_AT_ONCE", 5)
    assert rmsd_matrix(_frames()) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: radius_of_gyration(np.zeros((3, 3))), "positions: expected an array [frames, atoms, 3]"),
        (lambda: radius_of_gyration(_frames(), np.ones(3)), "masses: expected shape [7]"),
        (lambda: radius_of_gyration(_frames(), -np.ones(7)), "masses: expected finite"),
        (lambda: end_to_end_distance(_frames(), 0, 7), "last: expected an integer"),
        (lambda: rmsd(_frames(), np.zeros((6, 3))), "reference: expected shape [7, 3]"),
        (lambda: rmsd(_frames(), np.full((7, 3), np.nan)), "reference: expected finite"),
        (lambda: correlation_matrix(np.zeros((2, 3, 3))), "positions: expected frames whose atoms"),
    ],
)
def test_bad_input(call, start):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(start)
