"""What is recommended, and the numbers behind it, against a dimer and wells whose answers are known.

Seeds are fixed.  Statistical comparisons fail beyond 4.5 standard errors, 6.8e-6 each: under 1e-4 for the dozen here.
"""

import json
import math
import signal

import matplotlib.image
import numpy as np
import pytest
import torch

from diffmd_fast import InputError, Sampler, Spring, cli
from diffmd_fast.analysis import ScanInterrupted, error_budget, recommend
from diffmd_fast.analysis.budget_result import Estimate
from diffmd_fast.analysis.recommend_result import NoisePoint, StepPoint, choose_noise, choose_step
from diffmd_fast.io import Molecule, Snapshots
from diffmd_fast.models import Harmonic
from diffmd_fast.models.energy import Energy

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # of numpy, also inside matplotlib
LIMIT = 4.5
STIFFNESS, LENGTH, DIFFUSION = 1e5, 0.15, 0.003
LEVELS = (0.001, 0.002, 0.004)


class Dimer(Energy):
    """E = k/2 (r - r0)^2; blurred, 1/k grows by 2 sigma^2.  At sigma the bond is too long by ``wrong``/sigma nm^2."""

    n_atoms, noise_levels, noise_level = 2, (LEVELS[0], LEVELS[-1]), LEVELS[0]

    def __init__(self, wrong=0.0):
        super().__init__()
        self.wrong = wrong

    def stiffness(self, level):
        return 1 / (1 / STIFFNESS + 2 * level**2)

    def bond(self, level):
        return LENGTH + self.wrong / level

    def forward(self, positions, noise_level):
        r = torch.linalg.vector_norm(positions[:, 0] - positions[:, 1], dim=-1)
        return 0.5 * self.stiffness(noise_level) * (r - self.bond(noise_level)).square()


def bond_density():
    r = np.linspace(LENGTH - 0.03, LENGTH + 0.03, 60001)
    p = r**2 * np.exp(-STIFFNESS / 2 * (r - LENGTH) ** 2)
    return r, p / p.sum()


def dimers(n_frames=3000, temperature=300.0):
    """Exact held-out frames."""
    rng, (r, p) = np.random.default_rng(1), bond_density()
    axis = rng.normal(size=(n_frames, 3))
    bond = np.interp(rng.random(n_frames), np.cumsum(p), r)[:, None] * axis / np.linalg.norm(axis, axis=1)[:, None]
    molecule = Molecule.from_npz_arrays(dict(bonds=np.array([(0, 1)])), 2)
    return Snapshots(np.stack([-bond / 2, bond / 2], 1).astype(np.float32), molecule, temperature)


def score_error(model, level):
    """D/4 E |s - s*|^2 in nats/ps: two atoms, the force of each along the bond."""
    r, p = bond_density()
    return (
        DIFFUSION
        / 4
        * 2
        * (p * (STIFFNESS * (r - LENGTH) - model.stiffness(level) * (r - model.bond(level))) ** 2).sum()
    )


def scan(model, frames, **settings):
    return recommend(model, frames, **{**dict(diffusion=DIFFUSION, noise_levels=LEVELS, max_frames=3000), **settings})


def test_dimer():
    """The blurred score is exact at every level: the smallest is best, and every number has a formula."""
    model = Dimer()
    result = scan(model, dimers())
    assert result.noise_level == LEVELS[0] and [p.noise_level for p in result.noise] == list(LEVELS)
    variance = 1 / STIFFNESS
    for point in result.noise:
        exact = score_error(model, point.noise_level) - score_error(model, LEVELS[0])
        assert abs(point.excess.value - exact) <= LIMIT * point.excess.error, (point, exact)
        assert point.excess.error <= 0.08 * exact
        assert point.inflation == pytest.approx(2 * point.noise_level**2 / variance, rel=0.1)
    curvature = 2 * model.stiffness(LEVELS[0])
    assert result.curvature == pytest.approx(curvature, rel=1e-3)
    assert result.spring.time_step == pytest.approx(2 * 0.05 / 1.05 / (DIFFUSION * curvature), rel=1e-3)
    assert len(result.steps) == 6 and result.complete and "none of 64 replicas lost" in result.step_reason
    for step in result.steps:
        a = DIFFUSION * step.time_step * curvature
        inflation = 1 / (1 - a / 2) - 1
        assert step.number == pytest.approx(a, rel=1e-3) and step.predicted == pytest.approx(inflation, rel=1e-2)
        if step.predicted > 1:
            continue  # the bond is so wide there that the dimer is no longer harmonic
        assert abs(step.measured.value - inflation) < LIMIT * step.measured.error + 0.02 * inflation, step
        bonds = (1 + 2 * LEVELS[0] ** 2 / variance) * (1 + inflation) - 1
        assert abs(step.bonds.value - bonds) < LIMIT * step.bonds.error + 0.02 * (1 + bonds), (step, bonds)
        assert step.measured.error < 0.05 * (1 + inflation) and step.bonds.error < 0.1 and step.lost == 0
        spring = Spring.from_time_step(step.time_step, DIFFUSION)
        budget = error_budget(model, dimers().positions, spring, max_frames=3000, time_steps=[])
        assert abs(step.grid.value - budget.grid_bridge.value) < LIMIT * math.hypot(
            step.grid.error, budget.grid_bridge.error
        )


def test_noise_level_that_a_poor_score_asks_for():
    """A bond too long by 2e-6 nm^2/sigma: the second level is best, as quadrature says; a limit can forbid it."""
    model, frames, short = Dimer(2e-6), dimers(), dict(time_steps=[1e-5], length=4e-5, n_replicas=2)
    exact = [score_error(model, level) for level in LEVELS]
    assert min(exact) == exact[1]
    result = scan(model, frames, **short)
    assert result.noise_level == LEVELS[1] and "lowest held-out score error" in result.noise_reason
    for point, value in zip(result.noise, exact):
        assert abs(point.excess.value - (value - exact[1])) <= LIMIT * point.excess.error
    result = scan(model, frames, noise_limit=0.3, **short)
    assert result.noise_level == LEVELS[0] and "within the limit" in result.noise_reason
    result = scan(model, frames, noise_limit=0.1, **short)
    assert result.noise_level == LEVELS[0] and "smaller one would" in result.noise_reason


def test_lost_replicas():
    """A step beyond the stability limit loses them all; the one before is recommended, however lax the limit."""
    model, frames = Dimer(), dimers()
    r = np.linalg.norm(frames.positions[:, 0] - frames.positions[:, 1], axis=1)
    model.support = {"pairs": [[0, 1]], "lowest": [r.min()], "highest": [r.max()]}
    stable = 2 / (DIFFUSION * 2 * model.stiffness(LEVELS[0]))
    result = scan(model, frames, time_steps=[0.1 * stable, 1.2 * stable], length=100 * stable, limit=0.5)
    good, bad = result.steps
    assert (good.lost, bad.lost) == (0, 64) and bad.predicted == math.inf
    assert result.spring.time_step == pytest.approx(0.1 * stable) and "64 of 64 replicas lost" in result.step_reason
    assert result.as_dict()["time_steps"][1]["stiffest_mode_inflation"] is None
    result = scan(model, frames, time_steps=[1.2 * stable], length=100 * stable)
    assert result.spring is None and "none, at the smallest" in result.step_reason


def test_wells_without_noise_level_or_bonds(tmp_path):
    """Two stiffnesses and diffusions: L is the stiffest's, the measured inflation the mean weighted by D k."""
    from diffmd_fast.analysis.recommend_figure import write_recommendation

    k, d, a = np.array([4000.0, 1000.0]), (0.02, 0.05), 0.4
    frames = np.random.default_rng(2).normal(size=(500, 2, 3)) / np.sqrt(k)[:, None]
    frames = Snapshots(frames.astype(np.float32), Molecule.from_npz_arrays({}, 2))
    time_step = a / (max(d) * k.max())
    result = recommend(
        Harmonic(2, stiffness=torch.tensor(k)),
        frames,
        diffusion=d,
        time_steps=[time_step],
        limit=0.3,
        length=2000 * time_step,
    )
    (step,), (noise,) = result.steps, result.noise
    of_atoms = np.array(d) * time_step * k
    exact = np.average(1 / (1 - of_atoms / 2), weights=d * k) - 1
    assert step.number == pytest.approx(a, rel=1e-6)  # of the largest D and the largest k, which need not meet
    assert abs(step.measured.value - exact) < LIMIT * step.measured.error and step.measured.error < 0.02
    assert step.bonds is None and noise.inflation is None and noise.denoising_loss is None
    assert result.noise_level is None and result.spring.time_step == time_step
    assert matplotlib.image.imread(write_recommendation(result, tmp_path)["figure"]).shape[1] < 1000


def test_same_seed_same_result():
    options = dict(time_steps=[1e-5, 2e-5], length=4e-4, n_replicas=4, max_frames=50)
    first, second, other = (scan(Dimer(), dimers(60), seed=seed, **options) for seed in (1, 1, 2))
    assert first == second and first.steps[0].measured != other.steps[0].measured
    assert first.noise[1].excess != other.noise[1].excess


def test_ctrl_c_keeps_the_time_steps_that_were_run(monkeypatch):
    calls, run = [], Sampler.run

    def interrupted(self, *arguments, **options):
        calls.append(self.spring.time_step)
        if len(calls) == 3:
            options["reporters"] = [lambda *_: signal.raise_signal(signal.SIGINT)]
        return run(self, *arguments, **options)

    monkeypatch.setattr(Sampler, "run", interrupted)
    with pytest.raises(ScanInterrupted) as stopped:
        scan(Dimer(), dimers(60), time_steps=[1e-5, 2e-5, 3e-5, 4e-5], length=4e-4, n_replicas=4, limit=10)
    result = stopped.value.recommendation
    assert calls == [4e-5, 3e-5, 2e-5] and [s.time_step for s in result.steps] == [3e-5, 4e-5]
    assert not result.complete and result.spring is not None


def step(time_step, predicted=0.01, measured=(0.01, 0.001), lost=0):
    return StepPoint(time_step, 0.1, predicted, Estimate(*measured), None, lost, 64, None)


def test_choices():
    points = [
        step(1.0),
        step(2.0, predicted=0.05),
        step(3.0, measured=(0.06, 0.006)),
        step(4.0, measured=(0.06, 0.004)),
    ]
    assert choose_step(tuple(points), 0.05, 1.0)[0].time_step == 3.0  # 0.06 is within two standard errors of 0.05
    assert choose_step(tuple(points[:2]), 0.05, 1.0)[1].endswith("no larger one was tried")
    assert choose_step((step(1.0), step(2.0, lost=1), step(3.0)), 0.05, 1.0)[0].time_step == 1.0
    assert choose_step((), 0.05, 1.0)[0] is None
    alone = (NoisePoint(0.002, Estimate(0.0, 0.0), None, None),)
    assert choose_noise(alone, 2.0) == (alone[0], "noise level 0.002 nm: the only one that was tried")


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("model", dict(model=object())),
        ("snapshots", dict(frames=np.zeros((4, 2, 3)))),
        ("snapshots", dict(frames=dimers(1))),
        ("snapshots", dict(frames=dimers(5, temperature=350.0))),
        ("snapshots", dict(model=Harmonic(3, stiffness=1.0))),
        ("diffusion", dict(diffusion=0)),
        ("diffusion", dict(diffusion=(1.0, 1.0, 1.0))),
        ("noise_levels", dict(noise_levels=[0.001, 0.1])),
        ("noise_levels", dict(noise_levels=[])),
        ("time_steps", dict(time_steps=[1e-5, -1])),
        ("length", dict(length=0)),
        ("length", dict(length=1e-5, time_steps=[1e-5])),
        ("length", dict(length=1e-9)),
        ("limit", dict(limit=0)),
        ("noise_limit", dict(noise_limit=math.nan)),
        ("n_replicas", dict(n_replicas=1)),
        ("n_probes", dict(n_probes=0)),
        ("max_frames", dict(max_frames=1)),
        ("seed", dict(seed=-1)),
    ],
)
def test_bad_arguments(argument, change):
    change = {"model": Dimer(), "frames": dimers(5), **change}
    with pytest.raises(InputError) as error:
        scan(change.pop("model"), change.pop("frames"), **change)
    assert str(error.value).startswith(argument + ": expected") and "\n" not in str(error.value)


# ---- the command line --------------------------------------------------------------------------------


def call(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as end:
        cli.main(["recommend", *map(str, arguments), "--quiet"])
    shown = capsys.readouterr()
    assert (end.value.code or 0) == code, shown
    return shown.err if code else shown.out


def test_command_line(folder, tmp_path, capsys):
    out = call(
        capsys,
        folder / "model.safetensors",
        "--snapshots",
        folder / "frames.npz",
        "--replicas",
        8,
        "--length",
        0.02,
        "--probes",
        1,
        "--noise-levels",
        0.002,
        "--noise-levels",
        0.004,
        "--limit",
        0.1,
        "--out",
        tmp_path / "out",
    )
    result = json.loads((tmp_path / "out" / "recommend.json").read_text())
    assert [p["noise_level_nm"] for p in result["noise_levels"]] == [0.002, 0.004]
    assert result["noise_reason"] in out and result["step_reason"] in out
    assert f"--time-step {result['time_step_ps']:.4g} --noise-level {result['noise_level_nm']:g}" in out
    assert result["time_step_ps"] * 0.002 * result["curvature_per_nm2"] == pytest.approx(0.2 / 1.1, rel=1e-6)
    assert matplotlib.image.imread(tmp_path / "out" / "recommend.png").shape[1] == 1500


def test_ctrl_c_on_the_command_line(folder, tmp_path, capsys, monkeypatch):
    run, calls = Sampler.run, []

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(Sampler, "run", stopped)
    with pytest.raises(SystemExit) as end:
        cli.main(
            [
                "recommend",
                str(folder / "model.safetensors"),
                "--snapshots",
                str(folder / "frames.npz"),
                "--quiet",
                "--replicas",
                "4",
                "--length",
                "0.01",
                "--probes",
                "1",
                "--noise-levels",
                "0.002",
                "--out",
                str(tmp_path),
            ]
        )
    assert end.value.code == 130 and "stopped after 1 time step" in capsys.readouterr().out
    result = json.loads((tmp_path / "recommend.json").read_text())
    assert not result["complete"] and len(result["time_steps"]) == 1


def test_command_line_refuses(folder, tmp_path, capsys):
    model, frames = folder / "model.safetensors", folder / "frames.npz"
    right = [model, "--snapshots", frames]
    (tmp_path / "file").write_text("")
    for argument, words in (
        ("snapshots", [model]),
        ("snapshots", [model, "--snapshots", folder / "absent.npz"]),
        ("model", [frames, "--snapshots", frames]),
        ("noise_levels", [*right, "--noise-levels", 7]),
        ("time_steps", [*right, "--time-steps", 0]),
        ("diffusion", [*right, "--diffusion", "nan"]),
        ("limit", [*right, "--limit", -1]),
        ("noise_limit", [*right, "--noise-limit", 0]),
        ("replicas", [*right, "--replicas", 0]),
        ("length", [*right, "--length", -1]),
        ("probes", [*right, "--probes", 0]),
        ("max_frames", [*right, "--max-frames", 0]),
        ("seed", [*right, "--seed", -1]),
        ("out", [*right, "--out", tmp_path / "file"]),
    ):
        error = call(capsys, *words, code=2)
        assert error.startswith(argument + ": ") and error.count("\n") == 1, (argument, error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
