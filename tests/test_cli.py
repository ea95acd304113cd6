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
from diffmd_fast import InputError, cli
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
    path = tmp_path_factory.mktemp("folder with spaces")
    positions = TraPPEAlkane.butane().sample(1000, seed=2).numpy().astype(np.float32)
    np.savez(path / "snapshots.npz", positions=positions, temperature=300.0,
             bonds=np.array([(0, 1), (1, 2), (2, 3)]), bead_types=np.array(["CH3", "CH2", "CH2", "CH3"]))
    done = call("train", path / "snapshots.npz", "--steps", 200, "--features", 16, "--blocks", 1, "--batch-size", 64,
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


def test_other_integrators_and_a_schedule_are_resumed_without_naming_them(folder, tmp_path):
    """Masses and schedule come from the run; what an integrator measures is said."""
    for name, more, said in (
            ("baoab", ("--masses", "15.0,14.0,14.0,15.0", "--temperature", "0:600,40:300"), "kinetic temperature"),
            ("metropolis", (), "% of the steps")):
        whole, cut = tmp_path / f"{name}.npz", tmp_path / f"{name}_cut.npz"
        done = sample(folder, whole, "--integrator", name, *more)
        assert said in done.stdout and "configurational temperature" in done.stdout
        sample(folder, cut, "--integrator", name, *more, "--steps", 20)
        call("sample", folder / "model.safetensors", "--resume", "--steps", 60, "--quiet", "--out", cut)
        assert np.array_equal(read_snapshots(whole).positions, read_snapshots(cut).positions)


def test_resume_takes_its_options_from_the_run_and_refuses_others(folder, tmp_path):
    out = tmp_path / "traj.npz"
    sample(folder, out, "--seed", 9, "--diffusion", 0.003, "--temperature", 310)
    resume = ["sample", folder / "model.safetensors", "--resume", "--steps", 100, "--quiet", "--out", out]
    before = out.read_bytes()
    for option, other in (("seed", 8), ("diffusion", 0.002), ("temperature", 300), ("replicas", 5), ("save-every", 10),
                          ("time-step", 1e-5), ("noise-level", 0.01), ("steps", 59)):
        name = option.replace("-", "_")
        assert call(*resume, f"--{option}", other, code=2).stderr.startswith(f"{name}: expected "), option
    assert call(*resume, "--per-replica", code=2).stderr.startswith("per_replica: ")
    out.rename(tmp_path / "elsewhere.npz")
    assert call(*resume, code=2).stderr.startswith("out: ")
    (tmp_path / "elsewhere.npz").rename(out)
    assert out.read_bytes() == before
    call(*resume)
    sample(folder, tmp_path / "whole.npz", "--seed", 9, "--diffusion", 0.003, "--temperature", 310, "--steps", 100)
    assert np.array_equal(read_snapshots(out).positions, read_snapshots(tmp_path / "whole.npz").positions)


@pytest.mark.parametrize("command", ["train", "sample"])
def test_ctrl_c_says_how_to_go_on(folder, tmp_path, command):
    if command == "train":
        words = ["train", folder / "snapshots.npz", "--features", 8, "--blocks", 1, "--batch-size", 8,
                 "--out", tmp_path / "m.safetensors"]
        state = tmp_path / "m.safetensors.training"
        process = start_process(*words, "--steps", 10**6)
        ready = lambda: b"loss" in os.read(process.stderr.fileno(), 4096)  # noqa: E731
    else:
        words = ["sample", folder / "model.safetensors", "--init", folder / "snapshots.npz", "--save-every", 10,
                 "--out", tmp_path / "traj.npz"]
        state = tmp_path / "traj.npz.restart"
        process = start_process(*words, "--steps", 10**7)
        ready = lambda: state.exists() and state.stat().st_size > 20_000  # noqa: E731
    out, _ = stop_when(process, ready, signal.SIGINT)
    assert process.returncode == 130 and "stopped" in out and "--resume" in out and state.exists()
    refused = call(*words, "--steps", 10**6, "--quiet", code=2)
    assert refused.stderr.startswith("out:") and "--resume" in refused.stderr and state.exists()
    if command == "sample":
        frames = len(read_snapshots(tmp_path / "traj.npz").positions)
        call(*words, "--steps", 10 * (frames // 64), "--quiet", "--resume")
        assert len(read_snapshots(tmp_path / "traj.npz").positions) == frames + 64


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
    assert result["verdict"]["headline"] in done.stdout
    page = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/png;base64," in page and "src=\"http" not in page


def test_report_of_one_file_a_replica_and_of_lost_replicas(folder, tmp_path):
    sample(folder, tmp_path / "each.xtc", "--per-replica")
    assert len(list(tmp_path.glob("each_r000?.xtc"))) == 4 and not (tmp_path / "each.xtc").exists()
    (tmp_path / "each.xtc.restart").unlink()
    assert "each_r0000.xtc" in sample(folder, tmp_path / "each.xtc", "--per-replica", code=2).stderr
    sample(folder, tmp_path / "lost.dcd", "--temperature", 1e5, "--save-every", 1, code=1)
    for name, lost in (("each.xtc", 0), ("lost.dcd", 4)):
        call("report", tmp_path / name, "--reference", folder / "snapshots.npz", "--out", tmp_path / "report",
             "--quiet", "--bins", 16)
        result = json.loads((tmp_path / "report" / "report.json").read_text())
        assert result["replicas_lost"] == lost and result["n_replicas"] == 4


def test_all_atom_snapshots_serve_a_heavy_atom_model(folder, tmp_path):
    """Atoms are found by name, in any order; from NPZ, XTC with a topology, and PDB, which brings its own."""
    heavy = np.load(folder / "snapshots.npz")["positions"][:40]
    hydrogen = heavy[:, :1] + 0.109 * np.array([0.0, 0.0, 1.0], np.float32)
    positions = np.concatenate([hydrogen, heavy], 1)
    np.savez(tmp_path / "all.npz", positions=positions, atom_names=np.array(["H1", "C1", "C2", "C3", "C4"]),
             atomic_numbers=np.array([1, 6, 6, 6, 6]), temperature=300.0,
             bonds=np.array([(0, 1), (1, 2), (2, 3), (3, 4)]))
    molecule = read_snapshots(tmp_path / "all.npz").molecule
    whole = mdtraj.Trajectory(positions, molecule.to_mdtraj())
    whole.save_xtc(str(tmp_path / "frames.xtc"))
    whole.save_pdb(str(tmp_path / "all.pdb"))
    small = ["--steps", 3, "--features", 8, "--blocks", 1, "--batch-size", 8, "--temperature", 300, "--quiet"]
    done = call("train", tmp_path / "frames.xtc", "--topology", tmp_path / "all.pdb", "--atoms", "heavy", *small,
                "--out", tmp_path / "m.safetensors")
    assert "40 snapshots of 4 atoms, 3 bonds" in done.stdout
    run = ["sample", tmp_path / "m.safetensors", "--replicas", 2, "--steps", 2, "--save-every", 1, "--quiet"]
    for k, start in enumerate((["all.npz"], ["all.pdb"], ["frames.xtc", "--topology", tmp_path / "all.pdb"])):
        call(*run, "--init", tmp_path / start[0], *start[1:], "--out", tmp_path / f"traj{k}.npz")
        first = read_snapshots(tmp_path / f"traj{k}.npz").positions[0]
        np.testing.assert_allclose(np.diff(first, axis=0), np.diff(read_snapshots(
            tmp_path / "traj0.npz").positions[0], axis=0), atol=0.002)
    for start, name in ((tmp_path / "frames.xtc", "topology:"), (folder / "snapshots.npz", "init:")):
        assert call(*run, "--init", start, "--out", tmp_path / "t.npz", code=2).stderr.startswith(name)


def test_consistency(folder, tmp_path):
    """All from the command line; a model trained for a second need not agree with anything."""
    done = call("consistency", folder / "model.safetensors", "--snapshots", folder / "snapshots.npz", "--replicas", 16,
                "--steps", 200, "--save-every", 10, "--generated", 40, "--bins", 24, "--quiet",
                "--out", tmp_path / "out")
    assert "generated / simulated" in done.stdout and "C1–C2" in done.stdout
    result = json.loads((tmp_path / "out" / "consistency.json").read_text())
    assert result["frames"] == {"generated": 40, "simulated": 16 * 19, "snapshots": 1000}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "consistency.json", "consistency.png", "consistency.txt"]


def test_info_and_help():
    assert "backend    native     available" in call("info").stdout
    assert json.loads(call("info", "--json").stdout)["versions"]["diffmd_fast"] == diffmd_fast.__version__
    for command in ("train", "recommend", "sample", "report", "budget", "consistency"):
        text = call(command, "--help").stdout
        assert "Example:" in text and f"diffmd-fast {command}" in text
    assert "Example:" in call("--help").stdout


@pytest.fixture(scope="module")
def bad(folder, tmp_path_factory):
    """A folder of files with one thing wrong each; ``o.pdb`` and ``whole.xtc`` are good."""
    path = tmp_path_factory.mktemp("bad files")
    frames, model = folder / "snapshots.npz", folder / "model.safetensors"
    arrays = dict(np.load(frames))
    x = arrays["positions"]
    nan = x[:40].copy()
    nan[2, 1, 0] = np.nan
    changes = {"nan": {"positions": nan}, "flat": {"positions": x[:, :, 0]}, "short": {"positions": x[:0]},
               "heap": {"positions": np.zeros((20, 4, 3), np.float32)}, "novalid": {"valid_positions": x[:0]},
               "element": {"atomic_numbers": np.full(4, 500)}, "bond": {"bonds": np.array([(0, 9)])}}
    for name, change in changes.items():
        np.savez(path / f"{name}.npz", **{**arrays, **change})
    np.savez(path / "three.npz", positions=x[:, :3])
    np.savez(path / "hist.npz", probability=np.full((4, 4), 1 / 16))  # of two dihedrals
    run = mdtraj.Trajectory(x[:20], read_snapshots(frames).molecule.to_mdtraj())
    run.save(str(path / "o.pdb"))
    run.save(str(path / "whole.xtc"))
    for source, missing in ((frames, 3000), (path / "whole.xtc", 3), (model, 5)):
        (path / f"cut{source.suffix}").write_bytes(source.read_bytes()[:-missing])
    (path / "state.safetensors.training").write_bytes(b"not a state")
    (path / "lost.xtc.restart").write_bytes(b"not a restart file")
    return path


def options(command, *wrong):
    """(name, words) for each (option, values...) put behind a command that is right without it."""
    return [(option.replace("-", "_"), [*command, f"--{option}", *values]) for option, *values in wrong]


def bad_training(frames, model, bad):
    new = ["--steps", 3, "--out", bad / "m.safetensors"]
    right = ["train", frames, *new]
    unusable = ["absent.npz", "flat.npz", "short.npz", "heap.npz", "novalid.npz", "cut.npz", "nan.npz", "element.npz",
                "bond.npz", "o.mp4", "."]
    outs = [bad / "m.npz", frames, bad, bad / "no" / "m.safetensors", "/proc/m.safetensors", model,
            bad / "state.safetensors", bad / f"{300 * 'a'}.safetensors"]
    return [
        *(("snapshots", ["train", bad / name, *new]) for name in unusable),
        ("snapshots", ["train", bad / "cut.xtc", "--topology", bad / "o.pdb", *new]),
        ("snapshots", [*right, "--atoms", "index 0"]),
        ("temperature", ["train", bad / "three.npz", *new]),
        ("topology", ["train", bad / "whole.xtc", *new]),
        ("topology", ["train", bad / "three.npz", "--topology", bad / "o.pdb", *new]),
        *(("out", ["train", frames, "--steps", 3, "--out", out]) for out in outs),
        ("resume", [*right, "--resume"]),
        ("resume", ["train", frames, "--steps", 3, "--out", bad / "state.safetensors", "--resume"]),
        *options(right, ("atoms", "name Q"), ("atoms", ""), ("topology", bad / "no.pdb"), ("topology", model),
                 ("learning-rate", 0), ("learning-rate", "inf"), ("contrast", -1), ("contrast", "nan"),
                 ("temperature", -300), ("minutes", -1),
                 ("minutes", "nan"), ("noise-levels", 0, 0.5), ("noise-levels", 0.5, 0.1), ("cutoff", -1),
                 ("features", 0), ("features", 10**6), ("blocks", 0), ("blocks", 10**6), ("batch-size", -1),
                 ("batch-size", 10**9), ("seed", -1), ("seed", 2**32), ("steps", 0), ("steps", 10**20),
                 ("steps", "1e3")),
    ]


def bad_sampling(frames, model, bad):
    new = ["--steps", 10, "--out", bad / "o.xtc"]
    right = ["sample", model, "--init", frames, *new]
    outs = [bad / "o.mp4", bad / "lost.xtc", bad / "no" / "o.xtc", "/proc/o.xtc", bad, frames]
    return [
        *(("model", ["sample", path, "--init", frames, *new]) for path in (bad / "cut.safetensors", bad, frames)),
        *(("init", ["sample", model, "--init", bad / name, *new]) for name in ("nan.npz", "three.npz", "heap.npz")),
        ("init", ["sample", model, *new]),
        ("init", [*right, "--from-noise"]),
        *(("out", ["sample", model, "--init", frames, "--steps", 10, "--out", out]) for out in outs),
        ("resume", ["sample", model, "--resume", *new]),
        ("resume", ["sample", model, "--resume", "--steps", 10, "--out", bad / "lost.xtc"]),
        ("time_step", [*right, "--time-step", 1e-3, "--stiffness", 5]),
        *options(right, ("time-step", -1), ("time-step", "nan"), ("time-step", 1e300), ("time-step", 1e-320),
                 ("stiffness", 0), ("stiffness", 1e-300), ("diffusion", 0), ("diffusion", "nan"), ("temperature", 0),
                 ("noise-level", 0), ("noise-level", 5), ("replicas", 0), ("replicas", 10**12), ("seed", -1),
                 ("seed", 2**64), ("batch-size", 0), ("batch-size", 10**30), ("save-every", 0), ("save-every", 10**30),
                 ("steps", 0), ("steps", 10**30), ("integrator", "verlet"), ("temperature", "hot"),
                 ("temperature", "0:300,0:400"), ("temperature", "1:2:3"), ("temperature", "300,400"),
                 ("masses", "12")),
        *(("masses", [*right, "--integrator", "baoab", *masses])
          for masses in (("--masses", "-1"), ("--masses", "1,2"), ("--masses", "light"))),
        ("--stepz", ["sample", model, "--stepz", 3]),
        ("model", ["sample"]),
    ]


def bad_reports(frames, model, bad):
    right = ["report", frames, "--reference", frames, "--out", bad / "r"]
    return [
        *(("trajectory", ["report", bad / name, "--reference", frames, "--out", bad / "r"])
          for name in ("no.xtc", "cut.npz", "heap.npz")),
        *(("reference", ["report", frames, "--reference", bad / name, "--out", bad / "r"])
          for name in ("three.npz", "nan.npz", "heap.npz")),
        *options(right, ("bins", 1), ("bins", 10**9), ("seed", -1), ("dihedrals", "chi9"), ("dihedrals", "0-1-2-9"),
                 ("atoms", "name Q"), ("topology", bad / "no.pdb"), ("reference-topology", bad / "no.pdb"),
                 ("model", bad / "no.safetensors"), ("model", bad / "cut.safetensors")),
        *(("out", ["report", frames, "--reference", frames, "--out", out]) for out in (frames, "/proc/r")),
        ("threads", ["--threads", 0, *right]),
        ("backend", ["--backend", "abacus", *right]),
        ("backend", ["--backend", "cuda", *right]),
        ("command", ["simulate"]),
    ]


def bad_consistencies(frames, model, bad):
    right = ["consistency", model, "--snapshots", frames, "--out", bad / "r"]
    return [
        *options(right, ("bins", 1), ("bins", 10**9), ("seed", -1), ("seed", 2**64), ("dihedrals", "chi9"),
                 ("replicas", 0), ("replicas", 10**12), ("steps", 0), ("steps", 10**30), ("generated", 0),
                 ("generated", 10**12), ("save-every", 0), ("save-every", 10**6), ("time-step", -1),
                 ("diffusion", 0), ("integrator", "verlet"), ("topology", bad / "no.pdb"),
                 ("reference", bad / "no.npz"), ("reference", bad / "cut.npz"), ("reference", frames),
                 ("reference", bad / "hist.npz")),
        *(("snapshots", [*right[:2], "--snapshots", bad / name, "--out", bad / "r"])
          for name in ("no.xtc", "three.npz", "nan.npz")),
        ("model", ["consistency", bad / "cut.safetensors", "--snapshots", frames, "--out", bad / "r"]),
        *(("out", [*right[:4], "--out", out]) for out in (frames, "/proc/r")),
    ]


@pytest.mark.parametrize("table", [bad_training, bad_sampling, bad_reports, bad_consistencies])
def test_bad_input_is_one_line_that_names_the_argument(folder, bad, table):
    """Exit code 2, one line on stderr that begins with the argument's name, and not a file made or changed."""
    def everything():
        return {path: path.read_bytes() for place in (folder, bad) for path in place.iterdir()}

    before = everything()
    for name, words in table(folder / "snapshots.npz", folder / "model.safetensors", bad):
        done = call(*words, code=2)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith(name + ": "), (name, words, done.stderr)
    assert everything() == before


def test_existing_output_is_not_replaced_unasked(folder, tmp_path):
    out = tmp_path / "traj.xtc"
    sample(folder, out)
    before = out.read_bytes()
    assert sample(folder, out, code=2).stderr.startswith("out:")
    assert out.read_bytes() == before
    assert sample(folder, tmp_path / "traj.dcd", code=2).stderr.startswith("out:")  # would share traj.json
    out.unlink()
    assert "traj.xtc.restart" in sample(folder, out, code=2).stderr
    sample(folder, out, "--seed", 5, "--overwrite")
    assert out.read_bytes() != before
    model = (folder / "model.safetensors").read_bytes()
    done = call("train", folder / "snapshots.npz", "--steps", 1, "--out", folder / "model.safetensors", code=2)
    assert done.stderr.startswith("out:") and (folder / "model.safetensors").read_bytes() == model


def test_what_nobody_foresaw_is_one_line_too(folder, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto allocate 9 bytes")

    monkeypatch.setattr(diffmd_fast.Sampler, "run", fail)
    assert sample(folder, tmp_path / "t.npz", code=1).stderr.startswith("memory: ")
    monkeypatch.setattr(diffmd_fast.Sampler, "run", lambda *arguments, **options: 1 / 0)
    done = sample(folder, tmp_path / "t.npz", code=1)
    assert "ZeroDivisionError" in done.stderr and done.stderr.count("\n") == 1 and "--debug" in done.stderr


def test_unstable_time_step_is_refused_unless_forced(folder, tmp_path):
    done = sample(folder, tmp_path / "t.npz", "--time-step", 1.0, code=2)
    assert done.stderr.startswith("time_step:") and "D dt L" in done.stderr
    assert sample(folder, tmp_path / "t.npz", "--time-step", 1.0, "--force", code=1).stdout.count("lost") >= 4


def test_debug_shows_the_traceback(tmp_path):
    words = ["train", str(tmp_path / "no.npz"), "--out", str(tmp_path / "m.safetensors")]
    for arguments in (["--debug", *words], [*words, "--debug"]):
        with pytest.raises(InputError, match="^snapshots:"):
            cli.main(arguments)


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "diffmd_fast", "info", "--jason"], capture_output=True, text=True,
                          env=ENVIRONMENT)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("--jason: ")
