"""training/bonded_fit.py: springs and bends against the force fields that the frames were drawn from."""

import numpy as np
import pytest
import torch

from diffmd_fast.io import Molecule
from diffmd_fast.models import SchNet, TraPPEAlkane
from diffmd_fast.models.bonded import bend_cosines
from diffmd_fast.sampling import Sampler, Spring
from diffmd_fast.training import bonded_fit
from diffmd_fast.training.bonded_fit import _Coordinates, fit_bonded

CHAIN = [[0, 1], [1, 2], [2, 3]]
STAR = [[0, 1], [0, 2], [0, 3]]


def fit(frames, bonds, noise_level):
    n = frames.shape[1]
    molecule = Molecule(("C",) * n, (6,) * n, ("X",) * n, (0,) * n, tuple(map(tuple, bonds)))
    return fit_bonded(frames, molecule, noise_level)


def random_frames(n, n_atoms, seed=0):
    return 0.2 * torch.randn(n, n_atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_butane_has_the_stiffness_of_its_force_field():
    """Exact samples; the noise level is a tenth of a bond's width. The statistical error of a stiffness is 1.1%."""
    butane = TraPPEAlkane.butane()
    frames = butane.sample(16384, seed=3)
    springs, bends = fit(frames, CHAIN, 3e-4)
    assert springs["pairs"] == [*CHAIN, [0, 2], [1, 3]] and bends["triples"] == [[0, 1, 2], [1, 2, 3]]
    for mean, variance in zip(springs["mean"][:3], springs["variance"]):
        assert abs(mean - butane.bond_length) < 5e-4
        assert abs(butane.kilojoules / variance / butane.bond_stiffness - 1) < 0.05
    for mean, variance in zip(bends["mean"], bends["variance"]):
        assert abs(mean - np.cos(butane.angle)) < 0.01
        assert abs(butane.kilojoules / variance * np.sin(butane.angle) ** 2 / butane.angle_stiffness - 1) < 0.06
    across = torch.linalg.vector_norm(frames[:, 0] - frames[:, 2], dim=-1)
    assert abs(springs["variance"][3] / across.var().item() - 1) < 1e-9
    assert abs(springs["mean"][3] / across.mean().item() - 1) < 1e-9


def test_what_the_energy_has_already_is_left_out_and_moves_the_rest():
    """Half of every bond's spring and a steady pull given: the other half is found, with its rest moved."""
    butane, pull = TraPPEAlkane.butane(), 100.0  # kT0/nm; a third of what a bond pulls with, 323
    k = butane.bond_stiffness / butane.kilojoules

    def known(x):
        x = x.clone().requires_grad_()
        r = torch.stack([torch.linalg.vector_norm(x[:, i] - x[:, j], dim=-1) for i, j in CHAIN])
        return torch.autograd.grad((0.25 * k * (r - butane.bond_length) ** 2 + pull * r).sum(), x)[0]

    molecule = Molecule(("C",) * 4, (6,) * 4, ("X",) * 4, (0,) * 4, tuple(map(tuple, CHAIN)))
    springs, _ = fit_bonded(butane.sample(16384, seed=3), molecule, 3e-4, known)
    for mean, variance in zip(springs["mean"][:3], springs["variance"]):
        assert abs(1 / variance / (0.5 * k) - 1) < 0.1
        assert abs((mean - butane.bond_length) / (2 * pull / k) - 1) < 0.2


def test_angles_about_one_centre_share_what_they_hold():
    """A flat star whose springs and bends are known, sampled exactly: they are found again, though the cosines
    fluctuate less than each bend alone would let them, since the angles add up to a turn."""
    known = {"springs": {"pairs": STAR, "mean": [0.15] * 3, "variance": [9e-6] * 3},
             "bends": {"triples": [[1, 0, 2], [1, 0, 3], [2, 0, 3]], "mean": [-0.5] * 3, "variance": [0.004] * 3,
                       "slope": [0.0] * 3}}
    star = SchNet(4, 8, 1, bonds=STAR, torsions=(), noise_levels=(1e-6, 0.5), **known).requires_grad_(False)
    star.readout_out.zero_()
    angle = 2 * torch.pi / 3 * torch.arange(3)
    start = torch.cat([torch.zeros(1, 3), 0.15 * torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)])
    spring = Spring.from_time_step(1e-3, 4e-3)  # D dt L about 0.5
    run = Sampler(star, spring, seed=1, integrator="metropolis").run(start.expand(8192, 4, 3).contiguous(), 600, 600)
    frames = torch.as_tensor(run.positions[-1])
    springs, bends = fit(frames, STAR, 3e-4)
    assert springs["pairs"] == [*STAR, [1, 2], [1, 3], [2, 3]] and bends["triples"] == known["bends"]["triples"]
    assert np.allclose(springs["variance"][:3], 9e-6, rtol=0.08) and np.allclose(bends["variance"], 0.004, rtol=0.08)
    fluctuates = bend_cosines(frames, torch.tensor(bends["triples"]))[0].var(0)
    assert fluctuates.max() < 0.8 * 0.004


@pytest.mark.parametrize("bonds", [CHAIN, STAR])
def test_gradients_and_laplacians_are_derivatives(bonds):
    x = random_frames(3, 4)
    springs_and_bends = _Coordinates(bonds, [[bonds[0][0], bonds[0][1], 2]], 4)
    _, gradients, laplacians = springs_and_bends(x)
    for k, atoms in enumerate([*bonds, [bonds[0][0], bonds[0][1], 2]]):
        for r in range(len(x)):
            def value(flat, r=r, k=k):
                return springs_and_bends(flat.view(1, 4, 3))[0][0, k]
            by_atom = torch.autograd.functional.jacobian(value, x[r].flatten()).view(4, 3)
            torch.testing.assert_close(gradients[r, k, : len(atoms)], by_atom[atoms], rtol=1e-5, atol=1e-7)
            hessian = torch.autograd.functional.hessian(value, x[r].flatten())
            torch.testing.assert_close(laplacians[r, k], hessian.trace(), rtol=1e-4, atol=1e-4)


def test_what_fluctuates_much_is_left_to_the_network():
    frames = TraPPEAlkane.butane().sample(2000, seed=1)
    loose = frames.clone()
    loose[:, 3] += 0.1 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    springs, bends = fit(loose, CHAIN, 1e-3)
    assert springs["pairs"] == [*CHAIN[:2], [0, 2]] and bends["triples"] == [[0, 1, 2]]


def test_a_handful_of_frames_and_no_bonds():
    springs, bends = fit(TraPPEAlkane.butane().sample(2, seed=1), CHAIN, 1e-3)
    SchNet(4, 8, 1, bonds=CHAIN, springs=springs, bends=bends)  # finite, in range
    assert all(0 < variance < 1e-3 for variance in springs["variance"])
    assert fit(random_frames(5, 3), [], 1e-3) == (
        {"pairs": [], "mean": [], "variance": []}, {"triples": [], "mean": [], "variance": [], "slope": []})


def test_parts_of_the_frames_and_the_order_of_bonds_do_not_matter(monkeypatch):
    frames = TraPPEAlkane.butane().sample(5000, seed=2)
    whole = fit(frames, CHAIN, 1e-3)
    assert fit(frames, [[3, 2], [1, 0], [2, 1]], 1e-3) == whole
    monkeypatch.setattr(bonded_fit, "AT_ONCE", 1000)
    for part, all_at_once in zip(fit(frames, CHAIN, 1e-3), whole):
        assert all(np.allclose(part[key], all_at_once[key], rtol=1e-9) for key in all_at_once)
