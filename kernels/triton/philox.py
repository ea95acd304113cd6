"""Counter-based normals in Triton: twin of csrc/philox.hpp and csrc/normals.hpp, operation for operation.

The words are bit-identical everywhere.  The normals are made of IEEE additions, multiplications and square roots only,
in the order of the C++, which is compiled without fused multiply-adds; so under ``enable_fp_fusion=False`` (see
``LAUNCH`` in em_step.py) they equal those of the CPU bit for bit, in the interpreter and on a GPU alike.
"""

import triton
import triton.language as tl

from .arithmetic import exact_sqrt

# The polynomials of csrc/normals.hpp, which says what of.
LOG_32 = tl.constexpr((
    -1.99999994838, 0.999999759599, -0.666683713811, 0.500041458765, -0.399136602593, 0.331248266469,
    -0.299046396795, 0.287334779174, -0.174441934406))
SINE_32 = tl.constexpr((
    1.57079631845, -0.645963710605, 0.0796896789617, -0.00467376662385, 0.000151485132629))
LOG_64 = tl.constexpr((
    -2.000000000000000005, 1.000000000000000888, -0.6666666666666584316, 0.4999999999994562439,
    -0.4000000000019800374, 0.3333333334319920678, -0.2857142855773485663, 0.2499999918113519158,
    -0.2222222223198285335, 0.2000003676959436375, -0.1818185488232809793, 0.1666571143703189618,
    -0.1538285158344021206, 0.1430005599688726847, -0.1337215866625896542, 0.1238771812158808116,
    -0.1131556213701623532, 0.1135809057748299002, -0.1306678418800545347, 0.120153554631054074,
    -0.05232168200103143038))
SINE_64 = tl.constexpr((
    1.570796326794896619, -0.6459640975062461911, 0.07969262624616543557, -0.004681754135302642315,
    0.000160441184706821503, -3.598843007208232908e-6, 5.692134872719403751e-8, -6.684321722657890861e-10,
    5.870611059804375073e-12))


@triton.jit
def philox_words(atom, replica, seed_low, seed_high, step_low, step_high_and_domain):
    """Four blocks of uint32 from blocks ``atom`` and ``replica`` and scalars, all uint32; Philox4x32-10."""
    zero = tl.zeros_like(atom)
    return tl.philox_impl(atom, replica, zero + step_low, zero + step_high_and_domain, seed_low, seed_high)


@triton.jit
def bits_of(x):
    """The bits of a float as an unsigned integer of the same width."""
    return x.to(tl.uint32 if x.dtype == tl.float32 else tl.uint64, bitcast=True)


@triton.jit
def squared_radius(word, DTYPE: tl.constexpr):
    """-2 log u, u = ((word >> 8) + 1) / 2^24: u 2^24 = 2^e (1 + f), 1 + f in [1/sqrt 2, sqrt 2), exactly."""
    SINGLE: tl.constexpr = DTYPE.primitive_bitwidth == 32
    LOG: tl.constexpr = LOG_32 if SINGLE else LOG_64
    TERMS: tl.constexpr = 9 if SINGLE else 21
    MANTISSA: tl.constexpr = 23 if SINGLE else 52
    ROOT_HALF: tl.constexpr = 0x3F3504F3 if SINGLE else 0x3FE6A09E667F3BCD
    bits = bits_of(((word >> 8) + 1).to(tl.int32).to(DTYPE))
    e = (bits - ROOT_HALF) >> MANTISSA
    whole = (24.0 - e.to(tl.int32).to(DTYPE)) * 1.386294361119890618834464
    f = (bits - (e << MANTISSA)).to(DTYPE, bitcast=True) - 1.0
    square = f * f
    even = tl.zeros_like(f) + LOG[TERMS - 1]
    odd = tl.zeros_like(f) + LOG[TERMS - 2]
    for k in tl.static_range(TERMS - 3, -1, -2):
        even = even * square + LOG[k]
        if k > 0:
            odd = odd * square + LOG[k - 1]
    return whole + (odd * f + even) * f


@triton.jit
def cosine(word, DTYPE: tl.constexpr):
    """cos of (word >> 8) / 2^24 turns = q half turns and a part h of one: (-1)^q sin(pi/2 (1 - 2 h)), h exact."""
    SINGLE: tl.constexpr = DTYPE.primitive_bitwidth == 32
    SINE: tl.constexpr = SINE_32 if SINGLE else SINE_64
    TERMS: tl.constexpr = 5 if SINGLE else 9
    x = 1.0 - ((word >> 8) & 0x7FFFFF).to(tl.int32).to(DTYPE) * (2.0 / 8388608.0)
    square = x * x
    total = tl.zeros_like(x) + SINE[TERMS - 1]
    for k in tl.static_range(TERMS - 2, -1, -1):
        total = total * square + SINE[k]
    part = x * total
    return tl.where((word >> 31) != 0, -part, part)


@triton.jit
def philox_normals(atom, replica, seed_low, seed_high, step_low, step_high_and_domain, DTYPE: tl.constexpr):
    """The three components of each site's noise, from the four words of one Philox call (one normal is not used)."""
    w0, w1, w2, w3 = philox_words(atom, replica, seed_low, seed_high, step_low, step_high_and_domain)
    radius = exact_sqrt(squared_radius(w0, DTYPE))
    x = radius * cosine(w1, DTYPE)
    y = radius * cosine(w1 + 0xC0000000, DTYPE)  # a sine is the cosine of a quarter turn less
    z = exact_sqrt(squared_radius(w2, DTYPE)) * cosine(w3, DTYPE)
    return x, y, z


def counter_arguments(seed: int, step: int, domain: int = 0) -> tuple[int, int, int, int]:
    """(seed low, seed high, step low, step high | domain << 24) as kernel arguments.

    Each is the signed integer of the same 32 bits: Triton picks an argument's type by its value, and one type for
    all values means one compiled kernel.
    """
    return (signed32(seed), signed32(seed >> 32), signed32(step), signed32((step >> 32 & 0xFFFFFF) | domain << 24))


def signed32(word: int) -> int:
    """The signed integer of the lowest 32 bits of ``word``."""
    word &= 0xFFFFFFFF
    return word - 2**32 if word >= 2**31 else word
