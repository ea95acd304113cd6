"""The GPU's resident loop, its device code run on the host: kernels/cuda/block_schnet.hpp and block_sampler.hpp."""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffmd_fast import _C, InputError, load_model, use_backend
from diffmd_fast.errors import UnavailableError
from diffmd_fast.io import read_snapshots
from diffmd_fast.models import SchNet
from diffmd_fast.sampling import INTEGRATORS, EnergyReporter, Sampler, Spring, choose_spring
from diffmd_fast.sampling import resident as resident_module
from diffmd_fast.sampling.resident import PRECISIONS
from diffmd_fast.sampling.resident_blocks import HOST_LIMITS, BlockRun, block_bytes, plan, why_not_blocks

from ..models.test_schnet_native import BARE, EVERYTHING, make_model, make_positions, reference
from ..ops.common import assert_float64_rule
from .common import chain_positions, small_schnet
from .test_integrators import assert_all_same, spring_of
from .test_integrators import options as rule
from .test_resident import assert_same, inside, narrow

MODEL = small_schnet()
SPRING = choose_spring(MODEL, chain_positions(4), 0.002)
LAUNCHES = [(1, 1, False), (1, 32, True), (2, 96, False), (3, 97, True), (13, 512, False)]  # molecules, lanes, order


def block_run(launch=None):
    """BlockRun with so many molecules in a block, so many lanes, in the one or the other order."""

    class Launched(BlockRun):
        def _prepare(self, sampler):
            super()._prepare(sampler)
            if launch is not None:
                self._molecules, self._lanes, self._backward = launch

    return Launched


def run(loop, model, spring, positions, *arguments, options=None, **more):
    """The run in that loop, and its energies; warnings of lost replicas are let be."""
    energies = EnergyReporter()
    sampler = Sampler(model, spring, resident=True, **{"precision": "fp32", **(options or {})})
    if loop is not None:
        sampler._loop = lambda start: (loop, "emulated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sampler.run(positions, *arguments, reporters=[energies], **more), energies.energies


def evaluate(model, positions, launch=None, precision="fp32"):
    """Energy and score of a block's own: a run's beginning."""
    kept = {}

    class Kept(block_run(launch)):
        def advance(self, *_, **__):  # no step
            self._begin()
            kept["result"] = self._parts[0].energy, self._parts[0].score

    run(Kept, model, Spring.from_time_step(1e-12, 1e-12), positions, 1, 1,
        options={"force": True, "precision": precision})
    return kept["result"]


# ---- energy and score --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_atoms, n_features, parts", [
    (5, 5, EVERYTHING), (7, 48, EVERYTHING), (10, 64, BARE), (22, 64, EVERYTHING), (22, 64, BARE),
    (64, 64, EVERYTHING), (63, 16, EVERYTHING)])
@pytest.mark.parametrize("precision", ["fp32", "3xtf32"])
def test_float32_within_twice_the_reference_error(rng, n_atoms, n_features, parts, precision):
    model = make_model(rng, n_atoms, n_features, dtype=torch.float32, **parts)
    positions = make_positions(rng, 20 if n_atoms < 60 else 6, n_atoms, torch.float32)
    exact = copy.deepcopy(model).double()
    for name, a, b, c in zip(("energy", "score"), evaluate(model, positions, precision=precision),
                             reference(model, positions), reference(exact, positions.double())):
        assert_float64_rule(a, b, c, name)


def test_what_each_precision_is_worth_with_the_shipped_model():
    """The figures of docs/gpu.md, which has them of 250 frames: energy in kT0 and score in 1/nm, root mean squares."""
    model = load_model("examples/alanine_dipeptide/model.safetensors").requires_grad_(False)
    frames = read_snapshots("examples/alanine_dipeptide/snapshots.npz").positions[::417]
    x = torch.as_tensor(frames, dtype=torch.float32)
    exact, plain = reference(copy.deepcopy(model).double(), x.double()), reference(model, x)
    for precision in PRECISIONS:
        got = evaluate(model, x, (6, 192, False), precision)
        errors = [(a.double() - b).square().mean().sqrt().item() for a, b in zip(got, exact)]
        print(f"{precision}: {len(x)} frames, energy off by {errors[0]:.2e}, score by {errors[1]:.2e}")
        if precision == "tf32":  # 11 bits: 5e-4
            assert errors[0] < 0.02 and errors[1] < 1e-3 * exact[1].square().mean().sqrt()
            continue
        for name, a, b, c in zip(("energy", "score"), got, plain, exact):
            assert_float64_rule(a, b, c, f"{precision}: {name}")


@pytest.mark.parametrize("precision, rounded", [("fp32", False), ("3xtf32", False), ("tf32", True)])
def test_factors_are_rounded_to_11_bits_halves_away_from_zero(precision, rounded):
    """The energy is readout_out . (embedding readout + 128): silu leaves numbers that large as they are."""
    tie = 2.0**-11
    values = torch.tensor([1 + tie, -1 - tie, 1 + tie - 2**-16, 3 + tie, 3.0] + 11 * [0.0])
    nearest = torch.tensor([1 + 2 * tie, -1 - 2 * tie, 1.0, 3.0, 3.0] + 11 * [0.0]) if rounded else values
    model = SchNet(1, 16, 1).requires_grad_(False)
    for place in range(16):  # of the factors in the sum, and of the result among the columns
        for parameter in (*model.blocks.parameters(), model.readout_in.weight, model.readout_out):
            parameter.zero_()
        model.readout_in.bias.fill_(128.0)
        model.embedding.copy_(values.roll(place))
        model.readout_in.weight[place] = torch.where(torch.arange(16).roll(place) == place % 5, 1.0, 0.0)
        model.readout_out[place] = 1.0
        energy, _ = evaluate(model, torch.zeros(1, 1, 3), precision=precision)
        assert energy.item() == 128 + nearest[place % 5].item()


@pytest.mark.parametrize("n_atoms", [1, 2, 3])
def test_few_atoms(rng, n_atoms):
    """One atom has one energy, which says nothing about its error on average: a tolerance instead."""
    model = make_model(rng, n_atoms, dtype=torch.float32)
    positions = make_positions(rng, 5, n_atoms, torch.float32)
    for a, b in zip(evaluate(model, positions), reference(copy.deepcopy(model).double(), positions.double())):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("only", ["torsions", "springs", "bends", "spread"])
def test_each_part_alone_beyond_the_cutoff_and_in_one_place(rng, only):
    """Pairs beyond the cutoff, atoms that coincide, saturated activations."""
    model = make_model(rng, 6, 16, n_blocks=1, cutoff=0.3, dtype=torch.float32, **{**BARE, only: True})
    with torch.no_grad():
        model.readout_in.bias.copy_(torch.linspace(-900, 900, 16))
    positions = make_positions(rng, 5, 6, torch.float32)
    assert (torch.pdist(positions[0]) > 0.3).any() and (torch.pdist(positions[0]) < 0.3).any()
    positions[1, 4] = positions[1, 3]
    got, want = evaluate(model, positions), reference(copy.deepcopy(model).double(), positions.double())
    for a, b in zip(got, want):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("n_atoms, precision", [(5, "fp32"), (22, "fp32"), (5, "3xtf32"), (22, "tf32")])
def test_lanes_molecules_and_order_do_not_change_a_bit(rng, n_atoms, precision):
    model = make_model(rng, n_atoms, 32, dtype=torch.float32)
    positions = make_positions(rng, 7, n_atoms, torch.float32)
    energy, score = evaluate(model, positions, None, precision)
    for launch in LAUNCHES:
        got = evaluate(model, positions, launch, precision)
        assert torch.equal(got[0], energy) and torch.equal(got[1], score), launch
    part = evaluate(model, positions[3:5], None, precision)
    assert torch.equal(part[0], energy[3:5]) and torch.equal(part[1], score[3:5])


# ---- steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_same_bits_as_the_native_loop_where_the_score_is_the_same(rng, integrator):
    """Atoms beyond the cutoff of all others and no springs: every score is 0, what is left is noise."""
    model = make_model(rng, 7, 16, cutoff=0.1, dtype=torch.float32, **BARE)
    positions = torch.arange(7.0)[None, :, None] * torch.ones(5, 1, 3)
    spring = Spring.from_time_step(0.01, [0.001 * (1 + i) for i in range(7)])
    options = rule(integrator, seed=2**63 + 5, first_replica=2**32 - 6, temperature=[(0, 200), (20, 500)])
    if integrator == "baoab":
        options["masses"] = [float(1 + i) for i in range(7)]
    blocks, native = (run(loop, model, spring, positions, 20, 5, options=options)[0] for loop in (block_run(), None))
    assert_all_same([(blocks, ()), (native, ())])  # energies are added up in another order
    assert np.abs(blocks.positions[-1] - blocks.positions[0]).min() > 0


@pytest.mark.parametrize("integrator, precision", [*((name, "fp32") for name in INTEGRATORS),
                                                   ("euler-maruyama", "3xtf32")])
def test_within_twice_the_reference_error_over_fifty_steps(integrator, precision):
    """As the native loop's test: against the float64 reference, with the float32 reference as the measure.

    Metropolis accepts and rejects the same steps.
    """
    x, spring, options = chain_positions(16), spring_of(integrator), rule(integrator, seed=9)

    def reference_run(dtype):
        with use_backend("reference"):
            return Sampler(small_schnet().to(dtype), spring, **options).run(x.to(dtype), 50, 50)

    truth, plain = reference_run(torch.float64), reference_run(torch.float32)
    launch = None if precision == "fp32" else (3, 96, False)  # 15 of a tile's 16 rows
    blocks = run(block_run(launch), MODEL, spring, x, 50, 50, options=options | {"precision": precision})[0]
    for name in ("final_positions", "final_velocities", "acceptance"):
        if getattr(truth, name) is None:
            continue
        error, allowed = (np.abs(getattr(other, name) - getattr(truth, name)) for other in (blocks, plain))
        assert error.max() <= 2 * allowed.max() and np.sqrt((error**2).mean()) <= 2 * np.sqrt((allowed**2).mean())
    if integrator == "metropolis":
        assert 0.3 < truth.acceptance.mean() < 1


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_every_step_of_a_run_stays_with_step_by_step(integrator):
    """Schedule, diffusion per atom and intervals that do not divide, against Run, to rounding."""
    spring = Spring.from_time_step(spring_of(integrator).time_step / 2, [0.001, 0.002, 0.001, 0.0015, 0.002])
    options = rule(integrator, temperature=[(3, 450.0), (15, 280.0)], noise_level=0.01, first_replica=12)
    blocks, energies = run(block_run(), MODEL, spring, chain_positions(9), 23, 7, check_every=4, options=options)
    energy = EnergyReporter()
    steps = Sampler(MODEL, spring, resident=False, **options).run(chain_positions(9), 23, 7, [energy], check_every=4)
    for name, tolerance in (("positions", 2e-6), ("final_positions", 2e-6), ("final_velocities", 1e-4),
                            ("kinetic_temperature", 0.1), ("acceptance", 0.0)):
        if getattr(steps, name) is not None:
            np.testing.assert_allclose(getattr(blocks, name), getattr(steps, name), rtol=0, atol=tolerance)
    np.testing.assert_allclose(energies, energy.energies, rtol=1e-4, atol=1e-3)


def test_alanine_dipeptide_sized_molecules_stay_with_the_native_loop(rng):
    model = make_model(rng, 22, dtype=torch.float32)
    positions = make_positions(rng, 4, 22, torch.float32)
    spring = Spring.from_time_step(1e-7, 0.001)
    (blocks, energies), (native, native_energies) = (
        run(loop, model, spring, positions, 6, 3, options={"force": True}) for loop in (block_run(), None))
    np.testing.assert_allclose(blocks.positions, native.positions, rtol=0, atol=5e-7)
    assert np.abs(native.positions[-1] - native.positions[0]).max() > 1e-5
    np.testing.assert_allclose(energies, native_energies, rtol=1e-5)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_run_does_not_depend_on_lanes_molecules_or_order(launch, integrator):
    arguments, options = (MODEL, spring_of(integrator), chain_positions(9), 12, 5), rule(integrator)
    assert_all_same([run(block_run(how), *arguments, check_every=2, options=options) for how in (None, launch)])


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_calls_may_be_cut_anywhere_and_resumed(monkeypatch, tmp_path, integrator):
    x, out, options = chain_positions(5), tmp_path / "traj.npz", {"options": rule(integrator)}
    model = MODEL, spring_of(integrator)
    whole = run(block_run(), *model, x, 30, 10, **options)
    monkeypatch.setattr(resident_module, "CALL_SECONDS", 0.0)  # one step a call
    assert_all_same((whole, run(block_run(), *model, x, 30, 10, **options)))
    run(block_run(), *model, x, 17, 10, out=out, **options)
    rest, _ = run(block_run(), *model, None, 30, 10, out=out, resume=True, **options)
    np.testing.assert_array_equal(rest.final_positions, whole[0].final_positions)
    if integrator == "baoab":
        np.testing.assert_array_equal(rest.final_velocities, whole[0].final_velocities)


# ---- losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator, launch", [
    ("euler-maruyama", None), ("euler-maruyama", (1, 64, True)), ("euler-maruyama", (13, 33, False)),
    ("heun", None), ("metropolis", (5, 64, False)), ("baoab", (5, 33, True))])
def test_replicas_that_leave_the_support_are_lost_alike(integrator, launch):
    """float32 rounding decides nothing here: 60 steps, and no distance that close to a limit."""
    arguments = (narrow(), spring_of(integrator), inside(24), 30, 10)
    hot = rule(integrator, seed=0, temperature=500.0 if integrator == "baoab" else 350.0)
    options = {"check_every": 3, "options": hot}
    (blocks, energies), (native, native_energies) = (
        run(loop, *arguments, **options) for loop in (block_run(launch), None))
    assert [(entry.replica, entry.step) for entry in blocks.lost] == [(e.replica, e.step) for e in native.lost]
    assert 2 < len(native.lost) < 24 and all("training range" in entry.reason for entry in blocks.lost)
    np.testing.assert_allclose(blocks.positions, native.positions, rtol=0, atol=1e-5)  # NaN of the lost alike
    if integrator == "baoab":
        np.testing.assert_allclose(blocks.final_velocities, native.final_velocities, rtol=0, atol=1e-3)
    np.testing.assert_allclose(energies, native_energies, rtol=1e-3, atol=1e-3)


def test_lost_replicas_do_not_change_the_others():
    arguments, options = (SPRING, inside(24), 30, 10), {"check_every": 3, "options": {"temperature": 350.0}}
    with_losses, _ = run(block_run(), narrow(), *arguments, **options)
    without, _ = run(block_run(), MODEL, *arguments, **options)
    alive = np.isfinite(with_losses.final_positions).all((1, 2))
    assert 0 < alive.sum() < 24
    np.testing.assert_array_equal(with_losses.final_positions[alive], without.final_positions[alive])


def test_a_run_ends_when_every_replica_is_lost():
    blocks, native = (run(loop, narrow(), SPRING, inside(4), 400, 50, check_every=7, options={"temperature": 900.0})[0]
                      for loop in (block_run(), None))
    assert len(blocks.lost) == 4 and blocks.n_steps == native.n_steps < 400


@pytest.mark.parametrize("integrator", ["euler-maruyama", "heun", "baoab"])
def test_an_unstable_run_is_lost_where_it_is_not_finite(integrator):
    spring, options = Spring.from_time_step(SPRING.time_step * 40, 0.002), rule(integrator, force=True)
    blocks, native = (run(loop, MODEL, spring, chain_positions(6), 200, 100, options=options)[0]
                      for loop in (block_run(), None))
    assert len(blocks.lost) == len(native.lost) == 6
    assert all("not finite" in entry.reason for entry in blocks.lost)
    assert {entry.step for entry in blocks.lost} & {entry.step for entry in native.lost}


# ---- who runs it, and what it refuses ----------------------------------------------------------------


def test_precision_is_one_of_three_and_stays_over_a_restart(tmp_path):
    out, x = tmp_path / "traj.npz", chain_positions(2)
    Sampler(MODEL, SPRING).run(x, 4, 2, out=out)
    with pytest.raises(InputError, match="^precision: expected .* as in the run to resume"):
        Sampler(MODEL, SPRING, precision="tf32").run(x, 6, 2, out=out, resume=True)
    Sampler(MODEL, SPRING, precision="3xtf32").run(x, 6, 2, out=out, resume=True)
    with pytest.raises(InputError, match="^precision: expected one of 3xtf32, tf32, fp32, got 'high'$"):
        Sampler(MODEL, SPRING, precision="high")


def test_it_says_why_a_gpu_run_would_go_step_by_step(rng):
    x = chain_positions(2)
    assert "float64, and the GPU's loop works in float32" in why_not_blocks(Sampler(MODEL, SPRING), x.double())
    with use_backend("reference"):
        assert why_not_blocks(Sampler(MODEL, SPRING), x) == 'the backend is "reference"'
    large = SchNet(65, 16, 1)
    assert "more than 64 atoms" in why_not_blocks(Sampler(large, SPRING), torch.zeros(1, 65, 3))
    if not torch.cuda.is_available():
        assert why_not_blocks(Sampler(MODEL, SPRING), x) == _C.cuda_probe() != ""


def test_blocks_that_compute_something_else_are_refused():
    class Wrong(BlockRun):
        def _prepare(self, sampler):
            super()._prepare(sampler)
            self._wrong = 20 * sampler.model.folded(sampler.noise_level, torch.float32)._tensors["readout_out"]
            self._weights.description["readout_out"] = self._wrong.data_ptr()

    with pytest.raises(UnavailableError, match="^resident: the GPU's loop is off the model's energy by .*=False"):
        run(Wrong, small_schnet(), SPRING, chain_positions(2), 1, 1)


def test_gpu_tensors_are_sent_to_the_blocks():
    """What the sampler asks before a run, of a tensor that says it is on a GPU."""
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    assert resident_module.resident_loop(x)[0] is BlockRun
    if not torch.cuda.is_available():
        assert resident_module.why_not_resident(Sampler(MODEL, SPRING), x) == _C.cuda_probe()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be given addresses on the host")
def test_a_launch_without_a_gpu_says_what_is_missing():
    class Launched(block_run()):
        def _run(self, fields):
            model, pairs = self._weights.description, self._checked_pairs.data_ptr()
            for n_lanes, error in ((32, "^resident sampler: |^compiled without CUDA: "), (33, "^n_lanes: |^compiled")):
                with pytest.raises((RuntimeError, ValueError), match=error):
                    _C.resident_cuda(model, self._weights.place, fields, pairs, True, 1, n_lanes, 1, 0, 0)
            with pytest.raises((RuntimeError, ValueError), match="^CUDA: |^compiled without CUDA: "):
                _C.cuda_block_limits(0)
            super()._run(fields)

    assert run(Launched, MODEL, SPRING, chain_positions(2), 1, 1)[0].n_steps == 1


@pytest.mark.parametrize("n_atoms, n_replicas", [(1, 5), (5, 10**5), (22, 1), (22, 10**4), (33, 500), (64, 10**4)])
def test_the_plan_fits(n_atoms, n_replicas):
    model = SchNet(n_atoms, bonds=[(i, i + 1) for i in range(n_atoms - 1)])
    molecules, lanes = plan(model, n_replicas, HOST_LIMITS)
    assert block_bytes(model, molecules) <= HOST_LIMITS[0] and molecules * n_atoms <= 66
    assert 32 <= lanes <= 512 and lanes % 32 == 0
    assert molecules == 1 or -(-n_replicas // (molecules - 1)) > HOST_LIMITS[1]
    assert plan(model, n_replicas, (1, 1))[0] == 1


def test_the_module_refuses_what_would_read_out_of_bounds():
    good = {"rule": 0, "n_pairs": 0, "molecules": 1, "n_lanes": 32, "precision": 0}

    class Refused(block_run()):
        def _run(self, fields):
            model, pairs = self._weights.description, torch.tensor([[0, 5]])
            bad_places = torch.full((16,), 99, dtype=torch.int32)

            def call(model=model, **other):
                fill = good | other
                _C.resident_emulated(model, fields | {"pairs": pairs.data_ptr(), "rule": fill["rule"],
                                                      "n_pairs": fill["n_pairs"]},
                                     True, fill["molecules"], fill["n_lanes"], fill["precision"], False)

            for name, value in (("rule", 4), ("rule", 5), ("rule", -1), ("molecules", 0), ("molecules", 205),
                                ("n_lanes", 0), ("n_lanes", 513), ("precision", -1), ("precision", 3), ("n_pairs", 1)):
                with pytest.raises(ValueError, match=f"^{name.removeprefix('n_p').replace('airs', 'pairs')}: expected"):
                    call(**{name: value})
            for name in ("roles", "role_starts", "spring_ends", "spring_starts"):
                with pytest.raises(ValueError, match=f"^{name}: expected"):
                    call(model | {name: bad_places.data_ptr()})
            with pytest.raises(ValueError, match="^n_atoms: expected at most 64"):
                call(model | {"n_atoms": 65})
            super()._run(fields)

    assert run(Refused, MODEL, SPRING, chain_positions(2), 1, 1)[0].n_steps == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the device code was run on the host only")
@pytest.mark.parametrize("n_atoms, parts", [(5, EVERYTHING), (22, EVERYTHING), (64, BARE)])
def test_a_gpu_gives_the_bits_of_the_emulation(rng, n_atoms, parts):
    """Neither side's compiler fuses; fused products, square roots and divisions are rounded as IEEE 754 says.

    On tensor cores, whose sums are rounded in a way that nobody documents: the same to the precision's own error.
    """
    model = make_model(rng, n_atoms, dtype=torch.float32, **parts)
    positions = make_positions(rng, 3, n_atoms, torch.float32)
    arguments = (Spring.from_time_step(1e-9, 0.001), positions, 6, 3)
    emulated = run(block_run(), model, *arguments, options={"force": True})
    on_device = run(None, copy.deepcopy(model).cuda(), *arguments, options={"force": True})
    assert_same((emulated, on_device))
    for precision, tolerance in (("3xtf32", 1e-4), ("tf32", 0.05)):
        options = {"force": True, "precision": precision}
        energies, wanted = (run(loop, on, *arguments, options=options)[1]
                            for loop, on in ((None, copy.deepcopy(model).cuda()), (block_run(), model)))
        np.testing.assert_allclose(energies, wanted, rtol=tolerance, atol=tolerance)
