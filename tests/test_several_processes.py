"""torchrun with processes on gloo: the trajectory and the model are those of one process, whatever happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import diffmd_fast
from diffmd_fast import InputError, Processes, Sampler, Spring
from diffmd_fast.io import TrajectoryStore, read_snapshots
from diffmd_fast.models import TraPPEAlkane
from diffmd_fast.sampling.shares import gather_shares, share_path, share_paths

from .sampling.common import BONDS, Breaks, chain_positions, small_schnet, start
from .test_cli import call

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("--steps", 40, "--features", 8, "--blocks", 1, "--batch-size", 9, "--quiet")


def start_torchrun(n_processes, *words):
    """torchrun of a program; in a session of its own, as a shell gives each job."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    return subprocess.Popen([*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, start_new_session=True)


def torchrun(n_processes, *words, code=0):
    """``diffmd-fast`` in several processes; returns (stdout, the lines of ours on stderr)."""
    out, err = start_torchrun(n_processes, "-m", "diffmd_fast", *words).communicate(timeout=240)
    if code:
        assert f"exitcode  : {code} " in err, (out, err)
    else:
        assert "exitcode" not in err, (out, err)
    return out, [line for line in err.splitlines() if line.endswith(f" of {n_processes})")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of five beads with frames to start from, and snapshots of butane to train on."""
    path = tmp_path_factory.mktemp("several")
    diffmd_fast.save_model(path / "model.safetensors", small_schnet())
    np.savez(path / "frames.npz", positions=chain_positions(9).numpy(), bonds=np.array(BONDS),
             bead_types=np.array(["C"] * 5))
    butane = TraPPEAlkane.butane().sample(500, seed=2).numpy().astype(np.float32)
    np.savez(path / "butane.npz", positions=butane, temperature=300.0, bonds=np.array([(0, 1), (1, 2), (2, 3)]),
             bead_types=np.array(["CH3", "CH2", "CH2", "CH3"]))
    return path


def sampling(folder, out, n_steps=60, *more):
    return ["sample", folder / "model.safetensors", "--init", folder / "frames.npz", "--replicas", 7, "--steps",
            n_steps, "--save-every", 20, "--quiet", "--out", out, *more]


def resuming(folder, out, n_steps, *more):
    return ["sample", folder / "model.safetensors", "--resume", "--steps", n_steps, "--quiet", "--out", out, *more]


def parameters(path):
    return torch.cat([p.flatten() for p in diffmd_fast.load_model(path).parameters()])


def test_two_processes_write_what_one_writes(folder, tmp_path):
    """Trajectory and its companions byte for byte; then one process extends the run of two."""
    one, two = tmp_path / "one" / "traj.npz", tmp_path / "two" / "traj.npz"
    one.parent.mkdir(), two.parent.mkdir()
    call(*sampling(folder, one))
    out, errors = torchrun(2, *sampling(folder, two))
    assert "4 frames of 7 replicas" in out and out.count("\n") <= 4 and errors == []
    names = sorted(path.name for path in one.parent.iterdir())
    assert names == sorted(path.name for path in two.parent.iterdir())
    assert [name for name in names if (one.parent / name).read_bytes() != (two.parent / name).read_bytes()] == []
    for path in (one, two):
        call(*resuming(folder, path, 100))
    assert one.read_bytes() == two.read_bytes()


def test_two_processes_train_what_one_trains(folder, tmp_path):
    """To rounding, also with shares of 4 and 5 frames of a batch; no file more."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    call("train", folder / "butane.npz", *TRAINING, "--out", one)
    out, errors = torchrun(2, "train", folder / "butane.npz", *TRAINING, "--out", two)
    assert out.count("best held-out loss") == 1 and errors == []
    torch.testing.assert_close(parameters(two), parameters(one), rtol=0, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.loss.png", "one.safetensors", "two.loss.png",
                                                          "two.safetensors"]


def test_shares_are_all_of_it_once():
    for size in (1, 2, 3, 7):
        for n in (size, 7, 64):
            shares = [Processes(rank, size).share(n) for rank in range(size)]
            assert [i for share in shares for i in range(n)[share]] == list(range(n))
            assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1


def shares_of(restart, frames, alive_until):
    """A restart file of 4 replicas with the frame of step 0, and two shares with ``frames`` more."""
    header = {"n_replicas": 4, "n_atoms": 2, "dtype": "float64", "time_step": 1.0, "velocities": True}
    x = np.random.default_rng(0).normal(size=(9, 2, 4, 2, 3))
    with TrajectoryStore.create(restart, header) as store:
        store.append(0, x[0, 0], None, x[0, 1])
    for rank, (count, until) in enumerate(zip(frames, alive_until)):
        rows = slice(2 * rank, 2 * rank + 2)
        own = {**header, "n_replicas": 2, "share": [rows.start, rows.stop]}
        with TrajectoryStore.create(share_path(restart, rank), own) as store:
            for k in range(1, count + 1):
                store.append(10 * k, x[k, 0, rows], np.full(2, k < until), x[k, 1, rows])
    return x


@pytest.mark.parametrize("frames, alive_until, together", [
    ((5, 3), (9, 9), 3),  # killed: the second is behind
    ((5, 2), (9, 2), 5),  # the second lost its replicas at frame 2 and is at its end
    ((3, 2), (3, 2), 3),  # all are lost
    ((5, 0), (9, 9), 0),  # killed before the second saved anything
])
def test_what_processes_left_is_put_together(tmp_path, frames, alive_until, together):
    restart = tmp_path / "t.npz.restart"
    x = shares_of(restart, frames, alive_until)
    kept = [path.read_bytes() for path in share_paths(restart)]
    with TrajectoryStore.open(restart, append=True) as store:
        gather_shares(store)
    once = restart.read_bytes()
    assert share_paths(restart) == []
    with TrajectoryStore.open(restart) as store:
        assert store.steps().tolist() == [10 * k for k in range(together + 1)]
        for k, (_, positions, alive) in enumerate(store.frames(1), start=1):
            for rank, until in enumerate(alive_until):
                rows = slice(2 * rank, 2 * rank + 2)
                assert (alive[rows] == (k < until)).all()
                if k < until:
                    np.testing.assert_array_equal(positions[rows], x[k, 0, rows])
                    np.testing.assert_array_equal(store.velocities(k)[rows], x[k, 1, rows])
    for rank, content in enumerate(kept):  # killed before the shares were removed, it is done again
        share_path(restart, rank).write_bytes(content)
    with TrajectoryStore.open(restart, append=True) as store:
        gather_shares(store)
    assert restart.read_bytes() == once and share_paths(restart) == []


@pytest.mark.parametrize("left", ["one of two", "an older run's"])
def test_shares_that_do_not_make_up_the_run_are_left_out(tmp_path, left):
    restart = tmp_path / "t.npz.restart"
    shares_of(restart, (3, 3), (9, 9))
    if left == "one of two":
        share_path(restart, 0).unlink()
    else:
        with TrajectoryStore.open(restart, append=True) as store:
            store.shrink(time_step=2.0)
    with TrajectoryStore.open(restart, append=True) as store:
        gather_shares(store)
        assert store.n_frames == 1
    assert share_paths(restart) == []


def test_bad_arguments_of_a_run_of_several(tmp_path):
    sampler, x = Sampler(small_schnet(), Spring.from_time_step(1e-4, 0.002)), chain_positions(2)
    with pytest.raises(InputError, match="^out: expected a file, for a run of several"):
        sampler.run(x, 10, 5, processes=Processes(0, 2))
    with pytest.raises(InputError, match="^replicas: expected at least one for each of the 3 processes, got 2"):
        sampler.run(x, 10, 5, out=tmp_path / "t.npz", processes=Processes(0, 3))
    with pytest.raises(InputError, match="^per_replica: "):
        sampler.run(x, 10, 5, out=tmp_path / "t.npz", sharded=True, per_replica=True)
    with pytest.raises(InputError, match="^out: "):
        sampler.run(x, 10, 5, sharded=True)


def stop_when_running(process, restart, with_signal, rank=None):
    """Send a signal to torchrun, or to the process of a rank, once each process has saved some frames."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and not (
            len(share_paths(restart)) == 2 and min(p.stat().st_size for p in share_paths(restart)) > 5000):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    target = process.pid
    if rank is not None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (target,) = [int(child) for child in children
                     if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text(errors="replace")]
    os.kill(target, with_signal)
    return process.communicate(timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("with_signal, rank, n_after", [
    (signal.SIGKILL, 1, 2), (signal.SIGKILL, 0, 3), (signal.SIGTERM, None, 1), (signal.SIGINT, None, 2)])
def test_a_stopped_run_goes_on_with_any_number_of_processes(folder, tmp_path, with_signal, rank, n_after):
    out, restart = tmp_path / "traj.npz", tmp_path / "traj.npz.restart"
    process = start_torchrun(2, "-m", "diffmd_fast", *sampling(folder, out, 10**8))
    text, errors = stop_when_running(process, restart, with_signal, rank)
    if rank is None:
        assert "stopped after step" in text and "--resume" in text and "(process" not in errors
        assert share_paths(restart) == [] and len(read_snapshots(out).positions) % 7 == 0
        stored = restart
    else:
        assert re.findall(r"^processes: another process .*--resume goes on \(process \d of 2\)$", errors, re.M), errors
        assert len(share_paths(restart)) == 2 and not out.exists()
        stored = share_path(restart, 0)
    with TrajectoryStore.open(stored) as store:
        n_steps = store.last()[0] + 400
    if n_after == 1:
        call(*resuming(folder, out, n_steps))
    else:
        torchrun(n_after, *resuming(folder, out, n_steps))
    call(*sampling(folder, tmp_path / "whole.npz", n_steps))
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes() and share_paths(restart) == []


@pytest.mark.slow
def test_sharded(folder, tmp_path):
    """Each process's file is its part of the whole; resumed by as many processes, and by no other number."""
    call(*sampling(folder, tmp_path / "whole.npz", 100))
    out = tmp_path / "traj.npz"
    torchrun(2, *sampling(folder, out, 60, "--sharded"))
    _, errors = torchrun(3, *resuming(folder, out, 100, "--sharded"), code=2)
    assert len(errors) == 1 and errors[0].startswith("resume: expected restart files of 3 processes")
    _, errors = torchrun(2, *sampling(folder, out, 60, "--sharded"), code=2)
    assert len(errors) == 1 and errors[0].startswith("out: expected a new file")
    torchrun(2, *resuming(folder, out, 100, "--sharded"))
    parts = [read_snapshots(tmp_path / f"traj_p000{rank}.npz").positions for rank in (0, 1)]
    assert np.array_equal(np.concatenate(parts), read_snapshots(tmp_path / "whole.npz").positions)
    assert not out.exists()


@pytest.mark.slow
def test_starts_from_noise_and_velocities_are_those_of_one_process(folder, tmp_path):
    words = ["sample", folder / "model.safetensors", "--from-noise", "--replicas", 7, "--steps", 60, "--save-every", 20,
             "--integrator", "baoab", "--masses", "14", "--quiet", "--out"]
    call(*words, tmp_path / "one.npz")
    out, _ = torchrun(2, *words, tmp_path / "two.npz")
    assert "kinetic temperature" in out
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.slow
def test_bad_input_is_said_once(folder, tmp_path):
    for words, name in ((sampling(folder, tmp_path / "t.npz", 60, "--temperature", "-1"), "temperature"),
                        (["report", folder / "frames.npz", "--reference", folder / "frames.npz", "--out", tmp_path],
                         "command")):
        _, errors = torchrun(2, *words, code=2)
        assert len(errors) == 1 and errors[0].startswith(f"{name}: expected"), errors
    _, errors = torchrun(2, "sample", folder / "model.safetensors", "--init", folder / "frames.npz", "--replicas", 1,
                         "--steps", 10, "--out", tmp_path / "t.npz", code=2)
    assert len(errors) == 1 and errors[0].startswith("replicas: expected at least one for each of the 2 processes")
    assert list(tmp_path.iterdir()) == []


LIBRARY = """
import json, sys
sys.path.insert(0, {root!r})
from tests.test_several_processes import breaking
from diffmd_fast import torchrun_processes
from diffmd_fast.processes import ProcessFailed
processes = torchrun_processes()
def reporter(step, positions, energy, alive):
    if {fails} and processes.rank == 1:
        raise ZeroDivisionError("a mistake of process 1")
sampler, start = breaking()
try:
    sampler.run(start, 60, 20, [reporter], out={out!r}, processes=processes)
    run = sampler.run(None, 100, 20, out={out!r}, resume=True, processes=processes)
except ProcessFailed as error:
    sys.exit("told: " + str(error))
assert run.n_frames == 6 and run.n_replicas == 5 and run.final_positions.shape == start.shape
if processes.rank == 0:
    print(json.dumps(run.lost))
processes.close()
"""


def breaking():
    """A run in which replicas 2, 3, 4 are lost at step 2 and replica 1 at step 38: all of the second of two shares,
    between two frames; none is left to it when the run is resumed."""
    x = start(5, width=0.02)
    x[2:, 0, 0] = 0.2
    return Sampler(Breaks(0.22), Spring.from_time_step(0.1, 0.01), seed=7), x


@pytest.mark.slow
def test_the_library_with_losses_and_a_process_that_fails(tmp_path):
    out = tmp_path / "traj.npz"
    for fails in (True, False):
        (tmp_path / "program.py").write_text(LIBRARY.format(root=str(ROOT), out=str(out), fails=fails))
        process = start_torchrun(2, tmp_path / "program.py")
        said, err = process.communicate(timeout=120)
        assert (process.returncode != 0) == fails, err
        if fails:
            assert "ZeroDivisionError: a mistake of process 1" in err and "told: processes: another process" in err
            for path in tmp_path.glob("traj*"):
                path.unlink()
    sampler, x = breaking()
    with pytest.warns(UserWarning, match="replica 4 lost at step 2"):
        alone = sampler.run(x, 100, 20, out=tmp_path / "alone.npz")
    assert [(lost.replica, lost.step) for lost in alone.lost] == [(2, 2), (3, 2), (4, 2), (1, 38)]
    assert json.loads(said) == [list(lost) for lost in alone.lost] and "replica 4 lost at step 2" in err
    assert out.read_bytes() == (tmp_path / "alone.npz").read_bytes()


@pytest.mark.slow
def test_training_stops_together_and_goes_on_with_another_number(folder, tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    words = ["train", folder / "butane.npz", *TRAINING[2:]]
    process = start_torchrun(2, "-m", "diffmd_fast", *words, "--steps", 10**7, "--out", cut)
    deadline = time.monotonic() + 200
    while not Path(f"{cut}.training").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert "stopped; go on with the same command and --resume" in out and "(process" not in err
    with safe_open(f"{cut}.training", framework="pt") as file:
        step = json.loads(file.metadata()["state"])["step"]
    for path in (cut, Path(f"{cut}.training")):
        shutil.copy(path, str(path).replace("cut.", "copy."))
    torchrun(3, *words, "--steps", step + 20, "--resume", "--out", cut)
    call(*words, "--steps", step + 20, "--resume", "--out", tmp_path / "copy.safetensors")
    torch.testing.assert_close(parameters(cut), parameters(tmp_path / "copy.safetensors"), rtol=0, atol=1e-5)
    assert not Path(f"{cut}.training").exists()
    call(*words, "--minutes", 0.05, "--steps", 10**7, "--out", whole)
    out, errors = torchrun(2, *words, "--minutes", 0.05, "--steps", 10**7, "--overwrite", "--out", whole)
    assert "best held-out loss" in out and errors == []
    _, errors = torchrun(2, *words, "--steps", 5, "--batch-size", 1, "--out", tmp_path / "m.safetensors", code=2)
    assert len(errors) == 1 and errors[0].startswith("batch_size: expected a frame for each of the 2 processes")
