"""torsions: mdtraj's sign and values, SIMD levels against the reference, derivatives, bad input."""

import pytest
import torch

from diffmd_fast import InputError, UnavailableError, ops, reference, set_num_threads
from diffmd_fast.reference.torsions import (
    AREA_FLOOR,
    LENGTH_FLOOR,
    torsions_backward_core,
    torsions_core,
    torsions_double_backward_core,
)

from .common import SIMD_LEVELS, assert_float64_rule, opcheck, simd_level

OPERATORS = torch.ops.diffmd_fast


def make(rng, n_replicas=5, n_atoms=9, n_torsions=7, dtype=torch.float64):
    """A rough molecule: a noisy helix, bonds near 0.15 nm; quadruples along it and across it."""
    i = torch.arange(n_atoms, dtype=torch.float64)
    helix = torch.stack([0.07 * torch.cos(2 * i), 0.07 * torch.sin(2 * i), 0.09 * i], dim=-1)
    noise = torch.randn(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    rows = [torch.arange(4) + k for k in range(n_atoms - 3)]
    rows += [torch.randperm(n_atoms, generator=rng)[:4] for _ in range(n_torsions)]
    return (helix + 0.01 * noise).to(dtype), torch.stack(rows[:n_torsions])


def tangents(rng, positions, quadruples):
    grad = torch.randn(len(positions), len(quadruples), 2, generator=rng, dtype=torch.float64)
    cotangent = torch.randn(positions.shape, generator=rng, dtype=torch.float64)
    return grad.to(positions.dtype), cotangent.to(positions.dtype)


def derivatives(operator, positions, quadruples, grad, cotangent):
    """Value, gradient of <grad, value>, and the gradients of <cotangent, gradient> to positions and grad."""
    x, g = positions.detach().requires_grad_(), grad.detach().requires_grad_()
    value = operator(x, quadruples)
    (gradient,) = torch.autograd.grad((value * g).sum(), x, create_graph=True)
    second, jvp = torch.autograd.grad((gradient * cotangent).sum(), (x, g))
    return value.detach(), gradient.detach(), second, jvp


def degenerate() -> dict[str, torch.Tensor]:
    """Four atoms each; every way a torsion can lose its meaning."""
    a, b, c, d = [0.05, 0.12, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.0, 0.14]
    cases = {
        "a on the axis": [[-0.15, 0, 0], b, c, d], "d on the axis": [a, b, c, [0.3, 0, 0]],
        "all on a line": [[-0.15, 0, 0], b, c, [0.3, 0, 0]], "b on c": [a, b, b, d], "a on b": [b, b, c, d],
        "c on d": [a, b, c, c], "a on c": [c, b, c, d], "all in one point": [b, b, b, b],
    }
    return {name: torch.tensor([rows], dtype=torch.float64) for name, rows in cases.items()}


ONE = torch.tensor([[0, 1, 2, 3]])


def test_sign_and_trans():
    """Clockwise looking from b to c is positive, trans is (0, -1), cis is (0, 1)."""
    for degrees in (-179.0, -120.0, -60.0, 0.0, 33.0, 90.0, 180.0):
        f = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        zero = torch.zeros_like(f)
        # looking along +z from b to c, clockwise is x towards y
        d = torch.stack([0.14 * torch.cos(f), 0.14 * torch.sin(f), zero + 0.2])
        rest = torch.tensor([[0.14, 0, -0.05], [0, 0, 0], [0, 0, 0.15]], dtype=torch.float64)
        got = ops.torsions(torch.cat([rest, d[None]])[None], ONE)[0, 0]
        torch.testing.assert_close(got, torch.stack([torch.sin(f), torch.cos(f)]), atol=1e-6, rtol=0)


def test_equals_mdtraj(rng):
    mdtraj = pytest.importorskip("mdtraj")
    positions, quadruples = make(rng, 20, 12, 20, dtype=torch.float32)
    trajectory = mdtraj.Trajectory(positions.numpy(), None)
    want = torch.from_numpy(mdtraj.compute_dihedrals(trajectory, quadruples.numpy(), periodic=False))
    got = ops.torsions(positions, quadruples)
    assert (got[..., 1] < -0.5).any() and (got[..., 0] > 0.5).any() and (got[..., 0] < -0.5).any()
    torch.testing.assert_close(got, torch.stack([want.sin(), want.cos()], -1), atol=2e-5, rtol=0)


def test_floors_change_ordinary_molecules_by_less_than_1e_5(shared_data):
    """Alkanes and alanine dipeptide with its hydrogens, against the angle without any floor."""
    numpy = pytest.importorskip("numpy")
    butane = torch.from_numpy(numpy.load(shared_data / "butane_ua_300K.npz")["positions"][:2000]).double()
    ala = numpy.load(shared_data / "ala2_implicit_300K_valid_eval.npz")
    dipeptide = torch.from_numpy(ala["positions"][:500]).double()
    neighbors = {a: set() for a in range(22)}
    for i, j in ala["bonds"].tolist():
        neighbors[i].add(j)
        neighbors[j].add(i)
    bonded = torch.tensor([(a, b, c, d) for b in range(22) for c in neighbors[b] if b < c
                           for a in neighbors[b] - {c} for d in neighbors[c] - {b, a}])
    for positions, quadruples in ((butane, ONE), (dipeptide, bonded)):
        a, b, c, d = (positions[:, quadruples[:, i]] for i in range(4))
        n1, n2 = torch.linalg.cross(b - a, c - b), torch.linalg.cross(c - b, d - c)
        y = (c - b).norm(dim=-1) * ((b - a) * n2).sum(-1)
        exact = torch.stack([y, (n1 * n2).sum(-1)], -1) / (n1.norm(dim=-1) * n2.norm(dim=-1))[..., None]
        assert (ops.torsions(positions, quadruples) - exact).abs().max() < 1e-5


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("shape", [(1, 4, 1), (3, 9, 7), (17, 12, 19), (40, 22, 41)])
def test_native_float64_equals_reference(rng, level, shape):
    positions, quadruples = make(rng, *shape)
    arguments = (positions, quadruples, *tangents(rng, positions, quadruples))
    want = derivatives(reference.torsions, *arguments)
    with simd_level(level):
        got = derivatives(ops.torsions, *arguments)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_float32_within_twice_the_reference_error(rng, level):
    positions, quadruples = make(rng, 200, 22, 41, dtype=torch.float32)
    arguments = (positions, quadruples, *tangents(rng, positions, quadruples))
    double = (positions.double(), quadruples, *(t.double() for t in arguments[2:]))
    want64, want32 = derivatives(reference.torsions, *double), derivatives(reference.torsions, *arguments)
    with simd_level(level):
        got = derivatives(ops.torsions, *arguments)
    for name, a, b, c in zip(("value", "gradient", "second", "jvp"), got, want32, want64):
        assert_float64_rule(a, b, c, name)


def test_explicit_derivatives_of_the_reference(rng):
    """What devices without a kernel run: the same as autograd through the formula."""
    positions, quadruples = make(rng)
    grad, cotangent = tangents(rng, positions, quadruples)
    value, gradient, second, jvp = derivatives(torsions_core, positions, quadruples, grad, cotangent)
    torch.testing.assert_close(torsions_backward_core(grad, positions, quadruples), gradient)
    got = torsions_double_backward_core(cotangent, grad, positions, quadruples)
    for a, b in zip(got, (jvp, second, gradient)):
        torch.testing.assert_close(a, b)


def test_gradients(rng):
    positions, quadruples = make(rng, 2, 6, 4)

    def f(x):
        return ops.torsions(x, quadruples)

    assert torch.autograd.gradcheck(f, (positions.requires_grad_(),))
    assert torch.autograd.gradgradcheck(f, (positions,))


@pytest.mark.parametrize("name", degenerate())
def test_gradients_near_degenerate(rng, name):
    """Within 0.01 nm of a geometry without a torsion, finite differences still agree."""
    noise = torch.randn(1, 4, 3, generator=rng, dtype=torch.float64)
    positions = (degenerate()[name] + 0.01 * noise).requires_grad_()

    def f(x):
        return ops.torsions(x, ONE)

    assert torch.autograd.gradcheck(f, (positions,), eps=1e-7, rtol=1e-3)
    assert torch.autograd.gradgradcheck(f, (positions,), eps=1e-8, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", degenerate())
def test_degenerate_is_finite_and_smooth(rng, name, dtype):
    positions = degenerate()[name].to(dtype)
    grad, cotangent = tangents(rng, positions, ONE)
    results = derivatives(ops.torsions, positions, ONE, grad, cotangent)
    assert all(torch.isfinite(r).all() for r in results)
    assert results[0].abs().max() < 1e-6  # no angle: neither sine nor cosine
    assert results[1].abs().max() < 1e5  # |b2| |n2| / sqrt(AREA_FLOOR), times the size of grad
    assert results[2].abs().max() < 1e10
    for a, b in zip(results, derivatives(reference.torsions, positions, ONE, grad, cotangent)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item() + 1e-12)
    # smooth: a displacement far below the floors' length changes the value by its first derivative only
    step = 1e-9
    moved = ops.torsions(degenerate()[name] + step * cotangent.double(), ONE)
    want = results[0] + step * results[3]
    torch.testing.assert_close(moved, want.double(), rtol=0, atol=1e-7)


def test_floors_are_those_of_the_native_code(rng):
    """At tiny geometries the floors are all that matters: a floor that differed in one room would show."""
    for scale in (0.1 * LENGTH_FLOOR**0.5, AREA_FLOOR**0.125):
        positions = scale * torch.randn(3, 4, 3, generator=rng, dtype=torch.float64)
        want = reference.torsions(positions, ONE)
        torch.testing.assert_close(ops.torsions(positions, ONE), want, rtol=1e-12, atol=0)


def test_mirror_image_flips_the_sine_only(rng):
    positions, quadruples = make(rng)
    value = ops.torsions(positions, quadruples)
    assert value[..., 0].abs().min() > 1e-3
    mirror = ops.torsions(positions * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64), quadruples)
    torch.testing.assert_close(mirror, value * torch.tensor([-1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ops.torsions(positions, quadruples.flip(1)), value)


def test_rotation_and_translation_change_nothing(rng):
    positions, quadruples = make(rng)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))
    rotation = q * torch.sign(torch.linalg.det(q))
    moved = positions @ rotation + torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    want = ops.torsions(positions, quadruples)
    torch.testing.assert_close(ops.torsions(moved, quadruples), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_and_batches_change_nothing(rng, dtype):
    positions, quadruples = make(rng, 301, 22, 41, dtype=dtype)
    arguments = (positions, quadruples, *tangents(rng, positions, quadruples))
    try:
        set_num_threads(1)
        want = derivatives(ops.torsions, *arguments)
        for n in (2, 3):
            set_num_threads(n)
            assert all(torch.equal(a, b) for a, b in zip(derivatives(ops.torsions, *arguments), want))
        # nor does the batch that a replica is in
        parts = [derivatives(ops.torsions, positions[s], quadruples, arguments[2][s], arguments[3][s])
                 for s in (slice(0, 1), slice(1, 130), slice(130, 301))]
        assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts), want))
    finally:
        set_num_threads(None)


def test_opcheck(rng):
    positions, quadruples = make(rng, dtype=torch.float32)
    grad, cotangent = tangents(rng, positions, quadruples)
    opcheck(OPERATORS.torsions_double_backward, (cotangent, grad, positions, quadruples))
    opcheck(OPERATORS.torsions, (positions.requires_grad_(), quadruples))
    opcheck(OPERATORS.torsions_backward, (grad.requires_grad_(), positions, quadruples))


def test_third_derivative_says_so(rng):
    positions, quadruples = make(rng)
    grad, cotangent = tangents(rng, positions, quadruples)

    def third(operator):
        x = positions.clone().requires_grad_()
        (first,) = torch.autograd.grad((operator(x, quadruples) * grad).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * cotangent).sum(), x, create_graph=True)
        return torch.autograd.grad((second * cotangent).sum(), x)[0]

    with pytest.raises(UnavailableError, match="torsions: the third derivative"):
        third(ops.torsions)
    assert torch.isfinite(third(reference.torsions)).all()


def test_non_contiguous_int32_and_empty(rng):
    positions, quadruples = make(rng, 6, 8, 5)
    want = ops.torsions(positions, quadruples)
    strided = positions.repeat_interleave(2, dim=1)[:, ::2]
    assert not strided.is_contiguous()
    assert torch.equal(ops.torsions(strided, quadruples.T.contiguous().T), want)
    assert torch.equal(ops.torsions(positions, quadruples.int()), want)
    none = torch.zeros(0, 4, dtype=torch.int64)
    for f in (ops.torsions, reference.torsions):
        assert f(positions[:0], quadruples).shape == (0, 5, 2)
        x = positions.clone().requires_grad_()
        value = f(x, none)
        assert value.shape == (6, 0, 2)
        assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.zeros_like(x))


def test_nan_stays_nan_in_its_replica(rng):
    positions, _ = make(rng, 3, 9)
    quadruples = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    positions[1, 2, 0] = float("nan")
    for f in (ops.torsions, reference.torsions):
        bad = torch.isnan(f(positions, quadruples)).any(-1)
        assert bad.tolist() == [[False, False], [True, False], [False, False]]


def rows(*values):
    return torch.tensor(values)


BAD = [
    ("positions", dict(positions=torch.zeros(5, 3))),
    ("positions", dict(positions=torch.zeros(2, 5, 3, dtype=torch.float16))),
    ("positions", dict(positions=None)),
    ("quadruples", dict(quadruples=[[0, 1, 2, 3]])),
    ("quadruples", dict(quadruples=rows([0, 1, 2]))),
    ("quadruples", dict(quadruples=rows([0.0, 1.0, 2.0, 3.0]))),
    ("quadruples", dict(quadruples=torch.zeros(1, 4, dtype=torch.int64, device="meta"))),
    ("quadruples", dict(quadruples=rows([0, 1, 2, 5]))),
    ("quadruples", dict(quadruples=rows([0, 1, 2, 3], [-1, 1, 2, 3]))),
    ("quadruples", dict(quadruples=rows([0, 1, 2, 2**40]))),
    ("quadruples", dict(quadruples=rows([0, 1, 2, 0]))),
    ("quadruples", dict(quadruples=rows([0, 1, 1, 2]))),
]


@pytest.mark.parametrize("operator", [ops.torsions, reference.torsions])
@pytest.mark.parametrize(("argument", "change"), BAD)
def test_bad_input_is_one_clear_error(operator, argument, change):
    arguments = dict(positions=torch.zeros(2, 5, 3), quadruples=rows([0, 1, 2, 3]))
    with pytest.raises(InputError) as error:
        operator(**{**arguments, **change})
    assert str(error.value).startswith(argument + ":") and "\n" not in str(error.value)


def test_registered_operators_check_before_they_touch_memory():
    x, q = torch.zeros(2, 5, 3), rows([0, 1, 2, 3])
    with pytest.raises(InputError, match="^quadruples:"):
        OPERATORS.torsions_backward(torch.zeros(2, 1, 2), x, rows([0, 1, 2, 99]))
    for bad in (x.half(), x[0]):
        with pytest.raises(InputError, match="^positions:"):
            OPERATORS.torsions(bad, q)
    for bad in (q + 0.5, q[0], q[:, :3]):
        with pytest.raises(InputError, match="^quadruples:"):
            OPERATORS.torsions(x, bad)
    with pytest.raises(InputError, match="^grad_output:"):
        OPERATORS.torsions_backward(torch.zeros(2, 2, 2), x, q)
    with pytest.raises(InputError, match="^cotangent:"):
        OPERATORS.torsions_double_backward(torch.zeros(1, 5, 3), torch.zeros(2, 1, 2), x, q)


def test_replicas_without_atoms_cost_nothing():
    """A tensor of 2^60 such replicas has no elements; a loop over the replicas would not end."""
    positions, none = torch.zeros(2**60, 0, 3), torch.zeros(0, 4, dtype=torch.int64)
    assert ops.torsions(positions, none).shape == (2**60, 0, 2)
    assert torch.ops.diffmd_fast.torsions_backward(torch.zeros(2**60, 0, 2), positions, none).shape == positions.shape
