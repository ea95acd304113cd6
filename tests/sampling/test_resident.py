"""The resident loop: the step-by-step trajectory to the bit, losses included, and the reference's to rounding."""

import os
import signal
import threading
import warnings

import numpy as np
import pytest
import torch

from diffmd_fast import _C, InputError, set_num_threads, use_backend
from diffmd_fast.models import SchNet
from diffmd_fast.sampling import EnergyReporter, RunInterrupted, Sampler, Spring, choose_spring
from diffmd_fast.sampling import resident as resident_module

from ..ops.common import SIMD_LEVELS, simd_level
from .common import Well, chain_positions, small_schnet, start

MODEL = small_schnet()
SPRING = choose_spring(MODEL, chain_positions(4), 0.002)


def both(model, spring, positions, *arguments, options=None, **more):
    """The run step by step and in the resident loop, each with its energies; warnings of lost replicas are let be."""
    runs = []
    for resident in (False, True):
        energies = EnergyReporter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            run = Sampler(model, spring, resident=resident, **(options or {})).run(
                positions, *arguments, reporters=[energies], **more)
        runs.append((run, energies.energies))
    return runs


def assert_same(runs):
    (one, one_energies), (other, other_energies) = runs
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.final_positions, other.final_positions)
    np.testing.assert_array_equal(one_energies, other_energies)
    assert one.lost == other.lost and one.n_steps == other.n_steps and one.steps.tolist() == other.steps.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_replicas, n_threads", [(1, 1), (1, 3), (7, 2), (40, 1), (40, 2), (41, 3)])
def test_same_bits_as_step_by_step(dtype, n_replicas, n_threads):
    """40 replicas of 5 atoms are four blocks of 13 and fewer."""
    set_num_threads(n_threads)
    try:
        assert_same(both(MODEL.to(dtype), SPRING, chain_positions(n_replicas).to(dtype), 30, 10, options={"seed": 3}))
    finally:
        set_num_threads(None)
        MODEL.float()


@pytest.mark.parametrize("n_steps, save_every, check_every", [(30, 7, 4), (30, 30, 1), (5, 9, 2), (24, 8, 100)])
def test_same_bits_for_any_intervals(n_steps, save_every, check_every):
    assert_same(both(MODEL, SPRING, chain_positions(9), n_steps, save_every, check_every=check_every))


def test_same_bits_for_every_option():
    options = {"seed": 2**63 + 5, "first_replica": 12, "temperature": 450.0, "noise_level": 0.01}
    diffusion = [0.001, 0.002, 0.001, 0.0015, 0.002]
    spring = Spring.from_time_step(SPRING.time_step / 2, diffusion)
    assert_same(both(MODEL, spring, chain_positions(9), 20, 10, options=options))


@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_same_bits_on_every_simd_level(level):
    with simd_level(level):
        assert_same(both(MODEL, SPRING, chain_positions(9), 10, 5))


def test_calls_may_be_cut_anywhere(monkeypatch):
    whole = both(MODEL, SPRING, chain_positions(5), 50, 10)[1]
    monkeypatch.setattr(resident_module, "CALL_SECONDS", 0.0)  # one step a call
    stepwise = both(MODEL, SPRING, chain_positions(5), 50, 10)[1]
    monkeypatch.setattr(resident_module, "CALL_SECONDS", 10.0)
    monkeypatch.setattr(resident_module, "MAX_FRAME_BYTES", 1)  # one frame a call
    framewise = both(MODEL, SPRING, chain_positions(5), 50, 10)[1]
    assert_same((whole, stepwise))
    assert_same((whole, framewise))


# ---- losses ------------------------------------------------------------------------------------------


def narrow() -> SchNet:
    """A model that takes a replica for lost when a bond is off 0.15 nm by 0.012 nm: six noise levels."""
    model = small_schnet()
    model.support = {"pairs": [[0, 1], [1, 2]], "lowest": [0.15] * 2, "highest": [0.15] * 2}
    return model


def inside(n_replicas):
    """Bonds 0-1 and 1-2 of exactly 0.15 nm."""
    x = chain_positions(n_replicas)
    for i in (0, 2):
        away = x[:, i] - x[:, 1]
        x[:, i] = x[:, 1] + 0.15 * away / away.norm(dim=1, keepdim=True)
    return x


@pytest.mark.parametrize("n_threads", [1, 2])
def test_replicas_that_leave_the_support_are_lost_alike(n_threads):
    set_num_threads(n_threads)
    try:
        runs = both(narrow(), SPRING, inside(64), 60, 20, check_every=3, options={"temperature": 350.0})
    finally:
        set_num_threads(None)
    assert_same(runs)
    lost = runs[1][0].lost
    assert 5 < len(lost) < 64 and len({entry.step for entry in lost}) > 2
    assert all(entry.step % 3 == 0 or entry.step % 20 == 0 for entry in lost)
    assert all("training range" in entry.reason for entry in lost)


def test_a_run_ends_when_every_replica_is_lost():
    runs = both(narrow(), SPRING, inside(6), 4000, 50, check_every=7, options={"temperature": 900.0})
    assert_same(runs)
    assert len(runs[1][0].lost) == 6 and runs[1][0].n_steps < 4000


def test_a_step_beyond_the_limit_is_lost_where_it_is_not_finite():
    """float32 overflows within some hundred steps of an unstable run; nobody else notices."""
    spring = Spring.from_time_step(SPRING.time_step * 40, 0.002)
    runs = both(MODEL, spring, chain_positions(20), 3000, 100, options={"force": True})
    assert_same(runs)
    lost = runs[1][0].lost
    assert lost and all("not finite" in entry.reason for entry in lost)


def test_a_lost_replica_stays_lost_over_a_resume(tmp_path):
    x, out = inside(30), tmp_path / "traj.npz"
    step_by_step, resident = (Sampler(narrow(), SPRING, 350, resident=choice) for choice in (False, True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = step_by_step.run(x, 60, 10)
        resident.run(x, 30, 10, out=out)
        rest = resident.run(None, 60, 10, out=out, resume=True)
    assert whole.lost == rest.lost and {entry.step <= 30 for entry in rest.lost} == {True, False}
    np.testing.assert_array_equal(whole.final_positions, rest.final_positions)


# ---- against the reference ---------------------------------------------------------------------------


def test_the_reference_to_rounding_over_fifty_steps():
    """Over 50 steps the float32 run is off the float64 reference by at most twice what the float32 reference is."""
    x = chain_positions(16)

    def run(dtype, backend):
        with use_backend(backend):
            return Sampler(small_schnet().to(dtype), SPRING, seed=9).run(x.to(dtype), 50, 50).final_positions

    truth = run(torch.float64, "reference")
    np.testing.assert_allclose(run(torch.float64, "native"), truth, rtol=0, atol=1e-12)
    native, reference = (np.abs(run(torch.float32, backend) - truth) for backend in ("native", "reference"))
    assert native.max() <= 2 * reference.max() and np.sqrt((native**2).mean()) <= 2 * np.sqrt((reference**2).mean())


# ---- who runs it, and how it stops -------------------------------------------------------------------


def test_ctrl_c_stops_between_two_calls():
    asker = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))

    def ask(step, *_):
        if step == 0:  # by now the run listens; before, on a slow machine, the signal would end the test
            asker.start()

    with pytest.raises(RunInterrupted) as stopped:
        Sampler(MODEL, SPRING, resident=True).run(chain_positions(4), 10**9, 50, reporters=[ask])
    asker.join()
    cut = stopped.value.trajectory
    assert 0 < cut.n_steps < 10**9 and cut.n_frames == cut.n_steps // 50 + 1
    whole = Sampler(MODEL, SPRING, resident=False).run(chain_positions(4), min(cut.n_steps, 500), 50)
    np.testing.assert_array_equal(cut.positions[: whole.n_frames], whole.positions)


def test_where_it_cannot_run_it_says_why(tmp_path, capsys):
    out = tmp_path / "traj.npz"
    with pytest.raises(InputError, match="^resident: expected a run that .*got Well has no native evaluation"):
        Sampler(Well(), Spring.from_time_step(0.1, 0.01), resident=True).run(start(2), 10, 5, out=out)
    with use_backend("reference"), pytest.raises(InputError, match='^resident: .*the backend is "reference"'):
        Sampler(MODEL, SPRING, resident=True).run(chain_positions(2), 10, 5, out=out)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="^resident: expected None, True or False"):
        Sampler(MODEL, SPRING, resident="yes")
    Sampler(Well(), Spring.from_time_step(0.1, 0.01)).run(start(2), 10, 5, progress=True)
    assert "step by step (Well has no native evaluation" in capsys.readouterr().err
    Sampler(MODEL, SPRING).run(chain_positions(2), 10, 5, progress=True)
    assert "loop in native code" in capsys.readouterr().err


def test_the_module_refuses_what_would_read_out_of_bounds():
    x = chain_positions(1)
    folded = MODEL.folded(MODEL.noise_level, x.dtype)
    numbers, integers = torch.ones(1, dtype=torch.float64), torch.tensor([[0, 5]])
    energy, frames, memory = torch.zeros(1), torch.zeros(1, 1, 5, 3), torch.zeros(1, 5, 3)
    state, steps = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    tensors = {
        "positions": x, "energy": energy, "score": torch.zeros_like(x), "diffusion_time": numbers, "variance": numbers,
        "other_positions": memory, "other_score": memory, "other_energy": energy, "zeros": memory, "velocities": None,
        "kick": numbers, "decay": numbers, "amplitude": numbers, "accepted": steps, "pairs": integers,
        "lowest": numbers, "highest": numbers, "good": x.clone(), "loss": state, "lost_step": steps,
        "lost_positions": memory, "frames": frames, "frame_energies": energy, "frame_velocities": None}
    fields = {name: 0 if value is None else value.data_ptr() for name, value in tensors.items()}
    fields |= {
        "n_replicas": 1, "n_threads": 1, "diffusion_per_atom": False, "rule": 0, "half_step": 0.0, "seed": 0,
        "first_replica": 0, "first_step": 0, "end_step": 1, "last_step": 1, "check_every": 1, "save_every": 1,
        "n_pairs": 0, "energy_limit": 1e9}

    def call(**other):
        _C.resident_sampler_float32(folded.description, fields | other)

    for name, value in (("first_step", -1), ("end_step", 2), ("first_step", 2), ("check_every", 0), ("save_every", 0)):
        with pytest.raises(ValueError, match="^first_step: expected"):
            call(**{name: value})
    for n_pairs in (1, -1):
        with pytest.raises(ValueError, match="^pairs: expected atoms in 0..4"):
            call(n_pairs=n_pairs)
    for rule in (-1, 4, 5):  # 4 wants velocities
        with pytest.raises(ValueError, match="^rule: expected"):
            call(rule=rule)
