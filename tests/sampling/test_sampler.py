"""The sampler's loop: same bits however it is cut, lost replicas alone, clear errors."""

import numpy as np
import pytest
import torch

from diffmd_fast import InputError, ops, set_num_threads, use_backend
from diffmd_fast.sampling import EnergyReporter, Sampler, Spring, choose_spring

from .common import Breaks, ScoreOnly, Well, chain_positions, small_schnet, start

SPRING = Spring.from_time_step(0.25, 0.01)  # a = 0.25 in the well of stiffness 100


def test_frames_are_the_operator_applied_again_and_again():
    model, x = Well(), start(5)
    trajectory = Sampler(model, SPRING, temperature=450, seed=7, first_replica=3).run(x, 7, 3)
    assert trajectory.steps.tolist() == [0, 3, 6] and trajectory.times.tolist() == [0, 0.75, 1.5]
    frames = [x]
    for step in range(7):
        frames.append(
            ops.em_step(
                frames[-1],
                model.score(frames[-1]),
                diffusion=0.01,
                time_step=0.25,
                variance=1.5,
                seed=7,
                first_replica=3,
                step=step,
            )
        )
    for got, want in zip((*trajectory.positions, trajectory.final_positions), (x, frames[3], frames[6], frames[7])):
        np.testing.assert_array_equal(got, want.numpy())


def test_backends_agree():
    run = Sampler(Well(), SPRING).run
    native = run(start(3).double(), 20, 20).final_positions
    with use_backend("reference"):
        reference = run(start(3).double(), 20, 20).final_positions
    np.testing.assert_allclose(native, reference, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_start_which_stays_as_it_was(dtype):
    x = start(2).to(dtype)
    before = x.clone()
    trajectory = Sampler(Well(), SPRING).run(x, 5, 1)
    assert trajectory.positions.dtype == x.numpy().dtype and torch.equal(x, before)
    assert Sampler(Well(), SPRING).run(x.numpy().astype(int), 1, 1).positions.dtype == np.float32


def test_diffusion_per_atom():
    """Each atom as if all had its diffusion: the noise is by atom."""
    both = Sampler(Well(2), Spring.from_time_step(0.1, [0.01, 0.02])).run(start(3, 2), 10, 10).final_positions
    for atom, diffusion in enumerate((0.01, 0.02)):
        one = Sampler(Well(2), Spring.from_time_step(0.1, diffusion)).run(start(3, 2), 10, 10).final_positions
        np.testing.assert_array_equal(both[:, atom], one[:, atom])


@pytest.fixture(scope="module")
def schnet_run():
    model, x = small_schnet(), chain_positions(10)
    spring = choose_spring(model, x, 0.002)
    return model, x, spring, Sampler(model, spring, seed=11).run(x, 40, 10)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_batches_and_threads_change_no_bit(schnet_run, batch_size, n_threads):
    model, x, spring, whole = schnet_run
    set_num_threads(n_threads)
    try:
        cut = Sampler(model, spring, seed=11, batch_size=batch_size).run(x, 40, 10)
    finally:
        set_num_threads(None)
    np.testing.assert_array_equal(cut.positions, whole.positions)


def test_replicas_run_apart_are_the_same(schnet_run):
    model, x, spring, whole = schnet_run
    part = Sampler(model, spring, seed=11, first_replica=6).run(x[6:], 40, 10)
    np.testing.assert_array_equal(part.positions, whole.positions[:, 6:])


# ---- lost replicas -----------------------------------------------------------------------------------


def broken_run(n_replicas=6, n_steps=60, batch_size=None, **arguments):
    """A run in which exactly one replica meets a NaN score, the step it does, and the same run without."""
    x = start(n_replicas)
    every = Sampler(Well(), SPRING, seed=4).run(x, n_steps, 1).positions[:-1, :, 0, 0]
    highest = np.sort(every.max(0))
    edge = float(highest[-2:].mean())
    (victim,) = np.flatnonzero(every.max(0) > edge)
    step = int(np.flatnonzero(every[:, victim] > edge)[0]) + 1
    with pytest.warns(UserWarning, match=f"replica {victim} lost at step {step}: its score is not finite"):
        broken = Sampler(Breaks(edge), SPRING, seed=4, batch_size=batch_size).run(x, n_steps, 10, **arguments)
    return broken, int(victim), step, Sampler(Well(), SPRING, seed=4).run(x, n_steps, 10)


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_a_replica_that_becomes_nan_is_stopped_alone(batch_size):
    broken, victim, step, whole = broken_run(batch_size=batch_size)
    assert [(lost.replica, lost.step) for lost in broken.lost] == [(victim, step)]
    others = np.arange(6) != victim
    np.testing.assert_array_equal(broken.positions[:, others], whole.positions[:, others])
    np.testing.assert_array_equal(broken.final_positions[others], whole.final_positions[others])
    alive = broken.steps < step
    assert 2 <= alive.sum() < len(alive)
    np.testing.assert_array_equal(broken.alive[:, victim], alive)
    np.testing.assert_array_equal(broken.positions[alive, victim], whole.positions[alive, victim])
    assert np.isnan(broken.positions[~alive, victim]).all() and np.isnan(broken.final_positions[victim]).all()


def test_a_lost_replica_is_told_to_reporters_and_stands_still():
    seen, energies = [], EnergyReporter()

    def watch(step, positions, energy, alive):
        seen.append((step, positions.numpy().copy(), alive))

    broken, victim, step, _ = broken_run(reporters=[energies, watch])
    assert [at for at, _, _ in seen] == list(range(0, 61, 10))
    np.testing.assert_array_equal(np.array([alive for _, _, alive in seen]), broken.alive)
    last_good = broken.positions[broken.alive[:, victim], victim][-1]
    for at, positions, _ in seen:
        assert at < step or (positions[victim] == last_good).all()
    np.testing.assert_array_equal(np.isfinite(energies.energies), broken.alive)
    want = 50 * np.square(broken.positions[:, 0]).sum((1, 2))
    np.testing.assert_allclose(energies.energies[:, 0], want, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:every replica was lost")
def test_leaving_the_support_is_a_loss_with_its_reason():
    """Free diffusion of a pair leaves every range of distances; the check comes at the first multiple of 7."""
    model = Well(2, stiffness=1e-3)
    model.support = {"pairs": [[0, 1]], "lowest": [0.1], "highest": [0.2], "energy": [0.0, 1e9]}
    x = torch.zeros(8, 2, 3)
    x[:, 1, 0] = 0.15
    with pytest.warns(UserWarning, match="lost at step"):
        trajectory = Sampler(model, Spring.from_time_step(1e-3, 1.0)).run(x, 700, 70, check_every=7)
    assert len(trajectory.lost) == 8 and all(lost.step % 7 == 0 for lost in trajectory.lost)
    assert "distance 0-1 is" in trajectory.lost[0].reason
    assert "training range 0.1 to 0.2 nm" in trajectory.lost[0].reason
    assert trajectory.n_steps == max(lost.step for lost in trajectory.lost) < 700  # nothing left to run
    r = np.linalg.norm(trajectory.positions[:, :, 0] - trajectory.positions[:, :, 1], axis=-1)
    good = trajectory.alive
    assert np.isnan(r[~good]).all() and (r[good] <= 0.3 + 1e-6).all()


@pytest.mark.filterwarnings("ignore:every replica was lost")
def test_energy_above_the_support_is_a_loss():
    model = Well(1, stiffness=1e-6)
    model.support = {"pairs": [], "lowest": [], "highest": [], "energy": [0.0, 1e-6]}  # limit 6e-6
    with pytest.warns(UserWarning, match="energy is .* kT0, training range 0 to 1e-06 kT0"):
        trajectory = Sampler(model, Spring.from_time_step(1.0, 1.0)).run(torch.zeros(3, 1, 3), 200, 10)
    assert len(trajectory.lost) == 3
    # away from the model's own noise level the recorded energies mean nothing
    assert not Sampler(model, Spring.from_time_step(1.0, 1.0), noise_level=0.1).run(torch.zeros(3, 1, 3), 99, 9).lost


def test_starting_outside_the_support_is_refused():
    model = Well(2)
    model.support = {"pairs": [[0, 1]], "lowest": [0.1], "highest": [0.2], "energy": [0.0, 1e9]}
    x = torch.zeros(3, 2, 3)
    x[:, 1, 0] = torch.tensor([0.1, 0.29, 0.31])
    with pytest.raises(InputError, match="^initial_positions: .* got replica 2: distance 0-1 is 0.31 nm"):
        Sampler(model, SPRING).run(x, 10, 1)


# ---- models that offer less, and bad input -----------------------------------------------------------


def test_a_score_is_enough(monkeypatch):
    monkeypatch.setattr("diffmd_fast.backend._said", set())  # it is said once, and other tests have ScoreOnly, too
    seen = []
    with pytest.warns(UserWarning, match="no attribute temperature; its T0 is taken to be 300 K"):
        sampler = Sampler(ScoreOnly(), SPRING, temperature=450, seed=7)
    trajectory = sampler.run(start(3), 20, 10, [lambda *frame: seen.append(frame[2])])
    want = Sampler(Well(), SPRING, temperature=450, seed=7).run(start(3), 20, 10)
    np.testing.assert_array_equal(trajectory.positions, want.positions)
    assert seen == [None] * 3


def test_str_shows_both_ways_and_temperatures():
    text = str(Sampler(Well(), SPRING, temperature=350))
    for part in ("0.25 ps", "200 1/nm^2", "498.9 kJ/mol/nm^2", "T0 = 300 K", "T = 350 K"):
        assert part in text


def test_progress_bar_shows_rates_and_stability(capsys):
    Sampler(Well(), SPRING).run(start(3), 50, 10, progress=True)
    shown = capsys.readouterr().err
    assert "ps/day over 3 replicas, 0 lost" in shown and "D dt L = 0.25" in shown


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"model": object()}, "model"),
        ({"spring": 1e-3}, "spring"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"integrator": "leapfrog"}, "integrator"),
        ({"first_replica": -1}, "first_replica"),
        ({"batch_size": 0}, "batch_size"),
        ({"noise_level": 0.0}, "noise_level"),
        ({"model": small_schnet(), "noise_level": 0.9}, "noise_level"),
    ],
)
def test_bad_sampler(arguments, name):
    with pytest.raises(InputError, match=rf"^{name}: expected [^\n]*$"):
        Sampler(**{"model": Well(), "spring": SPRING, **arguments})


NAN = start(3)
NAN[2, 1, 0] = float("nan")


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"initial_positions": torch.zeros(4, 3)}, "initial_positions"),
        ({"initial_positions": torch.zeros(2, 5, 3)}, "initial_positions"),
        ({"initial_positions": torch.zeros(2, 4, 2)}, "initial_positions"),
        ({"initial_positions": torch.zeros(0, 4, 3)}, "initial_positions"),
        ({"initial_positions": torch.zeros(2, 4, 3, dtype=torch.complex64)}, "initial_positions"),
        ({"initial_positions": "frames.npz"}, "initial_positions"),
        ({"initial_positions": None}, "initial_positions"),
        ({"initial_positions": NAN}, "initial_positions: expected finite positions, got NaN or infinity in replica 2"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": -5}, "n_steps"),
        ({"save_every": 0}, "save_every"),
        ({"save_every": 1.5}, "save_every"),
        ({"check_every": 0}, "check_every"),
        ({"reporters": [3]}, "reporters"),
        ({"resume": True}, "resume"),
        ({"out": "/nowhere/at/all.xtc"}, "out"),
        ({"out": "traj.txt"}, "out"),
        ({"out": "traj.npz", "molecule": "butane"}, "molecule"),
    ],
)
def test_bad_run(arguments, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^{name}[^\n]*$"):
        Sampler(Well(), SPRING).run(**{"initial_positions": start(3), "n_steps": 10, "save_every": 5, **arguments})
    assert not list(tmp_path.iterdir())


def test_diffusion_of_another_molecule_is_refused():
    with pytest.raises(InputError, match="^diffusion: expected a number or 4 values"):
        Sampler(Well(), Spring.from_time_step(0.1, [0.01] * 5)).run(start(3), 10, 5)


@pytest.mark.parametrize(
    "support",
    [
        {"pairs": [[0, 9]], "lowest": [0.1], "highest": [0.2]},
        {"pairs": []},
        {"pairs": [[0, 1]], "lowest": [], "highest": []},
    ],
)
def test_unusable_support_is_refused(support):
    model = Well()
    model.support = support
    with pytest.raises(InputError, match=r"^model.support: expected [^\n]*$"):
        Sampler(model, SPRING).run(start(3), 10, 5)


def test_a_score_of_the_wrong_shape_or_dtype_is_refused():
    for wrong in (lambda x: x[:1], lambda x: x.double()):
        model = ScoreOnly()
        model.score = wrong
        with pytest.raises(InputError, match="^model: expected a score of shape"):
            Sampler(model, SPRING).run(start(3), 10, 5)


def test_last_steps_beyond_the_last_frame_are_run():
    trajectory = Sampler(Well(), SPRING).run(start(3), 25, 10)
    whole = Sampler(Well(), SPRING).run(start(3), 25, 5)
    assert trajectory.n_frames == 3 and trajectory.n_steps == 25
    np.testing.assert_array_equal(trajectory.final_positions, whole.positions[-1])
