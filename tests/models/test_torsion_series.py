"""The Fourier series of a torsion against sines and cosines, and its fit to snapshots of a known force field."""

import math

import pytest
import torch

from diffmd_fast import InputError, ops
from diffmd_fast.io import Molecule
from diffmd_fast.models import SchNet, TraPPEAlkane
from diffmd_fast.models.topology import planes_of
from diffmd_fast.models.torsion_series import blurred_series, torsion_series
from diffmd_fast.training.preparation import (
    EMPTY_BIN,
    SERIES_BINS,
    _log_likeliest,
    fit_torsion_series,
    measure_slopes,
)


@pytest.mark.parametrize("n_harmonics", [0, 1, 2, 6])
def test_equals_its_sines_and_cosines(rng, n_harmonics):
    phi = 2 * math.pi * torch.rand(5, 3, generator=rng, dtype=torch.float64)
    coefficients = torch.randn(3, n_harmonics, 2, generator=rng, dtype=torch.float64)
    angles = torch.stack([phi.sin(), phi.cos()], -1).requires_grad_()
    energy, slope = torsion_series(angles, coefficients)
    multiples = phi[:, :, None] * torch.arange(1, n_harmonics + 1)
    want = (coefficients * torch.stack([multiples.sin(), multiples.cos()], -1)).sum((2, 3))
    torch.testing.assert_close(energy.detach(), want, rtol=1e-12, atol=1e-12)
    if n_harmonics:
        torch.testing.assert_close(slope, torch.autograd.grad(energy.sum(), angles)[0], rtol=1e-12, atol=1e-12)
    else:
        assert not slope.any()


def test_fades_with_the_torsions():
    """A series so small that its density is 1 - E: noise takes exp(-n^2 s^2 / 2) of harmonic n."""
    model = SchNet(4, bonds=[(0, 1), (1, 2), (2, 3)], n_harmonics=2, torsion_fade=0.05,
                   noise_levels=(1e-6, 0.05)).double()
    model.set_series(torch.full((1, 2, 2), 1e-4), [300.0])
    noise = torch.tensor([1e-6, 0.05], dtype=torch.float64)
    faded = 1e4 * model._series(noise)
    blurred = 0.25 * torch.exp(-0.5 * 300 * 0.05**2 * torch.tensor([1.0, 4.0]).double())
    expected = torch.stack([torch.ones_like(blurred), blurred])[:, None, :, None].expand(2, 1, 2, 2)
    torch.testing.assert_close(faded, expected, rtol=1e-3, atol=0)


def test_noise_blurs_the_density():
    """Against a convolution on a fine grid: three wells of butane, and one as narrow as a plane's.

    Six harmonics of -log of a blurred density are off by up to 0.2 kT0 where it is likely.
    """
    phi = 2 * torch.pi / 4096 * torch.arange(4096, dtype=torch.float64)
    series = torch.zeros(2, 6, 2, dtype=torch.float64)
    series[0, :3, 1] = torch.tensor([1.4, 0.2, 3.1])
    series[1, :2, 1] = torch.tensor([4.0, -1.0])
    variance = torch.tensor([[0.0, 0.0], [0.05, 0.08], [0.3, 0.2]], dtype=torch.float64)
    got = blurred_series(series, variance)
    torch.testing.assert_close(got[0], series, rtol=1e-12, atol=1e-12)
    turn = torch.stack([phi.sin(), phi.cos()], -1)[:, None]
    energy = torsion_series(turn.expand(4096, 2, 2), series)[0].T
    for v, one in zip(variance[1:], got[1:]):
        modes = torch.fft.rfft(torch.exp(-energy)) * torch.exp(-0.5 * v[:, None] * torch.arange(2049) ** 2)
        exact = -torch.fft.irfft(modes, 4096).log()
        blurred = torsion_series(turn.expand(4096, 2, 2), one)[0].T
        likely = exact < exact.amin(1, keepdim=True) + 5
        for a, b, where in zip(blurred, exact, likely):
            difference = (a - b)[where]
            assert (difference - difference.mean()).abs().max() < 0.25
    assert blurred_series(series, torch.full((1, 2), 50.0).double()).abs().max() < 1e-9  # nothing is left of a turn


def test_float32_models_blur_in_double(rng):
    """Wells of 30 kT0, as those of planes: in float32 the logarithm of what is left on top was off by 0.01 kT0."""
    model = SchNet(4, bonds=[(0, 1), (1, 2), (2, 3)], n_harmonics=6)
    model.set_series(12 * torch.rand(1, 6, 2, generator=rng) / torch.arange(1, 7)[:, None], [400.0])
    exact = model._series(torch.tensor([0.002, 0.02]))
    expected = model.double()._series(torch.tensor([0.002, 0.02], dtype=torch.float64))
    torch.testing.assert_close(exact.double(), expected, rtol=1e-6, atol=1e-5)


def test_slopes_are_measured_and_checked():
    butane = TraPPEAlkane.butane()
    model = bare(chain(4), 3)
    (slope,) = measure_slopes(model, butane.sample(2000, seed=1))
    assert 200 < slope < 300  # 1/nm^2; each end alone has 1/(0.154 sin 114)^2 = 51
    assert SchNet(**{**model.config, "torsion_slopes": [slope]}).config["torsion_slopes"] == [slope]
    for wrong in ([], [1.0, 2.0], [-1.0], [float("nan")], 3):
        with pytest.raises(InputError, match="^torsion_slopes: "):
            SchNet(**{**model.config, "torsion_slopes": wrong})


def bare(molecule: Molecule, n_harmonics: int) -> SchNet:
    return SchNet(molecule.n_atoms, 8, 1, bonds=molecule.bonds, n_harmonics=n_harmonics)


def chain(n: int) -> Molecule:
    return Molecule(names=("C",) * n, atomic_numbers=(6,) * n, residue_names=("X",) * n, residue_index=(0,) * n,
                    bonds=tuple((i, i + 1) for i in range(n - 1)))


def test_the_fit_finds_the_torsion_of_the_force_field():
    """Butane has no other energy that depends on its torsion; the three coefficients are 1.2, -0.2 and 2.6 kT0.  Their
    statistical errors are 0.01 to 0.02, that of the barrier, 5.5 kT0 high with few frames on it, is 0.02."""
    exact = TraPPEAlkane.butane()
    x = exact.sample(100_000, seed=2).float()
    (series,) = fit_torsion_series(bare(chain(4), 4), x)
    c1, c2, c3 = (c / exact.kilojoules for c in exact.torsion_coefficients)
    wanted = torch.tensor([[0.0, c1], [0.0, -c2], [0.0, c3], [0.0, 0.0]], dtype=torch.float32)
    torch.testing.assert_close(series, wanted, rtol=0, atol=0.06)
    barrier, trans = (torch.tensor([[math.sin(n * a), math.cos(n * a)] for n in range(1, 5)])
                      for a in (2 * math.pi / 3, math.pi))
    assert abs(((series - wanted) * (barrier - trans)).sum()) < 0.08


def test_torsions_about_one_bond_share_its_energy():
    """A second atom on the third, opposite the fourth: two torsions of the same histogram up to half a turn."""
    x = TraPPEAlkane.butane().sample(20_000, seed=2).float()
    x = torch.cat([x, x[:, 2:3] - (x[:, 3:4] - x[:, 2:3])], 1)
    molecule = Molecule(names=("C",) * 5, atomic_numbers=(6,) * 5, residue_names=("X",) * 5, residue_index=(0,) * 5,
                        bonds=((0, 1), (1, 2), (2, 3), (2, 4)))
    alone = fit_torsion_series(bare(chain(4), 3), x[:, :4])[0]
    both = fit_torsion_series(bare(molecule, 3), x)
    signs = torch.tensor([-1.0, 1.0, -1.0])[:, None]  # of sin and cos of n times the angle after half a turn
    torch.testing.assert_close(both[0], alone / 2)
    torch.testing.assert_close(both[1], signs * alone / 2, rtol=0, atol=0.02)  # frames on the edges of bins


def test_three_bonds_make_a_plane_whose_series_holds_it():
    """A centre 0.004 nm off the plane of its three neighbours, rms: -log of the histogram is (h/0.004)^2/2 there."""
    bonds = [(0, 1), (0, 2), (0, 3)]
    assert planes_of(bonds) == [[1, 2, 0, 3]] and planes_of([(0, 1), (1, 2)]) == []
    assert SchNet(4, bonds=bonds).torsions == [[1, 2, 0, 3]]
    turns = 2 * math.pi * torch.arange(3) / 3
    x = torch.zeros(50_000, 4, 3)
    x[:, 1:, :2] = 0.13 * torch.stack([turns.cos(), turns.sin()], -1)
    x[:, 0, 2] = 0.004 * torch.randn(len(x), generator=torch.Generator().manual_seed(1))
    molecule = Molecule(names=("C",) * 4, atomic_numbers=(6,) * 4, residue_names=("X",) * 4, residue_index=(0,) * 4,
                        bonds=tuple(bonds))
    model = bare(molecule, 6)
    (series,) = fit_torsion_series(model, x)
    off = x[:2].clone()
    off[:, 0, 2] = torch.tensor([0.0, 0.006])
    energy = torsion_series(ops.torsions(off, model.quadruples), series)[0][:, 0]
    assert (energy[1] - energy[0]).item() == pytest.approx(0.5 * 1.5**2, rel=0.05)


def test_a_torsion_that_hardly_turns_has_a_finite_series():
    x = torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.15, 0.1, 0.01]])
    series = fit_torsion_series(bare(chain(4), 6), x.expand(1000, 4, 3))
    assert series.isfinite().all() and series.abs().max() < 40  # kT0; all frames in one bin of 144


def test_the_number_of_harmonics_is_checked():
    for wrong in (-1, 13, 2.5):
        with pytest.raises(InputError, match="^n_harmonics: "):
            SchNet(4, n_harmonics=wrong)


def test_a_torsion_that_hardly_turns_has_walls_of_finite_height():
    """Where bins are empty Newton's steps must not run away."""
    centres = 2 * math.pi * ((torch.arange(SERIES_BINS, dtype=torch.float64) + 0.5) / SERIES_BINS - 0.5)
    phase = centres[:, None] * torch.arange(1, 7)
    design = torch.cat([torch.ones_like(phase[:, :1]), phase.sin(), phase.cos()], 1)
    widths = torch.tensor([0.05, 0.1, 0.3, 1.0], dtype=torch.float64)[:, None]
    counts = 1e4 * torch.exp(-0.5 * (centres / widths) ** 2)
    energies = -_log_likeliest(counts + EMPTY_BIN, design) @ design[:, 1:].T
    assert (energies.amax(1) - energies.amin(1) < 40).all()
    wanted = 0.5 * (centres / widths) ** 2
    near = wanted < 3
    for energy, right, where in zip(energies[1:], wanted[1:], near[1:]):
        difference = (energy - right)[where]
        assert (difference - difference.mean()).abs().max() < 0.3
