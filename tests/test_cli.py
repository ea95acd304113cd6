"""The command line as a user meets it: exit codes, one line per mistake, nothing overwritten, nothing lost.

Commands run in this process, since starting one takes seconds; what needs a process of its own gets one (signals,
the entry point).
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest

import diffmd_fast
from diffmd_fast import cli
from diffmd_fast.io import read_snapshots
from diffmd_fast.models import TraPPEAlkane

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def call(*arguments, code=0):
    """Run diffmd-fast in this process; returns its ``stdout`` and ``stderr``."""
    out, err, show = io.StringIO(), io.StringIO(), warnings.showwarning
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in arguments])
    finally:
        warnings.showwarning = show
        diffmd_fast.use_backend("auto")
    done = SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue(), code=end.value.code or 0)
    assert done.code == code, (done.code, done.stderr, done.stdout)
    assert "Traceback" not in done.stderr
    return done


def start_process(*arguments):
    return subprocess.Popen([sys.executable, "-m", "diffmd_fast", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def stop_when(process, ready, with_signal):
    """Send the signal once ``ready()``; returns (stdout, stderr) at the process's end."""
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    process.send_signal(with_signal)
    return process.communicate(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Butane snapshots and a small model trained by the command line."""
    path = tmp_path_factory.mktemp("cli")
    positions = TraPPEAlkane.butane().sample(1000, seed=2).numpy().astype(np.float32)
    np.savez(path / "snapshots.npz", positions=positions, temperature=300.0,
             bonds=np.array([(0, 1), (1, 2), (2, 3)]), bead_types=np.array(["CH3", "CH2", "CH2", "CH3"]))
    done = call("train", path / "snapshots.npz", "--steps", 400, "--features", 16, "--blocks", 1, "--batch-size", 64,
                "--quiet", "--out", path / "model.safetensors")
    assert "1000 snapshots of 4 atoms, 3 bonds" in done.stdout and "best held-out loss" in done.stdout
    return path


def sample(folder, out, *more, code=0, start=("--init", "snapshots.npz")):
    start = [folder / word if word.endswith(".npz") else word for word in start]
    return call("sample", folder / "model.safetensors", *start, "--replicas", 4, "--steps", 60,
                "--save-every", 20, "--quiet", "--out", out, *more, code=code)


@pytest.mark.parametrize("suffix", [".xtc", ".npz", ".dcd"])
def test_sample_writes_what_mdtraj_reads(folder, tmp_path, suffix):
    done = sample(folder, tmp_path / f"traj{suffix}")
    assert "4 frames of 4 replicas" in done.stdout and "0 replicas lost" in done.stdout
    read = read_snapshots(tmp_path / f"traj{suffix}")
    assert read.positions.shape == (16, 4, 3) and np.unique(read.replica).tolist() == [0, 1, 2, 3]
    if suffix != ".npz":
        assert mdtraj.load(tmp_path / f"traj{suffix}", top=tmp_path / "traj.pdb").n_frames == 16


def test_spring_and_time_step_are_one(folder, tmp_path):
    """k = 1/(2 D dt): the same run by either name; what is printed has units."""
    done = sample(folder, tmp_path / "a.npz", "--time-step", 5e-4, "--diffusion", 0.002)
    assert "ps" in done.stdout and "1/nm^2" in done.stdout and "K" in done.stdout
    sample(folder, tmp_path / "b.npz", "--stiffness", 1 / (2 * 5e-4 * 0.002), "--diffusion", 0.002)
    a, b = read_snapshots(tmp_path / "a.npz"), read_snapshots(tmp_path / "b.npz")
    np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=1e-5)


def test_resume_goes_on_to_the_bit(folder, tmp_path):
    sample(folder, tmp_path / "whole.npz")
    call("sample", folder / "model.safetensors", "--init", folder / "snapshots.npz", "--replicas", 4, "--steps", 20,
         "--save-every", 20, "--quiet", "--out", tmp_path / "cut.npz")
    call("sample", folder / "model.safetensors", "--resume", "--steps", 60, "--save-every", 20, "--quiet",
         "--out", tmp_path / "cut.npz")
    whole, cut = read_snapshots(tmp_path / "whole.npz"), read_snapshots(tmp_path / "cut.npz")
    assert np.array_equal(whole.positions, cut.positions) and np.array_equal(whole.time, cut.time)


def test_from_noise(folder, tmp_path):
    done = sample(folder, tmp_path / "noise.npz", start=["--from-noise"])
    assert "4 frames of 4 replicas" in done.stdout


def test_report(folder, tmp_path):
    sample(folder, tmp_path / "traj.xtc")
    done = call("report", tmp_path / "traj.xtc", "--reference", folder / "snapshots.npz", "--out", tmp_path / "report",
                "--model", folder / "model.safetensors", "--quiet")
    result = json.loads((tmp_path / "report" / "report.json").read_text())
    for key in ("js_divergence", "js_floor", "n_frames", "replicas_lost", "integrated_autocorrelation_time_ps"):
        assert key in result
    assert result["replicas_lost"] == 0 and 0 <= result["js_divergence"] <= np.log(2)
    assert f"{result['js_divergence']:.4f}" in done.stdout
    page = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/png;base64," in page and "src=\"http" not in page


def test_info_and_help():
    assert "backend    native     available" in call("info").stdout
    assert json.loads(call("info", "--json").stdout)["versions"]["diffmd_fast"] == diffmd_fast.__version__
    for command in ("train", "sample", "report"):
        text = call(command, "--help").stdout
        assert "Example:" in text and f"diffmd-fast {command}" in text
    assert "Example:" in call("--help").stdout


def test_bad_input_is_one_line_that_names_the_argument(folder, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    np.savez(tmp_path / "three.npz", positions=np.zeros((5, 3, 3), dtype=np.float32))
    nan = np.load(folder / "snapshots.npz")["positions"][:4].copy()
    nan[2, 1, 0] = np.nan
    np.savez(tmp_path / "nan.npz", positions=nan)
    frames, model, out = folder / "snapshots.npz", folder / "model.safetensors", tmp_path / "o.xtc"
    run = ["sample", model, "--init", frames, "--steps", 10, "--out", out]
    table = {
        "snapshots": ["train", tmp_path / "absent.npz", "--out", tmp_path / "m.safetensors"],
        "temperature": ["train", tmp_path / "three.npz", "--out", tmp_path / "m.safetensors"],
        "atoms": ["train", frames, "--atoms", "name Q", "--out", tmp_path / "m.safetensors"],
        "topology": ["train", frames, "--topology", tmp_path / "no.pdb", "--out", tmp_path / "m.safetensors"],
        "learning_rate": ["train", frames, "--learning-rate", 0, "--out", tmp_path / "m.safetensors"],
        "steps": ["sample", model, "--init", frames, "--steps", 0, "--out", out],
        "model": ["sample", cut, "--init", frames, "--steps", 10, "--out", out],
        "init": ["sample", model, "--init", tmp_path / "nan.npz", "--steps", 10, "--out", out],
        "time_step": [*run, "--time-step", -1],
        "stiffness": [*run, "--stiffness", 0],
        "diffusion": [*run, "--diffusion", 0],
        "replicas": [*run, "--replicas", 0],
        "save_every": [*run, "--save-every", 0],
        "integrator": [*run, "--integrator", "verlet"],
        "out": ["sample", model, "--init", frames, "--steps", 10, "--out", tmp_path / "o.mp4"],
        "backend": ["--backend", "abacus", *run],
        "threads": ["--threads", 0, *run],
        "trajectory": ["report", tmp_path / "no.xtc", "--reference", frames, "--out", tmp_path / "r"],
        "reference": ["report", frames, "--reference", tmp_path / "three.npz", "--out", tmp_path / "r"],
        "dihedrals": ["report", frames, "--reference", frames, "--dihedrals", "chi9", "--out", tmp_path / "r"],
        "--stepz": ["sample", model, "--stepz", 3],
    }
    before = sorted(p.name for p in tmp_path.iterdir())
    for name, words in table.items():
        done = call(*words, code=2)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith(name + ":"), (name, done.stderr)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_existing_output_is_not_replaced_unasked(folder, tmp_path):
    out = tmp_path / "traj.xtc"
    sample(folder, out)
    before = out.read_bytes()
    assert sample(folder, out, code=2).stderr.startswith("out:")
    assert out.read_bytes() == before
    sample(folder, out, "--seed", 5, "--overwrite")
    assert out.read_bytes() != before


def test_unstable_time_step_is_refused_unless_forced(folder, tmp_path):
    done = sample(folder, tmp_path / "t.npz", "--time-step", 1.0, code=2)
    assert done.stderr.startswith("time_step:") and "D dt L" in done.stderr
    assert sample(folder, tmp_path / "t.npz", "--time-step", 1.0, "--force", code=1).stdout.count("lost") >= 4


def test_debug_shows_the_traceback(folder, tmp_path):
    done = subprocess.run([sys.executable, "-m", "diffmd_fast", "--debug", "train", str(tmp_path / "no.npz"), "--out",
                           str(tmp_path / "m.safetensors")], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode != 0 and "Traceback" in done.stderr
