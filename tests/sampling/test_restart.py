"""Runs into files: stopped by Ctrl-C or killed and resumed, they are the run that was never stopped."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from diffmd_fast import InputError
from diffmd_fast.io import TrajectoryStore, read_snapshots
from diffmd_fast.sampling import RunInterrupted, Sampler, Spring, choose_spring, stored_spring

from .common import Breaks, Well, chain_positions, small_schnet, start

SPRING = Spring.from_time_step(0.25, 0.01)

CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.sampling.common import chain_positions, small_schnet
from diffmd_fast.sampling import Sampler, Spring
def die(step, positions, energy, alive):
    if step == 60:
        os.kill(os.getpid(), signal.SIGKILL)
Sampler(small_schnet(), Spring.from_time_step({time_step!r}, 0.002), seed=5).run(
    chain_positions(4), 100, 10, [die], out={out!r})
"""


def frames(path):
    """[n_frames, n_replicas, n_atoms, 3] of a file with all replicas."""
    data = read_snapshots(path)
    n_replicas = int(data.replica.max()) + 1
    return data.positions.reshape(n_replicas, -1, *data.positions.shape[1:]).swapaxes(0, 1)


def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path):
    model, x, out = small_schnet(), chain_positions(4), tmp_path / "traj.npz"
    spring = choose_spring(model, x, 0.002)
    whole = Sampler(model, spring, seed=5).run(x, 100, 10)
    root = str(Path(__file__).resolve().parents[2])
    script = CHILD.format(root=root, time_step=spring.time_step, out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not out.exists()
    with TrajectoryStore.open(f"{out}.restart") as store:
        assert store.last()[0] == 60
    with pytest.raises(InputError, match="^out: expected a new file .*restart, which exists"):
        Sampler(model, spring, seed=5).run(x, 100, 10, out=out)
    assert stored_spring(out) == spring
    resumed = Sampler(model, stored_spring(out), seed=5).run(None, 100, 10, out=out, resume=True)
    np.testing.assert_array_equal(resumed.final_positions, whole.final_positions)
    assert resumed.positions is None and resumed.n_frames == 11 and resumed.path == out
    np.testing.assert_array_equal(frames(out), whole.positions)


@pytest.mark.parametrize("suffix", ["npz", "xtc"])
def test_ctrl_c_loses_nothing(tmp_path, suffix):
    out, straight = tmp_path / f"traj.{suffix}", tmp_path / f"straight.{suffix}"
    Sampler(Well(), SPRING, seed=5).run(start(3), 100, 10, out=straight)

    def stop(step, positions, energy, alive):
        if step == 40:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunInterrupted, match=f"5 frames in {out}; run again with resume=True") as stopped:
        Sampler(Well(), SPRING, seed=5).run(start(3), 100, 10, [stop], out=out)
    assert signal.getsignal(signal.SIGINT) is handler
    trajectory = stopped.value.trajectory
    assert trajectory.steps.tolist() == [0, 10, 20, 30, 40] and trajectory.n_steps == 40
    np.testing.assert_array_equal(frames(out), frames(straight)[:5])
    Sampler(Well(), SPRING, seed=5).run(start(3), 100, 10, out=out, resume=True)
    np.testing.assert_array_equal(frames(out), frames(straight))


def test_ctrl_c_in_memory_hands_over_the_frames():
    stop = lambda step, positions, energy, alive: step == 20 and os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with pytest.raises(RunInterrupted) as stopped:
        Sampler(Well(), SPRING).run(start(2), 100, 10, [stop])
    whole = Sampler(Well(), SPRING).run(start(2), 100, 10)
    np.testing.assert_array_equal(stopped.value.trajectory.positions, whole.positions[:3])


@pytest.mark.parametrize("suffix", ["npz", "xtc"])
def test_a_finished_run_can_be_extended(tmp_path, suffix):
    out, straight = tmp_path / f"traj.{suffix}", tmp_path / f"straight.{suffix}"
    whole = Sampler(Well(), SPRING).run(start(3), 90, 10, out=straight)
    Sampler(Well(), SPRING).run(start(3), 45, 10, out=out)
    for n_steps in (45, 70, 90):  # the first adds nothing and must harm nothing
        extended = Sampler(Well(), SPRING).run(start(3), n_steps, 10, out=out, resume=True)
        assert extended.n_frames == n_steps // 10 + 1
    np.testing.assert_array_equal(extended.final_positions, whole.final_positions)
    np.testing.assert_array_equal(frames(out), frames(straight))
    assert Path(f"{out}.restart").stat().st_size < 3000  # one frame, not the run


def test_float64_restarts_exactly(tmp_path):
    x = start(3).double()
    whole = Sampler(Well(), SPRING).run(x, 40, 10)
    Sampler(Well(), SPRING).run(x, 20, 10, out=tmp_path / "traj.npz")
    rest = Sampler(Well(), SPRING).run(None, 40, 10, out=tmp_path / "traj.npz", resume=True)
    np.testing.assert_array_equal(rest.final_positions, whole.final_positions)


def test_a_lost_replica_stays_lost_and_its_good_frames_stay(tmp_path):
    x, out = start(6), tmp_path / "traj.npz"
    every = Sampler(Well(), SPRING, seed=2).run(x, 60, 1).positions[:-1, :, 0, 0]
    edge = float(np.sort(every.max(0))[-2:].mean())
    whole = Sampler(Well(), SPRING, seed=2).run(x, 100, 10)
    with pytest.warns(UserWarning, match="lost at step"):
        straight = Sampler(Breaks(edge), SPRING, seed=2).run(x, 100, 10)
    with pytest.warns(UserWarning, match="lost at step"):
        Sampler(Breaks(edge), SPRING, seed=2).run(x, 60, 10, out=out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever else is lost after step 60 is compared below
        rest = Sampler(Breaks(edge), SPRING, seed=2).run(x, 100, 10, out=out, resume=True)
    assert rest.lost == straight.lost
    np.testing.assert_array_equal(rest.final_positions, straight.final_positions)
    data = read_snapshots(out)
    for replica in range(6):
        good = straight.alive[:, replica]
        np.testing.assert_array_equal(data.positions[data.replica == replica], whole.positions[good, replica])


def test_one_file_a_replica(tmp_path):
    whole = Sampler(Well(), SPRING).run(start(3), 20, 10)
    Sampler(Well(), SPRING).run(start(3), 20, 10, out=tmp_path / "traj.npz", per_replica=True)
    np.testing.assert_array_equal(read_snapshots(tmp_path / "traj_r0001.npz").positions, whole.positions[:, 1])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "traj.npz"
    Sampler(Well(), SPRING).run(start(3), 20, 10, out=out)
    return out


@pytest.mark.parametrize(
    "name, model, spring, sampler, run",
    [
        ("seed", Well(), SPRING, {"seed": 1}, {}),
        ("temperature", Well(), SPRING, {"temperature": 310}, {}),
        ("time_step", Well(), Spring.from_time_step(0.2, 0.01), {}, {}),
        ("diffusion", Well(), Spring.from_time_step(0.25, 0.005), {}, {}),
        ("first_replica", Well(), SPRING, {"first_replica": 1}, {}),
        ("noise_level", Well(), SPRING, {"noise_level": 0.1}, {}),
        ("model", Well(stiffness=101.0), SPRING, {}, {}),
        ("save_every", Well(), SPRING, {}, {"save_every": 20}),
        ("check_every", Well(), SPRING, {}, {"check_every": 5}),
        ("initial_positions", Well(), SPRING, {}, {"initial_positions": start(3, seed=2)}),
        ("initial_positions", Well(), SPRING, {}, {"initial_positions": start(2)}),
        ("n_steps", Well(), SPRING, {}, {"n_steps": 10}),
    ],
)
def test_another_run_is_not_resumed(stopped, name, model, spring, sampler, run):
    before = {path: path.read_bytes() for path in stopped.parent.iterdir()}
    with pytest.raises(InputError, match=rf"^{name}: expected [^\n]*$"):
        Sampler(model, spring, **sampler).run(
            **{"initial_positions": start(3), "n_steps": 40, "save_every": 10, "out": stopped, "resume": True, **run}
        )
    assert {path: path.read_bytes() for path in stopped.parent.iterdir()} == before


def test_existing_files_are_kept_unless_told(stopped, tmp_path):
    before = stopped.read_bytes()
    with pytest.raises(InputError, match="^out: expected a new file"):
        Sampler(Well(), SPRING).run(start(3), 20, 10, out=stopped)
    assert stopped.read_bytes() == before
    with pytest.raises(InputError, match="^resume: expected an existing restart file"):
        Sampler(Well(), SPRING).run(start(3), 20, 10, out=tmp_path / "other.npz", resume=True)
    out = tmp_path / "twice.npz"
    Sampler(Well(), SPRING).run(start(3), 20, 10, out=out)
    Sampler(Well(), SPRING, seed=1).run(start(3), 20, 10, out=out, overwrite=True)
    np.testing.assert_array_equal(frames(out), Sampler(Well(), SPRING, seed=1).run(start(3), 20, 10).positions)
