"""The step that is captured in a CUDA graph, called instead of replayed: the step-by-step trajectory to the bit."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from diffmd_fast import backend, use_backend
from diffmd_fast.errors import UnavailableError
from diffmd_fast.models import SchNet
from diffmd_fast.models.static import StaticSchNet
from diffmd_fast.ops import fixed_list
from diffmd_fast.sampling import EnergyReporter, Sampler, Spring, graph, resident
from diffmd_fast.sampling.graph import GraphRun
from diffmd_fast.sampling.loop import Run

from ..models import test_schnet_periodic as large
from ..no_host import HostWaited, NoHost, on_meta
from .common import Breaks, ScoreOnly, Well, chain_positions, small_schnet, start
from .test_resident import assert_same, inside, narrow

INTEGRATORS = ["euler-maruyama", "leimkuhler-matthews", "heun", "metropolis", "baoab"]
WELL_SPRING = Spring.from_time_step(1e-3, 1.0)  # D dt L = 0.1


class Captured(GraphRun):
    """As on a GPU as far as a CPU can: a step that would make the host wait cannot be captured."""

    kept = None

    def _record(self):
        Captured.kept = self
        with NoHost():
            self._captured()
        return self._captured


def run(loop, model, spring, positions, *arguments, options=None, **more):
    """A run in that loop, and its energies; warnings of lost replicas are let be."""
    energies = EnergyReporter()
    sampler = Sampler(model, spring, **{"resident": loop is not Run, **(options or {})})
    sampler._loop = lambda start: (loop, "chosen by the test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sampler.run(positions, *arguments, reporters=[energies], **more), energies.energies


def both(*arguments, **options):
    return [run(loop, *arguments, **options) for loop in (Run, Captured)]


class ByList(nn.Module):
    """A SchNet through a StaticSchNet that is new at every call: no list is ever kept."""

    def __init__(self, model):
        super().__init__()
        self.model, self.n_atoms, self.support = model, model.n_atoms, model.support
        self.noise_level, self.temperature = model.noise_level, model.temperature

    def energy_and_score(self, positions):
        return StaticSchNet(self.model, None, positions)(positions)

    def score(self, positions):
        return self.energy_and_score(positions)[1]


def beads(rng, box, n_replicas=2):
    """A model of chains of five in a box, or of more atoms than have all pairs for neighbors, and where they are."""
    n_atoms = 66 if box is None else 30
    return (large.make(rng, n_atoms, box, True, n_features=8, dtype=torch.float32),
            large.place(rng, n_replicas, n_atoms, box or large.LENGTHS, torch.float32))


BEAD_SPRING = Spring.from_time_step(1e-2, 1e-2)  # a step is 0.02 nm, a tenth of the skin


# ---- the same trajectory -----------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_as_step_by_step_with_every_integrator(integrator, dtype):
    options = {"integrator": integrator, "seed": 2**63 + 5, "first_replica": 7, "temperature": ((0, 300), (40, 450))}
    if integrator == "baoab":
        options["masses"] = [12.0, 1.0, 14.0, 16.0]
    with use_backend("reference"):  # for metropolis and baoab, which have native code of their own in that loop
        runs = both(Well(), WELL_SPRING, start(5).to(dtype), 40, 7, check_every=3, options=options)
    assert_same(runs)
    if integrator == "metropolis":
        np.testing.assert_array_equal(runs[0][0].acceptance, runs[1][0].acceptance)
        assert 0 < runs[0][0].acceptance.min() < 1
    if integrator == "baoab":
        np.testing.assert_array_equal(runs[0][0].final_velocities, runs[1][0].final_velocities)
        np.testing.assert_array_equal(runs[0][0].kinetic_temperature, runs[1][0].kinetic_temperature)


@pytest.mark.parametrize("integrator", INTEGRATORS[:3])
def test_same_bits_as_the_native_step(integrator):
    assert_same(both(Well(), WELL_SPRING, start(5), 30, 10, options={"integrator": integrator}))


@pytest.mark.parametrize("n_steps, save_every, check_every", [(30, 7, 4), (30, 30, 1), (5, 9, 2), (24, 8, 100)])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_same_bits_for_any_intervals_batches_and_a_score_alone(n_steps, save_every, check_every, batch_size):
    assert_same(both(ScoreOnly(), WELL_SPRING, start(5), n_steps, save_every, check_every=check_every,
                     options={"batch_size": batch_size}))


def test_visits_may_be_cut_anywhere(monkeypatch):
    whole = run(Captured, Well(), WELL_SPRING, start(5), 50, 10)
    for module, name, value in ((resident, "CALL_SECONDS", 0.0), (graph, "STEPS_A_VISIT", 3),
                                (resident, "MAX_FRAME_BYTES", 1)):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, value)
            assert_same((whole, run(Captured, Well(), WELL_SPRING, start(5), 50, 10)))


def test_a_resumed_run_is_the_same_run(rng, tmp_path):
    """The list starts anew, and candidates with it: no bit may come from them."""
    model, x = beads(rng, large.LENGTHS)
    whole, _ = run(Captured, model, BEAD_SPRING, x, 12, 3, options={"force": True})
    out = tmp_path / "traj.npz"
    run(Captured, model, BEAD_SPRING, x, 6, 3, options={"force": True}, out=out)
    rest, _ = run(Captured, model, BEAD_SPRING, None, 12, 3, options={"force": True}, out=out, resume=True)
    np.testing.assert_array_equal(whole.final_positions, rest.final_positions)


@pytest.mark.parametrize("box", [None, large.LENGTHS, large.TRICLINIC])
def test_lists_that_are_kept_give_the_bits_of_lists_that_are_not(rng, box):
    model, x = beads(rng, box)
    runs = [run(loop, m, BEAD_SPRING, x, 16, 4, options={"force": True}) for loop, m in (
        (Run, ByList(model)), (Captured, model))]
    assert_same(runs)
    (kept,) = Captured.kept._lists
    assert kept.skin < 0.1 or 2 * len(x) <= kept.n_builds < 16 * len(x)


@pytest.mark.parametrize("box", [None, large.TRICLINIC])
def test_the_models_own_trajectory_to_rounding(rng, box):
    model, x = beads(rng, box)
    one, other = both(model.double(), BEAD_SPRING, x.double(), 10, 5, options={"force": True})
    np.testing.assert_allclose(other[0].positions, one[0].positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(other[1], one[1], rtol=1e-9)


def test_a_small_molecule_has_all_pairs():
    model, x = small_schnet(), chain_positions(6).double()
    one, other = both(model.double(), Spring.from_time_step(2e-3, 2e-3), x, 30, 10, options={"force": True})
    np.testing.assert_allclose(other[0].positions, one[0].positions, rtol=0, atol=1e-9)
    assert Captured.kept._lists == ()


# ---- lists that outgrow their memory -----------------------------------------------------------------


def test_steps_are_made_again_with_more_memory(rng, monkeypatch):
    """A pull to the centre brings the atoms together: pairs grow from few to most of them."""
    torch.manual_seed(1)
    model = SchNet(66, 8, 1, cutoff=0.5, spread=1e-4).requires_grad_(False)
    x, spring = 0.7 * torch.randn(1, 66, 3, generator=rng), Spring.from_time_step(1e-2, 0.2)
    roomy = run(Captured, model, spring, x, 24, 8, options={"force": True, "noise_level": 0.1})
    fits = []
    with monkeypatch.context() as changed:
        changed.setattr(fixed_list, "SPARE", 1.0)
        fit = fixed_list.FixedList.fit
        changed.setattr(fixed_list.FixedList, "fit", lambda self: (fits.append(len(self.col)), fit(self)))
        tight = run(Captured, model, spring, x, 24, 8, options={"force": True, "noise_level": 0.1})
    assert_same((roomy, tight))
    assert len(fits) > 1 and fits == sorted(fits) and len(Captured.kept._lists[0].col) > 2 * fits[0]


# ---- losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", ["euler-maruyama", "heun", "baoab"])
def test_scores_that_are_not_finite_lose_the_same_replicas(integrator):
    options = {"integrator": integrator, **({"masses": 12.0} if integrator == "baoab" else {})}
    with use_backend("reference"):
        runs = both(Breaks(edge=0.12), WELL_SPRING, start(20, width=0.05), 60, 20, check_every=3, options=options)
    assert_same(runs)
    reasons = {entry.reason for entry in runs[1][0].lost}
    assert 0 < len(runs[1][0].lost) < 20 and "its score is not finite" in reasons


def test_replicas_that_leave_the_support_are_lost_alike():
    """With the energy worked out by the model's own call in both loops, so that scores have the same bits."""
    class Through(ByList):
        def energy_and_score(self, positions):
            return self.model.energy_and_score(positions)

    model, spring = Through(narrow()), Spring.from_time_step(1e-3, 2e-3)
    runs = [run(loop, model, spring, inside(40), 60, 20, check_every=7, options={"force": True})
            for loop in (Run, GraphRun)]
    assert_same(runs)
    lost = runs[1][0].lost
    assert 3 < len(lost) < 40 and len({entry.step for entry in lost}) > 2
    assert all("training range" in entry.reason for entry in lost)


def test_a_run_ends_when_every_replica_is_lost():
    runs = both(Breaks(edge=0.05), WELL_SPRING, start(6, width=0.02), 4000, 50, check_every=7)
    assert_same(runs)
    assert len(runs[1][0].lost) == 6 and runs[1][0].n_steps < 4000


# ---- what cannot be captured, and who is asked ----------------------------------------------------------


class Reads(Well):
    """Its score depends on a number that the host reads."""

    def energy_and_score(self, positions, noise_level=None):
        energy, score = super().energy_and_score(positions)
        return energy, score * (1.0 if positions.abs().max().item() > 0 else 0.0)


def test_a_module_that_cannot_be_captured_runs_step_by_step_and_says_so(monkeypatch):
    monkeypatch.setattr(backend, "_said", set())
    want = run(Run, Reads(), WELL_SPRING, start(3), 12, 4)
    options = {"resident": None}
    with pytest.warns(UserWarning, match="^Reads: its step cannot be captured in a CUDA graph .HostWaited: "
                                         "aten._local_scalar_dense.*running step by step"):
        sampler = Sampler(Reads(), WELL_SPRING)
        sampler._loop = lambda start: (Captured, "chosen by the test")
        sampler.run(start(3), 12, 4)
    assert_same((want, run(Captured, Reads(), WELL_SPRING, start(3), 12, 4, options=options)))
    with pytest.raises(UnavailableError, match="^resident: Reads: its step cannot be captured"):
        run(Captured, Reads(), WELL_SPRING, start(3), 12, 4)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("box", [None, large.LENGTHS])
def test_no_step_makes_the_host_wait(rng, integrator, box):
    """On the CPU with its values, and on "meta", where copies from and to the CPU show as well."""
    model, x = beads(rng, box)
    model.support = {"pairs": [[0, 1]], "lowest": [0.0], "highest": [9.0], "energy": [-1e9, 1e9]}
    options = {"force": True, "integrator": integrator, **({"masses": 1.0} if integrator == "baoab" else {})}
    run(Captured, model, Spring.from_time_step(1e-5, 1e-2), x, 2, 1, options=options)
    step = on_meta(Captured.kept._captured)
    mode = NoHost()
    with torch.no_grad(), mode:
        step()
    assert {"diffmd_fast.em_step_at_.default", "diffmd_fast.list_candidates_.default",
            "diffmd_fast.spline_conv_backward_unchecked.default"} <= mode.seen


@pytest.mark.parametrize("waits", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: torch.tensor([1.0]),
                                   lambda x: x.cpu(), lambda x: torch.ones(1).to(x.device), lambda x: x.nonzero(),
                                   lambda x: bool((x > 0).all()), lambda x: x.tolist()])
def test_what_makes_the_host_wait_is_found(waits):
    x = torch.ones(3, device="meta")
    with NoHost(), pytest.raises(HostWaited):
        waits(x)


def test_a_compiled_module_is_captured():
    class Compiled(ScoreOnly):
        def __init__(self):
            super().__init__()
            self.score = torch.compile(self.score, backend="eager", fullgraph=True)

    # Without NoHost: under it torch compiles nothing.
    assert_same([run(loop, Compiled(), WELL_SPRING, start(3), 12, 4) for loop in (Run, GraphRun)])


def test_memory_is_stated(rng):
    model, x = beads(rng, None)
    run(Captured, model, BEAD_SPRING, x, 10, 1, options={"force": True})
    whole, lists, frames = (float(word) for word in str(Captured.kept).replace(",", "").split()
                            if word.replace(".", "").isdigit())
    assert frames == round(12 * 2 * 66 * 3 * 4 / 1e6, 1) and whole >= lists + frames - 0.1


def test_gpu_runs_that_the_blocks_do_not_serve_get_the_graph(monkeypatch):
    """What the sampler asks before a run, of a tensor that says it is on a GPU."""
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    big = Sampler(SchNet(65, 8, 1), WELL_SPRING)
    if not torch.cuda.is_available():
        loop, remark = big._loop(x)
        assert loop is Run and "more than 64 atoms" in remark and "no CUDA graph: torch" in remark
    monkeypatch.setattr(graph, "unavailable", lambda name: None)
    monkeypatch.setattr(backend, "_said", set())
    with pytest.warns(UserWarning, match="more than 64 atoms.*replayed as a CUDA graph instead"):
        assert big._loop(x)[0] is GraphRun
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert big._loop(x)[0] is GraphRun
        assert Sampler(SchNet(65, 8, 1), WELL_SPRING, resident=False)._loop(x)[0] is Run
    with use_backend("reference"):
        assert big._loop(x)[0] is Run
