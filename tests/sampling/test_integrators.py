"""Every integrator: the same bits in both loops, in any batches and over a restart; references; what is refused."""

import warnings

import numpy as np
import pytest
import torch

from diffmd_fast import InputError, load_model, set_num_threads, use_backend
from diffmd_fast.io import TrajectoryStore
from diffmd_fast.sampling import (
    INTEGRATORS,
    EnergyReporter,
    Sampler,
    Spring,
    choose_spring,
    configurational_temperature,
    kinetic_temperature,
    stored_spring,
)
from diffmd_fast.sampling.restart import restart_path

from .common import Gaussian, ScoreOnly, Well, chain_positions, small_schnet, start
from .test_resident import SPRING, assert_same, both, inside, narrow

MODEL = small_schnet()
NAMES = list(INTEGRATORS)
MASSES = [12.0, 14.0, 12.0, 16.0, 1.0]


def options(name, **more):
    return {"integrator": name, "seed": 3} | ({"masses": MASSES} if name == "baoab" else {}) | more


def spring_of(name):
    if name != "baoab":
        return SPRING
    return choose_spring(MODEL, chain_positions(4), 0.002, integrator=name, masses=MASSES)


def assert_all_same(runs):
    assert_same(runs)
    (one, _), (other, _) = runs
    for name in ("acceptance", "final_velocities", "kinetic_temperature"):
        assert (getattr(one, name) is None) == (getattr(other, name) is None)
        if getattr(one, name) is not None:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_replicas, n_threads", [(1, 1), (7, 2), (41, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_in_both_loops(name, n_replicas, n_threads, dtype):
    set_num_threads(n_threads)
    try:
        assert_all_same(both(MODEL.to(dtype), spring_of(name), chain_positions(n_replicas).to(dtype), 30, 10,
                             options=options(name)))
    finally:
        set_num_threads(None)
        MODEL.float()


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_with_every_option(name):
    """A schedule, diffusion per atom, another noise level, replicas from 12 on, intervals that do not divide."""
    spring = Spring.from_time_step(spring_of(name).time_step / 2, [0.001, 0.002, 0.001, 0.0015, 0.002])
    more = options(name, temperature=[(3, 450.0), (15, 280.0)], noise_level=0.01, first_replica=12)
    assert_all_same(both(MODEL, spring, chain_positions(9), 23, 7, check_every=4, options=more))


@pytest.mark.parametrize("name", NAMES)
def test_replicas_are_lost_alike(name):
    """The others go on to the bit as they would alone; a lost one has no acceptance and no velocities."""
    runs = both(narrow(), spring_of(name), inside(40), 60, 20, check_every=3, options=options(name, temperature=420.0))
    assert_all_same(runs)
    lost = [entry.replica for entry in runs[0][0].lost]
    assert 2 < len(lost) < 40
    survivor = next(replica for replica in range(40) if replica not in lost)
    alone = Sampler(narrow(), spring_of(name), **options(name, temperature=420.0, first_replica=survivor)).run(
        inside(40)[[survivor]], 60, 20, check_every=3)
    np.testing.assert_array_equal(alone.positions[:, 0], runs[0][0].positions[:, survivor])
    for values in (runs[1][0].acceptance, runs[1][0].final_velocities):
        if values is not None:
            gone = np.isnan(values.reshape(40, -1)).all(1)
            assert np.flatnonzero(gone).tolist() == sorted(lost)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_over_a_restart(tmp_path, name, resident):
    more = options(name, temperature=[(0, 350.0), (40, 250.0)], resident=resident)
    whole = Sampler(MODEL, spring_of(name), **more).run(chain_positions(5), 40, 5)
    out = tmp_path / "traj.npz"
    for n_steps in (15, 30, 40):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rest = Sampler(MODEL, spring_of(name), **more).run(
                chain_positions(5), n_steps, 5, out=out, resume=n_steps > 15)
    np.testing.assert_array_equal(whole.final_positions, rest.final_positions)
    np.testing.assert_array_equal(whole.positions[-1], rest.final_positions)
    if name == "baoab":
        np.testing.assert_array_equal(whole.final_velocities, rest.final_velocities)
        np.testing.assert_array_equal(whole.kinetic_temperature[-2:], rest.kinetic_temperature[-2:])
    with TrajectoryStore.open(restart_path(out)) as store:
        assert store.has_velocities == (name == "baoab")
    assert stored_spring(out) == spring_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_batches_change_nothing(name):
    runs = [Sampler(Well(), Spring.from_time_step(0.1, 0.01), batch_size=size,
                    **(options(name) | ({"masses": 12.0} if name == "baoab" else {}))).run(start(7), 25, 5)
            for size in (None, 3, 1)]
    for other in runs[1:]:
        np.testing.assert_array_equal(runs[0].positions, other.positions)


@pytest.mark.parametrize("name", NAMES)
def test_reference_to_rounding(name):
    """float64, 30 steps: native against plain PyTorch; accepted steps are the same ones."""
    x, spring, runs = chain_positions(8).double(), spring_of(name), []
    for backend in ("reference", "native"):
        with use_backend(backend):
            runs.append(Sampler(small_schnet().double(), spring, **options(name)).run(x, 30, 10))
    np.testing.assert_allclose(runs[1].positions, runs[0].positions, rtol=0, atol=1e-12)
    if name == "metropolis":
        np.testing.assert_array_equal(runs[0].acceptance, runs[1].acceptance)
        assert (runs[0].acceptance < 1).any()


@pytest.mark.parametrize("name", ["heun", "metropolis"])
def test_a_module_may_answer_in_one_memory(name):
    class Reusing(Gaussian):
        def energy_and_score(self, positions, noise_level=None):
            energy, score = super().energy_and_score(positions, noise_level)
            if not hasattr(self, "_kept") or self._kept[1].shape != score.shape:
                self._kept = energy.clone(), score.clone()
            for kept, value in zip(self._kept, (energy, score)):
                kept.copy_(value)
            return self._kept

    spring = Spring.from_time_step(0.5, 0.01)
    plain, reusing = (Sampler(model, spring, **options(name)).run(start(6, 5), 40, 10)
                      for model in (Gaussian(), Reusing()))
    np.testing.assert_array_equal(plain.positions, reusing.positions)


def test_metropolis_rejects_a_proposal_without_an_energy():
    """Where the energy is NaN nothing is accepted; where the step itself is not finite the replica is lost."""
    class Walled(Gaussian):
        def energy_and_score(self, positions, noise_level=None):
            energy, score = super().energy_and_score(positions, noise_level)
            return torch.where((positions > 0.2).any(-1).any(-1), float("nan"), energy), score

    energies = EnergyReporter()
    run = Sampler(Walled(), Spring.from_time_step(0.5, 0.01), **options("metropolis")).run(
        start(20, 5, width=0.05), 300, 10, reporters=[energies])
    assert not run.lost and (run.positions <= 0.2).all() and np.isfinite(energies.energies).all()
    assert 0.1 < run.acceptance.mean() < 1


def test_acceptance_and_temperatures_are_reported():
    x = chain_positions(30)
    for name in NAMES:
        run = Sampler(MODEL, spring_of(name), **options(name)).run(x, 40, 10)
        assert (run.acceptance is not None) == (name == "metropolis")
        assert (run.final_velocities is not None) == (name == "baoab") == (run.kinetic_temperature is not None)
        if name == "baoab":
            assert run.kinetic_temperature.shape == (5, 30)
            np.testing.assert_allclose(kinetic_temperature(run.final_velocities, MASSES), run.kinetic_temperature[-1])


def test_drawn_velocities_are_thermal():
    """v^2 m/kT of 20,000 components: 1 +- 0.01, limit 4.5 standard errors; no two replicas or atoms alike."""
    rule = Sampler(Gaussian(5), Spring.from_time_step(0.1, 0.01), 400.0, integrator="baoab", masses=MASSES)
    x = torch.zeros(1400, 5, 3, dtype=torch.float64)
    variance = torch.tensor([400.0 / 300.0], dtype=torch.float64)
    v = rule._make_integrator(x).draw_velocities(x, 0, variance)
    scaled = v * torch.tensor(MASSES)[:, None].sqrt() / (0.00831446261815324 * 400) ** 0.5
    assert abs(scaled.square().mean() - 1) < 4.5 * (2 / v.numel()) ** 0.5
    assert abs(scaled.mean()) < 4.5 / v.numel() ** 0.5
    assert len(torch.unique(v)) == v.numel()


def test_configurational_temperature_of_a_known_density():
    """Gaussian frames of variance v T/T0: exact value T; the stated error is that of the spread over seeds."""
    model, values = Gaussian(5, variance=0.01), []
    total = 0.01 + model.noise_level**2
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        frames = (total * 1.5) ** 0.5 * torch.randn(100, 5, 3, generator=generator, dtype=torch.float64)
        values.append(configurational_temperature(model, frames, seed=seed))
    means, errors = np.array(values).T
    assert abs(means.mean() - 450) < 4.5 * errors.mean() / 20**0.5
    assert 0.5 < means.std(ddof=1) / errors.mean() < 1.6  # 19 degrees of freedom: 0.3 to 1.9 at 1e-5


@pytest.mark.parametrize("change, argument", [
    ({"integrator": "metropolis"}, "integrator"),
    ({"integrator": "leapfrog"}, "integrator"),
    ({"integrator": "baoab"}, "masses"),  # the model names no elements
    ({"integrator": "baoab", "masses": [1.0, -2.0]}, "masses"),
    ({"integrator": "baoab", "masses": "heavy"}, "masses"),
    ({"masses": 12.0}, "masses"),
    ({"temperature": []}, "temperature"),
    ({"temperature": [(0, 300.0), (0, 400.0)]}, "temperature"),
    ({"temperature": [(0, -5.0)]}, "temperature"),
    ({"temperature": [(0.5, 300.0)]}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": [1, 2]}, "temperature"),
])
def test_bad_input_is_one_error(change, argument):
    model = ScoreOnly()
    model.temperature = 300.0
    with pytest.raises(InputError, match=rf"^{argument}: expected "):
        Sampler(model, Spring.from_time_step(0.1, 0.001), **change)


def test_masses_must_be_as_many_as_atoms(tmp_path):
    sampler = Sampler(Well(), Spring.from_time_step(0.1, 0.01), integrator="baoab", masses=[1.0, 2.0])
    with pytest.raises(InputError, match="^masses: expected a number or 4 values"):
        sampler.run(start(2), 10, 5, out=tmp_path / "t.npz")
    assert not list(tmp_path.iterdir())


def test_a_run_with_velocities_is_resumed_as_such_only(tmp_path):
    out = tmp_path / "traj.npz"
    spring = Spring.from_time_step(0.05, 0.01)
    Sampler(Well(), spring, integrator="baoab", masses=12.0).run(start(3), 10, 5, out=out)
    for change, argument in (({"integrator": "heun"}, "integrator"),
                             ({"integrator": "baoab", "masses": 14.0}, "masses"),
                             ({"integrator": "baoab", "masses": 12.0, "temperature": [(0, 300.0), (5, 310.0)]},
                              "temperature")):
        with pytest.raises(InputError, match=f"^{argument}: expected .* as in the run to resume"):
            Sampler(Well(), spring, **change).run(None, 20, 5, out=out, resume=True)
    Sampler(Well(), spring, integrator="baoab", masses=12.0).run(None, 20, 5, out=out, resume=True)


def test_masses_come_from_the_molecule():
    model = load_model("examples/alanine_dipeptide/model.safetensors")
    sampler = Sampler(model, Spring.from_time_step(0.001, 0.002), integrator="baoab")
    assert len(sampler.masses) == 10 and sampler.masses == model.molecule.masses
    assert min(sampler.masses) == pytest.approx(12.011, abs=0.01)
    assert max(sampler.masses) == pytest.approx(15.999, abs=0.01)
