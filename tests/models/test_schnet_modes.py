"""What SchNet keeps between calls, and torch's modes: neither may leave a trace in later results."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from diffmd_fast import InputError, use_backend
from diffmd_fast.models import Harmonic, SchNet

from .test_schnet import CHAIN, chain_positions, make


@pytest.fixture
def model():
    return make(torch.float32)


@pytest.fixture
def x():
    return chain_positions(dtype=torch.float32)


def test_autocast_does_not_enter_what_is_kept(model, x):
    want = model.energy_and_score(x)
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = twin.energy_and_score(x)
    assert torch.equal(inside[0], want[0]) and torch.equal(twin.energy_and_score(x)[1], want[1])


def test_low_precision_models_are_refused(model, x):
    with pytest.raises(InputError, match="^positions: expected the dtype of the model"):
        model.bfloat16().energy_and_score(x)


def test_other_dtype_than_the_model_is_one_clear_error_where_gradients_are_wanted(model, x):
    with pytest.raises(InputError, match="^positions: expected the dtype of the model"):
        model.energy_and_score(x.double().requires_grad_())
    exact = copy.deepcopy(model).double().energy_and_score(x.double())
    torch.testing.assert_close(model.energy_and_score(x.double())[0], exact[0], rtol=1e-5, atol=1e-4)


def test_conversion_there_and_back_is_noticed(model, x):
    """Every parameter changes by its rounding, its address might come back, torch's count of changes does."""
    for _ in range(3):
        before = model.energy_and_score(x)[0]
        model = model.half().float()
        fresh = copy.deepcopy(model).energy_and_score(x)[0]
        assert torch.equal(model.energy_and_score(x)[0], fresh)
        with torch.no_grad():
            model.embedding.add_(0.01)
        assert not torch.equal(model.energy_and_score(x)[0], before)


def test_copies_and_pickles_carry_nothing_kept(model, x):
    empty = len(pickle.dumps(model))
    want = model.energy_and_score(x)
    model.energy(x)
    assert model._folded is not None and model._neighbors is not None
    assert len(pickle.dumps(model)) == empty
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._folded is None and twin._neighbors is None
        assert torch.equal(twin.energy_and_score(x)[1], want[1])
        with torch.no_grad():
            twin.readout_out.mul_(2)
        assert not torch.equal(twin.energy_and_score(x)[1], want[1])


def test_threads_with_different_noise_levels_and_batches(model, x):
    """Each thread must get what it asked for, not what another has put into the one place."""
    jobs = [(0.003, x), (0.2, x[:2])]
    want = [(model.energy_and_score(p, level)[1], model.energy(p, level)) for level, p in jobs]

    def work(k):
        level, p = jobs[k]
        for _ in range(300):
            got = (model.energy_and_score(p, level)[1], model.energy(p, level))
            assert all(torch.equal(a, b) for a, b in zip(got, want[k]))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(work, k) for k in (0, 1)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)


def test_inference_mode_before_training(model, x):
    """Tensors made in inference mode can never take part in a backward: none may be kept."""
    want = model.energy_and_score(x)
    with torch.inference_mode():
        torch.testing.assert_close(model.energy(x), want[0])
        with use_backend("reference"):
            torch.testing.assert_close(model.energy_and_score(x)[1], want[1], rtol=1e-4, atol=1e-2)
        inner = x.clone()
    torch.testing.assert_close(model.energy_and_score(inner)[1], want[1])
    assert Harmonic(5, stiffness=2.0).score(inner).isfinite().all()
    model.energy(x.clone().requires_grad_()).sum().backward()
    assert model.embedding.grad.isfinite().all()


def test_model_made_in_inference_mode(x):
    with torch.inference_mode():
        model = make(torch.float32)
        before = model.energy_and_score(x)[0]
        model.embedding.add_(0.1)
    assert not torch.equal(model.energy_and_score(x)[0], before)


def test_fake_tensors_never_reach_native_memory(model, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        energy, score = model.energy_and_score(mode.from_tensor(x))
        assert energy.shape == (3,) and score.shape == x.shape
    assert type(model.energy(x)) is torch.Tensor
    torch.testing.assert_close(model.energy(x), model.energy_and_score(x)[0], rtol=1e-5, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*no kernel for torch.func")
def test_transforms_and_forward_mode():
    model, x = make(), chain_positions(2)
    v = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    score = model.score(x)
    slope = torch.func.jvp(model.energy, (x,), (v,))[1]
    torch.testing.assert_close(slope, -(score * v).sum((1, 2)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.func.grad(lambda y: model.energy(y).sum())(x), -score, rtol=1e-8, atol=1e-8)
    with forward_ad.dual_level():
        with pytest.raises(InputError, match="^positions: expected requires_grad=True"):
            model.score(forward_ad.make_dual(x, v))
        dual = forward_ad.make_dual(x.clone().requires_grad_(), v)
        along = forward_ad.unpack_dual(model.score(dual)).tangent
    step = 1e-6
    want = (model.score(x + step * v) - model.score(x - step * v)) / (2 * step)
    torch.testing.assert_close(along, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
    assert torch.isfinite(model.energy(x)).all()  # nothing of a transform was kept


def test_compiles(model, x):
    torch.testing.assert_close(torch.compile(model.energy, fullgraph=True, backend="aot_eager")(x), model.energy(x))


@pytest.mark.parametrize("first", ["the bad one", "a good one"])
def test_a_bad_replica_is_nan_and_alone_also_with_gradients(model, x, first):
    """Whether a list was kept from an earlier call must not decide between NaN and an error."""
    if first == "a good one":
        model.energy(x)
    broken = x.clone()
    broken[1, 2, 0] = float("nan")
    energy = model.energy(broken)
    assert energy[1].isnan() and energy[[0, 2]].isfinite().all()


@pytest.mark.parametrize("noise", [-0.1, 0.0, float("nan"), "small", torch.ones(3)])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_noise_level_on_every_path(model, backend, noise):
    with use_backend(backend), pytest.raises(InputError, match="^noise_level:"):
        model.energy(torch.zeros(2, 5, 3), noise)


@pytest.mark.parametrize(("argument", "change"), [
    ("bonds", dict(bonds=[(0.9, 1.2)])),
    ("springs", dict(springs={"pairs": [(0, 1)]})),
    ("springs", dict(springs={"pairs": [(0, 1)], "mean": [float("nan")], "variance": [1.0]})),
    ("n_knots", dict(n_knots=10**9)),
])
def test_bad_construction(argument, change):
    with pytest.raises(InputError, match=f"^{argument}:"):
        SchNet(**{**dict(n_atoms=5, bonds=CHAIN), **change})


def test_for_molecule_of_no_atoms():
    with pytest.raises(InputError, match="^atom_types:"):
        SchNet(2, 8, 1, atom_types=[6, 6]).for_molecule([])


def test_for_molecule_stays_on_the_device():
    twin = SchNet(2, 8, 1, atom_types=[6, 8]).to("meta").for_molecule([8, 6, 6], [(0, 1)])
    assert {t.device.type for t in (*twin.parameters(), *twin.buffers())} == {"meta"}


def test_energy_of_a_frozen_model_is_the_native_one(model, x):
    """As load_model gives it: nothing to differentiate, so the fast path, with gradients enabled or not."""
    assert model.energy(x).requires_grad
    model.requires_grad_(False)
    energy = model.energy(x)
    assert torch.equal(energy, model.energy_and_score(x)[0]) and not energy.requires_grad
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.energy(leaf).sum(), leaf)
    torch.testing.assert_close(-gradient, model.score(x), rtol=1e-4, atol=1e-2)
