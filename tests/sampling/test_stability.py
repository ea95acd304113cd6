"""Largest curvature against the exact one, the default time step, and the refusal of an unstable one."""

import pytest
import torch

from diffmd_fast import InputError
from diffmd_fast.models.energy import Energy
from diffmd_fast.sampling import (
    Sampler,
    Spring,
    check_stability,
    choose_spring,
    default_time_step,
    estimate_curvature,
)

from .common import ScoreOnly, Well, chain_positions, small_schnet, start


class Quartic(Energy):
    """E = sum of (x^2 - 1)^2 per coordinate: curvature 12 x^2 - 4, negative about the origin."""

    def forward(self, positions, noise_level=None):
        return (positions.square() - 1).square().sum((1, 2))

    def check_positions(self, positions):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stiffness", [1.0, 4e5])
def test_harmonic(dtype, stiffness):
    x = start(20, width=stiffness**-0.5).to(dtype)
    assert estimate_curvature(Well(stiffness=stiffness), x) == pytest.approx(stiffness, rel=1e-3)
    assert estimate_curvature(Well(stiffness=stiffness), torch.zeros_like(x)) == pytest.approx(stiffness, rel=1e-3)
    assert estimate_curvature(ScoreOnly(stiffness).to(dtype), x) == pytest.approx(stiffness, rel=1e-3)


def test_largest_of_many_eigenvalues_and_frames():
    x = 1 + start(5, n_atoms=6, width=0.2, seed=2).double()
    exact = (12 * x.square() - 4).max().item()
    assert estimate_curvature(Quartic(), x) == pytest.approx(exact, rel=1e-3)


def test_largest_curvature_is_not_the_largest_modulus():
    x = torch.zeros(1, 2, 3, dtype=torch.float64)  # all eigenvalues are -4
    assert estimate_curvature(Quartic(), x) == pytest.approx(-4, rel=1e-3)
    with pytest.raises(InputError, match="^time_step: "):
        choose_spring(Quartic(), x, 1.0)


def test_schnet_against_its_own_hessian():
    model, x = small_schnet(), chain_positions(2)
    double = small_schnet().double()
    exact = max(
        torch.linalg.eigvalsh(
            torch.autograd.functional.hessian(
                lambda flat: double.energy(flat.view(1, 5, 3)).sum(), frame.double().flatten()
            )
        )
        .max()
        .item()
        for frame in x
    )
    assert estimate_curvature(model, x) == pytest.approx(exact, rel=0.01)


def test_default_time_step_is_a_quarter_and_uses_the_fastest_atom():
    assert default_time_step(1e4, 0.5) == pytest.approx(0.25 / (1e4 * 0.5))
    assert default_time_step(1e4, [0.1, 0.5]) == pytest.approx(0.25 / (1e4 * 0.5))
    stability = check_stability(Well(), choose_spring(Well(), start(3), 0.01), start(3))
    assert stability.number == pytest.approx(0.25, rel=1e-3)
    assert stability.inflation == pytest.approx(1 / 7, rel=1e-3)  # 1/(1 - 1/8) - 1
    assert "D dt L = 0.25" in str(stability)


@pytest.mark.parametrize(
    "spring, name", [(Spring.from_time_step(2.1, 0.01), "time_step"), (Spring.from_stiffness(23.8, 0.01), "stiffness")]
)
def test_unstable_step_is_refused_unless_forced(spring, name):
    with pytest.raises(InputError, match=rf"^{name}: expected .*2\.1"):
        Sampler(Well(), spring).run(start(3), 10, 5)
    trajectory = Sampler(Well(), spring, force=True).run(start(3), 10, 5)
    assert trajectory.stability.number == pytest.approx(2.1, rel=1e-2)


def test_frames_without_a_finite_score_are_refused():
    with pytest.raises(InputError, match="^positions: "):
        estimate_curvature(ScoreOnly(float("nan")), start(3))
