"""The error budget against closed forms: harmonic wells, coupled atoms, a shifted model, a double well.

Seeds are fixed and frames independent.  Every statistical comparison is of a mean with its own standard error and
fails beyond 4.5 of them: 6.8e-6 a comparison, so under 1e-4 for the dozen made here if the seed were changed.
"""

import copy
import json
import math

import matplotlib.image
import numpy as np
import pytest
import torch

from diffmd_fast import InputError, Spring, cli, sampling, use_backend
from diffmd_fast.analysis import error_budget
from diffmd_fast.analysis.budget_result import Estimate, total_variation, wanted_time_step
from diffmd_fast.models import DoubleWell, Harmonic, TraPPEAlkane
from diffmd_fast.models.energy import Energy
from diffmd_fast.sampling.spring import MOLAR_GAS_CONSTANT

from .butane import small_model

LIMIT = 4.5
GENERATOR = 20251117
ALL = dict(max_frames=20_000, time_steps=[])  # every frame, at the time step of the run only


def normals(*shape, seed=GENERATOR):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(estimate, exact, relative=0.03):
    """Within 3% and within LIMIT standard errors."""
    assert abs(estimate.value / exact - 1) < relative, (estimate, exact)
    assert abs(estimate.value - exact) < LIMIT * estimate.error + 1e-6 * exact, (estimate, exact)


def stationary(stiffness, spring, multiplier=1.0, n_frames=12_000):
    """Frames [frames, atoms, 3] from the stationary Gaussian of the Euler-Maruyama chain, with its a = D dt k."""
    a = torch.as_tensor(spring.diffusion_time, dtype=torch.float64) * torch.as_tensor(stiffness)
    variance = multiplier / (torch.as_tensor(stiffness) * (1 - a / 2))
    n_atoms = max(a.numel(), 1)
    return normals(n_frames, n_atoms, 3) * variance.sqrt().reshape(-1, 1), a


def well_rate(stiffness, diffusion, time_step, a):
    """Of one coordinate: D/(4 v) mean_t E|k (x_n - x_t)|^2 with x_t - x_n = -D t k x_n + sqrt(2 D t v) xi and the
    stationary E x_n^2 = v/(k (1 - a/2)).  The mean over t in (0, dt) gives D^2 k^2 dt/4 (1 + a/(3 (1 - a/2)))."""
    return diffusion**2 * stiffness**2 * time_step / 4 * (1 + a / (3 * (1 - a / 2)))


@pytest.mark.parametrize("multiplier", [1.0, 2.0])
@pytest.mark.parametrize("a", [0.02, 0.8])
def test_harmonic_well(a, multiplier):
    """Both estimators; at leading order and at the stationary variance of any T the temperature drops out."""
    k, d = 400.0, 0.5
    spring = Spring.from_time_step(a / (k * d), d)
    frames, _ = stationary(k, spring, multiplier)
    budget = error_budget(Harmonic(1, stiffness=k), frames, spring, temperature=300 * multiplier, **ALL)
    assert budget.grid_hutchinson.value == pytest.approx(3 * d**2 * k**2 * spring.time_step / 4, rel=1e-6)
    close(budget.grid_bridge, 3 * well_rate(k, d, spring.time_step, a))
    assert budget.curvature == pytest.approx(k, rel=1e-6) and budget.reliable
    assert budget.stability_limit == pytest.approx(2 / (d * k), rel=1e-6)
    assert budget.dominant == "unknown" and budget.model_part is None and budget.total == budget.grid_bridge


def test_diffusion_and_stiffness_of_each_atom():
    k, d = torch.tensor([100.0, 400.0, 900.0], dtype=torch.float64), (0.9, 0.3, 0.1)
    spring = Spring.from_time_step(0.002, d)
    frames, a = stationary(k, spring)
    budget = error_budget(Harmonic(3, stiffness=k), frames, spring, **ALL)
    exact = [3 * well_rate(*numbers) for numbers in zip(k.tolist(), d, 3 * [0.002], a.tolist())]
    assert budget.grid_hutchinson.value == pytest.approx(
        sum(3 * (kk * dd) ** 2 * 0.002 / 4 for kk, dd in zip(k.tolist(), d)), rel=1e-6
    )
    close(budget.grid_bridge, sum(exact))


class Pair(Energy):
    """Two atoms on a spring: J = -k [[1, -1], [-1, 1]]."""

    n_atoms, k = 2, 300.0

    def forward(self, positions, noise_level=None):
        return 0.5 * self.k * (positions[:, 0] - positions[:, 1]).square().sum(-1)


def test_coupled_atoms_of_different_diffusion():
    """dt/4 sum_ab D_a |J_ab|^2 D_b = 3 k^2 dt/4 (D_1 + D_2)^2; the bridge adds a/3 k E r^2, a = (D_1 + D_2) k dt."""
    d, dt, k = (0.7, 0.2), 1e-3, Pair.k
    a = sum(d) * k * dt
    variance = 2 / (k * (2 - a))  # of each component of r, stationary: v/(k (1 - a/2))
    frames = torch.zeros(12_000, 2, 3, dtype=torch.float64)
    frames[:, 0] = variance**0.5 * normals(12_000, 3)
    budget = error_budget(Pair(), frames, Spring.from_time_step(dt, d), **ALL)
    leading = 3 * k**2 * dt / 4 * sum(d) ** 2
    close(budget.grid_hutchinson, leading)
    close(budget.grid_bridge, leading * (1 + a / 3 * k * variance))


@pytest.mark.parametrize("given", ["exact", "forces"])
def test_model_part_of_a_shifted_well(given):
    """s - s* = k shift everywhere: D k^2 |shift|^2/(4 v), without any statistical error."""
    k, shift, multiplier = 400.0, torch.tensor([[0.01, -0.02, 0.03], [0.0, 0.0, 0.02]], dtype=torch.float64), 1.5
    spring = Spring.from_time_step(2e-4, (0.5, 0.2))
    frames, a = stationary(torch.tensor([k, k]), spring, multiplier)
    # The exact model has another T0: its score is F/kT of that, and half as steep for the same force.
    truth = Harmonic(2, stiffness=k / 2, centre=-shift, temperature=600.0)
    if given == "forces":
        truth = truth.score(frames) * MOLAR_GAS_CONSTANT * 600
    budget = error_budget(
        Harmonic(2, stiffness=k), frames, spring, temperature=300 * multiplier, **{given: truth}, **ALL, length=2.0
    )
    exact = k**2 / (4 * multiplier) * (0.5 * shift[0].square().sum() + 0.2 * shift[1].square().sum()).item()
    assert budget.model_part.value == pytest.approx(exact, rel=1e-9) and budget.model_part.error < 1e-9 * exact
    assert budget.total.value == pytest.approx(budget.grid_bridge.value + exact)
    assert budget.total.error == pytest.approx(budget.grid_bridge.error)
    assert budget.dominant == ("grid" if budget.grid_bridge.value > exact else "model")
    if given == "exact":  # a constant error is uncorrelated with the motion: no cross term
        grid = sum(3 * well_rate(k, d, 2e-4, each) for d, each in zip((0.5, 0.2), a.tolist()))
        close(budget.total_direct, grid + exact)
    else:
        assert budget.total_direct is None
    assert budget.divergence().value == pytest.approx(2 * budget.rate.value)
    assert budget.total_variation() == min(1, math.sqrt(budget.rate.value))
    assert "model part" in budget.summary and "nats/ps" in str(budget) and budget.dominant in budget.summary


def test_a_perfect_model_has_no_model_part():
    frames, _ = stationary(100.0, Spring.from_time_step(1e-4, 1.0), n_frames=50)
    well = Harmonic(1, stiffness=100.0)
    budget = error_budget(well, frames, Spring.from_time_step(1e-4, 1.0), exact=well, time_steps=[])
    assert budget.model_part == Estimate(0.0, 0.0)
    assert budget.total_direct.value == pytest.approx(budget.grid_bridge.value, rel=0.02)  # other signs of noise


def double_well_frames(well, n_frames=4000):
    grid = torch.linspace(-0.3, 0.3, 20001, dtype=torch.float64)
    cumulative = torch.cumsum(well.marginal(grid), 0)
    uniform = torch.rand(n_frames, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    frames = normals(n_frames, 1, 3) / math.sqrt(well.stiffness)
    frames[:, 0, 0] = grid[torch.searchsorted(cumulative / cumulative[-1], uniform)]
    return frames, grid


def test_double_well():
    """Finite differences against second derivatives; the mean against quadrature; both estimators as dt -> 0."""
    well, d = DoubleWell(), 0.3
    frames, grid = double_well_frames(well)
    small = 1e-3 / (d * well.well_stiffness)
    steps = [small, 2 * small, 4 * small, 1000 * small]
    budget = error_budget(well, frames, Spring.from_time_step(small, d), time_steps=steps, max_frames=4000)

    def squares(x):
        second = well.barrier / well.half_distance**2 * (12 * (x / well.half_distance) ** 2 - 4)
        return d**2 / 4 * (second**2 + 2 * well.stiffness**2)

    assert budget.slope.value == pytest.approx(squares(frames[:, 0, 0]).mean().item(), rel=1e-6)
    weights = well.marginal(grid) / well.marginal(grid).sum()
    close(budget.slope, (weights * squares(grid)).sum().item(), relative=0.1)
    first, second, third, large = budget.curve
    combined = math.hypot(first.bridge.error, first.hutchinson.error)
    assert abs(first.bridge.value - first.hutchinson.value) < LIMIT * combined + 0.01 * first.bridge.value
    assert second.bridge.value / first.bridge.value == pytest.approx(2, rel=0.01)
    assert third.bridge.value / first.bridge.value == pytest.approx(4, rel=0.02)
    assert large.bridge.value / large.hutchinson.value > 1.1  # D dt L of order 1: the leading order is not enough


def test_time_step_for_a_wanted_error():
    """There and back: at the step it names, the wanted error is measured, cross term included."""
    well, d = DoubleWell(), 0.3
    frames, _ = double_well_frames(well, 1000)
    spring = Spring.from_time_step(1e-5, d)
    steeper = DoubleWell(barrier=5.0)
    budget = error_budget(well, frames, spring, exact=steeper, length=4.0, wanted=1.0)
    assert budget.time_step_for(0.25) is None and budget.spring_for(0.25) is None and budget.wanted == 0.25
    assert "no time step meets it" in budget.advice and budget.dominant == "model"
    wanted = 1.5 * budget.model_part.value
    found = budget.spring_for(wanted)
    again = error_budget(well, frames, found, exact=steeper, wanted=wanted)
    assert abs(again.total_direct.value - wanted) < LIMIT * again.total_direct.error + 0.02 * wanted
    assert again.time_step_for(wanted).value == pytest.approx(found.time_step, rel=0.1)
    assert again.spring_for(wanted).stiffness == pytest.approx(1 / (2 * d * again.time_step_for(wanted).value))
    assert found.time_step < again.stability_limit and again.growth.value > 1.1 * again.slope.value
    assert again.dominant == "model" and f"{again.spring_for(wanted)}" in again.advice
    unknown = error_budget(well, frames, spring, wanted=0.5)
    assert unknown.time_step_for(0.5).value == pytest.approx(0.5 / unknown.slope.value)
    (point,) = [p for p in unknown.curve if p.time_step == pytest.approx(unknown.time_step_for(0.5).value)]
    assert f"{point.bridge}" in unknown.advice and "taken as 0" in unknown.advice
    assert "beyond the stability limit" in error_budget(well, frames, spring, wanted=1e9).advice


def test_float64_copy_of_a_network():
    """The estimate for a SchNet in float32 against its full Jacobian, by autograd of the reference in float64."""
    butane, spring = TraPPEAlkane.butane(), Spring.from_time_step(1e-4, (0.004, 0.002, 0.002, 0.004))
    frames = butane.sample(6, seed=3).float()
    model = small_model(frames, n_blocks=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    budget = error_budget(model, frames, spring, n_probes=500, noise_level=0.01, time_steps=[])
    assert next(model.parameters()).dtype == torch.float32  # the caller's own is left as it was
    precise, d = copy.deepcopy(model).double(), torch.tensor(spring.diffusion, dtype=torch.float64)
    exact = 0.0
    with use_backend("reference"):
        for frame in frames.double():
            jacobian = torch.autograd.functional.jacobian(lambda x: precise.score(x[None], 0.01)[0], frame)
            exact += (d[:, None, None, None] * jacobian.square() * d[:, None]).sum().item() / 4 / len(frames)
    # One probe of a 12-dimensional J has a relative scatter of at most sqrt(2): 500 x 6 of them 2.6%, with 4.5 of it.
    assert budget.slope.value == pytest.approx(exact, rel=4.5 * math.sqrt(2 / 3000))


def log_ratio_of_butane(butane, frames, spring, n_steps, fine, generator):
    """Of each replica's path: log density under its own law (score held during a step) minus that under the law whose
    score is renewed ``fine`` times in a step.  Its mean is the KL divergence of the two, by definition."""
    small = spring.diffusion * spring.time_step / fine  # D h
    x, ratio = frames.clone(), torch.zeros(len(frames), dtype=torch.float64)
    for _ in range(n_steps):
        held = butane.score(x)
        for part in range(fine):
            score = butane.score(x) if part else held
            noise = (2 * small) ** 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
            other = noise + small * (held - score)  # x' minus the mean under the other law
            ratio += (other.square() - noise.square()).sum((1, 2)) / (4 * small)
            x = x + small * held + noise
    return ratio.numpy(), x


def test_predicts_the_measured_drop_of_the_error_on_butane():
    """Exact TraPPE forces; D dt L = 0.4, 0.2, 0.1.  The finer law, itself a grid of dt/8, has 1 - 1/8 of the KL."""
    butane, d, fine, generator = TraPPEAlkane.butane(), 0.01, 8, torch.Generator().manual_seed(GENERATOR)
    largest = error_budget(butane, butane.sample(16, 1), Spring.from_time_step(1e-6, d), time_steps=[]).curvature
    frames, measured, predicted = butane.sample(3000, seed=4), [], []
    for number, n_steps in ((0.4, 12), (0.2, 48), (0.1, 192)):
        spring = Spring.from_time_step(number / (d * largest), d)
        frames = log_ratio_of_butane(butane, frames, spring, 20, 1, generator)[1]  # to this step's own density
        ratio, frames = log_ratio_of_butane(butane, frames, spring, n_steps, fine, generator)
        length = n_steps * spring.time_step * (1 - 1 / fine)
        measured.append(Estimate(ratio.mean() / length, ratio.std() / math.sqrt(len(ratio)) / length))
        budget = error_budget(butane, frames, spring, n_probes=2, max_frames=3000, time_steps=[])
        predicted.append(budget.grid_bridge)
        assert abs(measured[-1].value - predicted[-1].value) < LIMIT * math.hypot(
            measured[-1].error, predicted[-1].error
        ), (measured, predicted)
        assert measured[-1].error < 0.04 * measured[-1].value
    for rates in (measured, predicted):
        for coarse, finer in zip(rates, rates[1:]):  # linear in the step, and a little more where it is large
            relative = math.hypot(coarse.error / coarse.value, finer.error / finer.value)
            assert 2 * (1 - LIMIT * relative) < coarse.value / finer.value < 2.3 * (1 + LIMIT * relative)


def test_small_functions():
    assert total_variation(0.02) == pytest.approx(0.1) and total_variation(50.0) == 1.0
    assert wanted_time_step(Estimate(10.0, 1.0), Estimate(1.0, 0.0), 2.0) == Estimate(0.1, pytest.approx(0.01))
    assert wanted_time_step(Estimate(0.0, 0.0), None, 2.0).value == math.inf


def test_errors_know_of_correlated_frames():
    """Ten copies of each frame say nothing new, and one run cut into replicas is still one run."""
    well, spring = DoubleWell(), Spring.from_time_step(1e-5, 0.3)
    frames, _ = double_well_frames(well, 1600)
    once = error_budget(well, frames, spring, time_steps=[])
    copies = frames.repeat_interleave(10, 0)
    options = dict(time_steps=[], max_frames=16_000, n_probes=1)
    for replica, kind in ((None, "blocks"), (np.arange(16_000) // 400, "replicas")):
        budget = error_budget(well, copies, spring, replica=replica, **options)
        assert budget.slope.value == pytest.approx(once.slope.value, rel=1e-6)
        # 40 units know their scatter to a factor of exp(4.5/sqrt(78)) = 1.7; forgetting the copies is one of 3.2.
        assert 1 / 1.8 < budget.slope.error / once.slope.error < 1.8 and kind in budget.units
    assert not error_budget(well, frames[:3], spring, time_steps=[]).reliable


def test_frames_are_spread_and_float32_serves():
    spring = Spring.from_time_step(1e-4, 0.5)
    frames, _ = stationary(400.0, spring, n_frames=1000)
    budget = error_budget(Harmonic(1, stiffness=400.0), frames.float().numpy(), spring, max_frames=300)
    assert budget.n_frames == 250  # every fourth
    exact = [0.75 * 0.5**2 * 400**2 * step for step in (p.time_step for p in budget.curve)]
    np.testing.assert_allclose([p.hutchinson.value for p in budget.curve], exact, rtol=1e-6)
    assert len(budget.curve) == 9 and budget.curve[4].time_step == spring.time_step


GOOD = dict(model=Harmonic(2, stiffness=100.0), positions=torch.zeros(4, 2, 3), spring=Spring.from_time_step(1e-3, 1.0))


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("model", dict(model=object())),
        ("spring", dict(spring=1e-3)),
        ("diffusion", dict(spring=Spring.from_time_step(1e-3, (1.0, 1.0, 1.0)))),
        ("positions", dict(positions=torch.zeros(4, 3, 3))),
        ("positions", dict(positions=torch.zeros(1, 2, 3))),
        ("positions", dict(positions=torch.full((4, 2, 3), math.nan))),
        ("positions", dict(replica=[0, 0, 1])),
        ("temperature", dict(temperature=0)),
        ("noise_level", dict(noise_level=-0.1)),
        ("forces", dict(forces=torch.zeros(4, 3, 3))),
        ("forces", dict(forces=torch.full((4, 2, 3), math.inf))),
        ("forces", dict(forces="strong")),
        ("forces", dict(forces=torch.zeros(4, 2, 3), exact=Harmonic(2, stiffness=1.0))),
        ("exact", dict(exact=3.0)),
        ("exact", dict(exact=Harmonic(3, stiffness=1.0))),
        ("length", dict(length=0)),
        ("wanted", dict(wanted=-1)),
        ("time_steps", dict(time_steps=[1e-3, 0])),
        ("n_probes", dict(n_probes=0)),
        ("max_frames", dict(max_frames=1)),
        ("batch_size", dict(batch_size=0)),
        ("seed", dict(seed=-1)),
    ],
)
def test_bad_arguments(argument, change):
    with pytest.raises(InputError) as error:
        error_budget(**{**GOOD, **change})
    assert str(error.value).startswith(argument + ": expected") and "\n" not in str(error.value)


# ---- the command line --------------------------------------------------------------------------------


def call(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as end:
        cli.main(["budget", *map(str, arguments), "--quiet"])
    shown = capsys.readouterr()
    assert (end.value.code or 0) == code, shown
    return shown.err if code else shown.out


def test_command_line(folder, tmp_path, capsys):
    words = [folder / "model.safetensors", "--frames", folder / "frames.npz", "--diffusion", 0.002, "--probes", 1]
    out = call(
        capsys,
        *words,
        "--forces",
        folder / "forces.npz",
        "--time-step",
        2e-4,
        "--length",
        0.5,
        "--wanted",
        1e4,
        "--out",
        tmp_path / "a",
    )
    result = json.loads((tmp_path / "a" / "budget.json").read_text())
    assert f"{result['grid_bridge_nats_per_ps']['value']:.4g}" in out and "total variation" in out
    assert result["time_step_ps"] == 2e-4 and result["wanted_nats_per_ps"] == 2e4 and "wanted" in out
    assert result["model_part_nats_per_ps"]["value"] > 0 and result["n_frames"] == 120
    assert matplotlib.image.imread(tmp_path / "a" / "budget.png").shape[0] > 300
    stiffness = 1 / (2 * 0.002 * 2e-4)
    call(capsys, *words, "--exact", "butane", "--stiffness", stiffness, "--out", tmp_path / "b")
    same = json.loads((tmp_path / "b" / "budget.json").read_text())
    assert same["time_step_ps"] == pytest.approx(2e-4) and same["total_direct_nats_per_ps"]["value"] > 0
    for name in ("grid_hutchinson_nats_per_ps", "model_part_nats_per_ps"):
        assert same[name]["value"] == pytest.approx(result[name]["value"], rel=1e-4)  # forces of float32 frames


def test_command_line_takes_the_settings_of_the_run(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(
            [
                "sample",
                str(folder / "model.safetensors"),
                "--init",
                str(folder / "frames.npz"),
                "--replicas",
                "8",
                "--steps",
                "20",
                "--save-every",
                "10",
                "--time-step",
                "0.0001",
                "--diffusion",
                "0.003",
                "--temperature",
                "310",
                "--quiet",
                "--out",
                str(tmp_path / "run.npz"),
            ]
        )
    call(capsys, folder / "model.safetensors", "--frames", tmp_path / "run.npz", "--out", tmp_path / "of run")
    result = json.loads((tmp_path / "of run" / "budget.json").read_text())
    assert (result["time_step_ps"], result["diffusion_nm2_per_ps"], result["temperature_K"]) == (1e-4, 0.003, 310.0)
    assert result["model_part_nats_per_ps"] is None and result["units"].startswith("8 replicas")


def test_command_line_refuses(folder, tmp_path, capsys, monkeypatch):
    """With one line, and before anything is computed: the default time step is the first thing that would be."""
    monkeypatch.setattr(sampling, "choose_spring", None)
    model, frames = folder / "model.safetensors", folder / "frames.npz"
    right = [model, "--frames", frames]
    (tmp_path / "file").write_text("")
    for argument, words in (
        ("model", [frames, "--frames", frames]),
        ("frames", [model, "--frames", folder / "absent.npz"]),
        ("time_step", [*right, "--time-step", 1e-3, "--stiffness", 5]),
        ("time_step", [*right, "--time-step", -1]),
        ("forces", [*right, "--forces", folder / "forces.npz", "--exact", "butane"]),
        *(("forces", [*right, "--forces", folder / name]) for name in ("few.npz", "none.npz", "no.npz", "a.txt")),
        ("exact", [*right, "--exact", folder / "absent.json"]),
        ("exact", [*right, "--exact", frames]),
        ("diffusion", [*right, "--time-step", 1e-3, "--diffusion", 0]),
        ("temperature", [*right, "--temperature", -3]),
        ("noise_level", [*right, "--time-step", 1e-3, "--noise-level", 7]),
        ("length", [*right, "--length", 0]),
        ("wanted", [*right, "--wanted", "nan"]),
        ("probes", [*right, "--probes", 0]),
        ("max_frames", [*right, "--max-frames", 1]),
        ("seed", [*right, "--seed", -1]),
        ("out", [*right, "--out", tmp_path / "file"]),
    ):
        error = call(capsys, *words, code=2)
        assert error.startswith(argument + ": ") and error.count("\n") == 1, (argument, error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
