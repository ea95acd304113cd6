"""What holds for the Triton em_step wherever it runs: on a GPU, or in the interpreter (TRITON_INTERPRET=1).

Not collected by itself: Triton must see the variable before it is imported, so test_triton.py runs this file in a
process of its own.
"""

import importlib

import pytest
import torch
import triton
import triton.language as tl

from diffmd_fast import ops, reference, use_backend
from diffmd_fast.reference.em_step import philox_words as reference_words

from ..ops.common import assert_float64_rule
from .common import DEVICE, on_triton

kernels = importlib.import_module("diffmd_fast.kernels.triton.em_step")
philox = importlib.import_module("diffmd_fast.kernels.triton.philox")

COMMON = dict(diffusion=0.002, time_step=1e-3, seed=2**63 + 5, first_replica=3, step=2**33 + 17)
SHAPES = [(1, 1), (3, 7), (37, 17), (512, 1), (2, 300)]  # part of a block, several programs, exactly two blocks


def make(rng, n_replicas, n_atoms, dtype=torch.float32):
    positions = torch.randn(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    score = 300 * torch.randn(n_replicas, n_atoms, 3, generator=rng, dtype=torch.float64)
    return positions.to(DEVICE, dtype), score.to(DEVICE, dtype)


@triton.jit
def words_kernel(out, n, atom, replica, seed_low, seed_high, step_low, step_high_and_domain, BLOCK: tl.constexpr):
    site = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = site < n
    a = tl.load(atom + site, mask=inside, other=0).to(tl.uint32)
    r = tl.load(replica + site, mask=inside, other=0).to(tl.uint32)
    words = philox.philox_words(a, r, seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True),
                                step_low.to(tl.uint32, bitcast=True),
                                step_high_and_domain.to(tl.uint32, bitcast=True))
    for k in tl.static_range(4):
        tl.store(out + 4 * site + k, words[k].to(tl.int64), mask=inside)


@pytest.mark.parametrize(("seed", "step", "domain"), [(2, 3, 4), (0x0123456789ABCDEF, 0x00ABCDEF_12345678, 2),
                                                      (2**64 - 1, 2**56 - 1, 255), (2**63 + 2**31, 2**32 + 2**31, 128)])
def test_words_are_the_reference_words(seed, step, domain):
    n = 150
    atom = torch.arange(n, device=DEVICE)
    replica = 2**32 - 1 - 7 * torch.arange(n, device=DEVICE)
    got = torch.zeros(n, 4, dtype=torch.int64, device=DEVICE)
    words_kernel[triton.cdiv(n, 64),](got, n, atom, replica, *philox.counter_arguments(seed, step, domain), BLOCK=64)
    assert torch.equal(got, torch.stack(reference_words(seed, replica, step, atom, domain), dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_native_step_bit_for_bit(rng, shape, dtype):
    positions, score = make(rng, *shape, dtype=dtype)
    got = on_triton(ops.em_step, positions, score, **COMMON, return_noise=True)
    want = ops.em_step(positions.cpu(), score.cpu(), **COMMON, return_noise=True)
    assert torch.equal(got.noise.cpu(), want.noise) and torch.equal(got.positions.cpu(), want.positions)


def test_float32_within_twice_the_reference_error(rng):
    positions, score = make(rng, 64, 22)
    arguments = dict(COMMON, return_noise=True, return_log_density=True)
    got = on_triton(ops.em_step, positions, score, **arguments)
    want32 = reference.em_step(positions, score, **arguments)
    want64 = reference.em_step(positions.double(), score.double(), **arguments)
    for name, a, b, c in zip(got._fields, got, want32, want64):
        assert_float64_rule(a, b, c, name)


@pytest.mark.parametrize("per_atom", [False, True])
@pytest.mark.parametrize("per_replica", [False, True])
def test_float64_equals_reference(rng, per_atom, per_replica):
    positions, score = make(rng, 41, 13, dtype=torch.float64)
    arguments = dict(COMMON, return_noise=True, return_log_density=True)
    if per_atom:
        arguments["diffusion"] = torch.linspace(0.001, 0.003, 13, dtype=torch.float64, device=DEVICE)
    if per_replica:
        arguments["variance"] = torch.linspace(0.5, 1.5, 41, dtype=torch.float64, device=DEVICE)
    got = on_triton(ops.em_step, positions, score, **arguments)
    for a, b in zip(got, reference.em_step(positions, score, **arguments)):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_noise_does_not_depend_on_batch_or_index_width(rng):
    positions, score = make(rng, 50, 22)
    whole = on_triton(ops.em_step, positions, score, **COMMON)
    parts = []
    for first, last in ((0, 1), (1, 34), (34, 50)):
        arguments = dict(COMMON, first_replica=COMMON["first_replica"] + first)
        parts.append(on_triton(ops.em_step, positions[first:last], score[first:last], **arguments))
    assert torch.equal(torch.cat(parts), whole)
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    narrow, wide = (kernels.em_step(positions, score, one, one, 1, 2, 3, wide=w) for w in (False, True))
    assert torch.equal(narrow[0], wide[0]) and torch.equal(narrow[1], wide[1])


def test_non_contiguous_and_empty(rng):
    positions, score = make(rng, 6, 4)
    strided = positions.repeat(1, 2, 1)[:, ::2]
    got, want = (on_triton(ops.em_step, x, score, **COMMON) for x in (strided, strided.contiguous()))
    assert torch.equal(got, want)
    result = on_triton(ops.em_step, positions[:0], score[:0], **COMMON, return_noise=True, return_log_density=True)
    assert [list(t.shape) for t in result] == [[0, 4, 3], [0, 4, 3], [0]]


def test_gradients_and_opcheck(rng):
    positions, score = make(rng, 2, 3, dtype=torch.float64)
    diffusion = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, device=DEVICE)

    def step(x, s):
        return on_triton(ops.em_step, x, s, diffusion=diffusion, time_step=0.1, seed=3)

    assert torch.autograd.gradcheck(step, (positions.requires_grad_(), score.requires_grad_()), fast_mode=True)
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    with use_backend("triton"):  # autograd and its tracing do not see the kernel: tests/ops/test_em_step.py has them
        torch.library.opcheck(torch.ops.diffmd_fast.em_step, (positions, score, one, one, 1, 0, 0, True, True),
                              test_utils=("test_schema", "test_faketensor"))
