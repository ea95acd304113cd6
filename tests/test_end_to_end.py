"""The promise of the README, on what the project ships: real snapshots, the trained checkpoint, the dynamics."""

from pathlib import Path

import numpy as np
import pytest
import torch

import diffmd_fast
from diffmd_fast.analysis import compare
from diffmd_fast.io import Snapshots, read_snapshots

SHIPPED = Path(__file__).resolve().parents[1] / "examples" / "alanine_dipeptide"
N_REPLICAS, N_STEPS, SAVE_EVERY = 64, 31_250, 50


@pytest.fixture(scope="module")
def model():
    return diffmd_fast.load_model(SHIPPED / "model.safetensors")


@pytest.fixture(scope="module")
def snapshots() -> Snapshots:
    return read_snapshots(SHIPPED / "snapshots.npz")


def starts(snapshots, n_replicas):
    order = torch.randperm(len(snapshots.positions), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(snapshots.positions)[order[:n_replicas]]


def test_what_is_shipped_is_small_and_says_where_it_came_from(model, snapshots):
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 4e6
    assert model.n_atoms == 10 and model.temperature == 300.0 and len(model.molecule.find_dihedrals()) >= 2
    assert model.training_record["n_frames"] == 40_000 and model.molecule == snapshots.molecule
    assert (SHIPPED.parents[1] / "scripts" / "make_examples.py").is_file()


def test_two_million_replica_steps_of_alanine_dipeptide(model, snapshots):
    """No replica lost, divergence of (phi, psi) on 64 x 64 bins at most the floor + 0.02, bond means within 1%."""
    spring = diffmd_fast.sampling.choose_spring(model, starts(snapshots, N_REPLICAS), 0.002)
    sampler = diffmd_fast.Sampler(model, spring, temperature=300, seed=1)
    run = sampler.run(starts(snapshots, N_REPLICAS), N_STEPS, SAVE_EVERY)
    assert run.n_steps * run.n_replicas >= 2_000_000 and run.lost == []
    frames, replicas = run.positions.shape[:2]
    trajectory = Snapshots(positions=run.positions.swapaxes(0, 1).reshape(-1, 10, 3).astype(np.float32),
                           molecule=model.molecule, replica=np.repeat(np.arange(replicas, dtype=np.int32), frames),
                           time=np.tile(run.times, replicas))
    result = compare(trajectory, snapshots, bins=64)
    deviation = np.abs(result.bonds.relative_deviation)
    print(f"divergence {result.js_divergence:.4f}, floor {result.floor.mean:.4f} +- {result.floor.sd:.4f}, "
          f"largest deviation of a bond mean {deviation.max():.2%}")
    assert result.js_divergence <= result.floor.mean + 0.02
    assert deviation.max() <= 0.01


def test_handedness(model, snapshots):
    """Mirror images of real frames lie far above the real ones in energy: the model knows left from right."""
    x = starts(snapshots, 200)
    real, mirrored = model.energy(x), model.energy(x * torch.tensor([1.0, 1.0, -1.0]))
    assert mirrored.median() > real.mean() + 5 * real.std()
    assert mirrored.median() > real.max()


def test_frames_from_noise_look_like_snapshots(model, snapshots):
    """Reverse diffusion from the same network: every frame inside the support, bond means within 1%.

    Each is known to 0.2% and off by 0.1% (noise), which leaves 4.5 standard errors: false alarm 6e-5 for all nine."""
    from diffmd_fast.sampling import reverse_diffusion

    x = reverse_diffusion(model, 256, seed=3, progress=False)
    assert torch.isfinite(x).all()
    for i, j in model.molecule.bonds:
        made = (x[:, i] - x[:, j]).norm(dim=-1).mean().item()
        real = np.linalg.norm(snapshots.positions[:, i] - snapshots.positions[:, j], axis=-1).mean()
        assert abs(made / real - 1) < 0.01, (i, j)


def test_one_run_however_it_is_cut(model, snapshots, tmp_path):
    """Split by a stop and a restart, in one or several batches, on one or two threads: the same bits."""
    x = starts(snapshots, 12)
    spring = diffmd_fast.Spring.from_time_step(5e-4, 0.002)

    def run(n_steps, name, **options):
        size = options.pop("batch_size", None)
        sampler = diffmd_fast.Sampler(model, spring, temperature=300, seed=7, batch_size=size)
        sampler.run(x if not options.get("resume") else None, n_steps, 50, out=tmp_path / name, **options)
        return read_snapshots(tmp_path / name).positions

    diffmd_fast.set_num_threads(1)
    whole = run(400, "whole.npz")
    try:
        diffmd_fast.set_num_threads(2)
        assert np.array_equal(run(400, "threads.npz"), whole)
        assert np.array_equal(run(400, "batches.npz", batch_size=5), whole)
        run(150, "cut.npz")
        assert np.array_equal(run(400, "cut.npz", resume=True, batch_size=7), whole)
    finally:
        diffmd_fast.set_num_threads(None)
