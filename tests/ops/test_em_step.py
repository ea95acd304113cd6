"""em_step: every backend and SIMD level against the reference, the noise's independence of batching, bad input."""

import math

import mpmath  # torch brings it
import numpy as np
import pytest
import torch

from diffmd_fast import InputError, ops, reference, set_num_threads
from diffmd_fast.reference.em_step import normals, philox_words

from .common import SIMD_LEVELS, assert_float64_rule, opcheck, simd_level


def numpy_philox(key, counter):
    """Philox4x32-10 written once more, in Python integers: an independent witness."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def make(rng, n_replicas=5, n_atoms=7, dtype=torch.float32):
    positions = torch.randn(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    score = 300 * torch.randn(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    return positions.to(dtype), score.to(dtype)


COMMON = dict(diffusion=0.002, time_step=1e-3, seed=2**63 + 5, first_replica=3, step=2**33 + 17)


def test_philox_known_answers():
    """Zero key and counter, and all ones: the values published with Random123."""
    assert numpy_philox((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert numpy_philox((ones, ones), (ones,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_reference_words_are_philox():
    seed, step = 0x0123456789ABCDEF, 0x00ABCDEF_12345678
    words = philox_words(seed, torch.tensor([[7], [2**32 - 1]]), step, torch.tensor([[0, 5]]), domain=2)
    for i, replica in enumerate((7, 2**32 - 1)):
        for j, atom in enumerate((0, 5)):
            want = numpy_philox((0x89ABCDEF, 0x01234567), (atom, replica, 0x12345678, 0x02ABCDEF))
            assert [int(w[i, j]) for w in words] == want


@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (3, 10), (5, 22), (40, 16)])
def test_native_float64_equals_reference(rng, level, shape):
    positions, score = make(rng, *shape, dtype=torch.float64)
    arguments = dict(COMMON, return_noise=True, return_log_density=True)
    want = reference.em_step(positions, score, **arguments)
    with simd_level(level):
        got = ops.em_step(positions, score, **arguments)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_float32_within_twice_the_reference_error(rng, level):
    positions, score = make(rng, 64, 22)
    arguments = dict(COMMON, return_noise=True, return_log_density=True)
    want64 = reference.em_step(positions.double(), score.double(), **arguments)
    want32 = reference.em_step(positions, score, **arguments)
    with simd_level(level):
        got = ops.em_step(positions, score, **arguments)
    for name, a, b, c in zip(got._fields, got, want32, want64):
        assert_float64_rule(a, b, c, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_does_not_depend_on_the_simd_level(rng, dtype):
    positions, score = make(rng, 50, 7, dtype)
    results = []
    for level in SIMD_LEVELS:
        with simd_level(level):
            results.append(ops.em_step(positions, score, **COMMON))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_does_not_depend_on_batch_or_threads(rng, dtype):
    positions, score = make(rng, 1000, 22, dtype)
    whole = ops.em_step(positions, score, **COMMON)
    parts = []
    for first, last in ((0, 1), (1, 334), (334, 1000)):
        arguments = dict(COMMON, first_replica=COMMON["first_replica"] + first)
        parts.append(ops.em_step(positions[first:last], score[first:last], **arguments))
    assert torch.equal(torch.cat(parts), whole)
    try:
        for n in (1, 2, 3):
            set_num_threads(n)
            assert torch.equal(ops.em_step(positions, score, **COMMON), whole)
    finally:
        set_num_threads(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_noise_does_not_depend_on_the_place_in_a_register(rng, level, dtype):
    """Every number of sites from 1 to beyond two registers, at every offset of one molecule in a batch."""
    positions, score = make(rng, 75, 1, dtype)
    per_replica = dict(COMMON, variance=torch.linspace(0.5, 1.5, 75, dtype=torch.float64))
    with simd_level(level):
        whole, scaled = ops.em_step(positions, score, **COMMON), ops.em_step(positions, score, **per_replica)
        for n in range(1, 38):
            got = ops.em_step(positions[:n], score[:n], **COMMON)
            assert torch.equal(got, whole[:n])
            arguments = dict(COMMON, first_replica=COMMON["first_replica"] + n)
            assert torch.equal(ops.em_step(positions[n:n + 3], score[n:n + 3], **arguments), whole[n:n + 3])
            arguments["variance"] = per_replica["variance"][n:n + 3]
            assert torch.equal(ops.em_step(positions[n:n + 3], score[n:n + 3], **arguments), scaled[n:n + 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 130])
def test_replicas_agree_whatever_the_molecule_size(rng, n_atoms, dtype):
    """Atoms and replicas are counted a register at a time; one number for all, or one for each, is the same step."""
    positions, score = make(rng, 300 // n_atoms + 2, n_atoms, dtype)
    whole = ops.em_step(positions, score, **COMMON, return_noise=True)
    spread = dict(COMMON, diffusion=torch.full((n_atoms,), COMMON["diffusion"], dtype=torch.float64),
                  variance=torch.ones(positions.shape[0], dtype=torch.float64))
    assert torch.equal(ops.em_step(positions, score, **spread), whole.positions)
    assert torch.equal(ops.em_step(positions, score, **COMMON), whole.positions)
    for r in range(positions.shape[0]):
        arguments = dict(COMMON, first_replica=COMMON["first_replica"] + r)
        assert torch.equal(ops.em_step(positions[r:r + 1], score[r:r + 1], **arguments), whole.positions[r:r + 1])


# Sites with a rare word, found by a search over replicas of atom 0, seed 0, step 0: (which word, word >> 8, replica).
# Even words are radii: u = 2^-24, 1 - 2^-24, 1, and both sides of 1/sqrt 2, where the logarithm changes its interval.
# Odd words are angles: borders of the half turns, both of their sides, and the middles between them.
RARE_WORDS = [
    (0, 0x000000, 1224113), (0, 0xFFFFFE, 14339733), (2, 0xFFFFFF, 921823), (0, 0xB504F2, 4680722),
    (2, 0xB504F3, 11821377), (3, 0x000000, 372860), (3, 0x000001, 3945308), (3, 0xFFFFFF, 8459372),
    (1, 0x3FFFFF, 6202399), (1, 0x400000, 3634013), (1, 0x400001, 9493610), (1, 0x7FFFFF, 19883431),
    (3, 0x800000, 2368153), (3, 0x800001, 1325170), (1, 0xBFFFFF, 25760426), (3, 0xC00000, 770495),
    (1, 0xC00001, 2986626), (1, 0x200000, 10012483), (3, 0x600000, 16129702), (1, 0xA00000, 15567811),
    (1, 0xE00000, 8337968),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_normals_of_extreme_words(level, dtype):
    """Within 5 ulp of the exact value of the two words, which mpmath takes to 40 digits; zero where that is zero."""
    zero, epsilon = torch.zeros(1, 1, 3, dtype=dtype), torch.finfo(dtype).eps
    for which, n, replica in RARE_WORDS:
        words = [int(w) >> 8 for w in philox_words(0, torch.tensor(replica), 0, torch.tensor(0))]
        assert words[which] == n
        with simd_level(level):
            got = ops.em_step(zero, zero, diffusion=0.5, time_step=1.0, first_replica=replica)[0, 0]
        with mpmath.workdps(40):
            for component, (radius, angle, function) in enumerate(((0, 1, mpmath.cospi), (0, 1, mpmath.sinpi),
                                                                   (2, 3, mpmath.cospi))):
                u, turns = mpmath.mpf(words[radius] + 1) / 2**24, mpmath.mpf(words[angle]) / 2**24
                want = mpmath.sqrt(-2 * mpmath.log(u)) * function(2 * turns)
                assert abs(got[component].item() - want) <= 5 * epsilon * abs(want)


@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_float32_normals_are_those_of_float64(level):
    """A quarter of a million numbers within 5 ulp, so also in the tails and near zero (rounding alone allows 0.5)."""
    zero = torch.zeros(84000, 1, 3)
    with simd_level(level):
        got = ops.em_step(zero, zero, **COMMON, return_noise=True).noise.double()
        want = ops.em_step(zero.double(), zero.double(), **COMMON, return_noise=True).noise
    assert ((got - want).abs() <= 5 * torch.finfo(torch.float32).eps * want.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", SIMD_LEVELS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 16), (1000, 22)])
def test_in_place_is_the_same_step(rng, level, shape, dtype):
    positions, score = make(rng, *shape, dtype)
    with simd_level(level):
        want = ops.em_step(positions, score, **COMMON, return_noise=True, return_log_density=True)
        for out in (positions.clone(), torch.empty_like(positions)):
            start = out if out.equal(positions) else positions
            assert ops.em_step(start, score, **COMMON, out=out) is out
            assert torch.equal(out, want.positions)
        moved = positions.clone()
        got = ops.em_step(moved, score, **COMMON, return_noise=True, return_log_density=True, out=moved)
    assert got.positions is moved and all(torch.equal(a, b) for a, b in zip(got, want))
    by_reference = positions.clone()
    assert reference.em_step(by_reference, score, **COMMON, out=by_reference) is by_reference
    torch.testing.assert_close(by_reference, want.positions)


def test_in_place_writes_nothing_beside(rng):
    """Slices of a larger array, at every alignment of the first element."""
    for n in (1, 15, 16, 17, 50):
        for offset in range(4):
            memory = torch.full((3 * n + 12,), 7.0)
            positions = memory[offset:offset + 3 * n].view(n, 1, 3)
            positions.zero_()
            ops.em_step(positions, positions.clone(), **COMMON, out=positions)
            assert (memory[:offset] == 7).all() and (memory[offset + 3 * n:] == 7).all()


@pytest.mark.parametrize("level", SIMD_LEVELS)
def test_not_a_number_stays_where_it_is(rng, level):
    positions, score = make(rng, 9, 5)
    positions[2, 3, 1], score[7, 0, 2] = float("nan"), float("nan")
    with simd_level(level):
        moved = ops.em_step(positions, score, **COMMON)
    assert torch.equal(moved.isnan(), positions.isnan() | score.isnan())


def test_in_place_operator(rng):
    positions, score = make(rng)
    one = torch.ones(1, dtype=torch.float64)
    opcheck(torch.ops.diffmd_fast.em_step_, (positions.clone(), score, one, one, 1, 0, 0))
    want = torch.ops.diffmd_fast.em_step(positions, score, one, one, 1, 0, 0, False, False)[0]
    strided = positions.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    torch.ops.diffmd_fast.em_step_(strided, score, one, one, 1, 0, 0)
    assert torch.equal(strided, want)
    memory = torch.zeros(6 * 3 * 2)
    with pytest.raises(InputError, match="^score:"):
        torch.ops.diffmd_fast.em_step_(memory[:18].view(2, 3, 3), memory[3:21].view(2, 3, 3), one, one, 1, 0, 0)
    with pytest.raises(InputError, match="^score:"):
        torch.ops.diffmd_fast.em_step_(positions, score.requires_grad_(), one, one, 1, 0, 0)


def test_step_is_the_spring(rng):
    """theory.md section 1: EM with time step dt and the Gaussian with k = 1/(2 D dt) are one: same x' and density."""
    positions, score = make(rng, dtype=torch.float64)
    d, dt, v = 0.0017, 0.002, 1.3
    k = 1 / (2 * d * dt)
    a = ops.em_step(positions, score, diffusion=d, time_step=dt, variance=v, seed=1, return_noise=True,
                    return_log_density=True)
    b = ops.em_step(positions, score, diffusion=d, stiffness=k, variance=v, seed=1)
    torch.testing.assert_close(a.positions, b, rtol=1e-14, atol=1e-15)
    rest = positions + score / (2 * k)
    torch.testing.assert_close(a.positions, rest + math.sqrt(v / k) * a.noise, rtol=1e-13, atol=1e-14)
    dimensions = positions[0].numel()
    density = -(k / (2 * v)) * ((a.positions - rest) ** 2).sum((1, 2)) + 0.5 * dimensions * math.log(
        k / (2 * math.pi * v))
    torch.testing.assert_close(a.log_density, density, rtol=1e-10, atol=1e-9)


def test_per_atom_and_per_replica_values(rng):
    positions, score = make(rng, 4, 3, dtype=torch.float64)
    d = torch.tensor([0.001, 0.002, 0.003], dtype=torch.float64)
    v = torch.tensor([0.5, 1.0, 1.5, 0.0], dtype=torch.float64)
    got = ops.em_step(positions, score, diffusion=d, time_step=0.01, variance=v, seed=4)
    for r in range(4):
        for a in range(3):
            one = normals(4, torch.tensor(r), 0, torch.tensor(a), torch.float64)
            want = positions[r, a] + 0.01 * d[a] * score[r, a] + math.sqrt(2 * 0.01 * d[a] * v[r]) * one
            torch.testing.assert_close(got[r, a], want, rtol=1e-13, atol=1e-14)
    by_stiffness = ops.em_step(positions, score, diffusion=d, stiffness=1 / (0.02 * d), variance=v, seed=4)
    torch.testing.assert_close(by_stiffness, got, rtol=1e-13, atol=1e-14)


def test_normals_are_standard():
    """Mean, variance, fourth moment and neighbour correlations of 3 million numbers; limits at 5 standard errors:
    false alarm below 1e-5 for the 9 checks together. Fixed seed, no retry."""
    n = 1_000_000
    zero = torch.zeros(n, 1, 3)
    xi = ops.em_step(zero, zero, diffusion=0.5, time_step=1.0, seed=99).double().numpy()[:, 0]
    for c in range(3):
        assert abs(xi[:, c].mean()) < 5 / math.sqrt(n)
        assert abs(xi[:, c].var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((xi[:, c] ** 4).mean() - 3) < 5 * math.sqrt(96 / n)
    for a, b in ((xi[:, 0], xi[:, 1]), (xi[:, 1], xi[:, 2]), (xi[:-1, 0], xi[1:, 0])):
        assert abs(np.mean(a * b)) < 5 / math.sqrt(n)


def test_normals_follow_the_normal_distribution():
    """Kolmogorov-Smirnov on 3 million numbers, each component apart: limit at p = 1e-5 each (the asymptotic law gives
    D sqrt n = sqrt(-log(p/2) / 2) = 2.47), so false alarm at most 3e-5 together. Fixed seed, no retry."""
    n = 1_000_000
    zero = torch.zeros(n, 1, 3)
    xi = ops.em_step(zero, zero, diffusion=0.5, time_step=1.0, seed=2024, step=7).double()[:, 0]
    cumulative = torch.special.ndtr(xi.sort(dim=0).values)
    grid = torch.arange(n + 1, dtype=torch.float64)[:, None] / n
    distance = torch.maximum((grid[1:] - cumulative).amax(0), (cumulative - grid[:-1]).amax(0))
    assert (distance * math.sqrt(n) < math.sqrt(-math.log(0.5e-5) / 2)).all()


def test_gradients(rng):
    positions, score = make(rng, 2, 3, dtype=torch.float64)
    positions.requires_grad_()
    score.requires_grad_()

    def step(x, s):
        return ops.em_step(x, s, diffusion=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), time_step=0.1, seed=3)

    assert torch.autograd.gradcheck(step, (positions, score))
    assert torch.autograd.gradgradcheck(step, (positions, score))


def test_opcheck(rng):
    positions, score = make(rng)
    one = torch.ones(1, dtype=torch.float64)
    for flags in ((False, False), (True, False), (True, True)):
        opcheck(torch.ops.diffmd_fast.em_step, (positions.requires_grad_(), score, one, one, 1, 0, 0, *flags))


def test_non_contiguous_and_empty(rng):
    positions, score = make(rng, 6, 4)
    strided = positions.repeat(1, 2, 1)[:, ::2]
    assert not strided.is_contiguous()
    assert torch.equal(ops.em_step(strided, score, **COMMON), ops.em_step(strided.contiguous(), score, **COMMON))
    assert ops.em_step(positions[:0], score[:0], **COMMON).shape == (0, 4, 3)
    nothing = ops.em_step(positions[:, :0], score[:, :0], **COMMON, return_log_density=True)
    assert nothing.positions.shape == (6, 0, 3) and torch.equal(nothing.log_density, torch.zeros(6))


def test_strided_and_expanded_values_are_read_as_they_are(rng):
    """A view's memory is not its values: every second one, or one for all."""
    positions, score = make(rng, 6, 4)
    numbers = torch.rand(12, generator=rng, dtype=torch.float64) + 0.5
    for pick in (numbers[::2], numbers[0].expand(6)):
        want = ops.em_step(positions, score, **dict(COMMON, variance=pick.clone()))
        assert torch.equal(ops.em_step(positions, score, **dict(COMMON, variance=pick)), want)
        want = ops.em_step(positions, score, **dict(COMMON, diffusion=pick[:4].clone()))
        assert torch.equal(ops.em_step(positions, score, **dict(COMMON, diffusion=pick[:4])), want)
        one = torch.ones(1, dtype=torch.float64)
        got = torch.ops.diffmd_fast.em_step(positions, score, one, pick, 0, 0, 0, False, False)[0]
        assert torch.equal(got, torch.ops.diffmd_fast.em_step(positions, score, one, pick.clone(), 0, 0, 0, False,
                                                              False)[0])


ONES = torch.ones(1, dtype=torch.float64)
RAW_BAD = [
    ("positions", dict(positions=torch.zeros(3, 3))),
    ("positions", dict(positions=torch.zeros(2, 3, 3, dtype=torch.float16))),
    ("score", dict(score=torch.zeros(1, 3, 3))),
    ("score", dict(score=torch.zeros(2, 3, 3, dtype=torch.float64))),
    ("diffusion_time", dict(diffusion_time=torch.ones(1))),
    ("diffusion_time", dict(diffusion_time=ONES[:0])),
    ("diffusion_time", dict(diffusion_time=ONES.expand(2))),
    ("variance", dict(variance=ONES.expand(3))),
    ("variance", dict(variance=ONES[0])),
    ("first_replica", dict(first_replica=-1)),
    ("step", dict(step=2**56)),
    ("diffusion_time", dict(positions=torch.zeros(2, 3, 3, requires_grad=True),
                            diffusion_time=ONES.clone().requires_grad_())),
]


@pytest.mark.parametrize(("argument", "change"), RAW_BAD)
def test_flat_operator_checks_before_it_touches_memory(argument, change):
    arguments = dict(positions=torch.zeros(2, 3, 3), score=torch.zeros(2, 3, 3), diffusion_time=ONES, variance=ONES,
                     seed=0, first_replica=0, step=0, with_noise=False, with_log_density=False)
    with pytest.raises(InputError, match=f"^{argument}:"):
        torch.ops.diffmd_fast.em_step(*{**arguments, **change}.values())


BAD = [
    ("positions", dict(positions=torch.zeros(3, 3))),
    ("positions", dict(positions=torch.zeros(2, 3, 3, dtype=torch.int32))),
    ("positions", dict(positions=[[0.0]])),
    ("score", dict(score=torch.zeros(2, 4, 3))),
    ("score", dict(score=torch.zeros(2, 3, 3, dtype=torch.float64))),
    ("score", dict(score=torch.zeros(2, 3, 3, device="meta"))),
    ("time_step", dict(time_step=0.0)),
    ("time_step", dict(time_step=-1.0)),
    ("time_step", dict(time_step=float("nan"))),
    ("time_step", dict(time_step=1.0, stiffness=1.0)),
    ("time_step", dict(time_step=None)),
    ("stiffness", dict(time_step=None, stiffness=-5.0)),
    ("diffusion", dict(diffusion=0.0)),
    ("diffusion", dict(diffusion=torch.ones(2))),
    ("diffusion", dict(diffusion=torch.ones(3, requires_grad=True))),
    ("diffusion", dict(diffusion=torch.tensor([1.0, float("nan"), 1.0]))),
    ("variance", dict(variance=-1.0)),
    ("variance", dict(variance=torch.ones(3))),
    ("seed", dict(seed=-1)),
    ("seed", dict(seed=1.5)),
    ("seed", dict(seed=torch.tensor(1.5))),
    ("time_step", dict(time_step=torch.ones(2, 2))),
    ("time_step", dict(time_step=10**400)),
    ("first_replica", dict(first_replica=2**32)),
    ("step", dict(step=-1)),
    ("out", dict(out=[0.0])),
    ("out", dict(out=torch.zeros(2, 3, 4))),
    ("out", dict(out=torch.zeros(2, 3, 3, dtype=torch.float64))),
    ("out", dict(out=torch.zeros(2, 3, 3, device="meta"))),
    ("out", dict(out=torch.zeros(3, 2, 3).transpose(0, 1))),
    ("out", dict(out=torch.zeros(2, 3, 3, requires_grad=True))),
    ("out", dict(out=torch.zeros(2, 3, 3), score=torch.zeros(2, 3, 3, requires_grad=True))),
]


@pytest.mark.parametrize(("argument", "change"), BAD)
def test_bad_input_is_one_clear_error(argument, change):
    arguments = dict(positions=torch.zeros(2, 3, 3), score=torch.zeros(2, 3, 3), diffusion=1.0, time_step=1.0)
    with pytest.raises(InputError) as error:
        ops.em_step(**{**arguments, **change})
    assert str(error.value).startswith(argument + ":") and "\n" not in str(error.value)
