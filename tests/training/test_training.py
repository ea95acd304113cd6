"""Training: the loss has the right minimum, learns a known density, resumes to the bit, refuses bad input."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import diffmd_fast
from diffmd_fast import InputError, use_backend
from diffmd_fast.io import Molecule, Snapshots, read_snapshots
from diffmd_fast.models import Energy, TraPPEAlkane
from diffmd_fast.processes import Processes
from diffmd_fast.training import Settings, denoising_loss, draw_noise_levels, train, trainer
from diffmd_fast.training.denoising import draw_batch, draw_noise
from diffmd_fast.training.preparation import check_bonds, prepare_model

SMALL = dict(n_steps=30, batch_size=32, n_features=16, n_blocks=1, validate_every=10, warm_up=5)


@pytest.fixture(scope="module")
def butane() -> Snapshots:
    positions = TraPPEAlkane.butane().sample(2000, seed=1).numpy().astype(np.float32)
    molecule = Molecule(("C1", "C2", "C3", "C4"), (6,) * 4, ("BUT",) * 4, (0,) * 4, ((0, 1), (1, 2), (2, 3)))
    return Snapshots(positions=positions, molecule=molecule, temperature=300.0)


class Gaussian(Energy):
    """-log density of n centred atoms with variance v + sigma^2 per coordinate."""

    def __init__(self, n_atoms: int, variance: float):
        super().__init__()
        self.n_atoms, self.variance = n_atoms, torch.nn.Parameter(torch.tensor(variance))

    def forward(self, positions, noise_level):
        x = positions - positions.mean(1, keepdim=True)
        return 0.5 * x.square().sum((1, 2)) / (self.variance + noise_level**2)


def test_loss_of_the_exact_score_is_its_theoretical_value():
    """For Gaussian data the loss of the exact score is v/(v + sigma^2), per degree of freedom; any other variance
    loses more.  64,000 numbers: standard error 0.6%, limit 4 of them (false alarm 6e-5)."""
    generator = torch.Generator().manual_seed(0)
    v, sigma, n = 0.01, 0.1, 4000
    x = math.sqrt(v) * torch.randn(n, 6, 3, generator=generator)
    noise = draw_noise(x.shape, generator)
    levels = torch.full((n,), sigma)
    right = denoising_loss(Gaussian(6, v), x, noise, levels).mean().item()
    assert abs(right / (v / (v + sigma**2)) - 1) < 4 * math.sqrt(2 / (n * 15))
    for wrong in (0.5 * v, 2 * v):
        assert denoising_loss(Gaussian(6, wrong), x, noise, levels).mean().item() > 1.05 * right


def test_loss_trains_through_the_score():
    """The gradient of the loss with respect to a parameter, against finite differences."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(50, 4, 3, generator=generator, dtype=torch.float64)
    noise, levels = draw_noise(x.shape, generator).double(), torch.full((50,), 0.05, dtype=torch.float64)
    model = Gaussian(4, 0.02).double()
    denoising_loss(model, x, noise, levels).mean().backward()
    values = []
    for shift in (-1e-6, 1e-6):
        other = Gaussian(4, 0.02).double()
        other.variance.data.copy_(model.variance.data + shift)
        values.append(denoising_loss(other, x, noise, levels).mean().item())
    assert abs(model.variance.grad.item() - (values[1] - values[0]) / 2e-6) < 1e-6 * abs(model.variance.grad.item())


def test_noise_levels_cover_the_range_and_favour_the_low_end():
    levels = draw_noise_levels(4096, (0.002, 0.5), torch.Generator().manual_seed(0))
    assert levels.min() >= 0.002 and levels.max() <= 0.5 * (1 + 1e-6)
    below = (levels < math.sqrt(0.002 * 0.5)).float().mean().item()
    assert abs(below - 0.75) < 0.01  # a linearly falling density has three quarters of itself in the lower half


def test_the_last_of_a_batch_have_the_smallest_noise():
    frames = torch.arange(50.0)[:, None, None].expand(50, 4, 3)
    batch = draw_batch(frames, 33, 16, (0.002, 0.5), torch.Generator().manual_seed(0))
    assert batch.n_drawn == 17 and len(batch.positions) == len(batch.noise) == len(batch.noise_level) == 33
    assert bool((batch.noise_level[17:] == batch.noise_level.new_tensor(0.002)).all())
    assert batch.noise_level[:17].max() > 0.1  # the others cover the range
    assert draw_batch(frames, 33, 0, (0.002, 0.5), torch.Generator().manual_seed(0)).n_drawn == 33


def test_shares_of_processes_add_up_to_the_whole_loss(butane):
    """With the borders of shares before, at and behind the first frame that a force field tells the score of."""
    settings = Settings(**SMALL, force_field=30.0)
    frames = torch.as_tensor(butane.positions)
    state = trainer._start(frames, butane.molecule, 300.0, settings, torch.device("cpu"))
    state.force_field.fit(frames, 0.002)
    generator = torch.Generator().manual_seed(0)
    batch = draw_batch(frames, 32, 16, settings.noise_levels, generator)
    moved = state.moves(batch.positions[:16], generator)
    whole = trainer._loss(state, batch, moved, settings, Processes()).item()
    for size in (2, 3, 5):
        parts = [trainer._loss(state, batch, moved, settings, Processes(rank, size)).item() for rank in range(size)]
        assert abs(sum(parts) - whole) < 1e-4 * abs(whole)


def test_a_force_field_is_followed(butane, tmp_path):
    settings = Settings(**{**SMALL, "n_steps": 400, "validate_every": 100, "n_harmonics": 0}, force_field=30.0)
    model = train(butane, tmp_path / "m.safetensors", settings=settings, progress=False)
    records = model.training_record["history"]
    assert records[-1]["held_out_force_field"] < 0.7 * records[0]["held_out_force_field"]
    assert records[-1]["held_out_loss"] < records[0]["held_out_loss"]


def test_fast_and_reference_steps_have_the_same_gradient(butane):
    x = torch.as_tensor(butane.positions[:16], dtype=torch.float64)
    x = x - x.mean(1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    noise, levels = draw_noise(x.shape, generator).double(), draw_noise_levels(16, (0.002, 0.5), generator).double()
    gradients = {}
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        model = prepare_model(x, butane.molecule, 300.0, n_features=16, n_blocks=2, cutoff=1.0,
                              noise_levels=(0.002, 0.5)).double()
        with use_backend(backend):
            denoising_loss(model, x, noise, levels).mean().backward()
        gradients[backend] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients["native"].keys() == gradients["reference"].keys()
    for name, gradient in gradients["reference"].items():
        torch.testing.assert_close(gradients["native"][name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def read_settings(path) -> dict:
    return diffmd_fast.load_model(path).training_record["settings"]


def test_contrast_needs_torsions_and_can_be_left_out(butane, tmp_path):
    """Mirror images of a molecule without torsions are the same to the energy: nothing to compare."""
    bare = replace(butane, molecule=replace(butane.molecule, bonds=()))
    for snapshots, contrast in ((bare, 1.0), (butane, 0.0)):
        model = train(snapshots, tmp_path / "m.safetensors", settings=Settings(**SMALL, contrast=contrast),
                      progress=False, figure=False)
        assert all("held_out_contrast" not in record for record in model.training_record["history"])
        assert "calibrated" not in model.training_record


def test_training_learns_and_writes_everything(butane, tmp_path):
    out = tmp_path / "model.safetensors"
    records = []
    # With its series, what is fitted before leaves nothing to learn of butane.
    settings = Settings(**{**SMALL, "n_steps": 400, "validate_every": 100, "n_harmonics": 0})
    model = train(butane, out, settings=settings, progress=False, on_validation=records.append)
    assert [r["step"] for r in records] == [100, 200, 300, 400]
    assert records[-1]["held_out_loss"] < 0.98 * records[0]["held_out_loss"]
    assert len(records[-1]["held_out_loss_per_noise_level"]) == 8
    # Without having learned anything it is log 2.
    assert "held_out_force_field" not in records[-1]
    assert records[-1]["held_out_contrast"] < 0.9 * math.log(2) and read_settings(out)["contrast"] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.loss.png", "model.safetensors"]
    assert (tmp_path / "model.loss.png").read_bytes().startswith(b"\x89PNG")
    read = diffmd_fast.load_model(out)
    assert read.temperature == 300.0 and read.molecule == butane.molecule
    assert read.training_record["settings"]["batch_size"] == 32
    assert read.support["pairs"] == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    x = torch.as_tensor(butane.positions[:4])
    assert torch.equal(read.energy(x), model.energy(x))


def test_training_starts_from_a_model(butane, tmp_path):
    """Without a step's worth of learning rate it is the model again, with its series; what does not fit is refused."""
    first, out = tmp_path / "first.safetensors", tmp_path / "m.safetensors"
    train(butane, first, settings=Settings(**SMALL), progress=False, figure=False)
    still = Settings(**SMALL, force_field=30.0, learning_rate=1e-12)
    again = train(butane, out, settings=replace(still, contrast=0.0), start=first, progress=False, figure=False)
    torch.testing.assert_close(numbers(out), numbers(first), rtol=0, atol=1e-6)
    assert trainer._steps(again.training_record) == 10 + trainer._steps(diffmd_fast.load_model(first).training_record)
    assert again.training_record["start"] == diffmd_fast.load_model(first).training_record
    with pytest.raises(InputError, match="^start: expected another file than out"):
        train(butane, first, settings=still, start=first, progress=False)
    with pytest.raises(InputError, match="^n_blocks: expected 1, which the model in"):
        train(butane, out, settings=replace(still, n_blocks=2), start=first, progress=False)
    with pytest.raises(InputError, match="^start: expected a model of 310 K, got 300 K"):
        train(butane, out, 310.0, settings=still, start=first, progress=False)
    bare = train(butane, tmp_path / "bare.safetensors", settings=Settings(**SMALL, n_harmonics=0), progress=False)
    more = train(butane, out, settings=still, start=tmp_path / "bare.safetensors", progress=False)
    assert more.n_harmonics == bare.n_harmonics == 0 and more.training_record["settings"]["n_harmonics"] == 0
    with pytest.raises(InputError, match="^start: expected a model file"):
        train(butane, out, settings=still, start=tmp_path / "none.safetensors", progress=False)


def numbers(path):
    """Parameters and series of a model file."""
    return torch.cat([value.flatten() for value in diffmd_fast.load_model(path).state_dict().values()])


@pytest.mark.parametrize("force_field", [0.0, 30.0])
def test_resume_after_a_stop_equals_an_uninterrupted_run(butane, tmp_path, monkeypatch, force_field):
    settings = Settings(**SMALL, force_field=force_field)
    train(butane, tmp_path / "whole.safetensors", settings=settings, progress=False, figure=False)

    def stop(record):
        if record["step"] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(butane, tmp_path / "cut.safetensors", settings=settings, progress=False, on_validation=stop)
    assert (tmp_path / "cut.safetensors.training").exists()
    monkeypatch.setattr(trainer.ForceField, "fit", None)  # a force field is fitted once
    train(butane, tmp_path / "cut.safetensors", settings=settings, progress=False, resume=True, figure=False)
    assert torch.equal(numbers(tmp_path / "cut.safetensors"), numbers(tmp_path / "whole.safetensors"))


def test_resume_after_kill(butane, tmp_path):
    """kill -9 in mid-training: the state of the last validation is there and whole."""
    np.savez(tmp_path / "s.npz", positions=butane.positions, bonds=np.array([(0, 1), (1, 2), (2, 3)]),
             bead_types=np.array(["CH3", "CH2", "CH2", "CH3"]))
    program = ("from diffmd_fast.io import read_snapshots; from diffmd_fast.training import Settings, train; "
               "train(read_snapshots('s.npz'), 'm.safetensors', 300.0, Settings(n_steps=1000000, batch_size=16, "
               "n_features=8, n_blocks=1, validate_every=20), progress=False)")
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "m.safetensors.training").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    diffmd_fast.load_model(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors.training", framework="pt") as file:
        step = json.loads(file.metadata()["state"])["step"]
    model = train(read_snapshots(tmp_path / "s.npz"), tmp_path / "m.safetensors", 300.0,
                  Settings(n_steps=step + 1, batch_size=16, n_features=8, n_blocks=1), resume=True, progress=False,
                  figure=False)
    assert model.training_record["history"][0]["step"] == 20


@pytest.mark.parametrize("stage", ["calibrate_series", "match_ensemble"])
def test_ends_with_calibrated_series_also_when_that_was_cut_short(butane, tmp_path, monkeypatch, stage):
    """Cut while it calibrates, the model file is that of the training and resume calibrates it; after, it does not."""
    settings, out = Settings(**SMALL), tmp_path / "cut.safetensors"
    monkeypatch.setattr(trainer, "FRAMES_A_CHANGE", 640)  # so that these 960 frames have the ensemble matched, too
    whole = train(butane, tmp_path / "whole.safetensors", settings=settings, progress=False, figure=False)
    assert whole.training_record["calibrated"] > 0
    calibrate = getattr(trainer, stage)
    before = []

    def ctrl_c(model, *arguments):
        before.append(model.torsion_series.clone())
        calibrate(model, *arguments)
        assert not torch.equal(model.torsion_series, before[-1])
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(trainer, stage, ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(butane, out, settings=settings, progress=False, figure=False)
    assert before and "calibrated" not in diffmd_fast.load_model(out).training_record
    state = (tmp_path / "cut.safetensors.training").read_bytes()
    for _ in range(2):  # as if killed before the state was removed
        train(butane, out, settings=settings, progress=False, figure=False, resume=True)
        assert torch.equal(numbers(out), numbers(tmp_path / "whole.safetensors"))
        (tmp_path / "cut.safetensors.training").write_bytes(state)


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_resume_equals_an_uninterrupted_run(butane, tmp_path, monkeypatch, with_signal):
    """In the middle of an optimizer step, where parameters and their average are a step apart."""
    settings = Settings(**SMALL)
    train(butane, tmp_path / "whole.safetensors", settings=settings, progress=False, figure=False)
    step, steps = torch.optim.Adam.step, []

    def step_with_ctrl_c(self, *arguments, **options):
        step(self, *arguments, **options)
        steps.append(None)
        if len(steps) == 14:
            signal.raise_signal(with_signal)

    monkeypatch.setattr(torch.optim.Adam, "step", step_with_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="after step 14"):
        train(butane, tmp_path / "cut.safetensors", settings=settings, progress=False)
    train(butane, tmp_path / "cut.safetensors", settings=settings, progress=False, resume=True, figure=False)
    assert len(steps) == SMALL["n_steps"]
    assert torch.equal(numbers(tmp_path / "cut.safetensors"), numbers(tmp_path / "whole.safetensors"))
    assert not (tmp_path / "cut.safetensors.training").exists()


def test_resume_refuses_other_settings_and_damaged_state(butane, tmp_path):
    out = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="^resume: .*no file"):
        train(butane, out, settings=Settings(**SMALL), resume=True, progress=False)

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(butane, out, settings=Settings(**SMALL), progress=False, on_validation=stop)
    with pytest.raises(InputError, match="^resume: .*learning_rate"):
        train(butane, out, settings=Settings(**SMALL, learning_rate=1e-4), resume=True, progress=False)
    with pytest.raises(InputError, match="^resume: .*snapshots and the temperature"):
        train(butane, out, 310.0, settings=Settings(**SMALL), resume=True, progress=False)
    others = replace(butane, positions=butane.positions[::-1].copy())
    with pytest.raises(InputError, match="^resume: .*snapshots and the temperature"):
        train(others, out, settings=Settings(**SMALL), resume=True, progress=False)
    with pytest.raises(InputError, match="^n_steps: expected at least 10"):
        train(butane, out, settings=Settings(**{**SMALL, "n_steps": 9}), resume=True, progress=False)
    with pytest.raises(InputError, match="^out: .*no file"):
        out.rename(tmp_path / "elsewhere")
        train(butane, out, settings=Settings(**SMALL), resume=True, progress=False)
    state = tmp_path / "m.safetensors.training"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(InputError, match="^resume: "):
        train(butane, out, settings=Settings(**SMALL), resume=True, progress=False)


def test_bonds_that_look_like_angstrom_are_mentioned(butane):
    positions = torch.as_tensor(butane.positions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_bonds(positions, butane.molecule)
        with pytest.raises(UserWarning, match=r"1.\d+ nm apart in frame \d+: are the positions in nm"):
            check_bonds(10 * positions, butane.molecule)
    with pytest.raises(InputError, match="^snapshots: .* 0 nm between atoms 0 and 1 in frame 0"):
        check_bonds(0 * positions, butane.molecule)


@pytest.mark.parametrize(("argument", "change"), [
    ("n_steps", dict(n_steps=0)), ("batch_size", dict(batch_size=-1)), ("learning_rate", dict(learning_rate=0.0)),
    ("ema_decay", dict(ema_decay=1.0)), ("held_out", dict(held_out=0.0)), ("cutoff", dict(cutoff=float("nan"))),
    ("contrast", dict(contrast=-0.1)), ("torsion_fade", dict(torsion_fade=float("nan"))),
    ("force_field", dict(force_field=-1.0)), ("batch_size", dict(force_field=1.0, batch_size=1)),
    ("n_harmonics", dict(n_harmonics=13)),
    ("seed", dict(seed=-1)), ("seed", dict(seed=2**32)), ("n_features", dict(n_features=10**6)),
    ("n_blocks", dict(n_blocks=10**6)), ("batch_size", dict(batch_size=10**9)), ("n_steps", dict(n_steps=10**20)),
])
def test_bad_settings(argument, change):
    with pytest.raises(InputError, match=f"^{argument}:"):
        Settings(**change)


def test_bad_input_before_anything_is_written(butane, tmp_path):
    nameless = Snapshots(positions=butane.positions, molecule=butane.molecule)
    with pytest.raises(InputError, match="^temperature:"):
        train(nameless, tmp_path / "m.safetensors", progress=False)
    with pytest.raises(InputError, match="^out:"):
        train(butane, tmp_path / "no" / "m.safetensors", progress=False)
    for name in ("m.xtc", "folder.safetensors"):
        (tmp_path / "folder.safetensors").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="^out:"):
            train(butane, tmp_path / name, progress=False)
    (tmp_path / "folder.safetensors").rmdir()
    one = Snapshots(positions=butane.positions[:, :1], molecule=butane.molecule.select([0]), temperature=300.0)
    with pytest.raises(InputError, match="^snapshots: expected at least 2 atoms"):
        train(one, tmp_path / "m.safetensors", progress=False)
    few = Snapshots(positions=butane.positions[:3], molecule=butane.molecule, temperature=300.0)
    with pytest.raises(InputError, match="^snapshots:"):
        train(few, tmp_path / "m.safetensors", progress=False)
    with pytest.raises(InputError, match="^noise_levels:"):
        train(butane, tmp_path / "m.safetensors", settings=Settings(**SMALL, noise_levels=(0.1, 0.01)), progress=False)
    assert list(tmp_path.iterdir()) == []
